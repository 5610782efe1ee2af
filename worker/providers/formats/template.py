"""A shortcut for most events of an answer in OpenAI's format: those that differ from one before them in the text alone. Pure.

Hidden here: how that is seen without reading JSON, and which chunk such an event amounts to. What stands before and after the
text, in an event and in its chunk, is found by an experiment: another text is put into the event, and read. For example, after
`{"id":"1","choices":[{"delta":{"content":"Hel"}}]}` the next event is known by its ends, and its chunk is the last one's with
`lo` in the place of `Hel`. Where JSON could spell the text in another way (a quote, a backslash, a control character), the
event is read as any other.
"""

from __future__ import annotations

import sys
from typing import Any

from shared.lib import json

_PLAIN = bytes(byte for byte in range(0x20, 256) if byte not in b'"\\')
"""Bytes that stand for themselves in a JSON string; that they are UTF-8 is looked at."""
_PROBE = "*another text*"
_FIELD = b'"content"'
_LONGEST_REST = 256


class Template:
    """Of one answer. It costs next to nothing where no event is like another: then it looks ever more seldom."""

    __slots__ = ("_after", "_before", "_choice", "_end", "_least", "_rest", "_rests", "_start")

    def __init__(self) -> None:
        self._before = self._after = self._start = self._end = b""
        self._least = sys.maxsize
        """An event that is shorter is none of these."""
        self._choice: object = None
        self._rests, self._rest = 1, 0
        """After so many events like no other it is tried again."""

    def fill(self, data: bytes, choice: object) -> tuple[bytes, int] | None:
        """The chunk of an event of that choice, and the characters that it adds; None: it is to be read. Between what was
        learned of a choice and this, nothing else may have come but events that were filled in, or that `learn` was told."""
        size = len(data)
        if size < self._least or choice is not self._choice:
            return None
        before, after = self._before, self._after
        if not (data.startswith(before) and data.endswith(after)):
            return None
        text = data[len(before) : size - len(after)]
        if text.translate(None, _PLAIN):
            return None
        count = size - self._least
        if not text.isascii():
            try:
                count = len(text.decode())
            except UnicodeDecodeError:
                return None
        return self._start + text + self._end, count

    def learn(self, data: bytes, payload: bytes, text: str, choice: object) -> None:
        """An event of the choice was read. It added this text, amounted to this chunk, and to nothing else; and as long as
        nothing but such events come, so does every event that differs from it in the text alone."""
        if choice is self._choice and data.startswith(self._before) and data.endswith(self._after):
            return
        if self._rest:
            self._rest -= 1
            return
        self._rests = self._rest = min(2 * self._rests, _LONGEST_REST)
        try:
            spelled = text.encode()
        except UnicodeEncodeError:
            return
        if spelled.translate(None, _PLAIN):
            return
        found, made = _around(data, spelled), b'%b:"%b"' % (_FIELD, spelled)
        if found is None or payload.count(made) != 1 or not _is_replaced(data, found):
            return
        self._before, self._after = found
        self._least = len(data) - len(spelled)
        start, _, self._end = payload.partition(made)
        self._start, self._end = b'%b%b:"' % (start, _FIELD), b'"' + self._end
        self._choice = choice


def _around(data: bytes, spelled: bytes) -> tuple[bytes, bytes] | None:
    """What stands before and after a text in an event, if it stands there as content."""
    at = data.find(b'"%b"' % spelled, data.find(_FIELD) + len(_FIELD)) + 1
    return (data[:at], data[at + len(spelled) :]) if at else None


def _is_replaced(data: bytes, around: tuple[bytes, bytes]) -> bool:
    """Whether another text there is the content of the only choice, and all else is as it was."""
    try:
        other: Any = json.loads(_PROBE.encode().join(around))
        read: Any = json.loads(data)
        (choice,) = read["choices"]
        choice["delta"]["content"] = _PROBE
    except (ValueError, LookupError, TypeError):
        return False
    return bool(other == read)
