"""What stays in Redis of an archived log's header, attempt and outcome: what lists and states tell, and no word twice.

Hidden here: which fields of a header say nothing once the log is an object. Those that are as almost always are left out, and
said again for whoever reads the header; those that were needed until the settlement (what was held of a budget, which server
took the request, …) stand in the object, where the header is whole.
"""

from __future__ import annotations

from typing import Any, cast

from shared.lib import json
from shared.log.records import Header

_USUAL: dict[str, Any] = {
    **dict.fromkeys(
        "key_id budgets reserved near_budget webhook max_tokens_per_s idempotency metadata retention_s session_id session "
        "limited batch previous retried_from summarises server request_id traceparent".split()
    ),
    "on_interruption": "fail",
    "on_disconnect": "continue",
    "background": False,
    "store": False,
    "surface": "chat",
}
USUAL_REASON = "queued"
"""Why an attempt began, where it does not say."""
_DONE = frozenset({"budgets", "reserved", "near_budget", "limited", "server", "request_id"})
"""What nobody asks for after the settlement."""


def short_header(data: bytes) -> bytes:
    """What stays of a header."""
    header = json.loads(data)
    return json.dumps(
        {name: value for name, value in header.items() if name not in _DONE and (name, value) not in _USUAL.items()}
    )


def whole_header(kept: dict[str, Any]) -> Header:
    """What stayed of one, with what is as usual; all that was done with is None."""
    return cast(Header, {**_USUAL, **kept})


def short_attempt(data: bytes, epoch: int) -> bytes:
    """What stays of the only attempt: nothing has to be told apart from it."""
    attempt: dict[str, Any] = json.loads(data)
    if attempt.get("number") == epoch:  # as is read where it is missing
        del attempt["number"]
    if attempt.get("reason") == USUAL_REASON:
        del attempt["reason"]
    attempt.pop("token", None)
    return json.dumps(attempt)


def short_outcome(data: bytes) -> bytes:
    """What stays of an outcome: of its cost the amount, and where that is from."""
    outcome = json.loads(data)
    if cost := outcome.get("cost"):
        outcome["cost"] = {name: cost[name] for name in ("picodollars", "source") if name in cost}
    return json.dumps(outcome)
