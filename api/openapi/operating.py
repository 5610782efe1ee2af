"""What is answered to whoever looks after the server: workers, the queue, events. A part of the components in schemas.py."""

from __future__ import annotations

from typing import Any

from api.openapi.forms import ANY_OBJECT, TEXT, TRUTH, WHOLE, Schema, list_of, object_of, one_of, or_null, ref
from shared.log.entry import Status

_MAYBE_TEXT, _MAYBE_WHOLE = or_null(TEXT), or_null(WHOLE)
_ASKED: dict[str, Schema] = {
    "created_at_ms": WHOLE,
    "source": TEXT,
    "session_id": _MAYBE_TEXT,
    "batch_id": _MAYBE_TEXT,
    "retried_from": _MAYBE_TEXT,
}
_NAMED: dict[str, Schema] = {"id": TEXT, "tenant": TEXT, "key_id": _MAYBE_TEXT, "model": TEXT}
_COUNTS: Schema = {"type": "object", "additionalProperties": WHOLE}
_ENDED: dict[str, Schema] = {
    "status": one_of(*(one for one in Status if one not in (Status.QUEUED, Status.IN_PROGRESS))),
    "served_by": _MAYBE_TEXT,
    "refused": list_of(ANY_OBJECT),
    "retries": WHOLE,
    "error_code": _MAYBE_TEXT,
    "error_status": _MAYBE_WHOLE,
    "usage": object_of(
        "Tokens.", prompt_tokens=_MAYBE_WHOLE, completion_tokens=_MAYBE_WHOLE, total_tokens=_MAYBE_WHOLE
    ),
    "cost_usd": or_null({"type": "number"}),
    "ttft_ms": _MAYBE_WHOLE,
    "duration_ms": WHOLE,
    "by": TEXT,
}


def _event(described: str, kind: str, /, **fields: Any) -> Schema:
    return object_of(described, type=one_of(kind), at_ms=WHOLE, **fields)


_EVENTS: dict[str, Schema] = {
    "LiveAccepted": _event("A request is stored.", "accepted", **_NAMED, **_ASKED),
    "LiveClaimed": _event(
        "A worker begins an attempt.",
        "claimed",
        **_NAMED,
        attempt=WHOLE,
        reason=TEXT,
        worker=TEXT,
        queued_ms=WHOLE,
    ),
    "LiveRetried": _event(
        "The provider is asked once more.",
        "retried",
        **_NAMED,
        attempt=WHOLE,
        asked=TEXT,
        error_code=_MAYBE_TEXT,
        error_status=WHOLE,
    ),
    "LiveFirstChunk": _event(
        "The attempt has begun to speak.",
        "first_chunk",
        **_NAMED,
        attempt=WHOLE,
        served_by=_MAYBE_TEXT,
        retries=WHOLE,
        refused=list_of(ANY_OBJECT),
        ttft_ms=WHOLE,
    ),
    "LiveSealed": _event("It has its outcome.", "sealed", **_NAMED, **_ENDED),
    "LiveSettled": _event("What follows from its outcome is done.", "settled", **_NAMED, **_ENDED),
    "LiveDeleted": _event("Its owner deleted it.", "deleted", id=TEXT, tenant=TEXT),
    "LiveViewers": _event("How many watch what just now.", "viewers", streams=_COUNTS),
    "LiveWorkers": _event("Who works just now.", "workers", data=list_of(ref("Worker"))),
    "LiveCursor": object_of("Where to go on.", type=one_of("cursor")),
    "LiveSnapshot": _event(
        "What runs and waits.",
        "snapshot",
        reason=one_of("start", "gap"),
        tenant=TEXT,
        streams=list_of(ref("LiveStream")),
        more=WHOLE,
        partial=TRUTH,
        viewers=object_of("As of the event.", streams=_COUNTS),
        workers=or_null(list_of(ref("Worker"))),
    ),
}

_WORK: dict[str, Schema] = {
    "Worker": object_of(
        "A worker, as it reported within the last 5 s.",
        id=TEXT,
        object=one_of("worker"),
        host=_MAYBE_TEXT,
        pid=_MAYBE_WHOLE,
        version=_MAYBE_TEXT,
        started_at=_MAYBE_WHOLE,
        status=one_of("active", "resting", "draining"),
        places=_MAYBE_WHOLE,
        running=WHOLE,
        jobs=or_null({"type": "object", "additionalProperties": WHOLE}),
    ),
    "WorkerList": object_of("Those that are alive.", object=one_of("list"), data=list_of(ref("Worker"))),
    "Provider": object_of(
        "A provider that is on, and how it does.",
        name=TEXT,
        object=one_of("provider"),
        kind=_MAYBE_TEXT,
        has_key=or_null(TRUTH),
        models=list_of(TEXT),
        listed_models=_MAYBE_WHOLE,
        listed_at=_MAYBE_WHOLE,
        aliases=list_of(TEXT),
        last_success_at=_MAYBE_WHOLE,
        last_error=or_null(object_of("The newest.", at=WHOLE, code=_MAYBE_TEXT, status=WHOLE)),
        retry_at=_MAYBE_WHOLE,
        window_s=WHOLE,
        asked=WHOLE,
        failed=WHOLE,
        error_rate=or_null({"type": "number"}),
        first_chunk_ms=ref("StreamQuantiles"),
    ),
    "ProviderList": object_of("Those that are on.", object=one_of("list"), data=list_of(ref("Provider"))),
    "ProviderTest": object_of(
        "What came of asking it.",
        object=one_of("provider.test"),
        name=TEXT,
        ok=TRUTH,
        ms=WHOLE,
        models=_MAYBE_WHOLE,
        error=or_null(object_of("Why it failed.", message=TEXT, code=_MAYBE_TEXT, status=WHOLE)),
        worker=TEXT,
        at_ms=WHOLE,
    ),
    "QueueTenant": object_of("A tenant's jobs that wait.", tenant=TEXT, waiting=WHOLE, oldest_at=WHOLE),
    "QueueLane": object_of(
        "What waits and runs apart from the rest.",
        object=one_of("queue.lane"),
        lane=one_of("generation", "background", "line", "batch"),
        running=WHOLE,
        waiting=WHOLE,
        oldest_at=_MAYBE_WHOLE,
        tenants=list_of(ref("QueueTenant")),
        more_tenants=WHOLE,
    ),
    "Queue": object_of("All lanes.", object=one_of("list"), data=list_of(ref("QueueLane"))),
}

OPERATING: dict[str, Schema] = {
    **_WORK,
    **_EVENTS,
    "LiveStream": object_of(
        "A generation without an outcome.",
        **_NAMED,
        **_ASKED,
        status=one_of(Status.QUEUED, Status.IN_PROGRESS),
        attempt=WHOLE,
        worker=_MAYBE_TEXT,
        served_by=_MAYBE_TEXT,
        queued_ms=_MAYBE_WHOLE,
        ttft_ms=_MAYBE_WHOLE,
    ),
    "StreamFacet": object_of(
        "The values of one facet, the most frequent first.",
        values=list_of(object_of("A value.", value=TEXT, count=WHOLE)),
        more=WHOLE,
    ),
    "StreamQuantiles": object_of(
        "Of a time, in ms.",
        count=WHOLE,
        p50=_MAYBE_WHOLE,
        p90=_MAYBE_WHOLE,
        p95=_MAYBE_WHOLE,
        p99=_MAYBE_WHOLE,
        max=_MAYBE_WHOLE,
    ),
    "StreamFacets": object_of(
        "What a list is made of.",
        object=one_of("stream.facets"),
        looked_at=WHOLE,
        partial=TRUTH,
        matched=WHOLE,
        facets={"type": "object", "additionalProperties": ref("StreamFacet")},
        histogram=object_of(
            "When they were made.",
            bucket_s=_MAYBE_WHOLE,
            buckets=list_of(object_of("A bar.", at=WHOLE, count=WHOLE, statuses=_COUNTS)),
        ),
        duration_ms=ref("StreamQuantiles"),
        ttft_ms=ref("StreamQuantiles"),
        tokens=WHOLE,
        cost_usd={"type": "number"},
        unknown_costs=WHOLE,
    ),
    "Redis": object_of(
        "What Redis says of itself. Null: it does not say, or its user may not ask.",
        object=one_of("redis"),
        version=_MAYBE_TEXT,
        role=_MAYBE_TEXT,
        up_s=_MAYBE_WHOLE,
        answered_ms={"type": "number"},
        used_bytes=_MAYBE_WHOLE,
        peak_bytes=_MAYBE_WHOLE,
        limit_bytes=_MAYBE_WHOLE,
        eviction_policy=_MAYBE_TEXT,
        evicted_keys=_MAYBE_WHOLE,
        keys=_MAYBE_WHOLE,
        clients=_MAYBE_WHOLE,
        commands_per_s=_MAYBE_WHOLE,
        appendonly=or_null(TRUTH),
        last_write_ok=or_null(TRUTH),
    ),
    "Setting": object_of(
        "As it is written in the environment, secrets masked.",
        name=TEXT,
        value=TEXT,
        source=one_of("environment", ".env", "streamspool.toml", "default"),
    ),
    "SettingList": object_of("All of them.", object=one_of("list"), data=list_of(ref("Setting"))),
    "LiveEvent": {"oneOf": [ref(name) for name in _EVENTS]},
}
"""Components."""
