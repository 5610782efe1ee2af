"""A transaction that is done only if there is room: counts are looked at, and what is queued is done and counted, in one step.

Hidden here: the one script for it. WATCH would do where few write a count at once; of a thousand requests of one key, each that
is let in would send all others round again (docs/decisions/0012). Time is the server's, so that API processes need not agree.
And that the script is sent by its digest, which the server knows after the first time.

What is counted is of four kinds. A window counts what happened in the last minute, by seconds: it is never more than its limit
in any 60 s, and what was counted is forgotten after 61. A set has the ids of what is there, until they are taken out again; a
sum has an amount with each. A hold is an amount that may be used up later: it has room as long as what was used and what is
held are less than the limit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from redis.exceptions import NoScriptError, ResponseError

from shared.store.keys import SUM
from shared.store.redis import WatchError, WrongServer
from shared.store.transaction import Answer, raise_first, words

WINDOW_S = 60
KEPT_S = WINDOW_S + 1

_SCRIPT = """
local second = tonumber(redis.call('TIME')[1])
local made = ARGV[1] ~= '' and redis.call('EXISTS', ARGV[1]) == 1
local checks, told, refused, at = {}, {}, 0, 3
local function minute(key)
  local seen = redis.call('HMGET', key .. ':sum', 'second', 'amount')
  if seen[1] == tostring(second) and seen[2] then return tonumber(seen[2]) end
  local fields, stale, used = redis.call('HGETALL', key), {}, 0
  for field = 1, #fields, 2 do
    if tonumber(fields[field]) >= second - 60 then
      used = used + tonumber(fields[field + 1])
    else
      stale[#stale + 1] = fields[field]
    end
  end
  return used, stale
end
local function room_in(key, over)
  local seconds, wait, fields = {}, 0, redis.call('HGETALL', key)
  for field = 1, #fields, 2 do
    local when = tonumber(fields[field])
    if when >= second - 60 then seconds[#seconds + 1] = {when, tonumber(fields[field + 1])} end
  end
  table.sort(seconds, function(one, other) return one[1] < other[1] end)
  for _, pair in ipairs(seconds) do
    over = over - pair[2]
    wait = pair[1] + 61 - second
    if over <= 0 then break end
  end
  return wait
end
local function held(key, life)
  local fields, stale, used = redis.call('HGETALL', key), {}, 0
  for field = 1, #fields, 2 do
    if tonumber(fields[field]) >= second - life then
      used = used + math.max(0, tonumber(fields[field + 1]))
    else
      stale[#stale + 1] = fields[field]
    end
  end
  return used, stale
end
for number = 1, tonumber(ARGV[2]) do
  local kind, key, most, cost = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local first, used, wait, full, stale = at, 0, 0, nil, nil
  if kind == 'window' then
    used, stale = minute(key)
    full = used + cost > most
    if most >= 0 and full then wait = room_in(key, used + cost - most) end
    at = at + 4
  elseif kind == 'set' then
    used = redis.call('ZCARD', key)
    full = used + cost > most
    if full and redis.call('ZSCORE', key, ARGV[at + 4]) then
      used = used - 1
      full = used + cost > most
    end
    at = at + 6
  elseif kind == 'sum' then
    local fields = redis.call('HGETALL', key)
    for field = 1, #fields, 2 do
      if fields[field] ~= ARGV[at + 4] then used = used + tonumber(fields[field + 1]) end
    end
    full = used + cost > most
    at = at + 6
  else
    wait, stale = held(key, tonumber(ARGV[at + 5]))
    used = wait + tonumber(redis.call('HGET', ARGV[at + 6], ARGV[at + 7]) or 0)
    full = used >= most
    at = at + 8
  end
  if refused == 0 and most >= 0 and full then refused = number end
  told[number] = {used, wait}
  checks[number] = {first, used, stale}
end
if refused > 0 and not made then return {refused, told} end
for number = 1, made and 0 or #checks do
  local first, used, stale = unpack(checks[number], 1, 3)
  local kind, key, _, cost, member, life = unpack(ARGV, first, first + 5)
  if stale and #stale > 0 and cost ~= '0' then redis.call('HDEL', key, unpack(stale, 1, math.min(#stale, 1000))) end
  if kind == 'window' then
    redis.call('HINCRBY', key, second, cost)
    if stale then
      redis.call('HSET', key .. ':sum', 'second', second, 'amount', string.format('%d', used + tonumber(cost)))
      redis.call('EXPIRE', key .. ':sum', 61)
      redis.call('EXPIRE', key, 61)
    else
      redis.call('HINCRBY', key .. ':sum', 'amount', cost)
    end
  else
    if kind == 'set' then
      redis.call('ZADD', key, second, member)
    elseif kind == 'sum' then
      redis.call('HSET', key, member, cost)
    elseif cost ~= '0' then
      redis.call('HINCRBY', key, member, cost)
    end
    if kind == 'sum' or cost ~= '0' then redis.call('EXPIRE', key, life) end
  end
end
local replies = {}
while ARGV[at] do
  local length = tonumber(ARGV[at])
  local reply = redis.pcall(unpack(ARGV, at + 1, at + length))
  local why = #replies == 0 and type(reply) == 'table' and reply.err
  if why and string.sub(tostring(why), 1, 3) == 'OOM' then return reply end
  replies[#replies + 1] = reply
  at = at + length + 1
end
return {0, made and {} or told, replies}
"""
"""ARGV: what must not be there for anything to be counted, how many counts, the words of each, then each command as the
number of its words and these. `call` where the counts are written: if that is refused, as memory is full, nothing was done. Nor
is anything where the first command is refused for that, as it would be in a transaction: else the doorbell would ring.

A minute is added up once a second: its sum stands beside it, and holds as long as the second does in which it was made, or
until a count is corrected. So does what was said then of when both expire."""
_DIGEST = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


class Count(NamedTuple):
    """One of those that must have room. `most` of None only counts; `cost` of 0 only looks."""

    key: str
    most: int | None
    cost: int = 1
    member: str = ""
    """What is put into the set; empty: it is a window."""
    life_s: int = KEPT_S
    """How long the set is kept after the last one was counted; a window is kept for `KEPT_S`."""

    def words(self) -> list[Any]:
        """As the script reads it."""
        if self.member:
            return ["set", self.key, _or_none(self.most), self.cost, self.member, self.life_s]
        return ["window", self.key, _or_none(self.most), self.cost]


class Amount(NamedTuple):
    """What one of several takes of what there is for all of them; it replaces what it took before."""

    key: str
    """A hash of amounts, by `member`."""
    most: int | None
    cost: int
    member: str
    life_s: int

    def words(self) -> list[Any]:
        """As the script reads it."""
        return ["sum", self.key, _or_none(self.most), self.cost, self.member, self.life_s]


class Hold(NamedTuple):
    """An amount that is taken back when what it is for has ended; see `release`."""

    key: str
    """A hash of amounts, by Unix time."""
    most: int | None
    cost: int
    since_s: int
    """From when on it is held. What was never taken back is not counted any more after `life_s`."""
    life_s: int
    used_key: str
    used_field: str
    """Where it stands what was used up."""

    def words(self) -> list[Any]:
        """As the script reads it."""
        life = ("hold", self.key, _or_none(self.most), self.cost, self.since_s, self.life_s)
        return [*life, self.used_key, self.used_field]


class Found(NamedTuple):
    """What was seen of a count before anything was added."""

    used: int
    wait_s: int
    """Until a window has room; 0 where it has, and of a set. Of a hold: how much of `used` is held."""


class Full(Exception):
    """There is no room in `counts[refused]`; nothing was done."""

    def __init__(self, refused: int, found: Sequence[Found]) -> None:
        super().__init__()
        self.refused, self.found = refused, found


async def execute_if(
    pipe: Any, counts: Sequence[Count | Amount | Hold], *, unless: str = ""
) -> tuple[list[Found], list[Any]]:
    """Does what is queued, all in one step, if there is room in all counts, and counts it. `pipe` may watch.

    `unless` is a key that the queued commands make: where it is there, they were done before, and nothing is counted again or
    refused. Returns what was seen, nothing in that case, and the replies, errors among them as values. Raises Full, RedisError,
    and WatchError, also where something was watched and the server had to be told the script first.
    """
    commands = pipe.queued
    flat: list[Any] = [unless, len(counts)]
    for count in counts:
        flat += count.words()
    flat += words(commands)
    watched, pipe.queued = pipe.watching, []
    key = counts[0].key
    reply = await _evaluated(pipe, key, flat, watched=watched)
    if isinstance(reply, NoScriptError):  # nothing was done, and nothing is watched any more
        async with pipe.alone() as alone:
            alone.eval(_SCRIPT, 1, key, "", 0)  # counts nothing, and does nothing
            await alone.execute()
        if watched:
            raise WatchError("The server did not know the script yet. Watch again.")
        reply = await _evaluated(pipe, key, flat, watched=False)
    elif isinstance(reply, WrongServer) and not watched:  # nothing was done there
        reply = await _evaluated(pipe, key, flat, watched=False)
    if isinstance(reply, Exception):
        raise reply
    raise_first(reply)
    refused, told, *done = reply
    found = [Found(int(used), int(wait_s)) for used, wait_s in told]
    if refused:
        raise Full(refused - 1, found)
    return found, pipe.answers(commands, done[0])


async def _execute_apart(
    pipe: Any, counts: Sequence[Count | Amount | Hold], *, unless: str
) -> tuple[list[Found], list[Any]]:
    """The same where the counts are the control's, and what they count is in a cell: they are counted first. Where it does not
    come to be, what else would be wrong for long is taken back. Sets have what is in them looked at (`Limiter.forget_dead`)."""
    if unless:
        async with pipe.alone() as look:
            look.exists(unless)
            if (await look.execute())[0]:
                return [], await pipe.execute(raise_on_error=False)
    async with pipe.control.alone() as counting:
        found, _ = await execute_if(counting, counts)
    try:
        replies: list[Any] = await pipe.execute(raise_on_error=False)
        is_done = not any(isinstance(reply, Exception) for reply in replies)
    except (WatchError, ResponseError):
        await _take_back(pipe, counts)
        raise
    if not is_done:
        await _take_back(pipe, counts)
    return found, replies


async def _take_back(pipe: Any, counts: Sequence[Count | Amount | Hold]) -> None:
    """What was counted just now is not to be."""
    async with pipe.control.alone() as control:
        control.time()
        ((second, _),) = await control.execute()
        for one in counts:
            if isinstance(one, Hold) and one.cost:
                release(control, one.key, one.since_s, one.cost, one.life_s)
            elif isinstance(one, Count) and not one.member and one.cost:
                correct(control, one.key, int(second), -one.cost)
        if len(control):
            await control.execute()


async def _evaluated(pipe: Any, key: str, flat: list[Any], *, watched: bool) -> Any:
    """The script's reply, errors as values. A cluster does it where `key` is, and all others are there, too. It is one step by
    itself: inside MULTI it stands only so that what is watched holds."""
    if watched:
        pipe.evalsha(_DIGEST, 1, key, *flat)
        return (await pipe.execute(raise_on_error=False))[0]
    return await pipe.do("EVALSHA", _DIGEST, 1, key, *flat)


class Condition(Protocol):
    """Counts that one feature looks at, and what it says of them."""

    @property
    def counts(self) -> Sequence[Count | Amount | Hold]: ...

    async def refusal(self, refused: int, found: Sequence[Found]) -> Exception:
        """What is raised where `counts[refused]` has no room."""

    def passed(self, found: Sequence[Found]) -> None:
        """All had room."""


def under(conditions: Sequence[Condition], *, unless: str = "") -> Callable[[Any], Awaitable[list[Any]]] | None:
    """How to execute a transaction under these conditions; None: there is nothing to look at. See `execute_if`."""
    counts = [count for one in conditions for count in one.counts]
    if not counts:
        return None

    async def execute(pipe: Any) -> list[Any]:
        try:
            how = execute_if if pipe.control is pipe else _execute_apart
            found, replies = await how(pipe, counts, unless=unless)
        except Full as full:
            at = full.refused
            for one, seen in _parted(conditions, full.found):
                if at < len(seen):
                    raise await one.refusal(at, seen) from None
                at -= len(seen)
            raise
        for one, seen in _parted(conditions, found) if found else ():
            one.passed(seen)
        return replies

    return execute


def _parted(conditions: Sequence[Condition], found: Sequence[Found]) -> list[tuple[Condition, Sequence[Found]]]:
    parts, at = [], 0
    for one in conditions:
        parts.append((one, found[at : at + len(one.counts)]))
        at += len(one.counts)
    return parts


def correct(pipe: Any, key: str, second: int | bytes | Answer, amount: int) -> None:
    """Queues that so much more, or less, was counted in a window's second. What comes too late for it is forgotten with it."""
    pipe.hincrby(key, second, amount)
    pipe.expire(key, KEPT_S)
    pipe.hdel(f"{key}{SUM}", "second")  # which may be of a later minute than the corrected one: it is added up anew


def release(pipe: Any, key: str, since_s: int, amount: int, life_s: int) -> None:
    """Queues that a hold is taken back. To be done once."""
    pipe.hincrby(key, since_s, -amount)
    pipe.expire(key, life_s)


def _or_none(most: int | None) -> int:
    return -1 if most is None else most
