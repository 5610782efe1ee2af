"""Reads logs that are objects (`shared.log.archive`), from the file storage.

Hidden here: that a small object is read in one go, of a large one its index and then what is wanted, in pieces of 4 MiB where
that is all of it; and that the newest few stay at hand, for a reader who comes back for the next page, with their events, for
the next who asks for all of them. An object that is not there, or has one wrong byte in what is read, is Damaged: never a
shorter answer. A storage that does not answer is FileStorageFailed, and nothing is known then.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter

from shared.errors import Damaged
from shared.features.storage import Missing, Storage
from shared.lib.telemetry import OBJECT_BYTES
from shared.log.archive.form import Block, Index, Name, Pointer
from shared.log.bulk.runs import Events, events_of
from shared.log.entry import Entry, Position

_SMALL_BYTES = 1024 * 1024
"""An object up to this size is read at once, index and all."""
_HELD_BYTES = 16 * 1024 * 1024
"""Of objects, indexes and events that stay at hand."""
_OBJECT_BYTES, _BLOCK_BYTES = 800, 350
"""What an index and each of its blocks take in CPython beside what was read: of a short answer, as much as that."""
_EVENTS_BYTES = 4 * 1024 * 1024
"""Of one object: the events of a longer answer are made for each who asks."""

_DECODED = 8
"""Blocks whose entries stay at hand: each takes some 600 kB."""

_position = attrgetter("position")


class _Opened:
    """An object whose index is known. `body` is all of it, where that is small; `events` are those of blocks, by block and
    attempt, and whether with usage."""

    def __init__(self, index: Index, body: bytes | None, read: int) -> None:
        self.index, self.body = index, body
        self.size = read + _OBJECT_BYTES + _BLOCK_BYTES * len(index.blocks)
        self.events: dict[tuple[int, int, bool], Events] = {}
        self.events_bytes = 0


class StoredObjects:
    """The `Objects` of a Redis's logs."""

    def __init__(self, storage: Callable[[], Storage]) -> None:
        self._storage = storage
        self._opened: OrderedDict[Name, _Opened] = OrderedDict()
        self._decoded: OrderedDict[tuple[Name, int], list[Entry]] = OrderedDict()
        self._opening: dict[Name, asyncio.Lock] = {}
        self._bytes = 0

    async def page(self, name: Name, pointer: Pointer, after: Position | None) -> list[Entry]:
        opened = await self._open(name, pointer)
        blocks = opened.index.blocks
        with self._sound(name):
            for number in range(0 if after is None else opened.index.place(after), len(blocks)):
                if found := _after(await self._decoded_block(name, opened, number), after):
                    return found
        return []

    async def _decoded_block(self, name: Name, opened: _Opened, number: int) -> list[Entry]:
        """As it is at hand: whoever reads page by page comes back for the rest of it."""
        key = name, number
        if (found := self._decoded.pop(key, None)) is None:
            block = opened.index.blocks[number]
            found = block.decode(await self._block(name, opened, block))
        self._decoded[key] = found
        while len(self._decoded) > _DECODED:
            self._decoded.popitem(last=False)
        return found

    async def pages(self, name: Name, pointer: Pointer, after: Position) -> AsyncIterator[list[Entry]]:
        opened = await self._open(name, pointer)
        with self._sound(name):
            async for block, data in self._blocks(name, opened, opened.index.place(after)):
                if found := _after(block.decode(data), after):
                    yield found
                    await asyncio.sleep(0)  # what others wait for is not to wait for a long answer

    async def events(
        self, name: Name, pointer: Pointer, after: Position, *, with_usage: bool
    ) -> AsyncGenerator[Events]:
        opened = await self._open(name, pointer)
        if opened.index.blobs:
            return
        with self._sound(name):
            first = opened.index.place(after)
            async for number, block, data in self._numbered(name, opened, first):
                start = after if number == first else Position(after.epoch, 0)
                if block.first.epoch > after.epoch:
                    return
                if (found := opened.events.get((number, after.epoch, with_usage))) is None or start.seq:
                    found = events_of(block.parts(data), start, with_usage=with_usage)
                    if not start.seq:
                        self._hold(name, opened, (number, after.epoch, with_usage), found)
                if found.last > start:
                    yield found
                    await asyncio.sleep(0)

    def _hold(self, name: Name, opened: _Opened, key: tuple[int, int, bool], found: Events) -> None:
        """Keeps events at hand, as long as they are not too many."""
        size = len(found.frames)
        if opened.body is None or opened.events_bytes + size > _EVENTS_BYTES or self._opened.get(name) is not opened:
            return
        opened.events[key] = found
        opened.events_bytes += size
        opened.size += size
        self._bytes += size
        self._make_room()

    @contextmanager
    def _sound(self, name: Name) -> Iterator[None]:
        """What is damaged does not stay at hand: it is read again for the next who asks."""
        try:
            yield
        except Damaged:
            self._forget(name)
            raise

    def _forget(self, name: Name) -> None:
        if (opened := self._opened.pop(name, None)) is not None:
            self._bytes -= opened.size
            for number in range(len(opened.index.blocks)) if self._decoded else ():
                self._decoded.pop((name, number), None)

    async def _open(self, name: Name, pointer: Pointer) -> _Opened:
        """Once, however many came at the same moment."""
        if (there := self._opened.get(name)) is not None:
            self._opened.move_to_end(name)
            return there
        lock = self._opening.setdefault(name, asyncio.Lock())
        try:
            async with lock:
                if (opened := self._opened.get(name)) is None:
                    opened = await self._read_index(name, pointer)
                    self._forget(name)
                    self._opened[name] = opened
                    self._bytes += opened.size
                    self._make_room()
                return opened
        finally:
            if not lock.locked():
                self._opening.pop(name, None)

    def _make_room(self) -> None:
        while self._bytes > _HELD_BYTES:
            self._forget(next(iter(self._opened)))
        OBJECT_BYTES.set(self._bytes)

    async def _read_index(self, name: Name, pointer: Pointer) -> _Opened:
        if pointer.size <= _SMALL_BYTES:
            body = await self._read(name, 0, pointer.size)
            text = body[pointer.index_at : pointer.index_end]
            return _Opened(Index.parse(text, pointer, name.generation_id), body, len(body))
        text = await self._read(name, pointer.index_at, pointer.index_end)
        return _Opened(Index.parse(text, pointer, name.generation_id), None, len(text))

    async def _block(self, name: Name, opened: _Opened, block: Block) -> bytes:
        if opened.body is not None:
            return opened.body[block.start : block.start + block.size]
        return await self._read(name, block.start, block.start + block.size)

    async def _numbered(self, name: Name, opened: _Opened, number: int) -> AsyncIterator[tuple[int, Block, bytes]]:
        async for block, data in self._blocks(name, opened, number):
            yield number, block, data
            number += 1

    async def _blocks(self, name: Name, opened: _Opened, number: int) -> AsyncIterator[tuple[Block, bytes]]:
        """From this one on."""
        blocks = opened.index.blocks[number:]
        if opened.body is not None:
            for block in blocks:
                yield block, opened.body[block.start : block.start + block.size]
            return
        held, done = bytearray(), 0
        try:
            async for piece in self._storage().read(str(name), blocks[0].start, blocks[-1].start + blocks[-1].size):
                held += piece
                while done < len(blocks) and len(held) >= blocks[done].size:
                    data = bytes(held[: blocks[done].size])
                    del held[: len(data)]
                    done += 1
                    yield blocks[done - 1], data
        except Missing:
            pass
        if done < len(blocks):
            raise Damaged(f"the object of {name.generation_id} is not in the file storage, or not all of it")

    async def _read(self, name: Name, start: int, end: int) -> bytes:
        size = end - start
        try:
            pieces = [piece async for piece in self._storage().read(str(name), start, end, piece=size)]
        except Missing:
            pieces = []
        if sum(map(len, pieces)) != size:
            raise Damaged(f"the object of {name.generation_id} is not in the file storage, or not all of it")
        return b"".join(pieces)


def _after(entries: list[Entry], after: Position | None) -> list[Entry]:
    """A list of its own: whoever gets it may fill in what was taken out of them."""
    return entries[0 if after is None else bisect_right(entries, after, key=_position) :]
