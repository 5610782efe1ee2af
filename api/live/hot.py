"""Logs that were replayed and are watched by nobody now, at hand for the next who asks.

Hidden here: how much memory they take in all, and who goes when it is too much, or too long ago.
"""

from __future__ import annotations

import asyncio

from api.live.livelog import LiveLog

_BYTES = 16 * 1024 * 1024
"""Memory of all of them together."""
_IDLE_S = 60.0


class HotLogs:
    """The newest ones. What is in here had ended when it came, and must not be touched until it is taken out."""

    def __init__(self) -> None:
        self._logs: dict[str, tuple[LiveLog, int, float]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._logs)

    @property
    def held(self) -> int:
        """Bytes of memory, in all."""
        return self._bytes

    def put(self, live: LiveLog) -> None:
        """Its last viewer has left. It may be gone again at once: where it is larger than all may be together."""
        self.take(live.id)
        live.rest()
        size = live.held
        self._logs[live.id] = live, size, asyncio.get_running_loop().time()
        self._bytes += size
        while self._bytes > _BYTES:
            self.take(next(iter(self._logs)))

    def take(self, generation_id: str) -> LiveLog | None:
        """Takes it out, if it is there."""
        found = self._logs.pop(generation_id, None)
        if found is None:
            return None
        live, size, _ = found
        self._bytes -= size
        return live

    def expire(self) -> None:
        """Forgets those that nobody came back for. They stand in the order in which they came."""
        oldest = asyncio.get_running_loop().time() - _IDLE_S
        for generation_id, (_, _, since) in list(self._logs.items()):
            if since > oldest:
                break
            self.take(generation_id)
