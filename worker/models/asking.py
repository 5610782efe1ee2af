"""Asks a provider because an admin wants to know whether it answers: the API has no keys, so a worker does it.

Hidden here: what is asked, which is the list of models, since it costs nothing and needs the key; and that one worker of
several asks. What came of it is told through Redis, without the key, and without the address.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from shared.errors import StreamspoolError, UpstreamError
from shared.lib import json
from shared.lib.clock import now_ms
from shared.lib.telemetry import get_logger
from shared.store.redis import ArqRedis
from worker.providers.model_list import questions
from worker.providers.registry import Provider
from worker.upstream.attempts import without_key
from worker.upstream.health import Health
from worker.upstream.model_lists import ModelLists

logger = get_logger(__name__)

_LOOK_S = 1.0
_KEPT_S = 60


class ProviderAsker:
    """Of one worker; `run` goes on until it is cancelled. It raises RedisError, OSError."""

    def __init__(
        self, redis: ArqRedis, lists: ModelLists, providers: Mapping[str, Provider], health: Health, worker_id: str
    ) -> None:
        self._redis, self._key, self._lists = redis, redis.key, lists
        self._providers, self._health, self._worker_id = providers, health, worker_id

    async def run(self) -> None:
        while True:
            wanted: set[bytes] = await self._redis.smembers(self._key.provider_tests)  # type: ignore[misc]
            mine = [self._providers[name] for one in wanted if (name := one.decode()) in self._providers]
            await asyncio.gather(*map(self._turn, mine))
            await asyncio.sleep(_LOOK_S)

    async def _turn(self, provider: Provider) -> None:
        if not await self._redis.srem(self._key.provider_tests, provider.name):  # type: ignore[misc]
            return
        began = time.monotonic()
        found = await self._ask(provider)
        told = {"worker": self._worker_id, "at_ms": now_ms(), "ms": round((time.monotonic() - began) * 1000), **found}
        await self._redis.set(self._key.provider_test(provider.name), json.dumps(told), ex=_KEPT_S)
        logger.info("provider tested", provider=provider.name, ok=found["ok"])

    async def _ask(self, provider: Provider) -> dict[str, Any]:
        if not questions(provider):
            return {"ok": True, "models": len(provider.models), "error": None}
        try:
            models = await self._lists.ask(provider)
        except StreamspoolError as error:
            if isinstance(error, UpstreamError):
                self._health.failed(provider.name, error)
                error = without_key(error, provider)
            status = error.provider_status if isinstance(error, UpstreamError) else error.status
            told = {"message": error.message, "code": error.code, "status": status}
            return {"ok": False, "models": None, "error": told}
        self._health.answered(provider.name)
        return {"ok": True, "models": len(models), "error": None}
