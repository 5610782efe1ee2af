"""`make bench-against REV=…`: this build beside an earlier revision of it, both in one run, by turns. See docs/PERFORMANCE.md.

python -m tests.bench.against REV [--reps 5] [--docs] [--folder DIR] and the options of `make bench`

In each round both are started anew for each group of measurements, and which goes first changes. A ratio is that of one round's
two figures; what counts is the median of the rounds, and how far they are apart stands beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from tests.bench import goals, machine, report
from tests.bench.__main__ import arguments, prepared
from tests.bench.compare import DOCUMENT, PICTURES, rounded
from tests.bench.goals import AGAINST, BEFORE, OURS, Goal, Results
from tests.bench.machine import CannotMeasure, Cores
from tests.bench.measures import Figures, Scale, idle
from tests.bench.revisions import FOLDER, Build, current, prepare
from tests.bench.run import STEPS, Run, Step, say
from tests.bench.targets import FAN, GATEWAY, REPLAY, Direct, Ours, Target

MEASURED = (
    Step("idle", GATEWAY, idle, ours=True),  # first: before it was ever busy
    *(step for step in STEPS if step.name in {goal.measure for goal in AGAINST} - {"idle"}),
)
NAMES = tuple(step.name for step in MEASURED)
ROUNDS = 5


def of_build(build: Build, target: str) -> type[Ours]:
    """A target that starts it."""

    class Built(Ours):
        name: ClassVar[str] = target
        title: ClassVar[str] = build.revision

    Built.build = build
    return Built


def chosen(only: str | None) -> list[str]:
    """The measurements that `--only` names. Raises CannotMeasure for one that there is not."""
    words = [word.strip() for word in (only or "").split(",") if word.strip()] or list(NAMES)
    for word in words:
        if word not in NAMES:
            raise CannotMeasure(f"--only {word}: no such measurement. There are: {', '.join(NAMES)}.")
    return words


class Comparison:
    """Rounds of figures: `rounds` has one for each, and `failures` what could not be measured."""

    def __init__(self, cores: Cores, scale: Scale, names: Iterable[str]) -> None:
        self._cores, self._scale = cores, scale
        self._names = list(names)
        self.rounds: list[Results] = []
        self.failures: list[str] = []
        self._provider: dict[str, Figures] = {}

    def run(self, before: type[Ours], ours: type[Ours], rounds: int) -> None:
        """Adds so many. The provider itself, which is no build's, is measured in the first of all."""
        for number in range(rounds):
            kinds: list[type[Target]] = [before, ours] if number % 2 == 0 else [ours, before]
            say(f"round {number + 1} of {rounds}")
            run = Run(self._cores, self._scale, self._names, steps=MEASURED)
            for group in (GATEWAY, FAN, REPLAY):
                run.measure([Direct, *kinds] if not self.rounds else kinds, groups=(group,))
            if not self.rounds:
                self._provider = {name: rows[Direct.name] for name, rows in run.results.items() if Direct.name in rows}
            for name, figures in self._provider.items():
                run.results.setdefault(name, {})[Direct.name] = figures
            self.rounds.append(goals.add_totals(run.results))
            self.failures += run.failures


def rows(rounds: Sequence[Results], titles: Mapping[str, str]) -> list[list[str]]:
    """Every goal with both builds' medians and ranges, the ratio, and whether it is reached; first row: the headings."""
    table = [["measure", titles[BEFORE], titles[OURS], "ratio", "goal", "verdict"]]
    for goal in AGAINST:
        found = [(goal.value(one, BEFORE), goal.value(one)) for one in rounds]
        if all(ours is None for _, ours in found):
            continue
        ratios = [goal.ratio(one, BEFORE) for one in rounds]
        wanted = ", ".join(report.limit(goal, bound, titles) for bound in goal.must)
        table.append(
            [
                goal.what + (f", {goal.unit}" if goal.unit else ""),
                spread([before for before, _ in found]),
                spread([ours for _, ours in found]),
                spread(ratios),
                wanted or "–",
                verdict(goal, rounds) if goal.must else "–",
            ]
        )
    return table


def spread(values: Iterable[float | None]) -> str:
    """`MEDIAN (LEAST–MOST)`, or the one value that they all are."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    least, middle, most = (report.number(value) for value in (min(known), statistics.median(known), max(known)))
    return middle if least == most else f"{middle} ({least}–{most})"


def verdict(goal: Goal, rounds: Sequence[Results]) -> str:
    """By the medians; beside it in how many rounds it was otherwise."""
    words = [report.VERDICTS[verdict] for verdict in (goal.verdict(one) for one in rounds) if verdict != "unknown"]
    if not words:
        return report.VERDICTS["unknown"]
    ratios = [ratio for one in rounds if (ratio := goal.ratio(one, BEFORE)) is not None]
    values = [value for one in rounds if (value := goal.value(one)) is not None]
    met = all(
        (figure <= bound.times) if goal.less else (figure >= bound.times)
        for bound in goal.must
        if (known := ratios if bound.peer else values)
        for figure in [statistics.median(known)]
    )
    word = report.VERDICTS["reached" if met else "missed"]
    others = sum(other != word for other in words)
    return f"{word}; in {others} of {len(words)} rounds not" if others and met else word


def main(words: Sequence[str] | None = None) -> int:
    parser: argparse.ArgumentParser = arguments("python -m tests.bench.against", NAMES)
    parser.set_defaults(reps=ROUNDS)
    parser.add_argument("revision", metavar="REV", help="the commit that this build is measured against")
    parser.add_argument("--folder", type=Path, default=FOLDER, metavar="DIR", help="where the revision is set up")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/PERFORMANCE.md")
    options = parser.parse_args(words)
    try:
        ours, names = current(), chosen(options.only)
        before = prepare(options.revision, options.folder)
        cores, scale = prepared(options)
        if not options.quick:
            scale = replace(scale, rounds=20, flood=12_000, cold=1)
        comparison = Comparison(cores, replace(scale, reps=1), names)
        comparison.run(of_build(before, BEFORE), of_build(ours, OURS), options.reps)
    except CannotMeasure as error:
        print(error, file=sys.stderr)
        return 2
    titles = {BEFORE: before.revision, OURS: ours.revision}
    table = rows(comparison.rounds, titles)
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.describe(),
        "revisions": titles,
        "failures": comparison.failures,
        "table": table,
        "rounds": comparison.rounds,
    }
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.docs:
        DOCUMENT.write_text(report.fill(DOCUMENT.read_text("utf-8"), {"against": report.markdown(table)}), "utf-8")
        (PICTURES / "against.json").write_text(json.dumps(rounded(found), indent=1, sort_keys=True) + "\n", "utf-8")
    print(report.plain(table))
    if options.quick:
        print("\n--quick: these figures mean nothing.")
    lost = any(one["all"].get(OURS, {}).get("faults") for one in comparison.rounds)
    return 1 if comparison.failures or lost else 0


if __name__ == "__main__":
    sys.exit(main())
