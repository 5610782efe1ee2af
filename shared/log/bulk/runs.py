"""Chunks that follow one another, side by side: read together, and shown together as events.

Hidden here: how they are found in what Redis tells of a log, and that nobody looks at each of them: an answer of ten thousand
chunks is a few lists. What is no such chunk (an attempt, one with a mark, usage) is an entry, as everywhere else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from shared.errors import Damaged, LogError
from shared.lib import sse
from shared.log.decoding import Archived, Raw, decode, next_pieces
from shared.log.entry import Entry, Kind, Position
from shared.log.envelope import Envelope, Envelopes

_CHUNKS = frozenset({Kind.CHUNK, Kind.USAGE})
_BETWEEN = b"\n\n"
"""Behind each event, and in none."""
_AROUND_BYTES = 24
"""About what an event has beside its data."""


class Run(NamedTuple):
    """Chunks that follow one another and have nothing beside their data, and what all of them begin and end with."""

    first: Position
    envelope: Envelope
    pieces: list[bytes]

    @property
    def last(self) -> Position:
        return Position(self.first.epoch, self.first.seq + len(self.pieces) - 1)

    def entries(self) -> list[Entry]:
        epoch, seq = self.first
        begin, end = self.envelope
        new, chunk = tuple.__new__, Kind.CHUNK
        return [
            new(Entry, (new(Position, (epoch, number)), chunk, begin + piece + end, None, None, None))
            for number, piece in enumerate(self.pieces, seq)
        ]

    def after(self, position: Position) -> Run | None:
        """What of it comes after a position; None where nothing does."""
        if position < self.first:
            return self
        if position.epoch > self.first.epoch:
            return None
        passed = position.seq - self.first.seq + 1
        if passed >= len(self.pieces):
            return None
        return Run(Position(self.first.epoch, position.seq + 1), self.envelope, self.pieces[passed:])

    def cut(self, most: int) -> list[Run]:
        """Several, of about so many bytes at most as events."""
        count, (begin, end) = len(self.pieces), self.envelope
        size = sum(map(len, self.pieces)) + count * (len(begin) + len(end) + _AROUND_BYTES)
        each, (epoch, seq) = -(-count // -(-size // most)), self.first
        return [
            Run(Position(epoch, seq + at), self.envelope, self.pieces[at : at + each]) for at in range(0, count, each)
        ]


Part = Run | list[Entry]


def told(raw: Raw, after: Position, shapes: Envelopes) -> Iterator[Part]:
    """The parts of a reply about what follows a position; `shapes`, those of the log up to there, take up new ones. Raises
    Damaged, Archived as `decode`, behind the parts before it."""
    if (run := _run(raw, after, shapes)) is not None:  # as most are
        yield run
        return
    rows: Any = raw
    plain = [fields.__class__ is list and len(fields) == 2 and fields[0] == b"d" for _, fields in rows]
    start = 0
    while start < len(raw):
        try:
            stop = plain.index(not plain[start], start)
        except ValueError:
            stop = len(raw)
        some = raw[start:stop]
        if plain[start] and (run := _run(some, after, shapes)) is not None:
            yield run
            after = run.last
        else:
            entries = decode(some, after, shapes)
            yield entries
            after = entries[-1].position
        start = stop


def gathered(raw: Raw, after: Position, shapes: Envelopes) -> tuple[list[Part], LogError | None]:
    """All of them; and why there is no more behind them, Damaged or Archived."""
    found: list[Part] = []
    try:
        for part in told(raw, after, shapes):
            found.append(part)
    except Damaged as gap:
        return [*found, list(gap.before)], gap
    except Archived as elsewhere:
        return found, elsewhere
    return found, None


def _run(raw: Raw, after: Position, shapes: Envelopes) -> Run | None:
    """What is nothing but the next pieces, of a shape that is known."""
    if not raw or (shape := shapes.at(after)) is None or not (pieces := next_pieces(raw, after)):
        return None
    return Run(Position(after.epoch, after.seq + 1), shape, pieces)


def entries_of(found: Sequence[Part]) -> list[Entry]:
    return [entry for part in found for entry in (part.entries() if isinstance(part, Run) else part)]


class Events(NamedTuple):
    """Chunks as events, each with its position as its id."""

    frames: bytes
    last: Position
    """Of these chunks, whether it is shown or not."""
    chunks: int

    def after(self, position: Position) -> Events | None:
        """What of them comes after a position; None where nothing does. What is not shown, usage, is the last one."""
        if position >= self.last:
            return None
        passed = position.seq - (self.last.seq - self.chunks) if position.epoch == self.last.epoch else 0
        if passed <= 0:
            return self
        return Events(self.frames.split(_BETWEEN, passed)[passed], self.last, self.chunks - passed)


def events_of(found: Sequence[Part], after: Position, *, with_usage: bool) -> Events:
    """The chunks after this position that are of its attempt. Raises ValueError where one is not of one line."""
    (made,) = events_in_pieces(found, after, with_usage=with_usage, most=sys.maxsize) or [Events(b"", after, 0)]
    return made


def events_in_pieces(found: Sequence[Part], after: Position, *, with_usage: bool, most: int) -> list[Events]:
    """The same, in pieces of about so many bytes at most. A single event may be larger."""
    made: list[Events] = []
    frames: list[bytes] = []
    size = count = 0
    for some, last, chunks in _framed(found, after, with_usage, most):
        if size and size + len(some) > most:
            made.append(Events(b"".join(frames), after, count))
            frames, size, count = [], 0, 0
        frames.append(some)
        size, count, after = size + len(some), count + chunks, last
    return [*made, Events(b"".join(frames), after, count)] if count else made


def _framed(found: Sequence[Part], after: Position, with_usage: bool, most: int) -> Iterator[Events]:
    for part in found:
        if isinstance(part, Run):
            if part.first.epoch == after.epoch and (rest := part.after(after)) is not None:
                for run in rest.cut(most):
                    yield Events(sse.numbered_frames(run.pieces, run.envelope, run.first), run.last, len(run.pieces))
            continue
        for entry in part:
            if entry.position.epoch == after.epoch and entry.position > after and entry.kind in _CHUNKS:
                shown = entry.kind is Kind.CHUNK or with_usage
                yield Events(sse.numbered_frame(entry.data, entry.position) if shown else b"", entry.position, 1)
