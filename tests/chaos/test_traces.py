"""A trace, as a collector sees it, of a request whose first worker is killed, and which is asked twice by the second."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import httpx
import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import ROOT, Stack, free_port, wait_until
from tests.harness.store import Store, open_store
from tests.harness.upstream import Answer, ScriptedUpstream, ending, refusal, words
from tests.support.batch import ended, jsonl, line, start
from tests.support.collector import Collector, Seen, printed, roots
from tests.support.names import keys
from tests.support.receiver import SECRET, Receiver
from tests.support.sockets import Socket

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROMPT = "a prompt that no span may tell"
QUICK = {"STREAMSPOOL_LEASE_S": "4", "STREAMSPOOL_HOLD_HEADERS_S": "0.2", "STREAMSPOOL_DRAIN_S": "0.5"}


@pytest.fixture
def store(valkey: EmbeddedValkey) -> Iterator[Store]:
    with open_store(valkey.url.replace("db=0", "db=3")) as client:
        client.flushdb()
        yield client
        client.flushdb()


class Traced(NamedTuple):
    """A stack that is traced, its collector and a client."""

    collector: Collector
    stack: Stack
    http: httpx.Client


Begin: TypeAlias = "Callable[..., AbstractContextManager[Traced]]"


@pytest.fixture
def traced(valkey: EmbeddedValkey, upstream: ScriptedUpstream, store: Store, tmp_path: Path) -> Begin:
    """Begins one, with the settings that it is given."""

    @contextmanager
    def begin(**settings: str) -> Iterator[Traced]:
        url = valkey.url.replace("db=0", "db=3")
        with (
            Collector() as collector,
            Stack(url, upstream.base_url, tmp_path, **QUICK, **{**collector.environment, **settings}) as stack,
            httpx.Client(base_url=stack.url, trust_env=False, timeout=60) as http,
        ):
            yield Traced(collector, stack, http)

    return begin


def asked(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], **fields}


def only(found: list[Seen]) -> Seen:
    (one,) = found
    return one


def test_one_tree_over_a_killed_worker_a_retry_and_a_webhook(
    traced: Begin, upstream: ScriptedUpstream, store: Store
) -> None:
    good = Answer([*words(5), *ending()])
    script = upstream.plan(
        "traced", by=lambda call: Answer(end="hang") if call == 1 else refusal(503) if call == 2 else good
    )
    port, body = free_port(), asked("scripted/traced", stream=True)
    told = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    settings = {
        "STREAMSPOOL_TRACE_UPSTREAM": "true",
        "STREAMSPOOL_WEBHOOK_SECRET": SECRET,
        "STREAMSPOOL_WEBHOOK_ALLOW": "127.0.0.1",
    }
    with Receiver() as hook, traced(**settings) as (collector, stack, http):
        seen: list[httpx.Response] = []

        def ask() -> None:
            request = {**body, "webhook": {"url": hook.url}}
            seen.append(http.post("/v1/chat/completions", json=request, headers=told))

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: script.calls, what="the first worker asks")
        stack.start("worker-2", STREAMSPOOL_WORKER_METRICS_PORT=str(port))
        wait_until(lambda: store.scard(keys.workers) == 2, what="the second worker is there")
        stack.stop("worker")
        asking.join(60)
        assert seen
        assert seen[0].content.endswith(b"data: [DONE]\n\n")
        generation_id = seen[0].headers["x-stream-id"]
        again = http.get(f"/v1/streams/{generation_id}", headers={"last-event-id": "2-2"})
        assert b"w4 " in again.content
        state = http.get(f"/v1/streams/{generation_id}", headers={"accept": "application/json"}).json()
        names = {"POST /v1/chat/completions", "enqueue", "generate", "chat scripted/traced", "webhook"}
        wait_until(lambda: names <= {one.name for one in list(collector.spans)}, what="all spans")
        wait_until(lambda: len(collector.named("generate")) == 2, what="both attempts")
        wait_until(lambda: collector.named("watch"), what="the viewer's span")
        reading = only(collector.named("watch")).parent
        wait_until(lambda: reading in {one.id for one in list(collector.spans)}, what="the viewer's request")

        (root,) = roots([one for one in collector.spans if one.trace == TRACE])
        assert (root.name, root.parent) == ("POST /v1/chat/completions", CALLER)
        tree = "\n".join(printed(root))
        documented = re.search(r"```text trace\n(.*?)\n```", (ROOT / "docs/OPERATIONS.md").read_text("utf-8"), re.S)
        assert documented
        assert tree == documented[1]

        chat, enqueue = only(collector.named("chat scripted/traced")), only(collector.named("enqueue"))
        assert root.ended >= chat.ended
        assert root.attributes["http.response.status_code"] == 200
        assert root.attributes["streamspool.bytes"] == len(seen[0].content)
        assert chat.attributes["gen_ai.usage.output_tokens"] == 5
        assert chat.attributes["gen_ai.provider.name"] == "scripted"
        lost, run = collector.named("generate")
        lost, run = (lost, run) if lost.failed else (run, lost)
        assert run.attributes["streamspool.attempt.reason"] == "worker_lost"
        assert lost.attributes["streamspool.worker.id"] != run.attributes["streamspool.worker.id"]
        assert lost.began < run.began
        assert script.calls[-1].headers["traceparent"] == chat.traceparent

        watch = only(collector.named("watch"))
        assert watch.trace != TRACE
        assert watch.links == [(TRACE, enqueue.id)]
        assert watch.attributes["streamspool.resumed_from"] == "2-2"
        assert watch.attributes["streamspool.generation.id"] == generation_id
        assert watch.attributes["streamspool.bytes"] == len(again.content)
        came = only([one for one in collector.spans if one.id == watch.parent])
        assert (came.name, came.kind) == ("GET /v1/streams/{generation_id}", "server")

        assert state["trace_id"] == TRACE
        for name in ("api", "worker-2"):
            lines = [json.loads(line) for line in stack.log(name).splitlines()]
            assert {one["event"] for one in lines if one.get("trace_id") == TRACE} >= {
                "api": {"accepted"},
                "worker-2": {"claimed", "upstream retried", "sealed"},
            }[name]
        wanted = {"accept": "application/openmetrics-text;version=1.0.0"}
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", headers=wanted, trust_env=False, timeout=60).text
        for name in ("time_to_first_chunk", "generation"):
            assert re.search(rf'streamspool_{name}_seconds_bucket.* # {{.*trace_id="{TRACE}"', text)
        sent = b"".join(collector.bodies)
        assert PROMPT.encode() not in sent
        assert b"w4" not in sent
        assert hook.url.encode() not in sent


def test_a_batch_is_one_span_and_its_lines_lead_to_where_it_was_asked_for(traced: Begin) -> None:
    with traced() as (collector, _, http):
        batch_id = start(http, jsonl(line(f"line-{number}", prompt=PROMPT) for number in range(3)))
        assert ended(http, batch_id)["status"] == "completed"
        wrong = start(http, b"no line")
        assert ended(http, wrong)["status"] == "failed"
        wait_until(lambda: len(collector.named("batch")) == 2, what="both batches")
        wait_until(lambda: len(collector.named("generate")) == 3, what="the lines")
        wait_until(lambda: len(collector.named("POST /v1/batches")) == 2, what="what asked for them")
        asked_for = {one.id: one for one in collector.named("POST /v1/batches")}
        of_batch = {one.attributes["streamspool.batch.id"]: one for one in collector.named("batch")}
        whole, failed = of_batch[batch_id], of_batch[wrong]
        assert (whole.failed, whole.attributes["streamspool.batch.lines"]) == (False, 3)
        assert (failed.failed, failed.attributes["error.type"]) == (True, "invalid_json_line")
        assert asked_for.keys() == {whole.parent, failed.parent}
        assert whole.began < min(one.began for one in collector.named("generate"))
        lines = collector.named("enqueue")
        assert len({whole.trace, *(one.trace for one in lines)}) == 4
        assert [one.links for one in lines] == [[(whole.trace, whole.parent)]] * 3
        assert {one.attributes["streamspool.batch.id"] for one in lines} == {batch_id}
        assert PROMPT.encode() not in b"".join(collector.bodies)


def test_a_request_on_a_websocket_is_a_span_of_its_own(traced: Begin) -> None:
    with traced() as (collector, stack, _):
        with Socket(stack.url, traceparent=f"00-{TRACE}-{CALLER}-01") as socket:
            socket.whole(input=PROMPT)
            socket.refused(404, "model_not_found", model="nobody/has-it")
        wait_until(lambda: len(collector.named("response.create /v1/responses")) == 2, what="both requests")
        wait_until(lambda: collector.named("generate"), what="the answer")
        one, two = sorted(collector.named("response.create /v1/responses"), key=lambda span: span.began)
        assert {(span.trace, span.parent, span.kind) for span in (one, two)} == {(TRACE, CALLER, "server")}
        assert [span.attributes["http.response.status_code"] for span in (one, two)] == [200, 404]
        assert only(collector.named("enqueue")).parent == one.id
        assert one.attributes["streamspool.bytes"] > 0
        assert PROMPT.encode() not in b"".join(collector.bodies)


def test_what_is_no_traceparent_begins_a_new_trace_and_probes_are_no_spans(traced: Begin) -> None:
    with traced(OTEL_SERVICE_NAME="mine") as (collector, _, http):
        http.get("/healthz")
        http.get("/metrics")
        for bad in ("", "00-" + "0" * 32 + f"-{CALLER}-01", f"00-{TRACE}-{CALLER}", f"00-{TRACE}-{CALLER}-01-x", "ß"):
            raw = bad.encode("latin-1")
            assert http.post("/v1/chat/completions", json=asked("fake/echo"), headers={b"traceparent": raw}).is_success
        assert http.post("/v1/chat/completions", json=asked("scripted/none")).status_code == 404
        wait_until(lambda: len(collector.named("POST /v1/chat/completions")) == 6, what="six requests")
        wait_until(lambda: len([one for one in list(collector.spans) if one.name == "generate"]) == 6)
        posts = collector.named("POST /v1/chat/completions")
        assert len({one.trace for one in posts}) == 6
        assert not any(one.trace == TRACE or one.parent for one in posts)
        assert {one.service for one in collector.spans} == {"mine"}
        assert not [one for one in collector.spans if "health" in one.name or "metrics" in one.name]
        failed = only([one for one in collector.named("generate") if one.failed])
        assert failed.attributes["error.type"] == "status_404"


def test_who_is_not_sampled_is_not_told_of_and_goes_on_all_the_same(traced: Begin) -> None:
    with traced() as (collector, _, http):
        for flags in ("00", "01"):
            headers = {"traceparent": f"00-{TRACE[:-2]}{flags}-{CALLER}-{flags}"}
            assert http.post("/v1/chat/completions", json=asked("fake/echo"), headers=headers).is_success
        wait_until(lambda: collector.named("generate"), what="the second one")
        assert {one.trace[-2:] for one in collector.spans} == {"01"}
