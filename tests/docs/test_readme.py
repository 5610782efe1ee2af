"""The README: short, with pictures of the real thing, and the same in Chinese."""

from __future__ import annotations

import re

from tests.docs.snippets import blocks, links, prose
from tests.docs.tables import ROOT

ENGLISH, CHINESE = "README.md", "README.zh-CN.md"
MOST_LINES = 200
MOST_BYTES = 800_000
"""Of each picture."""


def headings(document: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", prose(ROOT, document), re.M)]


def pictures(document: str) -> list[str]:
    return re.findall(r'(?:src|srcset)="([^"]+)"|!\[[^\]]*\]\(([^)]+)\)', (ROOT / document).read_text("utf-8"))


def test_it_is_short() -> None:
    assert len((ROOT / ENGLISH).read_text("utf-8").splitlines()) < MOST_LINES


def test_both_languages_have_the_same_blocks() -> None:
    english, chinese = blocks(ROOT, ENGLISH), blocks(ROOT, CHINESE)
    assert [(one.language, one.words, one.code, one.output) for one in chinese] == [
        (one.language, one.words, one.code, one.output) for one in english
    ]


def test_both_languages_have_the_same_headings_links_pictures_and_rows() -> None:
    assert headings(CHINESE) == headings(ENGLISH)
    assert links(ROOT, CHINESE) == links(ROOT, ENGLISH)
    assert pictures(CHINESE) == pictures(ENGLISH)
    rows = [re.findall(r"^\|", prose(ROOT, document), re.M) for document in (ENGLISH, CHINESE)]
    assert rows[0] == rows[1]
    code = [sorted(re.findall(r"`([^`\n]+)`", prose(ROOT, document))) for document in (ENGLISH, CHINESE)]
    assert code[0] == code[1]


def test_the_pictures_are_there_and_small() -> None:
    found = ["".join(pair) for pair in pictures(ENGLISH)]
    assert len(found) == 3
    for name in found:
        content = (ROOT / name).read_bytes()
        assert content[:4] + content[8:12] == b"RIFFWEBP"
        assert len(content) <= MOST_BYTES, name
