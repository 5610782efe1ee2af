"""Reading logs: from a position on, to the end or live; and what a few small reads tell about many of them.

Hidden here: pages of about a megabyte, one blocking read for any number of logs, the search for the envelopes that a reader
which begins in the middle has missed, and that an ended log may be an object in the file storage (`archive/`): whoever reads
a log reads either. What a reply means is `decoding.py`. Every method raises RedisError or OSError when the server is away, and
FileStorageFailed when that storage is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from shared.errors import Damaged, Gone, LogError, RequestLost, Sealed
from shared.lib import json
from shared.log.archive.reading import ArchivedLogs
from shared.log.blobs import Filler, Stored
from shared.log.bulk.runs import Part, Run, gathered
from shared.log.decoding import ARCHIVED, Archived, attempt, by_name, decode, summarize
from shared.log.entry import BEGIN, HEADER, SEAL, SKIPPED, Entry, Kind, Position
from shared.log.envelope import Envelopes
from shared.log.records import Attempt, Header, Outcome, Summary
from shared.store.commands import exchange, pack
from shared.store.redis import ArqRedis

_FIRST_PAGE, _LARGEST_PAGE = 100, 2000
_PAGE_BYTES = 1024 * 1024
_INTERRUPT_TTL_MS = 60_000
_LOOK_S = 0.05
"""Between two looks at logs of several cells."""


class Followed(Protocol):
    """What is known here of a log. Its reader moves `position` on when it takes what `news` gives it."""

    @property
    def id(self) -> str: ...
    @property
    def position(self) -> Position: ...
    @property
    def shapes(self) -> Envelopes:
        """Those of the log up to the position."""

    @property
    def page(self) -> int:
        """How many of its entries may be read at once."""


class LogReader(ArchivedLogs):
    """All logs of one Redis, to be read. `StreamLog` is the same and writes them as well."""

    def __init__(self, redis: ArqRedis) -> None:
        super().__init__(redis)
        self.filler: Filler | None = None
        """Puts back what was taken out of entries. Whoever puts the features together sets it."""

    # ---- one log

    async def request(self, generation_id: str) -> tuple[Header, Stored]:
        """Header of the request, and its body as it is stored. Raises Gone; RequestLost where an archived one is damaged."""
        raw = await self._redis.xrange(self._key.log(generation_id), str(HEADER), str(BEGIN))
        header, body = self._request(raw, generation_id)
        if ARCHIVED not in by_name(raw[1][1]):
            return header, body
        try:
            request, entry = await self._page(generation_id, None)
        except Damaged:
            raise RequestLost from None
        return json.loads(request.data), Stored(entry.data, entry.blobs)

    async def whole_logs(self, generation_ids: Sequence[str]) -> list[list[Entry]]:
        """All entries of each log, in one round trip, and more for those that are archived. Empty where there is none, or it
        lacks an entry. Raises RequestLost where an archived one is damaged."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.reads_much = True
            for generation_id in generation_ids:
                pipe.xrange(self._key.log(generation_id))
            replies = await pipe.execute()
        found: list[list[Entry]] = []
        for generation_id, raw in zip(generation_ids, replies, strict=True):
            try:
                found.append(decode(raw, Position(0, 0), Envelopes()))
            except Archived:
                found.append(await self._whole_object(generation_id))
            except Damaged:
                found.append([])
        return found

    async def last(self, generation_id: str) -> Position:
        """Position of the last entry. Raises Sealed, Gone."""
        return self._last(await self._redis.xrevrange(self._key.log(generation_id), count=1), generation_id)

    async def last_of(self, generation_id: str, epoch: int) -> tuple[Position, bytes | None]:
        """Position of the last entry, and the data of an attempt's, None if that is not there. Raises Sealed, Gone."""
        key = self._key.log(generation_id)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xrevrange(key, count=1)
            pipe.xrange(key, f"{epoch}-0", f"{epoch}-0")
            end, attempt = await pipe.execute()
        return self._last(end, generation_id), decode(attempt)[0].data if attempt else None

    async def read(
        self,
        generation_id: str,
        after: Position = BEGIN,
        count: int = 1000,
        *,
        strict: bool = True,
        shapes: Envelopes | None = None,
        tenant: str | None = None,
    ) -> list[Entry]:
        """Up to `count` entries after a position, at once. If `strict`, raises Damaged where one is missing.

        `shapes` are those of the log up to the position, and take up new ones; without them they are looked for. With the
        log's `tenant`, chunks are whole: what was taken out of them is put back (`whole`).
        """
        try:
            if shapes is None:
                shapes = await self._shapes(generation_id, after)
            raw = await self._redis.xrange(self._key.log(generation_id), f"({after}", "+", count=count)
            entries = decode(raw, after, shapes, strict=strict)
        except Archived:
            entries = (await self._page(generation_id, after))[:count]
        return entries if tenant is None else await self.whole(tenant, entries)

    async def parts(
        self, generation_id: str, after: Position, count: int, *, shapes: Envelopes, tenant: str
    ) -> tuple[list[Part], LogError | None]:
        """The same in bulk, whole; and why there is no more behind it, Damaged or Archived."""
        raw = await self._redis.xrange(self._key.log(generation_id), f"({after}", "+", count=count)
        found, problem = gathered(raw, after, shapes)
        for at, part in enumerate(found):
            if not isinstance(part, Run):
                try:
                    await self.whole(tenant, part)
                except Damaged as lost:
                    return [*found[:at], list(lost.before)], lost
        return found, problem

    async def whole(self, tenant: str, entries: list[Entry]) -> list[Entry]:
        """The entries of a tenant's log with what was taken out of them. Raises FileStorageFailed, and Damaged where it is
        not there any more, with the entries before."""
        for at, entry in enumerate(entries):
            if entry.blobs is not None and self.filler is not None:
                try:
                    data = await self.filler.whole(tenant, Stored(entry.data, entry.blobs))
                except RequestLost:
                    raise Damaged(f"a part of {entry.position} is not in the file storage", entries[:at]) from None
                entries[at] = entry._replace(data=data, blobs=None)
        return entries

    async def read_all(
        self,
        generation_id: str,
        after: Position = BEGIN,
        *,
        strict: bool = True,
        shapes: Envelopes | None = None,
        tenant: str | None = None,
    ) -> AsyncIterator[list[Entry]]:
        """All entries there are now after a position, in pages of about a megabyte; an object is read in large pieces. `shapes`
        and `tenant` are as for `read`."""
        count = _FIRST_PAGE
        key = self._key.log(generation_id)
        while True:
            try:
                if shapes is None:
                    shapes = await self._shapes(generation_id, after)
                raw = await self._redis.xrange(key, f"({after}", "+", count=count)
                page = decode(raw, after, shapes, strict=strict)
            except Archived:  # also in the middle: it was a stream until just now
                async for page in self._object_pages(generation_id, after):
                    yield page if tenant is None else await self.whole(tenant, page)
                return
            if not page:
                return
            if tenant is not None:
                page = await self.whole(tenant, page)
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

    async def _shapes(self, generation_id: str, after: Position) -> Envelopes:
        """The shapes of the attempt in which a position is, up to there."""
        shapes, start = Envelopes(), Position(after.epoch, 0)
        while start.epoch and start < after:
            raw = await self._redis.xrange(self._key.log(generation_id), f"({start}", str(after), count=_LARGEST_PAGE)
            if not raw:
                break
            try:
                start = decode(raw, start, shapes, strict=False)[-1].position
            except Archived:  # whose pages need none
                break
        return shapes

    async def attempt_number(self, generation_id: str, epoch: int) -> int:
        """How many attempts there had been with this one."""
        if epoch < SKIPPED:
            return epoch
        data = await self._attempt_of(generation_id, epoch)
        number: int = json.loads(data).get("number", 1) if data else 1
        return number

    async def _attempt_of(self, generation_id: str, epoch: int) -> bytes | None:
        """The data of an attempt's entry."""
        raw = await self._redis.xrange(self._key.log(generation_id), f"{epoch}-0", f"{epoch}-0")
        return decode(raw)[0].data if raw else None

    # ---- many logs

    async def poll(
        self,
        positions: Mapping[str, Position],
        *,
        block_ms: int,
        count: int = 1000,
        interrupt: tuple[str, str] | None = None,
        shapes: Mapping[str, Envelopes] | None = None,
    ) -> dict[str, list[Entry] | Damaged]:
        """One blocking read over many logs: the new entries of each that has some, `{}` when the time is over. Where they lie
        in several cells, no read can wait for all of them: each is looked at, again and again.

        `shapes` are those of each log up to its position, and take up new ones; without them pieces stay pieces.
        A log with a missing entry answers Damaged instead. `interrupt` is (key, last id) of a stream that ends the
        wait when `interrupt()` is called for it, in the cell of the logs; what was added is returned under that key.
        """
        cells = self._key.cells.parted([*positions])
        if len(cells) < 2:
            return await self._poll(positions, block_ms, count, interrupt, shapes)
        time = asyncio.get_running_loop().time
        parts = [{one: positions[one] for one in some} for some in cells.values()]
        until = time() + block_ms / 1000
        while True:
            reads = [self._poll(part, None, count, None, shapes) for part in parts]
            found = {name: told for some in await asyncio.gather(*reads) for name, told in some.items()}
            if found or time() >= until:
                return found
            await asyncio.sleep(_LOOK_S)

    async def _poll(
        self,
        positions: Mapping[str, Position],
        block_ms: int | None,
        count: int,
        interrupt: tuple[str, str] | None,
        shapes: Mapping[str, Envelopes] | None,
    ) -> dict[str, list[Entry] | Damaged]:
        """Of logs of one cell."""
        where = self._redis.at(self._key.cells.of(next(iter(positions), "")))
        names = {self._key.log(generation_id).encode(): generation_id for generation_id in positions}
        after = [b"%d-%d" % position for position in positions.values()]
        if interrupt:
            names[interrupt[0].encode()] = interrupt[0]
            after.append(interrupt[1].encode())
        block = () if block_ms is None else (b"BLOCK", b"%d" % block_ms)
        packed = pack(b"XREAD", b"COUNT", b"%d" % count, *block, b"STREAMS", *names, *after)
        found: dict[str, list[Entry] | Damaged] = {}
        for raw_name, raw in await exchange(where, packed) or ():
            name = names[raw_name]
            try:
                found[name] = decode(raw, positions.get(name), shapes.get(name) if shapes else None)
            except Archived:
                if (news := await self.archived_news(name, positions[name])) is not None:
                    found[name] = news
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
        return await self.judge(positions, await self.ends(list(positions)))

    async def judge(
        self, positions: Mapping[str, Position], ends: Mapping[str, Position | None]
    ) -> dict[str, LogError]:
        """The same of logs whose `ends` are known."""
        problems: dict[str, LogError] = {}
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

    # ---- decoding

    @staticmethod
    def _request(raw: Any, generation_id: str) -> tuple[Header, Stored]:
        entries = decode(raw)
        if [entry.position for entry in entries] != [HEADER, BEGIN]:
            raise Gone(generation_id)
        return json.loads(entries[0].data), Stored(entries[1].data, entries[1].blobs)

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


def read_of(logs: Mapping[bytes, Followed]) -> tuple[bytes, int]:
    """The command that reads what is new in these, and how many entries of each it gets at most."""
    count, after = 2**31, []
    for log in logs.values():
        count = log.page if log.page < count else count
        after.append(b"%d-%d" % log.position)
    return pack(b"XREAD", b"COUNT", b"%d" % count, b"STREAMS", *logs, *after), count
