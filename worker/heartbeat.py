"""What a worker tells the API: that it lives, and which models it can ask.

Hidden here: two keys, both with an end. A worker that is killed is missed after `BEAT_TTL_S`; the catalogue of its models
stays for a day, so that `GET /v1/models` has an answer while all workers are restarted. A beat is
`{pid, host, version, started_at (Unix seconds), places, running, jobs: {LANE: count}, draining, resting, health}`, with what
`worker.upstream.health` says of each provider.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Mapping

from shared import __version__
from shared.lib import json
from shared.lib.clock import now_ms
from shared.lib.telemetry import PLACES
from shared.store.redis import ArqRedis
from shared.store.transaction import commit
from worker.arq_worker import BEAT_S, BEAT_TTL_S, StreamWorker
from worker.places import ORDER
from worker.providers.registry import Provider
from worker.upstream.health import Health

CATALOGUE_TTL_S = 86400


class Heartbeat:
    """Of one worker; `run` beats until it is cancelled. Both raise RedisError, OSError."""

    def __init__(
        self,
        redis: ArqRedis,
        worker: StreamWorker,
        providers: Mapping[str, Provider],
        aliases: dict[str, list[str]],
        health: Health,
    ) -> None:
        self._redis, self._worker, self._health = redis, worker, health
        self._about = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "version": __version__,
            "started_at": now_ms() // 1000,
        }
        self._heard_at = float("-inf")
        self._catalogue = json.dumps(
            {
                "aliases": aliases,
                "providers": {
                    name: {
                        "kind": provider.kind,
                        "key": provider.api_key is not None,
                        "models": list(provider.models),
                        "open": provider.kind != "fake",
                        "responses": provider.kind == "responses",
                    }
                    for name, provider in sorted(providers.items())
                },
            }
        )

    async def run(self) -> None:
        key = self._redis.key
        while True:
            places = self._worker.places()
            taken = sum(places["jobs"][lane] for lane in ORDER)
            PLACES.labels("taken").set(taken)
            PLACES.labels("free").set(max(0, places["places"] - taken))
            report = {
                **self._about,
                "running": self._worker.count,
                **places,
                "health": self._health.told(),
            }
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(key.worker(self._worker.worker_id), json.dumps(report), ex=BEAT_TTL_S)
                pipe.sadd(key.workers, self._worker.worker_id)
                pipe.expire(key.workers, CATALOGUE_TTL_S)
                pipe.set(key.catalogue, self._catalogue, ex=CATALOGUE_TTL_S)
                pipe.smembers(key.resting)
                *_, resting = await commit(pipe)
            self._worker.resting = self._worker.worker_id.encode() in resting
            self._heard_at = time.monotonic()
            await asyncio.sleep(BEAT_S)

    @property
    def is_heard(self) -> bool:
        """Whether the APIs take this worker to be alive: Redis has taken a beat that has not lapsed."""
        return time.monotonic() - self._heard_at < BEAT_TTL_S

    async def withdraw(self) -> None:
        """The worker ends: the API need not wait until the last beat has lapsed."""
        self._heard_at = float("-inf")
        await self._redis.delete(self._redis.key.worker(self._worker.worker_id))
        for names in (self._redis.key.workers, self._redis.key.resting):
            await self._redis.srem(names, self._worker.worker_id)  # type: ignore[misc]
