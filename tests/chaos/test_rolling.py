"""F77: API processes that share a port are replaced, or die, under viewers and requests.

`figures_rolling` has larger numbers."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.chaos.rolling import APIS, roll, several, soon, viewers_of_each
from tests.harness.processes import free_port, wait_until
from tests.support.up import WAIT_S, environment, processes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


async def test_f77_apis_are_replaced_one_by_one_and_nobody_is_refused(tmp_path: Path) -> None:
    with several(tmp_path) as (one, own):
        found = await roll(one, own, viewers=30, answers=3, rate=8, tokens=500)
        assert (found["posts_refused"], found["viewers_refused"], found["viewers_not_whole"]) == ({}, {}, [])
        assert found["resumes"] >= 1
        assert found["posts"] >= 10
        assert len(one.all("api")) == APIS
        one.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(one.process.wait, WAIT_S) == 0
        assert one.left() == []


async def test_f77_each_is_reached_alone_and_one_that_dies_comes_back_at_its_port(tmp_path: Path) -> None:
    with several(tmp_path) as (one, own):
        before = one.all("api")
        os.kill(min(before), signal.SIGKILL)
        await soon(lambda: len(now := one.all("api")) == APIS and now != before)
        await soon(lambda: viewers_of_each(own) == [0] * APIS)


def test_f77_the_http_end_alone_can_be_several_processes(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """`streamspool api --apis 2`, without a worker: it serves, is replaced by SIGHUP, and ends by SIGTERM."""
    port = free_port()
    variables = {**environment(tmp_path), "REDIS_URL": valkey.url.replace("db=0", "db=3"), "PORT": str(port)}
    command = [sys.executable, "-m", "shared.cli.main", "api", "--apis", "2"]
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(command, env=variables, cwd=tmp_path, stderr=log)
    ever: set[int] = set()

    def apis() -> set[int]:
        found = {pid for pid, (parent, line) in processes().items() if parent == running.pid and "-m api" in line}
        ever.update(found)
        return found

    def said() -> str:
        assert running.poll() is None, (tmp_path / "log").read_text()
        return (tmp_path / "log").read_text()

    try:
        wait_until(lambda: "2 API processes serve" in said(), WAIT_S)
        before = apis()
        assert len(before) == 2
        running.send_signal(signal.SIGHUP)
        wait_until(lambda: len(now := apis()) == 2 and not now & before, WAIT_S)
        ready = httpx.get(f"http://127.0.0.1:{port}/readyz?for=serve", trust_env=False, timeout=WAIT_S)
        assert ready.status_code == 200
        running.send_signal(signal.SIGTERM)
        assert running.wait(WAIT_S) == 0
        wait_until(lambda: not ever & processes().keys(), WAIT_S)
    finally:
        running.kill()
        running.wait(WAIT_S)


@pytest.mark.parametrize("words", [[], ["--apis", "2"]])
def test_f77_a_socket_of_systemd_outlives_what_serves_it(
    valkey: EmbeddedValkey, tmp_path: Path, words: list[str]
) -> None:
    """As a .socket unit hands it down (sd_listen_fds(3)): what comes while nothing serves waits."""
    variables = {**environment(tmp_path), "REDIS_URL": valkey.url.replace("db=0", "db=3")}
    command = [sys.executable, "-m", "shared.cli.main", "api", *words]
    activated = ["bash", "-c", 'exec 3<&"$0" && LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"']
    with socket.create_server(("127.0.0.1", 0), backlog=16) as held, (tmp_path / "log").open("wb") as log:
        number, port = held.fileno(), held.getsockname()[1]

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [*activated, str(number), *command], env=variables, cwd=tmp_path, stderr=log, pass_fds=(number,)
            )

        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port), WAIT_S) as early:  # before anybody serves
                early.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                running = start()
                try:
                    assert re.match(rb"HTTP/1\.1 200 ", early.recv(64)), (tmp_path / "log").read_text()
                finally:
                    running.terminate()
                    running.wait(WAIT_S)
