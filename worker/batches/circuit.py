"""Whether a model is left alone for a while: its provider is away, and whatever asked it now would only fail.

Hidden here: what is known of each model, by all batches of this worker together and, told through Redis, by those of the
others. A circuit opens after some failures in a row, for a time that doubles; then one line is let through, and what becomes
of it closes the circuit or opens it again (the circuit breaker of M. Nygard, "Release It!"). It is by the name that lines ask
for, not by provider: where one model is broken, others of the same provider go on.

Times are in seconds of the event loop's clock, but for those in notes, which are of Redis's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from shared.errors import StoredError
from shared.lib import json
from shared.lib.telemetry import get_logger
from shared.store.redis import ArqRedis, OutOfMemoryError
from worker.batches.window import LONGEST_ASKED_S

logger = get_logger(__name__)

_FAILURES = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_PROBE_S = 180.0
"""So long the one line that was let through may take, until another is."""
_NOTE_MS = 300_000
_ANY = 1 << 30
_MOST = 1000


def jittered(pause_s: float) -> float:
    """Between half of it and all of it: what failed at once must not come back at once."""
    return pause_s * random.uniform(0.5, 1.0)


class Circuit:
    """Of one model, as one worker sees it. Pure but for chance."""

    def __init__(self) -> None:
        self.opened_at: float | None = None
        self.until = 0.0
        self.pause_s = _FIRST_PAUSE_S
        self.answered_at = float("-inf")
        self._failures = 0
        self._probe_at: float | None = None

    def room(self, now: float) -> int:
        """How many more lines may ask."""
        if self.opened_at is None:
            return _ANY
        if now < self.until:
            return 0
        return 0 if self._probe_at is not None and now - self._probe_at < _PROBE_S else 1

    def begun(self, now: float) -> None:
        """A line asks."""
        if self.opened_at is not None and now >= self.until:
            self._probe_at = now

    def answered(self, now: float) -> bool:
        """The provider said something that shows that it is there. True if that closed it."""
        self.answered_at = now
        return self.close()

    def close(self) -> bool:
        was_open = self.opened_at is not None
        self.opened_at = self._probe_at = None
        self._failures, self.pause_s = 0, _FIRST_PAUSE_S
        return was_open

    def failed(self, asked_at: float, now: float, retry_after_s: float | None = None) -> bool:
        """A line that asked then failed. True if that opened it, anew or again."""
        if self.opened_at is None:
            self._failures += 1
            if self._failures < _FAILURES:
                return False
        elif asked_at < self.until:
            return False  # it was on its way already when it opened
        else:
            self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)
        pause_s = max(jittered(self.pause_s), min(retry_after_s or 0, LONGEST_ASKED_S))
        self.open(now, now + pause_s, self.pause_s)
        return True

    def open(self, now: float, until: float, pause_s: float) -> None:
        self.opened_at = now if self.opened_at is None else self.opened_at
        self.until, self.pause_s, self._probe_at = until, pause_s, None


class Circuits:
    """All of a worker's. What they learn is told to the others, and heard from them, at each `sync`."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
        self._circuits: dict[str, Circuit] = {}
        self._news: set[str] = set()
        self._heard: dict[str, int] = {}

    @property
    def known(self) -> Collection[str]:
        return self._circuits.keys()

    def of(self, model: str) -> Circuit:
        if model not in self._circuits:
            if len(self._circuits) >= _MOST:
                for idle in [name for name, one in self._circuits.items() if one.opened_at is None]:
                    del self._circuits[idle]
                    self._heard.pop(idle, None)
            self._circuits[model] = Circuit()
        return self._circuits[model]

    def answered(self, model: str, now: float) -> None:
        if self.of(model).answered(now):
            self._news.add(model)
            logger.info("provider back", model=model)

    def failed(self, model: str, asked_at: float, now: float, error: StoredError | None) -> None:
        """`error` is the outcome's."""
        circuit = self.of(model)
        if circuit.failed(asked_at, now, error.get("retry_after_s") if error else None):
            self._news.add(model)
            about = {"error_code": error["code"], "status": error["status"]} if error else {}
            logger.warning("provider away", model=model, pause_s=round(circuit.until - now, 1), **about)

    async def sync(self, models: Collection[str], now: float) -> None:
        """Tells the others what is new here, and hears what they know about these models. Raises RedisError, OSError."""
        told = set(self._news)
        wanted = sorted({*models, *told})
        if not wanted:
            return
        names = [self._redis.key.circuit(_digest(model)) for model in wanted]
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.mget(names)
            (seconds, microseconds), notes = await pipe.execute()
            redis_ms = int(seconds) * 1000 + int(microseconds) // 1000
            for model, raw in zip(wanted, notes, strict=True):
                if raw and model not in told:
                    self._hear(model, json.loads(raw), redis_ms, now)
            for model in told:
                self._heard[model] = redis_ms
                pipe.set(self._redis.key.circuit(_digest(model)), self._note(model, redis_ms, now), px=_NOTE_MS)
            if told:
                with suppress(OutOfMemoryError):  # then each worker finds out for itself
                    await pipe.execute()
        self._news -= told

    def _note(self, model: str, redis_ms: int, now: float) -> bytes:
        circuit = self.of(model)
        if circuit.opened_at is None:
            return json.dumps({"at_ms": redis_ms, "open": False})
        until_ms = redis_ms + int((circuit.until - now) * 1000)
        return json.dumps({"at_ms": redis_ms, "open": True, "until_ms": until_ms, "pause_s": circuit.pause_s})

    def _hear(self, model: str, note: dict[str, Any], redis_ms: int, now: float) -> None:
        """Once: what happened here since is newer."""
        if note["at_ms"] <= self._heard.get(model, 0):
            return
        self._heard[model] = note["at_ms"]
        circuit = self.of(model)
        if not note["open"]:
            circuit.close()
        elif note["until_ms"] > redis_ms:
            circuit.open(now, now + (note["until_ms"] - redis_ms) / 1000, note["pause_s"])


def _digest(model: str) -> str:
    """Names of models are foreign text."""
    return hashlib.sha256(model.encode("utf-8", "surrogatepass")).hexdigest()[:32]
