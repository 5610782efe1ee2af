"""An ended log as one object: its entries in order, compressed, with an index. PROTOCOL.md ("Archived logs") specifies it.

Hidden here: how the object is laid out, how what was read of it is checked, and what of such a log stays in Redis. A *block* is
some 64 KiB of entries, compressed together, and decodes without what stands before it. Its entries are written as Redis
answers an XRANGE, so a client's own parser reads them. The index has each block's digest, and what stays in Redis has the
index's: no byte of an object is shown that is not the one that was stored.

Pure: bytes in, bytes out. Where objects are kept, and for how long, is `shared.features.archive`.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

from shared.errors import Damaged
from shared.lib import json
from shared.log.blobs import BLOBS
from shared.log.decoding import ARCHIVED, Raw, by_name, decode
from shared.log.entry import AT, BEGIN, HEADER, NOTE, SEAL, Entry, Kind, Position
from shared.log.envelope import MARK, PIECE, WHOLE, Envelopes
from shared.store.commands import unpack

FOLDER = "logs"
_NAME = re.compile(r"logs/of-(?P<tenant>[A-Za-z0-9_.-]{1,64})/(?P<id>chatcmpl-[0-9a-f]{32})\.(?P<copy>[0-9a-f]{8})")
_BLOCK_BYTES = 64 * 1024
_LEVEL = 6
_MAGIC = b"SPLOG\x00\x00\x01"
_TRAILER_BYTES = 8 + len(_MAGIC)
_ELSEWHERE = json.dumps({"at": [], "rest": [1, "archived.00000000"]})
"""Beside the request's body: older versions look for it in the storage, and say that it is not there."""


class Name(NamedTuple):
    """What an object is called: whose log it is of, and which copy. No copy's name is used twice, so one that is being removed
    is never one that was just stored."""

    tenant: str
    generation_id: str
    copy: str

    def __str__(self) -> str:
        return f"{FOLDER}/of-{self.tenant}/{self.generation_id}.{self.copy}"

    @classmethod
    def parse(cls, text: str) -> Name | None:
        match = _NAME.fullmatch(text)
        return cls(match["tenant"], match["id"], match["copy"]) if match else None


class Pointer(NamedTuple):
    """What Redis has of an object, beside the outcome."""

    copy: str
    size: int
    index_at: int
    """Where its index begins, which ends before the trailer."""
    digest: str
    """SHA-256 of the index, in hexadecimal."""

    def to_bytes(self) -> bytes:
        return json.dumps({"copy": self.copy, "size": self.size, "index": [self.index_at, self.digest]})

    @classmethod
    def parse(cls, text: bytes) -> Pointer:
        found = json.loads(text)
        return cls(found["copy"], found["size"], *found["index"])

    @property
    def index_end(self) -> int:
        return self.size - _TRAILER_BYTES


class Block(NamedTuple):
    """Some entries: where they stand in the object, and the SHA-256 of these bytes."""

    first: Position
    start: int
    size: int
    entries: int
    digest: str

    def decode(self, data: bytes | memoryview) -> list[Entry]:
        """Its entries, chunks whole. Raises Damaged where the bytes are not those that were stored."""
        if len(data) != self.size or hashlib.sha256(data).hexdigest() != self.digest:
            raise Damaged(f"the block from {self.first} on is not what was stored")
        before = Position(self.first.epoch, self.first.seq - 1) if self.first.seq else BEGIN
        return decode(unpack(zlib.decompress(data)), before, Envelopes())


class Index:
    """The blocks of one object, in order."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks

    def to_bytes(self, generation_id: str) -> bytes:
        rows = [[str(one.first), *one[1:]] for one in self.blocks]
        return json.dumps({"v": 1, "id": generation_id, "blocks": rows})

    @classmethod
    def parse(cls, text: bytes, pointer: Pointer, generation_id: str) -> Index:
        """Raises Damaged where it is not the one that was stored."""
        if hashlib.sha256(text).hexdigest() != pointer.digest:
            raise Damaged(f"the index of {generation_id} is not what was stored")
        found = json.loads(text)
        return cls([Block(Position.parse(first), *row) for first, *row in found["blocks"]])

    def place(self, after: Position) -> int:
        """The number of the block in which the entry after this position is, or of that before it. 0 is the request's."""
        if after == BEGIN:
            return 1
        return max(0, bisect_right(self.blocks, after, key=lambda block: block.first) - 1)


class Whole(NamedTuple):
    """An object that is to be stored, and what is to stay of the log in Redis: `kept` are entries, their fields in a row.

    `entries` and `seal` tell whether the log is still the one that was read.
    """

    data: bytes
    kept: list[tuple[bytes, list[bytes]]]
    entries: int
    seal: bytes
    """The outcome as it stands there."""


class ArchiveWriter:
    """Makes an object of a log that is read page by page."""

    def __init__(self, generation_id: str) -> None:
        self._id = generation_id
        self._after, self._shapes = Position(0, 0), Envelopes()
        self._done: list[bytes] = []
        self._blocks: list[Block] = []
        self._open: list[bytes] = []
        """The entries of the block that is being filled, as they will stand there."""
        self._first = HEADER
        self._is_shaped = False
        """Whether a piece can follow in this block: a chunk in it has brought the envelope."""
        self._size = self._start = 0
        self._kept: list[tuple[bytes, list[bytes]]] = []
        self._entries = 0
        self.bytes = 0
        """Of all fields so far: about what Redis has of them."""
        self.position = Position(0, 0)
        """The last entry so far; SEAL where the log has ended."""
        self.tenant = ""

    def feed(self, raw: Raw) -> None:
        """Takes the next entries. Raises Damaged where one is missing, Archived where the log is one already."""
        for (entry_id, told), entry in zip(raw, decode(raw, self._after, self._shapes), strict=True):
            fields = list(chain(*by_name(told).items()))
            if entry.position == HEADER:
                self.tenant = json.loads(entry.data)["owner"]
            self._keep(entry_id, fields, entry)
            if entry.position > BEGIN and (self._size >= _BLOCK_BYTES or self._first == HEADER):
                self._close()
            if not self._open:
                self._first, self._is_shaped = entry.position, False
            if fields[0] == PIECE and not self._is_shaped:
                fields = self._whole(entry)
            self._is_shaped = self._is_shaped or (entry.kind is Kind.CHUNK and MARK in fields[2::2])
            packed = _packed(entry_id, fields)
            self._open.append(packed)
            self._size += len(packed)
            self.bytes += sum(map(len, fields))
            self._after = self.position = entry.position
            self._entries += 1

    def finish(self, copy: str) -> Whole:
        """The object, and what stays. The log must have ended."""
        assert self.position == SEAL
        self._close()
        index = Index(self._blocks).to_bytes(self._id)
        data = b"".join((*self._done, index, self._start.to_bytes(8, "big"), _MAGIC))
        pointer = Pointer(copy, len(data), self._start, hashlib.sha256(index).hexdigest())
        *kept, (seal, fields) = self._kept
        return Whole(data, [*kept, (seal, [*fields[:2], ARCHIVED, pointer.to_bytes()])], self._entries, fields[1])

    def _whole(self, entry: Entry) -> list[bytes]:
        """A piece as the chunk that it is, with the mark that is in force after it."""
        shape = self._shapes.at(entry.position)
        assert shape is not None
        return [WHOLE, entry.data, MARK, b"%d-%d" % (len(shape.prefix), len(shape.suffix))]

    def _close(self) -> None:
        if not self._open:
            return
        data = zlib.compress(b"*%d\r\n" % len(self._open) + b"".join(self._open), _LEVEL)
        self._blocks.append(
            Block(self._first, self._start, len(data), len(self._open), hashlib.sha256(data).hexdigest())
        )
        self._done.append(data)
        self._start += len(data)
        self._open, self._size = [], 0

    def _keep(self, entry_id: bytes, fields: list[bytes], entry: Entry) -> None:
        """Takes note of what stays: what tells of an attempt, and where the last one got to."""
        epoch, seq = entry.position
        if entry.position == BEGIN:
            fields = [b"b", b"", ARCHIVED, b"", BLOBS, _ELSEWHERE]
        elif epoch and seq:  # a chunk: its text goes, its place and what stands beside the first one stay
            beside = by_name(fields)
            fields = [PIECE, b"", ARCHIVED, b"", *chain(*((one, beside[one]) for one in (AT, NOTE) if one in beside))]
            last = self._after
            if last.seq > 1 and last.epoch == epoch:
                self._kept.pop()
        else:
            fields = fields[:2]
        self._kept.append((entry_id, fields))


def _packed(entry_id: bytes, fields: Sequence[bytes]) -> bytes:
    """An entry as Redis tells it in answer to XRANGE."""
    head = b"*2\r\n$%d\r\n%b\r\n*%d\r\n" % (len(entry_id), entry_id, len(fields))
    return head + b"".join([b"$%d\r\n%b\r\n" % (len(field), field) for field in fields])


def pointer_in(raw: Any) -> Pointer | None:
    """Where a log is, by what Redis tells of its outcome's entry; None where all of it is in Redis, or none."""
    if not raw or raw[0][0] != b"%d-%d" % SEAL:
        return None
    text = by_name(raw[0][1]).get(ARCHIVED)
    return None if text is None else Pointer.parse(text)
