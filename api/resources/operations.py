"""Who works, what waits, how providers and Redis do, what is kept of what ended, and how this server is set."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.deps import CurrentCaller, CurrentServices, known_query
from shared.config.shown import listed
from shared.store.availability import translate_errors
from shared.store.backlog import LaneBacklog

router = APIRouter(prefix="/v1", tags=["operations"], dependencies=[known_query])


@router.get("/workers")
async def list_workers(services: CurrentServices, caller: CurrentCaller) -> dict[str, Any]:
    """The workers that are alive, as each has reported within the last 5 s, in the order of their starts."""
    return {"object": "list", "data": await services.catalogue.worker_objects()}


@router.post("/workers/{worker_id}/drain")
async def drain_worker(services: CurrentServices, caller: CurrentCaller, worker_id: str) -> dict[str, Any]:
    """Has a worker begin nothing more, within 5 s; what runs there goes on. Returns its object as it will be."""
    return await services.catalogue.let_rest(worker_id, resting=True)


@router.post("/workers/{worker_id}/resume")
async def resume_worker(services: CurrentServices, caller: CurrentCaller, worker_id: str) -> dict[str, Any]:
    """Has a worker begin again what waits, within 5 s."""
    return await services.catalogue.let_rest(worker_id, resting=False)


@router.get("/queue")
async def queue(
    services: CurrentServices,
    caller: CurrentCaller,
    tenant: Annotated[str | None, Query(description="an admin's: only what this tenant waits for; `*`: all")] = None,
) -> dict[str, Any]:
    """What waits for a worker, and how much runs, by lane: of every tenant's for admins, else of the caller's own."""
    whose = (None if tenant in (None, "*") else tenant) if caller.role == "admin" else caller.tenant
    with translate_errors():
        lanes = await services.backlog.look(whose)
    return {"object": "list", "data": [_lane(one) for one in lanes]}


@router.get("/providers")
async def list_providers(services: CurrentServices, caller: CurrentCaller) -> dict[str, Any]:
    """The providers that are on, and how they did when the workers asked them, in the last minutes and the last time."""
    return {"object": "list", "data": await services.providers.listed()}


@router.post("/providers/{name}/test")
async def try_provider(services: CurrentServices, caller: CurrentCaller, name: str) -> dict[str, Any]:
    """Has a worker ask the provider for its list of models, and tells what came of it."""
    return {"object": "provider.test", "name": name, **await services.providers.test(name)}


def _lane(one: LaneBacklog) -> dict[str, Any]:
    return {
        "object": "queue.lane",
        "lane": one.lane,
        "running": one.running,
        "waiting": one.waiting,
        "oldest_at": None if one.oldest_ms is None else one.oldest_ms // 1000,
        "tenants": [
            {"tenant": row.tenant, "waiting": row.waiting, "oldest_at": row.oldest_ms // 1000} for row in one.tenants
        ],
        "more_tenants": one.more,
    }


@router.get("/history")
async def history(services: CurrentServices, caller: CurrentCaller) -> dict[str, Any]:
    """Whether there is a history, how long it goes back, and what of it waits or was lost. Rows of all tenants."""
    if services.history is None:
        return {"object": "history", "status": "off", "kept_s": None, "added": 0, "waiting": 0, "lost": 0}
    found = await services.outbox.figures()
    return {
        "object": "history",
        "status": "ok" if await services.history.is_there() else "away",
        "kept_s": int(services.settings.history_s),
        "added": found.added,
        "waiting": found.waiting,
        "lost": found.lost,
    }


@router.get("/redis")
async def about_redis(services: CurrentServices, caller: CurrentCaller) -> dict[str, Any]:
    """What Redis says of itself: its memory, what it had to evict, how soon it answers."""
    return {"object": "redis", **await services.catalogue.store()}


@router.get("/settings")
async def settings(services: CurrentServices, caller: CurrentCaller) -> dict[str, Any]:
    """The settings of this API process as they are in effect, secrets masked, and where each is from."""
    return {"object": "list", "data": listed(services.settings)}
