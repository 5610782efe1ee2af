"""A generation's state: one object, whichever surface started it, which GET, lists, cancel and a background POST return.

Hidden here: which of it the log says, and what only this process (its viewers) or the webhook's delivery knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from api.errors import outcome_error
from api.services import Services
from shared.errors import wire_error
from shared.lib import money
from shared.lib.traces.tracing import trace_id
from shared.log.entry import BEGIN
from shared.log.records import Outcome, Served, Summary


def stream_headers(generation_id: str, root: str) -> dict[str, str]:
    """Response headers by which a client finds the stream again; `root` is the prefix that a proxy shows us under."""
    return {"location": f"{root}/v1/streams/{generation_id}", "x-stream-id": generation_id}


async def states(services: Services, summaries: Sequence[Summary], root: str) -> list[dict[str, Any]]:
    """The state objects of these generations, as this process sees them."""
    return [
        state(summary, viewers=services.hub.viewers(summary.header["id"]), delivery=delivery, root=root)
        for summary, delivery in zip(summaries, await services.webhooks.deliveries(summaries), strict=True)
    ]


def state(summary: Summary, *, viewers: int, delivery: dict[str, Any] | None, root: str) -> dict[str, Any]:
    """`viewers` counts those of this process; `delivery` is its webhook's state (shared/features/webhooks.py).

    Times are Unix seconds; `position` is the last chunk's, null before any.
    """
    header, outcome = summary.header, summary.outcome
    generation_id = header["id"]
    error = (outcome_error(outcome) or outcome["error"]) if outcome else None  # also why an answer is incomplete
    served = (outcome.get("served") if outcome else None) or (
        summary.attempts[-1].get("served", Served()) if summary.attempts else Served()
    )
    batch = header.get("batch")
    return {
        "id": generation_id,
        "object": "stream",
        "status": summary.status,
        "model": header["model"],
        "created_at": header["created_at_ms"] // 1000,
        "started_at": summary.attempts[0]["at_ms"] // 1000 if summary.attempts else None,
        "ended_at": outcome["ended_at_ms"] // 1000 if outcome else None,
        "attempts": summary.attempts[-1].get("number", summary.position.epoch) if summary.attempts else 0,
        "interrupted": [attempt["reason"] for attempt in summary.attempts[1:]],
        "served_by": served.get("model"),
        "refused": served.get("refused", []),
        "retries": served.get("retries", 0),
        "timings": _timings(summary),
        "chunks": summary.position.seq if summary.attempts else 0,
        "position": str(summary.position) if summary.position > BEGIN else None,
        "usage": outcome.get("usage") if outcome else None,
        "usage_source": outcome.get("usage_source") if outcome else None,
        **cost(outcome),
        "characters": outcome.get("characters") if outcome else None,
        "finish_reasons": (outcome.get("finish_reasons") or []) if outcome else [],
        "error": {**wire_error(error), "status": error.get("status")} if error else None,
        "sealed_by": outcome.get("by") if outcome else None,
        "metadata": header.get("metadata") or {},
        "stored": header.get("store", False),
        "session_id": header.get("session_id"),
        "batch_id": batch["id"] if batch else None,
        "retried_from": header.get("retried_from"),
        "summarises": header.get("summarises"),
        "trace_id": trace_id(header.get("traceparent")),
        "background": header.get("background", False),
        "webhook": delivery,
        "viewers": viewers,
        "links": _links(generation_id, root),
    }


def _links(generation_id: str, root: str) -> dict[str, str]:
    return {
        "self": f"{root}/v1/streams/{generation_id}",
        "cancel": f"{root}/v1/streams/{generation_id}/cancel",
        "completion": f"{root}/v1/chat/completions/{generation_id}",
    }


def cost(outcome: Outcome | None) -> dict[str, Any]:
    """`cost_usd`, null where it is not known, and `cost_source`, which is `unknown` then and null before the end."""
    if outcome is None:
        return {"cost_usd": None, "cost_source": None}
    found = outcome.get("cost") or {"picodollars": None, "source": "unknown"}  # an older version's
    amount = found["picodollars"]
    return {"cost_usd": None if amount is None else money.to_dollars(amount), "cost_source": found["source"]}


def _timings(summary: Summary) -> dict[str, int | None]:
    """In ms; null for what has not happened. Each from the start of what it is about: the wait from the request to its first
    attempt, the first chunk and the end from the start of the attempt that counts, the whole from the request to the end."""
    created, outcome = summary.header["created_at_ms"], summary.outcome
    first = summary.attempts[0]["at_ms"] if summary.attempts else None
    last = summary.attempts[-1] if summary.attempts else None
    ended = outcome["ended_at_ms"] if outcome else None
    return {
        "queued_ms": _between(created, first),
        "first_chunk_ms": _between(last["at_ms"], last.get("spoke_at_ms")) if last else None,
        "generation_ms": _between(last["at_ms"], ended) if last else None,
        "total_ms": _between(created, ended),
    }


def _between(start_ms: int, end_ms: int | None) -> int | None:
    """Never below 0, which clocks of two machines might make it."""
    return None if end_ms is None else max(0, end_ms - start_ms)
