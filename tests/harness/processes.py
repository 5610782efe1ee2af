"""API and worker as real processes: the one way in which tests start, break and end them.

Hidden here: what their environment is, how a fault gets into a process, which port an API has, when a process is up.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import httpx

from shared.cli.embedded import EmbeddedValkey

ROOT = Path(__file__).resolve().parents[2]
READY_S = 200.0
TWO_WORKERS = "worker worker-2 api"
_LEADS_ELSEWHERE = re.compile(r".*_API_KEY|.*_BASE_URL|OTEL_.*")

_SHARES, _SHARE = 4, 3000
_given: set[int] = set()


def wait_until(condition: Callable[..., Any], timeout_s: float = 60.0, what: str = "") -> Any:
    """Polls until the condition is true and returns its value; fails the test when the time is over: where all is well, a long
    one costs nothing.

    It is called without arguments; in a loop, a lambda may hold the loop's variable as a default.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what or condition}"
        time.sleep(0.01)
    return value


def free_port(in_a_row: int = 1) -> int:
    """One below those that outgoing connections are given (32768 and up): none of them takes it before its server is there,
    or while it is started again. Nor does another server of these tests: who asks is given each but once, and the processes of
    one run draw from shares of their own. The first of so many `in_a_row`, where one is not enough."""
    share = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _SHARES
    while True:
        first = 20_000 + share * _SHARE + secrets.randbelow(_SHARE - in_a_row + 1)
        ports = range(first, first + in_a_row)
        if not _given.isdisjoint(ports):
            continue
        with ExitStack() as probes, suppress(OSError):
            for port in ports:
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            if len(_given) > _SHARE // 2:
                _given.clear()
            _given.update(ports)
            return first


def kill_valkey(valkey: EmbeddedValkey) -> None:
    """As a machine that loses its power; `launch` starts it again from its disk."""
    assert valkey.pid is not None
    os.kill(valkey.pid, signal.SIGKILL)
    wait_until(lambda: not valkey.is_running(), what="Valkey is gone")


def memory_mb(stack: Stack, field: str, name: str = "api") -> float:
    """What a process has in memory now (`VmRSS`), or had at most (`VmHWM`) since `VmRSS` was asked last: what it held for an
    earlier test is no peak of this one."""
    process = Path(f"/proc/{stack.process(name).pid}")
    if field == "VmRSS":
        (process / "clear_refs").write_text("5")  # the peak begins again, proc_pid_clear_refs(5)
    status = (process / "status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


class Stack:
    """`start`/`stop`/`kill` the ends by name: `api`, `worker`, or `worker-2` and so on. A context manager.

    Each API has a port of its own, which it keeps when it is started again.
    """

    def __init__(
        self,
        redis_url: str,
        upstream_url: str,
        directory: Path,
        *,
        config: str = "",
        fault: str = "",
        processes: str = "worker api",
        address: str = "127.0.0.1",
        within: Sequence[str] = (),
        **settings: str,
    ) -> None:
        """`config` is more of streamspool.toml: the provider `scripted` is there already. `fault` is Python that runs in
        every process before anything else. `processes` are those that `with` starts, by name; APIs listen at `address`.
        `within` are the words before each command that have it run on another host (tests/support/hosts.py)."""
        self.redis_url = redis_url
        self.python = sys.executable
        self.fault = fault
        self.address = address
        self._within = list(within)
        self._wanted = processes.split()
        self._ports: dict[str, int] = {}
        self._directory = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        file = directory / "streamspool.toml"
        # A gateway that wants signed thoughts back, as some do; to other servers nobody knows they are not sent.
        scripted = (
            f'base_url = "{upstream_url}"\nmodels = ["any"]\nmessage_fields = ["thinking_blocks", "extra_content"]'
        )
        file.write_text(f"[providers.scripted]\n{scripted}\n{config}")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not _LEADS_ELSEWHERE.fullmatch(name)},
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": redis_url,
            "HOST": address,
            "STREAMSPOOL_CONFIG": str(file),
            "STREAMSPOOL_DATA_DIR": str(directory),
            "STREAMSPOOL_LEDGER_ROWS": "10000",  # each script is a model, whose row a test may look for
            "NO_COLOR": "1",
            **settings,
        }

    def __enter__(self) -> Self:
        try:
            for name in self._wanted:
                self.start(name)
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, name: str, *, fault: str = "", **settings: str) -> subprocess.Popen[bytes]:
        """`fault` comes after that of all processes."""
        module = "api" if name.startswith("api") else "worker"
        environment = {
            **self.environment,
            "PORT": str(self.port_of(name) if module == "api" else self.port),
            **settings,
        }
        if fault := self.fault + fault:
            place = self._directory / f"fault-{name}"
            place.mkdir(exist_ok=True)
            (place / "sitecustomize.py").write_text(fault)
            environment["PYTHONPATH"] = f"{place}:{environment['PYTHONPATH']}"
        with (self._directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*self._within, self.python, "-m", module],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
            )
        self._processes[name] = process
        return process

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        self._processes[name].send_signal(number)
        if number == signal.SIGKILL:
            self._processes[name].wait()

    def stop(self, name: str) -> None:
        """Ends a process the hard way, and forgets it."""
        self.kill(name)
        del self._processes[name]

    def alive(self, name: str) -> bool:
        return name in self._processes and self._processes[name].poll() is None

    @property
    def port(self) -> int:
        return self.port_of("api")

    @property
    def url(self) -> str:
        return self.at("api")

    def port_of(self, name: str) -> int:
        """An API's."""
        return self._ports.setdefault(name, free_port())

    def at(self, name: str) -> str:
        """An API's URL."""
        return f"http://{self.address}:{self.port_of(name)}"

    def answers(self, name: str = "api") -> bool:
        """Whether an API is ready to serve."""
        try:
            return httpx.get(f"{self.at(name)}/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def process(self, name: str) -> subprocess.Popen[bytes]:
        return self._processes[name]

    def log(self, name: str) -> str:
        return (self._directory / f"{name}.log").read_text(errors="replace")

    def wait_ready(self) -> None:
        def ready() -> bool:
            for name, process in self._processes.items():
                assert process.poll() is None, f"{name} ended:\n{self.log(name)}"
            return self.answers()

        wait_until(ready, READY_S, "the stack is ready")
