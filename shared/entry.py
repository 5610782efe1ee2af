"""What stands in a log: positions, entries and what they add up to. PROTOCOL.md is the specification.

Hidden here: how Redis spells all of it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from shared import json
from shared.errors import Damaged
from shared.shape import MARK, Shapes, mark

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


VERSION = 2
"""Of the log, in the header. A log of a higher one would be misread here."""
PIECES_SINCE = 2
"""The first version whose readers know pieces."""


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


_KINDS = {kind.value.encode(): kind for kind in Kind}

NOTE = b"s"
"""A second field, of an attempt's first chunk only: JSON `{model, refused?, retries?, think?}`, who said it and how that
came about."""
AT = b"at"
"""Another one there: the worker's time when that chunk was said, in Unix ms. It starts the clock of paced viewers."""


class Entry(NamedTuple):
    """One entry: `data` is JSON, exactly as it was written; so is `note`. `note` and `at_ms` are a first chunk's.

    A chunk's data is its whole payload, however it is stored. Only where that cannot be told is it a PIECE (`decode`).
    """

    position: Position
    kind: Kind
    data: bytes
    note: bytes | None = None
    at_ms: int | None = None


class Status(StrEnum):
    """What a log says about its generation; the last four are terminal."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Summary:
    """What three small reads tell about a log; everything else is a fold over its entries.

    `attempts` and `outcome` are the JSON of those entries, `()` and None where there are none yet; an attempt that has
    begun to speak has its note as `served`. The header has the metadata that hold now. `position` is the last entry
    before the outcome.
    """

    header: dict[str, Any]
    attempts: tuple[dict[str, Any], ...]
    position: Position
    outcome: dict[str, Any] | None

    @property
    def status(self) -> Status:
        if self.outcome is not None:
            return Status(self.outcome["status"])
        return Status.IN_PROGRESS if self.position.epoch else Status.QUEUED


Fields = Mapping[bytes, bytes] | Sequence[bytes]
Raw = Sequence[tuple[bytes, Fields]]
"""Entries as Redis tells them, ids with their fields: as redis-py makes them, or in a row as they came."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def follows(previous: Position, following: Position) -> bool:
    """Whether nothing can be missing between two neighbours of one log."""
    if following.epoch == previous.epoch:
        return following.seq == previous.seq + 1
    return following.epoch > previous.epoch and following.seq == 0


def decode(
    raw: Raw, after: Position | None = None, shapes: Shapes | None = None, *, strict: bool = True
) -> list[Entry]:
    """Decodes a reply. With `after`, the position before it, raises Damaged where an entry that must exist is missing.

    `shapes` are those of the log up to `after`; without it the reply begins where a log or an attempt does. They make
    chunks of pieces, and take up what the reply brings. Without them pieces stay pieces, for callers who only look at
    positions and outcomes. If not `strict`, nothing is raised, and a piece whose shape is missing stays one.
    What Damaged brings along are the entries before the one that is missing.
    """
    entries: list[Entry] = []
    resolve, chunk, kinds, new = shapes is not None, Kind.CHUNK, _KINDS, tuple.__new__
    shape = shapes.at(after) if shapes is not None and after is not None else None
    for entry_id, fields in raw:
        if after is not None and entry_id == b"%d-%d" % (
            after[0],
            after[1] + 1,
        ):  # as almost always: quicker than to read it
            position = new(Position, (after[0], after[1] + 1))
        else:
            epoch, _, seq = entry_id.partition(b"-")
            position = Position(int(epoch), int(seq))
            if after is not None and not follows(after, position):
                if strict:
                    raise Damaged(f"{position} comes after {after}", entries)
                shape = None
                if shapes is not None and position.seq:
                    shapes.put(Position(position.epoch, position.seq - 1), None)
        if after is not None:
            after = position
        brought = note = at = None
        if type(fields) is list and len(fields) == 2:
            name, data = fields
        else:
            named = by_name(fields)
            name, data = next(iter(named.items()))
            note, brought, at = named.get(NOTE), named.get(MARK), named.get(AT)
        kind = kinds[name]
        if resolve:
            if name == b"d":
                if shape is not None:
                    kind, data = chunk, shape[0] + data + shape[1]
                elif strict:
                    raise Damaged(f"{position} is a piece of what is missing", entries)
            elif name == b"a":
                shape = None
            if brought is not None and kind is chunk:
                shape = mark(data, brought)
                shapes.put(position, shape)  # type: ignore[union-attr]
        entries.append(new(Entry, (position, kind, data, note, None if at is None else int(at))))
    return entries


def by_name(fields: Fields) -> Mapping[bytes, bytes]:
    """An entry's fields, however they are told."""
    return fields if isinstance(fields, Mapping) else dict(zip(fields[::2], fields[1::2], strict=True))


def summarize(header: Raw, first: Raw, last: Raw, metadata: bytes | None) -> Summary | None:
    """A log's summary from its first entry, the two after its body, its last two in reverse; None without a log.

    `metadata` are those that replaced the request's, if any did.
    """
    if not header or not last:
        return None
    request = json.loads(decode(header)[0].data)
    if metadata is not None:
        request["metadata"] = json.loads(metadata)
    newest = decode(last)
    outcome = json.loads(newest[0].data) if newest[0].position == SEAL else None
    begun = decode(first)
    attempts = (attempt(begun),) if begun and begun[0].kind is Kind.ATTEMPT else ()
    at = newest[1].position if outcome is not None and len(newest) > 1 else newest[0].position
    return Summary(header=request, attempts=attempts, position=BEGIN if at == SEAL else at, outcome=outcome)


def attempt(entries: Sequence[Entry]) -> dict[str, Any]:
    """An attempt's entry, with the note of its first chunk, if that follows, as `served`."""
    found: dict[str, Any] = json.loads(entries[0].data)
    served = entries[1].note if len(entries) > 1 else None
    return {**found, "served": json.loads(served)} if served else found
