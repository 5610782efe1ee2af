"""/v1/responses as a WebSocket: answers as messages, several at once, what a socket remembers, and how it ends."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import Pause, chunk, ending, whole, words
from tests.support.raw import Raw
from tests.support.responses import PATH, events, joined, kinds, text_of
from tests.support.sockets import Socket
from tests.support.wire import KEY_A, KEY_B, Client, Register

HOST = b"host: localhost\r\n"
OFFER = HOST + b"connection: Upgrade\r\nupgrade: websocket\r\n"


def handshake(**fields: str) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    given = {
        "sec-websocket-key": key,
        "sec-websocket-version": "13",
        **{k.replace("_", "-"): v for k, v in fields.items()},
    }
    return OFFER + "".join(f"{name}: {value}\r\n" for name, value in given.items()).encode() + b"\r\n"


@pytest.fixture
def socket(keyed: Stack) -> Iterator[Socket]:
    with Socket(keyed.url, KEY_A) as opened:
        yield opened


@pytest.fixture
def patient(stack: Stack) -> Iterator[Socket]:
    """Of a server that waits for an early refusal for longer, so that it is one however busy the machine is."""
    with Socket(stack.url) as opened:
        yield opened


def test_the_events_are_those_of_the_stream(socket: Socket, alice: Client) -> None:
    made = socket.whole(metadata={"a": "b"})
    assert (text_of(made), made["metadata"]) == ("one two", {"a": "b"})
    told = socket.told[None]
    assert kinds(told)[:2] == ["created", "in_progress"]
    again = alice.get(f"{PATH}/{made['id']}", params={"stream": "true"})
    assert events(again.content) == told
    assert alice.get(f"{PATH}/{made['id']}").json() == made


def test_answers_follow_each_other_and_go_on_from_each_other(socket: Socket) -> None:
    first = socket.whole()
    second = socket.whole(input="three", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    assert text_of(socket.whole(input="four")) == "four"


def test_what_looks_like_a_frame_is_text(socket: Socket) -> None:
    text = "a\n\ndata: b\n\nevent: error\ndata: {}\n\n"
    socket.send(input=text, stream_id="event: error")
    assert text_of(socket.until("response.completed", "event: error")["response"]) == text


def test_lanes_are_answered_at_once_and_keep_their_order(socket: Socket, scripted: Register) -> None:
    pause = Pause()
    slow = scripted([*words(2), pause, *words(4)[3:], *ending()]).model
    socket.send(model=slow, stream_id="slow")
    socket.until("response.output_text.delta", "slow")
    socket.send(input="behind it", stream_id="slow")
    socket.send(input="beside it", stream_id="other")
    assert text_of(socket.until("response.completed", "other")["response"]) == "beside it"
    assert text_of(socket.whole(input="without a lane")) == "without a lane"
    assert socket.told["slow"][-1]["type"] == "response.output_text.delta"
    pause.go()
    assert text_of(socket.until("response.completed", "slow")["response"]) == whole(4)
    assert text_of(socket.until("response.completed", "slow")["response"]) == "behind it"
    assert all(event["stream_id"] == "slow" for event in socket.told["slow"])
    assert not any("stream_id" in event for event in socket.told[None])


def test_what_is_not_stored_is_gone_on_from_on_its_socket_alone(
    keyed: Stack, socket: Socket, scripted: Register
) -> None:
    """Codex keeps nothing stored, and goes on from it all the same."""
    model = scripted([*words(1), *ending()])
    first = socket.whole(model=model.model, store=False, input="remember")
    second = socket.whole(model=model.model, store=False, input="and this", previous_response_id=first["id"])
    socket.whole(model=model.model, store=False, input="and that", previous_response_id=second["id"])
    assert [message["content"] for message in model.script.calls[-1]["messages"]] == [
        "remember",
        "w0 ",
        "and this",
        "w0 ",
        "and that",
    ]
    reference = [{"type": "item_reference", "id": second["output"][0]["id"]}, {"role": "user", "content": "so"}]
    socket.whole(model=model.model, store=False, input=reference)
    assert [message["content"] for message in model.script.calls[-1]["messages"]] == ["w0 ", "so"]
    with Socket(keyed.url, KEY_A) as another:
        error = another.refused(404, "previous_response_not_found", previous_response_id=second["id"])
        assert error["param"] == "previous_response_id"
    with Socket(keyed.url, KEY_B) as stranger:
        stranger.refused(404, "previous_response_not_found", previous_response_id=second["id"])


def test_what_is_prepared_asks_nobody_and_is_gone_on_from(socket: Socket, scripted: Register) -> None:
    """Codex opens each socket so: `generate: false` with one message, and the first question goes on from it."""
    model = scripted([*words(1), *ending()])
    said = {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "be brief"}]}
    ready = socket.whole(model=model.model, input=[said], generate=False, store=False)
    assert (ready["output"], ready["status"], ready["usage"]["total_tokens"]) == ([], "completed", 0)
    assert kinds(socket.told[None]) == ["created", "in_progress", "completed"]
    assert model.script.calls == []
    made = socket.whole(model=model.model, input="hello", previous_response_id=ready["id"], store=False)
    assert made["previous_response_id"] == ready["id"]
    (call,) = model.script.calls
    assert [(message["role"], message["content"]) for message in call["messages"]] == [
        ("system", "be brief"),
        ("user", "hello"),
    ]
    more = socket.whole(model=model.model, input="again", generate=False, previous_response_id=made["id"])
    socket.whole(model=model.model, input=[], previous_response_id=more["id"], store=False)
    assert [message["content"] for message in model.script.calls[-1]["messages"]] == [
        "be brief",
        "hello",
        "w0 ",
        "again",
    ]
    socket.whole(model=model.model, generate=False, input=[])


def test_a_tool_loop_sends_only_what_is_new(socket: Socket, scripted: Register) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    calls = scripted([chunk({"role": "assistant", "tool_calls": [call]}), chunk({}, "tool_calls"), ending()[-1]]).model
    first = socket.whole(model=calls, tools=[tool], store=False)
    output = {"type": "function_call_output", "call_id": "c1", "output": "4"}
    answers = scripted([*words(1), *ending()])
    made = socket.whole(
        model=answers.model, tools=[tool], store=False, input=[output], previous_response_id=first["id"]
    )
    assert text_of(made) == "w0 "
    assert [message["role"] for message in answers.script.calls[0]["messages"]] == ["user", "assistant", "tool"]


def test_errors_are_messages_and_the_socket_goes_on(patient: Socket, scripted: Register) -> None:
    socket = patient
    assert socket.refused(400, "invalid_request", input=7)["param"] == "input"
    assert (
        socket.refused(404, "model_not_found", model="nobody/nothing", stream_id="x")["type"] == "invalid_request_error"
    )
    assert socket.refused(400, "invalid_request", type="response.cancel")["param"] == "type"
    assert socket.refused(400, "invalid_request", stream_id=7)["param"] == "stream_id"
    for text, code in (("{", "invalid_json"), ("[]", "invalid_request"), (b"\xff", "invalid_json")):
        socket.connection.send(text)
        error = socket.next()
        assert (error["type"], error["status"], error["error"]["code"]) == ("error", 400, code)
    body = b'{"error": {"message": "slow down", "type": "x", "code": "slow"}}'
    limited = scripted([body], status=429, headers={"content-type": "application/json", "retry-after": "60"}).model
    error = socket.refused(429, "slow", model=limited)
    assert error["headers"]["retry-after"] == "60"
    assert text_of(socket.whole()) == "one two"


def test_what_was_refused_for_now_is_gone_on_from_again(patient: Socket, scripted: Register) -> None:
    socket = patient
    body = b'{"error": {"message": "slow down", "type": "x", "code": "slow"}}'
    limited = scripted([body], status=429, headers={"content-type": "application/json", "retry-after": "60"}).model
    first = socket.whole(store=False)
    on = {"store": False, "previous_response_id": first["id"]}
    error = socket.refused(429, "slow", model=limited, **on)
    assert error["headers"]["x-should-retry"] == "true"
    assert text_of(socket.whole(input="again", **on)) == "again"


def test_an_answer_that_fails_later_ends_with_its_event(socket: Socket, scripted: Register) -> None:
    broken = b'data: {"error": {"message": "the machine is on fire", "code": "fire"}}\n\n'
    last = socket.answer(model=scripted([*words(2), 0.5, broken]).model)
    assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "server_error")
    assert text_of(socket.whole()) == "one two"


def test_silence_is_broken_by_messages(socket: Socket, scripted: Register) -> None:
    pause = Pause()
    socket.send(model=scripted([*words(1), pause, *ending()]).model)
    socket.until("response.output_text.delta")

    def kept() -> bool:
        message = json.loads(socket.connection.recv(timeout=60))
        assert message == {"type": "keepalive"}
        return True

    wait_until(kept)
    pause.go()
    assert text_of(socket.until("response.completed")["response"]) == "w0 "


def test_a_running_answer_is_not_steered(socket: Socket) -> None:
    socket.connection.send(json.dumps({"type": "response.steer", "previous_response_id": "resp_1", "input": "no"}))
    message = json.loads(socket.connection.recv(timeout=60))
    assert (message["type"], message["error"]["code"]) == ("response.steer.failed", "steering_not_supported")
    assert message["steer"] == {"previous_response_id": "resp_1", "input": "no"}


def test_a_client_that_is_cut_off_resumes_over_http(keyed: Stack, alice: Client, scripted: Register) -> None:
    pause = Pause()
    model = scripted([*words(3), pause, *words(6)[4:], *ending()])
    with Socket(keyed.url, KEY_A) as socket:
        socket.send(model=model.model)
        while joined(socket.told.get(None, [])) != whole(3):
            socket.next()
        socket.connection.socket.shutdown(2)
    told = socket.told[None]
    response_id = told[0]["response"]["id"]
    wait_until(lambda: alice.state(f"chatcmpl-{response_id.removeprefix('resp_')}")["viewers"] == 0)
    pause.go()
    query = {"stream": "true", "starting_after": str(told[-1]["sequence_number"])}
    rest = events(alice.get(f"{PATH}/{response_id}", params=query).content, first=len(told))
    assert joined([*told, *rest]) == whole(6)
    assert len(model.script.calls) == 1


def test_an_answer_that_needs_its_viewer_ends_with_the_socket(keyed: Stack, alice: Client, scripted: Register) -> None:
    model = scripted([*words(1), Pause(), *ending()])
    with Socket(keyed.url, KEY_A) as socket:
        socket.send(model=model.model, on_disconnect="cancel")
        socket.until("response.output_text.delta")
    response_id = socket.told[None][0]["response"]["id"]
    wait_until(lambda: alice.get(f"{PATH}/{response_id}").json()["status"] == "cancelled", 60)


def test_too_many_requests_at_once_are_refused_one_by_one(socket: Socket, scripted: Register) -> None:
    pause = Pause()
    socket.send(model=scripted([*words(1), pause, *ending()]).model)
    socket.until("response.output_text.delta")
    for _ in range(70):
        socket.send()
    errors: list[str] = []
    while len(errors) < 7:
        message = socket.next()
        errors += [message["error"]["code"]] if message["type"] == "error" else []
    assert set(errors) == {"too_many_pipelined_requests"}
    pause.go()
    for _ in range(64):
        socket.until("response.completed")


# ---- how it opens


def test_it_opens_for_those_with_a_key(keyed: Stack, stack: Stack) -> None:
    for headers in ({}, {"authorization": "Bearer nobody"}):
        with pytest.raises(InvalidStatus) as refused, Socket(keyed.url, **headers):
            pass
        response = refused.value.response
        assert response.status_code == 401
        assert response.headers["x-request-id"].startswith("req_")
        assert json.loads(response.body or b"")["error"]["code"] == "invalid_api_key"
    with Socket(stack.url) as socket:
        assert text_of(socket.whole()) == "one two"


def test_a_page_of_another_origin_opens_none_without_keys(stack: Stack) -> None:
    with pytest.raises(InvalidStatus) as refused, Socket(stack.url, origin="https://elsewhere.example"):
        pass
    assert refused.value.response.status_code == 403
    with Socket(stack.url, origin="http://localhost:3000") as socket:
        assert text_of(socket.whole()) == "one two"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"sec_websocket_version": "8"}, 426),
        ({"sec_websocket_key": "eHh4"}, 400),
        ({"sec_websocket_key": "?"}, 400),
        ({"x_long": "x" * 8000}, 431),
    ],
)
def test_an_offer_that_is_not_sound_is_refused_in_shape(raw: Raw, fields: dict[str, str], status: int) -> None:
    raw.send(f"GET {PATH} HTTP/1.1\r\n".encode() + handshake(**fields))
    answer = raw.answer()
    assert answer.status == status
    assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"
    assert answer.headers.get("sec-websocket-version") == ("13" if status == 426 else None)


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/v1/streams"])
def test_no_other_path_goes_on_as_a_socket(raw: Raw, path: str) -> None:
    raw.send(f"GET {path} HTTP/1.1\r\n".encode() + handshake())
    assert raw.answer().status == 200
    raw.send(f"GET {path} HTTP/1.1\r\n".encode() + HOST + b"\r\n")
    assert raw.answer().status == 200


@pytest.mark.parametrize("step", [1, 10_000])
@pytest.mark.parametrize("path", [PATH, f"{PATH}/", f"/{PATH}?x=1"])
def test_it_opens_whatever_the_packets_are(raw: Raw, path: str, step: int) -> None:
    """A request before it on the connection, and its first message in the same packet."""
    message = json.dumps(
        {"type": "response.create", "model": "fake/echo", "input": "x " * 20_000, "max_output_tokens": 9}
    ).encode()
    assert len(message) < 1 << 16
    mask = b"\0\0\0\0"
    frame = b"\x81\xfe" + len(message).to_bytes(2, "big") + mask + message
    asked = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
    raw.send(asked)
    assert raw.answer().status == 200
    offered = f"GET {path} HTTP/1.1\r\n".encode() + handshake()
    for start in range(0, len(offered), step):
        raw.send(offered[start : start + step] + (frame if start + step >= len(offered) else b""))
    answer = raw.answer("HEAD")
    assert answer.status == 101
    assert raw.read(2)[0] == 0x81


def test_a_message_may_be_as_large_as_a_body_and_no_larger(stack: Stack) -> None:
    prompt = "word " * 200_000
    with Socket(stack.url) as socket:
        last = socket.answer(input=prompt, max_output_tokens=1)
        assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
        with pytest.raises(ConnectionClosed) as closed:
            socket.answer(input="x" * (51 * 1024 * 1024))
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009
