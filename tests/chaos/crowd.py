"""A crowd in the queue without the processes it would take: what runs elsewhere, what waits, what a lost worker held."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Self

from shared.store.keys import Lane
from tests.support.fleet import Fleet, ask
from tests.support.names import keys, wait

RUNNING = keys.running(Lane.GENERATION)
_LEASE_MS = 60_000
_AT_ONCE = 500


class Crowd:
    """A context manager: takes away what it made up. The jobs that wait are real, with logs; what runs elsewhere has no log."""

    def __init__(self, fleet: Fleet) -> None:
        self._client = fleet.client
        self.elsewhere: list[str] = []
        self._stop = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._renewing.join()
        for page in _pages(self.elsewhere):
            self._client.zrem(RUNNING, *page)
            self._client.delete(*map(keys.lease, page), *map(keys.job, page))

    def run_elsewhere(self, count: int) -> None:
        """So many jobs run in workers that are not there, and whose leases are renewed four times a lease."""
        names = [f"chatcmpl-{number:032x}" for number in range(count)]
        self.elsewhere += names
        self._lease(names)

    def wait(self, count: int, *, model: str, tenant: str = "local") -> list[str]:
        """So many generations are enqueued, without a bell; their ids, the first first."""
        ids = self._plant(count, model, tenant)
        at_ms = int(time.time() * 1000)
        for page in _pages(ids):
            self._payloads(page, at_ms, tenant)
        wait(self._client, {generation_id: at_ms + number for number, generation_id in enumerate(ids)}, tenant)
        return ids

    def held_by_one_that_is_lost(self, count: int, *, model: str, lease_ms: int = 500) -> list[str]:
        """So many generations were begun by a worker that dies now; their ids."""
        ids = self._plant(count, model)
        end_ms = self._now_ms() + lease_ms
        self._payloads(ids, 1)
        with self._client.pipeline(transaction=False) as pipe:
            for generation_id in ids:
                pipe.set(keys.lease(generation_id), b"lost", px=lease_ms)
            pipe.zadd(RUNNING, dict.fromkeys(ids, end_ms))
            pipe.execute()
        return ids

    def _plant(self, count: int, model: str, tenant: str = "local") -> list[str]:
        """What `Fleet.plant` does, for many."""
        header = {"owner": tenant, "model": f"scripted/{model}", "created_at_ms": 1, "n": 1, "include_usage": False}
        body = json.dumps(ask(model))
        ids = [f"chatcmpl-{uuid.uuid4().hex}" for _ in range(count)]
        for page in _pages(ids):
            with self._client.pipeline(transaction=False) as pipe:
                for generation_id in page:
                    key = keys.log(generation_id)
                    pipe.xadd(key, {"r": json.dumps({"id": generation_id, **header})}, id="0-1")
                    pipe.xadd(key, {"b": body}, id="0-2")
                    pipe.expire(key, 3600)
                pipe.zadd(keys.open(0), dict.fromkeys(page, 1))
                pipe.execute()
        return ids

    def _now_ms(self) -> int:
        seconds, microseconds = self._client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    def _payloads(self, ids: Iterable[str], at_ms: int, tenant: str = "local") -> None:
        with self._client.pipeline(transaction=False) as pipe:
            for generation_id in ids:
                job: dict[str, Any] = {
                    "t": None,
                    "f": "generate",
                    "a": [generation_id],
                    "k": {},
                    "et": at_ms,
                    "tenant": tenant,
                }
                pipe.set(keys.job(generation_id), json.dumps(job), ex=3600)
            pipe.execute()

    def _lease(self, names: Sequence[str]) -> None:
        end_ms = self._now_ms() + _LEASE_MS
        for page in _pages(names):
            with self._client.pipeline(transaction=False) as pipe:
                for name in page:
                    pipe.set(keys.lease(name), b"elsewhere", px=_LEASE_MS)
                pipe.zadd(RUNNING, dict.fromkeys(page, end_ms))
                pipe.execute()

    def _renew(self) -> None:
        while not self._stop.wait(_LEASE_MS / 4000):
            self._lease(list(self.elsewhere))


def begun(fleet: Fleet, ids: Sequence[str]) -> set[str]:
    """Which of these a worker has claimed."""
    return set(begun_at(fleet, ids))


def begun_at(fleet: Fleet, ids: Sequence[str]) -> dict[str, float]:
    """When each of these was claimed first, in Unix seconds; those that were not are left out."""
    with fleet.client.pipeline(transaction=False) as pipe:
        for generation_id in ids:
            pipe.xrange(keys.log(generation_id), "1-0", "1-0")
        found: list[Any] = pipe.execute()
    return {
        generation_id: json.loads(entries[0][1][b"a"])["at_ms"] / 1000
        for generation_id, entries in zip(ids, found, strict=True)
        if entries
    }


def _pages(names: Sequence[str]) -> Iterable[Sequence[str]]:
    return (names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE))
