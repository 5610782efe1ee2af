"""Which lines of a batch are begun next: those that are open, those that wait, and what each provider bears.

Pure. A provider without room holds up its own lines only: those of others behind them are read, `AHEAD` lines at most,
and begun before them. A line that waits is a few numbers; its body is read again when its turn comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from worker.batch_lines import Asked
from worker.window import Demand, Window, fair_shares

AHEAD = 5000
"""How many lines may wait for providers without room: they stand in the checkpoint, some 20 bytes each."""
_OPEN_BYTES = 32 * 1024 * 1024
"""Of all lines that are open, or about to be."""


@dataclass(slots=True, order=True)
class Line:
    """A line that was read and is in no part yet. `asked`, its body, is there only on its way to being begun."""

    number: int
    offset: int = field(compare=False)
    length: int = field(compare=False)
    custom_id: str = field(compare=False)
    provider: str = field(compare=False)
    tries: int = field(default=0, compare=False)
    asked_at: float = field(default=0.0, compare=False)
    asked: Asked | None = field(default=None, compare=False)

    def spot(self) -> list[int]:
        """As it stands in the checkpoint."""
        return [self.number, self.offset, self.length, self.tries]


class Queue:
    """`most` lines are open at once. `providers` are all whose lines are to be expected, as far as that is known."""

    def __init__(self, most: int, providers: Iterable[str]) -> None:
        self._most = most
        self._windows = {name: Window(most) for name in providers}
        self._waiting: dict[str, list[Line]] = {name: [] for name in self._windows}
        self._open: dict[str, Line] = {}
        self._opened: Counter[str] = Counter()
        self._open_bytes = self._held_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._open) or any(self._waiting.values())

    @property
    def open(self) -> Mapping[str, Line]:
        """Lines that were begun, by their generations."""
        return self._open

    @property
    def providers(self) -> Collection[str]:
        return self._windows.keys()

    def lines(self) -> Iterable[Line]:
        """All of them."""
        yield from self._open.values()
        for waiting in self._waiting.values():
            yield from waiting

    # ---- what waits

    def wants(self, now: float) -> bool:
        """Whether another line should be read: some provider has room that no waiting line of its own will take."""
        places, lacking, ahead = self._most - len(self._open), not self._windows, 0
        for name, window in self._windows.items():
            room, waiting = window.room(self._opened[name], now), len(self._waiting[name])
            places, ahead = places - min(room, waiting), ahead + waiting
            lacking = lacking or room > waiting
        return lacking and places > 0 and ahead < AHEAD and self._open_bytes + self._held_bytes < _OPEN_BYTES

    def wait(self, line: Line, now: float) -> None:
        """Takes a line in. It keeps its body if it can be begun at once."""
        window = self._window(line.provider)
        if window.room(self._opened[line.provider], now) <= len(self._waiting[line.provider]):
            line.asked = None
        self._held_bytes += line.length if line.asked else 0
        heappush(self._waiting[line.provider], line)

    def choose(self, now: float) -> list[Line]:
        """Takes those out that are to be begun now, the first ones first; `begun` says that they were."""
        chosen: list[Line] = []
        opened, size = self._opened.copy(), self._open_bytes
        while len(self._open) + len(chosen) < self._most:
            ready = [
                (waiting[0], name)
                for name, waiting in self._waiting.items()
                if waiting and self._windows[name].room(opened[name], now)
            ]
            if not ready or (size >= _OPEN_BYTES and (self._open or chosen)):
                break
            name = min(ready)[1]
            line = heappop(self._waiting[name])
            self._held_bytes -= line.length if line.asked else 0
            opened[name], size = opened[name] + 1, size + line.length
            chosen.append(line)
        return chosen

    def waiting(self) -> list[Line]:
        """Takes all of them out, in their order."""
        found = sorted(line for waiting in self._waiting.values() for line in waiting)
        for waiting in self._waiting.values():
            waiting.clear()
        self._held_bytes = 0
        return found

    # ---- what is open

    def begun(self, generation_id: str, line: Line, now: float) -> None:
        self._window(line.provider)
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

    def _window(self, provider: str) -> Window:
        if provider not in self._windows:
            self._windows[provider], self._waiting[provider] = Window(self._most), []
        return self._windows[provider]
