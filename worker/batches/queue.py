"""Which lines of a batch are begun next: those that are open, those that wait, and what each provider bears.

Pure. Lines wait in a lane for each model. One whose provider has no room, or that is left alone because it is away, holds up
its own lines only: those of others behind them are read, `AHEAD` lines at most, and begun before them. A line that waits is
a few numbers; its body is read again when its turn comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Protocol

from worker.batches.lines import Asked, LineWrong
from worker.batches.window import Demand, Window, fair_shares

AHEAD = 5000
"""How many lines may wait for providers without room: they stand in the checkpoint, some 20 bytes each."""
_OPEN_BYTES = 32 * 1024 * 1024
"""Of all lines that are open, or about to be."""
_LONGEST_PAUSE_S = 60.0


@dataclass(slots=True, order=True)
class Line:
    """A line that was read and is in no part yet. `asked`, its body, is there only on its way to being begun; `wrong` says
    why it cannot be."""

    number: int
    offset: int = field(compare=False)
    length: int = field(compare=False)
    custom_id: str | None = field(compare=False)
    provider: str = field(compare=False)
    model: str = field(compare=False)
    """Or its provider's name again, where a batch has too many models."""
    tries: int = field(default=0, compare=False)
    strikes: int = field(default=0, compare=False)
    """How often it failed while its provider answered others."""
    lost: int = field(default=0, compare=False)
    """How often something of ours died of it, or with it."""
    pauses: int = field(default=0, compare=False)
    asked_at: float = field(default=0.0, compare=False)
    asked: Asked | None = field(default=None, compare=False)
    wrong: LineWrong | None = field(default=None, compare=False)

    def spot(self) -> list[int]:
        """As it stands in the checkpoint."""
        held_against_it = [self.strikes, self.lost]
        return [self.number, self.offset, self.length, self.tries, *(held_against_it if any(held_against_it) else ())]

    def again(self) -> float:
        """It is to be asked again, as the next try. Returns how long to wait before that, at most: it grows."""
        self.tries += 1
        self.pauses += 1
        return float(min(2 ** min(self.pauses - 1, 10), _LONGEST_PAUSE_S))


class Gate(Protocol):
    """Whether a model may be asked: worker/batches/circuit.py."""

    def room(self, now: float) -> int: ...
    def begun(self, now: float) -> None: ...


class Gates(Protocol):
    def of(self, model: str) -> Gate: ...


@dataclass(slots=True)
class _Lane:
    """The lines of one model that wait."""

    provider: str
    gate: Gate
    waiting: list[Line] = field(default_factory=list)

    def ready(self, now: float) -> int:
        return min(len(self.waiting), self.gate.room(now))


class Queue:
    """`most` lines are open at once. `providers` and `models`, each model with its provider, are all that are to be expected,
    as far as that is known."""

    def __init__(self, most: int, providers: Iterable[str], models: Mapping[str, str], gates: Gates) -> None:
        self._most, self._gates = most, gates
        self._windows = {name: Window(most) for name in (*providers, *models.values())}
        self._lanes: dict[str, _Lane] = {}
        self._expected = frozenset(models)
        for model, provider in models.items():
            self._lane(model, provider)
        self._later: list[tuple[float, Line]] = []
        self._open: dict[str, Line] = {}
        self._opened: Counter[str] = Counter()
        self._open_bytes = self._held_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._open or self._later) or any(lane.waiting for lane in self._lanes.values())

    @property
    def open(self) -> Mapping[str, Line]:
        """Lines that were begun, by their generations."""
        return self._open

    @property
    def providers(self) -> Collection[str]:
        return self._windows.keys()

    @property
    def models(self) -> Collection[str]:
        """Those that have lines here, or are expected."""
        return self._lanes.keys()

    def lines(self) -> Iterator[Line]:
        """All of them."""
        yield from self._open.values()
        for lane in self._lanes.values():
            yield from lane.waiting
        for _, line in self._later:
            yield line

    # ---- what waits

    def wants(self, now: float) -> bool:
        """Whether another line should be read: there is room that no line which waits will take, and may be one that would."""
        self._wake(now)
        places = self._most - len(self._open)
        ahead = len(self._later) + sum(len(lane.waiting) for lane in self._lanes.values())
        lacking = not self._windows
        for name, window in self._windows.items():
            lanes = [(model, lane) for model, lane in self._lanes.items() if lane.provider == name]
            room, ready = window.room(self._opened[name], now), sum(lane.ready(now) for _, lane in lanes)
            places -= min(room, ready)
            if room > ready and not lacking:
                more = any(lane.gate.room(now) > len(lane.waiting) for _, lane in lanes)
                lacking = more or not any(model in self._expected for model, _ in lanes)
        return lacking and places > 0 and ahead < AHEAD and self._open_bytes + self._held_bytes < _OPEN_BYTES

    def wait(self, line: Line, now: float, pause_s: float = 0.0) -> None:
        """Takes a line in, to be begun after the pause at the earliest. It keeps its body if it can be begun at once."""
        lane = self._lane(line.model, line.provider)
        if pause_s > 0:
            line.asked = None
            heappush(self._later, (now + pause_s, line))
            return
        room = min(self._windows[line.provider].room(self._opened[line.provider], now), lane.gate.room(now))
        if room <= len(lane.waiting):
            line.asked = None
        self._held_bytes += line.length if line.asked else 0
        heappush(lane.waiting, line)

    def _wake(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            line = heappop(self._later)[1]
            heappush(self._lane(line.model, line.provider).waiting, line)

    def choose(self, now: float) -> list[Line]:
        """Takes those out that are to be begun now, the first ones first; `begun` says that they were."""
        self._wake(now)
        chosen: list[Line] = []
        opened, size, let_in = self._opened.copy(), self._open_bytes, Counter[str]()
        while len(self._open) + len(chosen) < self._most:
            ready = [
                (lane.waiting[0], model)
                for model, lane in self._lanes.items()
                if lane.waiting
                and self._windows[lane.provider].room(opened[lane.provider], now)
                and lane.gate.room(now) > let_in[model]
            ]
            if not ready or (size >= _OPEN_BYTES and (self._open or chosen)):
                break
            model = min(ready)[1]
            line = heappop(self._lanes[model].waiting)
            self._held_bytes -= line.length if line.asked else 0
            let_in[model] += 1
            opened[line.provider], size = opened[line.provider] + 1, size + line.length
            chosen.append(line)
        return chosen

    def waiting(self) -> list[Line]:
        """Takes all of them out, in their order."""
        found = sorted(
            [*(line for lane in self._lanes.values() for line in lane.waiting), *(x[1] for x in self._later)]
        )
        for lane in self._lanes.values():
            lane.waiting.clear()
        self._later.clear()
        self._held_bytes = 0
        return found

    # ---- what is open

    def begun(self, generation_id: str, line: Line, now: float) -> None:
        self._lane(line.model, line.provider).gate.begun(now)
        line.asked, line.asked_at = None, now
        self._open[generation_id] = line
        self._opened[line.provider] += 1
        self._open_bytes += line.length

    def ended(self, generation_id: str) -> Line:
        """Takes it out."""
        line = self._open.pop(generation_id)
        self._opened[line.provider] -= 1
        self._open_bytes -= line.length
        return line

    def answered(self, line: Line) -> None:
        """Its provider said something, whatever it was, that has nothing to do with how much was asked."""
        self._windows[line.provider].answered()

    def refused(self, line: Line, now: float, retry_after_s: float | None) -> None:
        """Its provider was asked too much."""
        self._windows[line.provider].refused(line.asked_at, now, retry_after_s)

    def share(self, batch_id: str, limit: int, demands: Mapping[str, Mapping[str, Any]]) -> None:
        """Leaves others theirs: `limit` is what may be asked of one provider at once, `demands` what each batch could
        have open of it, `{tenant, providers: {name: lines}}`."""
        for name, window in self._windows.items():
            asking = {
                one: Demand(demand["tenant"], demand["providers"][name])
                for one, demand in demands.items()
                if name in demand["providers"]
            }
            window.most = min(fair_shares(limit, asking)[batch_id], self._most)

    def _lane(self, model: str, provider: str) -> _Lane:
        if model not in self._lanes:
            self._lanes[model] = _Lane(provider, self._gates.of(model))
            self._windows.setdefault(provider, Window(self._most))
        return self._lanes[model]
