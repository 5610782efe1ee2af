"""What is on the wire: bytes of streams, headers, keep-alives, and how failures look."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.harness.upstream import DONE, USAGE, Pause, chunk, ending, words
from tests.support.wire import (
    DONE_FRAME,
    KEEPALIVE,
    PROVIDER_KEY,
    SEAL_ID,
    Client,
    Register,
    ask,
    chunks,
    end_error,
    frames,
    payload,
    position,
    refused,
    text,
)

STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}


def test_a_post_streams_openais_bytes_and_nothing_else(client: Client) -> None:
    body = client.stream("fake/lorem?tokens=20").content
    assert re.fullmatch(rb"(data: \{[^\r\n]*\}\n\n)+data: \[DONE\]\n\n", body)


def test_ids_are_added_where_they_are_asked_for(client: Client) -> None:
    response = client.stream("fake/lorem?tokens=20", ids=True)
    assert re.fullmatch(rb"(id: 1-\d+\ndata: \{[^\r\n]*\}\n\n)+id: \d+-0\ndata: \[DONE\]\n\n", response.content)
    assert [position(frame) for frame in frames(response.content)] == [*(f"1-{i}" for i in range(1, 23)), SEAL_ID]


@pytest.mark.parametrize("value", ["0", "", "true", "2"])
def test_ids_come_only_with_a_one(client: Client, value: str) -> None:
    response = client.post(ask("fake/echo", stream=True), headers={"x-stream-ids": value})
    assert b"id: " not in response.content


def test_every_view_of_a_frame_has_the_same_bytes(client: Client) -> None:
    posted = client.stream("fake/lorem?tokens=20&reasoning=3", ids=True)
    generation_id = posted.headers["x-stream-id"]
    native = client.whole(generation_id)
    openai = client.get(f"/v1/chat/completions/{generation_id}?stream=true").content
    assert native == openai == posted.content
    without = b"".join(frame.partition(b"\n")[2] for frame in frames(native))
    assert re.sub(rb"^id: .*\n", b"", native, flags=re.M) == without


def test_a_stream_says_what_it_is_and_where_to_find_it_again(client: Client) -> None:
    posted = client.stream("fake/echo")
    generation_id = posted.headers["x-stream-id"]
    watched = client.get(posted.headers["location"])
    viewed = client.get(f"/v1/chat/completions/{generation_id}?stream=true")
    for response in (posted, watched, viewed):
        assert STREAM_HEADERS.items() <= dict(response.headers).items()
        assert response.headers["location"] == f"/v1/streams/{generation_id}"
        assert response.headers["x-stream-id"] == generation_id
        assert "content-encoding" not in response.headers
        assert "server" not in response.headers


def test_a_whole_answer_names_its_stream_too(client: Client) -> None:
    response = client.post(ask("fake/echo"))
    assert response.headers["content-type"] == "application/json"
    assert response.headers["location"] == f"/v1/streams/{response.json()['id']}"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/metrics", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/streams", 200),
        ("GET", "/v1/streams?limit=x", 400),
        ("POST", "/v1/chat/completions", 400),
        ("GET", "/v1/streams/nobody", 404),
        ("GET", "/nowhere", 404),
        ("PUT", "/v1/models", 405),
    ],
)
def test_every_response_has_a_request_id_of_its_own(client: Client, method: str, path: str, status: int) -> None:
    responses = [client.http.request(method, path) for _ in range(2)]
    assert {response.status_code for response in responses} == {status}
    assert len({response.headers["x-request-id"] for response in responses}) == 2


# ---- keep-alives: `keyed` sends them every 100 ms, and headers after 300 ms


def test_a_keepalive_is_one_comment_line_between_frames(alice: Client, scripted: Register) -> None:
    pause = Pause()
    model = scripted([*words(1), pause, *ending()]).model
    with alice.streaming(model) as viewer:
        viewer.until(b"w0")
        viewer.until(KEEPALIVE * 3)
        pause.go()
        viewer.rest()
    whole = alice.whole(viewer.id)
    assert viewer.body.replace(KEEPALIVE, b"") == re.sub(rb"(?m)^id: .*\n", b"", whole)
    assert re.fullmatch(rb"((: ka\n)*data: [^\n]*\n\n)+", viewer.body)


def test_there_is_none_before_its_time(client: Client, scripted: Register) -> None:
    """By default one comes after 15 s of silence."""
    body = client.stream(scripted([0.3, *words(1), 0.6, *ending()]).model).content
    assert re.fullmatch(rb"(data: [^\n]*\n\n)+", body)


def test_keepalives_begin_before_the_first_token(alice: Client, scripted: Register) -> None:
    pause = Pause()
    model = scripted([pause, *words(2), *ending()]).model
    with alice.streaming(model) as viewer:
        viewer.until(KEEPALIVE * 2)
        assert set(viewer.body.split(b"\n")) == {b": ka", b""}
        pause.go()
        assert text(chunks(viewer.rest().replace(KEEPALIVE, b""))) == "w0 w1 "


def test_a_keepalive_never_gets_inside_a_frame(alice: Client, scripted: Register) -> None:
    event, pauses = chunk({"content": "x" * 60_000}), [Pause(), Pause()]
    thirds = [event[:20_000], pauses[0], event[20_000:40_000], pauses[1], event[40_000:]]
    model = scripted([*words(1), *thirds, *ending()]).model
    with alice.streaming(model) as viewer:
        viewer.until(b"w0 ")
        for number, pause in enumerate(pauses, 2):
            viewer.until(KEEPALIVE * number)
            pause.go()
        viewer.rest()
    assert re.fullmatch(rb"((: ka\n)*data: [^\n]*\n\n)+", viewer.body)


def test_get_views_are_kept_alive_as_well(alice: Client, scripted: Register) -> None:
    pause = Pause()
    with alice.streaming(scripted([*words(1), pause, *ending()]).model) as first:
        first.take(2)
        with alice.watching(first.id) as viewer:
            viewer.until(KEEPALIVE * 2)
            pause.go()
            viewer.rest()
    assert re.fullmatch(rb"((: ka\n)*id: [^\n]*\ndata: [^\n]*\n\n)+", viewer.body)
    assert viewer.body.replace(KEEPALIVE, b"") == alice.whole(viewer.id)


# ---- failures


def refusal(status: int, message: str = "the provider does not like this", **headers: str) -> dict[str, Any]:
    body = (
        b'{"error": {"message": "%b", "type": "some_type", "param": "some[0].x", "code": "some_code"}}'
        % message.encode()
    )
    return {"parts": [body], "status": status, "headers": {"content-type": "application/json", **headers}}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("upstream_status", "status"),
    [(400, 400), (401, 502), (403, 502), (404, 404), (422, 422), (429, 429), (500, 502), (503, 502), (504, 504)],
)
def test_an_early_refusal_keeps_its_status_unless_it_is_about_the_servers_key(
    client: Client, scripted: Register, stream: bool, upstream_status: int, status: int
) -> None:
    model = scripted(**refusal(upstream_status)).model
    response = client.post(ask(model, stream=stream))
    error = refused(response, status, "some_code")
    assert (error["type"], error["param"]) == ("some_type", "some[0].x")
    assert "the provider does not like this" in error["message"]
    assert response.headers["x-stream-id"]
    assert client.state(response.headers["x-stream-id"])["status"] == "failed"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("said", "passed_on"), [("17", "17"), ("1" + "0" * 20, "86400"), ("Fri, 31 Dec 9999 23:59:59 GMT", "86400")]
)
def test_a_rate_limit_says_when_to_come_back(
    client: Client, scripted: Register, stream: bool, said: str, passed_on: str
) -> None:
    """A day at most: what a provider's clock or arithmetic makes of it is nobody's business."""
    model = scripted(**refusal(429, **{"retry-after": said})).model
    response = client.post(ask(model, stream=stream))
    refused(response, 429)
    assert response.headers["retry-after"] == passed_on


def test_a_redirect_is_not_followed(client: Client, scripted: Register) -> None:
    elsewhere = scripted([*words(1), *ending()])
    model = scripted(status=302, headers={"location": "/v1/chat/completions"}).model
    refused(client.post(ask(model)), 502, "upstream_redirect")
    assert not elsewhere.script.calls


def test_a_web_page_is_not_quoted(client: Client, scripted: Register) -> None:
    model = scripted([b"<html>secret admin page</html>"], headers={"content-type": "text/html"}).model
    error = refused(client.post(ask(model, stream=True)), 502)
    assert "secret" not in error["message"]


def test_a_failure_after_the_headers_went_out_is_a_frame(alice: Client, scripted: Register) -> None:
    pause = Pause()
    model = scripted([pause, b'data: {"error": {"message": "the machine is on fire", "code": "fire"}}\n\n']).model
    with alice.streaming(model) as viewer:
        viewer.until(KEEPALIVE)
        pause.go()
        viewer.rest()
    error = end_error(viewer.body.replace(KEEPALIVE, b""))
    assert error["code"] == "fire"
    assert "the machine is on fire" in error["message"]


FAILURES = {
    "error event": ([b'data: {"error": {"message": "the machine is on fire", "code": "fire"}}\n\n', DONE], "fire"),
    "named error event": (
        [b'event: error\ndata: {"error": {"message": "on fire, sorry", "code": "fire"}}\n\n'],
        "fire",
    ),
    "end of file": ([], "upstream_incomplete"),
    "garbage": ([b"data: {not json\n\n", *ending()], "upstream_invalid"),
    "not an object": ([b"data: [1, 2]\n\n", *ending()], "upstream_invalid"),
    "not UTF-8": ([b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n', *ending()], "upstream_invalid"),
    "too large": ([b"data: " + b"x" * 34_000_000, b"\n\n"], "upstream_chunk_too_large"),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("ids", [False, True])
def test_a_failure_after_chunks_is_an_error_frame_and_done(
    client: Client, scripted: Register, name: str, ids: bool
) -> None:
    parts, code = FAILURES[name]
    response = client.stream(scripted([*words(3), *parts]).model, ids=ids)
    found = frames(response.content)
    assert end_error(response.content)["code"] == code
    assert list(payload(found[-2])["error"]) == ["message", "type", "param", "code"]
    assert text([payload(frame) for frame in found[:-2]]) == "w0 w1 w2 "
    if ids:
        assert [position(frame) for frame in found] == ["1-1", "1-2", "1-3", "1-4", SEAL_ID, SEAL_ID]
    else:
        assert found[-1] == DONE_FRAME


def test_a_connection_that_breaks_is_an_incomplete_answer(client: Client, scripted: Register) -> None:
    model = scripted([*words(3)], end="cut").model
    response = client.stream(model)
    assert end_error(response.content)["code"] == "upstream_incomplete"
    refused(client.post(ask(model)), 502, "upstream_incomplete")


def test_a_missing_done_after_the_finish_reason_is_no_failure(client: Client, scripted: Register) -> None:
    model = scripted([*words(2), chunk({}, "stop"), USAGE]).model
    assert text(chunks(client.stream(model).content)) == "w0 w1 "


@pytest.mark.parametrize(
    "message",
    [
        f"Incorrect API key provided: {PROVIDER_KEY}.",
        f"Authorization: Bearer {PROVIDER_KEY} was refused",
        "You sent sk-somebodyelses0123456789abcdef instead",
    ],
)
def test_no_error_shows_a_key(alice: Client, scripted: Register, message: str) -> None:
    event = b'data: {"error": {"message": "%b"}}\n\n' % message.encode()
    early = alice.post(ask(scripted(provider="openai", **refusal(401, message)).model, stream=True))
    late = alice.stream(scripted([*words(1), event], provider="openai").model)
    assert "error" in early.text
    for response in (early, late):
        shown = response.text + alice.get(f"/v1/chat/completions/{response.headers['x-stream-id']}").text
        assert PROVIDER_KEY not in shown
        assert "sk-somebodyelses" not in shown
        assert "127.0.0.1" not in shown
