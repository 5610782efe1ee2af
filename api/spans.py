"""Spans of the HTTP end: a request, from its head to the last byte of its response, and somebody who watches a stream.

Hidden here: what is no request worth a span (probes, the console's files), that an incoming `traceparent` is gone on from
if it is one, and what a span is called. See shared/lib/traces/tracing.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from starlette.types import Scope

from shared.lib.telemetry import begin_request
from shared.lib.traces import tracing
from shared.log.records import Header

_OFF: AbstractContextManager[object] = nullcontext()
_request: ContextVar[tracing.Span | None] = ContextVar("streamspool_request_span", default=None)
"""The request's own, whatever span its response begins in."""


def serving(scope: Scope, request_id: str) -> AbstractContextManager[object]:
    """The span of a request, which is its task's current one: to the end of the stream, if the response is one."""
    path = scope["path"].removeprefix(scope["root_path"])
    return _serving(scope, request_id) if tracing.is_on() and path.startswith("/v1/") else _OFF


@contextmanager
def _serving(scope: Scope, request_id: str) -> Iterator[None]:
    told = [value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"]
    method: str = scope["method"]

    def about() -> dict[str, Any]:
        return {"http.request.method": method, "streamspool.request.id": request_id}

    parent = tracing.parsed(told[0]) if len(told) == 1 else None
    with tracing.span(method, "server", about, parent=parent) as span:
        if span is not None:
            begin_request(request_id, span.traceparent)
            _request.set(span)
        try:
            yield
        finally:
            _request.set(None)


def answered(scope: Scope, status: int) -> None:
    """The response has begun."""
    if (span := _request.get()) is None:
        return
    route = getattr(scope.get("route"), "path", None)
    span.annotate({"http.response.status_code": status, "http.route": route})
    if route is not None:
        span.rename(f"{scope['method']} {route}")
    if status >= 500:
        span.fail(str(status))


def watching(header: Header, *, fresh: bool) -> AbstractContextManager[object]:
    """The span of one who came to watch what another request had begun, with a link to that one."""
    if fresh or not tracing.is_on():
        return _OFF
    begun, generation_id = header.get("traceparent"), header["id"]
    return tracing.span("watch", "internal", lambda: {"streamspool.generation.id": generation_id}, links=[begun])


def resumed(cursor: object) -> None:
    """It begins behind a cursor."""
    tracing.annotate(lambda: {"streamspool.resumed_from": str(cursor)})


def watched(epoch: int, chunks: int) -> None:
    """It was shown so many chunks of that attempt, with those that it had before."""
    tracing.annotate(lambda: {"streamspool.attempt.epoch": epoch, "streamspool.chunks": chunks})
