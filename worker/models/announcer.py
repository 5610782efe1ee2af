"""Which models there are, as the providers themselves say: asked by one worker of several, and kept in Redis.

Hidden here: that whoever comes first asks, each provider by itself and all of them side by side; when each is asked again;
and that what a provider said last stands for as long as it is away. The API only reads (shared/generations/catalogue.py):
it has no keys, and waits for no provider.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping

from shared.config.settings import Settings
from shared.errors import StreamspoolError, UpstreamError
from shared.lib import json
from shared.lib.clock import now_ms
from shared.lib.telemetry import get_logger
from shared.store.redis import ArqRedis, OutOfMemoryError
from worker.providers.model_list import chosen, questions
from worker.providers.registry import Provider
from worker.upstream.health import Health
from worker.upstream.model_lists import DETAILS_S, LIST_S, ModelLists

logger = get_logger(__name__)

KEPT_S = 86400
"""What a provider said is shown for so long while it does not answer, as the catalogue is while there is no worker."""
_LOOK_S = 15.0
_TURN_S = int(LIST_S + DETAILS_S) + 5
"""For so long one worker has a provider to itself."""
_FAILED_S = 60.0


class ModelAnnouncer:
    """Of one worker; `run` goes on until it is cancelled. It raises RedisError, OSError."""

    def __init__(
        self,
        redis: ArqRedis,
        lists: ModelLists,
        providers: Mapping[str, Provider],
        settings: Settings,
        health: Health,
    ) -> None:
        self._redis, self._lists, self._health = redis, lists, health
        self._every_s = settings.models_refresh_s
        self._looked = False
        self._only, self._without = settings.models_only, settings.models_without
        self._providers = {
            name: provider
            for name, provider in providers.items()
            if questions(provider) and not {f"{name}/*", "*/*", "*"} & set(self._without)
        }

    async def run(self) -> None:
        if not self._every_s or not self._providers:
            await asyncio.Event().wait()  # told not to ask; a loop that ended would end the worker
        while True:
            await self.look()
            await asyncio.sleep(min(_LOOK_S, self._every_s))

    async def look(self) -> None:
        """Asks those whose turn it is, and that no other worker asks."""
        if not self._looked:
            await self._forget_outdated()
            self._looked = True
        turns = [self._turn(provider) for provider in self._providers.values()]
        for problem in await asyncio.gather(*turns, return_exceptions=True):
            # Where there is no room for a list, others have more important things to say of that.
            if isinstance(problem, BaseException) and not isinstance(problem, OutOfMemoryError):
                raise problem

    async def _forget_outdated(self) -> None:
        """A list that was asked for elsewhere, or chosen by other patterns, is asked for anew at once."""
        key = self._redis.key
        names = list(self._providers)
        for name, raw in zip(names, await self._redis.mget([key.model_list(name) for name in names]), strict=True):
            if raw is not None and json.loads(raw).get("of") != self._fingerprint(self._providers[name]):
                await self._redis.delete(key.model_turn(name))

    async def _turn(self, provider: Provider) -> None:
        """Asks, if it is time and no other worker does."""
        turn = self._redis.key.model_turn(provider.name)
        if not await self._redis.set(turn, b"asked", nx=True, ex=_TURN_S):
            return
        pause_s = min(_FAILED_S, self._every_s)
        try:
            found = await self._lists.ask(provider)
        except UpstreamError as error:
            self._health.failed(provider.name, error)
            logger.info(
                "models not listed", provider=provider.name, error_code=error.code, status=error.provider_status
            )
            if error.provider_status in (401, 403):
                pause_s = self._every_s  # it will not be another answer in a minute
        except StreamspoolError as error:
            logger.info("models not listed", provider=provider.name, error_code=error.code)
        else:
            self._health.answered(provider.name)
            shown = chosen(lambda name: f"{provider.name}/{name}", found, self._only, self._without)
            told = {"of": self._fingerprint(provider), "at_ms": now_ms(), "models": shown}
            await self._redis.set(self._redis.key.model_list(provider.name), json.dumps(told), ex=KEPT_S)
            pause_s = self._every_s
            logger.debug("models listed", provider=provider.name, count=len(shown))
        await self._redis.set(turn, b"rests", px=max(1, int(pause_s * 1000)))

    def _fingerprint(self, provider: Provider) -> str:
        """Of what the list depends on. The key is not in it."""
        depends = [provider.kind, provider.base_url, list(self._only), list(self._without)]
        return hashlib.sha256(json.dumps(depends)).hexdigest()[:16]
