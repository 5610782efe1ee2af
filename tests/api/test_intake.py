"""What comes on a connection besides bodies is bounded: heads, trailers, what chunks have around them, who waits in line."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from api.intake import HEAD_BYTES, HEAD_FIELDS, PIPELINED
from tests.harness.processes import Stack, memory_mb
from tests.harness.upstream import Pause, ending, words
from tests.support.raw import Raw
from tests.support.wire import KEY_A, Client, Register, ask

MANY = 32 * 1024 * 1024
GET = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"


def request(size: int, fields: int = 2) -> bytes:
    """One with a head of so many bytes and fields."""
    head = GET + b"".join(b"x-%d: y\r\n" % i for i in range(fields - 2)) + b"x-filler: \r\n\r\n"
    assert len(head) <= size
    return head.replace(b"filler: ", b"filler: " + b"x" * (size - len(head)))


ENDLESS = {
    "one header": (GET + b"x-long: ", b"x"),
    "a header of many lines": (GET, b"x-some: of many\r\n"),
    "a header of blanks": (GET + b"x-blank:", b" "),
    "a name without a colon": (GET, b"x"),
    "the path": (b"GET /", b"x"),
    "the query": (b"GET /v1/models?", b"a=b&"),
    "a second request": (GET + b"\r\n" + GET + b"x-long: ", b"x"),
    "one trailer": (CHUNKED + b"2\r\n{}\r\n0\r\nx-long: ", b"x"),
    "many trailers": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"x-some: of many\r\n"),
    "a chunk's extension": (CHUNKED + b"2;x=", b"x"),
    "extensions of many chunks": (CHUNKED, b"1;extension-of-a-chunk-of-one-blank=%b\r\n \r\n" % (b"x" * 100)),
    "a chunk's length": (CHUNKED, b"0"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_is_refused_with_431_and_costs_no_memory(stack: Stack, raw: Raw, name: str) -> None:
    """The client has sent 32 MiB when it begins to listen, and finds the answer there: no reset took it."""
    head, piece = ENDLESS[name]
    Path(f"/proc/{stack.process('api').pid}/clear_refs").write_text("5")  # the peak begins again
    before = memory_mb(stack, "VmRSS")
    raw.send(head + piece * (MANY // len(piece)))
    if name == "a second request":
        assert raw.answer().status == 200
    raw.answer().check(431, "request_header_fields_too_large")
    assert raw.ended()
    assert memory_mb(stack, "VmHWM") - before < 16


@pytest.mark.parametrize("name", ENDLESS)
def test_what_drips_is_refused_when_it_is_too_much(raw: Raw, name: str) -> None:
    """In many small pieces, of which none is too large."""
    head, piece = ENDLESS[name]
    for byte in head:
        raw.send(bytes((byte,)))
    for _ in range(HEAD_BYTES // 256 + 2000):
        try:
            raw.send((piece * 256)[:256])
        except OSError:  # it has lingered for long enough
            break
    if name == "a second request":
        assert raw.answer().status == 200
    raw.answer().check(431, "request_header_fields_too_large")


@pytest.mark.parametrize(("excess", "status"), [(0, 200), (1, 431)])
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_head_may_have_64_kib(raw: Raw, excess: int, status: int, pieces: int) -> None:
    head = request(HEAD_BYTES + excess)
    step = len(head) // pieces + 1
    for start in range(0, len(head), step):
        raw.send(head[start : start + step])
    assert raw.answer().status == status


@pytest.mark.parametrize(("fields", "status"), [(HEAD_FIELDS, 200), (HEAD_FIELDS + 1, 431)])
def test_a_head_may_have_a_hundred_fields(raw: Raw, fields: int, status: int) -> None:
    raw.send(request(4096, fields))
    assert raw.answer().status == status


@pytest.mark.parametrize(("fields", "status"), [(HEAD_FIELDS, 400), (HEAD_FIELDS + 1, 431)])
def test_so_may_trailers(raw: Raw, fields: int, status: int) -> None:
    trailers = b"".join(b"x-%d: y\r\n" % i for i in range(fields))
    raw.send(CHUNKED + b"2\r\n{}\r\n0\r\n" + trailers + b"\r\n")
    assert raw.answer().status == status  # 400: that was no chat request


@pytest.mark.parametrize("excess", [0, 1000])
def test_each_of_many_requests_in_one_piece_has_its_own_limit(raw: Raw, excess: int) -> None:
    head = request(HEAD_BYTES // 2 + excess)
    raw.send(head * 3 + request(HEAD_BYTES + excess))
    for _ in range(3):
        assert raw.answer().status == 200
    assert raw.answer().status == (431 if excess else 200)


def test_an_unfinished_head_is_refused_although_it_came_with_others(raw: Raw) -> None:
    """All in one write, and then the client waits."""
    raw.send((GET + b"\r\n") * 3 + GET + b"x-filler: " + b"x" * (HEAD_BYTES + 20_000))
    for _ in range(3):
        assert raw.answer().status == 200
    raw.answer().check(431, "request_header_fields_too_large")


def test_a_body_is_no_head(raw: Raw) -> None:
    """A large one, in chunks of one byte or in one piece, and a request behind it in the same write."""
    body = json.dumps(ask("fake/echo", "x" * 200_000, max_tokens=1)).encode()
    sized = POST + b"content-length: %d\r\n\r\n" % len(body) + body
    chunked = CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    raw.send(sized + GET + b"\r\n" + chunked + GET + b"\r\n")
    for _ in range(4):
        assert raw.answer().status == 200


def test_trailers_are_no_headers(keyed: Stack) -> None:
    """Whoever looked at the headers, a proxy for one, must have seen all that count."""
    with closing(Raw(keyed.url)) as raw:
        head = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        raw.send(head + b"0\r\nauthorization: Bearer %b\r\n\r\n" % KEY_A.encode())
        assert raw.answer().status == 401


def test_a_refusal_waits_for_its_turn(raw: Raw, scripted: Register) -> None:
    """It stands behind the answers to the requests before it, in none of them."""
    pause = Pause()
    model = scripted([*words(2), pause, *ending()]).model
    body = json.dumps(ask(model, stream=True)).encode()
    raw.send(POST + b"content-length: %d\r\n\r\n" % len(body) + body + GET + b"\r\n" + GET)
    for _ in range(40):
        raw.send(b"x-filler: %b\r\n" % (b"x" * 4000))
    pause.go()
    streamed = raw.answer()
    assert streamed.status == 200
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    assert raw.answer().status == 200
    raw.answer().check(431, "request_header_fields_too_large")
    assert raw.ended()


def test_so_does_what_is_not_http(raw: Raw, scripted: Register) -> None:
    pause = Pause()
    model = scripted([*words(2), pause, *ending()]).model
    body = json.dumps(ask(model, stream=True)).encode()
    raw.send(POST + b"content-length: %d\r\n\r\n" % len(body) + body + b"what is this\r\n\r\n")
    pause.go()
    assert raw.answer().body.endswith(b"data: [DONE]\n\n")
    raw.answer().check(400, "invalid_http")
    assert raw.ended()


def test_a_connection_is_asked_again_while_it_streams_and_after(raw: Raw, scripted: Register) -> None:
    """What reads requests is let go of while one streams, and made anew for the next, which may come in pieces."""
    pause = Pause()
    model = scripted([*words(2), pause, *ending()]).model
    body = json.dumps(ask(model, stream=True)).encode()
    raw.send(POST + b"content-length: %d\r\n\r\n" % len(body) + body)
    raw.socket.recv(1, socket.MSG_PEEK)  # it streams
    raw.send(b"\r\nGET /heal")
    raw.send(b"thz HTTP/1.1\r\nhost: localhost\r\n\r\n" + POST[:10])
    pause.go()
    assert raw.answer().body.endswith(b"data: [DONE]\n\n")
    assert raw.answer().status == 200
    raw.send(POST[10:] + b"content-length: %d\r\n\r\n" % len(body) + body)
    assert raw.answer().body.endswith(b"data: [DONE]\n\n")


def test_an_answer_that_has_begun_is_finished_whatever_its_request_goes_on_to_say(raw: Raw, client: Client) -> None:
    generation_id = client.stream("fake/echo", "all of it").headers["x-stream-id"]
    raw.send(f"GET /v1/streams/{generation_id} HTTP/1.1\r\nhost: localhost\r\n".encode())
    raw.send(b"transfer-encoding: chunked\r\n\r\n")
    streamed = raw.answer()  # it needs no body
    raw.send(b"1;" + b"x" * MANY)
    assert streamed.status == 200
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    assert raw.ended()


@pytest.mark.parametrize(
    "malformed",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        GET + b"bad header\r\n\r\n",
        CHUNKED + b"zz\r\n",
        POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"GET http://[ HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_in_shape(raw: Raw, malformed: bytes) -> None:
    raw.send(malformed)
    raw.answer().check(400, "invalid_http")
    assert raw.ended()


def test_another_protocol_is_not_begun(raw: Raw) -> None:
    raw.send(GET + b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n")
    assert raw.answer().status == 200


def test_requests_that_wait_in_line_are_bounded(stack: Stack, raw: Raw, scripted: Register) -> None:
    pause = Pause()
    model = scripted([*words(1), pause, *ending()]).model
    body = json.dumps(ask(model)).encode()
    before = memory_mb(stack, "VmRSS")
    raw.send(POST + b"content-length: %d\r\n\r\n" % len(body) + body + (GET + b"\r\n") * 10 * PIPELINED)
    pause.go()
    for _ in range(1 + PIPELINED):
        assert raw.answer().status == 200
    raw.answer().check(400, "too_many_pipelined_requests")
    assert raw.ended()
    assert memory_mb(stack, "VmHWM") - before < 8


def test_as_many_as_anybody_wants_are_answered(raw: Raw) -> None:
    raw.send((GET + b"\r\n") * PIPELINED)
    for _ in range(PIPELINED):
        assert raw.answer().status == 200
    raw.send(GET + b"\r\n")
    assert raw.answer().status == 200


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_a_body_that_is_too_large_is_told_to_whoever_sends_it_whole(
    connect: Callable[[], Raw], connection: str
) -> None:
    """As urllib does, which sends `Connection: close` as well."""
    size = 56 * 1024 * 1024
    for _ in range(3):
        raw = connect()
        raw.send(POST + f"connection: {connection}\r\ncontent-length: {size}\r\n\r\n".encode() + b"x" * size)
        assert raw.answer().status == 413
        assert connection == "keep-alive" or raw.ended()
