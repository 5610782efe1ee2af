"""What a worker shows probes and Prometheus."""

from __future__ import annotations

import asyncio
import http.client
import signal
import socket
import struct
import threading
from http.server import ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from shared.lib.light_http import Broken, asked
from tests.harness.processes import READY_S, Stack, free_port, wait_until
from worker import status
from worker.status import showing


async def get(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    async with asked(method, f"http://127.0.0.1:{port}{path}", headers={}, connect_timeout_s=30) as response:
        return response.status_code, b"" if method == "HEAD" else await response.read()


async def test_it_is_ready_as_long_as_its_beats_are_taken() -> None:
    heartbeat: Any = SimpleNamespace(is_heard=False)
    with showing("127.0.0.1", 0, heartbeat) as port:
        assert await get(port, "/readyz") == (503, b"Redis does not take its beats\n")
        assert await get(port, "/healthz") == (200, b"ok\n")
        heartbeat.is_heard = True
        assert await get(port, "/readyz?from=probe") == (200, b"ok\n")
        assert (await get(port, "/readyz", "HEAD"))[0] == 200
        assert (await get(port, "/"))[0] == 404
        found, text = await get(port, "/metrics")
        assert found == 200
        assert b"# TYPE streamspool_generations_running gauge" in text
    with pytest.raises(Broken, match="refused"):
        await get(port, "/healthz")


async def test_a_loop_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_TURN_S", 0.05)
    said, told = [], threading.Event()
    heartbeat: Any = SimpleNamespace(is_heard=True)
    with showing("127.0.0.1", 0, heartbeat) as port:

        def probe() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/healthz")
            said.append(connection.getresponse().status)
            connection.close()
            told.set()

        thread = threading.Thread(target=probe)
        thread.start()
        assert told.wait(30)  # which holds up this very loop
        thread.join()
        assert said == [503]
        monkeypatch.undo()  # a loop that turns is asked: how soon it does is the machine's affair
        assert await get(port, "/healthz") == (200, b"ok\n")


async def test_a_client_that_says_nothing_does_not_hold_up_the_end() -> None:
    heartbeat: Any = SimpleNamespace(is_heard=True)
    with showing("127.0.0.1", 0, heartbeat) as port:
        _, silent = await asyncio.open_connection("127.0.0.1", port)
    silent.close()


async def test_a_client_that_goes_before_its_answer_is_no_news(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked, gone, done = threading.Event(), threading.Event(), threading.Event()

    class Slow:
        @property
        def is_heard(self) -> bool:
            asked.set()
            return gone.wait(30)

    def end(server: Any, request: Any) -> None:
        ThreadingHTTPServer.shutdown_request(server, request)
        done.set()

    monkeypatch.setattr(status._Server, "shutdown_request", end)
    heartbeat: Any = Slow()
    with showing("127.0.0.1", 0, heartbeat) as port:
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await asyncio.to_thread(asked.wait, 30)
        client.close()  # with a reset
        gone.set()
        assert await asyncio.to_thread(done.wait, 30)
        assert await get(port, "/healthz") == (200, b"ok\n")
    assert "Traceback" not in capfd.readouterr().err


def test_a_worker_that_is_told_to_has_it(own_stack: Stack) -> None:
    port = free_port()
    own_stack.stop("worker")
    own_stack.start("worker", STREAMSPOOL_WORKER_METRICS_PORT=str(port))

    def ready() -> bool:
        try:
            return asyncio.run(get(port, "/readyz"))[0] == 200
        except Broken:
            return False

    wait_until(ready, READY_S)
    own_stack.kill("worker", signal.SIGTERM)
    assert own_stack.process("worker").wait(READY_S) == 0
