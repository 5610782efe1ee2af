"""The run: targets one after the other, each started anew for each group of measurements, so that none sees another's.

Hidden here: which measurement needs which target, in which order, and that one peer's failure is a row, not the end.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.bench import measures, responses
from tests.bench.load import Upstream
from tests.bench.machine import CannotMeasure, Cores
from tests.bench.measures import Figures, Scale
from tests.bench.targets import FAN, GATEWAY, REPLAY, Ours, Target

Measure = Callable[[Any, Scale], Figures]


@dataclass(frozen=True)
class Step:
    """A measurement: `group` says with which others it shares a started target, `ours` that no peer can have it."""

    name: str
    group: str
    measure: Measure
    ours: bool = False
    once: bool = False
    """For peers that take minutes: one repetition is enough."""


def _fan(index: int) -> Measure:
    return lambda target, scale: measures.fan(target, scale, *scale.viewers[index])


def _streams(index: int) -> Measure:
    return lambda target, scale: measures.streams(target, scale, scale.levels[index])


STEPS = (
    Step("first", GATEWAY, measures.first),
    Step("streams-50", GATEWAY, _streams(0)),
    Step("streams-200", GATEWAY, _streams(1), once=True),
    Step("memory", GATEWAY, measures.memory, once=True),
    Step("flood", GATEWAY, measures.flood),
    Step("steps", GATEWAY, measures.steps, ours=True),
    Step("pickup", GATEWAY, measures.pickup, ours=True),
    Step("stored", GATEWAY, measures.stored, ours=True),
    Step("fan-5000", FAN, _fan(0), once=True),
    Step("fan-1000", FAN, _fan(1)),
    Step("silent", FAN, measures.silent, ours=True),
    Step("replay", REPLAY, measures.replay),
    Step("storm", REPLAY, measures.storm, ours=True),
    Step("cold", REPLAY, measures.cold, ours=True),
    Step("responses", REPLAY, responses.compared, ours=True),
)
NAMES = tuple(step.name for step in STEPS)


class Run:
    """Collects `results` (measurement, target, figures) and `failures`; says on stderr what it does."""

    def __init__(
        self, cores: Cores, scale: Scale, only: Iterable[str] = NAMES, *, steps: Sequence[Step] = STEPS
    ) -> None:
        self.cores, self.scale = cores, scale
        wanted = set(only)
        self.steps = [step for step in steps if step.name in wanted]
        self.results: dict[str, dict[str, Figures]] = {}
        self.failures: list[str] = []

    def measure(self, kinds: Iterable[type[Target]], groups: Sequence[str] = (GATEWAY, FAN, REPLAY)) -> None:
        for kind in kinds:
            for group in groups:
                steps = [
                    step for step in self.steps if step.group == group and (not step.ours or issubclass(kind, Ours))
                ]
                if steps and group in kind.does:
                    self._group(kind, group, steps)

    def _group(self, kind: type[Target], group: str, steps: list[Step]) -> None:
        with tempfile.TemporaryDirectory(prefix="bench-") as directory, Upstream(self.cores.load) as upstream:
            try:
                with kind(self.cores, upstream, Path(directory)) as target:
                    if group == GATEWAY or isinstance(target, Ours):
                        measures.warm(target)
                    for step in steps:
                        self._step(target, step)
            except (CannotMeasure, AssertionError, OSError) as error:
                self._failed(kind, group, error)

    def _step(self, target: Target, step: Step) -> None:
        at = time.monotonic()
        scale = replace(self.scale, reps=1) if step.once and not isinstance(target, Ours) else self.scale
        try:
            figures = step.measure(target, scale)
        except (CannotMeasure, OSError, KeyError) as error:
            self._failed(type(target), step.name, error)
            return
        self.results.setdefault(step.name, {})[target.name] = figures
        faults = "".join(f", {figures[name]:g} {name.upper()}" for name in measures.COUNTS[1:] if figures.get(name))
        say(f"  {target.title}: {step.name}, {time.monotonic() - at:.1f} s{faults}")
        if figures.get("load_cores", 0) > 0.9:
            say("    (the load's own core was busy: this figure is a lower bound)")

    def _failed(self, kind: type[Target], what: str, error: Exception) -> None:
        self.failures.append(f"{kind.title}, {what}: {type(error).__name__}: {str(error)[:300]}")
        say(f"  {self.failures[-1]}")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def titles(kinds: Iterable[type[Target]]) -> Mapping[str, str]:
    return {kind.name: kind.title for kind in kinds}
