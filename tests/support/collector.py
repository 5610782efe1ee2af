"""Where traces are sent to in tests: OTLP over HTTP on loopback, decoded with the protocol's own messages."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")


@dataclass
class Seen:
    """One span. Ids are in hexadecimal, times in ns."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    failed: bool
    service: str
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    links: list[tuple[str, str]]
    children: list[Seen] = field(default_factory=list)

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace}-{self.id}-01"


class Collector:
    """A context manager; `spans` are those that came, in no order, and `bodies` what they came in."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.bodies: list[bytes] = []
        self.heads: list[dict[str, str]] = []

    def __enter__(self) -> Self:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.heads.append({name.lower(): value for name, value in self.headers.items()})
                collector.bodies.append(body)
                collector.spans.extend(decoded(body))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # of 5, some connections of many at once have to be begun again, a second later

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def environment(self) -> dict[str, str]:
        """What a process is told to send its spans here, soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_address[1]}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "NO_PROXY": "127.0.0.1",
        }

    def named(self, name: str, trace: str | None = None) -> list[Seen]:
        return [one for one in list(self.spans) if one.name == name and trace in (None, one.trace)]


def decoded(body: bytes) -> Iterator[Seen]:
    request = ExportTraceServiceRequest.FromString(body)
    for resource in request.resource_spans:
        service = values(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Seen(
                    span.name,
                    KINDS[span.kind],
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.code == 2,
                    service,
                    values(span.attributes),
                    [(event.name, values(event.attributes)) for event in span.events],
                    [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                )


def values(attributes: Any) -> dict[str, Any]:
    found = {}
    for one in attributes:
        kind = one.value.WhichOneof("value")
        value = getattr(one.value, kind)
        found[one.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


def roots(spans: Iterable[Seen]) -> list[Seen]:
    """The spans as trees, each level in the order in which they began."""
    ordered = sorted(spans, key=lambda one: one.began)
    by_id = {one.id: one for one in ordered}
    for one in ordered:
        one.children = [child for child in ordered if child.parent == one.id]
    return [one for one in ordered if one.parent not in by_id]


def printed(root: Seen, indent: str = "") -> Iterator[str]:
    """As the documentation shows it: what it is called, where it was, and what was the matter."""
    told = [f"{name} {about['error.type']}" if "error.type" in about else name for name, about in root.events]
    if number := root.attributes.get("streamspool.attempt.number"):
        told.insert(0, f"attempt {number}")
    if root.failed:
        told.append(f"failed: {root.attributes['error.type']}")
    yield f"{indent}{root.name}  ({root.kind}, {root.service.removeprefix('streamspool-')})  {', '.join(told)}".rstrip()
    for child in root.children:
        yield from printed(child, f"{indent}    ")
