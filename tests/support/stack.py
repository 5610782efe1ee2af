"""API and worker as real processes, for tests that talk to them as any client would."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx

READY_S = 90.0


def wait_until(condition: Callable[..., Any], timeout_s: float = 15.0, what: str = "") -> Any:
    """Polls until the condition is true and returns its value; fails the test when the time is over.

    It is called without arguments; in a loop, a lambda may hold the loop's variable as a default.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what or condition}"
        time.sleep(0.01)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def memory_mb(stack: Stack, field: str, name: str = "api") -> float:
    """What a process has in memory now (`VmRSS`), or had at most (`VmHWM`)."""
    status = Path(f"/proc/{stack.process(name).pid}/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


class Stack:
    """`start`/`stop`/`kill` the ends by name: `api`, `worker`, or `worker-2` and so on. A context manager."""

    def __init__(
        self, redis_url: str, upstream_url: str, directory: Path, *, config: str = "", **settings: str
    ) -> None:
        """`config` is more of streamspool.toml: the provider `scripted` is there already."""
        self.redis_url = redis_url
        self.python = sys.executable
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._directory = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        file = directory / "streamspool.toml"
        file.write_text(f'[providers.scripted]\nbase_url = "{upstream_url}"\nmodels = ["any"]\n{config}')
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_BASE_URL"))},
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "REDIS_URL": redis_url,
            "HOST": "127.0.0.1",
            "STREAMSPOOL_CONFIG": str(file),
            "STREAMSPOOL_DATA_DIR": str(directory),
            "NO_COLOR": "1",
            **settings,
        }

    def __enter__(self) -> Self:
        try:
            self.start("worker")
            self.start("api")
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

    def start(self, name: str, **settings: str) -> subprocess.Popen[bytes]:
        module = "api" if name.startswith("api") else "worker"
        environment = {**self.environment, "PORT": str(self.port), **settings}
        with (self._directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [self.python, "-m", module],
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

    def process(self, name: str) -> subprocess.Popen[bytes]:
        return self._processes[name]

    def log(self, name: str) -> str:
        return (self._directory / f"{name}.log").read_text()

    def wait_ready(self) -> None:
        def ready() -> bool:
            for name, process in self._processes.items():
                assert process.poll() is None, f"{name} ended:\n{self.log(name)}"
            try:
                return httpx.get(f"{self.url}/readyz", trust_env=False).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(ready, READY_S, "the stack is ready")
