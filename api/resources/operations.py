"""/v1/workers and /v1/queue: who works, and what waits."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.deps import CurrentCaller, CurrentServices, known_query
from shared.store.availability import translate_errors
from shared.store.backlog import LaneBacklog

router = APIRouter(prefix="/v1", tags=["operations"], dependencies=[known_query])


@router.get("/workers")
async def list_workers(services: CurrentServices, caller: CurrentCaller) -> dict[str, Any]:
    """The workers that are alive, as each has reported within the last 5 s, in the order of their starts."""
    found = await services.catalogue.workers()
    rows = sorted(found.items(), key=lambda one: (one[1].get("started_at") or 0, one[0]))
    return {"object": "list", "data": [_worker(worker_id, said) for worker_id, said in rows]}


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


def _worker(worker_id: str, said: dict[str, Any]) -> dict[str, Any]:
    """Of a worker of an older version some of it is not known."""
    return {
        "id": worker_id,
        "object": "worker",
        "host": said.get("host"),
        "pid": said.get("pid"),
        "version": said.get("version"),
        "started_at": said.get("started_at"),
        "status": "draining" if said.get("draining") else "active",
        "places": said.get("places"),
        "running": said.get("running", 0),
        "jobs": said.get("jobs"),
    }


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
