"""Documents taken apart: fenced blocks, headings and links; and expected output compared with what came."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<code>.*?)^```[ ]*$", re.M | re.S)
_HEADING = re.compile(r"^(#{1,6}) (.+)$", re.M)
_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """One fenced block: `language` and `words` are its info string; `output` is the `output` block right behind it."""

    document: str
    line: int
    language: str
    words: tuple[str, ...]
    code: str
    output: str | None = None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(root: Path, document: str) -> list[Block]:
    """All fenced blocks in order; outputs are part of the block they belong to."""
    text = (root / document).read_text("utf-8")
    found: list[Block] = []
    end = 0
    for match in _FENCE.finditer(text):
        language, *words = match["info"].split() or [""]
        line = text.count("\n", 0, match.start()) + 1
        if "output" in words:
            assert found, f"{document}:{line}: output of nothing"
            assert not text[end : match.start()].strip(), f"{document}:{line}: output must follow its block"
            found[-1] = Block(**{**vars(found[-1]), "output": match["code"]})
        else:
            found.append(Block(document, line, language, tuple(words), match["code"]))
        end = match.end()
    return found


def prose(root: Path, document: str) -> str:
    """A document without its fenced blocks."""
    return _FENCE.sub("", (root / document).read_text("utf-8"))


def links(root: Path, document: str) -> list[str]:
    return _LINK.findall(prose(root, document))


def anchors(root: Path, document: str, level: int | None = None) -> set[str]:
    """The anchors that GitHub gives the headings, all of them or those of a level."""
    wanted: set[str] = set()
    found: set[str] = set()
    for marks, heading in _HEADING.findall(prose(root, document)):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while (anchor := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(anchor)
        if level in (None, len(marks)):
            wanted.add(anchor)
    return wanted


def matches(expected: str, received: str) -> bool:
    """Whether output is as the document shows it. `…` stands for anything in a line, a line `…` for any lines.

    Blank lines and line ends at the end do not count, nor does CR before LF.
    """
    pattern = ""
    for line in expected.strip("\n").split("\n"):
        pattern += r"(?:[^\n]*\n)*?" if line == "…" else "[^\n]*".join(map(re.escape, line.split("…"))) + "\n"
    return re.fullmatch(pattern.rstrip("\n") + r"\n*", received.replace("\r\n", "\n").strip("\n") + "\n") is not None
