"""What is held in memory: the kept logs say what they take, and what is freed goes back to the system."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import socket
import subprocess
import sys
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.application import Application, Door
from api.connection import Protocol
from api.live.client import CONNECTION
from api.live.drain import Drain
from api.live.event_stream import EventStream
from api.live.hot import HotLogs
from api.live.livelog import LiveLog
from api.live.projection import Encode
from api.live.response import LATER
from api.surfaces.chat.projection import chat_events
from shared.cli.embedded import EmbeddedValkey
from shared.log.entry import SEAL, Entry, Kind, Position
from tests.harness.records import header_with
from tests.support.live import COMPLETED, NATIVE, Viewer, open_bench

WITH_IDS, WITHOUT = (chat_events(ids=ids, include_usage=True).encode for ids in (True, False))


def replayed(name: str, chunks: int, size: int) -> LiveLog:
    """A log that has ended, as it comes from Redis: no two of its objects are one."""
    live = LiveLog(name)
    for seq in range(chunks + 1):
        kind = Kind.CHUNK if seq else Kind.ATTEMPT
        live.feed([Entry(Position(1, seq), kind, (b"%d" % seq).ljust(size, b"x"))])
    live.feed([Entry(SEAL, Kind.OUTCOME, b'{"status":"completed","error":null}')])
    return live


def show(live: LiveLog, encode: Encode, start: int = 0) -> None:
    while start < live.end:
        _, start = live.body(encode, start, live.end)


@pytest.mark.parametrize(("chunks", "size"), [(4000, 20), (2000, 400), (30, 100_000)])
async def test_a_kept_log_takes_as_much_memory_as_it_says(chunks: int, size: int) -> None:
    tracemalloc.start()
    try:
        live = replayed("g", chunks, size)
        show(live, WITH_IDS)
        show(live, WITHOUT)
        show(live, WITHOUT, 7)  # nobody else reads from there: these frames stay until nobody watches
        watched, says = tracemalloc.get_traced_memory()[0], live.held
        hot = HotLogs()
        hot.put(live)
        rests = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert says == pytest.approx(watched, rel=0.3)
    assert hot.held == pytest.approx(rests, rel=0.3)
    assert hot.held < says


class Text(str):
    """A string that may be referred to weakly."""

    __slots__ = ("__weakref__",)


async def test_a_viewer_that_stays_holds_nothing_that_was_read_for_it(valkey: EmbeddedValkey) -> None:
    async with open_bench(valkey.url) as bench:
        writer = await bench.log_of(1)
        first = bench.watch(writer)
        await first.until(b"w1")
        texts = {"id": Text(writer.generation_id), "owner": Text("a"), "server": Text("s")}
        held = [weakref.ref(text) for text in texts.values()]
        second = Viewer(EventStream(bench.parts, header_with(texts, created_at_ms=1), NATIVE, headers={}))
        await second.until(b"w1")
        del texts
        gc.collect()
        assert [text() for text in held] == [None] * 3
        await bench.log.seal(writer.generation_id, COMPLETED)
        await bench.end(first, second)
        assert first.body == second.body


async def test_nothing_of_a_request_stays_in_the_frames_below_a_viewer() -> None:
    application = Application(door=Door("", [], frozenset()))
    found: list[object] = []

    class Later(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            scope[LATER] = self.stay

        async def stay(self, scope: Scope, receive: Receive, send: Send) -> None:
            frame = sys._getframe(1)
            while frame.f_code is not Application.__call__.__code__:
                assert frame.f_back
                frame = frame.f_back
            found.extend([*frame.f_locals.values(), *scope.values()])

    application.add_api_route("/v1/streams/{generation_id}", lambda generation_id: Later())
    path = "/v1/streams/a"
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"a")],
        "http_version": "1.1",
    }
    await application(scope, lambda: asyncio.sleep(0, {"type": "http.disconnect"}), lambda message: asyncio.sleep(0))
    assert found
    assert path.encode() not in found
    assert path not in found
    assert [one for one in found if isinstance(one, dict | list) and one is not scope] == []


async def test_kept_logs_are_bounded_together_and_the_oldest_goes_first() -> None:
    hot = HotLogs()
    for number in range(60):
        live = replayed(f"g{number}", 5, 100_000)
        show(live, WITH_IDS)
        hot.put(live)
        assert hot.held <= 16 * 2**20
    assert len(hot) in range(10, 20)
    assert hot.take("g0") is None
    while found := hot.take(f"g{60 - len(hot)}"):
        assert found.end == 5
    assert (len(hot), hot.held) == (0, 0)


@asynccontextmanager
async def answering(look: Callable[[Any], object]) -> AsyncIterator[tuple[uvicorn.Server, Any]]:
    """A server, and its address. It answers `ok`, and calls `look` with the connection once each answer has begun."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        look(scope["extensions"][CONNECTION])
        await send({"type": "http.response.body", "body": b"ok"})

    class Mine(Protocol):
        """No connection of another test's."""

        __slots__ = ()

    class Quiet(uvicorn.Server):
        def install_signal_handlers(self) -> None:
            """They are pytest's."""

    answer.services = SimpleNamespace(drain=Drain())  # type: ignore[attr-defined]
    listening = socket.create_server(("127.0.0.1", 0))
    server = Quiet(uvicorn.Config(answer, http=Mine, lifespan="off", ws="none", log_config=None))
    serving = asyncio.create_task(server._serve([listening]))
    try:
        yield server, listening.getsockname()
    finally:
        server.should_exit = True
        await serving


async def ask(address: Any, *requests: bytes) -> None:
    """One after the other, over one connection; what is in one piece comes at once."""
    reader, writer = await asyncio.open_connection(*address)
    for request in requests:
        writer.write(request)
        for _ in range(request.count(b"\r\n\r\n")):
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("begun", [False, True])
async def test_a_connection_that_is_lost_leaves_nothing_to_the_garbage_collector(begun: bool) -> None:
    """Collected rarely (shared/lib/process.py), thousands of them would wait for it."""
    gc.collect()
    gc.disable()
    try:
        async with answering(Protocol.begun if begun else lambda _: None) as (server, address):
            for requests in (0, 1, 3):
                await ask(address, *[b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"] * requests)
            async with asyncio.timeout(60):
                while server.server_state.connections:  # noqa: ASYNC110 - nobody is told
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0)  # what called connection_lost returns
            assert server.server_state.total_requests == 4
            own = server.config.http_protocol_class
            assert [one for one in gc.get_objects() if isinstance(one, own)] == []
    finally:
        gc.enable()


async def test_of_a_request_whose_response_has_begun_nothing_stays_but_its_method() -> None:
    held: list[tuple[Any, Any]] = []

    def look(connection: Any) -> None:
        connection.begun()
        held.append((connection.scope, connection.cycle.scope))

    first, second = (b"GET /%b HTTP/1.1\r\nhost: x\r\n\r\n" % path for path in (b"1", b"2"))
    async with answering(look) as (_, address):
        await ask(address, first, second)
        assert held == [({"method": "GET"}, {"method": "GET"})] * 2
        assert held[0][0] is held[1][1]
        held.clear()
        await ask(address, first + second)
        assert {scope["path"] for scope in held[0]} == {"/2"}  # it waits, and will want it
        assert held[1:] == [({"method": "GET"}, {"method": "GET"})]


FREED = """
import asyncio, ctypes, re, sys
from shared.lib import process
process._GIVE_BACK_EVERY_S = float(sys.argv[1])
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
async def main():
    del (first := [bytearray(30_000_000)])[:]  # from here on, by itself, all that is smaller comes out of the heap
    filled = [bytearray(1000) for _ in range(20_000)]  # modules that had to be compiled left holes for the small ones
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # and room for the large ones
    before = resident()
    large, small = [], []
    for _ in range(400):
        large.append(bytearray(200_000))
        small.append(bytearray(1000))
    large.clear()
    async with process.giving_back():
        for _ in range(int(sys.argv[2])):
            await asyncio.sleep(0.05)
            if resident() < before + 5:
                break
    print(resident() - before)
asyncio.run(main())
"""


def test_what_is_freed_goes_back_although_small_pieces_live_on() -> None:
    def left(*how: str) -> int:
        return int(
            subprocess.run([sys.executable, "-c", FREED, *how], check=True, capture_output=True, text=True).stdout
        )

    if not sys.platform.startswith("linux") or left("1000", "1") < 40:
        pytest.skip("this allocator gives back by itself")
    assert left("0.01", "200") < 5


HEAPS = """
import ctypes, sys, threading
from shared.lib import process
if sys.argv[1] == "one":
    process.one_heap()
all_there = threading.Barrier(6)
def work():
    piece = bytearray(100_000)
    all_there.wait()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(open(sys.argv[2]).read().count("<heap "))
"""


def test_no_thread_has_a_heap_of_its_own_which_would_keep_what_is_freed_in_it(tmp_path: Path) -> None:
    def heaps(how: str) -> int:
        command = [sys.executable, "-c", HEAPS, how, str(tmp_path / how)]
        environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
        return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)

    if platform.libc_ver()[0] != "glibc" or heaps("many") == 1:
        pytest.skip("this allocator has one heap for all")
    assert heaps("one") == 1
