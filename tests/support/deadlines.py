"""The limit within which callers are told that the storage does not answer, in a test's hands.

Hidden here: how a limit passes at just the step that a test is about. A short one, by the clock, may pass before that step has
begun where the machine is busy.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import NoReturn

import pytest

from shared.store import availability


class Deadlines:
    """From the making on, no limit passes by itself. `expire` has the newest one pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._begun: list[asyncio.Timeout] = []
        told = SimpleNamespace(timeout=self._begin, CancelledError=asyncio.CancelledError)
        monkeypatch.setattr(availability, "asyncio", told)

    def _begin(self, _: float) -> asyncio.Timeout:
        self._begun.append(asyncio.timeout(None))
        return self._begun[-1]

    async def expire(self) -> NoReturn:
        """Waits until it has passed: whoever calls it is cancelled, as whatever takes too long."""
        self._begun[-1].reschedule(asyncio.get_running_loop().time())
        await asyncio.Event().wait()
        raise AssertionError("it did not pass")
