"""The supervisor with stand-in children: the real ends are tried in tests/chaos/test_up.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from shared.cli import children
from shared.cli import supervisor as supervisor_module
from shared.cli.client import Client
from shared.cli.embedded import CannotStart
from shared.cli.supervisor import Supervisor, listen
from shared.config.settings import Settings, load_settings
from shared.errors import Unusable
from tests.harness.processes import free_port, wait_until

ROOT = Path(__file__).parents[3]
WAIT_S = 60

API = """
import os, signal, socket, sys, threading, time
from http.server import BaseHTTPRequestHandler, HTTPServer
if os.path.exists("broken"):
    raise SystemExit(1)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"status":"ok","checks":{"pid":%d}}' % os.getpid()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
def serve(number):
    server = HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket = socket.socket(fileno=int(number))
    threading.Thread(target=server.serve_forever, daemon=True).start()
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
signal.signal(signal.SIGHUP, lambda *_: os._exit(0))
while os.path.exists("slow"):
    open("waits", "w").close(); time.sleep(0.01)
for number in os.environ["STREAMSPOOL_LISTEN_FD"].split(","):
    serve(number)
print("api", os.environ["HOST"], os.environ["PORT"], os.environ["REDIS_URL"], flush=True)
if "STREAMSPOOL_READY_FD" in os.environ:
    os.write(int(os.environ["STREAMSPOOL_READY_FD"]), b"1")
while True: signal.pause()
"""
WORKER = """
import os, signal, sys
assert "STREAMSPOOL_LISTEN_FD" not in os.environ
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True: signal.pause()
"""
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("is stubborn", "w").close()
while True: signal.pause()
"""
CHILDREN = {"api": [sys.executable, "-c", API], "worker-1": [sys.executable, "-c", WORKER]}
SEVERAL = {**CHILDREN, "api-2": CHILDREN["api"]}

MAIN = """
import asyncio, fcntl, os, sys, termios
from pathlib import Path
from shared.config.settings import Settings
from shared.cli.supervisor import serve
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
api = [sys.executable, "-c", {api!r}]
children = {{"api": api, **{{f"api-{{n + 2}}": api for n in range({more})}}, "worker-1": [sys.executable, "-c", {worker!r}]}}
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


def children_of(parent: int) -> set[int]:
    found = set()
    for directory in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if (
                int((directory / "stat").read_text().rpartition(")")[2].split()[1]) == parent
                and directory.name.isdigit()
            ):
                found.add(int(directory.name))
    return {pid for pid in found if alive(pid)}


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


@contextlib.asynccontextmanager
async def several(tmp_path: Path) -> AsyncIterator[Supervisor]:
    """Two APIs that serve, which each says at a port of its own."""
    first = free_port(2)
    async with Supervisor(settings(tmp_path, api_metrics_port=first), SEVERAL) as supervisor:
        await supervisor.wait_ready(WAIT_S)
        for name, port in (("api", first), ("api-2", first + 1)):
            said = await Client(f"http://127.0.0.1:{port}").ready()
            assert said["checks"]["pid"] == supervisor.pids()[name]
        yield supervisor


def test_each_api_has_a_port_of_its_own_where_one_is_given(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(tmp_path):
            pass

    asyncio.run(scenario())


def test_a_port_of_its_own_that_is_taken_is_said_with_its_name(tmp_path: Path) -> None:
    async def scenario(port: int) -> None:
        async with Supervisor(settings(tmp_path, api_metrics_port=port), CHILDREN):
            pass

    taken = pytest.raises(CannotStart, match="it is taken.*STREAMSPOOL_API_METRICS_PORT")
    with socket.create_server(("127.0.0.1", 0)) as other, taken:
        asyncio.run(scenario(other.getsockname()[1]))


def test_apis_are_replaced_one_after_the_other_by_ones_that_serve(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(tmp_path) as supervisor:
            before = supervisor.pids()
            (tmp_path / "slow").touch()
            supervisor.replace_apis()
            await until((tmp_path / "waits").exists)  # the successor of the first lives, and does not serve yet
            assert supervisor.pids() == before
            assert all(map(alive, before.values()))
            (tmp_path / "slow").unlink()
            await until(lambda: not ({before["api"], before["api-2"]} & set(supervisor.pids().values())))
            await until(lambda: not (alive(before["api"]) or alive(before["api-2"])))
            after = supervisor.pids()
            assert set(after) == set(before)
            assert {name for name in before if before[name] != after[name]} == {"api", "api-2"}
            supervisor.kill("api-2")  # what took its place is kept alive as it was
            await until(lambda: supervisor.pids().get("api-2", after["api-2"]) != after["api-2"])

    asyncio.run(scenario())


def test_a_successor_that_does_not_come_to_serve_leaves_all_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with several(tmp_path) as supervisor:
            before = supervisor.pids()
            (tmp_path / "broken").touch()
            supervisor.replace_apis()
            await until(lambda: "api: not replaced: it ended before it served" in caplog.text)
            (tmp_path / "broken").unlink()
            assert supervisor.pids() == before
            supervisor.replace_apis()
            await until(lambda: not ({before["api"], before["api-2"]} & set(supervisor.pids().values())))

    asyncio.run(scenario())


def test_one_that_takes_too_long_to_serve_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "SUCCEED_S", 0.2)

    async def scenario() -> None:
        async with several(tmp_path) as supervisor:
            before = supervisor.pids()
            (tmp_path / "slow").touch()
            supervisor.replace_apis()
            await until(lambda: "api: not replaced: it does not serve after 0.2 s" in caplog.text)
            assert supervisor.pids() == before

    asyncio.run(scenario())


def test_the_end_in_the_middle_of_a_replacement_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> set[int]:
        async with several(tmp_path) as supervisor:
            (tmp_path / "slow").touch()
            supervisor.replace_apis()
            await until((tmp_path / "waits").exists)
            return children_of(os.getpid()) - before

    before = children_of(os.getpid())  # of other tests, whose servers are for all that come
    ever = asyncio.run(scenario())
    assert len(ever) >= 5  # both APIs, a successor, the worker, Valkey
    assert gone(list(ever))


def test_a_child_that_ignores_sigterm_is_killed_after_the_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "KILL_AFTER_DRAIN_S", 0.3)

    async def scenario() -> None:
        stubborn = {**CHILDREN, "worker-1": [sys.executable, "-c", STUBBORN]}
        async with Supervisor(settings(tmp_path, drain_s=0), stubborn) as supervisor:
            await supervisor.wait_ready(WAIT_S)
            pids = list(supervisor.pids().values())
        assert not any(map(alive, pids))

    asyncio.run(scenario())


def test_a_child_that_keeps_ending_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "FIRST_BACKOFF_S", 0.01)

    async def scenario() -> None:
        children = {"api": [sys.executable, "-c", "raise SystemExit(1)"]}
        async with Supervisor(settings(tmp_path), children) as supervisor:
            await supervisor.wait_ready(WAIT_S)

    with pytest.raises(CannotStart, match="api keeps ending"):
        asyncio.run(scenario())


def test_a_child_that_cannot_work_like_this_is_not_tried_again_and_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        children = {"api": [sys.executable, "-c", "raise SystemExit(2)"]}
        async with Supervisor(settings(tmp_path), children) as supervisor:
            await supervisor.wait_ready(WAIT_S)

    with pytest.raises(Unusable, match="api cannot start with these settings"):  # that one, in no group of errors
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
        wait_until(
            (tmp_path / "is stubborn").exists, WAIT_S
        )  # all is ready once the API is, and that says nothing of a worker
        process.send_signal(signal.SIGINT)
        assert gone(pids[:1])  # the API obeyed at once, the worker holds the end up
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 0
        assert gone(pids)
    finally:
        end(process, pids)


def test_sighup_replaces_several_apis_unless_their_terminal_has_gone(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    process = start(tmp_path, drain_s=10, worker=WORKER, more=1, stdin=slave, start_new_session=True)
    pids: list[int] = []
    try:
        os.close(slave)
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.send_signal(signal.SIGHUP)
        asyncio.run(until(lambda: len([pid for pid in pids if alive(pid)]) == 2))  # the worker and Valkey
        pids += children_of(process.pid)
        assert process.poll() is None
        os.close(master)  # the kernel tells whom it controlled, by SIGHUP
        assert process.wait(WAIT_S) == 0
        assert gone(pids)
    finally:
        end(process, pids)


def start(tmp_path: Path, *, drain_s: float, worker: str, more: int = 0, **how: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAIN.format(api=API, worker=worker, more=more), str(tmp_path), str(drain_s)],
        stdout=subprocess.PIPE,
        text=True,
        **how,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def end(process: subprocess.Popen[str], pids: list[int]) -> None:
    process.kill()
    process.wait(WAIT_S)
    assert process.stdout is not None
    process.stdout.close()
    for pid in filter(alive, pids):
        os.kill(pid, signal.SIGKILL)
