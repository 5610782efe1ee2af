"""A row of the history: what is known of a generation that has ended, without a word of the request or the answer.

Hidden here: that it is made of the log's summary and becomes one again, so that lists, filters and states need not know
where one came from; which of it are columns, by which is searched; and that an error's message is left out, in which
providers may repeat the request.
"""

from __future__ import annotations

from typing import Any, TypedDict, cast

from shared.features.listing.row import Row, row
from shared.lib import json
from shared.log.entry import Position, Status
from shared.log.records import Attempt, Header, Outcome, Summary

UNKEPT = "What the error said is not kept any more; its code is."
_MOST_METADATA_BYTES = 1024
"""Metadata that take more are left out."""
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
_SOURCE, _NO_SOURCE = "provider", "?"
"""Who mostly counts the tokens; and what stands for nobody's word."""


class Record(TypedDict):
    """The columns: a `Row`, and what is added to it. `more` is JSON of what is only shown. Times are Unix ms."""

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
    kept = {
        **{name: getattr(one, name) for name in Row.__slots__},
        "ended_at_ms": outcome["ended_at_ms"],
        "status": str(one.status),
        "metadata": metadata if len(json.dumps(metadata)) <= _MOST_METADATA_BYTES else {},
        "more": json.dumps(_more(summary, header, outcome)).decode(),
    }
    return cast(Record, kept)


def _more(summary: Summary, header: Header, outcome: Outcome) -> dict[str, Any]:
    """In few bytes, since there may be millions: under short names, with times from the creation on. What is nothing, or as it
    mostly is, is left out."""
    error, served, cost, batch = outcome["error"], outcome.get("served") or {}, outcome.get("cost"), header.get("batch")
    created, usage, lengths = header["created_at_ms"], outcome.get("usage"), outcome.get("characters")
    spoke = summary.attempts[-1].get("spoke_at_ms") if summary.attempts else None
    source = outcome.get("usage_source") or (_NO_SOURCE if usage else None)
    found = {
        "a": [_attempt(one, created, number) for number, one in enumerate(summary.attempts, 1)],
        "sa": None if spoke is None or spoke == outcome.get("spoke_at_ms") else spoke - created,
        "p": list(summary.position),
        "by": outcome.get("by"),
        "f": outcome.get("finish_reasons"),
        "u": _counted(usage),
        "us": None if usage and source == _SOURCE else source,
        "ch": [lengths["content"], lengths["reasoning"]] if lengths else None,
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
    return {name: value for name, value in found.items() if value or (name == "sa" and value is not None)}


def _attempt(one: Attempt, created_at_ms: int, number: int) -> list[Any]:
    found = [one["at_ms"] - created_at_ms, one["reason"]]
    return found if one.get("number") == number else [*found, one.get("number")]


def _counted(usage: Any) -> Any:
    """Prompt and answer, where a provider told nothing else."""
    if isinstance(usage, dict) and usage.keys() == set(_COUNTS):
        prompt, completion, total = (usage[name] for name in _COUNTS)
        if all(type(one) is int for one in (prompt, completion)) and total == prompt + completion:
            return [prompt, completion]
    return usage


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
    return Summary(header, tuple(_attempts(kept, more)), Position(*more.get("p", (0, 2))), _outcome(kept, more))


def _attempts(kept: Record, more: dict[str, Any]) -> list[Attempt]:
    created, found = kept["created_at_ms"], []
    for place, (at, reason, *told) in enumerate(more.get("a") or (), 1):
        number = told[0] if told else place
        one: Any = {"worker": "", "at_ms": created + at, "token": "", "reason": reason}
        found.append(one | ({"number": number} if number else {}))
    spoke = more.get("sa", kept["ttft_ms"])
    if found and spoke is not None:
        found[-1]["spoke_at_ms"] = created + spoke
    return found


def _outcome(kept: Record, more: dict[str, Any]) -> Outcome:
    error, usage, lengths = None, more.get("u"), more.get("ch")
    if kept["error_code"] is not None or "e" in more:
        kind, status = more.get("e") or ("server_error", 500)
        error = {"message": UNKEPT, "type": kind, "param": None, "code": kept["error_code"], "status": status}
    if isinstance(usage, list):
        usage = dict(zip(_COUNTS, (*usage, sum(usage)), strict=True))
    served = {"model": kept["served_by"], "refused": more.get("rf"), "retries": more.get("rt")}
    source = more.get("us", _SOURCE if usage else None)
    outcome: Any = {
        "status": Status(kept["status"]),
        "ended_at_ms": kept["ended_at_ms"],
        "by": more.get("by"),
        "error": error,
        "finish_reasons": more.get("f") or [],
        "usage": usage,
        "usage_source": None if source == _NO_SOURCE else source,
        "characters": dict(zip(("content", "reasoning"), lengths, strict=True)) if lengths else None,
        "served": {name: value for name, value in served.items() if value},
        "cost": {"picodollars": kept["picodollars"], "source": more.get("cs") or "unknown"},
    }
    if kept["ttft_ms"] is not None:
        outcome["spoke_at_ms"] = kept["created_at_ms"] + kept["ttft_ms"]
    found: Outcome = outcome
    return found
