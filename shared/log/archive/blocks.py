"""A block of an archived log: some of its entries, side by side and compressed. PROTOCOL.md ("Archived logs") specifies it.

Hidden here: that chunks which have an envelope in common stand there as a *run*, the envelope once and then the pieces, one on
each line. So the events of a thousand chunks are made at once, and nobody looks at each of them. What is no such chunk (a
request, an attempt, what has fields beside its data) stands as Redis answers an XRANGE.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import chain
from typing import Any

from shared.lib import sse
from shared.log.blobs import BLOBS
from shared.log.bulk.runs import Part, Run
from shared.log.decoding import by_name, decode
from shared.log.entry import AT, BEGIN, NOTE, Entry, Kind, Position
from shared.log.envelope import WHOLE, Envelope, Envelopes
from shared.store.commands import pack, unpack

_LEVEL = 6
_NONE = Envelope(b"", b"")


class BlockWriter:
    """Takes the entries of a block, in order."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._packed: list[bytes] = []
        """Entries that are no part yet."""
        self._run: tuple[Position, Envelope, list[bytes]] | None = None
        """A run that is no part yet."""
        self.first: Position | None = None
        self.entries = self.size = 0
        """How many, and about the bytes of their data as it goes to viewers."""

    def add(self, entry_id: bytes, fields: list[bytes], entry: Entry, envelope: Envelope | None) -> None:
        """`fields` are the entry's in a row, as they are in Redis; `envelope` is in force behind it."""
        self.first = self.first or entry.position
        self.entries += 1
        self.size += len(entry.data)
        if entry.kind is Kind.CHUNK and entry[3:] == (None, None, None) and sse.is_one_line(entry.data):
            self._add_chunk(entry.position, entry.data, envelope or _NONE)
            return
        self._end_run()
        if entry.kind is Kind.CHUNK:  # whole, and without a mark: those that follow have an envelope of their own
            beside = by_name(fields)
            fields = [WHOLE, entry.data, *chain(*((name, beside[name]) for name in (AT, NOTE) if name in beside))]
            if entry.blobs is not None:
                fields += [BLOBS, entry.blobs]
        self._packed.append(_array([_bulk(entry_id), pack(*fields)]))

    def _add_chunk(self, position: Position, data: bytes, envelope: Envelope) -> None:
        begin, end = envelope
        if not (len(data) >= len(begin) + len(end) and data.startswith(begin) and data.endswith(end)):
            envelope = begin, end = _NONE
        if self._run is not None and (self._run[1] != envelope or self._run[0].epoch != position.epoch):
            self._end_run()
        if self._run is None:
            self._end_entries()
            self._run = position, envelope, []
        self._run[2].append(data[len(begin) : len(data) - len(end)])

    def _end_run(self) -> None:
        if self._run is not None:
            first, (begin, end), pieces = self._run
            self._parts.append(pack(b"%d-%d" % first, begin, end, b"\n".join(pieces)))
            self._run = None

    def _end_entries(self) -> None:
        if self._packed:
            self._parts.append(_array(self._packed))
            self._packed = []

    def finish(self) -> bytes:
        """The block. There is at least one entry in it."""
        self._end_run()
        self._end_entries()
        return zlib.compress(_array(self._parts), _LEVEL)


def _array(parts: Sequence[bytes]) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(parts)


def _bulk(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


def parts_of(data: bytes | memoryview, version: int, first: Position) -> list[Part]:
    """What a block was made of. `version` is that of the index: in the first, all of it is entries, pieces among them."""
    found: list[Any] = unpack(zlib.decompress(data))
    before = Position(first.epoch, first.seq - 1) if first.seq else BEGIN
    if version == 1:
        return [decode(found, before, Envelopes())]
    made: list[Part] = []
    for one in found:
        if type(one[0]) is bytes:
            position, begin, end, pieces = one
            run = Run(_position(position), Envelope(begin, end), pieces.split(b"\n"))
            made.append(run)
            before = run.last
        else:
            some = decode(one, before, Envelopes())
            made.append(some)
            before = some[-1].position
    return made


def _position(entry_id: bytes) -> Position:
    epoch, _, seq = entry_id.partition(b"-")
    return Position(int(epoch), int(seq))
