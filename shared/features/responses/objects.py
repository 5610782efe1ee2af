"""The response object: what every event with a whole response, and every answer, has.

Hidden here: usage and errors under the names that this API has for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.log.entry import Status
from shared.log.records import Header, Outcome, Usage, response_id

Echoed = dict[str, Any]
"""What a response repeats of its request, see request.py."""

_CODES = frozenset({"server_error", "rate_limit_exceeded", "invalid_prompt"})
_FINAL = frozenset({"insufficient_quota", "context_length_exceeded"})
"""Codes of providers that are no part of OpenAI's list, and at which clients do not ask again."""


def response(
    header: Header,
    echoed: Echoed,
    status: Status,
    *,
    output: list[dict[str, Any]],
    usage: Usage | None = None,
    error: Mapping[str, Any] | None = None,
    reason: str | None = None,
    completed_at: int | None = None,
) -> dict[str, Any]:
    """OpenAI's response object. `reason` is why it is incomplete."""
    return {
        "id": response_id(header["id"]),
        "object": "response",
        "created_at": header["created_at_ms"] // 1000,
        "status": str(status),
        "completed_at": completed_at,
        "error": response_error(error) if error else None,
        "incomplete_details": {"reason": reason} if reason else None,
        "output": output,
        "usage": response_usage(usage) if usage else None,
        **echoed,
    }


def ended_response(
    header: Header, echoed: Echoed, outcome: Outcome, *, output: list[dict[str, Any]], stored: bool
) -> dict[str, Any]:
    """The object at the end. Found later (`stored`), what was cancelled says so by its status alone; in a stream it has a
    reason, too, because there are clients that would take it for a whole answer."""
    ended = Status(outcome["status"])
    return response(
        header,
        echoed,
        ended,
        output=output,
        usage=outcome["usage"],
        error=outcome["error"] if ended is Status.FAILED else None,
        reason=cut_reason(outcome, stored=stored),
        completed_at=outcome["ended_at_ms"] // 1000 if ended is Status.COMPLETED else None,
    )


def response_error(error: Mapping[str, Any]) -> dict[str, Any]:
    """`{code, message}` with a code of OpenAI's list, by which clients know whether to ask again; `reason` is our own."""
    code, status = error.get("code"), error.get("status") or 500
    found = "server_error"
    if code in _CODES | _FINAL:
        found = str(code)
    elif status == 429:
        found = "rate_limit_exceeded"
    elif status in (400, 404, 413, 422):
        found = "invalid_prompt"
    return {"code": found, "message": str(error.get("message") or ""), "reason": code}


def cut_reason(outcome: Outcome, *, stored: bool) -> str | None:
    """Why an answer is not whole; None where it is, or has failed. Found later, `cancelled` is told by the status alone."""
    if outcome["status"] == Status.CANCELLED:
        return None if stored else "cancelled"
    if outcome["status"] != Status.INCOMPLETE:
        return None
    return "content_filter" if "content_filter" in outcome["finish_reasons"] else "max_output_tokens"


def response_usage(usage: Usage) -> dict[str, Any]:
    """A chat's usage under the names of this API; what a provider adds to it stays beside them."""
    asked, said = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    of_asked, of_said = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": asked,
        "input_tokens_details": {
            "cached_tokens": of_asked.get("cached_tokens") or 0,
            "cache_write_tokens": of_asked.get("cache_write_tokens") or 0,
        },
        "output_tokens": said,
        "output_tokens_details": {"reasoning_tokens": of_said.get("reasoning_tokens") or 0},
        "total_tokens": usage.get("total_tokens") or asked + said,
    }
