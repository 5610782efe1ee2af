"""What probes and dashboards ask; no key needed, nothing about any generation is told."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.deps import CurrentServices
from api.resources.gauges import measure
from api.services import Services
from shared.errors import Unavailable
from shared.lib.telemetry import exposition
from shared.store.availability import deadline

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
@router.get("/health")
async def alive() -> dict[str, str]:
    """This process runs; nothing else is looked at."""
    return {"status": "ok"}


@router.get("/readyz")
async def ready(
    services: CurrentServices, wanted: Annotated[Literal["accept", "serve", "both"], Query(alias="for")] = "both"
) -> JSONResponse:
    """Whether what is asked for can be done now.

    `accept`: a new request would be stored and run, so Redis takes writes, a worker is alive that does not rest, and this
    process is not stopping, unless another is in its place. `serve`: what is there can be read, cancelled and deleted; a full
    Redis is no hindrance.
    """
    found = await checks(services)
    well = all(found[one] == "ok" for one in (("accept", "serve") if wanted == "both" else (wanted,)))
    return JSONResponse({"status": "ok" if well else "unavailable", "checks": found}, 200 if well else 503)


async def checks(services: Services) -> dict[str, str]:
    """`ok` or why not, of `accept`, `serve` and `redis`; and `workers`, how many are alive. Those that an admin lets rest begin
    nothing; those that stop are about to be replaced. Where the queue has a server of its own, `queue` is that one."""
    parted = services.settings.control_url is not None
    (workers, resting, queue), (answers, logs) = await asyncio.gather(_look(services), _look_at_logs(services, parted))
    serve = accept = "stopping" if services.drain.native and not services.drain.followed else "ok"
    if accept == "ok":
        accept = logs if queue == "ok" else queue
    if serve == "ok" and workers is None:
        serve = queue
    if serve == "ok" and not answers:
        serve = logs
    if workers == resting and accept == "ok":
        accept = "workers_resting" if resting else "no_worker"
    alive = "unknown" if workers is None else f"{workers} alive{f', {resting} resting' if resting else ''}"
    stores = {"redis": logs, "queue": queue} if parted else {"redis": queue}
    return {"accept": accept, "serve": serve, **stores, "workers": alive}


async def _look(services: Services) -> tuple[int | None, int, str]:
    """How many workers live, None if that cannot be told, how many of them rest, and how the queue's server is."""
    workers, resting = None, 0
    try:
        async with deadline():
            found = await services.catalogue.workers()
            workers, resting = len(found), sum(bool(said.get("resting")) for said in found.values())
            await services.catalogue.probe()
    except Unavailable as error:
        return workers, resting, error.code
    return workers, resting, "ok"


async def _look_at_logs(services: Services, parted: bool) -> tuple[bool, str]:
    """Whether their server answers, and how it is; where it is the queue's, that says it."""
    answers = not parted
    try:
        if parted:
            async with deadline():
                await services.catalogue.probe_logs(write=False)
                answers = True
                await services.catalogue.probe_logs(write=True)
    except Unavailable as error:
        return answers, error.code
    return True, "ok"


@router.get("/metrics")
async def metrics(services: CurrentServices, request: Request) -> Response:
    """Prometheus text of this process, and what Redis says of all together. Each worker serves its own
    (STREAMSPOOL_WORKER_METRICS_PORT)."""
    await measure(services.catalogue, services.backlog)
    text, content_type = exposition(request.headers.get("accept"))
    return Response(text, headers={"content-type": content_type})
