"""The machine: which core does what, processes and what they use, and what is written about it beside the figures.

Linux only: CPU time is read from the processes' clocks (ns, all threads, ended ones too) and memory as Pss, from /proc.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE_S = 120.0
STOP_S = 10.0


class CannotMeasure(Exception):
    """This machine, or a program on it, does not do what a measurement needs; the text says what to do."""


@dataclass(frozen=True)
class Cores:
    """One core for all that is measured, another for the load and the fake provider; `own` has those parts of ours that have
    another one, by their names: `{"api": 1}`."""

    server: int
    load: int
    own: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def choose(cls) -> Self:
        """The first two that this process may use; with a single one both are that."""
        free = sorted(os.sched_getaffinity(0))
        return cls(free[0], free[min(1, len(free) - 1)])

    @classmethod
    def choose_apart(cls) -> Self:
        """As many as there are. With two, worker and Valkey share one, API and load the other; with three, the load has one for
        itself; with four, each part has. Raises CannotMeasure where there is a single one."""
        free = sorted(os.sched_getaffinity(0))
        if len(free) < 2:
            raise CannotMeasure("To give the parts cores of their own takes two of them.")
        own = {"api": free[1], **({"worker": free[3]} if len(free) > 3 else {})}
        return cls(free[0], free[min(2, len(free) - 1)], own)

    def told(self) -> str:
        """What is where, for a reader: `valkey and worker | api, load and provider`."""
        shared: dict[int, list[str]] = {}
        for part in ("valkey", "worker", "api"):
            shared.setdefault(self.own.get(part, self.server), []).append(part)
        shared.setdefault(self.load, []).extend(("load", "provider"))
        return " | ".join(f"{', '.join(some[:-1])} and {some[-1]}" if some[1:] else some[0] for some in shared.values())


@contextlib.contextmanager
def on_core(core: int | Iterable[int]) -> Iterator[None]:
    """What is started in here stays on that core, and so do its children."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core} if isinstance(core, int) else set(core))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def move(pid: int, core: int) -> None:
    """This process, with the threads that it has and those it will have."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):  # that one has just ended
            os.sched_setaffinity(int(thread), {core})


def prepare(*, boost: bool) -> None:
    """Allows many connections. With `boost` (root) this process and its children go before everything else here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if boost:
        with contextlib.suppress(OSError):  # leads a process group: then its group goes first, whoever else is in it
            os.setsid()
        try:
            os.setpriority(os.PRIO_PROCESS, 0, -15)
        except PermissionError:
            raise CannotMeasure("--boost needs root.") from None
        with contextlib.suppress(OSError):  # a kernel without autogroups
            Path("/proc/self/autogroup").write_text("-15")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when somebody accepts there. Raises CannotMeasure, with the log's end, if the process ends or hangs."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
            return
        time.sleep(0.05)
    raise CannotMeasure(f"{process.args!r} does not listen on {port}:\n{log.read_text(errors='replace')[-1000:]}")


@dataclass
class Processes:
    """Programs started for one measurement, stopped with it; a context manager. `pids` may name others to be counted."""

    directory: Path
    core: int
    pids: list[int] = field(default_factory=list)
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._started):
            process.terminate()
        for process in reversed(self._started):
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        port: int = 0,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Starts it on the core, output to NAME.log, and waits for the port if there is one."""
        path = self.directory / f"{name}.log"
        with path.open("ab") as log, on_core(self.core):
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
                cwd=cwd or self.directory,
            )
        self._started.append(process)
        self.pids.append(process.pid)
        if port:
            wait_for_port(port, process, path)
        return process

    def cpu_s(self) -> float:
        return cpu_s(self.pids)

    def memory_kb(self) -> float:
        return memory_kb(self.pids)


def family(pids: Iterable[int]) -> list[int]:
    """These processes and all their descendants that live."""
    found: list[int] = []
    todo = list(pids)
    while todo:
        pid = todo.pop()
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                todo += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
            found.append(pid)
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds that these processes and their descendants, living and waited for, have used."""
    total = 0.0
    for pid in family(pids):
        with contextlib.suppress(OSError):
            total += time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3): all threads, in ns
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[13]) + int(fields[14])) / _TICKS  # children that have ended
    return total


def memory_kb(pids: Iterable[int]) -> float:
    """Pss of these processes and their descendants: what is shared counts in part for each."""
    total = 0
    for pid in family(pids):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return float(total)


def describe() -> dict[str, str]:
    """What a reader needs to know of this machine."""
    model = next(
        (line.partition(":")[2] for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "processor": " ".join(model.split()),
        "cores": str(os.cpu_count()),
        "memory": f"{memory / 2**20:.0f} GiB",
        "system": next(
            (ln.partition("=")[2].strip('"') for ln in _lines("/etc/os-release") if ln.startswith("PRETTY")), "Linux"
        ),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
