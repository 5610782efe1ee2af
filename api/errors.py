"""Errors as responses: OpenAI's envelope, whatever went wrong and wherever.

Hidden here: which error object stands for an outcome without an answer, or for a log that is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from shared.errors import (
    BadRequest,
    GenerationCancelled,
    GenerationEnded,
    GenerationFailed,
    Gone,
    Internal,
    LogError,
    MethodNotAllowed,
    NotFound,
    StoredError,
    StreamGone,
    StreamLost,
    StreamspoolError,
)
from shared.lib import json
from shared.lib.telemetry import get_logger
from shared.log.entry import Status
from shared.log.records import Outcome

logger = get_logger(__name__)

REQUEST_ID = "streamspool.request_id"
"""ASGI scope: the id of this request, as in `x-request-id`."""

RATELIMITS = "streamspool.ratelimits"
"""ASGI scope: the `x-ratelimit-…` headers of the response, once they are known."""


def outcome_error(outcome: Outcome) -> StoredError | None:
    """The error of an outcome, None if it is an answer: one that was ended for its size is, and says `length` itself."""
    if outcome["status"] == Status.CANCELLED:
        return GenerationCancelled().to_stored()
    return None if outcome["status"] == Status.INCOMPLETE else outcome["error"]


_PASSING = frozenset({408, 409, 429, 503})
_LASTING = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
"""429s that no waiting helps against."""


def is_passing_refusal(error: Mapping[str, Any]) -> bool:
    """Whether a stored error is a refusal that another time may not be met with. It costs nothing to ask again as long as
    nothing was said. A provider's is told by the provider's own status: its 503 is our 502."""
    return (error.get("provider_status") or error.get("status")) in _PASSING and error.get("code") not in _LASTING


def failure(outcome: Outcome, *, spoke: bool, joined: bool) -> GenerationFailed | None:
    """The same as what to raise, while it can still be a response. A refusal that passes may be repeated unasked, unless
    something was said (`spoke`), and so paid; or the repeat would be given this very outcome again, since its
    `Idempotency-Key` stands for it (`joined`)."""
    error = outcome_error(outcome)
    if error is None:
        return None
    return GenerationFailed(error, repeatable=is_passing_refusal(error) and not spoke and not joined)


def problem_error(problem: LogError) -> GenerationEnded:
    """Why a log cannot be shown: it is gone, or lacks a part (Damaged)."""
    return StreamGone() if isinstance(problem, Gone) else StreamLost()


def to_response(error: StreamspoolError, headers: Mapping[str, str] | None = None) -> Response:
    """`{"error": {message, type, param, code}}` with the error's status and retry headers."""
    return Response(
        json.dumps({"error": error.to_object()}),
        error.status,
        headers={**(headers or {}), **error.headers()},
        media_type="application/json",
    )


async def unexpected(request: Request, error: Exception) -> Response:
    """For what is our own fault."""
    request_id = request.scope.get(REQUEST_ID, "")
    logger.error("unhandled", path=request.url.path, request_id=request_id, exc_info=error)
    return to_response(Internal("Something broke on our side. The request id finds it in the log."))


def install(app: FastAPI) -> None:
    """Makes every error of the application, the framework's own included, leave in that shape."""

    async def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, StreamspoolError)
        return to_response(error)

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return to_response(NotFound(f"There is no {request.method} {request.url.path} here. See /docs."))
        if error.status_code == 405:
            return to_response(MethodNotAllowed(f"{request.method} is not allowed here. See /docs."), error.headers)
        return to_response(BadRequest(str(error.detail), status=error.status_code), error.headers)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        param = str(first["loc"][-1])
        return to_response(BadRequest(f"{param}: {first['msg']}.", param=param))

    app.add_exception_handler(StreamspoolError, ours)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unexpected)
