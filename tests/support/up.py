"""`streamspool up` as people run it, and what it started. Linux only: the processes are looked up in /proc."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.processes import ROOT, wait_until

WAIT_S = 100
PARTS = {"-m api": "api", "-m worker": "worker", "valkey-server": "valkey", "-m shared.cli.local_model": "local-model"}


def until(condition: Callable[[], bool]) -> None:
    wait_until(condition, WAIT_S)


def processes() -> dict[int, tuple[int, str]]:
    """Pid to parent and command line, without zombies."""
    found = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
            line = (directory / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue
        if state != "Z":
            found[int(directory.name)] = (int(parent), line)
    return found


def environment(directory: Path) -> dict[str, str]:
    """This process' own, without settings of Streamspool's; temporary files go to the directory."""
    ours = ("STREAMSPOOL_", "REDIS_URL", "HOST", "PORT", "LOCAL_MODEL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(ROOT), "TMPDIR": str(directory), "STREAMSPOOL_DRAIN_S": "5"}


class Up:
    """One `streamspool up` and what it started."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.url = ""
        self.ever: set[int] = set()

    def children(self) -> dict[str, int]:
        """What runs now, by the name of its part; two workers are one name."""
        children = {pid: line for pid, (parent, line) in processes().items() if parent == self.process.pid}
        self.ever.update(children)
        return {
            name: pid for pid, line in children.items() for end, name in PARTS.items() if end in line.split(" --")[0]
        }

    def all(self, part: str) -> set[int]:
        """The processes of a part that run now."""
        children = {pid: line for pid, (parent, line) in processes().items() if parent == self.process.pid}
        self.ever.update(children)
        return {pid for pid, line in children.items() if any(end in line and PARTS[end] == part for end in PARTS)}

    def wait_ready(self, *more: str) -> None:
        """Returns once it says so, and checks that it runs what it should, and `more`."""
        assert self.process.stdout is not None
        said = ""
        while not (found := re.search(r"ready at (\S+)\s", said)):
            # Not by lines: of two that come at once the second would wait in a buffer, where nobody looks.
            readable, _, _ = select.select([self.process.stdout], [], [], WAIT_S)
            assert readable, f"not ready in time: {said}"
            piece = os.read(self.process.stdout.fileno(), 65536)
            assert piece, f"ended with {self.process.wait(WAIT_S)}: {said}"
            said += piece.decode(errors="replace")
        self.url = found[1]
        assert set(self.children()) == {"api", "worker", "valkey", *more}

    def left(self) -> list[str]:
        """What of it still runs."""
        running = processes()
        return [running[pid][1] for pid in self.ever if pid in running]

    def end(self) -> None:
        """At once, with everything that it ever started."""
        self.children()
        self.process.kill()
        self.process.wait(WAIT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        for pid in self.ever & processes().keys():
            os.kill(pid, signal.SIGKILL)


@contextmanager
def starting(directory: Path, **variables: str) -> Iterator[Callable[..., Up]]:
    """A function that starts `up` with the words it is given; at the end of the block all of them are ended."""
    started: list[Up] = []

    def start(*words: str) -> Up:
        data = str(directory / "data")
        process = subprocess.Popen(
            [sys.executable, "-m", "shared.cli.main", "up", "--port", "0", "--data-dir", data, *words],
            stdout=subprocess.PIPE,
            text=True,
            env={**environment(directory), **variables},
            cwd=directory,
        )
        started.append(Up(process))
        return started[-1]

    try:
        yield start
    finally:
        for one in started:
            one.end()


def demo(directory: Path, *options: str) -> str:
    """What `streamspool demo --once` prints; it has to convince, and to leave nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "shared.cli.main", "demo", "--once", *options, "--port", "0"],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env=environment(directory),
        cwd=directory,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("yes") == 5
    assert list(directory.iterdir()) == []
    assert not [line for _, line in processes().values() if str(directory) in line]
    return done.stdout
