"""An ended log as one object: its entries in order, compressed, with an index. PROTOCOL.md ("Archived logs") specifies it.

Hidden here: how the object is laid out, how what was read of it is checked, and what of such a log stays in Redis. A *block*
(blocks.py) is about 256 KiB of entries, compressed together, and decodes without what stands before it. The index has each
block's digest, and what stays in Redis has the index's: no byte of an object is shown that is not the one that was stored.

Pure: bytes in, bytes out. Where objects are kept, and for how long, is `shared.features.archive`.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_right
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

from shared.errors import Damaged
from shared.lib import json
from shared.log.archive.blocks import BlockWriter, parts_of
from shared.log.archive.kept import short_attempt, short_header, short_outcome
from shared.log.blobs import BLOBS
from shared.log.bulk.runs import Part, entries_of
from shared.log.decoding import ARCHIVED, Raw, by_name, decode
from shared.log.entry import AT, BEGIN, HEADER, NOTE, SEAL, Entry, Position
from shared.log.envelope import PIECE, Envelopes
from shared.log.records import Outcome

FOLDER = "logs"
_NAME = re.compile(r"logs/of-(?P<tenant>[A-Za-z0-9_.-]{1,64})/(?P<id>chatcmpl-[0-9a-f]{32})\.(?P<copy>[0-9a-f]{8})")
_BLOCK_BYTES = 256 * 1024
VERSION = 2
_MAGIC = b"SPLOG\x00\x00\x01"
_TRAILER_BYTES = 8 + len(_MAGIC)
_ELSEWHERE = json.dumps({"at": [], "rest": [1, "-.0"]})
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
    """The first 16 bytes of the SHA-256 of the index, in hexadecimal; all of them in pointers of the first version."""

    def to_bytes(self) -> bytes:
        digest = urlsafe_b64encode(bytes.fromhex(self.digest)).rstrip(b"=")
        return b"%b %d %d %b" % (self.copy.encode(), self.size, self.index_at, digest)

    @classmethod
    def parse(cls, text: bytes) -> Pointer:
        if text.startswith(b"{"):  # as it was written at first
            found = json.loads(text)
            return cls(found["copy"], found["size"], *found["index"])
        copy, size, index_at, digest = text.split(b" ")
        return cls(copy.decode(), int(size), int(index_at), urlsafe_b64decode(digest + b"==").hex())

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
    version: int = VERSION

    def parts(self, data: bytes | memoryview) -> list[Part]:
        """What stands there. Raises Damaged where the bytes are not those that were stored."""
        if len(data) != self.size or hashlib.sha256(data).hexdigest() != self.digest:
            raise Damaged(f"the block from {self.first} on is not what was stored")
        return parts_of(data, self.version, self.first)

    def decode(self, data: bytes | memoryview) -> list[Entry]:
        """Its entries, chunks whole. Raises Damaged as `parts`."""
        return entries_of(self.parts(data))


class Index:
    """The blocks of one object, in order."""

    def __init__(self, blocks: Sequence[Block], *, blobs: bool) -> None:
        """`blobs`: chunks lack what stands in blobs."""
        self.blocks, self.blobs = blocks, blobs

    def to_bytes(self, generation_id: str) -> bytes:
        rows = [[str(one.first), *one[1:5]] for one in self.blocks]
        return json.dumps({"v": VERSION, "id": generation_id, "blobs": self.blobs, "blocks": rows})

    @classmethod
    def parse(cls, text: bytes, pointer: Pointer, generation_id: str) -> Index:
        """Raises Damaged where it is not the one that was stored."""
        if not pointer.digest or not hashlib.sha256(text).hexdigest().startswith(pointer.digest):
            raise Damaged(f"the index of {generation_id} is not what was stored")
        found = json.loads(text)
        version = found["v"]
        blocks = [Block(Position.parse(first), *row)._replace(version=version) for first, *row in found["blocks"]]
        return cls(blocks, blobs=found.get("blobs", True))

    def place(self, after: Position) -> int:
        """The number of the block in which the entry after this position is, or of that before it. 0 is the request's."""
        if after == BEGIN:
            return 1
        return max(0, bisect_right(self.blocks, after, key=lambda block: block.first) - 1)


Kept = tuple[bytes, list[bytes]]
"""An entry that stays in Redis: its id, and its fields in a row."""


class Whole(NamedTuple):
    """An object that is to be stored, and what is to stay of the log in Redis.

    `entries` and `seal` tell whether the log is still the one that was read.
    """

    data: bytes
    kept: list[Kept]
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
        self._open = BlockWriter()
        self._start = 0
        self._has_blobs = False
        self._kept: list[Kept] = []
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
            if entry.position > BEGIN and (self._open.size >= _BLOCK_BYTES or self._open.first == HEADER):
                self._close()
            self._open.add(entry_id, fields, entry, self._shapes.at(entry.position))
            self._has_blobs = self._has_blobs or (entry.blobs is not None and entry.position > BEGIN)
            self.bytes += sum(map(len, fields))
            self._after = self.position = entry.position
            self._entries += 1

    def finish(self, copy: str) -> Whole:
        """The object, and what stays. The log must have ended."""
        assert self.position == SEAL
        self._close()
        index = Index(self._blocks, blobs=self._has_blobs).to_bytes(self._id)
        data = b"".join((*self._done, index, self._start.to_bytes(8, "big"), _MAGIC))
        pointer = Pointer(copy, len(data), self._start, hashlib.sha256(index).hexdigest()[:32])
        *kept, (seal, fields) = self._kept
        kept = _without_doubles(kept, json.loads(fields[1]))
        end = [fields[0], short_outcome(fields[1]), ARCHIVED, pointer.to_bytes()]
        return Whole(data, [*kept, (seal, end)], self._entries, fields[1])

    def _close(self) -> None:
        first, count = self._open.first, self._open.entries
        if first is None:
            return
        data = self._open.finish()
        self._blocks.append(Block(first, self._start, len(data), count, hashlib.sha256(data).hexdigest()))
        self._done.append(data)
        self._start += len(data)
        self._open = BlockWriter()

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
        elif entry.position == HEADER:
            fields = [fields[0], short_header(fields[1])]
        else:
            fields = fields[:2]
        self._kept.append((entry_id, fields))


def _without_doubles(kept: list[Kept], outcome: Outcome) -> list[Kept]:
    """What stays, but for what the outcome says as well: who spoke in the only attempt, and when."""
    attempts = [at for at, (_, fields) in enumerate(kept) if fields[0] == b"a"]
    if len(attempts) != 1 or len(kept) == attempts[0] + 1:
        return kept
    name, (kind, data) = kept[attempts[0]]
    kept[attempts[0]] = name, [kind, short_attempt(data, int(name.partition(b"-")[0])), ARCHIVED, b""]
    if len(kept) == attempts[0] + 3:  # its first chunk, and another as its last
        beside = by_name(kept[-2][1])
        note, said_ms = beside.get(NOTE), beside.get(AT)
        told = {} if note is None else {"served": json.loads(note)}
        told |= {} if said_ms is None else {"spoke_at_ms": int(said_ms)}
        if told == {name: outcome[name] for name in ("served", "spoke_at_ms") if name in outcome}:
            del kept[-2]
    return kept


def pointer_in(raw: Any) -> Pointer | None:
    """Where a log is, by what Redis tells of its outcome's entry; None where all of it is in Redis, or none."""
    if not raw or raw[0][0] != b"%d-%d" % SEAL:
        return None
    text = by_name(raw[0][1]).get(ARCHIVED)
    return None if text is None else Pointer.parse(text)
