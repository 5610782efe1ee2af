"""Reads logs that are objects (`shared.log.archive`), from the file storage.

Hidden here: that a small object is read in one go, of a large one its index and then what is wanted, in pieces of 4 MiB where
that is all of it; and that the newest few stay at hand, for a reader who comes back for the next page. An object that is not
there, or has one wrong byte in what is read, is Damaged: never a shorter answer. A storage that does not answer is
FileStorageFailed, and nothing is known then.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter

from shared.errors import Damaged
from shared.features.storage import Missing, Storage
from shared.log.archive.form import Block, Index, Name, Pointer
from shared.log.entry import Entry, Position

_SMALL_BYTES = 1024 * 1024
"""An object up to this size is read at once, index and all."""
_HELD_BYTES = 8 * 1024 * 1024
"""Of objects and indexes that stay at hand."""

_position = attrgetter("position")


class _Opened:
    """An object whose index is known. `body` is all of it, where that is small; `decoded` the block that was read last."""

    def __init__(self, index: Index, body: bytes | None, size: int) -> None:
        self.index, self.body, self.size = index, body, size
        self.decoded: tuple[int, list[Entry]] | None = None


class StoredObjects:
    """The `Objects` of a Redis's logs."""

    def __init__(self, storage: Callable[[], Storage]) -> None:
        self._storage = storage
        self._opened: OrderedDict[Name, _Opened] = OrderedDict()
        self._bytes = 0

    async def page(self, name: Name, pointer: Pointer, after: Position | None) -> list[Entry]:
        opened = await self._open(name, pointer)
        blocks = opened.index.blocks
        with self._sound(name):
            for number in range(0 if after is None else opened.index.place(after), len(blocks)):
                if opened.decoded is None or opened.decoded[0] != number:
                    opened.decoded = number, blocks[number].decode(await self._block(name, opened, blocks[number]))
                if found := _after(opened.decoded[1], after):
                    return found
        return []

    async def pages(self, name: Name, pointer: Pointer, after: Position) -> AsyncIterator[list[Entry]]:
        opened = await self._open(name, pointer)
        with self._sound(name):
            async for block, data in self._blocks(name, opened, opened.index.place(after)):
                if found := _after(block.decode(data), after):
                    yield found
                    await asyncio.sleep(0)  # what others wait for is not to wait for a long answer

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

    async def _open(self, name: Name, pointer: Pointer) -> _Opened:
        if (opened := self._opened.get(name)) is not None:
            self._opened.move_to_end(name)
            return opened
        if pointer.size <= _SMALL_BYTES:
            body = await self._read(name, 0, pointer.size)
            text = body[pointer.index_at : pointer.index_end]
            opened = _Opened(Index.parse(text, pointer, name.generation_id), body, len(body))
        else:
            text = await self._read(name, pointer.index_at, pointer.index_end)
            opened = _Opened(Index.parse(text, pointer, name.generation_id), None, len(text))
        self._forget(name)  # another reader may have been as quick
        self._opened[name] = opened
        self._bytes += opened.size
        while self._bytes > _HELD_BYTES:
            self._forget(next(iter(self._opened)))
        return opened

    async def _block(self, name: Name, opened: _Opened, block: Block) -> bytes:
        if opened.body is not None:
            return opened.body[block.start : block.start + block.size]
        return await self._read(name, block.start, block.start + block.size)

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
