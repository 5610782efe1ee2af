"""A log that is watched here, as an array of frames, formatted once; a viewer (event_stream.py) is an index into it.

Hidden here: the window of frames that is kept, which is bounded: a viewer that lags behind it reads the log itself until
it has caught up. Viewers that have are written to directly, all at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter

from api.live.direct import DirectWriter, in_chunk, rest_s, write_all
from api.live.folding import Folding, Stateless
from api.live.pacing import TokenClock
from api.live.projection import Encode, Projection, framed
from shared.errors import Damaged, LogError
from shared.lib.tasks import Waiters
from shared.log.entry import BEGIN, Entry, Kind, Position
from shared.log.envelope import Envelopes
from shared.log.records import Header

WINDOW_BYTES = 4 * 1024 * 1024
"""Chunk bytes a followed log keeps in memory; older ones are read from Redis again by whoever needs them."""
_CHUNK_BYTES, _FRAME_BYTES = 48, 80
"""What a chunk and a frame take beside what the chunk says, in CPython: headers of objects, places in lists, `data:`, ids."""
_LANE_BYTES = 128 * 1024
"""More than this at once goes to each viewer at its own speed."""
_READ_BYTES, _FIRST_READ, _LARGEST_READ = 1024 * 1024, 100, 1000
"""How many entries of each log are read at once: as many as make a megabyte, if they stay like those seen."""
_BODY_FRAMES, _BODY_BYTES = 512, 128 * 1024
"""What is joined for one send, at most: a lagging viewer catches up in large writes without holding the loop, and without
holding much memory while it does not read. A single frame may be larger."""


class LiveLog(Waiters):
    """The newest attempt of one log, as far as it is known here. Where an entry is missing, what stands before it is shown,
    and then the problem."""

    server: str | None = None
    """The one that took the request."""
    tenant: str | None = None
    """Whose it is."""
    _free_at = 0.0
    """When those who are written to directly may be written to again, in the loop's time."""
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, generation_id: str, *, paced: bool = False) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self.id = generation_id
        self.made = 0
        """When it was created: tells logs of one id apart."""
        self.behind_since: float | None = None
        """When the log was seen to lack what is here, in the loop's time."""
        self.needed = False
        """The generation ends if it has no viewers."""
        self.viewers = 0
        self.opening: asyncio.Future[None] = self._loop.create_future()
        self.caught_up = False
        self.position = BEGIN
        self.shapes = Envelopes()
        """Those of the log up to `position`."""
        self.epoch = 0
        """The attempt; 0: none yet."""
        self.replaced = False
        """An earlier attempt had said something."""
        self.note: bytes | None = None
        """Who speaks: the first chunk's note."""
        self.outcome: Entry | None = None
        """There once the log is sealed."""
        self.problem: LogError | None = None
        """There once it cannot be followed any further."""
        self.replayed = False
        """It had ended before anyone watched it here."""
        self.floor = 0
        """How many of the attempt's chunks have left the window."""
        self.lost = 0
        """How many of them Redis itself does not have any more."""
        self.tally = TokenClock() if paced else None
        self.fed_at = 0.0
        """When the last entries came, in the loop's time."""
        self.page = _FIRST_READ
        """How many entries like those seen may be read at once."""
        self._hole: Damaged | None = None
        self._data: list[bytes] = []
        """What the chunks in the window say: entries would be more memory, and the garbage collector would look at each."""
        self._others: dict[int, Entry] = {}
        """By number, those of which there is more to tell than that: the first, and usage."""
        self._bytes = 0
        self._frames: dict[Encode, list[bytes]] = {}
        self._shown: dict[Projection, Stateless | Folding] = {}
        self._bodies: dict[tuple[Encode, int], tuple[bytes, int] | None] = {}
        self._lanes: dict[Encode, dict[DirectWriter, asyncio.Transport]] = {}
        self._written = 0
        """The number of the last chunk that those who are written to directly have."""

    @property
    def end(self) -> int:
        """The number of the attempt's last chunk."""
        return self.floor + len(self._data)

    @property
    def last(self) -> Entry | None:
        """The last chunk."""
        return self.entries(self.end - 1, self.end)[0] if self._data else None

    @property
    def payloads(self) -> list[bytes] | None:
        """All chunks of the attempt, or None if the window does not reach back that far."""
        return list(self._data) if not self.floor else None

    @property
    def size(self) -> int:
        """Bytes of the chunks in the window."""
        return self._bytes

    @property
    def held(self) -> int:
        """About how many bytes of memory it takes: its chunks as they came, in each format, and joined."""
        chunks, formats = len(self._data), len(self._frames)
        joined = sum([len(body[0]) for body in self._bodies.values() if body])
        for shown in self._shown.values():
            joined += shown.held(self._frames.get(shown.encode, ()), self._bytes)
        return self._bytes * (1 + formats) + chunks * (_CHUNK_BYTES + _FRAME_BYTES * formats) + joined

    @property
    def started(self) -> bool:
        """Whether there is anything to show: a chunk, an end, or a reason why there will be none."""
        return bool(self.floor or self._data or self.outcome or self.problem)

    @property
    def ended(self) -> bool:
        return bool(self.outcome or self.problem)

    def shown(self, projection: Projection, header: Header) -> Stateless | Folding:
        """Its frames for a projection; `header` is that of the log. Have them `follow` first."""
        shown = self._shown.get(projection)
        if shown is None:
            encode = projection.encode
            shown = Stateless(projection, encode, header) if encode else Folding(projection, header)
            self._shown[projection] = shown
        return shown

    def entries(self, start: int, stop: int) -> Sequence[Entry]:
        """The chunks `start` (exclusive) to `stop` (inclusive), from the window."""
        return [
            self._others.get(number) or Entry(Position(self.epoch, number), Kind.CHUNK, data)
            for number, data in enumerate(self._data[start - self.floor : stop - self.floor], start + 1)
        ]

    def formats(self, encode: Encode) -> bool:
        """Whether it has the frames of this encoding, and goes on with them."""
        return encode in self._frames

    def format(self, encode: Encode, frames: list[bytes]) -> None:
        """Goes on with these, which are those of all chunks in the window."""
        self._frames[encode] = frames

    def frames(self, encode: Encode, start: int, stop: int) -> list[bytes]:
        """Frames of the chunks `start` (exclusive) to `stop` (inclusive), formatted at most once per encoding."""
        frames = self._frames.get(encode)
        if frames is None:
            frames = self._frames[encode] = framed(encode, self.entries(self.floor, self.end))
        return frames[start - self.floor : stop - self.floor]

    def body(self, encode: Encode, start: int, stop: int) -> tuple[bytes, int]:
        """The first of these frames, joined, as many as make one send, and the number of the last.

        Of a log that has ended, all viewers who read it from its start are sent the same ones.
        """
        place = (encode, start)
        shared = self.outcome is not None and stop == self.end and (not start or place in self._bodies)
        if shared and (body := self._bodies.get(place)):
            return body
        size = count = 0
        frames = self.frames(encode, start, min(stop, start + _BODY_FRAMES))
        for count, frame in enumerate(frames, 1):  # noqa: B007 - the last one's
            size += len(frame)
            if size >= _BODY_BYTES:
                break
        body = b"".join(frames[:count]), start + count
        if shared:
            self._bodies[place] = body
            self._bodies.setdefault((encode, body[1]))
            if body[1] == self.end and not isinstance(encode, Folding):
                del self._frames[encode]
        return body

    def joined(self, encode: Encode, start: int = 0) -> bool:
        """Whether the log has ended, and the frames of all chunks after `start` are at hand as the bodies that all are sent."""
        while start < self.end:
            body = self._bodies.get((encode, start))
            if not body:
                return False
            start = body[1]
        return self.outcome is not None

    def at_hand(self, encode: Encode, start: int) -> bool:
        """Whether `body` has what follows `start`, or its frames, and need not make them anew."""
        return encode in self._frames or bool(self._bodies.get((encode, start)))

    def feed(self, entries: list[Entry]) -> None:
        """Takes the next entries, in order, and has the viewers get them."""
        self.fed_at = self._loop.time()
        end, count, last = self.floor + len(self._data), len(entries), entries[-1]
        size = len(last.data) if count == 1 else sum([len(entry.data) for entry in entries])
        first, newest = (self.epoch, end + 1), (self.epoch, end + count)
        if self.tally is None and end and entries[0].position == first and last.position == newest:
            self._extend_frames(entries)
            self._data += (last.data,) if count == 1 else [entry.data for entry in entries]
            self._bytes += size
            if count > 1 or last.kind is not Kind.CHUNK:  # almost always one chunk, and nothing is made for that
                self._others |= {entry.position.seq: entry for entry in entries if entry.kind is not Kind.CHUNK}
        else:
            self._take(entries)
        self.position = last.position
        self.page = max(1, min(_LARGEST_READ, _READ_BYTES * count // (size + 1)))
        if not self._written or self.outcome or self.fed_at >= self._free_at:
            self._write()
        elif self._timer is None:
            self._timer = self._loop.call_at(self._free_at, self._write)
        if self._bytes > WINDOW_BYTES:
            self.shrink(WINDOW_BYTES // 2)  # so that this stays rare
        if self.outcome:
            self._release()
        self._notify()

    def _take(self, entries: list[Entry]) -> None:
        for entry in entries:
            if entry.kind is Kind.ATTEMPT:
                self._write()
                self._release()
                self.replaced = self.replaced or bool(self.end)
                self.epoch = entry.position.epoch
                self._hole = None
                self._clear()
            elif entry.kind is Kind.OUTCOME:
                if self._hole is not None:
                    continue
                self.outcome = entry
                if self.tally is not None:
                    self.tally.end(entry)
            elif self._hole is not None or self._is_behind_a_hole(entry):
                continue
            elif entry.kind is Kind.PIECE:  # only when catching up: what would make it whole is missing
                self._clear(entry.position.seq)
            else:
                if entry.position.seq != self.end + 1:
                    self._clear(entry.position.seq - 1)
                if self.tally is not None:
                    self.tally.add(entry)
                self.note = entry.note or self.note
                self._extend_frames((entry,))
                if entry.kind is not Kind.CHUNK or entry.note or entry.position.epoch != self.epoch:
                    self._others[self.end + 1] = entry
                self._data.append(entry.data)
                self._bytes += len(entry.data)

    def _extend_frames(self, entries: Sequence[Entry]) -> None:
        """Before their chunks are there: one that cannot be framed (ValueError) must not seem to be."""
        for frames, more in [(frames, framed(encode, entries)) for encode, frames in self._frames.items()]:
            frames += more

    def _is_behind_a_hole(self, entry: Entry) -> bool:
        """Only when catching up: `poll` answers Damaged. What is missing at the start was once kept, and is not any more."""
        if self.end > self.lost and (entry.kind is Kind.PIECE or entry.position.seq != self.end + 1):
            self._hole = Damaged(f"{entry.position} of {self.id} comes after {self.epoch}-{self.end}")
        return self._hole is not None

    def caught(self) -> None:
        """All that there was has been fed."""
        self.caught_up = True
        if self._hole is not None:
            self.fail(self._hole)

    # ---- viewers that are written to directly

    def attach(self, encode: Encode, transport: asyncio.Transport, keepalive: bytes) -> DirectWriter:
        """From now on the frames of new chunks are written to this transport. Its viewer has all there is so far."""
        self._write()
        writer = DirectWriter(encode, transport, keepalive, self._loop.time())
        self.frames(encode, self.end, self.end)
        self._lanes.setdefault(encode, {})[writer] = transport
        return writer

    def detach(self, writer: DirectWriter) -> tuple[int, int]:
        """Writes no more to it. Returns the epoch and the number of chunks it got to."""
        if not writer.left:
            self._lanes[writer.encode].pop(writer, None)
            self._leave(writer)
        return writer.epoch, writer.index

    def _leave(self, writer: DirectWriter, index: int | None = None) -> None:
        writer.left, writer.epoch, writer.index = True, self.epoch, self._written if index is None else index
        writer.wake()

    def _release(self, index: int | None = None) -> None:
        """Lets all of them go on by themselves, from where they are."""
        for lanes in self._lanes.values():
            for writer in lanes:
                self._leave(writer, index)
            lanes.clear()

    def _write(self) -> None:
        """Writes the chunks that are new, framed once for all, to those that are here; who cannot take it leaves."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        before, self._written = self._written, (end := self.floor + len(self._data))
        if before >= end or not any(self._lanes.values()):
            return
        began = perf_counter()
        for encode, lanes in self._lanes.items():
            if not lanes:
                continue
            body = b"".join(self.frames(encode, before, end))
            if not body:
                continue
            if len(body) > _LANE_BYTES:
                for writer in lanes:
                    self._leave(writer, before)
                lanes.clear()
                continue
            for writer in write_all(lanes, in_chunk(body)):
                lanes.pop(writer, None)
                self._leave(writer)
        self._free_at = self._loop.time() + rest_s(perf_counter() - began)

    def silent(self, before: float) -> list[DirectWriter]:
        """Those that were written nothing since then."""
        if self.fed_at > before:
            return []
        return [writer for lanes in self._lanes.values() for writer in lanes if writer.since <= before]

    def keep_alive(self, lanes: list[DirectWriter], now: float) -> None:
        """Writes a keep-alive to those of them that are still here."""
        for writer in lanes:
            if not writer.left and not writer.keep_alive(now):
                self.detach(writer)

    def rest(self) -> None:
        """Nobody watches for now: frames that are not joined go. They are quickly made again, and are half of its memory."""
        self._frames.clear()

    def fail(self, problem: LogError) -> None:
        self.problem = problem
        if self.tally is not None:
            self.tally.off = True
        self._write()
        self._release()
        self._notify()

    def wake(self) -> None:
        """Makes every viewer look again."""
        self._write()
        for lanes in self._lanes.values():
            for writer in lanes:
                writer.wake()
        self._notify()

    def _clear(self, lost: int = 0) -> None:
        self.floor = self.lost = self._written = lost
        self._bytes = 0
        if self.tally is not None:
            self.tally.clear(lost)
        self._data.clear()
        self._others.clear()
        self._bodies.clear()
        for frames in self._frames.values():
            frames.clear()
        for shown in self._shown.values():
            shown.restart()

    def shrink(self, size: int) -> None:
        """Drops the oldest chunks until no more than so many bytes are left of them, or the newest alone."""
        self._write()
        dropped = 0
        while self._bytes > size and dropped < len(self._data) - 1:
            self._bytes -= len(self._data[dropped])
            dropped += 1
        del self._data[:dropped]
        self._bodies.clear()
        for frames in self._frames.values():
            del frames[:dropped]
        self.floor += dropped
        self._others = {number: entry for number, entry in self._others.items() if number > self.floor}
