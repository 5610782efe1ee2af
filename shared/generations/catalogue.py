"""What the workers can do, as they last reported: providers, models, names of one's own; and how many workers there are. And
whether anything can be stored for them."""

from __future__ import annotations

import time
from typing import Any

from shared.errors import NotFound, Unavailable
from shared.lib import json
from shared.store.availability import translate_errors
from shared.store.redis import ArqRedis

_PROBE_MS = 60_000
_SHOWN = 64
"""Characters of a name that an error repeats."""
_AGE_S = 1.0
"""For so long a report is good; one that lacks what is asked for is read again at once."""


def model_object(model: str, owned_by: str) -> dict[str, Any]:
    """OpenAI's model object. `created` is 0: it is not known here."""
    return {"id": model, "object": "model", "created": 0, "owned_by": owned_by}


class Catalogue:
    """Every method may raise Unavailable."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
        self._key = redis.key
        self._report: dict[str, Any] | None = None
        self._read_at = 0.0

    async def models(self) -> list[dict[str, Any]]:
        """OpenAI model objects: the names given in `[models]`, and what the providers that are on are known to have."""
        catalogue = await self._catalogue()
        names = [(alias, "streamspool") for alias in catalogue["aliases"]]
        names += [
            (f"{name}/{model}", name)
            for name, provider in catalogue["providers"].items()
            for model in provider["models"]
        ]
        return [model_object(model, owned_by) for model, owned_by in names]

    async def check(self, model: str) -> None:
        """Raises NotFound unless `model` is one of `[models]`, or `provider/model` with a provider that is on."""
        name, slash, rest = model.partition("/")
        catalogue = await self._catalogue()
        if name not in catalogue["providers"] and model not in catalogue["aliases"]:
            catalogue = await self._catalogue(fresh=True)
        if model in catalogue["aliases"]:
            return
        providers = catalogue["providers"]
        if not slash or not rest or name not in providers:
            known = ", ".join(sorted([*catalogue["aliases"], *(f"{name}/…" for name in providers)])) or "none"
            wrong = "Model names are `provider/model`."
            if slash and name and rest:  # well-formed: to repeat the form would not help
                wrong = (
                    f"No provider `{name[:_SHOWN]}` is on: its key, or its address, has to be in the environment, or in "
                    ".env, of every worker when that starts."
                )
            raise NotFound(
                f"{wrong} Switched on: {known}. GET /v1/models lists models.",
                code="model_not_found",
                param="model",
            )
        provider = providers[name]
        if not provider["open"] and rest.partition("?")[0] not in provider["models"]:
            raise NotFound(
                f"Provider `{name}` has no such model; it has: {', '.join(provider['models'])}.",
                code="model_not_found",
                param="model",
            )

    async def workers(self) -> int:
        """How many workers have been heard of in the last 15 s."""
        with translate_errors():
            ids: set[bytes] = await self._redis.smembers(self._key.workers)  # type: ignore[misc]
            if not ids:
                return 0
            beats = await self._redis.mget([self._key.worker(worker_id.decode()) for worker_id in ids])
        return sum(beat is not None for beat in beats)

    async def probe(self) -> None:
        """Writes something small: raises Unavailable if nothing new can be stored just now."""
        with translate_errors():
            await self._redis.set(self._redis.key.probe, b"1", px=_PROBE_MS)

    async def _catalogue(self, *, fresh: bool = False) -> dict[str, Any]:
        """`{providers: {NAME: {models, open}}, aliases: {NAME: [MODEL]}}`; raises Unavailable if no worker ever spoke."""
        age = time.monotonic() - self._read_at
        if fresh or self._report is None or age > _AGE_S:
            with translate_errors():
                raw = await self._redis.get(self._key.catalogue)
            if raw is None:
                raise Unavailable(
                    "No worker has reported for duty yet. Start one with `streamspool worker`.", code="no_worker"
                )
            catalogue = json.loads(raw)
            catalogue.setdefault("aliases", {})  # from a worker of an older version
            self._report, self._read_at = catalogue, time.monotonic()
        assert self._report is not None
        return self._report
