"""The providers, as the workers that ask them find them; and a test of one, which a worker makes.

Hidden here: what several workers say of one provider, as one; and the way a test goes through Redis, since an API process has
no keys of providers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from shared.errors import NotFound, Unavailable
from shared.features.listing.facets import quantiles
from shared.generations.catalogue import Catalogue
from shared.lib import json
from shared.store.availability import translate_errors
from shared.store.redis import ArqRedis

WINDOW_S = 300
"""What is counted of how it does is of so long."""
_WANTED_S = 30
_PATIENCE_S, _LOOK_S = 15.0, 0.2


class Providers:
    """Methods raise Unavailable."""

    def __init__(self, redis: ArqRedis, catalogue: Catalogue) -> None:
        self._redis, self._key, self._catalogue = redis, redis.key, catalogue

    async def listed(self) -> list[dict[str, Any]]:
        """Objects of those that are on, by name."""
        told = await self._catalogue.providers()
        beats = await self._catalogue.workers()
        health = [beat.get("health") or {} for beat in beats.values()]
        names = sorted(told["providers"])
        with translate_errors():
            lists = await self._redis.mget([self._key.model_list(name) for name in names]) if names else []
        found = []
        for name, raw in zip(names, lists, strict=True):
            about, models = told["providers"][name], json.loads(raw) if raw else None
            aliases = [
                alias
                for alias, targets in told["aliases"].items()
                if any(target.partition("/")[0] == name for target in targets)
            ]
            found.append(
                {
                    "name": name,
                    "object": "provider",
                    "kind": about.get("kind"),
                    "has_key": about.get("key"),
                    "models": about["models"],
                    "listed_models": len(models["models"]) if models else None,
                    "listed_at": models["at_ms"] // 1000 if models and "at_ms" in models else None,
                    "aliases": sorted(aliases),
                    **merged([one[name] for one in health if name in one]),
                }
            )
        return found

    async def test(self, name: str) -> dict[str, Any]:
        """Has a worker ask the provider for its models; what came of it. Raises NotFound; and Unavailable if no worker did."""
        if name not in (await self._catalogue.providers())["providers"]:
            raise NotFound("There is no provider of this name that is on.")
        result = self._key.provider_test(name)
        with translate_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(result)
                pipe.sadd(self._key.provider_tests, name)
                pipe.expire(self._key.provider_tests, _WANTED_S)
                await pipe.execute()
            for _ in range(int(_PATIENCE_S / _LOOK_S)):
                if (raw := await self._redis.get(result)) is not None:
                    told: dict[str, Any] = json.loads(raw)
                    return told
                await asyncio.sleep(_LOOK_S)
        raise Unavailable("No worker has asked the provider. Is one running that has it?", code="no_worker")


def merged(said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several workers say of one provider. Nothing, if it was not asked since they started."""
    errors = [one["error"] for one in said if one["error"]]
    last = max(errors, key=lambda error: error["at_ms"], default=None)
    successes = [one["success_at_ms"] for one in said if one["success_at_ms"]]
    retries = [one["retry_at_ms"] for one in said if one["retry_at_ms"]]
    asked, failed = sum(one["asked"] for one in said), sum(one["failed"] for one in said)
    return {
        "last_success_at": max(successes) // 1000 if successes else None,
        "last_error": {"at": last["at_ms"] // 1000, "code": last["code"], "status": last["status"]} if last else None,
        "retry_at": max(retries) // 1000 if retries else None,
        "window_s": WINDOW_S,
        "asked": asked,
        "failed": failed,
        "error_rate": round(failed / asked, 4) if asked else None,
        "first_chunk_ms": quantiles([ms for one in said for ms in one["first_ms"]]),
    }
