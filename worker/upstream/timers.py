"""The time limits of one answer: which of them counts now, and what it is called when it runs out.

Hidden here: that there are four limits (first chunk, idle, whole generation, grace after the last figures) and one timer.
For example, `begin` starts `upstream_first_timeout`; the first chunk replaces it by `upstream_idle_timeout`. Connecting has
a limit as well, which the HTTP client keeps.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from shared.config.settings import Settings
from shared.errors import UpstreamTimeout
from shared.lib.tasks import MovingTimeout

_GRACE_S = 5.0  # after the finish reason and usage: how long [DONE] may take


class Timers:
    """Until when the current wait may last, and what it is called if it lasts longer. Times are of the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._clock = asyncio.get_running_loop().time
        self._total_s = settings.generation_s
        self._idle_s = settings.upstream_idle_s
        self._end = self._clock() + self._total_s
        self._first_s = settings.upstream_first_s
        self.in_grace = False
        """The answer is whole but for its end mark."""
        self._interrupted: Exception | None = None
        self._timeout = MovingTimeout()
        self.begin()

    def begin(self) -> None:
        """The provider is asked, or asked again: from now on the limit for the first chunk counts."""
        self._code, self._seconds = "upstream_first_timeout", self._first_s
        self._until = self._clock() + self._first_s

    def progress(self) -> None:
        """A data event came: from now on the idle limit counts, from here. Comments and pings are no data."""
        if not self.in_grace:
            self._code, self._seconds = "upstream_idle_timeout", self._idle_s
            self._until = self._clock() + self._idle_s

    def passed_on(self) -> None:
        """The same in the middle of an answer, while it is waited for the next: somebody else took what came."""
        self._until = until = self._clock() + self._idle_s
        self._timeout.move(until if until < self._end else self._end)

    def interrupt(self, why: Exception) -> None:
        """Has the wait end with this, or the next one where nothing is waited for now."""
        self._interrupted = why
        self._timeout.ring()

    def heard(self, *, begun: bool) -> None:
        """A data event came that may mean nothing to the client. It is progress once the answer has `begun`, be it with its
        role alone; before that it is not, because another provider may still be asked."""
        if begun or self._code == "upstream_idle_timeout":
            self.progress()

    def grace(self) -> None:
        """The answer is whole, and only its end mark is missing; starts once, and is not extended."""
        if not self.in_grace:
            self.in_grace = True
            self._until = self._clock() + _GRACE_S

    def resume(self) -> None:
        """More of the answer came after all."""
        self.in_grace = False
        self.progress()

    def __enter__(self) -> None:
        """What is waited for within the context raises UpstreamTimeout when the current limit, or that of the whole generation,
        runs out first."""
        if self._interrupted is not None:
            raise self._interrupted
        self._timeout.start(self._until if self._until < self._end else self._end)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._timeout.stop(kind)
        except MovingTimeout.Rang:
            if self._interrupted is not None:
                raise self._interrupted from None
            if self._end <= self._until:
                raise too_slow("generation_timeout", self._total_s) from None
            raise too_slow(self._code, self._seconds) from None

    def close(self) -> None:
        self._timeout.close()


def too_slow(code: str, seconds: float) -> UpstreamTimeout:
    return UpstreamTimeout(f"The provider took longer than {seconds:g} s ({code}).", code=code)
