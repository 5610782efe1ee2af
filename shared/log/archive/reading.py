"""Reading logs that are objects in the file storage, for `shared/log/reader.py`: who reads a log need not know that.

Hidden here: where an object is, by what Redis has of its log; and that what is not there may have been deleted meanwhile.
Methods raise RedisError or OSError where Redis is away, FileStorageFailed where the storage is, Gone where the log is no object
any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol

from shared.errors import Damaged, FileStorageFailed, Gone, RequestLost
from shared.lib import json
from shared.log.archive.form import Name, Pointer, pointer_in
from shared.log.bulk.runs import Events
from shared.log.decoding import decode
from shared.log.entry import HEADER, Entry, Position
from shared.log.records import Summary
from shared.store.redis import ArqRedis

_AWAY_S = 0.5
"""Before a reader that follows a log is told nothing of its object, which cannot be had just now: it comes again at once."""


class Objects(Protocol):
    """Reads archived logs. Both raise Damaged where the object is not there, or not as it was stored; FileStorageFailed."""

    async def page(self, name: Name, pointer: Pointer, after: Position | None) -> list[Entry]:
        """Some of the entries after a position, one at least; none after the last. None: the request's two."""

    def pages(self, name: Name, pointer: Pointer, after: Position) -> AsyncIterator[list[Entry]]:
        """All of them."""

    def events(self, name: Name, pointer: Pointer, after: Position, *, with_usage: bool) -> AsyncGenerator[Events]:
        """The chunks after a position, which is of the attempt that is wanted, as events, about 256 KiB at a time; none where
        something was taken out of chunks."""


class ArchivedLogs:
    """Those of one Redis."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis, self._key = redis, redis.key
        self.objects: Objects | None = None
        """Whoever puts the features together sets it."""

    async def is_archived(self, generation_id: str) -> bool:
        return pointer_in(await self._redis.xrevrange(self._key.log(generation_id), count=1)) is not None

    async def archived_news(self, generation_id: str, after: Position) -> list[Entry] | Damaged | None:
        """For a reader that was away for so long that the log it followed has become an object: what comes next, or what is
        wrong. None: nothing now; if the log is gone, that is told elsewhere."""
        try:
            return await self._page(generation_id, after)
        except Damaged as problem:
            return problem
        except Gone:
            return None
        except FileStorageFailed:
            await asyncio.sleep(_AWAY_S)
            return None

    async def events(self, summary: Summary, after: Position) -> AsyncGenerator[Events]:
        """The chunks of an archived log after a position of the attempt that is wanted, as events that nobody has looked at one
        by one; see `Objects.events`. Raises Gone, Damaged, FileStorageFailed."""
        assert summary.archived is not None
        pointer, header = Pointer.parse(summary.archived), summary.header
        if self.objects is None:
            raise FileStorageFailed
        name = Name(header["owner"], header["id"], pointer.copy)
        try:
            async for some in self.objects.events(name, pointer, after, with_usage=header["include_usage"]):
                yield some
        except Damaged:
            await self._object(header["id"])  # or it was deleted, or has expired, meanwhile
            raise

    async def _whole_object(self, generation_id: str) -> list[Entry]:
        try:
            return [entry async for page in self._object_pages(generation_id, Position(0, 0)) for entry in page]
        except Damaged:
            raise RequestLost from None
        except Gone:
            return []

    async def _object(self, generation_id: str) -> tuple[Objects, Name, Pointer]:
        """Where an archived log is. Raises Gone where there is none any more."""
        key = self._key.log(generation_id)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xrange(key, str(HEADER), str(HEADER))
            pipe.xrevrange(key, count=1)
            header, end = await pipe.execute()
        pointer = pointer_in(end)
        if pointer is None or not header:
            raise Gone(generation_id)
        if self.objects is None:
            raise FileStorageFailed
        return self.objects, Name(json.loads(decode(header)[0].data)["owner"], generation_id, pointer.copy), pointer

    async def _page(self, generation_id: str, after: Position | None) -> list[Entry]:
        """As `Objects.page`. Raises Gone as well."""
        objects, name, pointer = await self._object(generation_id)
        try:
            return await objects.page(name, pointer, after)
        except Damaged:
            await self._object(generation_id)  # or it was deleted, or has expired, meanwhile
            raise

    async def _object_pages(self, generation_id: str, after: Position) -> AsyncIterator[list[Entry]]:
        """As `Objects.pages`. Raises Gone as well."""
        objects, name, pointer = await self._object(generation_id)
        try:
            async for page in objects.pages(name, pointer, after):
                yield page
        except Damaged:
            await self._object(generation_id)
            raise
