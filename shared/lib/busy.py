"""How busy a thread was of late, and how long its loops wait, for that reason, until there is more to be done at once.

Under load, more entries in each read or write cost less than more of them; while there is time left, a pause would only be
late. Hidden here: what counts as busy, over which time, and that asking costs next to nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

_LOOK_S = 0.025
_CALM, _FULL = 0.6, 0.8
"""So much of a core is no load yet, and from so much on it is short."""
_SCHEDULED = "/proc/thread-self/schedstat"


class _Scheduled:
    """This thread's file, open as long as the thread lives: to open it takes six times what it takes to read it."""

    def __init__(self) -> None:
        self.number = os.open(_SCHEDULED, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


_of_thread = threading.local()


def wanted_s() -> float:
    """How long this thread had a core until now, in seconds; where Linux tells, also how long it was ready and had none.

    Where others share the core, that is what a loop is short of: its own part of it stays small. The file holds both in ns, or
    0 0 where the kernel does not count (docs.kernel.org/scheduler/sched-stats.html).
    """
    try:
        if (file := getattr(_of_thread, "file", None)) is None:
            _of_thread.file = file = _Scheduled()
        used, waited, _ = os.pread(file.number, 128, 0).split()
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
