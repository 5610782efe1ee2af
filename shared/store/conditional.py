"""A transaction that is done only if there is room: counts are looked at, and what is queued is done and counted, in one step.

Hidden here: the one script for it. WATCH would do where few write a count at once; of a thousand requests of one key, each that
is let in would send all others round again (docs/decisions/0012). Time is the server's, so that API processes need not agree.

What is counted is of two kinds. A window counts what happened in the last minute, by seconds: it is never more than its limit
in any 60 s, and what was counted is forgotten after 61. A set has the ids of what is there, until they are taken out again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from shared.store.transaction import answered, raise_first, words

WINDOW_S = 60
KEPT_S = WINDOW_S + 1

_SCRIPT = """
local second = tonumber(redis.call('TIME')[1])
local at = 1
local function word() at = at + 1; return ARGV[at - 1] end
local checks, told, refused = {}, {}, 0
for number = 1, tonumber(word()) do
  local check, used, wait = {}, 0, 0
  for _, name in ipairs({'kind', 'key', 'most', 'cost', 'member', 'life'}) do check[name] = word() end
  check.most, check.cost = tonumber(check.most), tonumber(check.cost)
  if check.kind == 'window' then
    local seconds = {}
    local fields = redis.call('HGETALL', check.key)
    for field = 1, #fields, 2 do
      local when, amount = tonumber(fields[field]), tonumber(fields[field + 1])
      if when >= second - 60 then
        used = used + amount
        seconds[#seconds + 1] = {when, amount}
      end
    end
    local over = used + check.cost - check.most
    if check.most >= 0 and over > 0 then
      table.sort(seconds, function(one, other) return one[1] < other[1] end)
      for _, pair in ipairs(seconds) do
        over = over - pair[2]
        wait = pair[1] + 61 - second
        if over <= 0 then break end
      end
    end
  else
    used = redis.call('ZCARD', check.key)
    if redis.call('ZSCORE', check.key, check.member) then used = used - 1 end
  end
  checks[number], told[number] = check, {used, wait}
  if refused == 0 and check.most >= 0 and used + check.cost > check.most then refused = number end
end
if refused > 0 then return {refused, told} end
for _, check in ipairs(checks) do
  if check.kind == 'window' then
    for _, field in ipairs(redis.call('HKEYS', check.key)) do
      if tonumber(field) < second - 60 then redis.call('HDEL', check.key, field) end
    end
    redis.call('HINCRBY', check.key, second, check.cost)
  else
    redis.call('ZADD', check.key, second, check.member)
  end
  redis.call('EXPIRE', check.key, check.life)
end
local replies = {}
while ARGV[at] do
  local length = tonumber(word())
  replies[#replies + 1] = redis.pcall(unpack(ARGV, at, at + length - 1))
  at = at + length
end
return {0, told, replies}
"""
"""ARGV: how many counts, six words of each, then each command as the number of its words and these. `call` where the counts are
written: if that is refused, because memory is full, nothing was done."""


class Count(NamedTuple):
    """One of those that must have room. `most` of None only counts."""

    key: str
    most: int | None
    cost: int = 1
    member: str = ""
    """What is put into the set; empty: it is a window."""
    life_s: int = KEPT_S
    """How long the key is kept after the last one was counted."""


class Found(NamedTuple):
    """What was seen of a count before anything was added."""

    used: int
    wait_s: int
    """Until a window has room; 0 where it has, and of a set."""


class Full(Exception):
    """There is no room in `counts[refused]`; nothing was done."""

    def __init__(self, refused: int, found: Sequence[Found]) -> None:
        super().__init__()
        self.refused, self.found = refused, found


async def execute_if(pipe: Any, counts: Sequence[Count]) -> tuple[list[Found], list[Any]]:
    """Does what is queued, all in one step, if there is room in all counts, and counts it. `pipe` may watch.

    Returns what was seen, and the replies, errors among them as values. Raises Full, WatchError, RedisError.
    """
    commands = pipe.queued
    flat: list[Any] = [len(counts)]
    for count in counts:
        most = -1 if count.most is None else count.most
        flat += ["set" if count.member else "window", count.key, most, count.cost, count.member, count.life_s]
    pipe.queued = []
    pipe.eval(_SCRIPT, 0, *flat, *words(commands))
    (reply,) = await pipe.execute(raise_on_error=False)
    if isinstance(reply, Exception):
        raise reply
    raise_first(reply)
    refused, told, *done = reply
    found = [Found(int(used), int(wait_s)) for used, wait_s in told]
    if refused:
        raise Full(refused - 1, found)
    return found, await answered(pipe, commands, done[0])
