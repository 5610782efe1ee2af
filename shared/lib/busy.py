"""How busy a thread was of late, and how long its loops wait, for that reason, until there is more to be done at once.

Under load, more entries in each read or write cost less than more of them; while there is time left, a pause would only be
late. Hidden here: what counts as busy, over which time, and that asking costs next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_LOOK_S = 0.025
_CALM, _FULL = 0.6, 0.8
"""So much of a core is no load yet, and from so much on it is short."""
_SCHEDULED = "/proc/thread-self/schedstat"


def wanted_s() -> float:
    """How long this thread had a core until now, in seconds; where Linux tells, also how long it was ready and had none.

    Where others share the core, that is what a loop is short of: its own part of it stays small. The file holds both in ns, or
    0 0 where the kernel does not count (docs.kernel.org/scheduler/sched-stats.html).
    """
    try:
        with open(_SCHEDULED, "rb", buffering=0) as told:
            used, waited, _ = told.read(128).split()
        if found := int(used) + int(waited):
            return found / 1e9
    except (OSError, ValueError):
        pass
    return time.thread_time()


class BusyPauses:
    """One for each loop that may pause; `clock` and `wanted` tell seconds. To be asked by the loop's own thread only."""

    def __init__(
        self, most_s: float, *, clock: Callable[[], float] = time.monotonic, wanted: Callable[[], float] = wanted_s
    ) -> None:
        self._most_s, self._clock, self._wanted = most_s, clock, wanted
        self._older = self._newer = clock(), wanted()
        self._pause_s = 0.0

    def next_s(self) -> float:
        """0 where the thread wanted less than 60 % of the last 50 ms; the more it wanted, the longer, up to `most_s` at 80 %.

        It is looked every 25 ms, if anybody asks, so after a rest it is 0 at first.
        """
        now = self._clock()
        if now - self._newer[0] >= _LOOK_S:
            at, before = self._older
            self._older, self._newer = self._newer, (now, self._wanted())
            busy = (self._newer[1] - before) / (now - at)
            self._pause_s = self._most_s * min(1.0, max(0.0, busy - _CALM) / (_FULL - _CALM))
        return self._pause_s
