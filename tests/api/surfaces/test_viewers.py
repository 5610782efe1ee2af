"""Many viewers of one generation: the same bytes for all, one follower, no more connections."""

from __future__ import annotations

import contextlib
import socket
import struct
from contextlib import ExitStack

import pytest

from tests.harness.processes import Stack, wait_until
from tests.harness.store import Store
from tests.harness.upstream import Pause, chunk, ending, words
from tests.support.wire import DONE_FRAME, KEY_A, Client, Register, ask, chunks, frames

FOLLOWED, VIEWERS = "streamspool_logs_followed", "streamspool_viewers"


@pytest.fixture(autouse=True)
def nobody_else(client: Client) -> None:
    """The viewers of other tests have left."""
    wait_until(lambda: not client.metric(VIEWERS) and not client.metric(FOLLOWED))


def test_fifty_viewers_read_the_same_bytes(client: Client, scripted: Register, store: Store) -> None:
    pauses = [Pause() for _ in range(3)]
    said = words(40)
    parts = [*said[:11], pauses[0], *said[11:21], pauses[1], *said[21:31], pauses[2], *said[31:], *ending()]
    body = ask(scripted(parts).model, stream=True)
    headers = {"x-stream-ids": "1"}
    with ExitStack() as stack, client.view("POST", "/v1/chat/completions", json=body, headers=headers) as first:
        taken = first.take(11)
        viewers = [stack.enter_context(client.watching(first.id))]

        def all_here() -> bool:
            return client.metric(VIEWERS) == 1 + len(viewers)

        def connections() -> int:
            """Those to this database: the server has others, for other tests."""
            return sum(one["db"] == "0" for one in store.client_list())

        before = connections()
        for pause, count in zip(pauses, (16, 16, 17), strict=True):
            viewers += [stack.enter_context(client.watching(first.id)) for _ in range(count)]
            wait_until(all_here)
            assert client.metric(FOLLOWED) == 1
            assert client.state(first.id)["viewers"] == 1 + len(viewers)
            assert connections() <= before + 3  # pools may have been smaller than they may become
            pause.go()
        assert len(viewers) == 50
        bodies = {b"".join(taken) + first.rest(), *(viewer.rest() for viewer in viewers)}
    (whole,) = bodies
    assert whole == client.whole(first.id)
    assert len(frames(whole)) == 43
    wait_until(lambda: client.metric(FOLLOWED) == 0, what="nobody is followed any more")


def test_viewers_of_a_finished_stream_need_no_follower(client: Client) -> None:
    generation_id = client.stream("fake/lorem?tokens=100").headers["x-stream-id"]
    bodies = {client.whole(generation_id) for _ in range(10)}
    assert len(bodies) == 1
    wait_until(lambda: client.metric(FOLLOWED) == 0)


def test_a_viewer_that_leaves_disturbs_nobody(client: Client, scripted: Register) -> None:
    pause = Pause()
    with client.streaming(scripted([*words(5), pause, *ending()]).model) as first, client.watching(first.id) as other:
        with client.watching(first.id) as leaver:
            leaver.take(1)
        first.take(6)
        first.close()
        wait_until(lambda: client.metric(VIEWERS) == 1)
        pause.go()
        assert other.rest() == client.whole(first.id)


def test_many_streams_are_followed_side_by_side(client: Client, scripted: Register) -> None:
    pause = Pause()
    model = scripted([*words(2), pause, *ending()]).model
    with ExitStack() as stack:
        viewers = [stack.enter_context(client.streaming(model)) for _ in range(12)]
        for viewer in viewers:
            viewer.take(3)
        assert client.metric(FOLLOWED) == 12
        assert len({viewer.id for viewer in viewers}) == 12
        pause.go()
        for viewer in viewers:
            viewer.rest()
            assert viewer.id.encode() in viewer.body
            assert viewer.body.endswith(b"data: [DONE]\n\n")


def test_a_viewer_that_lags_behind_the_window_misses_nothing(client: Client, scripted: Register) -> None:
    """6 MB in 60 kB chunks: more than the hub keeps, and more than sockets hold."""
    pause = Pause()
    large = [chunk({"content": f"{i:05d}" * 12_000}) for i in range(100)]
    model = scripted([*words(1), pause, *large, *ending()]).model
    with client.streaming(model) as first, client.watching(first.id) as lagging, client.watching(first.id) as quick:
        lagging.take(1)
        pause.go()
        whole = quick.rest()
        wait_until(lambda: client.state(first.id)["status"] == "completed")
        rest = lagging.rest()
    assert len(whole) > 6_000_000
    assert rest == b"".join(frames(whole)[1:])


def test_a_viewer_that_does_not_read_is_dropped_and_can_resume(keyed: Stack, alice: Client, scripted: Register) -> None:
    """`keyed` drops a viewer after 3 s. The end of its connection cannot be taken for the end of the stream."""
    large = [chunk({"content": f"{i:05d}" * 12_000}) for i in range(150)]
    generation_id = alice.post(ask(scripted([*large, *ending()]).model, background=True)).json()["id"]
    wait_until(lambda: alice.state(generation_id)["status"] == "completed")
    before = alice.metric("streamspool_viewers_dropped_total")
    head = f"GET /v1/streams/{generation_id} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY_A}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", keyed.port), timeout=60) as connection:
        connection.sendall(head.encode())
        wait_until(lambda: alice.metric("streamspool_viewers_dropped_total") > before)
        got = b""
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(1 << 20):
                got += data
    assert got.startswith(b"HTTP/1.1 200 ")
    assert b"[DONE]" not in got
    assert not got.endswith(b"\r\n0\r\n\r\n"), "a clean end of the body"
    assert alice.whole(generation_id).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("count", [1, 50, 2000])
def test_an_answer_of_any_length_is_whole(client: Client, count: int) -> None:
    response = client.stream(f"fake/lorem?tokens={count}", ids=True)
    found = frames(response.content)
    assert len(found) == count + 3
    assert client.whole(response.headers["x-stream-id"]) == response.content


def test_viewers_that_break_off_at_every_moment_leave_the_others_in_peace(client: Client) -> None:
    """Their connections close while the log is being written to them; one that is read along with must not notice."""
    with client.streaming("fake/lorem?tokens=600&rate=200", "x") as steady:
        steady.take(2)
        path = f"/v1/streams/{steady.id}"
        port = int(client.http.base_url.port or 0)
        for number in range(150):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                linger = struct.pack("ii", number % 2, 0)  # half of them by a reset
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.sendall(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode())
                connection.recv(1 + 997 * (number % 5))
        whole = steady.rest()
    assert len(chunks(steady.body)) == 600 + 2
    assert whole.endswith(DONE_FRAME)
    assert client.stream("fake/echo", "and the next").content.endswith(DONE_FRAME)
