"""The append-only log of one generation: one id, one Redis stream, one truth. PROTOCOL.md is its specification.

Hidden here: explicit entry ids do all the work. They order the entries, fence an older attempt, drop a repeated
append, refuse everything after the outcome, and are the cursor a viewer resumes from. No lock, no Lua, no second key
that says what state a generation is in.

    0-1  request header      0-2  request body      E-0  attempt E      E-1, E-2, …  its chunks      SEAL  the outcome

Creating, claiming and ending logs is here; appending is `writer.py`, reading `reader.py`, lists are `listing.py`, what an entry
is `entry.py`. Every method raises RedisError or OSError when the server is away.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, cast

from shared.errors import Fenced, Forgotten, Gone, Sealed, Taken
from shared.lib import json
from shared.lib.clock import now_ms
from shared.log import feed as events
from shared.log.appender import Appender
from shared.log.blobs import BLOBS, Stored
from shared.log.decoding import Raw, begun, by_name, decode
from shared.log.entry import BEGIN, HEADER, PIECES_SINCE, SEAL, SKIPPED, Kind, Position
from shared.log.feed import is_made_again
from shared.log.records import Attempt, Header, Outcome
from shared.log.removal import LogRemoval
from shared.log.retained import ATTEMPT_BYTES, LINE_BYTES, Head
from shared.log.writer import Claim, Writer, is_refusal
from shared.store.commands import Words, pack, watch
from shared.store.jobs import queue
from shared.store.lasting.outbox import Asked
from shared.store.redis import OutOfMemoryError, RedisError, WatchError, log_redis_error
from shared.store.transaction import Command, beside, commit, commit_if

_HEADER_ID, _BEGIN_ID, _SEAL_ID = (str(position).encode() for position in (HEADER, BEGIN, SEAL))
_REQUEST, _BODY, _ATTEMPT, _OUTCOME = [
    kind.value.encode() for kind in (Kind.REQUEST, Kind.BODY, Kind.ATTEMPT, Kind.OUTCOME)
]
_TOKEN = b"t"
"""A second field of the first entry, which readers skip: tells two creates of one id apart."""

Execute = Callable[[Any], Awaitable[list[Any]]]
"""Does what a pipeline in MULTI has queued, or raises; returns the replies, errors among them as values."""
Reserve = Callable[[Any, Header], Awaitable[Execute | None]]


@dataclass(slots=True)
class Following:
    """What follows from an end, to be done in one step with the seal where each look sees what it is said to see: as for
    `commit_if`."""

    looks: Sequence[tuple[Command, str]]
    asks: Sequence[Command]
    queue: Callable[[Any], object]
    replies: Sequence[Any] | None = None
    """To what was queued; None: it was not done, and is to be done once there is an end."""


class StreamLog(LogRemoval):
    """All logs of one Redis: create, claim, seal; read and tail (`LogReader`); list (`LogListing`), delete (`LogRemoval`)."""

    # ---- the API's side

    async def create(self, header: Header, body: bytes | Stored, reserve: Reserve | None = None) -> bool:
        """Stores the request; False if that id was created before (the log stays as it is then).

        `header` needs `id`, `owner` and `created_at_ms`; `store` lists it among the stored ones, `retention_s` is how
        long it is kept once sealed, if not as long as others. From here on the generation is accepted: it will be
        listed, can be watched, and reaches an outcome even if nobody rings for a worker.

        `reserve` is called with the pipeline before anything is queued: it may watch, look, change the header, and
        leaves the pipeline in MULTI with commands of its own, which take effect with the log or not at all. It may return how
        the transaction is to be executed.
        """
        generation_id = header["id"]
        stored = body if isinstance(body, Stored) else Stored(body)
        key, token = self._key.log(generation_id), os.urandom(8).hex().encode()
        while True:
            async with self._redis.pipeline(transaction=True) as pipe:
                execute = await reserve(pipe, header) if reserve else None
                before = len(pipe)
                queue(pipe, *self._creating(key, header, stored, token))
                if self.feed is not None and not is_made_again(header):
                    self.feed.add(pipe.control, events.accepted(header))
                try:
                    done = await (execute(pipe) if execute else pipe.execute(raise_on_error=False))
                except WatchError:
                    continue
                break
        added = done[before]
        if not isinstance(added, bytes):
            if not is_refusal(added):
                raise added
            there = await self._redis.xrange(key, str(HEADER), str(HEADER))
            if not there or by_name(there[0][1]).get(_TOKEN) != token:  # else ours: only the reply was lost
                return False
        if pipe.control is not pipe:
            await self._ring(pipe, generation_id)
        return True

    def _creating(self, key: str, header: Header, body: Stored, token: bytes) -> list[Words]:
        generation_id, created, cell = header["id"], header["created_at_ms"], self._key.cells.of(header["id"])
        beside_body = () if body.blobs is None else (BLOBS, body.blobs)
        commands: list[Words] = [
            (b"XADD", key, _HEADER_ID, _REQUEST, json.dumps(header), _TOKEN, token),
            (b"XADD", key, _BEGIN_ID, _BODY, body.data, *beside_body),
            (b"PEXPIRE", key, self._safety_ms),
            (b"ZADD", self._key.open(cell), created, generation_id),
        ]
        for index, life_ms in self._indexes(header, cell):
            commands += (
                (b"ZADD", index, created, generation_id),
                (b"ZREMRANGEBYSCORE", index, b"-inf", created - life_ms),
                (b"PEXPIRE", index, life_ms),
            )
        return commands

    async def _ring(self, pipe: Any, generation_id: str) -> None:
        """Does what could not be done with the create, as the control is apart: the bell, above all. What of it is lost the
        reaper does again."""
        try:
            await beside(pipe)
        except (RedisError, OSError) as error:
            log_redis_error("bell", error, generation_id=generation_id)

    async def tell_accepted(self, header: Header, queue: Callable[..., Awaitable[None]] | None) -> None:
        """Calls `queue`, which enqueues what was just created, with what is to be added to its transaction: that it was
        accepted, where that could not be told with the create. Without `queue` that alone is done."""
        feed = self.feed if is_made_again(header) else None
        if queue is not None:
            await queue(also=None if feed is None else lambda pipe: feed.add(pipe, events.accepted(header)))
        elif feed is not None:
            async with self._redis.pipeline(transaction=False) as pipe:
                feed.add(pipe, events.accepted(header))
                await pipe.execute()

    # ---- the worker's side

    def claiming(self, generation_id: str, epoch: int, data: bytes) -> list[tuple[bytes, ...]]:
        """The commands with which `claim` starts an attempt, whose JSON is `data`: it is given their replies by who sends them
        with others."""
        key = self._key.log(generation_id).encode()
        return [
            (b"XADD", key, b"NOMKSTREAM", b"%d-0" % epoch, _ATTEMPT, data),
            (b"XRANGE", key, _HEADER_ID, _BEGIN_ID),
            (b"XLEN", key),
        ]

    async def claim(
        self,
        appender: Appender,
        generation_id: str,
        epoch: int,
        attempt: Attempt,
        asked: Asked | None = None,
        data: bytes = b"",
    ) -> tuple[Writer, Header, Stored]:
        """Starts attempt `epoch` and returns its writer with the request, in one round trip; in none where `asked` are the
        replies to `claiming`, which was given `data`.

        Where the server is not the one that took the request any more, another round trip starts it at a later epoch
        (`SKIPPED`). Waits while the server is away. Raises Taken if that attempt, or a later one, was started by anybody;
        Sealed; Gone.
        """
        data, skipped = data or json.dumps(attempt), False
        while True:
            if asked is None:
                commands = self.claiming(generation_id, epoch, data)
                asked = await appender.of(generation_id).ask(
                    b"".join([pack(*words) for words in commands]), len(commands)
                )
            raw, length, server = await self._begun(generation_id, epoch, data, asked)
            asked = None
            header, body = begun(raw) or self._request(raw, generation_id)
            made_by = header.get("server")
            # Also where one skipped before: that server may have been forgetful as well.
            if skipped or made_by is None or server is None or server == made_by:
                break
            later = SKIPPED + max(0, now_ms() - header["created_at_ms"]) // 1000
            if epoch >= later:
                break
            epoch, skipped = later, True
        number = attempt.get("number", epoch)
        kept_bytes = LINE_BYTES if header.get("batch") else ATTEMPT_BYTES
        claim = Claim(
            generation_id, epoch, number, length, data, self._head(header, raw, epoch, data), kept_bytes=kept_bytes
        )
        writer = Writer(appender, claim, self.last_of, pieces=header.get("v", 1) >= PIECES_SINCE)
        if self.feed is not None:
            writer.tell(self.feed, events.claimed, header, attempt, now_ms())
        return writer, header, body

    async def _begun(self, generation_id: str, epoch: int, data: bytes, asked: Asked) -> tuple[Raw, int, str | None]:
        """Of an attempt that is ours: the request's entries, how many the log has now, and which server said so."""
        (added, raw, length), server = asked
        if added.__class__ is bytes and raw.__class__ is list and length.__class__ is int:
            return raw, length, server
        if added is None:
            raise Gone(generation_id)
        if is_refusal(added):
            last = await self.last(generation_id)  # ours if only the reply was lost, and no attempt came after it
            if last.epoch != epoch or await self._attempt_of(generation_id, epoch) != data:
                raise Taken(generation_id)
        for reply in (raw, length) if is_refusal(added) else (added, raw, length):
            if isinstance(reply, Exception):
                raise reply
        return raw, length, server

    def _head(self, header: Header, raw: Raw, epoch: int, data: bytes) -> Head:
        """What makes a log as it is, and its attempt. A turn of a session is not made again: its number may have been given to
        another one meanwhile. Nor is a line of a batch, which is asked again."""
        raw = () if header.get("session") or header.get("batch") else raw
        size = len(data)
        for _, fields in raw:
            size += sum(map(len, fields if fields.__class__ is list else chain(*by_name(fields).items())))
        return Head(partial(self._made_of, header, raw, epoch, data), size)

    def _made_of(self, header: Header, raw: Raw, epoch: int, data: bytes) -> list[tuple[bytes, ...]]:
        """The commands of `_head`, the attempt's the last one: almost none are ever sent."""
        key = self._key.log(header["id"]).encode()
        begin = b"XADD", key, b"%d-0" % epoch, _ATTEMPT, data
        if not raw:
            return [begin]
        generation_id, created = header["id"], b"%d" % header["created_at_ms"]
        member = generation_id.encode()
        cell = self._key.cells.of(generation_id)
        indexes = self._indexes(header, cell)
        names = [self._key.open(cell), *[name for name, _ in indexes]]
        return [
            *[(b"XADD", key, entry_id, *chain(*by_name(fields).items())) for entry_id, fields in raw],
            (b"PEXPIRE", key, b"%d" % self._safety_ms),
            *[(b"ZADD", name.encode(), created, member) for name in names],
            *[(b"PEXPIRE", name.encode(), b"%d" % life_ms) for name, life_ms in indexes],
            begin,
        ]

    def _indexes(self, header: Header, cell: int) -> list[tuple[str, int]]:
        """The lists that a generation stands in, and how long each is kept after a create, in ms."""
        owner = header["owner"]
        indexes = [(self._key.index(owner, cell), self._safety_ms + self._retention_ms)]
        if header.get("store"):
            indexes.append((self._key.stored(owner, cell), self._safety_ms + self._kept_ms(header)))
        return indexes

    async def seal(
        self,
        generation_id: str,
        outcome: Outcome,
        *,
        epoch: int | None = None,
        header: Header | None = None,
        after: Position = BEGIN,
        length: int | None = None,
        told: Sequence[Words] = (),
        following: Following | None = None,
    ) -> None:
        """Writes the outcome; the first one wins for good. The retention time starts now, and what follows is to be settled.

        With `epoch`, only while that attempt is the newest: Fenced otherwise. `after` is the last entry that the outcome is
        about, and `length` how many there are up to it, as far as that is known: Forgotten if the log lacks any. `header` is
        the request's, if known; `told` goes with it, `following` if it can. Raises Sealed with the first outcome, unless it is
        this one; Gone.
        """
        key = self._key.log(generation_id)
        header = header or await self._header(key)
        kept_ms, last = self._kept_ms(header), None
        told = [*told, *self._told_of_end(header, outcome)]
        known = None if epoch is None or length is None else (after, length)
        if known and await self._sealed_at_once(generation_id, outcome, kept_ms, told, following, *known):
            return
        looks = pack(b"XREVRANGE", key.encode(), b"+", b"-", b"COUNT", b"1"), pack(b"XLEN", key.encode())
        while True:
            try:
                async with self._redis.pipeline(transaction=True) as pipe:
                    if epoch is not None or after != BEGIN:
                        end, there = await watch(pipe, [key], *looks)
                        last = self._last(end, generation_id, mine=outcome)
                        if last == SEAL:
                            return
                        _check_end(generation_id, last, there, epoch=epoch, after=after, length=length)
                    self._queue_end(pipe, generation_id, outcome, kept_ms, told)
                    added, *_ = await pipe.execute(raise_on_error=False)
                await self._tell_end(pipe, generation_id, added)
            except WatchError:  # another client wrote; or the connection broke, whatever was being asked
                continue
            except OutOfMemoryError:
                added = await self._seal_when_full(generation_id, outcome, last, kept_ms, told)
            if isinstance(added, bytes):
                return
            if added is None or not is_refusal(added):
                raise Gone(generation_id) if added is None else added
            if last is None:
                return await self._check_mine(key, generation_id, outcome, header)

    def _told_of_end(self, header: Header | None, outcome: Outcome) -> list[Words]:
        if self.feed is None or header is None:
            return []
        return [self.feed.command(events.ended("sealed", header, outcome))]

    async def _sealed_at_once(
        self,
        generation_id: str,
        outcome: Outcome,
        kept_ms: int,
        told: Sequence[Words],
        following: Following | None,
        after: Position,
        length: int,
    ) -> bool:
        """Seals in one round trip if the log ends as who wrote all of it knows it to end; else nothing is done."""
        key = self._key.log(generation_id)
        end: Command = ("XREVRANGE", key, "+", "-", "COUNT", 1)
        async with self._redis.pipeline(transaction=True) as pipe:
            self._queue_end(pipe, generation_id, outcome, kept_ms, told)
            looks: list[tuple[Command, str]] = [(end, str(after)), (("XLEN", key), str(length))]
            asks: Sequence[Command] = ()
            before = len(pipe)
            if following is not None:
                following.queue(pipe)
                looks += following.looks
                asks = following.asks
            done = await commit_if(pipe, looks, asks)
        added = done[0] if done else None
        if pipe.control is not pipe:
            await self._tell_end(pipe, generation_id, added)
        if following is not None and done:
            following.replies = done[before:]
        return isinstance(added, bytes)

    def _queue_end(self, pipe: Any, generation_id: str, outcome: Outcome, kept_ms: int, told: Sequence[Words]) -> None:
        """The outcome, and what is done with it and is harmless where that is refused."""
        queue(pipe, *self._ending(generation_id, outcome, kept_ms))
        queue(pipe.control, (b"ZADD", self._key.blob_holders, b"XX", now_ms() + kept_ms, generation_id), *told)

    def _ending(self, generation_id: str, outcome: Outcome, kept_ms: int) -> list[Words]:
        key, cell = self._key.log(generation_id), self._key.cells.of(generation_id)
        return [
            (b"XADD", key, b"NOMKSTREAM", _SEAL_ID, _OUTCOME, json.dumps(outcome)),
            (b"PEXPIRE", key, kept_ms),
            (b"PEXPIRE", self._key.metadata(generation_id), kept_ms),
            (b"ZREM", self._key.open(cell), generation_id),
            (b"SADD", self._key.unsettled(cell), generation_id),
        ]

    def seal_if_given_up(self, pipe: Any, header: Header, outcome: Callable[[], Outcome]) -> None:
        """What `pipe` creates is sealed right behind that, where its caller does not wait for it. Who doubts it tells so."""
        pipe.given_up += (lambda: self._ending(header["id"], outcome(), self._kept_ms(header)),)

    async def _tell_end(self, pipe: Any, generation_id: str, added: Any) -> None:
        """Does what could not be done with the seal that was `added`, as the control is apart. What of it is lost is made up
        for: the settlement tells of the end once more, and who holds blobs is looked at when its log was to go."""
        try:
            if isinstance(added, bytes):
                await beside(pipe)
        except (RedisError, OSError) as error:
            log_redis_error("seal", error, generation_id=generation_id)

    async def _check_mine(self, key: str, generation_id: str, outcome: Outcome, header: Header | None) -> None:
        """Raises Sealed if another outcome was there first; that it is sealed as this one was told, and is told right now."""
        try:
            self._last(await self._redis.xrevrange(key, count=1), generation_id, mine=outcome)
        except Sealed as first:
            if self.feed is not None and header is not None:
                async with self._redis.pipeline(transaction=False) as pipe:
                    self.feed.add(pipe, events.ended("sealed", header, cast(Outcome, first.outcome)))
                    await commit(pipe)
            raise

    async def _header(self, key: str) -> Header | None:
        found = await self._redis.xrange(key, str(HEADER), str(HEADER))
        return cast(Header, json.loads(decode(found)[0].data)) if found else None


def _check_end(
    generation_id: str, last: Position, there: int, *, epoch: int | None, after: Position, length: int | None
) -> None:
    """Raises Fenced if a newer attempt than `epoch` has begun, Forgotten if the log lacks entries: see `seal`."""
    if epoch is not None and last.epoch != epoch:
        raise Fenced(generation_id)
    if last < after or (length is not None and there != length + last.seq - after.seq):
        raise Forgotten(f"{generation_id} has {there} entries up to {last}, not {length} to {after}")
