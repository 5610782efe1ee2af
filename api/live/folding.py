"""The frames of a live log for one projection, of either kind (projection.py).

Hidden here: where a fold stands and how it got there. While a log is live, its one fold for a projection is fed with each
chunk as it comes, for all viewers together. A checkpoint is kept every 512 chunks, so a viewer that resumes far back, or
lags behind the window, goes on from the one before it, and feeds each chunk that it reads once. Example: event 7,000 of a
log of 10,000 chunks is found by feeding the chunks 6,657 to 7,000 again, whatever the window holds.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from api.live.projection import Encode, Fold, Projection, framed
from shared.errors import Damaged, ErrorObject, Gone
from shared.lib import json, sse
from shared.log.entry import Entry, Kind, Position
from shared.log.records import Header
from shared.log.streamlog import StreamLog

if TYPE_CHECKING:
    from api.live.livelog import LiveLog

EVERY = 512
"""Chunks between two checkpoints, and how many are fed in one turn of the event loop."""
COME_AGAIN_MS = 2000
"""`retry:` for a viewer that a stopping server sends away."""
_FOLD_BYTES = 200
"""About what a fold keeps of a chunk, in memory, beside the chunk's text."""

Reader = Callable[[Sequence[Entry]], bytes]
"""Frames the next chunks of a viewer that reads them from the log."""


class Start(NamedTuple):
    """Where a viewer begins: with the bytes `first`, then after chunk `chunk` of attempt `epoch`; `skip_end` of the frames
    that end the stream are left out."""

    epoch: int
    chunk: int
    skip_end: int = 0
    first: bytes = b""


class Stateless:
    """The first kind, a frame per chunk. It stands nowhere, so there is nothing to catch up with."""

    __slots__ = ("encode", "fold", "replaced")

    opening = b""
    """The frames that a stream begins with."""
    numbered = False
    """Whether it counts events of its own; else the number of an event is that of its chunk."""

    def __init__(self, projection: Projection, encode: Encode, header: Header) -> None:
        self.encode = encode
        self.fold = self.replaced = projection.start(header).fold

    def restart(self) -> None:
        """Another attempt begins."""

    def held(self, frames: Sequence[bytes], size: int) -> int:
        """About how many bytes of memory it takes beside the window's chunks, of this size, and as much for frames."""
        return 0

    def end(self, outcome: Entry) -> Sequence[bytes]:
        """The frames that end the stream."""
        return self.fold.end(json.loads(outcome.data))

    def stopping(self, error: ErrorObject) -> bytes:
        """What a viewer is told whose server stops: an error, at which OpenAI's clients raise, and never `[DONE]`."""
        return sse.frame(json.dumps({"error": error}), retry_ms=COME_AGAIN_MS)

    async def follow(self, live: LiveLog, log: StreamLog) -> None:
        """Goes on with what there is of the attempt."""

    async def frame(self, live: LiveLog, log: StreamLog) -> None:
        """Makes sure that the frames of what is in the window can be had, one by one."""

    def has(self, live: LiveLog, index: int) -> bool:
        """Whether the frames of the chunks after this one, which is in the window, can be had now."""
        return True

    def events(self, live: LiveLog) -> int:
        """How many events the attempt has so far."""
        return live.end - bool(live.last and not self.encode(live.last))

    async def locate(self, count: int, live: LiveLog, log: StreamLog) -> Start:
        """Where a viewer goes on that has the first `count` events, of those that there are."""
        return Start(live.epoch, count)

    async def reader(self, live: LiveLog, log: StreamLog, epoch: int, index: int) -> Reader:
        """For a viewer that has `index` chunks and lags."""
        return self._read

    def _read(self, entries: Sequence[Entry]) -> bytes:
        return b"".join(framed(self.encode, entries))


class Folding:
    """The second kind: one projection of one live log. It is its own `encode`, to be called with each chunk in order, and
    `follow` first, whose errors are those of reading the log."""

    numbered = True

    def __init__(self, projection: Projection, header: Header) -> None:
        frames, self._start = projection.start(header)
        self._opening = list(frames)
        self.opening = b"".join(frames)
        self._following = asyncio.Lock()
        self._ending: tuple[Fold, Sequence[bytes]] | None = None
        self.fold = self.replaced = self._start
        """As it is; and as the last attempt was that said something and was replaced."""
        self.restart()

    def restart(self) -> None:
        """Another attempt begins."""
        if self.fold is not self._start:
            self.replaced = self.fold
        self.fold = self._start
        self._index = 0
        self._checkpoints = _Checkpoints([self._start])

    def __call__(self, entry: Entry) -> bytes:
        if entry.position.seq != self._index + 1:  # what was folded would be told again, for all viewers from now on
            raise ValueError(f"{entry.position} is not what follows {self._index} chunks")
        (frame,), self.fold = self._checkpoints.feed(self.fold, self._index, (entry,))
        self._index += 1
        return frame

    @property
    def encode(self) -> Encode:
        return self

    def held(self, frames: Sequence[bytes], size: int) -> int:
        """About how many bytes of memory it takes beside the window's chunks, of this size, and as much for frames."""
        return self._index * _FOLD_BYTES + max(0, sum(map(len, frames)) - size)

    def end(self, outcome: Entry) -> Sequence[bytes]:
        """Made once: the last event may hold the whole answer."""
        if self._ending is None or self._ending[0] is not self.fold:
            self._ending = self.fold, self.fold.end(json.loads(outcome.data))
        return self._ending[1]

    def stopping(self, error: ErrorObject) -> bytes:
        """As OpenAI's `error` event, with the object at which its clients raise. It has no id, so that a cursor stays."""
        told = {**error, "type": "error", "sequence_number": self.fold.events, "error": error}
        return sse.frame(json.dumps(told), event=b"error", retry_ms=COME_AGAIN_MS)

    async def follow(self, live: LiveLog, log: StreamLog) -> None:
        """Folds what there is of the attempt, once, however many viewers come at the same moment. What has ended, and is joined
        for all who read it from its start, was folded.

        Raises Gone, Damaged, RedisError, OSError.
        """
        if not (live.joined(self) and self._index == live.end):
            await self.frame(live, log)

    async def frame(self, live: LiveLog, log: StreamLog) -> None:
        """Makes sure that the frames of what is in the window can be had, one by one. Raises as `follow`."""
        async with self._following:
            while not (live.formats(self) or await self._caught_up(live, log)):
                pass

    def has(self, live: LiveLog, index: int) -> bool:
        """Whether the frames of the chunks after this one, which is in the window, can be had now. Else `frame` makes them:
        where the log has ended, what was joined of it may have been dropped since, and the fold is at its end."""
        return live.at_hand(self, index)

    async def _caught_up(self, live: LiveLog, log: StreamLog) -> bool:
        """From the last checkpoint before the window to the end; False if another attempt began meanwhile."""
        if live.lost:
            raise Damaged(f"{live.id} does not begin with its first chunk any more")
        epoch, checkpoints = live.epoch, self._checkpoints
        index, fold = checkpoints.before(live.floor)
        frames: list[bytes] = []
        while index < live.end:
            if index < live.floor:
                frames.clear()
                entries = await _read(live, log, epoch, index, live.floor - index)
            else:
                entries = live.entries(index, index + EVERY)
            more, fold = checkpoints.feed(fold, index, entries)
            frames += more
            index += len(entries)
            await asyncio.sleep(0)
            if checkpoints is not self._checkpoints:
                return False
        self.fold, self._index = fold, index
        live.format(self, frames[len(frames) - (live.end - live.floor) :])
        return True

    def events(self, live: LiveLog) -> int:
        """How many events the attempt has so far."""
        return self.fold.events

    async def locate(self, count: int, live: LiveLog, log: StreamLog) -> Start:
        """Where a viewer goes on that has the first `count` events, of those that there are."""
        if count < self._start.events:
            return Start(live.epoch, 0, first=b"".join(self._opening[count:]))
        epoch, checkpoints = live.epoch, self._checkpoints
        index, fold = checkpoints.showing(count)
        while fold.events < count:
            for entry in await _chunks(live, log, epoch, index, EVERY):
                frames, after = fold.feed(entry)
                index += 1
                if after.events > count:
                    return Start(epoch, index, first=b"".join(frames[count - fold.events :]))
                fold = after
                if fold.events == count:
                    break
        return Start(epoch, index)

    async def reader(self, live: LiveLog, log: StreamLog, epoch: int, index: int) -> Reader:
        """For a viewer that has `index` chunks and lags. It holds a fold, which shares what was said with a checkpoint."""
        checkpoints = self._checkpoints
        at, fold = checkpoints.before(index)
        while at < index:
            entries = await _chunks(live, log, epoch, at, index - at)
            _, fold = checkpoints.feed(fold, at, entries)
            at += len(entries)

        def read(entries: Sequence[Entry]) -> bytes:
            nonlocal at, fold
            frames, fold = checkpoints.feed(fold, at, entries)
            at += len(frames)
            return b"".join(frames)

        return read


class _Checkpoints:
    """The folds of one attempt after every 512 chunks: the first is that of its start."""

    __slots__ = ("_folds",)

    def __init__(self, folds: list[Fold]) -> None:
        self._folds = folds

    def before(self, index: int) -> tuple[int, Fold]:
        """The last one that is not after chunk `index`, and after how many chunks it is."""
        at = min(index // EVERY, len(self._folds) - 1)
        return at * EVERY, self._folds[at]

    def showing(self, count: int) -> tuple[int, Fold]:
        """The last one that has no more than `count` events."""
        at = bisect_right(self._folds, count, key=attrgetter("events")) - 1
        return at * EVERY, self._folds[at]

    def feed(self, fold: Fold, index: int, entries: Sequence[Entry]) -> tuple[list[bytes], Fold]:
        """The frames of the chunks after `index`, and the fold after them; takes up checkpoints that are not there yet."""
        found = []
        for entry in entries:
            frames, fold = fold.feed(entry)
            found.append(b"".join(frames))
            index += 1
            if not index % EVERY:
                if index // EVERY == len(self._folds):
                    self._folds.append(fold)
                fold = self._folds[index // EVERY]  # all go on from the same one, and share what it holds
        return found, fold


async def _chunks(live: LiveLog, log: StreamLog, epoch: int, index: int, count: int) -> Sequence[Entry]:
    """Some of the `count` chunks after `index`, one at least: from the window if they are there. Raises as `_read`."""
    if epoch == live.epoch and index >= live.floor:
        return live.entries(index, min(index + count, live.end))
    return await _read(live, log, epoch, index, count)


async def _read(live: LiveLog, log: StreamLog, epoch: int, index: int, count: int) -> Sequence[Entry]:
    """The same from the log. Raises Gone where there is none, Damaged, RedisError, OSError."""
    page = await log.read(live.id, Position(epoch, index), min(count, EVERY), shapes=live.shapes, tenant=live.tenant)
    chunks = [entry for entry in page if entry.kind in (Kind.CHUNK, Kind.USAGE) and entry.position.epoch == epoch]
    if not chunks:
        raise Gone(live.id)
    return chunks
