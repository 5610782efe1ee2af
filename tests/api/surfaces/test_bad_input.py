"""What cannot be carried out is refused, in OpenAI's error shape, and nothing of it is kept."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness.processes import Stack
from tests.harness.store import Store
from tests.support.names import keys
from tests.support.wire import Client, ask, error_of, refused

LIMIT = 50 * 1024 * 1024
VALID = ask("fake/echo")


@pytest.fixture(autouse=True)
def nothing_is_kept(request: pytest.FixtureRequest, client: Client, store: Store) -> Iterator[None]:
    """No log, no job: the tests here never get that far (but for the fuzzer)."""
    if "fuzz" in request.node.name:
        yield
        return
    accepted, before = "streamspool_generations_submitted_total", set(store.zrange(keys.open(0), 0, -1))
    count = client.metric(accepted)
    yield
    assert client.metric(accepted) == count
    assert set(store.zrange(keys.open(0), 0, -1)) <= before


def changed(**fields: Any) -> bytes:
    return json.dumps({**VALID, **fields}).encode()


def with_messages(*messages: Any) -> bytes:
    return changed(messages=list(messages))


NOT_JSON = {
    "empty": b"",
    "blank": b" \n",
    "garbage": b"hello",
    "cut": b'{"model": "fake/echo", "messages": [{"role": "us',
    "trailing comma": b'{"model": "fake/echo",}',
    "trailing garbage": changed() + b"x",
    "two bodies": changed() + changed(),
    "single quotes": b"{'model': 'fake/echo'}",
    "NaN": changed(temperature=float("nan")),
    "Infinity": changed(temperature=float("inf")),
    "-Infinity": changed(x=float("-inf")),
    "lone surrogate": changed(messages=[{"role": "user", "content": "\ud83d"}]),
    "lone surrogate in an unknown field": changed(x="\udfff"),
    "invalid UTF-8": changed().replace(b"hello", b"\xff\xfe"),
    "overlong UTF-8": changed().replace(b"hello", b"\xc0\xaf"),
    "surrogate in UTF-8": changed().replace(b"hello", b"\xed\xa0\x80"),
    "UTF-16": json.dumps(VALID).encode("utf-16"),
    "UTF-32": json.dumps(VALID).encode("utf-32"),
    "control character": changed().replace(b"hello", b"a\x01b"),
    "deep array": b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep object": b'{"x":' * 100_000 + b"1" + b"}" * 100_000,
    "deep and unclosed": b"[" * 100_000,
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_not_json(client: Client, name: str) -> None:
    error = refused(client.send(NOT_JSON[name]), 400, "invalid_json")
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 300


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"text"', b"true", changed().join([b"[", b"]"])])
def test_what_is_not_an_object(client: Client, body: bytes) -> None:
    assert "object" in refused(client.send(body), 400)["message"]


NULLABLE = {"content", "stream", "n", "temperature"}


def values(field: str, *wrong: Any) -> list[tuple[str, Any]]:
    return [(field, value) for value in wrong]


WRONG: list[tuple[str, Any]] = [
    *values("model", None, 5, True, [], {}, "", "a\nb", "a\0b", "x" * 300),
    *values("messages", None, 5, "hi", {}, []),
    *values("stream", "true", 1, 0, "", [], {}),
    *values("stream_options", True, "x", [], 5),
    *values("n", 0, -1, 129, "1", 1.0, 1.5, True, [], {}),
    *values("temperature", "1", True, [], {}, -0.5),
    *values("top_p", "1", False, [], 1.01),
    *values("frequency_penalty", "1", [], True),
    *values("presence_penalty", "1", [], True),
    *values("max_tokens", 0, -5, "5", 1.5, True, []),
    *values("max_completion_tokens", 0, -5, "5", 1.5, True, []),
    *values("stop", 5, True, {}, [1]),
    *values("seed", "1", 1.5, True),
    *values("logprobs", 21, "true"),
    *values("top_logprobs", "1", 1.5, 21, 5),
    *values("logit_bias", "x", {"1": "x"}),
    *values("user", 1, []),
    *values("tools", "x", {}, [1], [None], [{"type": "function", "function": {"name": "a b"}}]),
    *values("tool_choice", 1, [], True, "always", {"type": "function"}),
    *values("parallel_tool_calls", 1, "true"),
    *values("response_format", "json", [], 1, {"type": "json_schema"}),
    *values("store", 1, "true"),
    *values("reasoning_effort", 1, {}),
    *values("metadata", "x", [], {"k": 1}, {"k": None}, {"k" * 65: "v"}, {"k": "v" * 513}),
    ("metadata", {f"k{i}": "v" for i in range(17)}),
    *values("on_interruption", "panic", 1, True),
    *values("on_disconnect", "panic", 1),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_field_of_the_wrong_type_is_named(client: Client, field: str, value: Any) -> None:
    fields = {"stream": True} if field == "stream_options" else {}
    error = refused(client.send(changed(**fields, **{field: value})), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"].split("[")[0].split(".")[0] == field
    assert error["message"].startswith(error["param"])


@pytest.mark.parametrize("field", ["model", "messages"])
def test_a_missing_field_is_named(client: Client, field: str) -> None:
    body = {name: value for name, value in VALID.items() if name != field}
    assert refused(client.post(body), 400)["param"] == field


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (1, "messages[1]"),
        (None, "messages[1]"),
        ([], "messages[1]"),
        ({}, "messages[1].role"),
        ({"role": "wizard", "content": "x"}, "messages[1].role"),
        ({"role": None, "content": "x"}, "messages[1].role"),
        ({"role": "user", "content": 5}, "messages[1].content"),
        ({"role": "user", "content": {"text": "x"}}, "messages[1].content"),
        ({"role": "user", "content": [1]}, "messages[1].content"),
        ({"role": "user", "content": ["x"]}, "messages[1].content[0]"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages[1].content[0].text"),
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
    ],
)
def test_a_wrong_message_is_named_by_its_place(client: Client, message: Any, param: str) -> None:
    error = refused(client.send(with_messages(VALID["messages"][0], message)), 400)
    assert error["param"].startswith(param)


@pytest.mark.parametrize("stream", [None, False])
def test_stream_options_without_a_stream(client: Client, stream: bool | None) -> None:
    error = refused(client.post({**VALID, "stream": stream, "stream_options": {"include_usage": True}}), 400)
    assert "stream_options" in error["message"]
    assert error["param"] == "stream_options"


@pytest.mark.parametrize(
    "model",
    ["gpt-5", "echo", "nobody/gpt-5", "/", "fake/", "/echo", "fake", "fake/none", "fake/none?tokens=1", "Fake/echo"],
)
def test_an_unknown_model_says_what_there_is(client: Client, model: str) -> None:
    error = refused(client.post(ask(model)), 404, "model_not_found")
    assert error["param"] == "model"
    assert "fake" in error["message"]
    assert len(error["message"]) < 500


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("gpt-5", "Model names are `provider/model`."),
        ("/echo", "Model names are `provider/model`."),
        ("nobody/gpt-5", "No provider `nobody` is on: its key"),
        (f"{'n' * 200}/gpt-5", f"No provider `{'n' * 64}` is on: its key"),
    ],
)
def test_a_wrong_name_is_told_from_a_provider_that_is_not_on(client: Client, model: str, says: str) -> None:
    message = refused(client.post(ask(model)), 404, "model_not_found")["message"]
    assert message.startswith(says)
    assert len(message) < 500


@pytest.mark.parametrize("model", ["x\r\nSet-Cookie: a=b/y", "fake/echo\r\nx: y", "fake\0/echo", "fake/\x7f"])
def test_a_model_name_cannot_carry_a_header(client: Client, model: str) -> None:
    response = client.post(ask(model))
    refused(response, 400)
    assert "set-cookie" not in response.headers


# ---- the body as bytes


def filler(size: int) -> bytes:
    """A valid body of that many bytes."""
    body = changed(padding="")
    return body.replace(b'"padding": ""', b'"padding": "%b"' % (b"x" * (size - len(body))))


@pytest.mark.parametrize("excess", [1, 1_000_000])
def test_a_body_over_the_limit(client: Client, excess: int) -> None:
    error = refused(client.send(filler(LIMIT + excess)), 413, "request_too_large")
    assert str(LIMIT) in error["message"]


def test_a_body_over_the_limit_that_did_not_say_so(client: Client) -> None:
    body = filler(LIMIT + 1_000_000)
    pieces = (body[i : i + 65536] for i in range(0, len(body), 65536))
    refused(client.send(pieces), 413, "request_too_large")


def test_an_endless_body_is_not_read_to_its_end(stack: Stack) -> None:
    """The answer comes while the client is still sending."""
    address = urlsplit(stack.url)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-length: {10**12}\r\n\r\n"
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=60) as connection:
        connection.sendall(head.encode() + b"x" * 1000)
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "identity, gzip", "x"])
def test_a_compressed_body_is_refused(client: Client, encoding: str) -> None:
    response = client.send(gzip.compress(changed()), headers={"content-encoding": encoding})
    assert "Content-Encoding" in refused(response, 400)["message"]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/html"]
)
def test_another_content_type_is_refused(client: Client, content_type: str) -> None:
    """What a web page may send to another origin without asking (a "simple request") must not pass as JSON."""
    response = client.send(changed(), headers={"content-type": content_type})
    assert response.status_code in (400, 415), response.text
    assert "application/json" in error_of(response.json())["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nbad header\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    ],
)
def test_what_is_not_http(stack: Stack, raw: bytes) -> None:
    address = urlsplit(stack.url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=60) as connection:
        connection.sendall(raw)
        answer = connection.recv(1000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer


def test_a_client_that_hangs_up_in_its_request_is_no_failure(stack: Stack, client: Client) -> None:
    address = urlsplit(stack.url)
    before = len(stack.log("api"))
    for _ in range(5):
        with socket.create_connection((address.hostname or "", address.port or 0), timeout=60) as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
    for _ in range(20):  # by the end of these, the hang-ups were dealt with
        assert client.get("/healthz").status_code == 200
    logged = stack.log("api")[before:]
    assert "Traceback" not in logged, logged[-2000:]


# ---- fuzz

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted({*(field for field, _ in WRONG), "x_unknown"})
OVERRIDES = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4)


def survives(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        error_of(response.json())


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(overrides=OVERRIDES)
def test_fuzz_of_fields(client: Client, overrides: dict[str, Any]) -> None:
    """Any mutation of a valid request is answered or refused: never a 5xx, never silence."""
    survives(client.send(json.dumps({**VALID, "max_tokens": 5, **overrides}).encode()))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(body=st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_fuzz_of_bodies(client: Client, body: bytes) -> None:
    response = client.send(body)
    assert 400 <= response.status_code < 500
    error_of(response.json())


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    cursor=st.text(max_size=30), field=st.sampled_from(["starting_after", "last_event_id", "limit", "after", "stream"])
)
def test_fuzz_of_queries(client: Client, cursor: str, field: str) -> None:
    generation_id = "chatcmpl-" + "0" * 32
    for path in ("/v1/streams", f"/v1/streams/{generation_id}", f"/v1/chat/completions/{generation_id}"):
        survives(client.get(path, params={field: cursor.encode("utf-8", "replace")}))
