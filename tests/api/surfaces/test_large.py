"""Pictures and files as large as OpenAI takes them, in requests, sessions, batches and answers, end to end."""

from __future__ import annotations

import base64
import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.archives import archive
from tests.harness.processes import Stack, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import Pause, chunk, ending, words
from tests.support.batch import ended, jsonl, line, results, start
from tests.support.s3 import S3
from tests.support.wire import Client, Register, ask, chunks, end_error, refused

pytestmark = pytest.mark.timeout(300)
SMALL = 64 * 1024


def picture(size: int, seed: int = 1) -> str:
    return "data:image/png;base64," + base64.b64encode(random.Random(seed).randbytes(size)).decode()


def showing(*urls: str, text: str = "What is it?") -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *parts]}]


def files(stack: Stack) -> list[Path]:
    """What is stored of requests and answers."""
    places = os.walk(stack._directory / "files/blobs")  # a folder may go while it is looked into
    return [Path(place) / name for place, _, names in places for name in names]


def reap(stack: Stack) -> None:
    """Has the reaper look at all there is, as if its time had come."""
    with open_store(stack.redis_url) as store:
        for key in ("streamspool:blob-holders", "streamspool:files-end"):
            for member in store.zrange(key, 0, -1):
                store.zadd(key, {member: 1})


def kept(stack: Stack, generation_id: str) -> int:
    """Bytes that Redis has of a log."""
    with open_store(stack.redis_url) as store:
        return int(store.memory_usage(f"streamspool:{{{generation_id}}}:log", samples=0) or 0)


@pytest.fixture
def client(own_stack: Stack) -> Iterator[Client]:
    with Client(own_stack.url) as http:
        http.http.timeout = 120
        yield http


def test_a_request_of_50_mib_arrives_whole_and_is_not_in_redis(
    own_stack: Stack, client: Client, scripted: Register
) -> None:
    model, script = scripted([*words(3), *ending()])
    body: dict[str, Any] = {"model": model, "messages": showing(picture(39_000_000))}
    assert 51_000_000 < len(json.dumps(body)) < 50 * 1024 * 1024
    response = client.post({**body, "store": True})
    assert response.status_code == 200, response.text[:300]
    assert script.calls[0]["messages"] == body["messages"]
    generation_id = response.json()["id"]
    assert kept(own_stack, generation_id) < SMALL
    assert sum(path.stat().st_size for path in files(own_stack)) == 52_000_000
    (message,) = client.get(f"/v1/chat/completions/{generation_id}/messages").json()["data"]
    assert message["content_parts"] == body["messages"][0]["content"]
    client.http.delete(f"/v1/streams/{generation_id}")
    wait_until(lambda: not files(own_stack), 60, "the reaper has removed it")
    refused(client.post({"model": model, "messages": showing(picture(40_000_000))}), 413, "request_too_large")


def test_a_session_stores_a_picture_once_and_sends_it_each_time(
    own_stack: Stack, client: Client, scripted: Register
) -> None:
    model, script = scripted([*words(2), *ending()])
    first, second = showing(picture(1_000_000)), showing(picture(1_000_000), picture(30_000, 2), text="And this?")
    for asked in (first, second):
        assert client.post({"model": model, "messages": asked, "session_id": "s"}).status_code == 200
    answer = {"role": "assistant", "content": "w0 w1 "}
    assert script.calls[1]["messages"] == [*first, answer, *second]
    assert len(files(own_stack)) == 2
    found = client.get("/v1/sessions/s/messages").json()["data"]
    assert [one["content"] for one in found[::2]] == [one[0]["content"] for one in (first, second)]
    with open_store(own_stack.redis_url) as store:
        (turns,) = store.keys("*:turns")
        assert store.memory_usage(turns, samples=0) < SMALL
        for log in store.keys("streamspool:{chatcmpl-*:log"):
            store.delete(log)
    reap(own_stack)
    assert client.post({"model": model, "messages": showing(), "session_id": "s"}).status_code == 200
    assert script.calls[2]["messages"][0] == first[0]
    assert len(client.get("/v1/sessions/s/messages").json()["data"]) == 6  # the last turn is settled
    client.http.delete("/v1/sessions/s")
    with open_store(own_stack.redis_url) as store:
        for log in store.keys("streamspool:{chatcmpl-*:log"):
            store.delete(log)
    reap(own_stack)
    wait_until(lambda: not files(own_stack), 60, "the reaper has removed them")


def test_a_picture_in_a_delta_is_whole_for_every_viewer(own_stack: Stack, client: Client, scripted: Register) -> None:
    pause, url = Pause(), picture(3_000_000)
    drawn = chunk({"images": [{"type": "image_url", "index": 0, "image_url": {"url": url}}]})
    model, _ = scripted([*words(2), drawn, pause, chunk({"content": "there"}), *ending()])
    asked = json.dumps(ask(model, stream=True))
    headers = {"content-type": "application/json", "x-stream-ids": "1"}
    with client.http.stream("POST", "/v1/chat/completions", content=asked, headers=headers) as response:
        generation_id = response.headers["x-stream-id"]
        pieces, body = response.iter_raw(), b""
        while url.encode() not in body:
            body += next(pieces)
        assert kept(own_stack, generation_id) < SMALL
        resumed = client.http.stream("GET", f"/v1/streams/{generation_id}?starting_after=2")
        with resumed as again:
            late = again.iter_raw()
            found = b""
            while url.encode() not in found:
                found += next(late)
            pause.go()
            found += b"".join(late)
        body += b"".join(pieces)
    assert chunks(body)[3]["choices"][0]["delta"]["images"][0]["image_url"]["url"] == url
    assert found.split(b"data: ", 1)[1] in body
    assert chunks(client.whole(generation_id)) == chunks(body)
    whole = client.get(f"/v1/chat/completions/{generation_id}").json()["choices"][0]["message"]
    assert (whole["content"], whole["images"][0]["image_url"]["url"]) == ("w0 w1 there", url)
    assert client.post(ask(model)).json()["choices"][0]["message"]["images"][0]["image_url"]["url"] == url
    assert len(files(own_stack)) == 1


def test_lines_of_batches_ask_with_pictures_and_answer_with_them(
    own_stack: Stack, client: Client, scripted: Register
) -> None:
    url = picture(5_000_000)
    model, script = scripted([chunk({"content": "so", "images": [{"index": 0, "image_url": {"url": url}}]}), *ending()])
    lines = [line(f"line-{n}", model) for n in range(2)]
    for one in lines:
        one["body"]["messages"] = showing(url)
    batch = ended(client.http, start(client.http, jsonl(lines)))
    assert batch["status"] == "completed", batch
    found = results(client.http, batch["output_file_id"])
    for one in found.values():
        assert one["response"]["body"]["choices"][0]["message"]["images"] == [{"image_url": {"url": url}}]
    assert [call["messages"] for call in script.calls] == [showing(url)] * 2
    wait_until(lambda: not files(own_stack), 60, "the reaper has removed it")


def test_where_a_part_was_lost_it_is_said(own_stack: Stack, client: Client, scripted: Register) -> None:
    model, script = scripted([*words(1), *ending()])
    own_stack.kill("worker")
    body = {"model": model, "messages": showing(picture(1_000_000)), "background": True, "stream": True}
    with client.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        (path,) = files(own_stack)
        path.unlink()
        own_stack.start("worker")
        assert end_error(b"".join(response.iter_raw()))["code"] == "request_lost"
    assert not script.calls


def test_an_api_that_is_killed_after_it_stored_leaves_nothing_for_good(own_stack: Stack, scripted: Register) -> None:
    """Between the put and the append, or in one of them: wherever it got to, what no log names goes."""
    model, _ = scripted([*words(1), *ending()])
    own_stack.kill("worker")
    body = json.dumps({"model": model, "messages": showing(picture(20_000_000))}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:{own_stack.port}\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: application/json\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", own_stack.port)) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: files(own_stack), what="it stores")
        own_stack.kill("api")
    with open_store(own_stack.redis_url) as store:
        for log in store.keys("streamspool:{chatcmpl-*:log"):
            store.delete(log)
    for name in ("worker", "api"):
        own_stack.start(name)
    own_stack.wait_ready()
    reap(own_stack)
    wait_until(lambda: not files(own_stack), 60, "nothing is left")


def test_a_bucket_keeps_them_for_several_machines(own_stack: Stack, tmp_path: Path, scripted: Register) -> None:
    model, script = scripted([*words(1), *ending()])
    with S3(tmp_path) as s3:
        for name in ("api", "worker"):
            own_stack.kill(name)
            own_stack.start(name, STREAMSPOOL_FILES_URL=s3.url, **s3.environment)
        own_stack.wait_ready()
        with Client(own_stack.url) as client:
            messages = showing(picture(9_000_000), picture(1_000_000, 2))
            response = client.post({"model": model, "messages": messages}, timeout=60)
            assert response.status_code == 200, response.text
            assert script.calls[0]["messages"] == messages
            assert len(s3.names()) == 2
            client.http.delete(f"/v1/streams/{response.json()['id']}")
            wait_until(lambda: not s3.names(), 60, "the reaper has removed them")
            s3.__exit__()
            refused(client.post({"model": model, "messages": messages}, timeout=60), 503, "storage_unavailable")
            assert client.post(ask(model)).status_code == 200
            assert len(client.get("/v1/streams").json()["data"]) == 1


def test_large_bodies_wait_for_room_and_small_ones_do_not(own_stack: Stack, scripted: Register) -> None:
    """One that has begun to arrive takes all the room; it is whole in the end, and the one that waited was told."""
    model, _ = scripted([*words(1), *ending()])
    own_stack.kill("api")
    own_stack.start("api", STREAMSPOOL_INTAKE_BYTES=str(SMALL))
    own_stack.wait_ready()
    body = json.dumps({"model": model, "messages": showing(picture(300_000))}).encode()
    with socket.create_connection(("127.0.0.1", own_stack.port)) as slow, Client(own_stack.url) as client:
        client.http.timeout = 120
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        slow.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body[: SMALL // 2])
        wait_until(lambda: client.send(body).status_code == 503, 60, "the other one has begun to arrive")
        refusal = client.send(body)
        assert refusal.json()["error"]["code"] == "too_many_large_requests"
        assert int(refusal.headers["retry-after"]) > 0
        assert client.post(ask(model)).status_code == 200
        slow.sendall(body[SMALL // 2 :])
        received = b""
        while piece := slow.recv(65536):
            received += piece
        assert received.startswith(b"HTTP/1.1 200")
        wait_until(lambda: client.send(body).status_code == 200, 60, "there is room again")


@pytest.mark.parametrize("drawn", [False, True])
def test_one_that_becomes_an_object_while_it_is_read_is_whole_to_its_viewer(
    own_stack: Stack, client: Client, scripted: Register, drawn: bool
) -> None:
    """Also where something was taken out of its chunks, so that the object tells no events."""
    drawing = chunk({"images": [{"type": "image_url", "index": 0, "image_url": {"url": picture(400_000)}}]})
    answer = client.stream(scripted([*words(3), *([drawing] if drawn else []), *words(20_000), *ending()]).model)
    generation_id = answer.headers["x-stream-id"]
    with socket.socket() as viewer:
        viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that it is read as it is taken
        viewer.settimeout(60)
        viewer.connect(("127.0.0.1", int(own_stack.url.rpartition(":")[2])))
        viewer.sendall(f"GET /v1/streams/{generation_id} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
        got = viewer.recv(1000)
        assert client.state(generation_id)["viewers"] == 1
        archive(own_stack.redis_url, own_stack._directory, generation_id)
        while data := viewer.recv(1 << 16):
            got += data
    assert got.partition(b"\r\n\r\n")[2] == client.whole(generation_id)
    assert got.endswith(b"data: [DONE]\n\n")
    wait_until(lambda: client.state(generation_id)["viewers"] == 0)
