"""`make bench`: Streamspool alone, in about a minute or two. See docs/PERFORMANCE.md.

python -m tests.bench [--only G5,G8,…] [--json FILE] [--quick] [--reps N] [--boost]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tests.bench import goals, machine, report
from tests.bench.machine import CannotMeasure, Cores
from tests.bench.measures import QUICK, Scale
from tests.bench.run import NAMES, Run, say, titles
from tests.bench.targets import Ceiling, Direct, Ours

ALONE = (Direct, Ceiling, Ours)


def arguments(program: str, measurements: Iterable[str] = NAMES) -> argparse.ArgumentParser:
    """The options that every run has."""
    parser = argparse.ArgumentParser(prog=program, description="Measures Streamspool on this machine.")
    parser.add_argument("--only", metavar="G5,G8", help=f"goals, or measurements: {', '.join(measurements)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--quick", action="store_true", help="seconds, tiny loads: figures without meaning")
    parser.add_argument("--reps", type=int, default=1, help="repetitions of each measurement; the median counts")
    parser.add_argument("--boost", action="store_true", help="go before everything else on this machine (root)")
    return parser


def chosen(only: str | None) -> list[str]:
    """The measurements that `--only` names. Raises CannotMeasure for a name that nothing has."""
    if not only:
        return list(NAMES)
    found: list[str] = []
    for word in filter(None, (part.strip().lower() for part in only.split(","))):
        names = list(NAMES) if word == "g16" else goals.select(lambda text, word=word: text == word)  # type: ignore[misc]
        if not names:
            raise CannotMeasure(f"--only {word}: no such goal or measurement. Measurements: {', '.join(NAMES)}.")
        found += names
    return found


def begin(options: argparse.Namespace) -> Run:
    """A run of what was chosen, on a machine that was `prepared`."""
    cores, scale = prepared(options)
    return Run(cores, scale, chosen(options.only))


def prepared(options: argparse.Namespace) -> tuple[Cores, Scale]:
    """Checks the machine, and moves ourselves to the load's core. From here on SIGTERM stops what was started, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if not sys.platform.startswith("linux"):
        raise CannotMeasure("The bench needs Linux: it pins processes to cores and reads their use from /proc.")
    machine.prepare(boost=options.boost)
    cores = Cores.choose()
    if cores.server == cores.load:
        say("One core only: load and server share it, and every figure is worse than it would be.")
    os.sched_setaffinity(0, {cores.load})
    return cores, replace(QUICK if options.quick else Scale(), reps=options.reps)


def finish(run: Run, path: Path | None, **more: object) -> dict[str, dict[str, dict[str, float]]]:
    """All results, written where `--json` says."""
    results = goals.add_totals(run.results)
    if path:
        found = {"date": time.strftime("%Y-%m-%d"), "machine": machine.describe(), **more}
        path.write_text(json.dumps({**found, "failures": run.failures, "results": results}, indent=1) + "\n")
    return results


def main() -> int:
    options = arguments("python -m tests.bench").parse_args()
    try:
        run = begin(options)
        run.measure(ALONE)
    except CannotMeasure as error:
        print(error, file=sys.stderr)
        return 2
    results = finish(run, options.json)
    measured = [goal for goal in goals.GOALS if goal.value(results) is not None]
    print(report.plain(report.goal_rows(results, titles(ALONE), measured)))
    for table in report.COLUMNS:
        rows = report.figure_rows(results, table, titles(ALONE))
        if len(rows) > 1:
            print(f"\n{report.plain(rows)}")
    if options.quick:
        print("\n--quick: these figures mean nothing.")
    elif any(goal.verdict(results) == "unknown" for goal in measured):
        print("\nNo verdict: the goal is a ratio to a peer. `make bench-peers` measures them, too.")
    return 1 if run.failures or results["all"].get("ours", {}).get("faults") else 0


if __name__ == "__main__":
    sys.exit(main())
