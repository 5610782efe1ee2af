"""OpenTelemetry's SDK, by which spans are kept, sampled and sent. Loaded only where traces are asked for (tracing.py).

Hidden here: all of its names. What it is told by the environment it reads itself: sampler, batches, limits, the address and the
headers of the collector. It sends by `requests`, from a thread of its own.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as SdkSpan

if TYPE_CHECKING:
    from shared.lib.traces.tracing import Attributes, Kind, Span

_END_S = 3.0
_NS = 1_000_000


class Exporting:
    """The backend of a process that sends its spans."""

    def __init__(self, end: str, version: str) -> None:
        named = "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "") or os.environ.get("OTEL_SERVICE_NAME")
        own = {SERVICE_VERSION: version, SERVICE_INSTANCE_ID: f"{socket.gethostname()}-{os.getpid()}"}
        resource = Resource.create(own if named else {**own, SERVICE_NAME: f"streamspool-{end}"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("streamspool", version)
        self.follows = isinstance(self._provider.sampler, ParentBased)

    def start(
        self,
        name: str,
        kind: Kind,
        parent: str | None,
        links: Sequence[str],
        attributes: Attributes,
        began_ms: int | None = None,
    ) -> Span:
        above = set_span_in_context(NonRecordingSpan(_context(parent))) if parent else None
        return _Span(
            self._tracer.start_span(
                name,
                above,
                SpanKind[kind.upper()],
                _known(attributes),
                [Link(_context(one)) for one in links],
                start_time=None if began_ms is None else began_ms * _NS,
            )
        )

    def end(self) -> None:
        """In a thread that may be left: a collector that does not answer must not hold up the end of a process."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(_END_S)


class _Span:
    def __init__(self, span: SdkSpan) -> None:
        self._span = span
        known = span.get_span_context()
        self.sampled = known.trace_flags.sampled
        self.traceparent = f"00-{known.trace_id:032x}-{known.span_id:016x}-{known.trace_flags:02x}"

    def annotate(self, attributes: Attributes) -> None:
        self._span.set_attributes(_known(attributes))

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def event(self, name: str, attributes: Attributes) -> None:
        self._span.add_event(name, _known(attributes))

    def fail(self, code: str) -> None:
        self._span.set_attribute("error.type", code)
        self._span.set_status(Status(StatusCode.ERROR, code))

    def end(self) -> None:
        self._span.end()


def _context(traceparent: str) -> SpanContext:
    """Of a `traceparent` in version 00, well formed."""
    _, trace, span, flags = traceparent.split("-")
    return SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def _known(attributes: Attributes) -> dict[str, str | int | float | bool | Sequence[str]]:
    """What is not known is left out."""
    return {name: value for name, value in attributes.items() if value is not None}
