"""What the workers can do, as they last reported: providers, models, names of one's own; and how many workers there are. And
whether anything can be stored for them.

Hidden here: that models come from three places, `[models]`, `[providers.NAME]` and the providers' own lists
(worker/models/announcer.py), and that all of it is kept for a moment.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

from shared.errors import NotFound, Unavailable
from shared.lib import json
from shared.store.availability import translate_errors
from shared.store.redis import ArqRedis, NoPermissionError

_PROBE_MS = 60_000
_SHOWN = 64
"""Characters of a name that an error repeats."""
_AGE_S = 1.0
"""For so long a report is good; one that lacks what is asked for is read again at once."""
_LISTS_AGE_S = 2.0
"""And the providers' lists, which are long, and change by the minute at most."""
_RESTING_S = 86400
_NAMING = ("id", "object", "created", "owned_by", "name")
_OURS = "streamspool"
"""Who owns a name of one's own."""


def _model_object(model: str, owned_by: str) -> dict[str, Any]:
    """OpenAI's model object. `created` is 0: it is not known here."""
    return {"id": model, "object": "model", "created": 0, "owned_by": owned_by}


def _alias_object(alias: str, targets: list[str], listed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """With what its model can do, where it has one; of several, any may be the one that answers."""
    told = listed.get(targets[0], {}) if len(targets) == 1 else {}
    return {**_model_object(alias, _OURS), **{field: value for field, value in told.items() if field not in _NAMING}}


def _has(catalogue: dict[str, Any], model: str) -> bool:
    """Whether a model may be asked for by this name, as far as a report says."""
    name, _, rest = model.partition("/")
    provider = catalogue["providers"].get(name) if rest else None
    own = provider is not None and (provider["open"] or rest.partition("?")[0] in provider["models"])
    return own or model in catalogue["aliases"]


def _worker_object(worker_id: str, said: dict[str, Any]) -> dict[str, Any]:
    """Of a worker of an older version some of it is not known."""
    return {
        "id": worker_id,
        "object": "worker",
        "host": said.get("host"),
        "pid": said.get("pid"),
        "version": said.get("version"),
        "started_at": said.get("started_at"),
        "status": "draining" if said.get("draining") else "resting" if said.get("resting") else "active",
        "places": said.get("places"),
        "running": said.get("running", 0),
        "jobs": said.get("jobs"),
    }


class Catalogue:
    """Every method may raise Unavailable."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
        self._key = redis.key
        self._report: dict[str, Any] | None = None
        self._read_at = 0.0
        self._models: dict[str, dict[str, Any]] = {}
        self._listed_at: float | None = None

    async def models(self) -> list[dict[str, Any]]:
        """OpenAI model objects: the names given in `[models]`, then provider by provider those that streamspool.toml names
        and those that the provider lists, each once. No provider is asked: a worker does that."""
        return list((await self._all_models()).values())

    async def model(self, model: str) -> dict[str, Any]:
        """One of them; the bare object for what may be asked for and is not listed. Raises NotFound, as `check`."""
        await self.check(model)
        listed = (await self._all_models()).get(model)
        provider, slash, _ = model.partition("/")
        return listed or _model_object(model, provider if slash else _OURS)

    async def _all_models(self) -> dict[str, dict[str, Any]]:
        if self._listed_at is not None and time.monotonic() - self._listed_at < _LISTS_AGE_S:
            return self._models
        catalogue = await self._catalogue()
        names = list(catalogue["providers"])
        with translate_errors():
            lists = await self._redis.mget([self._key.model_list(name) for name in names]) if names else []
        listed: dict[str, dict[str, Any]] = {}
        for name, raw in zip(names, lists, strict=True):
            for model in catalogue["providers"][name]["models"]:
                listed[f"{name}/{model}"] = _model_object(f"{name}/{model}", name)
            for told in json.loads(raw)["models"] if raw else ():
                model = f"{name}/{told['id']}"
                listed[model] = {**told, "id": model, "owned_by": told["owned_by"] or name}
        aliases = {alias: _alias_object(alias, targets, listed) for alias, targets in catalogue["aliases"].items()}
        self._models, self._listed_at = {**aliases, **listed}, time.monotonic()
        return self._models

    async def look(self) -> None:
        """Reads the report now, so that whoever asks within a second need not wait for it."""
        await self._catalogue(fresh=True)

    def knows(self, model: str) -> bool:
        """Whether `check` has nothing to wait for, and nothing to refuse: the report that is good now has it."""
        return self._report is not None and not self._is_old() and _has(self._report, model)

    async def check(self, model: str) -> None:
        """Raises NotFound unless `model` is one of `[models]`, or `provider/model` with a provider that is on."""
        name, slash, rest = model.partition("/")
        catalogue = await self._catalogue()
        if name not in catalogue["providers"] and model not in catalogue["aliases"]:
            catalogue = await self._catalogue(fresh=True)
        if _has(catalogue, model):
            return
        providers = catalogue["providers"]
        if not rest or name not in providers:
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
        raise NotFound(
            f"Provider `{name}` has no such model; it has: {', '.join(providers[name]['models'])}.",
            code="model_not_found",
            param="model",
        )

    async def speaks_responses(self, model: str) -> bool:
        """Whether all who may answer for this model speak OpenAI's Responses format themselves."""
        catalogue = await self._catalogue()
        names = catalogue["aliases"].get(model, [model])
        return all(catalogue["providers"].get(name.partition("/")[0], {}).get("responses") for name in names)

    async def providers(self) -> dict[str, Any]:
        """`{providers: {NAME: {kind, key, models, open, responses}}, aliases: {NAME: [MODEL]}}`, as a worker said last."""
        return await self._catalogue()

    async def workers(self) -> dict[str, dict[str, Any]]:
        """The workers that have been heard of in the last 15 s, by id, with what each said (`worker/heartbeat.py`)."""
        with translate_errors():
            found: set[bytes] = await self._redis.smembers(self._key.workers)  # type: ignore[misc]
            ids = sorted(worker_id.decode() for worker_id in found)
            beats = await self._redis.mget([self._key.worker(worker_id) for worker_id in ids]) if ids else []
        return {worker_id: json.loads(beat) for worker_id, beat in zip(ids, beats, strict=True) if beat is not None}

    async def worker_objects(self) -> list[dict[str, Any]]:
        """The same as the API shows them, in the order of their starts."""
        found = await self.workers()
        rows = sorted(found.items(), key=lambda one: (one[1].get("started_at") or 0, one[0]))
        return [_worker_object(worker_id, said) for worker_id, said in rows]

    async def let_rest(self, worker_id: str, *, resting: bool) -> dict[str, Any]:
        """Has a worker begin nothing more, or begin again, from its next heartbeat on. Returns its object as it will be.
        Raises NotFound."""
        found = [one for one in await self.worker_objects() if one["id"] == worker_id]
        if not found:
            raise NotFound("There is no such worker, or none that lives.")
        with translate_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                (pipe.sadd if resting else pipe.srem)(self._key.resting, worker_id)
                pipe.expire(self._key.resting, _RESTING_S)
                await pipe.execute()
        status = found[0]["status"]
        return {**found[0], "status": status if status == "draining" else "resting" if resting else "active"}

    async def store(self) -> dict[str, Any]:
        """What Redis, of two servers that of the logs, says of itself, in bytes, seconds and counts; null: it does not say, or
        its user may not ask."""
        start = time.monotonic()
        with translate_errors():
            try:
                found = await self._redis.at(0).info()
            except NoPermissionError:  # no failure, and no line in the log at each scrape
                found = {}
        ms = (time.monotonic() - start) * 1000
        return {
            "version": found.get("valkey_version") or found.get("redis_version"),
            "role": found.get("role"),
            "up_s": found.get("uptime_in_seconds"),
            "answered_ms": round(ms, 1),
            "used_bytes": found.get("used_memory"),
            "peak_bytes": found.get("used_memory_peak"),
            "limit_bytes": found.get("maxmemory") or None,
            "eviction_policy": found.get("maxmemory_policy"),
            "evicted_keys": found.get("evicted_keys"),
            "keys": sum(db["keys"] for name, db in found.items() if re.fullmatch(r"db\d+", name)) if found else None,
            "clients": found.get("connected_clients"),
            "commands_per_s": found.get("instantaneous_ops_per_sec"),
            "appendonly": bool(found["aof_enabled"]) if "aof_enabled" in found else None,
            "last_write_ok": found["aof_last_write_status"] == "ok" if "aof_last_write_status" in found else None,
        }

    async def probe(self) -> None:
        """Writes something small, of two servers to that of the queue: raises Unavailable if nothing new can be stored just
        now."""
        with translate_errors():
            await self._redis.set(self._key.probe, b"1", px=_PROBE_MS)

    async def probe_logs(self, *, write: bool) -> None:
        """The same where the logs are, if that is another server, or only whether it answers; of a cluster, one node does."""
        cells = self._key.cells.count
        names = [self._key.marker("probe", cell) for cell in {0, cells // 3, 2 * cells // 3}]
        found = await asyncio.gather(*(self._ask(name, write=write) for name in names), return_exceptions=True)
        failures = [one for one in found if isinstance(one, BaseException)]
        if len(failures) == len(found):
            raise failures[0]

    async def _ask(self, name: str, *, write: bool) -> None:
        with translate_errors():
            if write:
                await self._redis.set(name, b"1", px=_PROBE_MS)
            else:
                await self._redis.exists(name)

    async def _catalogue(self, *, fresh: bool = False) -> dict[str, Any]:
        """`{providers: {NAME: {models, open}}, aliases: {NAME: [MODEL]}}`; raises Unavailable if no worker ever spoke."""
        if fresh or self._report is None or self._is_old():
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

    def _is_old(self) -> bool:
        return time.monotonic() - self._read_at > _AGE_S
