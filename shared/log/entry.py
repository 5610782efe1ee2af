"""What stands in a log: positions, entries and what they add up to. PROTOCOL.md is the specification.

Hidden here: how Redis spells all of it.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

_POSITION = re.compile(r"(0|[1-9]\d{0,15})-(0|[1-9]\d{0,15})", re.ASCII)


class Position(NamedTuple):
    """Where an entry stands; written `2-17`, sortable, opaque to clients."""

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Raises ValueError for anything but two plain decimal numbers joined by `-`."""
        match = _POSITION.fullmatch(text)
        if not match:
            raise ValueError(f"not a position: {text[:40]!r}")
        return cls(int(match[1]), int(match[2]))


HEADER = Position(0, 1)
BEGIN = Position(0, 2)
"""Just before the first attempt: reading after it gives all there is to see."""
SEAL = Position(2**53 - 1, 0)
"""The outcome's place: the largest epoch that JavaScript can hold exactly, so nothing can follow it."""


VERSION = 3
"""Of the log, in the header. A log of a higher one would be misread here."""
PIECES_SINCE = 2
"""The first version whose readers know pieces."""
BLOBS_SINCE = 3
"""The first one whose readers know blobs."""


SKIPPED = 1000
"""Attempts made on another server than the one that took the request have epochs from here on, seconds later ones higher.
What that server forgot may have had the numbers before, and no number must ever stand for two attempts."""


class Kind(StrEnum):
    """An entry's first field says what it is; the value is its data."""

    REQUEST = "r"
    BODY = "b"
    ATTEMPT = "a"
    CHUNK = "c"
    PIECE = "d"
    USAGE = "u"
    OUTCOME = "o"


NOTE = b"s"
"""A second field, of an attempt's first chunk only: JSON `{model, refused?, retries?, think?}`, who said it and how that
came about."""
AT = b"at"
"""Another one there: the worker's time when that chunk was said, in Unix ms. It starts the clock of paced viewers."""


class Chunk(NamedTuple):
    """One normalized `chat.completion.chunk`, serialized once by the worker and never parsed again on the way out.

    `payload` is compact JSON without line breaks. `is_usage` marks the chunk that carries nothing but usage: it is
    always the last one, and shown only to requests with `stream_options.include_usage`.
    """

    payload: bytes
    is_usage: bool = False
    blobs: bytes | None = None
    """What stands beside it where something was taken out of it, see blobs.py."""


class Entry(NamedTuple):
    """One entry: `data` is JSON, exactly as it was written; so is `note`. `note` and `at_ms` are a first chunk's.

    A chunk's data is its whole payload, however it is stored. Only where that cannot be told is it a PIECE (`decode`).
    """

    position: Position
    kind: Kind
    data: bytes
    note: bytes | None = None
    at_ms: int | None = None
    blobs: bytes | None = None
    """What was taken out of the data, see blobs.py; None: nothing, or it was put back."""


class Status(StrEnum):
    """What a log says about its generation; the last four are terminal."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"


def follows(previous: Position, following: Position) -> bool:
    """Whether nothing can be missing between two neighbours of one log."""
    if following.epoch == previous.epoch:
        return following.seq == previous.seq + 1
    return following.epoch > previous.epoch and following.seq == 0
