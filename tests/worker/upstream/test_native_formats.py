"""Providers with formats of their own, against a server on loopback: what is asked, of whom, and what comes of it."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

import pytest

from shared.chat.chunks import Accumulator
from shared.config.settings import Settings
from shared.errors import BadRequest, UpstreamError
from tests.harness.upstream import END, Play, Server, Wire, serving
from worker.normalizer import Normalizer
from worker.providers.registry import Provider
from worker.upstream.attempts import Served, Target
from worker.upstream.client import Upstream

KEY = "own-key-like-no-other"
BODY: dict[str, Any] = {"model": "who/m", "messages": [{"role": "user", "content": "hi"}], "session_id": "s"}
SETTINGS = {"upstream_connect_s": 60, "upstream_first_s": 60, "upstream_idle_s": 60, "generation_s": 100}


def sent(*events: dict[str, Any]) -> bytes:
    """Anthropic's framing; Gemini's differs by CRLF and by having no names."""
    named = ((event.get("type"), json.dumps(event).encode()) for event in events)
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (name.encode(), data) if name else b"data: %b\r\n\r\n" % data
        for name, data in named
    )


ANTHROPIC = sent(
    {"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
)
GEMINI = sent(
    {"candidates": [{"content": {"parts": [{"text": "hel"}], "role": "model"}}]},
    {
        "candidates": [{"content": {"parts": [{"text": "lo"}], "role": "model"}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5},
    },
)
FORMATS: dict[str, dict[str, Any]] = {
    "anthropic": {
        "stream": ANTHROPIC,
        "path": "/v1/messages",
        "headers": {"x-api-key": KEY, "anthropic-version": "2023-06-01"},
        "body": {"model": "m", "max_tokens": 8192, "stream": True},
        "error": {"type": "error", "error": {"type": "rate_limit_error", "message": f"slow down, {KEY}"}},
    },
    "gemini": {
        "stream": GEMINI,
        "path": "/v1/models/m:streamGenerateContent?alt=sse",
        "headers": {"x-goog-api-key": KEY},
        "body": {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]},
        "error": {"error": {"code": 429, "message": f"slow down, {KEY}", "status": "RESOURCE_EXHAUSTED"}},
    },
}

each_format = pytest.mark.parametrize("kind", FORMATS)


async def ask(kind: Any, script: Play, **fields: Any) -> tuple[dict[str, Any], UpstreamError | None, Server]:
    """The whole answer as far as it came, the error it ended in, and the server that was asked."""
    normalizer = Normalizer(id="c", created=1, model="who/m", show_usage=False)
    fold, error = Accumulator(), None
    async with serving(script) as server, Upstream(Settings.model_validate(SETTINGS)) as upstream:
        target = Target(Provider("who", kind, server.url, KEY), "m")
        try:
            async with aclosing(upstream.stream([target], {**BODY, **fields}, normalizer, Served())) as batches:
                async for chunks in batches:
                    for chunk in chunks:
                        fold.feed(json.loads(chunk.payload))
        except UpstreamError as caught:
            error = caught
    return fold.result(), error, server


@each_format
async def test_a_whole_answer(kind: str) -> None:
    expected = FORMATS[kind]

    async def script(wire: Wire) -> None:
        await wire.head(content_type="text/event-stream; charset=utf-8")
        for at in range(0, len(expected["stream"]), 50):
            await wire.send(expected["stream"][at : at + 50])
        await wire.raw(END)

    answer, error, server = await ask(kind, script)
    assert error is None
    [choice] = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("hello", "stop")
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (3, 2)

    [call] = server.calls
    assert call.head.startswith(f"POST {expected['path']} HTTP/1.1")
    assert call.headers.items() >= expected["headers"].items()
    assert "authorization" not in call.headers
    assert call.items() >= expected["body"].items()
    assert "session_id" not in call


@each_format
async def test_a_refusal_is_told_without_the_key(kind: str) -> None:
    async def script(wire: Wire) -> None:
        await wire.head(429, content_type="application/json", retry_after="60")
        await wire.send(json.dumps(FORMATS[kind]["error"]).encode())
        await wire.raw(END)

    _, error, _ = await ask(kind, script)
    assert error is not None
    assert (error.status, error.retry_after_s) == (429, 60)
    assert "slow down" in error.message
    assert KEY not in json.dumps(error.to_stored())


@each_format
async def test_an_error_in_the_middle_keeps_what_was_said(kind: str) -> None:
    events = FORMATS[kind]["stream"]
    middle = events.index(b"hel") + events[events.index(b"hel") :].index(b"\n") + 2
    said = events[:middle].rstrip() + b"\n\n"

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(said, sent(FORMATS[kind]["error"]))
        await wire.raw(END)

    answer, error, server = await ask(kind, script)
    assert answer["choices"][0]["message"]["content"] in ("hel", "hello")
    assert error is not None
    assert error.status == 429
    assert KEY not in json.dumps(error.to_stored())
    assert len(server.calls) == 1


@each_format
async def test_an_answer_that_breaks_off_is_not_whole(kind: str) -> None:
    stream = FORMATS[kind]["stream"]

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(stream[: stream.index(b"stop_reason" if kind == "anthropic" else b"finishReason")])
        await wire.raw(END)

    _, error, _ = await ask(kind, script)
    assert error is not None
    assert error.code == "upstream_incomplete"


@each_format
async def test_what_it_cannot_be_asked_is_not_sent(kind: str) -> None:
    async def script(wire: Wire) -> None:
        raise AssertionError("nobody should have called")

    with pytest.raises(BadRequest) as caught:
        await ask(kind, script, logprobs=True)
    assert caught.value.param == "logprobs"
