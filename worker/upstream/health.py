"""How the providers do, as this worker finds them when it asks them: for its heartbeat.

Hidden here: what counts as a provider's failure, which a request that is wrong in itself is not; and that no more is kept than
the last minutes, and of these no more than some hundred times. There is neither a key nor an address nor a word of an answer
in it.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple

from shared.errors import UpstreamError
from shared.generations.providers import WINDOW_S
from shared.lib.clock import now_ms

_KEPT, _TOLD = 500, 50
_REQUESTS_OWN = frozenset({400, 404, 405, 406, 409, 413, 415, 422})


class _Asked(NamedTuple):
    at: float
    failed: bool
    first_ms: int | None


class _Provider:
    def __init__(self) -> None:
        self.asked: deque[_Asked] = deque(maxlen=_KEPT)
        self.success_at_ms: int | None = None
        self.error: dict[str, Any] | None = None
        self.retry_at_ms: int | None = None


class Health:
    """Of one worker's providers, by name."""

    def __init__(self) -> None:
        self._providers: dict[str, _Provider] = {}

    def answered(self, name: str, first_ms: int | None = None) -> None:
        """It has begun to answer, after so long, or has listed its models."""
        one = self._providers.get(name) or self._providers.setdefault(name, _Provider())
        one.success_at_ms, one.retry_at_ms = now_ms(), None
        one.asked.append(_Asked(time.monotonic(), failed=False, first_ms=first_ms))

    def failed(self, name: str, error: UpstreamError) -> None:
        if error.provider_status in _REQUESTS_OWN:
            return
        one, now = self._providers.setdefault(name, _Provider()), now_ms()
        one.error = {"at_ms": now, "code": error.code, "status": error.provider_status}
        if error.retry_after_s is not None:
            one.retry_at_ms = now + int(error.retry_after_s * 1000)
        one.asked.append(_Asked(time.monotonic(), failed=True, first_ms=None))

    def told(self) -> dict[str, dict[str, Any]]:
        """`{NAME: {success_at_ms, error: {at_ms, code, status}, retry_at_ms, asked, failed, first_ms: […]}}`; the last three
        are of the last `WINDOW_S`, and `first_ms` the newest 50."""
        since, now = time.monotonic() - WINDOW_S, now_ms()
        found = {}
        for name, one in self._providers.items():
            while one.asked and one.asked[0].at < since:
                one.asked.popleft()
            times = [asked.first_ms for asked in one.asked if asked.first_ms is not None]
            found[name] = {
                "success_at_ms": one.success_at_ms,
                "error": one.error,
                "retry_at_ms": one.retry_at_ms if (one.retry_at_ms or 0) > now else None,
                "asked": len(one.asked),
                "failed": sum(asked.failed for asked in one.asked),
                "first_ms": times[-_TOLD:],
            }
        return found
