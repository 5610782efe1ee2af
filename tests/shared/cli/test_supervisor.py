"""The supervisor with stand-in children: the real ends are tried in tests/chaos/test_up.py."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.cli import supervisor as supervisor_module
from shared.cli.client import Client
from shared.cli.embedded import CannotStart
from shared.cli.supervisor import Supervisor, listen
from shared.config.settings import Settings, load_settings
from shared.errors import Unusable

ROOT = Path(__file__).parents[3]
WAIT_S = 20

API = """
import os, signal, socket, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"status":"ok","checks":{"pid":%d}}' % os.getpid()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
server = HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=int(os.environ["STREAMSPOOL_LISTEN_FD"]))
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
print("api", os.environ["HOST"], os.environ["PORT"], os.environ["REDIS_URL"], flush=True)
server.serve_forever()
"""
WORKER = """
import os, signal, sys
assert "STREAMSPOOL_LISTEN_FD" not in os.environ
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True: signal.pause()
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: signal.pause()"
CHILDREN = {"api": [sys.executable, "-c", API], "worker-1": [sys.executable, "-c", WORKER]}

MAIN = """
import asyncio, sys
from pathlib import Path
from shared.config.settings import Settings
from shared.cli.supervisor import serve
children = {{"api": [sys.executable, "-c", {api!r}], "worker-1": [sys.executable, "-c", {worker!r}]}}
settings = Settings(port=0, data_dir=Path(sys.argv[1]), drain_s=float(sys.argv[2]))
asyncio.run(serve(settings, children, lambda supervisor: print(*supervisor.pids().values(), flush=True)))
"""


def settings(tmp_path: Path, **changes: object) -> Settings:
    values: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "data_dir": tmp_path, "drain_s": 5, **changes}
    return Settings(**values)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("REDIS_URL", "HOST", "PORT", "STREAMSPOOL_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + WAIT_S
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(alive, pids))


def test_whatever_dies_is_started_again_and_the_end_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        seen: set[int] = set()
        with (tmp_path / "output").open("wb") as output:
            async with Supervisor(settings(tmp_path), CHILDREN, output=output) as supervisor:
                await supervisor.wait_ready(WAIT_S)
                assert set(supervisor.pids()) == {"api", "worker-1", "valkey"}
                for name in ("api", "worker-1", "valkey"):
                    before = supervisor.pids()
                    seen.update(before.values())
                    supervisor.kill(name)
                    await until(lambda n=name, b=before: supervisor.pids().get(n, b[n]) != b[n])  # type: ignore[misc]
                    others = {other: pid for other, pid in supervisor.pids().items() if other != name}
                    assert others == {other: pid for other, pid in before.items() if other != name}
                await supervisor.wait_ready(WAIT_S)
                seen.update(supervisor.pids().values())
                port = supervisor.url.rpartition(":")[2]
        assert len(seen) == 6
        assert not any(map(alive, seen))
        first_line = (tmp_path / "output").read_text().splitlines()[0]
        assert first_line == f"api 127.0.0.1 {port} unix://{tmp_path}/valkey.sock?db=0"

    asyncio.run(scenario())


@pytest.mark.parametrize(("given", "expected"), [(None, "history.sqlite3"), ("none", None), ("sqlite:///x", None)])
def test_what_outlives_the_text_is_kept_beside_it_unless_another_place_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str | None
) -> None:
    monkeypatch.delenv("STREAMSPOOL_HISTORY_URL", raising=False)
    settings = load_settings(data_dir=tmp_path, history_url=given)
    told = Supervisor(settings, CHILDREN)._environment("api", ())
    assert told.get("STREAMSPOOL_HISTORY_URL") == (expected and f"sqlite:///{tmp_path}/{expected}")


def test_children_are_told_the_address_and_not_where_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both at once would be refused."""
    (tmp_path / "url").write_text("redis://127.0.0.1:1\n")
    monkeypatch.setenv("REDIS_URL_FILE", str(tmp_path / "url"))
    told = Supervisor(load_settings(data_dir=tmp_path), CHILDREN)._environment("api", ())
    assert (told["REDIS_URL"], told.get("REDIS_URL_FILE")) == ("redis://127.0.0.1:1", None)


def test_a_request_made_while_the_api_is_dead_is_answered_by_the_next_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Supervisor(settings(tmp_path), CHILDREN) as supervisor:
            await supervisor.wait_ready(WAIT_S)
            old = supervisor.pids()["api"]
            supervisor.kill("api")
            await until(lambda: not alive(old))
            assert (await Client(supervisor.url).ready())["checks"]["pid"] != old

    asyncio.run(scenario())


def test_a_child_that_ignores_sigterm_is_killed_after_the_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "KILL_AFTER_DRAIN_S", 0.3)

    async def scenario() -> None:
        children = {**CHILDREN, "worker-1": [sys.executable, "-c", STUBBORN]}
        async with Supervisor(settings(tmp_path, drain_s=0), children) as supervisor:
            await supervisor.wait_ready(WAIT_S)
            pids = list(supervisor.pids().values())
        assert not any(map(alive, pids))

    asyncio.run(scenario())


def test_a_child_that_keeps_ending_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "FIRST_BACKOFF_S", 0.01)

    async def scenario() -> None:
        children = {"api": [sys.executable, "-c", "raise SystemExit(1)"]}
        async with Supervisor(settings(tmp_path), children) as supervisor:
            with pytest.raises(CannotStart, match="api keeps ending"):
                await supervisor.wait_ready(WAIT_S)

    asyncio.run(scenario())


def test_a_child_that_cannot_work_like_this_is_not_tried_again_and_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        children = {"api": [sys.executable, "-c", "raise SystemExit(2)"]}
        async with Supervisor(settings(tmp_path), children) as supervisor:
            with pytest.raises(Unusable, match="api cannot start with these settings"):
                await supervisor.wait_ready(WAIT_S)

    asyncio.run(scenario())


def test_a_taken_port_is_said_with_the_way_out(tmp_path: Path) -> None:
    async def scenario(port: int) -> None:
        async with Supervisor(settings(tmp_path, port=port), CHILDREN):
            pass

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(CannotStart, match=rf"port {port} of 127\.0\.0\.1: it is taken.*--port"):
            asyncio.run(scenario(port))
    assert not (tmp_path / "lock").exists()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(CannotStart, match="--host"):
        listen("192.0.2.1", 0)


def test_a_public_address_needs_keys(tmp_path: Path) -> None:
    async def scenario(**changes: object) -> str:
        async with Supervisor(settings(tmp_path, host="0.0.0.0", **changes), CHILDREN) as supervisor:
            return supervisor.url

    with pytest.raises(Unusable, match="STREAMSPOOL_API_KEYS"):  # exit code 2, as for `api`: a restart will not heal it
        asyncio.run(scenario())
    with pytest.raises(Unusable, match="can be guessed"):
        asyncio.run(scenario(api_keys="a:secret"))
    assert asyncio.run(scenario(api_keys="a:7d1f0a93c55be286")).startswith("http://127.0.0.1:")
    assert asyncio.run(scenario(admin_keys="a:7d1f0a93c55be286")).startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("sign", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGHUP, 0), (signal.SIGKILL, -9)]
)
def test_every_way_to_end_it_leaves_no_process(tmp_path: Path, sign: signal.Signals, code: int) -> None:
    process = start(tmp_path, drain_s=10, worker=WORKER)
    pids: list[int] = []
    try:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 3
        process.send_signal(sign)
        assert process.wait(WAIT_S) == code
        assert gone(pids)
    finally:
        end(process, pids)


def test_the_second_ctrl_c_does_not_wait_for_the_drain(tmp_path: Path) -> None:
    process = start(tmp_path, drain_s=600, worker=STUBBORN)
    pids: list[int] = []
    try:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.send_signal(signal.SIGINT)
        assert gone(pids[:1])  # the API obeyed at once, the worker holds the end up
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 0
        assert gone(pids)
    finally:
        end(process, pids)


def start(tmp_path: Path, *, drain_s: float, worker: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAIN.format(api=API, worker=worker), str(tmp_path), str(drain_s)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def end(process: subprocess.Popen[str], pids: list[int]) -> None:
    process.kill()
    process.wait(WAIT_S)
    assert process.stdout is not None
    process.stdout.close()
    for pid in filter(alive, pids):
        os.kill(pid, signal.SIGKILL)
