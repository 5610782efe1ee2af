"""The provider side against a real server on loopback: every way an answer can come, stall, break or lie."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from typing import Any

import pytest
import stamina

from shared.config.settings import Settings
from shared.errors import (
    BadRequest,
    UpstreamError,
    UpstreamIncomplete,
    UpstreamInvalid,
    UpstreamRefused,
    UpstreamTimeout,
)
from shared.log.entry import Chunk
from tests.harness.upstream import DONE, END, Play, Server, Wire, chunk, serving, usage
from tests.support.lookups import unknown
from worker.normalizer import Normalizer
from worker.providers.registry import FAKE, Provider
from worker.upstream import client as requesting
from worker.upstream import timers as module
from worker.upstream.attempts import Served, Target
from worker.upstream.client import Terms, Upstream

KEY = "sk-test-topsecret"
BODY: dict[str, Any] = {"model": "acme/m", "messages": [{"role": "user", "content": "hi"}], "session_id": "s", "x": 1}
SETTINGS = {
    "upstream_connect_s": 60,
    "upstream_first_s": 60,
    "upstream_idle_s": 60,
    "generation_s": 100,
    "max_event_bytes": 4096,
}
"""What is to run out of time gets less: anything else may have to wait for a busy machine."""


class Reading:
    """What one stream gave: texts by batch, all chunks, and the error that ended it."""

    def __init__(self, choices: int = 1) -> None:
        self.normalizer = Normalizer(id="c", created=1, model="acme/m", show_usage=False, choices=choices)
        self.batches: list[list[Chunk]] = []
        self.error: UpstreamError | None = None

    @property
    def text(self) -> str:
        values = [json.loads(chunk.payload) for batch in self.batches for chunk in batch]
        return "".join(choice["delta"].get("content", "") for value in values for choice in value["choices"])

    @property
    def usage_chunks(self) -> int:
        return sum(chunk.is_usage for batch in self.batches for chunk in batch)


def provider(url: str, key: str | None = KEY) -> Provider:
    return Provider("acme", "openai", url, key)


def client(**settings: Any) -> Upstream:
    return Upstream(Settings.model_validate({**SETTINGS, **settings}))


async def read(upstream: Upstream, who: Provider, model: str = "m", body: dict[str, Any] = BODY) -> Reading:
    reading = Reading(body.get("n") or 1)
    try:
        async for chunks in upstream.stream([Target(who, model)], body, reading.normalizer, Served()):
            assert chunks
            reading.batches.append(chunks)
    except UpstreamError as error:
        reading.error = error
    return reading


async def played(server: Server) -> None:
    """Whoever was asked has been hung up on, or has said all it had to say."""
    for call in server.calls:
        await asyncio.wait_for(call.closed.wait(), 60)


async def ask(script: Play, **settings: Any) -> tuple[Reading, Server]:
    async with serving(script) as server, client(**settings) as upstream:
        return await read(upstream, provider(server.url)), server


async def test_a_whole_answer() -> None:
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(b": hello\n\n", chunk("a"), chunk("b"))
        await wire.send(chunk(None, "stop"), usage(prompt_tokens=3, completion_tokens=4), DONE)
        await wire.raw(END)

    reading, server = await ask(script)
    assert (reading.error, reading.text, reading.usage_chunks) == (None, "ab", 1)
    assert reading.batches[-1][-1].is_usage
    assert reading.normalizer.usage == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}

    [call] = server.calls
    assert call.head.startswith("POST /v1/chat/completions HTTP/1.1")
    assert call == {
        "model": "m",
        "messages": BODY["messages"],
        "x": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = call.headers
    assert headers.pop("user-agent").startswith("streamspool/")
    assert headers == {
        "host": server.url.removeprefix("http://").removesuffix("/v1"),
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
        "accept": "text/event-stream",
        "accept-encoding": "identity",
        "content-length": headers["content-length"],
    }


EVENTS = b"".join((chunk("a"), chunk("b"), chunk(None, "stop"), DONE))
SSE = b"content-type: text/event-stream\r\n"
IN_CHUNKS = b"%x\r\n%b\r\n0\r\n" % (len(EVENTS), EVENTS)


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.0 200 OK\r\n" + SSE + b"\r\n" + EVENTS,
        b"HTTP/1.1 200\r\n" + SSE + b"\r\n" + EVENTS,
        b"HTTP/1.1 200 OK\r\n" + SSE + b"content-length: %d\r\n\r\n" % len(EVENTS) + EVENTS,
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n" + SSE + b"\r\n" + EVENTS,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 2 + b"HTTP/1.1 200 OK\r\n" + SSE + b"\r\n" + EVENTS,
        b"HTTP/1.1 200 OK\r\n" + SSE + b"Transfer-Encoding: Chunked\r\n\r\n" + IN_CHUNKS + b"x-cost: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n"
        + SSE
        + b"transfer-encoding: chunked\r\n\r\n"
        + b"000%X;n=v\r\n%b\r\n0\r\n\r\n" % (len(EVENTS), EVENTS),
        b"HTTP/1.1 200 OK\r\nCONTENT-TYPE:Text/Event-Stream; Charset=UTF-8\r\n\r\n" + EVENTS,
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + EVENTS,
    ],
)
async def test_k9_http_as_providers_and_what_stands_before_them_speak_it(response: bytes) -> None:
    async def script(wire: Wire) -> None:
        await wire.raw(response)

    reading, server = await ask(script)
    assert (reading.error, reading.text, len(server.calls)) == (None, "ab", 1)


async def test_one_read_is_one_batch() -> None:
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(*[chunk("x")] * 50)
        await wire.send(chunk(None, "stop"), DONE)
        await wire.raw(END)

    reading, _ = await ask(script)
    assert reading.text == "x" * 50
    assert len(reading.batches) <= 3


async def test_a_consumer_that_does_not_read_makes_the_provider_wait() -> None:
    sent = 0

    async def script(wire: Wire) -> None:
        nonlocal sent
        await wire.head()
        while True:
            await wire.send(chunk("x" * 2000))
            sent += 2000

    async with serving(script) as server, client() as upstream:
        stream = upstream.stream([Target(provider(server.url), "m")], BODY, Reading().normalizer, Served())
        async with aclosing(stream):
            await anext(stream)
            last = -1
            while last != sent:
                last = sent
                await asyncio.sleep(0.1)
            assert sum(len(chunk.payload) for chunk in await anext(stream)) < 1 << 20
    assert sent < 64 << 20  # what the sockets of both sides hold


async def test_byte_by_byte_with_every_line_end() -> None:
    async def script(wire: Wire) -> None:
        await wire.head()
        answer = b"\xef\xbb\xbfid: 7\r\nretry: 1\r\n\r\n" + chunk("é\u2028").replace(b"\n", b"\r\n") + chunk("b")
        for byte in answer + chunk(None, "stop").replace(b"\n", b"\r") + DONE:
            await wire.send(bytes((byte,)))
        await wire.raw(END)

    reading, _ = await ask(script)
    assert (reading.error, reading.text) == (None, "é\u2028b")


async def test_without_key_no_authorization() -> None:
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(chunk("a", "stop"), DONE)

    async with serving(script) as server, client() as upstream:
        await read(upstream, provider(server.url, None))
    assert "authorization" not in server.calls[0].headers


async def test_connections_are_used_again_and_cookies_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        requesting, "_REUSE_S", 60.0
    )  # the end of a body is under way: what it waits for is the machine

    async def script(wire: Wire) -> str:
        await wire.head(set_cookie="a=b; Path=/")
        await wire.send(chunk("a", "stop"), DONE)
        await wire.raw(END)
        return "keep"

    async with serving(script) as server, client() as upstream:
        for _ in range(3):
            assert (await read(upstream, provider(server.url))).text == "a"
    assert server.connections == 1
    assert all("cookie" not in call.headers for call in server.calls)


async def test_what_follows_done_is_ignored() -> None:
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(chunk("a", "stop"), DONE, DONE, chunk("ghost"))
        await wire.send(chunk("ghost"))
        await wire.hung_up()

    reading, server = await ask(script)
    assert (reading.error, reading.text) == (None, "a")
    await played(server)


async def test_a_finish_reason_is_an_end_too() -> None:
    async def ends(wire: Wire) -> None:
        await wire.head()
        await wire.send(chunk("a"), chunk(None, "stop", usage={"completion_tokens": 1}))
        await wire.raw(END)

    async def breaks(wire: Wire) -> None:
        await wire.head()
        await wire.send(chunk("a"), chunk(None, "stop", usage={"completion_tokens": 1}))

    async def closes(wire: Wire) -> None:
        await wire.head(transfer_encoding="", connection="close")
        await wire.raw(chunk("a") + chunk(None, "stop", usage={"completion_tokens": 1}))

    async def swells(wire: Wire) -> None:
        await wire.head()
        await wire.send(chunk("a"), chunk(None, "stop", usage={"completion_tokens": 1}), b"x" * 5000)

    for script in (ends, breaks, closes, swells):
        reading, _ = await ask(script)
        assert (reading.error, reading.text, reading.usage_chunks) == (None, "a", 1)


async def test_after_the_finish_reason_the_wait_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRACE_S", 0.2)

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(chunk("a", "stop"))
        await wire.send(usage(prompt_tokens=1, completion_tokens=2))
        await wire.hung_up()

    started = time.monotonic()
    reading, server = await ask(script, upstream_idle_s=90)
    assert (reading.error, reading.text, reading.usage_chunks) == (None, "a", 1)
    assert time.monotonic() - started < 60
    await played(server)


async def stall_at_once(wire: Wire) -> None:
    await wire.hung_up()


async def stall_after_headers(wire: Wire) -> None:
    await wire.head()
    await wire.hung_up()


async def only_comments(wire: Wire) -> None:
    await wire.head()
    while True:
        await wire.send(b": still here\n\n", b"event: ping\ndata: {}\n\n")
        await asyncio.sleep(0.02)


async def stall_later(wire: Wire) -> None:
    await wire.head()
    await wire.send(chunk("a"))
    await wire.hung_up()


async def comments_later(wire: Wire) -> None:
    await wire.head()
    await wire.send(chunk("a"))
    while True:
        await wire.send(b": still here\n")
        await asyncio.sleep(0.02)


async def never_ends(wire: Wire) -> None:
    await wire.head()
    while True:
        await wire.send(chunk("a"))
        await asyncio.sleep(0.02)


async def stalls_in_its_error(wire: Wire) -> None:
    await wire.head(500, content_type="application/json")
    await wire.hung_up()


FIRST, IDLE, WHOLE_TIME = {"upstream_first_s": 0.3}, {"upstream_idle_s": 0.3}, {"generation_s": 3}
"""Of these the limits are short that are to be met; to meet the last one, something has to be said before."""


@pytest.mark.parametrize(
    ("script", "limit", "code", "text"),
    [
        (stall_at_once, FIRST, "upstream_first_timeout", ""),
        (stall_after_headers, FIRST, "upstream_first_timeout", ""),
        (stalls_in_its_error, FIRST, "upstream_first_timeout", ""),
        (stall_later, IDLE, "upstream_idle_timeout", "a"),
        (never_ends, WHOLE_TIME, "generation_timeout", "a"),
    ],
)
async def test_timers(script: Play, limit: dict[str, float], code: str, text: str) -> None:
    await _ends_with(script, limit, code, text)


@pytest.mark.parametrize(
    ("script", "limit", "code", "text"),
    [(only_comments, FIRST, "upstream_first_timeout", ""), (comments_later, IDLE, "upstream_idle_timeout", "a")],
)
async def test_j2_comments_are_no_sign_of_life(script: Play, limit: dict[str, float], code: str, text: str) -> None:
    await _ends_with(script, limit, code, text)


async def _ends_with(script: Play, limit: dict[str, float], code: str, text: str) -> None:
    async with serving(script) as server, client(**limit) as upstream:
        reading = await read(upstream, provider(server.url))
        await played(server)
    assert isinstance(reading.error, UpstreamTimeout)
    assert (reading.error.code, reading.error.status) == (code, 504)
    assert reading.text[:1] == text


async def test_connect_timeout() -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # a queue of one that nobody empties: later handshakes get no answer
        for filler in (first, second):
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(full.getsockname())
        async with client(upstream_connect_s=0.2) as upstream:
            reading = await read(upstream, provider(f"http://127.0.0.1:{full.getsockname()[1]}"))
    assert isinstance(reading.error, UpstreamTimeout)
    assert reading.error.code == "upstream_connect_timeout"


async def test_a_slow_consumer_is_not_the_providers_silence() -> None:
    waited = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(chunk("a"))
        await waited.wait()
        await asyncio.sleep(0.05)  # so that it is waited for
        await wire.send(chunk("b", "stop"), DONE)

    async with serving(script) as server, client(upstream_idle_s=1.5) as upstream:
        reading = Reading()
        async for chunks in upstream.stream([Target(provider(server.url), "m")], BODY, reading.normalizer, Served()):
            reading.batches.append(chunks)
            if not waited.is_set():
                await asyncio.sleep(1.6)
                waited.set()
    assert (reading.error, reading.text) == (None, "ab")


@pytest.fixture(autouse=True)
def no_pauses_between_tries() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


async def test_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown(monkeypatch, "no.such.invalid")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with client() as upstream:
            for url, why in (
                (refused, "connection refused"),
                ("http://x:99999999", ""),
                ("http://no.such.invalid", "the name is not known here"),
            ):
                reading = await read(upstream, provider(url))
                assert reading.error is not None
                assert why in reading.error.message
                assert (reading.error.code, reading.error.status) == ("upstream_connect_error", 502)
                assert url not in reading.error.message


async def test_hung_up_before_the_headers() -> None:
    async def script(wire: Wire) -> None:
        wire.reset()

    reading, _ = await ask(script)
    assert reading.error is not None
    assert reading.error.code == "upstream_connect_error"


async def eof(wire: Wire) -> None:
    await wire.head()
    await wire.send(chunk("a"), chunk("b"))
    await wire.raw(END)


async def chunked_cut(wire: Wire) -> None:
    await wire.head()
    await wire.send(chunk("a"), chunk("b"), chunk("c")[:30])


async def close_cut(wire: Wire) -> None:
    await wire.head(transfer_encoding="", connection="close")
    await wire.raw(chunk("a") + chunk("b") + chunk("c")[:30])


async def reset(wire: Wire) -> None:
    await wire.head()
    await wire.send(chunk("a"), chunk("b"))
    await asyncio.sleep(0.05)
    wire.reset()


async def nothing(wire: Wire) -> None:
    await wire.head()
    await wire.raw(END)


@pytest.mark.parametrize(
    ("script", "text"), [(eof, "ab"), (chunked_cut, "ab"), (close_cut, "ab"), (reset, "ab"), (nothing, "")]
)
async def test_cut_streams(script: Play, text: str) -> None:
    reading, _ = await ask(script)
    assert isinstance(reading.error, UpstreamIncomplete)
    assert reading.text == text
    assert reading.normalizer.finish_reasons == [None]


@pytest.mark.parametrize(
    ("bad", "kind", "code"),
    [
        (b'data: {"choices":[{"delta":{"con\n\n', UpstreamInvalid, "upstream_invalid"),
        (b'data: {"choices":[{"index":0,"delta":{"content":"\xff"}}]}\n\n', UpstreamInvalid, "upstream_invalid"),
        (b"data: " + b"x" * 5000 + b"\n\n", UpstreamInvalid, "upstream_chunk_too_large"),
        (b"data: " + b"x" * 100_000, UpstreamInvalid, "upstream_chunk_too_large"),
        (b'data: {"error":{"message":"m","code":"c"}}\n\n', UpstreamRefused, "c"),
        (b'event: error\ndata: {"error":{"message":"m","code":"c"}}\n\n', UpstreamRefused, "c"),
        (b'error: {"message":"m","code":"c"}\n', UpstreamRefused, "c"),
    ],
)
async def test_what_came_before_an_error_is_kept(bad: bytes, kind: type[UpstreamError], code: str) -> None:
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(chunk("a") + chunk("b") + bad)
        await wire.raw(END)

    reading, server = await ask(script)  # it is no matter of time
    assert isinstance(reading.error, kind)
    assert reading.error.code == code
    assert reading.text == "ab"
    await played(server)


async def test_a_key_of_any_form_is_not_repeated() -> None:
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(chunk("a"), b'data: {"error":{"message":"bad key: open sesame","code":401}}\n\n')

    async with serving(script) as server, client() as upstream:
        reading = await read(upstream, provider(server.url, "sesame"))
    assert isinstance(reading.error, UpstreamRefused)
    assert (reading.error.status, reading.error.provider_status) == (502, 401)
    assert "sesame" not in json.dumps(reading.error.to_stored())


async def test_an_endless_line_is_not_buffered() -> None:
    sent = 0

    async def script(wire: Wire) -> None:
        nonlocal sent
        await wire.head()
        while True:
            await wire.send(b"x" * 65536)
            sent += 65536

    reading, server = await ask(script)
    assert reading.error is not None
    assert reading.error.code == "upstream_chunk_too_large"
    await played(server)
    assert sent < 64 << 20


async def html(wire: Wire) -> None:
    await wire.head(content_type="text/html; charset=utf-8")
    await wire.send(b"<html>secret page</html>")
    await wire.raw(END)


async def plain_json(wire: Wire) -> None:
    await wire.head(content_type="application/json")
    await wire.send(b'{"hello":"secret"}')
    await wire.raw(END)


async def gzipped(wire: Wire) -> None:
    await wire.head(content_encoding="gzip")
    await wire.send(gzip.compress(b"\0" * 10_000_000))
    await wire.raw(END)


@pytest.mark.parametrize("script", [html, plain_json, gzipped])
async def test_not_a_stream(script: Play) -> None:
    reading, _ = await ask(script)
    assert isinstance(reading.error, UpstreamInvalid)
    assert reading.error.status == 502
    assert "secret" not in reading.error.message


WHOLE = b"""{
  "object": "chat.completion",
  "choices": [{"message": {"role": "assistant", "content": "The whole answer"}, "finish_reason": "stop"}],
  "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
}"""


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "text/event-stream", ""]
)
@pytest.mark.parametrize("body", [WHOLE, b"\xef\xbb\xbf \n" + WHOLE, WHOLE.replace(b', "finish_reason": "stop"', b"")])
async def test_f18_a_body_of_json_is_the_whole_answer(content_type: str, body: bytes) -> None:
    async def script(wire: Wire) -> None:
        await wire.head(content_type=content_type)
        for at in range(0, len(body), 7):
            await wire.send(body[at : at + 7])
        await wire.raw(END)

    reading, _ = await ask(script)
    assert (reading.error, reading.text, reading.usage_chunks) == (None, "The whole answer", 1)
    assert reading.normalizer.finish_reasons == ["stop"]


async def test_f18_a_body_of_json_that_was_cut_is_none() -> None:
    async def script(wire: Wire) -> None:
        await wire.head(content_type="application/json")
        await wire.send(WHOLE[:60])
        await wire.raw(END)

    reading, server = await ask(script)
    assert isinstance(reading.error, UpstreamIncomplete)
    assert len(server.calls) == 3


@pytest.mark.parametrize("first", [b"data", b": hello\n\ndata", b"event: message\ndata", b"\n\nid: 1\ndata"])
async def test_f18_a_stream_that_is_called_json_is_one(first: bytes) -> None:
    async def script(wire: Wire) -> None:
        await wire.head(content_type="application/json")
        await wire.send(first + chunk("a").removeprefix(b"data"), chunk("b", "stop"), DONE)
        await wire.raw(END)

    reading, _ = await ask(script)
    assert (reading.error, reading.text) == (None, "ab")


@pytest.mark.parametrize(
    "events",
    [
        [],
        [chunk("")],
        [b'data: {"object":"error","message":"m","code":500}\n\n'],
        [b'data: {"detail":"m"}\n\n'],
        [chunk("", "error")],
    ],
)
async def test_f2_where_nothing_was_said_the_next_target_is_asked(events: list[bytes]) -> None:
    async def fails(wire: Wire) -> None:
        await wire.head()
        await wire.send(*events, DONE)
        await wire.raw(END)

    async def answers(wire: Wire) -> None:
        await wire.head()
        await wire.send(chunk("a", "stop"), DONE)
        await wire.raw(END)

    async with serving(fails) as bad, serving(answers) as good, client() as upstream:
        targets, reading, served = [Target(provider(one.url), "m") for one in (bad, good)], Reading(), Served()
        async for chunks in upstream.stream(targets, BODY, reading.normalizer, served):
            reading.batches.append(chunks)
    assert reading.text == "a"
    assert len(served.refused) == 1
    assert len(bad.calls) == 3


@pytest.mark.parametrize("more", [{}, {"usage": {"completion_tokens": 1}}])
async def test_f1_content_that_keeps_coming_is_not_cut(monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]) -> None:
    """The few seconds after an end are for what may follow a last one; here they are none, and each pause is longer."""
    monkeypatch.setattr(module, "_GRACE_S", 0.0)

    async def script(wire: Wire) -> None:
        await wire.head()
        for text in ("one ", "two ", "three"):
            await wire.send(chunk(text, "stop", **more))
            await asyncio.sleep(0.05)
        await wire.send(DONE)
        await wire.raw(END)

    reading, _ = await ask(script)
    assert (reading.error, reading.text) == (None, "one two three")
    assert reading.normalizer.finish_reasons == ["stop"]


async def test_f1_a_cut_after_an_end_that_was_none_is_incomplete() -> None:
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(chunk("one ", "stop"), chunk("two "))
        await wire.hung_up()

    reading, _ = await ask(script, upstream_idle_s=0.3)
    assert isinstance(reading.error, UpstreamTimeout)
    assert (reading.error.code, reading.text) == ("upstream_idle_timeout", "one two ")


async def test_f1_an_end_behind_which_nothing_comes_is_one() -> None:
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(chunk("a", "stop"))
        await wire.hung_up()

    reading, _ = await ask(script, upstream_idle_s=0.3)
    assert (reading.error, reading.text, reading.normalizer.finish_reasons) == (None, "a", ["stop"])


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/octet-stream", "Text/Event-Stream;charset=x"])
async def test_streams_by_another_name(content_type: str) -> None:
    async def script(wire: Wire) -> None:
        await wire.head(content_type=content_type)
        await wire.send(chunk("é", "stop"), DONE)
        await wire.raw(END)

    reading, _ = await ask(script)
    assert (reading.error, reading.text) == (None, "é")


@pytest.mark.parametrize(("status", "ours"), [(400, 400), (401, 502), (429, 429), (500, 502), (504, 504), (200, 402)])
async def test_errors_instead_of_an_answer(status: int, ours: int) -> None:
    async def script(wire: Wire) -> None:
        await wire.head(status, content_type="application/json", retry_after="2")
        error = {"message": f"bad key {KEY}", "type": "t", "code": 402 if status == 200 else "c"}
        await wire.send(json.dumps({"error": error}).encode())
        await wire.raw(END)

    reading, server = await ask(script)
    assert isinstance(reading.error, UpstreamRefused)
    assert (reading.error.status, reading.error.provider_status) == (ours, 402 if status == 200 else status)
    assert reading.error.message.startswith("acme: bad key [redacted]")
    assert reading.error.retry_after_s == 2
    assert len(server.calls) == (3 if status in (429, 500, 504) else 1)


async def test_an_endless_error_is_read_in_part_only() -> None:
    async def script(wire: Wire) -> None:
        await wire.head(400, content_type="text/plain")
        while True:
            await wire.send(b"no " * 1000)

    reading, server = await ask(script)
    assert isinstance(reading.error, UpstreamRefused)
    assert len(reading.error.message) < 600
    await played(server)


async def test_an_error_that_was_cut_keeps_its_status() -> None:
    async def script(wire: Wire) -> None:
        await wire.head(429, content_type="application/json", retry_after="3")
        await wire.send(b'{"error":{"mess')

    reading, _ = await ask(script)
    assert isinstance(reading.error, UpstreamRefused)
    assert (reading.error.status, reading.error.retry_after_s) == (429, 3)


async def test_redirects_are_not_followed() -> None:
    async with serving(nothing) as elsewhere:

        async def script(wire: Wire) -> None:
            await wire.head(302, location=f"{elsewhere.url}/chat/completions")
            await wire.raw(END)

        reading, _ = await ask(script)
    assert reading.error is not None
    assert (reading.error.code, reading.error.status) == ("upstream_redirect", 502)
    assert elsewhere.calls == []


@pytest.mark.parametrize("how", ["aclose", "cancel"])
async def test_hanging_up_reaches_the_provider_at_once(how: str) -> None:
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(chunk("a"))
        await wire.hung_up()

    async with serving(script) as server, client(upstream_idle_s=90) as upstream:
        stream = upstream.stream([Target(provider(server.url), "m")], BODY, Reading().normalizer, Served())
        if how == "aclose":
            async with aclosing(stream):
                await anext(stream)
        else:
            await anext(stream)
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        async with asyncio.timeout(60):  # nothing else ends it before: the provider may be silent for longer
            await played(server)


async def test_many_cancelled_requests_leave_the_client_well() -> None:
    turn = 0
    all_there = asyncio.Event()

    async def script(wire: Wire) -> None:
        nonlocal turn
        turn += 1
        if turn <= 50:
            if turn == 50:
                all_there.set()
            await wire.hung_up()
            return
        await wire.head()
        await wire.send(chunk("a", "stop"), DONE)
        await wire.raw(END)

    async with serving(script) as server, client() as upstream:
        tasks = [asyncio.create_task(read(upstream, provider(server.url))) for _ in range(50)]
        await asyncio.wait_for(all_there.wait(), 60)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (await read(upstream, provider(server.url))).text == "a"
        await played(server)


async def batches_of(stream: AsyncIterator[list[Chunk]]) -> list[list[Chunk]]:
    return [chunks async for chunks in stream]


async def test_fake_models_take_the_same_road() -> None:
    async with client() as upstream:
        reading = await read(upstream, FAKE, "lorem?tokens=300&reasoning=5", {**BODY, "n": 2})
        assert (reading.error, reading.usage_chunks) == (None, 1)
        assert len(reading.text.split()) == 600
        assert reading.normalizer.finish_reasons == ["stop", "stop"]

        cut = await read(upstream, FAKE, "echo?tokens=5&cut=2")
        assert isinstance(cut.error, UpstreamIncomplete)
        assert cut.text.count("hi") == 2
        refused = await read(upstream, FAKE, "lorem?error=429")
        assert refused.error is not None
        assert refused.error.status == 429
        with pytest.raises(BadRequest):
            await batches_of(upstream.stream([Target(FAKE, "gpt")], BODY, Reading().normalizer, Served()))
    async with client(**FIRST) as upstream:
        late = await read(upstream, FAKE, "lorem?first_ms=60000")
        assert late.error is not None
        assert late.error.code == "upstream_first_timeout"
    async with client(**IDLE) as upstream:
        slow = await read(upstream, FAKE, "lorem?rate=0.01")
        assert slow.error is not None
        assert slow.error.code == "upstream_idle_timeout"


async def test_fake_models_keep_their_rate() -> None:
    async with client() as upstream:
        started = time.monotonic()
        reading = await read(upstream, FAKE, "lorem?tokens=101&rate=50")
        assert 1.99 < time.monotonic() - started < 60
        assert len(reading.text.split()) == 101
        assert len(reading.batches) > 10, "but those that are due together come together"


# ---- again, before the first chunk


@pytest.mark.parametrize(("failures", "calls"), [(1, 2), (2, 3), (9, 3)])
@pytest.mark.parametrize("how", ["503", "429", "cut", "error"])
async def test_a_refusal_that_may_pass_is_met_with_another_try(failures: int, calls: int, how: str) -> None:
    asked = 0

    async def script(wire: Wire) -> None:
        nonlocal asked
        asked += 1
        if asked > failures:
            await wire.head()
            await wire.send(chunk("a", "stop"), DONE, END)
        elif how in ("503", "429"):
            await wire.head(status=int(how), content_type="application/json")
            await wire.send(b'{"error":{"message":"later","code":"busy"}}', END)
        elif how == "error":
            await wire.head()
            await wire.send(b'data: {"error":{"message":"later","code":503}}\n\n', END)
        else:
            await wire.head()

    heard: list[UpstreamError] = []
    async with serving(script) as server, client() as upstream:
        reading = Reading()
        stream = upstream.stream(
            [Target(provider(server.url), "m")],
            BODY,
            reading.normalizer,
            Served(),
            Terms(on_retry=lambda error, _: heard.append(error)),
        )
        try:
            async for chunks in stream:
                reading.batches.append(chunks)
        except UpstreamError as error:
            reading.error = error
    assert asked == calls
    assert len(heard) == calls - 1
    assert (reading.text == "a") is (failures < 3)
    assert (reading.error is None) is (failures < 3)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_a_refusal_that_is_final_is_not_met_with_another_try(status: int) -> None:
    asked = 0

    async def script(wire: Wire) -> None:
        nonlocal asked
        asked += 1
        await wire.head(status=status, content_type="application/json")
        await wire.send(b'{"error":{"message":"no"}}', END)

    async with serving(script) as server, client() as upstream:
        reading = await read(upstream, provider(server.url))
    assert asked == 1
    assert isinstance(reading.error, UpstreamRefused)
    assert reading.error.provider_status == status


async def test_nothing_is_asked_again_once_something_was_said() -> None:
    asked = 0

    async def script(wire: Wire) -> None:
        nonlocal asked
        asked += 1
        await wire.head()
        await wire.send(chunk("a"))

    async with serving(script) as server, client() as upstream:
        reading = await read(upstream, provider(server.url))
    assert (asked, reading.text) == (1, "a")
    assert isinstance(reading.error, UpstreamIncomplete)


async def test_the_providers_own_time_is_waited_for() -> None:
    """Only here the pauses are real: 1 s was asked for, and more than 10 s is more than we wait."""
    asked: list[float] = []

    def script(retry_after: str) -> Play:
        async def play(wire: Wire) -> None:
            asked.append(time.monotonic())
            if len(asked) == 1:
                await wire.head(429, retry_after=retry_after, content_type="application/json")
                await wire.send(b'{"error":{"message":"later"}}', END)
            else:
                await wire.head()
                await wire.send(chunk("a", "stop"), DONE, END)

        return play

    with stamina.set_testing(False):
        async with serving(script("1")) as server, client() as upstream:
            assert (await read(upstream, provider(server.url))).text == "a"
        assert asked[1] - asked[0] >= 1
        asked.clear()
        async with serving(script("11")) as server, client() as upstream:
            reading = await read(upstream, provider(server.url))
        assert len(asked) == 1
        assert reading.error is not None
        assert reading.error.retry_after_s == 11
