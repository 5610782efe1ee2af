"""The input of a batch: its lines in their order, and earlier ones again.

Hidden here: how far it was read, that a body which was let go is read once more, and that no more than a few megabytes of
those are held at once. All of it raises Missing or NotFound when the file is gone, and Unavailable.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

from shared.batches import Head
from shared.storage import Storage
from worker.batch_lines import Asked, Found, Raw, check_input, check_line, read_lines
from worker.batch_queue import Line

_BREATH = 16
"""After so many lines in a row somebody else gets a turn."""
_READ_BYTES = 8 * 1024 * 1024


class Input:
    """Goes on where the checkpoint says. `models` are the settings' aliases."""

    def __init__(self, storage: Storage, head: Head, models: Mapping[str, Sequence[str]]) -> None:
        self._storage, self._file_id, self._endpoint = storage, head["input_file_id"], head["endpoint"]
        self._models = models
        self.over = False
        """Whether the last line was read."""
        checkpoint = head["checkpoint"] or {}
        self._next, self._offset = checkpoint.get("next", 1), checkpoint.get("offset", 0)
        self._lines = read_lines(storage.read(self._file_id, self._offset), self._next, self._offset)

    def position(self) -> dict[str, int]:
        """As it stands in the checkpoint: the first line that was not read, and where that begins."""
        return {"next": self._next, "offset": self._offset}

    def provider(self, model: str) -> str:
        """Who is asked for it first."""
        return self._models.get(model, [model])[0].partition("/")[0]

    async def check(self, check_model: Callable[[str], Awaitable[None]], tick: Callable[[], Awaitable[None]]) -> Found:
        """Looks at all of it, from the start; `tick` is called now and then."""

        async def breathe(number: int) -> None:
            if number % _BREATH == 0:
                await asyncio.sleep(0)
                await tick()

        return await check_input(read_lines(self._storage.read(self._file_id)), self._endpoint, check_model, breathe)

    async def next(self) -> Line | None:
        """The next line, with its body; None after the last one."""
        raw = await anext(self._lines, None)
        if raw is None:
            self.over = True
            return None
        self._next, self._offset = raw.number + 1, raw.offset + raw.length + 1
        if raw.number % _BREATH == 0:
            await asyncio.sleep(0)
        return self._understood(raw, 0)

    async def again(self, spots: Sequence[Sequence[int]]) -> AsyncIterator[Line]:
        """Lines that were read before, by their spots of the checkpoint; without their bodies."""
        for some in _groups([(offset, length) for _, offset, length, _ in spots]):
            for (number, offset, length, tries), data in zip(spots[some], await self._read(spots[some]), strict=True):
                line = self._understood(Raw(number, offset, length, data), tries)
                line.asked = None
                yield line

    async def fetch(self, lines: Sequence[Line]) -> None:
        """Gives those their bodies that have none."""
        bare = [line for line in lines if line.asked is None]
        for some in _groups([(line.offset, line.length) for line in bare]):
            spots = [line.spot() for line in bare[some]]
            for line, data in zip(bare[some], await self._read(spots), strict=True):
                line.asked = self._asked(Raw(line.number, line.offset, line.length, data))

    async def _read(self, spots: Sequence[Sequence[int]]) -> list[bytes]:
        return await self._storage.read_ranges(self._file_id, [(spot[1], spot[2]) for spot in spots])

    def _asked(self, raw: Raw) -> Asked:
        return check_line(raw, self._endpoint)

    def _understood(self, raw: Raw, tries: int) -> Line:
        asked = self._asked(raw)
        provider = self.provider(asked.request.model)
        return Line(raw.number, raw.offset, raw.length, asked.custom_id, provider, tries, asked=asked)


def _groups(ranges: Sequence[tuple[int, int]]) -> Iterator[slice]:
    """Cuts them into pieces that can be held: at least one each, and then so many bytes."""
    start, size = 0, 0
    for place, (_, length) in enumerate(ranges):
        if size and size + length > _READ_BYTES:
            yield slice(start, place)
            start, size = place, 0
        size += length
    if ranges:
        yield slice(start, len(ranges))
