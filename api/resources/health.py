"""What probes and dashboards ask; no key needed, nothing about any generation is told."""

from __future__ import annotations

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
    nothing; those that stop are about to be replaced."""
    catalogue, workers, resting, store = services.catalogue, None, 0, "ok"
    serve = accept = "stopping" if services.drain.native and not services.drain.followed else "ok"
    try:
        async with deadline():
            found = await catalogue.workers()
            workers, resting = len(found), sum(bool(said.get("resting")) for said in found.values())
            await catalogue.probe()
    except Unavailable as error:
        store = error.code
        accept = error.code if accept == "ok" else accept
        if workers is None and serve == "ok":
            serve = error.code
    if workers == resting and accept == "ok":
        accept = "workers_resting" if resting else "no_worker"
    alive = "unknown" if workers is None else f"{workers} alive{f', {resting} resting' if resting else ''}"
    return {"accept": accept, "serve": serve, "redis": store, "workers": alive}


@router.get("/metrics")
async def metrics(services: CurrentServices, request: Request) -> Response:
    """Prometheus text of this process, and what Redis says of all together. Each worker serves its own
    (STREAMSPOOL_WORKER_METRICS_PORT)."""
    await measure(services.catalogue, services.backlog)
    text, content_type = exposition(request.headers.get("accept"))
    return Response(text, headers={"content-type": content_type})
