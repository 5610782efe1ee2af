"""Traces: a tree of spans for each request, over all processes that have a part in it. Off unless it is asked for.

Hidden here: what asks for it (the standard `OTEL_…` variables), the W3C's `traceparent`, and which span is the current one of a
task. OpenTelemetry's SDK is loaded by `begin` alone (otel.py), so that who does not want it pays for a comparison with None. A
span says ids, names, counts and codes, and never a word of a request or an answer.

Source: w3.org/TR/trace-context, 3.2; opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal, Protocol


class NotPossible(ValueError):
    """Traces are asked for, and cannot be had; the text says what to do."""


Kind = Literal["server", "producer", "consumer", "client", "internal"]
Attributes = Mapping[str, Any]

_TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.S
)
_VARIABLE = "OTEL_"


class Span(Protocol):
    """One of them, as long as it lasts."""

    traceparent: str
    sampled: bool

    def annotate(self, attributes: Attributes) -> None: ...
    def rename(self, name: str) -> None: ...
    def event(self, name: str, attributes: Attributes) -> None: ...
    def fail(self, code: str) -> None: ...
    def end(self) -> None: ...


class Backend(Protocol):
    def start(
        self,
        name: str,
        kind: Kind,
        parent: str | None,
        links: Sequence[str],
        attributes: Attributes,
        began_ms: int | None = None,
    ) -> Span: ...
    def end(self) -> None: ...


_backend: Backend | None = None
_current: ContextVar[Span | None] = ContextVar("streamspool_span", default=None)
_OFF: AbstractContextManager[Span | None] = nullcontext()


def wanted(variables: Mapping[str, str]) -> bool:
    """Whether somebody named a place for traces. Without one nothing is sent anywhere, whatever the specification's default."""
    exporter = variables.get("OTEL_TRACES_EXPORTER", "").strip()
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return exporter == "otlp" or any(variables.get(name, "").strip() for name in endpoints)


def begin(end: Literal["api", "worker"], version: str, variables: Mapping[str, str]) -> None:
    """Once for each process, at its start. `variables` may come from `.env` and from files, which the SDK does not read.

    Raises NotPossible.
    """
    global _backend
    if not wanted(variables):
        return
    protocol = variables.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or variables.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in (None, "", "http/protobuf"):
        raise NotPossible(
            "Traces are sent by http/protobuf alone: leave OTEL_EXPORTER_OTLP_PROTOCOL away, and name port 4318."
        )
    try:
        from shared.lib.traces.otel import Exporting
    except ImportError:
        raise NotPossible(
            "OTEL_… asks for traces, which need more packages: pip install 'streamspool[traces]'. "
            "Or set OTEL_SDK_DISABLED=true."
        ) from None
    for name in variables:
        if name.startswith(_VARIABLE):
            plain = name.removesuffix("_FILE")
            os.environ.setdefault(plain, variables[plain])
    _backend = Exporting(end, version)


def end() -> None:
    """Sends what is left, for some seconds at most."""
    global _backend
    if _backend is not None:
        _backend.end()
        _backend = None


def is_on() -> bool:
    return _backend is not None


def parsed(traceparent: str | None) -> str | None:
    """A `traceparent` that can be gone on from, in the one spelling of version 00; None for what is none."""
    found = _TRACEPARENT.fullmatch(traceparent or "")
    if found is None or (found[1] == "00" and found[5]):
        return None
    return f"00-{found[2]}-{found[3]}-{found[4]}"


def trace_id(traceparent: str | None) -> str | None:
    """Of a header's, 32 hexadecimal digits."""
    return traceparent[3:35] if traceparent else None


def current() -> Span | None:
    """The span that this task is in."""
    return _current.get() if _backend is not None else None


def span(
    name: str,
    kind: Kind,
    attributes: Callable[[], Attributes],
    *,
    parent: str | None = None,
    links: Sequence[str | None] = (),
    began_ms: int | None = None,
) -> AbstractContextManager[Span | None]:
    """To be in as long as something lasts; the current one meanwhile. `parent` is a `traceparent`, else it is the current
    span's child, unless it is a server's. `attributes` are asked for only where somebody wants them.

    An error ends it as failed, with its code; being told to stop does not.
    """
    if _backend is None:
        return _OFF
    above = _current.get() if kind != "server" else None  # a task may begin in that of the request before it
    parent = parent or (above.traceparent if above is not None else None)
    return _entered(_backend.start(name, kind, parent, [link for link in links if link], attributes(), began_ms), above)


@contextmanager
def _entered(entered: Span, above: Span | None) -> Iterator[Span | None]:
    """Without a token: a generator may be closed in another context than the one that it was begun in."""
    _current.set(entered)
    try:
        yield entered
    except (asyncio.CancelledError, GeneratorExit):
        entered.annotate({"streamspool.stopped": True})
        raise
    except BaseException as error:
        entered.fail(getattr(error, "code", None) or type(error).__name__)
        raise
    finally:
        entered.end()
        _current.set(above)


def event(name: str, attributes: Callable[[], Attributes] = dict) -> None:
    """Something that happened within the current span."""
    if (span := current()) is not None:
        span.event(name, attributes())


def annotate(attributes: Callable[[], Attributes]) -> None:
    if (span := current()) is not None:
        span.annotate(attributes())


def exemplar() -> dict[str, str] | None:
    """What leads from a sample of a histogram to the trace that it was taken in; None where nobody keeps that."""
    if (span := current()) is None or not span.sampled:
        return None
    return {"trace_id": span.traceparent[3:35], "span_id": span.traceparent[36:52]}
