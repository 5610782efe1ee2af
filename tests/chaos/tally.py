"""What all runs of a row of the fault matrix add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tests.support.judge import Verdict


class Tally:
    """`row` is what is printed; `problems` says what was not as the row has it, and must be empty."""

    def __init__(self) -> None:
        self.runs = self.lost = self.duplicated = 0
        self.worst_s = 0.0
        self.seen: Counter[str] = Counter()
        self.problems: list[str] = []

    def run(self, worst_s: float, viewers: list[Verdict], *, expected: int, right: bool) -> None:
        """Counts a run whose viewers were to see so many words; `right` is the row's own verdict."""
        self.runs += 1
        self.worst_s = max(self.worst_s, worst_s)
        for viewer in viewers:
            self.words(viewer.text, expected)
            right = right and viewer.outcome != "damaged"
            self.seen[viewer.outcome] += 1
        if not right:
            self.problems.append(f"run {self.runs}: {viewers[:2]}")

    def words(self, text: str, expected: int) -> None:
        """Counts what is missing in a text of so many words, and what is there twice."""
        said = Counter(text.split())
        self.lost += sum(f"w{i}" not in said for i in range(expected))
        self.duplicated += sum(count - 1 for count in said.values())

    def check(self, what: str, found: object, wanted: object) -> None:
        """Notes a problem where they are not equal."""
        if found != wanted:
            self.problems.append(f"{what}: {found!r}, not {wanted!r}")

    def blame(self, problems: Iterable[str]) -> None:
        self.problems.extend(problems)

    def row(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "worst_s": round(self.worst_s, 3),
            "lost": self.lost,
            "duplicated": self.duplicated,
            "wrong": len(self.problems),
            **self.seen,
        }
