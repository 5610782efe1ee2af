"""Every recorded stream, of OpenAI's format and of formats of their own, however a server or a network may cut and spell it.

Each is read in packets of 1, 7 and 1,400 bytes with line ends of LF, CR and CRLF, with a byte order mark, and with comments and
pings between its events. What comes out is the same, byte for byte.
"""

from __future__ import annotations

import pytest

from tests.support import recordings
from tests.support.recordings import Row, wire
from tests.support.written import DIALECTS, hear

FORMATS = {"chat": "openai", "anthropic": "anthropic", "gemini": "gemini", "cohere": "cohere", "responses": "responses"}
RECORDINGS = recordings.recordings(*FORMATS)
BETWEEN = b": still here\n\nevent: ping\ndata: {}\n\n"

pytestmark = pytest.mark.skipif(not RECORDINGS, reason=recordings.MISSING)


def spellings(stream: bytes) -> dict[str, bytes]:
    plain = stream.replace(b"\r\n", b"\n")
    return {
        "LF": plain,
        "CR": plain.replace(b"\n", b"\r"),
        "CRLF": plain.replace(b"\n", b"\r\n"),
        "a byte order mark": b"\xef\xbb\xbf" + plain,
        "comments and pings": BETWEEN + plain.replace(b"\n\n", b"\n\n" + BETWEEN),
    }


def test_all_formats_are_here() -> None:
    assert {row["format"] for row in RECORDINGS} == set(FORMATS)


@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_a_recording_in_every_spelling_says_the_same(row: Row) -> None:
    kind = FORMATS[row["format"]]
    dialect = DIALECTS[kind]
    choices = max(1, len(row["expected"]["choices"])) if kind == "openai" else 1
    stream = wire(row, done=kind == "openai")
    chunks, error, reader = hear(stream, dialect=dialect, choices=choices)
    assert chunks or error is not None
    assert error is not None or reader.finished or reader.done
    for name, spelled in spellings(stream).items():
        for size in (1, 7, 1400):
            others, other, _ = hear(spelled, dialect=dialect, choices=choices, size=size)
            assert (others, str(other)) == (chunks, str(error)), f"{name}, packets of {size}"
