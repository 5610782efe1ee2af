"""What a stopping server does with open streams.

Hidden here: who leaves when. A viewer that resumes by itself leaves within two seconds, one after the other, so that the
next server is not met by all of them at once; the others stay until the deadline.
"""

from __future__ import annotations

import asyncio
import math
import random

_STAGGER_S = 2.0


class Drain:
    """Whether this process is stopping. Native viewers leave at once and resume elsewhere; others at the deadline."""

    def __init__(self) -> None:
        self.native = False
        self.everyone = False
        self.followed = False
        """Another process serves at this address already: who asks there next, asks that one."""


class Stay:
    """How long one viewer may still stay."""

    __slots__ = ("_drain", "_drain_s", "_leave_at", "_native")

    def __init__(self, drain: Drain, drain_s: float, *, native: bool) -> None:
        self._drain, self._drain_s, self._native = drain, drain_s, native
        self._leave_at: float | None = None

    def left_s(self) -> float:
        """Seconds; infinite while the server does not stop."""
        drain = self._drain
        if drain.everyone:
            return 0
        if not (drain.native and self._native):
            return math.inf
        now = asyncio.get_running_loop().time()
        if self._leave_at is None:
            self._leave_at = now + random.uniform(0, min(_STAGGER_S, self._drain_s / 2))
        return self._leave_at - now
