"""Good answers under statuses, types and encodings that are not those of an event stream, and refusals that are."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable

import pytest

from shared.errors import UpstreamInvalid, UpstreamRefused
from tests.harness.upstream import END, Wire
from tests.worker.upstream.test_upstream import EVENTS, Reading, ask

WHOLE = json.dumps({"choices": [{"message": {"content": "ab"}, "finish_reason": "stop"}]}).encode()
ERROR = b'{"error":{"message":"boom","code":"c"}}'


async def answered(body: bytes, status: int = 200, *, first: int = 0, **headers: str) -> Reading:
    """`first` bytes come alone, the rest in packets of 7."""

    async def script(wire: Wire) -> None:
        await wire.head(status, **headers)
        if first:
            await wire.send(body[:first])
            await asyncio.sleep(0.1)
        for at in range(first, len(body), 7):
            await wire.send(body[at : at + 7])
        await wire.raw(END)

    reading, _ = await ask(script)
    return reading


@pytest.mark.parametrize("status", [201, 202, 203])
async def test_f18_an_answer_under_another_status_of_success(status: int) -> None:
    """NestJS answers every POST with 201."""
    reading = await answered(EVENTS, status)
    assert (reading.error, reading.text) == (None, "ab")


@pytest.mark.parametrize(
    "content_type",
    [
        "text/event-stream, text/event-stream",
        "text/event-stream charset=utf-8",
        "text/html; charset=UTF-8",
        "application/x-ndjson",
        "application/stream+json",
        "*/*",
    ],
)
@pytest.mark.parametrize("body", [EVENTS, WHOLE, b"\r\n \n" + EVENTS, b"\xef\xbb\xbf" + EVENTS])
async def test_f18_an_answer_under_another_type(content_type: str, body: bytes) -> None:
    """PHP calls what it sends text/html; two headers of one name are joined by a comma."""
    reading = await answered(body, content_type=content_type)
    assert (reading.error, reading.text) == (None, "ab")


@pytest.mark.parametrize("body", [EVENTS, b"\xef\xbb\xbf" + EVENTS])
async def test_f18_an_answer_under_another_type_whose_first_packet_is_small(body: bytes) -> None:
    reading = await answered(body, first=1, content_type="text/html")
    assert (reading.error, reading.text) == (None, "ab")


@pytest.mark.parametrize("body", [b"da", b"da secret"])
async def test_f18_what_begins_like_an_answer_may_be_none(body: bytes) -> None:
    reading = await answered(body, first=2, content_type="text/html")
    assert isinstance(reading.error, UpstreamInvalid)


@pytest.mark.parametrize("depth", [1000, 5000])
async def test_f18_an_event_that_is_nested_without_end_is_invalid(depth: int) -> None:
    """What can be read of 1,000 differs: Python 3.11 counts what is nested in C as well."""
    nested = b'data: {"error":{"message":"boom","code":%b}}\n\n' % (b"[" * depth + b"]" * depth)
    error = (await answered(nested)).error
    assert isinstance(error, UpstreamInvalid) or (depth == 1000 and isinstance(error, UpstreamRefused))


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><p>secret page</p>", b"\n\n <html>secret", b"secret words"])
async def test_f18_a_page_is_none(body: bytes) -> None:
    reading = await answered(body, content_type="text/html")
    assert isinstance(reading.error, UpstreamInvalid)
    assert "secret" not in reading.error.message


@pytest.mark.parametrize(("encoding", "press"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
@pytest.mark.parametrize(("body", "content_type"), [(EVENTS, "text/event-stream"), (WHOLE, "application/json")])
async def test_f18_an_answer_that_was_compressed_unasked(
    encoding: str, press: Callable[[bytes], bytes], body: bytes, content_type: str
) -> None:
    reading = await answered(press(body), content_encoding=encoding, content_type=content_type)
    assert (reading.error, reading.text) == (None, "ab")


async def test_f18_what_is_not_compressed_as_it_says_is_invalid() -> None:
    assert isinstance((await answered(EVENTS, content_encoding="gzip")).error, UpstreamInvalid)
    assert isinstance((await answered(EVENTS, content_encoding="br")).error, UpstreamInvalid)


@pytest.mark.parametrize(
    "body",
    [
        b"data: " + ERROR + b"\n\n",
        b": x\n\nevent: error\r\ndata: " + ERROR + b"\r\n\r\ndata: [DONE]\r\n\r\n",
        b"data: " + ERROR,
        b"\xef\xbb\xbf" + ERROR,
        json.dumps(ERROR.decode()).encode(),
    ],
)
@pytest.mark.parametrize("status", [400, 429])
async def test_k2_a_refusal_in_the_form_of_a_stream_keeps_its_words(status: int, body: bytes) -> None:
    error = (await answered(body, status, retry_after="60")).error
    assert isinstance(error, UpstreamRefused)
    assert (error.provider_status, error.code, error.message) == (status, "c", "acme: boom")


async def test_k2_a_refusal_that_was_compressed_keeps_its_words() -> None:
    error = (await answered(gzip.compress(ERROR), 400, content_encoding="gzip", content_type="application/json")).error
    assert error is not None
    assert (error.code, error.message) == ("c", "acme: boom")
    error = (await answered(gzip.compress(ERROR)[:-9], 400, content_encoding="gzip")).error
    assert isinstance(error, UpstreamRefused)


async def test_k2_anothers_refusal_that_was_passed_on_as_it_came_is_read() -> None:
    body = json.dumps({"error": {"message": ERROR.decode()}}).encode()
    error = (await answered(body, 400, content_type="application/json")).error
    assert error is not None
    assert error.message == "acme: boom"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_k8_events_without_blank_lines_between_them(end: bytes) -> None:
    reading = await answered(EVENTS.replace(b"\n\n", end))
    assert (reading.error, reading.text) == (None, "ab")
