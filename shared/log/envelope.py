"""What the chunks of an attempt have in common, stored once. PROTOCOL.md ("Pieces") is the specification.

Hidden here: which bytes those are. A provider's chunks differ in a few bytes of a few hundred, so most are stored as a
*piece*: what stands between the *shape*, a beginning and an end that a chunk before it was marked with. Only bytes are
compared: nothing here knows JSON, or what a delta is.

`EnvelopeEncoder` is the writer's side, `Envelopes` the reader's.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

from shared.log.entry import Position

WHOLE, PIECE = b"c", b"d"
MARK = b"t"
"""A further field of a chunk or piece, `N-M`: the first N and the last M bytes of its payload are the shape from the next
entry on."""

_WORTH = 32
"""Bytes in common that are worth a mark."""
_GAIN = 4
"""Bytes more for each chunk that are worth another one."""
_TRIAL = 8
_NEVER = sys.maxsize
_COMPARED = 512
"""Bytes that are compared in one go, as two numbers."""


class Envelope(NamedTuple):
    """What payloads begin and end with."""

    prefix: bytes
    suffix: bytes


def mark(payload: bytes, value: bytes) -> Envelope:
    """The shape that a payload marked with this value brings."""
    begin, _, end = value.partition(b"-")
    return Envelope(payload[: int(begin)], payload[len(payload) - int(end) :])


class Envelopes:
    """The shapes of one log, few, by the positions they were brought at; None where what came before is missing."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: list[tuple[Position, Envelope | None]] = []

    def at(self, position: Position) -> Envelope | None:
        """The shape that is in force after the entry at this position, if all before it has been read."""
        found = self._found
        if not found:
            return None
        last = found[-1]
        if last[0] > position:
            at = bisect_right(found, position, key=itemgetter(0))
            if not at:
                return None
            last = found[at - 1]
        return last[1] if last[0][0] == position[0] else None

    def put(self, position: Position, shape: Envelope | None) -> None:
        """Says what is in force after this position. To say it again changes nothing."""
        at = bisect_left(self._found, position, key=itemgetter(0))
        if at == len(self._found) or self._found[at][0] != position:
            self._found.insert(at, (position, shape))


class EnvelopeEncoder:
    """What the next chunk of an attempt is stored as, after those before it. Immutable: `take` returns its successor.

    The shape is what a chunk that did not fit has in common with the shape before, the first chunk being that of the
    second. So it gets shorter until all fit. That may be too short (an answer after its reasoning has only the
    envelope in common with it): therefore the pieces that follow are on trial, and if they have more in common, the
    last of them is marked with that. Each such trial is twice as long as the last: what alternates costs no more than a
    few chunks stored whole.
    """

    __slots__ = ("_end", "_least", "_patience", "_prefix", "_suffix", "_trial")

    def __init__(
        self,
        shape: Envelope = Envelope(b"", b""),  # noqa: B008 - a constant
        *,
        in_force: bool = False,
        trial: tuple[Envelope, int] | None = None,
        patience: int = _TRIAL,
    ) -> None:
        self._prefix, self._suffix = shape
        self._end = len(self._suffix)
        self._least = len(self._prefix) + self._end if in_force else _NEVER
        self._trial, self._patience = trial, patience

    def take(self, payload: bytes) -> tuple[bytes, bytes, bytes | None, EnvelopeEncoder]:
        """WHOLE or PIECE, the data to store, its mark if it has one, and what takes the next chunk."""
        size = len(payload)
        if size >= self._least and payload.startswith(self._prefix) and payload.endswith(self._suffix):
            piece = payload[len(self._prefix) : size - self._end]
            if self._trial is None:
                return PIECE, piece, None, self
            return PIECE, piece, *self._on_trial(payload, *self._trial)
        shape = _common(Envelope(self._prefix, self._suffix), payload)
        if sum(map(len, shape)) >= _WORTH:
            trial = Envelope(payload, payload), self._patience
            return (
                WHOLE,
                payload,
                _spell(shape),
                EnvelopeEncoder(shape, in_force=True, trial=trial, patience=self._patience),
            )
        return WHOLE, payload, None, self if self._least != _NEVER else EnvelopeEncoder(Envelope(payload, payload))

    def pieces(self, payloads: Sequence[bytes]) -> list[bytes]:
        """What is to be stored of the first of these payloads, of as many as are pieces without a mark: each of them `take`
        would answer with that, and with this encoder."""
        found: list[bytes] = []
        if self._trial is not None:
            return found
        prefix, suffix, least, start, end = self._prefix, self._suffix, self._least, len(self._prefix), self._end
        for payload in payloads:
            size = len(payload)
            if size < least or not payload.startswith(prefix) or not payload.endswith(suffix):
                break
            found.append(payload[start : size - end])
        return found

    def piece(self, payload: bytes) -> bytes | None:
        """The same of one; None, if it is none."""
        if self._trial is not None or len(payload) < self._least:
            return None
        prefix, suffix = self._prefix, self._suffix
        if not (payload.startswith(prefix) and payload.endswith(suffix)):
            return None
        return payload[len(prefix) : len(payload) - self._end]

    def _on_trial(self, payload: bytes, shared: Envelope, left: int) -> tuple[bytes | None, EnvelopeEncoder]:
        """`shared` is what the payloads since the shape was brought have in common; it ends with this one, or goes on."""
        narrower = _common(shared, payload)
        if sum(map(len, narrower)) < self._least + _GAIN:
            return None, self._with(None)
        if left > 1:
            return None, self._with((narrower, left - 1))
        return _spell(narrower), EnvelopeEncoder(narrower, in_force=True, patience=2 * self._patience)

    def _with(self, trial: tuple[Envelope, int] | None) -> EnvelopeEncoder:
        return EnvelopeEncoder(
            Envelope(self._prefix, self._suffix), in_force=True, trial=trial, patience=self._patience
        )


def _common(shape: Envelope, payload: bytes) -> Envelope:
    """As much of the shape as the payload begins and ends with, without using a byte twice."""
    begin = _matching(shape.prefix, payload)
    end = min(_matching(shape.suffix[::-1], payload[::-1]), len(payload) - begin)
    return Envelope(payload[:begin], payload[len(payload) - end :])


def _matching(one: bytes, other: bytes) -> int:
    """How many bytes at their beginnings are the same."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > _COMPARED:  # the first `low` are the same, the first `high` are not
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    different = int.from_bytes(one[low:high], "big") ^ int.from_bytes(other[low:high], "big")
    return high - (different.bit_length() + 7) // 8


def _spell(shape: Envelope) -> bytes:
    return b"%d-%d" % (len(shape.prefix), len(shape.suffix))
