"""What of an entry's data stands in the file storage, and what of it stays. PROTOCOL.md ("Blobs") is the specification.

Hidden here: which bytes are taken out of a large payload (pictures, sounds and files in base64, and all of it where what is
left is still large), how an entry names them, and the *marks* that stand for them while a process works with the rest: a
request of 50 MB is a few hundred bytes of JSON with a mark in it, which may be parsed, translated and written again, and
filled in on its way out. A mark begins with a word that a process makes up for itself and shows to no one, so that no text
can be taken for one; it is valid base64, as what it stands for.

Pure: bytes in, bytes out. What is stored, and for how long, is `shared.features.blobs`.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from shared.lib import json

BLOBS = b"p"
"""A further field of an entry: JSON `{"at": [[OFFSET, SIZE, NAME], …], "rest": [SIZE, NAME] or null}`."""

INLINE_BYTES = 256 * 1024
"""A payload up to this size stays as it is."""
_LEAST_BYTES = 16 * 1024
_MOST = 256
"""So many are taken out of one payload, the largest: each is a request to the storage, and some 90 bytes in its entry."""
_REST_BYTES = 32 * 1024
"""What may be left in the entry."""
_STEP_BYTES = 128 * 1024
"""What is looked at in one go, which takes some 100 µs. It holds up all other threads, the event loop's among them: after each
step they are let run, or a loop that wakes up would wait for the interpreter's switch interval (5 ms) each time."""
_SEARCHED_BYTES = 1024 * 1024
"""The same of a search, which is ten times as fast."""

_DATA_URL = re.compile(rb'data:(?!text/)[^,"\\]{0,200};base64,', re.IGNORECASE)
"""Not those of texts, which a format may have to read."""
_FIELD = re.compile(rb'"(?:data|file_data)"[ \t\r\n]{0,16}:[ \t\r\n]{0,16}"\Z')
"""Where OpenAI's parts hold base64 that is no URL: `input_audio.data`, `file.file_data`."""
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_"
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_BACKSLASH = ord("\\")
_BACKSLASHES = re.compile(rb"\\*")
NO_COPY = "0" * 8
"""In a mark: of what is not stored yet."""


class Name(NamedTuple):
    """What a blob is called among its tenant's: its SHA-256, and which copy it is. No copy's name is used twice, so one
    that is being removed is never one that another process has just stored."""

    digest: str
    copy: str

    def __str__(self) -> str:
        return f"{self.digest}.{self.copy}"

    @classmethod
    def parse(cls, text: str) -> Name:
        digest, _, copy = text.partition(".")
        return cls(digest, copy)


def new_copy() -> str:
    return secrets.token_hex(4)


class Hole(NamedTuple):
    """Bytes that are taken out. `content` is what they are, None where they are stored already."""

    offset: int
    """In what is left."""
    size: int
    name: Name
    content: memoryview | None


class Stored(NamedTuple):
    """An entry's data, and what stands beside it in the field `BLOBS`; None where nothing was taken out."""

    data: bytes
    blobs: bytes | None = None


class Filler(Protocol):
    """Puts back what was taken out of a tenant's data."""

    async def marked(self, tenant: str, stored: Stored) -> bytes:
        """With marks where blobs belong. Raises FileStorageFailed, RequestLost."""

    async def whole(self, tenant: str, stored: Stored) -> bytes:
        """As it was. Raises FileStorageFailed, RequestLost."""


@dataclass(slots=True)
class Cut:
    """A payload apart. `text` is the JSON with marks, which says what it says without what is large."""

    text: bytes
    data: bytes
    """What is left of it, without marks."""
    holes: list[Hole] = field(default_factory=list)
    rest: Hole | None = None
    """`data`, where that is large itself."""

    @property
    def blobs(self) -> list[Hole]:
        return [*self.holes, self.rest] if self.rest else self.holes

    @property
    def essence(self) -> bytes:
        """The payload itself, or what of a large one is the same for the same bytes only."""
        if not (self.holes or self.rest):
            return self.data
        found = [[hole.offset, hole.name.digest] for hole in self.blobs]
        return json.dumps(found) + (b"" if self.rest else self.data)

    def stored(self, copies: dict[str, str]) -> Stored:
        """What stands in the entry, by the copies that the digests are stored as."""

        def name(hole: Hole) -> str:
            return str(hole.name if hole.content is None else Name(hole.name.digest, copies[hole.name.digest]))

        if not self.blobs:
            return Stored(self.data)
        at = [[hole.offset, hole.size, name(hole)] for hole in self.holes]
        rest = [self.rest.size, name(self.rest)] if self.rest else None
        return Stored(b"" if self.rest else self.data, json.dumps({"at": at, "rest": rest}))

    def digest(self, text: bytes, marks: Marks) -> str:
        """SHA-256, in hexadecimal, of a text that has marks of this cut, with what they stand for in their places."""
        content = {hole.name.digest: hole.content for hole in self.holes}
        found = hashlib.sha256()
        for piece in marks.split(text):
            if isinstance(piece, Mark):
                part = content[piece.name.digest]
                found.update(piece.name.digest.encode() if part is None else part)
            else:
                found.update(piece)
        return found.hexdigest()


class Mark(NamedTuple):
    """What a mark says."""

    name: Name
    size: int


class Marks:
    """The marks of one process: how they are written and found."""

    def __init__(self) -> None:
        self._word = secrets.token_hex(16).encode()
        self._pattern = re.compile(self._word + rb"([0-9a-f]{8})([0-9a-f]{64})([0-9]{12})")

    def write(self, name: Name, size: int) -> bytes:
        return b"%b%b%b%012d" % (self._word, name.copy.encode(), name.digest.encode(), size)

    def are_in(self, text: bytes | bytearray) -> bool:
        return self._word in text

    def split(self, text: bytes) -> Iterator[bytes | Mark]:
        """The text between marks, and the marks, in their order."""
        end = 0
        for match in self._pattern.finditer(text):
            yield text[end : match.start()]
            yield Mark(Name(match[2].decode(), match[1].decode()), int(match[3]))
            end = match.end()
        yield text[end:]

    def cut(self, payload: bytes | bytearray, of: Cut | None = None) -> Cut:
        """Takes out what is large. Of one with marks, those as well: they stand for what is stored already, or for what was
        taken out of another payload, `of`, from whose text this one was made.

        It may take a second; not for an event loop.
        """
        marked = _find(payload, self._word) >= 0
        if len(payload) <= INLINE_BYTES and not marked:
            return Cut(bytes(payload), bytes(payload))
        holes: list[Hole] = []
        if marked:
            payload, holes = self._unmarked(bytes(payload), of)
        if len(payload) > INLINE_BYTES:
            payload = _plain(payload)
            payload, holes = _without(payload, _spans(payload, [hole.offset for hole in holes]), holes)
        data = bytes(payload)
        rest = None
        if len(data) > _REST_BYTES and len(data) + sum(hole.size for hole in holes) > INLINE_BYTES:
            rest = Hole(0, len(data), Name(_sha256(memoryview(data)), NO_COPY), memoryview(data))
        return Cut(self.marked(data, holes), data, holes, rest)

    def marked(self, data: bytes, holes: Sequence[Hole]) -> bytes:
        return b"".join(_between(data, holes, lambda hole: self.write(hole.name, hole.size)))

    def put_back(self, text: bytes, of: Cut) -> bytes:
        """A text with marks of this cut, with what they stand for in their places."""
        contents = _contents(of)
        return b"".join(contents[piece.name] if isinstance(piece, Mark) else piece for piece in self.split(text))

    def _unmarked(self, text: bytes, of: Cut | None) -> tuple[bytes, list[Hole]]:
        pieces, holes, offset = [], [], 0
        contents = {} if of is None else _contents(of)
        for piece in self.split(text):
            if isinstance(piece, Mark):
                holes.append(Hole(offset, piece.size, piece.name, contents.get(piece.name)))
            else:
                pieces.append(piece)
                offset += len(piece)
        return b"".join(pieces), holes


def _contents(cut: Cut) -> dict[Name, memoryview]:
    """By name, of what is not stored yet."""
    return {hole.name: hole.content for hole in cut.holes if hole.content is not None}


def parse(stored: Stored) -> tuple[list[Hole], Mark | None]:
    """The holes of an entry's data, and the name of its rest, if that is not in the entry."""
    found = json.loads(stored.blobs or b"{}")
    holes = [Hole(offset, size, Name.parse(name), None) for offset, size, name in found.get("at", ())]
    rest = found.get("rest")
    return holes, Mark(Name.parse(rest[1]), rest[0]) if rest else None


def fill(data: bytes, holes: Sequence[Hole], contents: dict[Name, bytes]) -> bytes:
    """The data with what was taken out of it."""
    return b"".join(_between(data, holes, lambda hole: contents[hole.name]))


def _between(data: bytes, holes: Sequence[Hole], what: Callable[[Hole], bytes]) -> Iterator[bytes]:
    end = 0
    for hole in holes:
        yield data[end : hole.offset]
        yield what(hole)
        end = hole.offset
    yield data[end:]


# ---- what is taken out


def _plain(payload: bytes | bytearray) -> bytes | bytearray:
    """The same JSON with slashes as they are: PHP and Java write `\\/`, and base64 has one in 64 characters."""
    if _find(payload, b"\\/") < 0:
        return payload
    pieces, start = [], 0
    while start < len(payload):
        end = start + _STEP_BYTES
        if payload[end - 1 : end] == b"\\":  # what it escapes belongs to it
            end = _BACKSLASHES.match(payload, end).end() + 1  # type: ignore[union-attr]
        piece = payload[start:end]
        if b"\\\\" in piece:
            piece = _ESCAPE.sub(lambda match: b"/" if match[1] == b"/" else match[0], piece)
        else:
            piece = piece.replace(b"\\/", b"/")
        pieces.append(piece)
        start = end
        _let_others_run()
    return b"".join(pieces)


def _spans(payload: bytes | bytearray, taken: Sequence[int]) -> list[tuple[int, int]]:
    """Where base64 of some size stands, from and to: the largest of it, in order, but for what has a hole in it already.

    Only what has no quotation mark for so many bytes is looked at, which takes a few steps for each 16 KiB.
    """
    found, start = [], 0
    while start < len(payload):
        quote = payload.rfind(b'"', start, start + _LEAST_BYTES)
        if quote >= 0:
            start = quote + 1
            continue
        end = _find(payload, b'"', start + _LEAST_BYTES)
        if end < 0:
            break
        if (span := _span(payload, start, end)) and not any(span[0] < offset < span[1] for offset in taken):
            found.append(span)
        start = end + 1
    return sorted(sorted(found, key=lambda span: span[0] - span[1])[:_MOST])


def _span(payload: bytes | bytearray, start: int, end: int) -> tuple[int, int] | None:
    """What of a string from `start` to `end` is base64 and nothing else. Taking it out leaves a string, and valid JSON."""
    if match := _DATA_URL.match(payload, start, min(end, start + 256)):
        start = match.end()
    elif not _FIELD.search(payload[max(0, start - 64) : start]):
        return None
    while end > start and payload[end - 1] == _BACKSLASH:  # the quotation mark after it is the string's in the string
        end -= 1
    if end - start < _LEAST_BYTES:
        return None
    for at in range(start, end, _STEP_BYTES):
        if payload[at : min(end, at + _STEP_BYTES)].translate(None, _BASE64):
            return None
        _let_others_run()
    return start, end


def _without(
    payload: bytes | bytearray, spans: Sequence[tuple[int, int]], before: Sequence[Hole]
) -> tuple[bytes, list[Hole]]:
    """What is left of the payload, and all holes in it, those that were there among them."""
    view, left, holes, end, offset = memoryview(payload), [], [], 0, 0
    waiting = list(before)
    for start, stop in spans:
        while waiting and waiting[0].offset <= start:
            hole = waiting.pop(0)
            holes.append(hole._replace(offset=offset + hole.offset - end))
        left.append(view[end:start])
        offset += start - end
        content = view[start:stop]
        holes.append(Hole(offset, stop - start, Name(_sha256(content), NO_COPY), content))
        end = stop
    holes += [hole._replace(offset=offset + hole.offset - end) for hole in waiting]
    left.append(view[end:])
    return b"".join(left), holes


def _find(payload: bytes | bytearray, word: bytes, start: int = 0) -> int:
    """`payload.find(word, start)`, a step at a time. One character is looked for first: that is many times as fast."""
    for at in range(start, len(payload), _SEARCHED_BYTES):
        if at > start:  # what is small needs no more than a look: to let others run takes 70 µs
            _let_others_run()
        if (first := payload.find(word[:1], at, at + _SEARCHED_BYTES)) >= 0:
            found = payload.find(word, first, at + _SEARCHED_BYTES + len(word) - 1)
            if found >= 0:
                return found
    return -1


def _let_others_run() -> None:
    time.sleep(0)


def _sha256(content: memoryview) -> str:
    return hashlib.sha256(content).hexdigest()
