"""Lists of logs, and what stands beside a log in keys of its own: metadata that replaced the request's, and who watches.

Hidden here: that a list may change while it is gone through, page by page. Every method raises RedisError or OSError when the
server is away.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from shared.errors import Gone
from shared.lib import json
from shared.log.reader import LogReader
from shared.log.records import Header, Summary
from shared.store.commands import pack, watch
from shared.store.merged import merged, paged
from shared.store.redis import ArqRedis
from shared.store.transaction import commit

_INDEX_PAGE = 50
_OPEN_LOOKED_AT = 5000

Span = tuple[int | None, int | None]
"""From a time to before another one, in ms; None: without an end."""


class LogListing(LogReader):
    """Listed, open and watched logs. `retention_s` is how long a sealed log is kept, `safety_s` one that is not."""

    def __init__(self, redis: ArqRedis, *, retention_s: float, safety_s: float) -> None:
        super().__init__(redis)
        self._retention_ms = int(retention_s * 1000)
        self._safety_ms = int(safety_s * 1000)

    async def listed(
        self,
        tenant: str,
        after: str | None = None,
        *,
        newest_first: bool = True,
        stored: bool = False,
        span_ms: Span = (None, None),
    ) -> AsyncIterator[Summary]:
        """A tenant's generations by their age, all or only the stored, from just after the id `after`; those created from
        the first time of `span_ms` to before the second.

        Raises Gone if that one is unknown.
        """
        named, cells = self._key.stored if stored else self._key.index, self._key.cells
        if cells.count > 1:
            async for one in self._merged([named(tenant, cell) for cell in cells.all], after, newest_first, span_ms):
                yield one
            return
        index, redis = named(tenant, 0), self._redis
        rank, page = (redis.zrevrank, redis.zrevrange) if newest_first else (redis.zrank, redis.zrange)
        start, last = 0, after
        if last is None and (edge := await self._edge(index, newest_first, *span_ms)) is not None:
            start = await rank(index, edge) or 0
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
                if summary is None:
                    continue
                before, behind = _outside(summary.header["created_at_ms"], *span_ms)
                if behind if newest_first else before:
                    continue
                if before if newest_first else behind:
                    return
                yield summary
            last = members[-1]

    async def _merged(
        self, indexes: Sequence[str], after: str | None, newest_first: bool, span_ms: Span
    ) -> AsyncIterator[Summary]:
        """The same where each cell has its share of the list."""
        since_ms, until_ms = span_ms
        edge = until_ms if newest_first else since_ms
        try:
            async for places in paged(
                merged(self._redis, {"": indexes}, after, newest_first=newest_first, edge=edge), _INDEX_PAGE
            ):
                for summary in await self.describe([place.member for place in places]):
                    if summary is None:
                        continue
                    before, behind = _outside(summary.header["created_at_ms"], *span_ms)
                    if before if newest_first else behind:
                        return
                    if not (before or behind):
                        yield summary
        except LookupError:
            raise Gone(after or "") from None

    async def _edge(self, index: str, newest_first: bool, since_ms: int | None, until_ms: int | None) -> bytes | None:
        """Where a list that begins inside of a time does so: at its first member from then on; None: at its start."""
        edge = until_ms if newest_first else since_ms
        if edge is None:
            return None
        found: list[bytes] = await self._redis.zrangebyscore(index, edge, "+inf", start=0, num=1)
        return found[0] if found else None

    async def open_ids(self) -> list[tuple[str, int]]:
        """Generations without an outcome, oldest first, with the time they were created in ms."""
        found: list[tuple[str, int]] = []
        async with self._redis.pipeline(transaction=False) as pipe:
            for cell in self._key.cells.all:
                pipe.zrange(self._key.open(cell), 0, -1, withscores=True)
            for members in await pipe.execute():
                found += [(member.decode(), int(score)) for member, score in members]
        return found if self._key.cells.count == 1 else sorted(found, key=itemgetter(1))

    async def open_of(self, tenant: str | None, most: int) -> tuple[list[Summary], int, bool]:
        """A tenant's generations without an outcome, the newest first, or all tenants'; `most` of them, how many more there
        are, and whether those were too many to be counted."""
        ids = await self._newest_open()
        is_partial = len(ids) > _OPEN_LOOKED_AT
        if tenant is not None:
            theirs = await self._theirs(tenant, ids)
            ids = [one for one in ids if one in theirs]
        found = [one for one in await self.describe(ids[:most]) if one is not None and one.outcome is None]
        return found, max(0, len(ids) - most), is_partial

    async def _newest_open(self) -> list[str]:
        """Of all cells, the newest first; one more than are looked at tells that there are more."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for cell in self._key.cells.all:
                pipe.zrevrange(self._key.open(cell), 0, _OPEN_LOOKED_AT, withscores=True)
            shares = await pipe.execute()
        newest = shares[0] if len(shares) == 1 else sorted(chain(*shares), key=itemgetter(1), reverse=True)
        return [member.decode() for member, _ in newest[: _OPEN_LOOKED_AT + 1]]

    async def _theirs(self, tenant: str, ids: list[str]) -> set[str]:
        """Which of these are a tenant's."""
        parts, found = self._key.cells.parted(ids), set[str]()
        async with self._redis.pipeline(transaction=False) as pipe:
            for cell, some in parts.items():
                pipe.zmscore(self._key.index(tenant, cell), some)
            for some, scores in zip(parts.values(), await pipe.execute() if parts else [], strict=True):
                found.update(one for one, score in zip(some, scores, strict=True) if score is not None)
        return found

    async def close_index(self, generation_id: str) -> None:
        """Takes an id whose log is sealed or gone off the list of open ones."""
        await self._redis.zrem(self._key.open(self._key.cells.of(generation_id)), generation_id)

    # ---- who watches (only for generations that end without viewers)

    async def keep_watched(self, generation_ids: Sequence[str], grace_s: float) -> None:
        """Says that these have a viewer now, which holds for the grace time."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for generation_id in generation_ids:
                self.keep_watched_with(pipe, generation_id, grace_s)
            await commit(pipe)  # who watches must not seem to have left because memory is full

    def keep_watched_with(self, pipe: Any, generation_id: str, grace_s: float) -> None:
        """The same, with what else `pipe` does."""
        pipe.set(self._key.viewers(generation_id), b"1", px=int(grace_s * 1000))

    async def fence_deleted(self, pipe: Any, generation_id: str) -> None:
        """For who looked in the control whether it may create this, where that is apart: it may have been created, and deleted,
        by another one since. Raises Gone, also where that happens before `pipe` is executed."""
        if pipe.control is not pipe:
            name = self._key.deleted(generation_id)
            (there,) = await watch(pipe, [name], pack(b"EXISTS", name.encode()))
            if there:
                raise Gone(generation_id, deleted=True)

    async def watched(self, generation_ids: Sequence[str]) -> set[str]:
        """Which of these had a viewer within the grace time."""
        return await self._existing(generation_ids, self._key.viewers)

    # ---- metadata

    async def replace_metadata(self, summary: Summary, metadata: dict[str, str]) -> None:
        """What `describe` says about this log from now on. They live as long as the log. Raises Gone."""
        generation_id = summary.header["id"]
        left_ms = await self._redis.pttl(self._key.log(generation_id))
        if left_ms < 0:
            raise Gone(generation_id)
        if summary.outcome is None:  # a seal that has not seen them must not leave them with too little
            left_ms = max(left_ms, self._kept_ms(summary.header))
        await self._redis.set(self._key.metadata(generation_id), json.dumps(metadata), px=max(1, left_ms))

    def _kept_ms(self, header: Header | None) -> int:
        """How long a sealed log is kept: what its request was promised, else what holds here."""
        promised_s = header.get("retention_s") if header else None
        return self._retention_ms if promised_s is None else int(promised_s * 1000)


def _outside(created_ms: int, since_ms: int | None, until_ms: int | None) -> tuple[bool, bool]:
    """Whether it was created before that time, and after it."""
    return since_ms is not None and created_ms < since_ms, until_ms is not None and created_ms >= until_ms
