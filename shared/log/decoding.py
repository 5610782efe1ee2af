"""From what Redis tells of a log to entries, and to the summary of a log. PROTOCOL.md is the specification.

Hidden here: how Redis spells fields, how the chunks of pieces are put together again, and how a missing entry shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from shared.errors import Damaged, LogError
from shared.lib import json
from shared.log.archive.kept import USUAL_REASON, whole_header
from shared.log.blobs import BLOBS, Stored
from shared.log.entry import AT, BEGIN, HEADER, NOTE, SEAL, Entry, Kind, Position, follows
from shared.log.envelope import MARK, Envelope, Envelopes, mark
from shared.log.records import Attempt, Outcome, Summary

_new = tuple.__new__
_NOTHING = (None, None, None)
_KINDS = {kind.value.encode(): kind for kind in Kind}

_REQUEST, _BODY = Kind.REQUEST.value.encode(), Kind.BODY.value.encode()
_FIRST_TWO = str(HEADER).encode(), str(BEGIN).encode()

HIDDEN = b"false"
"""In the place of metadata: the log was deleted by its owner, and is kept for those that go on from it, who alone read it."""

ARCHIVED = b"x"
"""A field of entries that stand for what is in an archived log's object (archive/form.py): empty, but beside the outcome,
where it says which object that is."""

Fields = Mapping[bytes, bytes] | Sequence[bytes]
Raw = Sequence[tuple[bytes, Fields]]
"""Entries as Redis tells them, ids with their fields: as redis-py makes them, or in a row as they came."""


class Archived(LogError):
    """What was read is not in Redis any more, but in the log's object."""


def begun(raw: Raw) -> tuple[Any, Stored] | None:
    """What a log begins with, its header and the request, where that is told as nearly always; None: it is to be decoded."""
    if len(raw) != 2:
        return None
    (first, header), (second, body) = raw
    if (first, second) != _FIRST_TWO or not (header.__class__ is body.__class__ is list):
        return None
    if len(body) != 2 or header[0] != _REQUEST or body[0] != _BODY:
        return None
    return json.loads(header[1]), Stored(body[1])


def decode(
    raw: Raw, after: Position | None = None, shapes: Envelopes | None = None, *, strict: bool = True
) -> list[Entry]:
    """Decodes a reply. With `after`, the position before it, raises Damaged where an entry that must exist is missing.

    `shapes` are those of the log up to `after`; without it the reply begins where a log or an attempt does. They make
    chunks of pieces, and take up what the reply brings. Without them pieces stay pieces, for callers who only look at
    positions and outcomes. If not `strict`, nothing is raised, and a piece whose shape is missing stays one. What Damaged
    brings are the entries before. With either, raises Archived where the reply lacks what is in an object.
    """
    resolve, chunk, kinds, new = shapes is not None, Kind.CHUNK, _KINDS, tuple.__new__
    shape = shapes.at(after) if shapes is not None and after is not None else None
    if entries := _pieces(raw, after, shape):
        return entries
    for entry_id, fields in raw:
        if after is not None and entry_id == b"%d-%d" % (after[0], after[1] + 1):  # quicker than to read it
            position = new(Position, (after[0], after[1] + 1))
        else:
            epoch, _, seq = entry_id.partition(b"-")
            position = Position(int(epoch), int(seq))
            if after is not None and not follows(after, position):
                _refuse_gap(f"{position} comes after {after}", fields, entries, strict=strict)
                shape = None
                if shapes is not None and position.seq:
                    shapes.put(Position(position.epoch, position.seq - 1), None)
        if after is not None:
            after = position
        brought = note = at = blobs = None
        if type(fields) is list and len(fields) == 2:
            name, data = fields
        else:
            named = by_name(fields)
            name, data = next(iter(named.items()))
            note, brought, at, blobs = map(named.get, (NOTE, MARK, AT, BLOBS))
            if resolve and ARCHIVED in named and not (name == b"o" and named[ARCHIVED].startswith(b"{")):
                raise Archived  # but for the outcome of the first version, which is whole
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
        entries.append(new(Entry, (position, kind, data, note, None if at is None else int(at), blobs)))
    return entries


def _pieces(raw: Raw, after: Position | None, shape: Envelope | None) -> list[Entry]:
    """Almost every reply: nothing but the next pieces of one shape. Nothing, if it has something else, too."""
    if after is None or shape is None or not raw or raw[0][1].__class__ is not list:
        return []
    epoch, seq = after
    if len(raw) == 1:
        told: Any = raw
        ((entry_id, fields),) = told
        if entry_id != b"%d-%d" % (epoch, seq + 1) or len(fields) != 2 or fields[0] != b"d":
            return []
        return [_new(Entry, (_new(Position, (epoch, seq + 1)), Kind.CHUNK, shape[0] + fields[1] + shape[1], *_NOTHING))]
    (prefix, suffix), new, chunk = shape, _new, Kind.CHUNK
    return [
        new(Entry, (new(Position, (epoch, number)), chunk, prefix + piece + suffix, *_NOTHING))
        for number, piece in enumerate(next_pieces(raw, after), seq + 1)
    ]


def next_pieces(raw: Raw, after: Position) -> list[bytes]:
    """What pieces say, of a reply that is nothing but the next ones after a position; nothing, if there is something else."""
    told: Any = raw
    (epoch, seq), count = after, len(raw)
    if told[-1][0] != b"%d-%d" % (epoch, seq + count) or told[0][0] != b"%d-%d" % (epoch, seq + 1):
        return []  # where the first and the last have their numbers, so has each between them, since ids grow
    if told[0][1].__class__ is not list:
        return []
    words: list[bytes] = [*chain.from_iterable([fields for _, fields in told])]  # each has two, at least
    return words[1::2] if len(words) == 2 * count and words[::2].count(b"d") == count else []


def _refuse_gap(what: str, fields: Fields, before: list[Entry], *, strict: bool) -> None:
    """Raises Archived where the entry behind the gap says so, else Damaged if `strict`."""
    if ARCHIVED in by_name(fields):
        raise Archived
    if strict:
        raise Damaged(what, before)


def by_name(fields: Fields) -> Mapping[bytes, bytes]:
    """An entry's fields, however they are told."""
    if fields.__class__ is list or not isinstance(fields, Mapping):  # to look at a list with isinstance is two calls
        return dict(zip(fields[::2], fields[1::2], strict=True))
    return fields


def summarize(header: Raw, first: Raw, last: Raw, metadata: bytes | None) -> Summary | None:
    """A log's summary from its first entry, the two after its body, its last two in reverse; None without a log, and of one
    that was deleted.

    `metadata` are those that replaced the request's, if any did.
    """
    if not header or not last or metadata == HIDDEN:
        return None
    request = json.loads(decode(header)[0].data)
    if metadata is not None:
        request["metadata"] = json.loads(metadata)
    newest = decode(last)
    outcome = json.loads(newest[0].data) if newest[0].position == SEAL else None
    archived = by_name(last[0][1]).get(ARCHIVED) if outcome is not None else None
    if archived is not None:
        request = whole_header(request)
    begun = decode(first)
    attempts = (attempt(begun, outcome),) if begun and begun[0].kind is Kind.ATTEMPT else ()
    at = newest[1].position if outcome is not None and len(newest) > 1 else newest[0].position
    return Summary(request, attempts, BEGIN if at == SEAL else at, outcome, archived)


def attempt(entries: Sequence[Entry], outcome: Outcome | None = None) -> Attempt:
    """An attempt's entry, with what stands beside its first chunk, if that follows: `served` and `spoke_at_ms`. Where a later
    one follows, the first is in an object, and what stood beside it is what the outcome says."""
    found: Attempt = json.loads(entries[0].data)
    found.setdefault("reason", USUAL_REASON)
    if len(entries) > 1 and entries[1].position.seq > 1 and outcome is not None:
        if "served" in outcome:
            found["served"] = outcome["served"]
        if "spoke_at_ms" in outcome:
            found["spoke_at_ms"] = outcome["spoke_at_ms"]
    elif len(entries) > 1:
        if note := entries[1].note:
            found["served"] = json.loads(note)
        if entries[1].at_ms is not None:
            found["spoke_at_ms"] = entries[1].at_ms
    return found
