"""Traces: a tree of spans for each request, over all processes that have a part in it. Off unless it is asked for.

Hidden here: what asks for it (the standard `OTEL_…` variables), the W3C's `traceparent`, and which span is the current one of a
task. OpenTelemetry's SDK is loaded by `begin` alone (otel.py), so that who does not want it pays for a comparison with None.
The sampler is asked once for each trace, at its first span: what is below one that is not sampled makes no span, and is not
asked for attributes. A span says ids, names, counts and codes, and never a word of a request or an answer.

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
_SAMPLED = 1
"""The flag of a `traceparent`."""


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
    follows: bool
    """Whether what is below an unsampled span is never sampled: the sampler is one of the `parentbased_…`."""

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


class _Unsampled:
    """Stands for a span that is not sampled, and for all below it: nobody will see them. To be in, as a span is."""

    __slots__ = ("_above", "traceparent")
    sampled = False

    def __init__(self, traceparent: str, above: Span | None) -> None:
        self.traceparent, self._above = traceparent, above

    def __enter__(self) -> Span:
        _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.set(self._above)

    async def __aenter__(self) -> Span:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()

    def annotate(self, attributes: Attributes) -> None:
        pass

    def rename(self, name: str) -> None:
        pass

    def event(self, name: str, attributes: Attributes) -> None:
        pass

    def fail(self, code: str) -> None:
        pass

    def end(self) -> None:
        pass


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


def is_kept() -> bool:
    """Whether a span that is begun here may be seen by anybody: there are traces, and the current one is no unsampled one."""
    if _backend is None:
        return False
    above = _current.get()
    return above is None or above.sampled or not _backend.follows


def unsampled(traceparent: str | None) -> _Unsampled | None:
    """To be in instead of a span below this one, if none of those will be sampled."""
    if _backend is None or traceparent is None or not _is_left_out(_backend, traceparent):
        return None
    return _Unsampled(traceparent, _current.get())


def _is_left_out(backend: Backend, parent: str) -> bool:
    return backend.follows and not int(parent[-2:], 16) & _SAMPLED


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


def traceparent() -> str | None:
    """That of the current span, by which another process goes on."""
    return None if (span := current()) is None else span.traceparent


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
    if parent is None and above is not None:
        if not above.sampled and _backend.follows:
            return _OFF  # in which the current one goes on to be the unsampled one
        parent = above.traceparent
    if parent is not None and _is_left_out(_backend, parent):
        return _Unsampled(parent, above)
    begun = _backend.start(name, kind, parent, [link for link in links if link], attributes(), began_ms)
    return _entered(begun, above) if begun.sampled else _Unsampled(begun.traceparent, above)


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
    if (span := current()) is not None and span.sampled:
        span.event(name, attributes())


def annotate(attributes: Callable[[], Attributes]) -> None:
    if (span := current()) is not None and span.sampled:
        span.annotate(attributes())


def exemplar() -> dict[str, str] | None:
    """What leads from a sample of a histogram to the trace that it was taken in; None where nobody keeps that."""
    if (span := current()) is None or not span.sampled:
        return None
    return {"trace_id": span.traceparent[3:35], "span_id": span.traceparent[36:52]}
