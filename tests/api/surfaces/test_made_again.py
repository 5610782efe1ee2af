"""A whole answer behind idle time-outs: what clients make again by themselves is one answer, and is paid once; and silence
may be filled with white space."""

from __future__ import annotations

import json
import socket
import struct
import uuid
from typing import Any

import pytest
from openai import OpenAI

from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.support.raw import Raw
from tests.support.wire import KEY_A, Client, Register, ask, error_of, refused

AGAIN = {"x-stainless-retry-count": "1"}


def post(key: str, body: dict[str, Any], **headers: str) -> bytes:
    data = json.dumps(body).encode()
    fields = {"host": "localhost", "content-type": "application/json", "authorization": f"Bearer {key}", **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}content-length: {len(data)}\r\n\r\n".encode() + data


def cut(raw: Raw) -> None:
    """As a proxy does whose patience is over."""
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


def test_three_repeats_are_one_upstream_call(keyed: Stack, alice: Client, scripted: Register) -> None:
    """Each is cut, and made again as OpenAI's clients do it: without any key."""
    pause = Pause()
    asked = scripted([*words(2), pause, *words(4)[3:], *ending()])
    body = ask(asked.model, uuid.uuid4().hex)

    def newest() -> dict[str, Any]:
        found: dict[str, Any] = alice.get("/v1/streams", params={"model": asked.model}).json()["data"][0]
        return found

    for count in range(3):
        raw = Raw(keyed.url)
        raw.send(post(KEY_A, body, x_stainless_retry_count=str(count)))
        if not count:
            wait_until(lambda: asked.script.calls)
        wait_until(lambda: newest()["viewers"] == 1)
        cut(raw)
        wait_until(lambda: newest()["viewers"] == 0)
    raw = Raw(keyed.url)
    raw.send(post(KEY_A, body, x_stainless_retry_count="3"))
    pause.go()
    answer = raw.answer()
    assert answer.status == 200
    assert answer.headers["idempotent-replayed"] == "true"
    assert json.loads(answer.body)["id"] == newest()["id"]
    assert len(asked.script.calls) == 1
    raw.close()


def test_openai_s_client_pays_once_when_its_time_is_over(keyed: Stack, upstream: ScriptedUpstream) -> None:
    """Unchanged, with its own retries."""
    name, pause = f"slow{uuid.uuid4().hex}", Pause()
    script = upstream.script(name, [*words(2), pause, *ending()])
    client = OpenAI(base_url=f"{keyed.url}/v1", api_key=KEY_A, timeout=1.5, max_retries=2)
    with client, pytest.raises(Exception, match="timed out"):
        client.chat.completions.create(model=f"scripted/{name}", messages=[{"role": "user", "content": "hello"}])
    pause.go()
    assert len(script.calls) == 1


def test_the_answer_that_has_just_ended_is_joined_too(alice: Client, scripted: Register) -> None:
    asked = scripted([*words(3), *ending()])
    body = ask(asked.model, uuid.uuid4().hex)
    first, again = alice.post(body), alice.post(body, headers=AGAIN)
    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"
    streamed = alice.post(body | {"stream": True}, headers=AGAIN)
    assert "idempotent-replayed" not in streamed.headers, "it is another request"
    assert len(asked.script.calls) == 2


def test_two_honest_requests_are_two(alice: Client, scripted: Register) -> None:
    asked = scripted([*words(3), *ending()])
    body = ask(asked.model, uuid.uuid4().hex)
    ids = {alice.post(body, headers=headers).json()["id"] for headers in ({}, {}, {"x-stainless-retry-count": "0"})}
    assert len(ids) == 3
    assert len(asked.script.calls) == 3


def test_a_repeat_of_what_never_came_is_new(alice: Client, scripted: Register) -> None:
    asked = scripted([*words(3), *ending()])
    answer = alice.post(ask(asked.model, uuid.uuid4().hex), headers=AGAIN)
    assert answer.status_code == 200
    assert "idempotent-replayed" not in answer.headers
    assert len(asked.script.calls) == 1


def test_a_repeat_joins_nobody_else_and_nothing_else(alice: Client, bob: Client, scripted: Register) -> None:
    asked = scripted([*words(3), *ending()])
    body = ask(asked.model, uuid.uuid4().hex)
    mine = alice.post(body)
    others = [
        bob.post(body, headers=AGAIN),
        alice.post(body | {"temperature": 1}, headers=AGAIN),
        alice.post(body, headers=AGAIN | {"x-on-interruption": "restart"}),
        alice.post(body, headers=AGAIN | {"idempotency-key": uuid.uuid4().hex}),
    ]
    assert all("idempotent-replayed" not in other.headers for other in others)
    assert len({other.json()["id"] for other in (mine, *others)}) == 5


def test_what_failed_or_was_deleted_is_asked_for_again(alice: Client) -> None:
    body = ask("fake/lorem?tokens=9&cut=3", uuid.uuid4().hex)
    first, again = alice.post(body), alice.post(body, headers=AGAIN)
    assert first.status_code == again.status_code == 502
    assert first.headers["x-stream-id"] != again.headers["x-stream-id"]
    body = ask("fake/echo", uuid.uuid4().hex)
    first_id = alice.post(body).json()["id"]
    alice.http.delete(f"/v1/streams/{first_id}")
    assert alice.post(body, headers=AGAIN).json()["id"] != first_id


# ---- white space


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_silence_is_filled_for_whoever_asks(keyed: Stack, scripted: Register, version: str) -> None:
    """A space each STREAMSPOOL_KEEPALIVE_S, 0.1 s here, then the JSON."""
    pause = Pause()
    body = ask(scripted([*words(2), pause, *ending()]).model)
    raw = Raw(keyed.url)
    raw.send(post(KEY_A, body, x_keepalive_after="0.2").replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1))
    read = b""
    while b"\r\n\r\n" not in read or read.count(b" ", read.index(b"\r\n\r\n")) < 3:
        read += raw.socket.recv(4096)
    pause.go()
    read += raw.socket.recv(4096)
    assert read.startswith(b"HTTP/1.1 200 ")
    assert b"x-stream-id: chatcmpl-" in read
    raw.close()


def test_the_answer_is_json_all_the_same(alice: Client, scripted: Register) -> None:
    pause = Pause()
    model = scripted([*words(2), pause, *ending()]).model
    with alice.http.stream(
        "POST", "/v1/chat/completions", json=ask(model), headers={"x-keepalive-after": "0.1"}
    ) as got:
        assert (got.status_code, got.headers["content-type"]) == (200, "application/json")
        pieces = got.iter_raw()
        first = next(pieces)
        assert first.strip() == b""
        pause.go()
        body = first + b"".join(pieces)
    assert json.loads(body)["choices"][0]["message"]["content"] == "w0 w1 "


def test_an_error_then_has_the_status_200(alice: Client, scripted: Register) -> None:
    pause = Pause()
    model = scripted([*words(2), pause]).model
    with alice.http.stream(
        "POST", "/v1/chat/completions", json=ask(model), headers={"x-keepalive-after": "0.1"}
    ) as got:
        pieces = got.iter_raw()
        body = next(pieces)
        pause.go()
        body += b"".join(pieces)
    assert error_of(json.loads(body))["code"] == "upstream_incomplete"


def test_nobody_gets_it_who_did_not_ask(alice: Client, scripted: Register) -> None:
    pause = Pause()
    asked = scripted([*words(2), pause])
    for headers in ({"x-keepalive-after": "60"}, {"x-keepalive-after": "0"}, {}):
        quick = alice.post(ask("fake/echo"), headers=headers)
        assert quick.content[:1] == b"{"
        assert quick.headers["content-length"]
    pause.go()
    assert refused(alice.post(ask(asked.model)), 502)
    for wrong in ("x", "-1", "nan", "inf"):
        refused(alice.post(ask("fake/echo"), headers={"x-keepalive-after": wrong}), 400, "invalid_request")


# ---- Idempotency-Key, on all that makes something


@pytest.mark.parametrize("kind", ["files", "batches"])
def test_the_same_thing_comes_back(alice: Client, bob: Client, kind: str) -> None:
    key = {"idempotency-key": uuid.uuid4().hex}
    sent = {"file": ("in.jsonl", b'{"custom_id": "1"}\n')}
    form = {"purpose": "batch"}
    uploaded = alice.http.post("/v1/files", files=sent, data=form, headers=key).json()

    def make(client: Client, other: bool = False) -> Any:
        if kind == "files":
            files = {"file": ("in.jsonl", b"{}\n")} if other else sent
            return client.http.post("/v1/files", files=files, data=form, headers=key)
        body = {"input_file_id": uploaded["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        metadata = {"metadata": {"other": "yes"}} if other else {}
        return client.http.post("/v1/batches", json=body | metadata, headers=key)

    first, again = make(alice), make(alice)
    assert first.status_code == again.status_code == 200, first.text
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert ("idempotent-replayed" in first.headers) == (kind == "files"), "the file was there before the loop"
    refused(make(alice, other=True), 422, "idempotency_key_reused")
    ids = [one["id"] for one in alice.get(f"/v1/{kind}", params={"limit": 100}).json()["data"]]
    assert ids.count(first.json()["id"]) == 1
    theirs = make(bob)
    assert "idempotent-replayed" not in theirs.headers
    if kind == "files":
        assert theirs.json()["id"] != first.json()["id"]
        alice.http.delete(f"/v1/files/{first.json()['id']}")
        anew = make(alice)
        assert anew.status_code == 200
        assert anew.json()["id"] != first.json()["id"]


def test_a_key_has_a_form(alice: Client) -> None:
    for path in ("/v1/batches", "/v1/files", "/v1/chat/completions"):
        refused(alice.http.post(path, json={}, headers={"idempotency-key": "x" * 256}), 400, "invalid_request")
