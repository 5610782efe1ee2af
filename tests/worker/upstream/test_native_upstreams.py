"""Wire formats of their own against a real server on loopback: what is sent where, and what comes of the answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

import pytest

from shared.config.providers import ProviderKind
from shared.errors import UpstreamIncomplete, UpstreamInvalid, UpstreamRefused
from tests.harness.upstream import END, Server, Wire, serving
from tests.worker.upstream.test_upstream import KEY, Reading, client, read
from worker.providers.registry import Provider

BODY: dict[str, Any] = {"model": "acme/m", "messages": [{"role": "user", "content": "hi"}], "session_id": "s"}


class Format(NamedTuple):
    """`pieces` are a whole answer that says "ab" and counts 7 tokens; `error` is the body of a refusal."""

    kind: ProviderKind
    base: str
    path: str
    content_type: str
    accept: str
    pieces: list[bytes]
    error: dict[str, Any]


def sse(*values: dict[str, Any]) -> list[bytes]:
    return [b"data: " + json.dumps(value).encode() + b"\n\n" for value in values]


def block(text: str) -> dict[str, Any]:
    return {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": text}}}}


def line(text: str, **more: Any) -> bytes:
    return json.dumps({"message": {"role": "assistant", "content": text}, "done": False, **more}).encode() + b"\n"


FORMATS = [
    Format(
        "responses",
        "/v1",
        "/v1/responses",
        "text/event-stream",
        "text/event-stream",
        sse(
            {"type": "response.created", "response": {"id": "resp_1"}},
            {"type": "response.output_text.delta", "output_index": 0, "delta": "a"},
            {"type": "response.output_text.delta", "output_index": 0, "delta": "b"},
            {
                "type": "response.completed",
                "response": {
                    "status": "completed",
                    "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
                },
            },
        ),
        {"error": {"message": f"bad key {KEY}", "code": "invalid_api_key"}},
    ),
    Format(
        "ollama",
        "/api",
        "/api/chat",
        "application/x-ndjson",
        "application/x-ndjson",
        [line("a"), line("b"), line("", done=True, done_reason="stop", prompt_eval_count=3, eval_count=4)],
        {"error": f"bad key {KEY}"},
    ),
    Format(
        "cohere",
        "/v2",
        "/v2/chat",
        "text/event-stream",
        "text/event-stream",
        sse(
            block("a"),
            block("b"),
            {
                "type": "message-end",
                "delta": {"finish_reason": "COMPLETE", "usage": {"tokens": {"input_tokens": 3, "output_tokens": 4}}},
            },
        ),
        {"id": "x", "message": f"bad key {KEY}"},
    ),
]


@pytest.fixture(params=FORMATS, ids=lambda form: form.kind)
def form(request: pytest.FixtureRequest) -> Format:
    form: Format = request.param
    return form


async def ask(form: Format, script: Any, **settings: Any) -> tuple[Reading, Server]:
    async with serving(script) as server, client(**settings) as upstream:
        who = Provider("acme", form.kind, server.url.removesuffix("/v1") + form.base, KEY)
        return await read(upstream, who, body=BODY), server


async def test_a_whole_answer(form: Format) -> None:
    async def script(wire: Wire) -> None:
        await wire.head(content_type=form.content_type)
        for piece in form.pieces:
            await wire.send(piece[:5], piece[5:])
        await wire.raw(END)

    reading, server = await ask(form, script)
    assert (reading.error, reading.text, reading.usage_chunks) == (None, "ab", 1)
    assert reading.normalizer.usage is not None
    assert reading.normalizer.usage["total_tokens"] == 7
    assert reading.normalizer.finish_reasons == ["stop"]
    [call] = server.calls
    assert call.head.startswith(f"POST {form.path} HTTP/1.1")
    assert (call.headers["authorization"], call.headers["accept"]) == (f"Bearer {KEY}", form.accept)
    assert (call["model"], call["stream"]) == ("m", True)
    assert not {"session_id", "stream_options"} & call.keys()


async def test_a_refusal_keeps_its_status_and_not_the_key(form: Format) -> None:
    async def script(wire: Wire) -> None:
        await wire.head(401, content_type="application/json")
        await wire.send(json.dumps(form.error).encode())
        await wire.raw(END)

    reading, _ = await ask(form, script)
    assert isinstance(reading.error, UpstreamRefused)
    assert (reading.error.status, reading.error.provider_status) == (502, 401)
    assert reading.error.message.startswith("acme: bad key [redacted] (401 by the provider, ")


async def test_an_answer_that_was_cut(form: Format) -> None:
    async def script(wire: Wire) -> None:
        await wire.head(content_type=form.content_type)
        await wire.send(*form.pieces[:-1], form.pieces[-1][:-20])
        await wire.raw(END)

    reading, _ = await ask(form, script)
    assert isinstance(reading.error, UpstreamIncomplete)
    assert reading.text == "ab"


async def test_an_event_over_the_limit(form: Format) -> None:
    async def script(wire: Wire) -> None:
        await wire.head(content_type=form.content_type)
        await wire.send(*form.pieces[:-1], b"x" * 5000)
        await wire.hung_up()

    reading, _ = await ask(form, script)
    assert isinstance(reading.error, UpstreamInvalid)
    assert reading.error.code == "upstream_chunk_too_large"
    assert reading.text == "ab"


@pytest.mark.parametrize(("name", "alive"), [("response.web_search_call.searching", True), ("keepalive", False)])
async def test_what_a_hosted_tool_does_is_progress(name: str, alive: bool) -> None:
    """A search that tells of itself may take longer than the idle timer runs, one that only pings may not."""
    form = FORMATS[0]

    async def script(wire: Wire) -> None:
        await wire.head(content_type=form.content_type)
        await wire.send(*form.pieces[:-1])
        for _ in range(20):
            await asyncio.sleep(0.15)
            await wire.send(b"event: %b\ndata: %b\n\n" % (name.encode(), json.dumps({"type": name}).encode()))
        await wire.send(form.pieces[-1])
        await wire.raw(END)

    reading, _ = await ask(form, script, upstream_idle_s=2)
    assert reading.text == "ab"
    assert (reading.error.code if reading.error else None) == (None if alive else "upstream_idle_timeout")


async def test_an_error_of_ollamas_in_the_middle() -> None:
    form = FORMATS[1]

    async def script(wire: Wire) -> None:
        await wire.head(content_type="application/json")
        await wire.send(form.pieces[0], json.dumps({"error": f"no memory for {KEY}"}).encode() + b"\n")
        await wire.raw(END)

    reading, _ = await ask(form, script)
    assert isinstance(reading.error, UpstreamRefused)
    assert reading.text == "a"
    assert KEY not in json.dumps(reading.error.to_stored())
