"""One process that a supervisor keeps: how it is started, followed by another of its kind while it serves, and ended.

Hidden here: what it inherits; that a successor says when it serves (`say_ready` in shared/lib/process.py), so that there is
never one process less; and that one which is leaving is not told a second time, since that would mean "at once".

The ends are other programs (`python -m api`, `python -m worker`), never imports: each has a process of its own, in a
session of its own, so that Ctrl-C in a terminal reaches the supervisor alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import IO, Protocol

from shared.cli.embedded import CannotStart, tied_to_parent
from shared.lib import private
from shared.lib.process import READY_FD

POLL_S = 0.05
KILL_AFTER_DRAIN_S = 5.0
SUCCEED_S = 60.0
"""How long a successor may take until it serves."""

FOLLOWED = signal.SIGHUP
"""Tells a process that its successor serves: it leaves as by SIGTERM, but its address stays what it is (api/server.py)."""


class Child(Protocol):
    """What is kept alive: a process of an end, or the embedded Valkey."""

    @property
    def pid(self) -> int | None: ...

    def launch(self) -> None: ...


class End:
    """One process of one end, or of the model server; while it is followed, two of them."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], fds: tuple[int, ...], output: IO[bytes] | None
    ) -> None:
        self.starts = 0
        self._command = command
        self._environment = environment
        self._fds = fds
        self._output: IO[bytes] | int = sys.stderr.fileno() if output is None else output
        self._process: subprocess.Popen[bytes] | None = None
        self._successor: subprocess.Popen[bytes] | None = None
        self._leaving: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and _runs(self._process) else None

    @property
    def is_running(self) -> bool:
        """Any process of it."""
        return any(map(_runs, (self._process, self._successor, self._leaving)))

    @property
    def exit_code(self) -> int | None:
        """Of its last process, once that has ended."""
        return self._process.poll() if self._process is not None else None

    def launch(self) -> None:
        self.starts += 1
        self._process = self._start()

    def stop(self) -> None:
        """SIGTERM, but for what leaves already."""
        _signal(signal.SIGTERM, self._process, self._successor)

    def kill(self) -> None:
        _signal(signal.SIGKILL, self._process, self._successor, self._leaving)

    async def follow(self, drain_s: float) -> None:
        """Starts another process, and once that serves, ends the one before, which is given `drain_s`.

        Raises CannotStart: the new one ended, or does not serve in time; then it is gone, and the one before goes on."""
        self._successor, serves = self._start_successor()
        try:
            async with asyncio.timeout(SUCCEED_S):
                wrong = "" if await _byte(serves) else "it ended before it served"
        except TimeoutError:
            wrong = f"it does not serve after {SUCCEED_S:g} s"
        finally:
            os.close(serves)
        if wrong:
            self._leaving, self._successor = self._successor, None
            await self._let_leave(signal.SIGKILL)
            raise CannotStart(wrong)
        self._successor, self._process, self._leaving = None, self._successor, self._process
        await self._let_leave(FOLLOWED, drain_s + KILL_AFTER_DRAIN_S)

    async def _let_leave(self, sign: signal.Signals, patience_s: float = KILL_AFTER_DRAIN_S) -> None:
        _signal(sign, self._leaving)
        deadline = time.monotonic() + patience_s
        while _runs(self._leaving):
            if time.monotonic() > deadline:
                _signal(signal.SIGKILL, self._leaving)
            await asyncio.sleep(POLL_S)
        self._leaving = None

    def _start_successor(self) -> tuple[subprocess.Popen[bytes], int]:
        """And the end of a pipe that it says it is ready through."""
        reading, writing = os.pipe()
        try:
            return self._start({READY_FD: str(writing)}, writing), reading
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)

    def _start(self, more: Mapping[str, str] | None = None, *fds: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            tied_to_parent(self._command),
            env={**self._environment, **(more or {})},
            pass_fds=(*self._fds, *fds),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            umask=private.UMASK,
            start_new_session=True,
        )


async def end_all(ends: Collection[End], drain_s: float) -> None:
    """SIGTERM, time to drain, SIGKILL for what is left."""
    for tell, patience_s in ((End.stop, drain_s + KILL_AFTER_DRAIN_S), (End.kill, KILL_AFTER_DRAIN_S)):
        for end in ends:
            tell(end)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if not any(end.is_running for end in ends):
                return
            await asyncio.sleep(POLL_S)


async def _byte(reading: int) -> bool:
    """Whether one came through the pipe before it was closed."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(reading, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(reading)
    return bool(os.read(reading, 1))


def _runs(process: subprocess.Popen[bytes] | None) -> bool:
    return process is not None and process.poll() is None


def _signal(sign: signal.Signals, *processes: subprocess.Popen[bytes] | None) -> None:
    for process in processes:
        if process is not None:
            process.send_signal(sign)  # which looks first whether it has ended
