"""Transactions, also on a server whose memory is full: what ends work or deletes it must not wait for room.

Hidden here: what a full server takes. Redis 7.0 refuses every command inside MULTI then, DEL among them (processCommand in
its src/server.c), and every server refuses all that may take memory (the flag `denyoom`), be it to write an outcome that
lets everything else be freed. A script may say `allow-oom` (redis.io/docs/latest/develop/programmability/lua-api,
"Script flags"; Redis 7 and Valkey): the same commands are done in one, as one. An older server refuses that, and it stays
at OutOfMemoryError. A disk that is full (MISCONF) refuses everything; nothing helps but room.

Use these for what ends, frees or keeps alive what was accepted, never for what accepts more.

And that who knows what it will see needs not look first: `commit_if` compares and writes in one script, in one round trip.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from hiredis import pack_command

from shared.store.cluster.slots import keys_of
from shared.store.commands import watch
from shared.store.redis import ArqRedis, NoScriptError, OutOfMemoryError, ResponseError, WatchError, WrongServer

Command = tuple[str | bytes | int, ...]


class Answer(NamedTuple):
    """A word of a command that is not known before the command is done: what an ask of `commit_if` is answered. Once in one."""

    number: int


_CALL = """#!lua flags=allow-oom
local at = %d
local function call()
  local words = tonumber(ARGV[at])
  at = at + words + 1
  return redis.pcall(unpack(ARGV, at - words, at - 1))
end
"""
"""How a script begins: `call` does the next command in ARGV, whose words stand behind their number, from word `at` on."""

_SCRIPT = (
    (_CALL % 3)
    + """local seen = {}
for look = 1, tonumber(ARGV[1]) do seen[look] = call() end
local digest = #seen == 0 and '-' or redis.sha1hex(cmsgpack.pack(seen))
if ARGV[2] == '' then return {digest, seen} end
if ARGV[2] ~= digest then return false end
local replies = {}
while ARGV[at] do replies[#replies + 1] = call() end
return replies
"""
)
"""ARGV: how many looks, the digest of what they saw (empty: not yet known), then each look and each command as the number
of its words and these. One key is declared: the others are in its slot."""
_NOTHING_SEEN = "-"

_IF_SCRIPT = (
    (_CALL % 3)
    + """for look = 1, tonumber(ARGV[1]) do
  local seen = call()
  while type(seen) == 'table' do seen = seen[1] end
  if tostring(seen or '') ~= ARGV[at] then return false end
  at = at + 1
end
local answers, replies = {}, {}
for ask = 1, tonumber(ARGV[2]) do answers[ask] = call() end
while ARGV[at] do
  if ARGV[at] == '=' then
    local place, answer, words = tonumber(ARGV[at + 1]), answers[tonumber(ARGV[at + 2])], tonumber(ARGV[at + 3])
    local command = {unpack(ARGV, at + 4, at + 3 + words)}
    at, command[place] = at + 4 + words, answer
    replies[#replies + 1] = type(answer) == 'string' and redis.pcall(unpack(command))
  elseif ARGV[at] == '?' then
    local commands, words = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    at = at + 3
    replies[#replies + 1] = call()
    if replies[#replies] == 0 then
      for _ = 1, commands do replies[#replies + 1] = false end
      at = at + words
    end
  else
    replies[#replies + 1] = call()
  end
end
return replies
"""
)
"""ARGV: how many looks, how many asks; each look, as the number of its words and these, and what it must see; each ask; and the
commands. One with an answer has before it `=`, which of its words that is, and which answer; one that others follow from has
`?`, how many these are, and how many words. The key of the first look is declared: the others are in its slot."""
_IF_DIGEST = hashlib.sha1(_IF_SCRIPT.encode(), usedforsecurity=False).hexdigest()
_REFUSED_S = 60.0
"""How long a server is not asked again that took no script: it is too old, or the user may not run any."""
_refused: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
"""Until when, by pool, in monotonic seconds."""

_UNLIMITED = 3
"""So many tries follow each other at once; then every connection breaks, or another client writes without end."""
_LONGEST_PAUSE_S = 0.1


async def commit(pipe: Any, *, raise_on_error: bool = True) -> list[Any]:
    """Does what `pipe.execute` does, also where memory is full: then what was refused is done in a script.

    `pipe` watches nothing. If it is no transaction, what was refused is done after the rest. Raises what `execute` raises.
    """
    commands = pipe.queued
    try:
        replies: list[Any] = await pipe.execute(raise_on_error=False)
        if any(isinstance(reply, WrongServer) for reply in replies):  # once more, as `execute` would
            pipe.queued = commands
            replies = await pipe.execute(raise_on_error=False)
    except OutOfMemoryError as error:  # of a transaction: nothing is done
        replies = [error] * len(commands)
    refused = [place for place, reply in enumerate(replies) if isinstance(reply, OutOfMemoryError)]
    if refused:
        for places in _together(pipe, commands, refused):
            again = [commands[place] for place in places]
            done = await _run(pipe, again[0][0], [0, _NOTHING_SEEN, *words(again)], replies[places[0]])
            for place, reply in zip(places, pipe.answers(again, done), strict=True):
                replies[place] = reply
    if raise_on_error:
        raise_first(replies)
    return replies


def _together(pipe: Any, commands: Sequence[Any], places: Sequence[int]) -> list[list[int]]:
    """Those that one script may do: all of a transaction, else those that have their keys in one place."""
    if pipe.is_transaction:
        return [list(places)]
    found: dict[int, list[int]] = {}
    for place in places:
        found.setdefault(pipe.place_of(keys_of(commands[place][0])[0]), []).append(place)
    return list(found.values())


async def commit_if(pipe: Any, looks: Sequence[tuple[Command, str]], asks: Sequence[Command] = ()) -> list[Any] | None:
    """Does what is queued, all or none, if each look sees what it is said to see: a word, a number, or "" for nothing. Of a
    list its first word counts, so XREVRANGE sees the id of the last entry.

    `asks` are reads whose answers are words of what is queued: `Answer(0)` stands for that of the first. A command for which
    there is no answer is left out, and its reply is None. So are the `then=3` commands behind one that was queued with that,
    where it is answered 0: what was there already.

    Also where memory is full. Returns the replies, errors among them as values; None where a look saw something else, or the
    server takes no such scripts: nothing is done, and `transact` is the way. `pipe` is fresh, and keeps what is queued. Raises
    what `execute` raises if the server does not answer; then it may have been done.
    """
    pool = pipe.connection_pool
    if not may_run_scripts(pool):
        return None
    commands = pipe.queued
    flat: list[Any] = [1, keys_of(looks[0][0])[0], len(looks), len(asks)]
    for look, seen in looks:
        flat += (len(look), *look, seen)
    for ask in asks:
        flat += (len(ask), *ask)
    flat += _steps(commands, with_answers=bool(asks))
    reply: Any = None
    for how in ("evalsha", "eval"):
        async with pipe.alone() as alone:
            getattr(alone, how)(_IF_DIGEST if how == "evalsha" else _IF_SCRIPT, *flat)
            (reply,) = await alone.execute(raise_on_error=False)
        if not isinstance(reply, NoScriptError):
            break
    if isinstance(reply, WrongServer):
        return None
    if isinstance(reply, ResponseError):
        note_refused(pool)
        return None
    if isinstance(reply, Exception):
        raise reply
    return None if reply is None else pipe.answers(commands, reply)


def may_run_scripts(pool: Any) -> bool:
    """Whether the server that a pool leads to is to be asked to run one: not for a minute after it refused."""
    return time.monotonic() >= _refused.get(pool, 0.0)


def note_refused(pool: Any) -> None:
    _refused[pool] = time.monotonic() + _REFUSED_S


async def transact(
    redis: ArqRedis,
    names: Sequence[str],
    looks: Sequence[Command],
    queue: Callable[[Any, list[Any]], object],
    *,
    raise_on_error: bool = True,
    control_first: bool = False,
) -> list[Any]:
    """Compare and set: what `queue` adds to the pipeline for what was seen is done, all or none, unless another client wrote.

    `names` are the keys to be watched, `looks` commands that read them and nothing else. `queue(pipe, replies)` is called
    with their replies, as they came, and again after another client wrote. It may raise, or add nothing: then nothing is done.
    Returns the replies to what it added. What it adds to `pipe.control`, where that is apart, is done after the rest, or with
    `control_first` before it; then it may be done again.
    """
    tries, moved = 0, False
    refusal: OutOfMemoryError | None = None
    while True:
        try:
            if refusal is not None:
                return await _over_the_limit(redis, looks, queue, raise_on_error, refusal)
            async with redis.pipeline(transaction=True) as pipe:
                queue(pipe, await watch(pipe, names, *map(_packed, looks)))
                if control_first:
                    await beside(pipe)
                replies: list[Any] = await pipe.execute(raise_on_error=raise_on_error) if pipe.queued else []
                if not control_first:
                    await beside(pipe)
                return replies
        except WatchError:  # another client wrote; or the connection broke, whatever was being asked
            tries += 1
            if tries > _UNLIMITED:
                await asyncio.sleep(min(0.001 * 2**tries, _LONGEST_PAUSE_S))
        except WrongServer:
            if moved:
                raise
            moved = True
        except OutOfMemoryError as error:
            if refusal is not None:
                raise
            refusal = error


async def beside(pipe: Any) -> None:
    """Does what was queued for the control while this transaction was made, if that is apart (`CellPipeline.control`). It is
    done after it, and may be missing where a process ends in between. Raises what `commit` raises."""
    other = pipe.control
    if other is not pipe and other.queued:
        await commit(other)


async def _over_the_limit(
    redis: ArqRedis,
    looks: Sequence[Command],
    queue: Callable[[Any, list[Any]], object],
    raise_on_error: bool,
    refusal: OutOfMemoryError,
) -> list[Any]:
    """Looks and acts in two scripts; the second does nothing if it sees something else, and WatchError is raised."""
    looked = [word for look in looks for word in (len(look), *look)]
    async with redis.pipeline(transaction=True) as pipe:  # never executed: what is queued is done by the script
        digest, seen = await _run(pipe, looks[0], [len(looks), "", *looked], refusal)
        raise_first(seen)
        queue(pipe, seen)
        commands = pipe.queued
        await beside(pipe)
        if not commands:
            return []
        done = await _run(pipe, looks[0], [len(looks), digest, *looked, *words(commands)], refusal)
        if done is None:
            raise WatchError("Another client wrote meanwhile.")
        replies = pipe.answers(commands, done)
    if raise_on_error:
        raise_first(replies)
    return replies


async def _run(pipe: Any, first: Sequence[Any], arguments: list[Any], refusal: Exception) -> Any:
    """The script's reply; a cluster does it where the keys of the `first` command are. A server that has no such scripts, or a
    user who may not run any, is as full as it said."""
    async with pipe.alone() as alone:
        alone.eval(_SCRIPT, 1, keys_of(first)[0], *arguments)
        try:
            (reply,) = await alone.execute()
        except WrongServer:
            raise
        except ResponseError as error:
            raise refusal from error
    return reply


def words(commands: Sequence[Any]) -> list[Any]:
    """Commands as redis-py queues them, `(words, options)`, as the script reads them."""
    return [word for words, _ in commands for word in (len(words), *words)]


def _steps(commands: Sequence[Any], *, with_answers: bool) -> list[Any]:
    """The same as `_IF_SCRIPT` reads them."""
    flat: list[Any] = []
    for number, (words, options) in enumerate(commands, 1):
        if options and (then := options.get("then")):
            flat += ("?", then, sum(1 + len(other) for other, _ in commands[number : number + then]))
        if with_answers and Answer in map(type, words):
            place = next(place for place, word in enumerate(words) if type(word) is Answer)
            flat += ("=", 1 + place, 1 + words[place].number, len(words), *words[:place], "", *words[place + 1 :])
        else:
            flat += (len(words), *words)
    return flat


def raise_first(replies: Sequence[Any]) -> None:
    """Raises the first error among replies that came as values."""
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise reply


def _packed(command: Command) -> bytes:
    packed: bytes = pack_command(command)  # type: ignore[arg-type]  # the stub says a 1-tuple
    return packed
