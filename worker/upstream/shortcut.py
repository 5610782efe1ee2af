"""The shortcut of plain chunks: from the provider's connection into the log as they come, without a task that wakes for each.

Hidden here: which those are. Most chunks of an answer say nothing that anybody has to decide about; the others, and those that
come while one is under way, go the long way (generate.py), which waits for what was taken here before it appends anything.
"""

from __future__ import annotations

from typing import Protocol

from shared.lib.http import Tap
from shared.lib.telemetry import CHUNKS
from shared.log.blobs import INLINE_BYTES
from shared.log.writer import Writer
from worker.normalizer import Normalizer
from worker.providers import framing
from worker.providers.chunk_shapes import payload_bytes
from worker.providers.dialect import Decoder
from worker.upstream.timers import Timers

_COUNTED = 16
"""So many are counted at once: a counter has a lock."""


class Budgets(Protocol):
    """What is known of those of an attempt (worker/running.py)."""

    is_over: bool
    """Whether one is reached: the answer ends at the provider's next word, by the long way."""


class Summary(Protocol):
    """What makes one of an answer's thoughts (worker/summaries.py)."""

    is_off: bool
    """It will not: chunks need not go through it."""


class Shortcut:
    """Of one attempt. `size` is what its chunks count for the limit of an answer, whichever way they went. `close` it."""

    def __init__(self, writer: Writer, summary: Summary, budgets: Budgets, limit: int) -> None:
        """A `limit` of 0 is none."""
        self._writer, self._summary, self._budgets, self._limit = writer, summary, budgets, limit
        self._uncounted = 0
        self.size = 0

    @property
    def is_too_long(self) -> bool:
        return self.size > self._limit > 0

    def tap(self, decoder: Decoder, normalizer: Normalizer, timers: Timers) -> Tap | None:
        """What takes a piece of a body, while more of it is waited for, if it is one event, and that a chunk which is neither
        read nor held. Where what it took cannot be stored after all, the wait ends with that. None for some framings."""
        if not isinstance(decoder, framing.Decoder):
            return None
        self._writer.on_failure = timers.interrupt

        def tap(data: bytes) -> bool:
            try:
                event = decoder.one(data)
                if event is None or not normalizer.pass_on(event, self.take):
                    return False
                timers.passed_on()
            except Exception as bug:  # ours: raised here, it would be told as what the provider sent
                timers.interrupt(bug)
            return True

        return tap

    def take(self, payload: bytes) -> bool:
        """Whether it is on its way into the log."""
        size = self.size + payload_bytes(payload)
        if self._budgets.is_over or not self._summary.is_off or size > self._limit > 0:
            return False
        if len(payload) > INLINE_BYTES or not self._writer.take(payload):
            return False
        self.size = size
        self._uncounted += 1
        if self._uncounted >= _COUNTED:
            self.close()
        return True

    def close(self) -> None:
        """Counts what is not counted yet."""
        CHUNKS.inc(self._uncounted)
        self._uncounted = 0
