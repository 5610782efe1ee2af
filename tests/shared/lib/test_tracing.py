"""What asks for traces, what a traceparent is, and that who asks for none has nothing of it."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from shared.lib.process import begin_traces
from shared.lib.traces import tracing
from tests.harness.processes import ROOT

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
        ({"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
    ],
)
def test_a_place_for_them_asks_for_traces(variables: dict[str, str], expected: bool) -> None:
    assert tracing.wanted(variables) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, GOOD),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"01-{TRACE}-{SPAN}-01-more", GOOD),  # a later version may say more; what is known of it is used
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (GOOD.upper(), None),
        (f" {GOOD}", None),
        (f"{GOOD}\n", None),
        ("", None),
        (None, None),
    ],
)
def test_what_is_no_traceparent_is_ignored(text: str | None, expected: str | None) -> None:
    assert tracing.parsed(text) == expected


def test_without_traces_nothing_is_made_and_nothing_is_asked_for() -> None:
    with tracing.span("x", "server", unasked) as span:
        tracing.event("y", unasked)
        tracing.annotate(unasked)
        assert span is None
        assert (tracing.current(), tracing.exemplar()) == (None, None)


class Sampling:
    """A backend that samples what it is told to, and counts what it is asked."""

    def __init__(self, *sampled: bool, follows: bool = True) -> None:
        self.follows, self._sampled, self.asked = follows, list(sampled), list[str]()

    def start(self, name: str, *_: object) -> Any:
        self.asked.append(name)
        flags = "01" if (sampled := self._sampled.pop(0)) else "00"
        nothing = SimpleNamespace(annotate=id, rename=id, event=None, fail=id, end=lambda: None)
        nothing.traceparent, nothing.sampled = f"00-{TRACE}-{SPAN}-{flags}", sampled
        return nothing

    def end(self) -> None:
        pass


def unasked() -> dict[str, str]:
    raise AssertionError


def test_who_samples_is_asked_once_and_nothing_is_made_below_what_is_not_sampled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampling = Sampling(False)
    monkeypatch.setattr(tracing, "_backend", sampling)
    with tracing.span("request", "server", dict):
        assert (tracing.is_kept(), tracing.exemplar()) == (False, None)
        with tracing.span("enqueue", "producer", unasked):
            tracing.annotate(unasked)
            tracing.event("first_chunk", unasked)
            told = tracing.traceparent()
        assert told == tracing.traceparent() == f"00-{TRACE}-{SPAN}-00"
    assert tracing.current() is None
    with tracing.span("generate", "consumer", unasked, parent=told):  # in another process
        assert (tracing.is_kept(), tracing.traceparent()) == (False, told)
    silent = tracing.unsampled(told)
    assert silent is not None
    with silent:
        assert not tracing.is_kept()
    assert tracing.current() is None
    assert tracing.unsampled(GOOD) is None
    assert sampling.asked == ["request"]


def test_a_sampler_that_looks_at_no_parent_is_asked_for_each_span(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(False, True, False, follows=False)
    monkeypatch.setattr(tracing, "_backend", sampling)
    with tracing.span("request", "server", dict):
        assert tracing.is_kept()
        with tracing.span("enqueue", "producer", dict):
            assert (tracing.traceparent(), bool(tracing.exemplar())) == (GOOD, True)
        assert tracing.traceparent() == f"00-{TRACE}-{SPAN}-00"
    assert tracing.unsampled(f"00-{TRACE}-{SPAN}-00") is None
    with tracing.span("generate", "consumer", dict, parent=f"00-{TRACE}-{SPAN}-00"):
        pass
    assert sampling.asked == ["request", "enqueue", "generate"]


def test_only_http_is_spoken() -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(tracing.NotPossible, match="http/protobuf alone"):
        tracing.begin("api", "0", variables)


def test_without_the_packages_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shared.lib.traces.otel", None)
    with pytest.raises(tracing.NotPossible, match=r"streamspool\[traces\]"):
        tracing.begin("api", "0", {"OTEL_TRACES_EXPORTER": "otlp"})


def test_a_process_starts_without_what_it_cannot_have() -> None:
    begin_traces("api", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert not tracing.is_on()


def test_what_env_files_say_reaches_the_sdk_and_the_environment_beats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, str]] = []
    monkeypatch.setattr(os, "environ", {"OTEL_SERVICE_NAME": "mine"})
    monkeypatch.setattr(tracing, "_backend", None)
    told = SimpleNamespace(Exporting=lambda end, version: begun.append((end, version)))
    monkeypatch.setitem(sys.modules, "shared.lib.traces.otel", told)
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318",
        "OTEL_EXPORTER_OTLP_HEADERS_FILE": "/run/secrets/headers",
        "OTEL_EXPORTER_OTLP_HEADERS": "what that file has",
        "OTEL_SERVICE_NAME": "of .env",
        "OPENAI_API_KEY": "x",
    }
    tracing.begin("worker", "1", variables)
    assert begun == [("worker", "1")]
    assert os.environ == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318",
        "OTEL_EXPORTER_OTLP_HEADERS": "what that file has",
        "OTEL_SERVICE_NAME": "mine",
    }


def test_neither_end_loads_what_it_does_not_need() -> None:
    program = (
        "import sys, api.server, worker.process\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter', 'google'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=110, check=True
    )
    assert done.stdout == "[]\n"
