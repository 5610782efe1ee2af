"""What a scrape is told that no process knows by itself: the queue, the workers, Redis.

Hidden here: that it is asked for at each scrape, by whichever API is scraped, and in so little time that a Redis which is away
costs the scrape nothing but these figures.
"""

from __future__ import annotations

import asyncio

from shared.errors import Unavailable
from shared.generations.catalogue import Catalogue
from shared.lib.clock import now_ms
from shared.lib.telemetry import (
    IN_PLACES,
    OLDEST_SECONDS,
    REDIS_BYTES,
    REDIS_EVICTED,
    REDIS_MOST_BYTES,
    REDIS_UP,
    REDIS_WRITES,
    WAITING,
    WORKERS,
)
from shared.store.availability import translate_errors
from shared.store.backlog import Backlog

_SCRAPE_S = 1.0
_UNKNOWN = float("nan")


async def measure(catalogue: Catalogue, backlog: Backlog) -> None:
    """Sets them. Where Redis is away, `streamspool_redis_up` is 0, and the others are not known."""
    try:
        async with asyncio.timeout(_SCRAPE_S):
            workers, store = await catalogue.workers(), await catalogue.store()
            with translate_errors():
                lanes = await backlog.look()
    except (Unavailable, TimeoutError):
        REDIS_UP.set(0)
        for gauge in (WAITING, IN_PLACES, OLDEST_SECONDS):
            gauge.clear()
        for gauge in (REDIS_BYTES, REDIS_MOST_BYTES, REDIS_EVICTED, REDIS_WRITES, WORKERS):
            gauge.set(_UNKNOWN)
        return
    REDIS_UP.set(1)
    WORKERS.set(len(workers))
    for gauge, field in (
        (REDIS_BYTES, "used_bytes"),
        (REDIS_EVICTED, "evicted_keys"),
        (REDIS_WRITES, "last_write_ok"),
    ):
        gauge.set(_UNKNOWN if store[field] is None else store[field])
    REDIS_MOST_BYTES.set(store["limit_bytes"] or 0)
    now = now_ms()
    for seen in lanes:
        WAITING.labels(seen.lane).set(seen.waiting)
        IN_PLACES.labels(seen.lane).set(seen.running)
        oldest_ms = seen.oldest_ms
        OLDEST_SECONDS.labels(seen.lane).set(0 if oldest_ms is None else max(0, now - oldest_ms) / 1000)
