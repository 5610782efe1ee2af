"""What probes and dashboards ask; no key needed, nothing about any generation is told."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from api.deps import ProcessParts
from shared.errors import Unavailable

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
@router.get("/health")
async def alive() -> dict[str, str]:
    """This process runs; nothing else is looked at."""
    return {"status": "ok"}


@router.get("/readyz")
async def ready(parts: ProcessParts) -> JSONResponse:
    """Whether a generation asked for now would be stored and run: Redis answers and a worker is alive."""
    checks: dict[str, str] = {}
    try:
        workers = await parts.broker.catalogue.workers()
        checks = {"redis": "ok", "workers": f"{workers} alive"}
    except Unavailable as error:
        workers, checks = 0, {"redis": error.code, "workers": "unknown"}
    if parts.drain.native:
        checks["server"] = "stopping"
    well = workers > 0 and not parts.drain.native
    return JSONResponse({"status": "ok" if well else "unavailable", "checks": checks}, 200 if well else 503)


@router.get("/metrics")
async def metrics() -> Response:
    """Prometheus text of this process. Each worker serves its own (STREAMSPOOL_WORKER_METRICS_PORT)."""
    return Response(generate_latest(), headers={"content-type": CONTENT_TYPE_LATEST})
