"""The append-only log of one generation: one id, one Redis stream, one truth. PROTOCOL.md is its specification.

Hidden here: explicit entry ids do all the work. They order the entries, fence an older attempt, drop a repeated
append, refuse everything after the outcome, and are the cursor a viewer resumes from. No lock, no Lua, no second key
that says what state a generation is in.

    0-1  request header      0-2  request body      E-0  attempt E      E-1, E-2, …  its chunks      SEAL  the outcome

Reading, creating and ending logs is here; appending is `writer.py`, what an entry is `entry.py`. Every method raises
RedisError or OSError when the server is away.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, cast

from shared.errors import Damaged, Fenced, Forgotten, Gone, LogError, Sealed, Taken
from shared.lib import json
from shared.lib.clock import now_ms
from shared.log.appender import Appender
from shared.log.decoding import Raw, attempt, by_name, decode, summarize
from shared.log.entry import BEGIN, HEADER, PIECES_SINCE, SEAL, SKIPPED, Entry, Kind, Position
from shared.log.envelope import Envelopes
from shared.log.records import Attempt, Header, Outcome, Summary
from shared.log.retained import ATTEMPT_BYTES, LINE_BYTES
from shared.log.writer import Claim, Writer, is_refusal
from shared.store.commands import exchange, pack, watch
from shared.store.redis import ArqRedis, OutOfMemoryError, ResponseError, WatchError
from shared.store.transaction import commit

_INDEX_PAGE = 50
_FIRST_PAGE, _LARGEST_PAGE = 100, 2000
_PAGE_BYTES = 1024 * 1024
_INTERRUPT_TTL_MS = 60_000
_DELETED_MS = 60_000
"""Longer than anybody writes to, or waits for, a log that is gone."""
_TOKEN = b"t"
"""A second field of the first entry, which readers skip: tells two creates of one id apart."""

_SEAL_SCRIPT = """#!lua flags=allow-oom
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if #last == 0 then return false end
if ARGV[4] ~= '' and last[1][1] ~= ARGV[4] then
  return redis.error_reply('ERR not the last entry any more, or equal or smaller')
end
local id = redis.call('XADD', KEYS[1], ARGV[2], 'o', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[4], ARGV[3])
redis.call('ZREM', KEYS[2], ARGV[5])
redis.call('SADD', KEYS[3], ARGV[5])
return id
"""
"""Needs Redis 7 or Valkey. An older server refuses it, and the end waits for room."""


Reserve = Callable[[Any, Header], Awaitable[None]]


class StreamLog:
    """All logs of one Redis: create, claim, read, tail, seal, list, delete."""

    def __init__(self, redis: ArqRedis, *, retention_s: float, safety_s: float) -> None:
        self._redis = redis
        self._key = redis.key
        self._retention_ms = int(retention_s * 1000)
        self._safety_ms = int(safety_s * 1000)

    # ---- the API's side

    async def create(self, header: Header, body: bytes, reserve: Reserve | None = None) -> bool:
        """Stores the request; False if that id was created before (the log stays as it is then).

        `header` needs `id`, `owner` and `created_at_ms`; `store` lists it among the stored ones, `retention_s` is how
        long it is kept once sealed, if not as long as others. From here on the generation is accepted: it will be
        listed, can be watched, and reaches an outcome even if nobody rings for a worker.

        `reserve` is called with the pipeline before anything is queued: it may watch, look, change the header, and
        leaves the pipeline in MULTI with commands of its own, which take effect with the log or not at all.
        """
        generation_id, created = header["id"], header["created_at_ms"]
        key, token = self._key.log(generation_id), secrets.token_hex(8).encode()
        while True:
            async with self._redis.pipeline(transaction=True) as pipe:
                if reserve:
                    await reserve(pipe, header)
                before = len(pipe)
                pipe.xadd(key, {Kind.REQUEST: json.dumps(header), _TOKEN: token}, id=str(HEADER))
                pipe.xadd(key, {Kind.BODY: body}, id=str(BEGIN))
                pipe.pexpire(key, self._safety_ms)
                pipe.zadd(self._key.open, {generation_id: created})
                for index, life_ms in self._indexes(header):
                    pipe.zadd(index, {generation_id: created})
                    pipe.zremrangebyscore(index, "-inf", created - life_ms)
                    pipe.pexpire(index, life_ms)
                try:
                    replies = (await pipe.execute(raise_on_error=False))[before:]
                except WatchError:
                    continue
                break
        if isinstance(replies[0], bytes):
            return True
        if is_refusal(replies[0]):
            there = await self._redis.xrange(key, str(HEADER), str(HEADER))
            return bool(
                there and by_name(there[0][1]).get(_TOKEN) == token
            )  # ours all the same if only the reply was lost
        raise replies[0]

    async def delete(self, generation_id: str, tenant: str) -> None:
        """Removes the log; writers find it Gone. Sealing first is the caller's business."""
        async with self._redis.pipeline(transaction=True) as pipe:
            self._queue_delete(pipe, generation_id, tenant)
            await commit(pipe)

    async def delete_all(self, generation_ids: Sequence[str], tenant: str) -> None:
        """The same for many of one tenant, without those that are to be kept longer because they were stored."""
        if not generation_ids:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for generation_id in generation_ids:
                pipe.zscore(self._key.stored(tenant), generation_id)
            kept = await pipe.execute()
            for generation_id, stored in zip(generation_ids, kept, strict=True):
                if stored is None:
                    self._queue_delete(pipe, generation_id, tenant)
            await commit(pipe)

    def _queue_delete(self, pipe: Any, generation_id: str, tenant: str) -> None:
        pipe.delete(self._key.log(generation_id), self._key.metadata(generation_id), self._key.settled(generation_id))
        pipe.set(self._key.deleted(generation_id), b"1", px=_DELETED_MS)
        for index in (self._key.open, self._key.index(tenant), self._key.stored(tenant)):
            pipe.zrem(index, generation_id)

    # ---- the worker's side

    async def request(self, generation_id: str) -> tuple[Header, bytes]:
        """Header and body of the request. Raises Gone."""
        return self._request(
            await self._redis.xrange(self._key.log(generation_id), str(HEADER), str(BEGIN)), generation_id
        )

    async def claim(
        self, appender: Appender, generation_id: str, epoch: int, attempt: Attempt
    ) -> tuple[Writer, Header, bytes]:
        """Starts attempt `epoch` and returns its writer with the request, in one round trip.

        Where the server is not the one that took the request any more, another round trip starts it at a later epoch
        (`SKIPPED`). Waits while the server is away. Raises Taken if that attempt, or a later one, was started by anybody;
        Sealed; Gone.
        """
        data, skipped = json.dumps(attempt), False
        while True:
            raw, length, server = await self._begin(appender, generation_id, epoch, data)
            header, body = self._request(raw, generation_id)
            made_by = header.get("server")
            later = SKIPPED + max(0, now_ms() - header["created_at_ms"]) // 1000
            # Also where one skipped before: that server may have been forgetful as well.
            if skipped or epoch >= later or made_by is None or server is None or server == made_by:
                break
            epoch, skipped = later, True
        number = attempt.get("number", epoch)
        kept_bytes = LINE_BYTES if header.get("batch") else ATTEMPT_BYTES
        claim = Claim(
            generation_id, epoch, number, length, data, self._head(header, raw, epoch, data), kept_bytes=kept_bytes
        )
        pieces = header.get("v", 1) >= PIECES_SINCE
        return Writer(appender, claim, self.last_of, pieces=pieces), header, body

    async def _begin(
        self, appender: Appender, generation_id: str, epoch: int, data: bytes
    ) -> tuple[Raw, int, str | None]:
        """Appends an attempt's entry. Returns the request's entries, how many the log has now, and which server said so."""
        key = self._key.log(generation_id).encode()
        commands = (
            pack(b"XADD", key, b"NOMKSTREAM", b"%d-0" % epoch, Kind.ATTEMPT.encode(), data),
            pack(b"XRANGE", key, str(HEADER).encode(), str(BEGIN).encode()),
            pack(b"XLEN", key),
        )
        (added, raw, length), server = await appender.ask(b"".join(commands), len(commands))
        if added is None:
            raise Gone(generation_id)
        if is_refusal(added):
            await self.last(generation_id)
            if await self._attempt_of(generation_id, epoch) != data:  # ours all the same if only the reply was lost
                raise Taken(generation_id)
        for reply in (raw, length) if is_refusal(added) else (added, raw, length):
            if isinstance(reply, Exception):
                raise reply
        return raw, length, server

    def _head(self, header: Header, raw: Raw, epoch: int, data: bytes) -> list[bytes]:
        """Packed commands that make a log as it is, and the last one, its attempt. A turn of a session is not made again: its
        number may have been given to another one meanwhile. Nor is a line of a batch, which is asked again."""
        begin = pack(b"XADD", self._key.log(header["id"]).encode(), b"%d-0" % epoch, Kind.ATTEMPT.encode(), data)
        if header.get("session") or header.get("batch"):
            return [begin]
        generation_id, created = header["id"], b"%d" % header["created_at_ms"]
        key, member = self._key.log(generation_id).encode(), generation_id.encode()
        indexes = [self._key.open, *(name for name, _ in self._indexes(header))]
        return [
            *(pack(b"XADD", key, entry_id, *chain(*by_name(fields).items())) for entry_id, fields in raw),
            pack(b"PEXPIRE", key, b"%d" % self._safety_ms),
            *(pack(b"ZADD", name.encode(), created, member) for name in indexes),
            *(pack(b"PEXPIRE", name.encode(), b"%d" % life_ms) for name, life_ms in self._indexes(header)),
            begin,
        ]

    def _indexes(self, header: Header) -> list[tuple[str, int]]:
        """The lists that a generation stands in, and how long each is kept after a create, in ms."""
        indexes = [(self._key.index(header["owner"]), self._safety_ms + self._retention_ms)]
        if header.get("store"):
            indexes.append((self._key.stored(header["owner"]), self._safety_ms + self._kept_ms(header)))
        return indexes

    async def _attempt_of(self, generation_id: str, epoch: int) -> bytes | None:
        """The data of an attempt's entry."""
        raw = await self._redis.xrange(self._key.log(generation_id), f"{epoch}-0", f"{epoch}-0")
        return decode(raw)[0].data if raw else None

    async def attempt_number(self, generation_id: str, epoch: int) -> int:
        """How many attempts there had been with this one."""
        if epoch < SKIPPED:
            return epoch
        data = await self._attempt_of(generation_id, epoch)
        number: int = json.loads(data).get("number", 1) if data else 1
        return number

    async def seal(
        self,
        generation_id: str,
        outcome: Outcome,
        *,
        epoch: int | None = None,
        header: Header | None = None,
        after: Position = BEGIN,
        length: int | None = None,
    ) -> None:
        """Writes the outcome; the first one wins for good. The retention time starts now, and what follows is to be settled.

        With `epoch`, only while that attempt is the newest: Fenced otherwise. `after` is the last entry that the outcome is
        about, and `length` how many there are up to it, as far as that is known: Forgotten if the log lacks any. `header`
        is the request's, if it is known. Raises Sealed with the outcome that was there first, unless it is this very one;
        Gone.
        """
        key = self._key.log(generation_id)
        kept_ms = self._kept_ms(header or await self._header(key))
        looks = pack(b"XREVRANGE", key.encode(), b"+", b"-", b"COUNT", b"1"), pack(b"XLEN", key.encode())
        last = None
        while True:
            try:
                async with self._redis.pipeline(transaction=True) as pipe:
                    if epoch is not None or after != BEGIN:
                        end, there = await watch(pipe, [key], *looks)
                        last = self._last(end, generation_id, mine=outcome)
                        if last == SEAL:
                            return
                        _check_end(generation_id, last, there, epoch=epoch, after=after, length=length)
                    pipe.xadd(key, {Kind.OUTCOME: json.dumps(outcome)}, id=str(SEAL), nomkstream=True)
                    pipe.pexpire(key, kept_ms)
                    pipe.pexpire(self._key.metadata(generation_id), kept_ms)
                    pipe.zrem(self._key.open, generation_id)
                    pipe.sadd(self._key.unsettled, generation_id)
                    added, *_ = await pipe.execute(raise_on_error=False)
            except WatchError:  # another client wrote; or the connection broke, whatever was being asked
                continue
            except OutOfMemoryError:
                added = await self._seal_when_full(generation_id, outcome, last, kept_ms)
            if isinstance(added, bytes):
                return
            if added is None:
                raise Gone(generation_id)
            if not is_refusal(added):
                raise added
            if last is None:
                self._last(await self._redis.xrevrange(key, count=1), generation_id, mine=outcome)
                return

    async def _header(self, key: str) -> Header | None:
        found = await self._redis.xrange(key, str(HEADER), str(HEADER))
        return cast(Header, json.loads(decode(found)[0].data)) if found else None

    async def _seal_when_full(self, generation_id: str, outcome: Outcome, last: Position | None, kept_ms: int) -> Any:
        """The same in a script that may write over the memory limit: the end of a stream must not wait for room. With
        `last`, only while that is the last entry."""
        names = (self._key.log(generation_id), self._key.open, self._key.unsettled, self._key.metadata(generation_id))
        arguments: list[Any] = [json.dumps(outcome), str(SEAL), str(kept_ms), str(last or ""), generation_id]
        try:
            return await self._redis.eval(_SEAL_SCRIPT, len(names), *names, *arguments)  # type: ignore[misc]
        except ResponseError as error:
            return error

    def _kept_ms(self, header: Header | None) -> int:
        """How long a sealed log is kept: what its request was promised, else what holds here."""
        promised_s = header.get("retention_s") if header else None
        return self._retention_ms if promised_s is None else int(promised_s * 1000)

    # ---- reading

    async def last_of(self, generation_id: str, epoch: int) -> tuple[Position, bytes | None]:
        """Position of the last entry, and the data of an attempt's, None if that is not there. Raises Sealed, Gone."""
        key = self._key.log(generation_id)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xrevrange(key, count=1)
            pipe.xrange(key, f"{epoch}-0", f"{epoch}-0")
            end, attempt = await pipe.execute()
        return self._last(end, generation_id), decode(attempt)[0].data if attempt else None

    async def last(self, generation_id: str) -> Position:
        """Position of the last entry. Raises Sealed, Gone."""
        return self._last(await self._redis.xrevrange(self._key.log(generation_id), count=1), generation_id)

    async def read(
        self,
        generation_id: str,
        after: Position = BEGIN,
        count: int = 1000,
        *,
        strict: bool = True,
        shapes: Envelopes | None = None,
    ) -> list[Entry]:
        """Up to `count` entries after a position, at once. If `strict`, raises Damaged where one is missing.

        `shapes` are those of the log up to the position, and take up new ones; without them they are looked for.
        """
        if shapes is None:
            shapes = await self._shapes(generation_id, after)
        raw = await self._redis.xrange(self._key.log(generation_id), f"({after}", "+", count=count)
        return decode(raw, after, shapes, strict=strict)

    async def _shapes(self, generation_id: str, after: Position) -> Envelopes:
        """The shapes of the attempt in which a position is, up to there."""
        shapes, start = Envelopes(), Position(after.epoch, 0)
        while start.epoch and start < after:
            raw = await self._redis.xrange(self._key.log(generation_id), f"({start}", str(after), count=_LARGEST_PAGE)
            if not raw:
                break
            start = decode(raw, start, shapes, strict=False)[-1].position
        return shapes

    async def read_all(
        self, generation_id: str, after: Position = BEGIN, *, strict: bool = True, shapes: Envelopes | None = None
    ) -> AsyncIterator[list[Entry]]:
        """All entries there are now after a position, in pages of about a megabyte. `shapes` are as for `read`."""
        count = _FIRST_PAGE
        if shapes is None:
            shapes = await self._shapes(generation_id, after)
        while page := await self.read(generation_id, after, count, strict=strict, shapes=shapes):
            yield page
            after = page[-1].position
            size = sum(len(entry.data) for entry in page) // len(page)
            count = max(1, min(_LARGEST_PAGE, _PAGE_BYTES // max(1, size)))

    async def tail(self, generation_id: str, after: Position = BEGIN) -> AsyncIterator[list[Entry]]:
        """Catches up, then follows live; ends with the outcome. Raises Gone, Damaged."""
        shapes = {generation_id: await self._shapes(generation_id, after)}
        while after != SEAL:
            found = await self.poll({generation_id: after}, block_ms=2000, shapes=shapes)
            if entries := found.get(generation_id):
                if isinstance(entries, Damaged):
                    raise entries
                yield entries
                after = entries[-1].position
            elif problem := (await self.check({generation_id: after})).get(generation_id):
                raise problem

    async def poll(
        self,
        positions: Mapping[str, Position],
        *,
        block_ms: int,
        count: int = 1000,
        interrupt: tuple[str, str] | None = None,
        shapes: Mapping[str, Envelopes] | None = None,
    ) -> dict[str, list[Entry] | Damaged]:
        """One blocking read over many logs: the new entries of each that has some, `{}` when the time is over.

        `shapes` are those of each log up to its position, and take up new ones; without them pieces stay pieces.
        A log with a missing entry answers Damaged instead. `interrupt` is (key, last id) of a stream that ends the
        wait when `interrupt()` is called for it; what was added is returned under that key.
        """
        names = {self._key.log(generation_id).encode(): generation_id for generation_id in positions}
        after = [b"%d-%d" % position for position in positions.values()]
        if interrupt:
            names[interrupt[0].encode()] = interrupt[0]
            after.append(interrupt[1].encode())
        packed = pack(b"XREAD", b"COUNT", b"%d" % count, b"BLOCK", b"%d" % block_ms, b"STREAMS", *names, *after)
        found: dict[str, list[Entry] | Damaged] = {}
        for raw_name, raw in await exchange(self._redis, packed) or ():
            name = names[raw_name]
            try:
                found[name] = decode(raw, positions.get(name), shapes.get(name) if shapes else None)
            except Damaged as problem:
                found[name] = problem
        return found

    async def interrupt(self, key: str) -> None:
        """Ends a `poll` that waits with this interrupt key, or keeps the next one from waiting."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.xadd(key, {Kind.REQUEST: b""}, maxlen=1, approximate=False)
            pipe.pexpire(key, _INTERRUPT_TTL_MS)
            await pipe.execute()

    async def check(self, positions: Mapping[str, Position]) -> dict[str, LogError]:
        """Looks whether quiet logs can still go on from where their readers are.

        Returns what is wrong by id: Gone, or Damaged when the log ends before the position.
        """
        problems: dict[str, LogError] = {}
        ends = await self.ends(list(positions))
        deleted = await self._deleted([generation_id for generation_id, end in ends.items() if end is None])
        for generation_id, end in ends.items():
            if end is None:
                problems[generation_id] = Gone(generation_id, deleted=generation_id in deleted)
            elif end < positions[generation_id]:
                problems[generation_id] = Damaged(f"the log of {generation_id} ends before {positions[generation_id]}")
        return problems

    async def ends(self, generation_ids: Sequence[str]) -> dict[str, Position | None]:
        """The last position of each log, in one round trip; None for one that is not there."""
        if not generation_ids:
            return {}
        async with self._redis.pipeline(transaction=False) as pipe:
            for generation_id in generation_ids:
                pipe.xrevrange(self._key.log(generation_id), count=1)
            replies = await pipe.execute()
        return {i: decode(raw)[0].position if raw else None for i, raw in zip(generation_ids, replies, strict=True)}

    async def _deleted(self, generation_ids: Sequence[str]) -> set[str]:
        """Which of these were deleted just now."""
        return await self._existing(generation_ids, self._key.deleted)

    async def _existing(self, generation_ids: Sequence[str], name: Callable[[str], str]) -> set[str]:
        """Those of which this key is there."""
        if not generation_ids:
            return set()
        async with self._redis.pipeline(transaction=False) as pipe:
            for generation_id in generation_ids:
                pipe.exists(name(generation_id))
            return {i for i, there in zip(generation_ids, await pipe.execute(), strict=True) if there}

    # ---- who watches (only for generations that end without viewers)

    async def keep_watched(self, generation_ids: Sequence[str], grace_s: float) -> None:
        """Says that these have a viewer now, which holds for the grace time."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for generation_id in generation_ids:
                pipe.set(self._key.viewers(generation_id), b"1", px=int(grace_s * 1000))
            await commit(pipe)  # who watches must not seem to have left because memory is full

    async def watched(self, generation_ids: Sequence[str]) -> set[str]:
        """Which of these had a viewer within the grace time."""
        return await self._existing(generation_ids, self._key.viewers)

    async def describe(self, generation_ids: Sequence[str]) -> list[Summary | None]:
        """Summaries in one round trip, or two where a log has several attempts; None for a log that is not there."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for generation_id in generation_ids:
                key = self._key.log(generation_id)
                pipe.xrange(key, str(HEADER), str(HEADER))
                pipe.xrange(key, f"({BEGIN}", "+", count=2)
                pipe.xrevrange(key, count=2)
                pipe.get(self._key.metadata(generation_id))
            replies = await pipe.execute()
        found = [summarize(*replies[i : i + 4]) for i in range(0, len(replies), 4)]
        for i, summary in enumerate(found):
            if summary and summary.position.epoch > 1:
                attempts = await self._attempts(generation_ids[i], summary.position.epoch)
                found[i] = replace(summary, attempts=attempts)
        return found

    async def _attempts(self, generation_id: str, newest: int) -> tuple[Attempt, ...]:
        """All attempts up to the epoch `newest`. Most logs have few, one after the other; a server that forgot left gaps."""
        key, epoch = self._key.log(generation_id), 0
        found: list[Attempt] = []
        while epoch < newest:
            raw = await self._redis.xrange(key, f"({epoch}-{SEAL.epoch}", f"({SEAL}", count=2)
            if not raw:
                break
            begun = decode(raw)
            epoch = begun[0].position.epoch
            if begun[0].kind is Kind.ATTEMPT:
                one = attempt([entry for entry in begun if entry.position.epoch == epoch])
                if found and found[-1].get("token") == one.get("token"):
                    found.pop()  # the same attempt, begun at a later epoch
                found.append(one)
        return tuple(found)

    async def listed(
        self, tenant: str, after: str | None = None, *, newest_first: bool = True, stored: bool = False
    ) -> AsyncIterator[Summary]:
        """A tenant's generations by their age, all or only the stored, from just after the id `after`.

        Raises Gone if that one is unknown.
        """
        index, redis = self._key.stored(tenant) if stored else self._key.index(tenant), self._redis
        rank, page = (redis.zrevrank, redis.zrevrange) if newest_first else (redis.zrank, redis.zrange)
        start, last = 0, after
        seen: set[str] = set()
        while True:
            # Those that come and go meanwhile move the ranks of the rest: look where the last one stands now.
            if last is not None and (place := await rank(index, last)) is not None:
                start = place + 1
            elif last is not None and last == after:
                raise Gone(last)
            members = [member.decode() for member in await page(index, start, start + _INDEX_PAGE - 1)]
            if not members:
                return
            ids = [member for member in members if member not in seen]  # the last one was deleted: its page again
            seen.update(ids)
            for summary in await self.describe(ids):
                if summary:
                    yield summary
            last = members[-1]

    async def open_ids(self) -> list[tuple[str, int]]:
        """Generations without an outcome, oldest first, with the time they were created in ms."""
        members = await self._redis.zrange(self._key.open, 0, -1, withscores=True)
        return [(member.decode(), int(score)) for member, score in members]

    async def close_index(self, generation_id: str) -> None:
        """Takes an id whose log is sealed or gone off the list of open ones."""
        await self._redis.zrem(self._key.open, generation_id)

    async def replace_metadata(self, summary: Summary, metadata: dict[str, str]) -> None:
        """What `describe` says about this log from now on. They live as long as the log. Raises Gone."""
        generation_id = summary.header["id"]
        left_ms = await self._redis.pttl(self._key.log(generation_id))
        if left_ms < 0:
            raise Gone(generation_id)
        if summary.outcome is None:  # a seal that has not seen them must not leave them with too little
            left_ms = max(left_ms, self._kept_ms(summary.header))
        await self._redis.set(self._key.metadata(generation_id), json.dumps(metadata), px=max(1, left_ms))

    # ---- decoding

    @staticmethod
    def _request(raw: Any, generation_id: str) -> tuple[Header, bytes]:
        entries = decode(raw)
        if [entry.position for entry in entries] != [HEADER, BEGIN]:
            raise Gone(generation_id)
        return json.loads(entries[0].data), entries[1].data

    @staticmethod
    def _last(raw: Any, generation_id: str, mine: Outcome | None = None) -> Position:
        """The last position; SEAL only if the outcome there is `mine`, Sealed otherwise."""
        if not raw:
            raise Gone(generation_id)
        entry = decode(raw)[0]
        if entry.position == SEAL:
            outcome = json.loads(entry.data)
            if outcome != mine:
                raise Sealed(outcome)
        return entry.position


def _check_end(
    generation_id: str, last: Position, there: int, *, epoch: int | None, after: Position, length: int | None
) -> None:
    """Raises Fenced if a newer attempt than `epoch` has begun, Forgotten if the log lacks entries: see `seal`."""
    if epoch is not None and last.epoch != epoch:
        raise Fenced(generation_id)
    if last < after or (length is not None and there != length + last.seq - after.seq):
        raise Forgotten(f"{generation_id} has {there} entries up to {last}, not {length} to {after}")
