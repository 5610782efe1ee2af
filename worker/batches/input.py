"""The input of a batch: its lines in their order, and earlier ones again.

Hidden here: how far it was read and where it ends, that a body which was let go is read once more, and that no more than a
few megabytes of those are held at once. All of it raises Missing when the file is gone, or is not what it was when the
batch began, and FileStorageFailed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

from shared.features.batch_head import BatchHead, InputPosition, reached
from shared.features.storage import PIECE_BYTES, Missing, Storage
from shared.lib import json
from worker.batches.lines import IN_THREAD_BYTES, Asked, Found, LineWrong, Raw, check_input, check_line, read_lines
from worker.batches.queue import Line

_BREATH = 16
"""After so many lines in a row another task gets a turn."""
_READ_BYTES = 8 * 1024 * 1024


class Input:
    """Goes on where the checkpoint says. `models` are the settings' aliases."""

    def __init__(self, storage: Storage, head: BatchHead, models: Mapping[str, Sequence[str]]) -> None:
        self._storage, self._file_id, self._endpoint = storage, head["input_file_id"], head["endpoint"]
        self._size: int | None = head.get("input_bytes")
        self._models = models
        at = reached(head)
        self._next, self._offset, self._total = at["next"], at["offset"], head["total"]
        self._lanes = frozenset(head.get("models") or ())
        rest = storage.read(self._file_id, self._offset, self._size, at_once=PIECE_BYTES)
        self._lines = read_lines(rest, self._next, self._offset)

    @property
    def over(self) -> bool:
        """Whether the last line was read. At the end of the file nothing is asked for: there is no such range of it."""
        return self._next > self._total

    def position(self) -> InputPosition:
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

        lines = read_lines(self._storage.read(self._file_id, 0, self._size))
        return await check_input(lines, self._endpoint, check_model, breathe)

    async def next(self) -> Line | None:
        """The next line, with its body; None after the last one."""
        if self.over:
            return None
        raw = await anext(self._lines, None)
        if raw is None:  # it had more lines when they were counted
            raise Missing
        self._next, self._offset = raw.number + 1, raw.offset + raw.length + 1
        if raw.number % _BREATH == 0:
            await asyncio.sleep(0)
        return await self._understood(raw)

    async def again(self, spots: Sequence[Sequence[int]]) -> AsyncIterator[Line]:
        """Lines that were read before, by their spots of the checkpoint; without their bodies."""
        for some in _groups([(spot[1], spot[2]) for spot in spots]):
            for spot, data in zip(spots[some], await self._read(spots[some]), strict=True):
                number, offset, length, tries, *held_against_it = spot
                line = await self._understood(Raw(number, offset, length, data))
                line.asked, line.tries = None, tries
                line.strikes, line.lost = held_against_it or (0, 0)
                yield line

    async def fetch(self, lines: Sequence[Line]) -> None:
        """Gives those their bodies that have none, or says what is wrong with them."""
        bare = [line for line in lines if line.asked is None]
        for some in _groups([(line.offset, line.length) for line in bare]):
            spots = [line.spot() for line in bare[some]]
            for line, data in zip(bare[some], await self._read(spots), strict=True):
                try:
                    line.asked = await self._asked(Raw(line.number, line.offset, line.length, data))
                except LineWrong as wrong:
                    line.wrong = wrong

    async def _read(self, spots: Sequence[Sequence[int]]) -> list[bytes]:
        return await self._storage.read_ranges(self._file_id, [(spot[1], spot[2]) for spot in spots])

    async def _asked(self, raw: Raw) -> Asked:
        if raw.length <= IN_THREAD_BYTES:
            return check_line(raw, self._endpoint)
        return await asyncio.to_thread(check_line, raw, self._endpoint)

    async def _understood(self, raw: Raw) -> Line:
        """They were all checked once; but perhaps by another version of this program."""
        try:
            asked = await self._asked(raw)
        except LineWrong as wrong:
            return Line(raw.number, raw.offset, raw.length, _custom_id(raw), "", "", wrong=wrong)
        model, provider = asked.request.model, self.provider(asked.request.model)
        lane = model if model in self._lanes else provider  # of very many there are too many to look after
        return Line(raw.number, raw.offset, raw.length, asked.custom_id, provider, lane, asked=asked)


def _custom_id(raw: Raw) -> str | None:
    """Of a line that is wrong otherwise."""
    try:
        found = json.loads(raw.data or b"")["custom_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


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
