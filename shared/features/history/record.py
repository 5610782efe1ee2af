"""A row of the history: what is known of a generation that has ended, without a word of the request or the answer.

Hidden here: that it is made of the log's summary and becomes one again, so that lists, filters and states need not know
where one came from; which of it are columns, by which is searched; and that an error's message is left out, in which
providers may repeat the request.
"""

from __future__ import annotations

from typing import Any, TypedDict

from shared.features.listing.row import row
from shared.lib import json
from shared.log.entry import Position, Status
from shared.log.records import Attempt, Header, Outcome, Summary

UNKEPT = "What the error said is not kept any more; its code is."
_MOST_METADATA_BYTES = 1024
"""Metadata that take more are left out."""


class Record(TypedDict):
    """The columns. `more` is JSON of what is only shown. Times are Unix ms."""

    id: str
    tenant: str
    key_id: str | None
    created_at_ms: int
    ended_at_ms: int
    status: str
    model: str
    served_by: str | None
    provider: str
    source: str
    session_id: str | None
    batch_id: str | None
    error_code: str | None
    ttft_ms: int | None
    duration_ms: int | None
    tokens: int | None
    picodollars: int | None
    metadata: dict[str, str]
    more: str


def record(summary: Summary) -> Record:
    """Of one that has ended."""
    header, outcome, one = summary.header, summary.outcome, row(summary)
    assert outcome is not None
    metadata = dict(one.metadata)
    if len(json.dumps(metadata)) > _MOST_METADATA_BYTES:
        metadata = {}
    return Record(
        id=one.id,
        tenant=one.tenant,
        key_id=one.key_id,
        created_at_ms=one.created_at_ms,
        ended_at_ms=outcome["ended_at_ms"],
        status=str(one.status),
        model=one.model,
        served_by=one.served_by,
        provider=one.provider,
        source=one.source,
        session_id=one.session_id,
        batch_id=one.batch_id,
        error_code=one.error_code,
        ttft_ms=one.ttft_ms,
        duration_ms=one.duration_ms,
        tokens=one.tokens,
        picodollars=one.picodollars,
        metadata=metadata,
        more=json.dumps(_more(summary, header, outcome)).decode(),
    )


def _more(summary: Summary, header: Header, outcome: Outcome) -> dict[str, Any]:
    """Under short names: there may be millions. What is nothing is left out."""
    error, served, cost, batch = outcome["error"], outcome.get("served") or {}, outcome.get("cost"), header.get("batch")
    found = {
        "a": [[one["at_ms"], one["reason"], one.get("number")] for one in summary.attempts],
        "sa": summary.attempts[-1].get("spoke_at_ms") if summary.attempts else None,
        "p": list(summary.position),
        "by": outcome.get("by"),
        "f": outcome.get("finish_reasons"),
        "u": outcome.get("usage"),
        "us": outcome.get("usage_source"),
        "ch": outcome.get("characters"),
        "rf": served.get("refused"),
        "rt": served.get("retries"),
        "e": [error.get("type"), error.get("status")] if error else None,
        "cs": cost["source"] if cost else None,
        "l": batch["line"] if batch else None,
        "st": header.get("store"),
        "bg": header.get("background"),
        "sf": header.get("surface"),
        "rd": header.get("retried_from"),
    }
    return {name: value for name, value in found.items() if value}


def summary(kept: Record) -> Summary:
    """What the log would say, as far as it is known."""
    more = json.loads(kept["more"].encode())
    header: Header = {
        "id": kept["id"],
        "owner": kept["tenant"],
        "key_id": kept["key_id"],
        "model": kept["model"],
        "created_at_ms": kept["created_at_ms"],
        "n": 1,
        "include_usage": False,
        "metadata": kept["metadata"],
        "store": bool(more.get("st")),
        "background": bool(more.get("bg")),
        "session_id": kept["session_id"],
        "batch": {"id": kept["batch_id"], "line": more.get("l", 0)} if kept["batch_id"] else None,
        "surface": more.get("sf") or "chat",
        "retried_from": more.get("rd"),
    }
    attempts: list[Attempt] = [
        {"worker": "", "at_ms": at, "token": "", "reason": reason, **({"number": number} if number else {})}  # type: ignore[typeddict-item]
        for at, reason, number in more.get("a") or ()
    ]
    if attempts and (spoke := more.get("sa")) is not None:
        attempts[-1]["spoke_at_ms"] = spoke
    return Summary(header, tuple(attempts), Position(*more.get("p", (0, 2))), _outcome(kept, more))


def _outcome(kept: Record, more: dict[str, Any]) -> Outcome:
    error = None
    if kept["error_code"] is not None or "e" in more:
        kind, status = more.get("e") or ("server_error", 500)
        error = {"message": UNKEPT, "type": kind, "param": None, "code": kept["error_code"], "status": status}
    served = {"model": kept["served_by"], "refused": more.get("rf"), "retries": more.get("rt")}
    outcome: Any = {
        "status": Status(kept["status"]),
        "ended_at_ms": kept["ended_at_ms"],
        "by": more.get("by"),
        "error": error,
        "finish_reasons": more.get("f") or [],
        "usage": more.get("u"),
        "usage_source": more.get("us"),
        "characters": more.get("ch"),
        "served": {name: value for name, value in served.items() if value},
        "cost": {"picodollars": kept["picodollars"], "source": more.get("cs") or "unknown"},
    }
    if kept["ttft_ms"] is not None:
        outcome["spoke_at_ms"] = kept["created_at_ms"] + kept["ttft_ms"]
    found: Outcome = outcome
    return found
