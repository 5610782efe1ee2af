"""Spans of the HTTP end: a request, from its head to the last byte of its response, and somebody who watches a stream.

Hidden here: what is no request worth a span (probes, the console's files), that an incoming `traceparent` is gone on from
if it is one, and what a span is called. See shared/lib/traces/tracing.py.
"""

from __future__ import annotations

import asyncio
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


def serving(scope: Scope, request_id: str) -> AbstractContextManager[object] | None:
    """The span of a request, which is its task's current one: to the end of the stream, if the response is one. None where
    nobody traces."""
    path = scope["path"].removeprefix(scope["root_path"])
    if not (tracing.is_on() and path.startswith("/v1/")):
        return None
    return _serving(scope, scope["method"], {"http.request.method": scope["method"]}, request_id)


def answering(scope: Scope, request_id: str) -> AbstractContextManager[object]:
    """The span of a request on a WebSocket, to the message of its last event; `scope` is the socket's. The socket has none: it
    may be open for an hour, and what is asked on it is all that there is to tell."""
    if not tracing.is_on():
        return _OFF
    route = getattr(scope.get("route"), "path", "")
    about = {"network.protocol.name": "websocket", "http.route": route}
    return _serving(scope, f"response.create {route}", about, request_id)


@contextmanager
def _serving(scope: Scope, name: str, about: dict[str, Any], request_id: str) -> Iterator[None]:
    given = [value.decode("latin-1") for field, value in scope["headers"] if field == b"traceparent"]
    parent = tracing.parsed(given[0]) if len(given) == 1 else None
    with tracing.span(name, "server", lambda: {**about, "streamspool.request.id": request_id}, parent=parent) as span:
        if span is not None:
            begin_request(request_id, span.traceparent)
            _request.set(span if span.sampled else None)
        try:
            yield
        finally:
            _request.set(None)


def answered(scope: Scope, status: int) -> None:
    """The response has begun."""
    if (span := _request.get()) is None:
        return
    _answered(span, status)
    if (route := getattr(scope.get("route"), "path", None)) is not None:
        span.annotate({"http.route": route})
        span.rename(f"{scope['method']} {route}")


def told(status: int) -> None:
    """A request on a WebSocket has its answer, or an error of this status."""
    if (span := _request.get()) is not None:
        _answered(span, status)


def _answered(span: tracing.Span, status: int) -> None:
    span.annotate({"http.response.status_code": status})
    if status >= 500:
        span.fail(str(status))


def watching(header: Header) -> AbstractContextManager[object] | None:
    """The span of one who came to watch what another request had begun, with a link to that one; None where nobody traces."""
    if not tracing.is_kept():
        return None
    begun, generation_id = header.get("traceparent"), header["id"]
    return tracing.span("watch", "internal", lambda: {"streamspool.generation.id": generation_id}, links=[begun])


def resumed(cursor: object) -> None:
    """It begins behind a cursor."""
    tracing.annotate(lambda: {"streamspool.resumed_from": str(cursor)})


def watched(epoch: int, chunks: int) -> None:
    """It was shown so many chunks of that attempt, with those that it had before."""
    tracing.annotate(lambda: {"streamspool.attempt.epoch": epoch, "streamspool.chunks": chunks})


class Sent:
    """How many bytes of a response's body were sent to one who is traced."""

    def __init__(self) -> None:
        self.bytes = 0

    def add(self, count: int) -> None:
        self.bytes += count

    def through(self, transport: asyncio.Transport) -> asyncio.Transport:
        """The transport, as those have it who write HTTP chunks to it directly."""
        return _Counted(transport, self)  # type: ignore[return-value]

    def tell(self) -> None:
        tracing.annotate(lambda: {"streamspool.bytes": self.bytes})


class _Counted:
    """What is used of a transport, counting."""

    def __init__(self, transport: asyncio.Transport, sent: Sent) -> None:
        self._transport, self._sent = transport, sent
        self.get_write_buffer_size = transport.get_write_buffer_size

    def write(self, chunk: bytes) -> None:
        """One HTTP chunk: its size, and two line breaks, are no bytes of the body."""
        self._transport.write(chunk)
        self._sent.add(len(chunk) - chunk.index(b"\r\n") - 4)


def counting() -> Sent | None:
    """To count what the current span's viewer is sent; None where nobody would be told."""
    span = tracing.current()
    return Sent() if span is not None and span.sampled else None
