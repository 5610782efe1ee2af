"""F32 to F36, F42, F43: viewers that do not read, come all at once, are cut again and again, or are no viewers at all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, memory_mb, wait_until
from tests.harness.shown import Shown
from tests.harness.store import Store, open_store
from tests.harness.upstream import Answer, Pause, ScriptedUpstream, chunk, ending, whole, words
from tests.support.names import keys
from tests.support.wire import Client, ask, chunks, end_error, text
from tests.support.wire_async import Cut, Stream, call, follow

DROPPED, VIEWERS = "streamspool_viewers_dropped_total", "streamspool_viewers"
SETTINGS = {"STREAMSPOOL_SEND_TIMEOUT_S": "1", "STREAMSPOOL_KEEPALIVE_S": "0.5", "STREAMSPOOL_HOLD_HEADERS_S": "0.2"}
IMPATIENT = """
import api.bodies, api.connection, api.server
api.connection.HEADERS_S = api.bodies._BODY_S = api.connection.LINGER_S = 1.5
api.connection.LINGER_IDLE_S = 0.5
api.connection._GRACE_S = 0
"""
"""Its API waits 1.5 s where another waits 30 s."""


@pytest.fixture(scope="module")
def viewed(
    valkey: EmbeddedValkey, provider: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("viewed")
    with Stack(valkey.url.replace("db=0", "db=1"), provider.base_url, directory, **SETTINGS) as stack:
        yield stack


@pytest.fixture(scope="module")
def impatient(
    valkey: EmbeddedValkey, provider: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("impatient")
    url = valkey.url.replace("db=0", "db=2")
    with Stack(url, provider.base_url, directory, fault=IMPATIENT, **SETTINGS) as stack:
        yield stack


@pytest.fixture(scope="module")
def other_port(viewed: Stack) -> int:
    """A second API on the same logs."""
    viewed.start("api-2")
    wait_until(lambda: viewed.answers("api-2"))
    return viewed.port_of("api-2")


def _ready(client: Client) -> bool:
    with contextlib.suppress(OSError, Exception):
        return client.get("/readyz").status_code == 200
    return False


@pytest.fixture(scope="module")
def client(viewed: Stack) -> Iterator[Client]:
    with Client(viewed.url) as http:
        yield http


@pytest.fixture(scope="module")
def store(viewed: Stack) -> Iterator[Store]:
    with open_store(viewed.redis_url) as connection:
        yield connection


def connections(stack: Stack) -> int:
    """How many clients the API holds a socket for, as the kernel sees it."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    established, close_wait = "01", "08"
    return sum(row[1].endswith(f":{stack.port:04X}") and row[3] in (established, close_wait) for row in rows)


async def watch(reading: Shown, port: int, generation_id: str, *, frames: int | None = None) -> None:
    """Reads on from where the reading is: so many frames and no more, or to the end."""
    headers = {"last-event-id": reading.last_id} if reading.last_id else {}
    async with await Stream.open(port, "GET", f"/v1/streams/{generation_id}", headers=headers) as stream:
        if stream.status == 204:
            return
        assert stream.status == 200, await stream.body()
        if frames is None:
            await follow(reading, stream)
            return
        async for frame in stream.frames():
            reading.feed(frame)
            frames -= 1
            if not frames or reading.ended:
                break
        stream.reset()


async def come_back(reading: Shown, port: int, generation_id: str) -> None:
    """As any viewer does, to the end: a busy machine may be too slow for the server's patience of a second."""
    while not reading.ended:
        try:
            await watch(reading, port, generation_id)
        except Cut:
            reading.resumes += 1


# ---- F32


async def test_f32_viewers_that_do_not_read_cost_little_and_resume_whole(
    viewed: Stack, client: Client, provider: ScriptedUpstream
) -> None:
    """Ten of them beside three that read, on 24 MB in chunks of 100 kB."""
    slow, pause = 10, Pause()
    parts = [chunk({"content": f"{i:05d}" * 20_000}) for i in range(240)]
    plan = provider.plan("large", Answer([*words(1), pause, *parts, *ending()]))
    with client.streaming("scripted/large") as first:
        first.take(2)
    path = f"/v1/streams/{first.id}"
    lazy = [await Stream.open(viewed.port, "GET", path, receive_bytes=4096) for _ in range(slow)]
    fast = [Shown() for _ in range(3)]
    reading = [asyncio.create_task(come_back(one, viewed.port, first.id)) for one in fast]
    before, dropped = memory_mb(viewed, "VmRSS"), client.metric(DROPPED)
    pause.go()
    await asyncio.wait_for(asyncio.gather(*reading), 200)
    expected = dropped + slow + sum(one.resumes for one in fast)
    wait_until(lambda: client.metric(DROPPED) == expected, what="those that do not read are dropped")
    # Beside the window of 4 MB and what three readers are being sent; joined pages of the log would be 50 MB each.
    assert memory_mb(viewed, "VmHWM") - before < 28 + 2 * slow
    resumed = [Shown() for _ in lazy]
    for one, stream in zip(resumed, lazy, strict=True):
        with pytest.raises(Cut):
            await follow(one, stream)
        stream.close()
        assert not one.ended
    await asyncio.gather(*(come_back(one, viewed.port, first.id) for one in resumed))
    whole = fast[0].text
    assert len(whole) > 24_000_000 - 3
    assert {one.text == whole for one in [*fast, *resumed]} == {True}
    assert [one.wrong for one in [*fast, *resumed]] == [[]] * (slow + 3)
    assert len(plan.calls) == 1


# ---- F33


async def test_f33_a_storm_of_viewers_comes_back_whole(
    viewed: Stack, client: Client, store: Store, provider: ScriptedUpstream
) -> None:
    """300 connections are reset at once, and all return with their cursors."""
    pause, count = Pause(), 300
    provider.plan(
        "storm", Answer([*words(40), pause, *(chunk({"content": f"w{i} "}) for i in range(40, 80)), *ending()])
    )
    with client.streaming("scripted/storm") as first:
        first.take(41)
    readings = [Shown() for _ in range(count)]
    await asyncio.gather(*(watch(one, viewed.port, first.id, frames=20) for one in readings))
    connections = len(store.client_list())
    returning = [asyncio.create_task(watch(one, viewed.port, first.id)) for one in readings]
    await asyncio.to_thread(wait_until, lambda: client.metric(VIEWERS) == count, what="all are attached again")
    assert len(store.client_list()) <= connections + 3  # pools may have been smaller than they may become
    with client.streaming("fake/echo", "others are served meanwhile") as other:
        assert text(chunks(other.rest())) == "others are served meanwhile"
    pause.go()
    await asyncio.wait_for(asyncio.gather(*returning), 100)
    assert {one.text for one in readings} == {whole(80)}
    assert not any(one.wrong for one in readings)


# ---- F34, F35, F36


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 50])
async def test_f34_cut_again_and_again_across_two_servers(
    viewed: Stack, client: Client, other_port: int, provider: ScriptedUpstream, cut: int
) -> None:
    said: list[bytes | float] = [part for one in words(60) for part in (one, 0.01)]
    plan = provider.plan("cut", Answer([*said, *ending()]))
    with client.streaming("scripted/cut") as first:
        generation_id = first.id
    reading, turn = Shown(), 0
    while not reading.ended:
        await watch(reading, (viewed.port, other_port)[turn % 2], generation_id, frames=cut)
        turn += 1
        assert not reading.wrong
    assert reading.text == whole(60)
    assert turn >= 62 // cut
    assert len(plan.calls) == 1


@pytest.mark.parametrize(
    ("cursor", "status"),
    [
        ("garbage", 400),
        ("", 400),
        ("-1", 400),
        ("1" * 10_000, 400),
        ("$", 400),
        ("7-1", 400),
        ("1-99999", 400),
        ("99", 400),
    ],
)
async def test_f35_no_cursor_makes_a_viewer_wait_for_nothing(
    viewed: Stack, client: Client, other_port: int, provider: ScriptedUpstream, cursor: str, status: int
) -> None:
    pause = Pause()
    provider.plan("cursors", Answer([*words(3), pause, *ending()]))
    with client.streaming("scripted/cursors") as first:
        first.take(4)
        for port in (viewed.port, other_port):
            headers = {"last-event-id": cursor}
            found, body = await asyncio.wait_for(call(port, "GET", f"/v1/streams/{first.id}", headers=headers), 60)
            assert found == status
            assert body["error"]["code"] in ("invalid_cursor", "cursor_ahead")
        pause.go()


@pytest.mark.parametrize("how", ["deleted", "lost"])
def test_f36_a_stream_that_goes_away_while_it_is_viewed(
    client: Client, store: Store, provider: ScriptedUpstream, other_port: int, how: str
) -> None:
    pause = Pause()
    plan = provider.plan("going", Answer([*words(2), pause, *ending()]))
    with (
        client.streaming("scripted/going") as first,
        Client(f"http://127.0.0.1:{other_port}") as elsewhere,
        elsewhere.watching(first.id) as viewer,
    ):
        first.take(3)
        viewer.take(3)
        started = time.monotonic()
        if how == "deleted":
            assert client.http.delete(f"/v1/streams/{first.id}").status_code == 200
        else:
            assert store.ttl(keys.log(first.id)) > 3600, "a running log does not expire"
            store.delete(keys.log(first.id))
        # Deleting cancels first; who is quick enough reads that, and who is not reads that it is gone.
        told = {"deleted": {"generation_cancelled", "stream_gone"}, "lost": {"stream_lost"}}
        assert {end_error(one.rest())["code"] for one in (first, viewer)} <= told[how]
        assert time.monotonic() - started < 60
    assert client.get(f"/v1/streams/{first.id}").status_code == 404
    pause.go()
    wait_until(lambda: plan.live == 0)


# ---- F42, F43


def begin(stack: Stack, sent: bytes = b"", *, receive_bytes: int | None = None) -> socket.socket:
    made = socket.socket()
    if receive_bytes:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    made.settimeout(60)
    made.connect(("127.0.0.1", stack.port))
    made.sendall(sent)
    return made


def drip(sockets: list[socket.socket], piece: bytes) -> int:
    """Sends this to each that is still open; returns how many are."""
    still = 0
    for one in sockets:
        with contextlib.suppress(OSError):
            one.sendall(piece)
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while data := one.recv(65536):
                    pass
                if not data:
                    one.close()
                    continue
            one.setblocking(True)
            still += 1
    return still


HELD = {
    "nothing": (b"", b""),
    "headers": (b"POST /v1/chat/completions HTTP/1.1\r\nx-a: ", b"x"),
    "headers of a second request": (
        b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\nGET /healthz HTTP/1.1\r\nx-a: ",
        b"x",
    ),
    "blank lines after a request": (b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", b"\r\n"),
    "a body": (b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100000\r\n\r\n{", b" "),
    "a chunked body": (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"1\r\n{\r\n",
    ),
    "a body nobody waits for": (b"POST /nowhere HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100000\r\n\r\n{", b" "),
}


@pytest.mark.parametrize("name", HELD)
def test_f43_nobody_holds_a_connection_by_dripping(impatient: Stack, name: str) -> None:
    """Thirty who send a byte now and then; another user is served meanwhile."""
    head, piece = HELD[name]
    before = connections(impatient)
    sockets = [begin(impatient, head) for _ in range(30)]
    with contextlib.ExitStack() as exits, Client(impatient.url) as other:
        for one in sockets:
            exits.callback(one.close)
        wait_until(lambda: connections(impatient) >= before + 30 or not drip(sockets, piece))
        assert text(chunks(other.stream("fake/echo", "served").content)) == "served"

        def all_closed() -> bool:
            time.sleep(0.1)  # the drip, not a wait
            return not drip(sockets, piece)

        wait_until(all_closed)
    wait_until(lambda: connections(impatient) <= before)


def test_f42_a_body_that_never_ends_is_a_408(impatient: Stack) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\n{"
    with begin(impatient, head) as one:
        said = b""
        while piece := one.recv(65536):  # to the end: 408 closes the connection
            said += piece
            if b"request_timeout" in said:
                break
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"request_timeout" in said


@pytest.mark.parametrize("path", ["/v1/chat/completions/{}", "/v1/chat/completions/{}?stream=true"])
def test_f43_nobody_holds_a_connection_by_not_reading(impatient: Stack, provider: ScriptedUpstream, path: str) -> None:
    provider.plan("unread", Answer([*(chunk({"content": "x" * 100_000}) for _ in range(100)), *ending()]))
    with Client(impatient.url) as other:
        generation_id = other.stream("scripted/unread").headers["x-stream-id"]
    before, count = connections(impatient), 12
    request = f"GET {path.format(generation_id)} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()
    sockets = [begin(impatient, request, receive_bytes=4096) for _ in range(count)]
    wait_until(lambda: connections(impatient) > before)
    with contextlib.ExitStack() as exits, Client(impatient.url) as other:
        for one in sockets:
            exits.callback(one.close)
        assert other.post(ask("fake/echo", "served")).json()["choices"][0]["message"]["content"] == "served"
        wait_until(lambda: connections(impatient) <= before + 1, what="they are dropped")  # one is `other`'s


# ---- F61


@pytest.mark.parametrize("sends_on", [True, False])
def test_f61_who_was_refused_may_not_stay(impatient: Stack, sends_on: bool) -> None:
    """It sent a head without end and was told so: neither by sending on nor by doing nothing does it keep its connection."""
    before = connections(impatient)
    with begin(impatient, b"GET / HTTP/1.1\r\nx-long: " + b"x" * 100_000) as one:
        said = b""
        while piece := one.recv(65536):  # to the end: nothing more is said, and it may come in pieces
            said += piece
        assert said.startswith(b"HTTP/1.1 431 ")
        assert said.count(b"HTTP/1.1 ") == 1

        def dropped() -> bool:
            with contextlib.suppress(OSError):
                if sends_on:
                    one.sendall(b"x")
            return connections(impatient) <= before

        wait_until(dropped)


def test_f61_a_server_that_stops_does_not_wait_for_them(impatient: Stack) -> None:
    with begin(impatient, b"GET / HTTP/1.1\r\nx-long: " + b"x" * 100_000) as one:
        assert one.recv(65536).startswith(b"HTTP/1.1 431 ")
        impatient.process("api").terminate()
        assert impatient.process("api").wait(60) == 0
    impatient.start("api")
    impatient.wait_ready()


def test_f61_a_header_of_150_mib_is_refused_and_costs_nothing(viewed: Stack, client: Client) -> None:
    """Four at once; each is answered although it listens only when it has said all; others are served meanwhile."""
    before, piece = memory_mb(viewed, "VmRSS"), b"x" * (1 << 20)
    with contextlib.ExitStack() as exits:
        many = [exits.enter_context(begin(viewed, b"GET / HTTP/1.1\r\nx-long: ")) for _ in range(4)]
        for _ in range(150):
            for one in many:
                one.sendall(piece)
        assert text(chunks(client.stream("fake/echo", "served").content)) == "served"
        for one in many:
            assert one.recv(65536).startswith(b"HTTP/1.1 431 ")
    assert memory_mb(viewed, "VmHWM") - before < 8


def test_f42_no_fault_left_a_trace(viewed: Stack, impatient: Stack) -> None:
    for stack in (viewed, impatient):
        assert "Traceback" not in stack.log("api")
