"""What each process of ours does once: how it starts, what it is handed by who starts it, and how a start ends that cannot
succeed."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Literal, NoReturn

from prometheus_client import disable_created_metrics

from shared import __version__
from shared.lib.tasks import cancel
from shared.lib.telemetry import BUILD, get_logger, switch_on, wants
from shared.lib.traces import genai, tracing

logger = get_logger(__name__)

WRONG_SETTINGS = 2
"""The exit code for what a restart will not heal."""

LISTEN_FD = "STREAMSPOOL_LISTEN_FD"
"""Environment variable: listening sockets of a supervisor, by number, with commas between."""
READY_FD = "STREAMSPOOL_READY_FD"
"""Environment variable: a pipe to a supervisor, for one byte that says that this process serves now."""

_FIRST_FD = 3
_BACKLOG = 2048
_THRESHOLDS = 5_000, 10, 10
_GIVE_BACK_EVERY_S = 30.0
_M_ARENA_MAX = -8
"""Of glibc's malloc.h; mallopt(3)."""


def collect_rarely() -> None:
    """Has the garbage collector look less often, and never at what is here now: modules, routes, models.

    Chunks on their way make it run all the time, and find nothing: they are tuples of bytes, without cycles. It took a
    tenth of the time of a busy process. What was only needed to start, some megabytes, goes back to the system.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    if (trim := _of_libc("malloc_trim")) is not None:
        trim(0)


def refuse_to_start(reason: str) -> NoReturn:
    """Says why on stderr, and ends the process with the exit code for wrong settings."""
    print(reason, file=sys.stderr)
    raise SystemExit(WRONG_SETTINGS)


def inherited() -> list[socket.socket]:
    """Listening sockets that are handed down, and stay open when this process ends, so that connections wait meanwhile: by
    our supervisor, or by systemd (sd_listen_fds(3)). Each is given to who asks first; none where nobody hands any down."""
    if numbers := os.environ.pop(LISTEN_FD, ""):
        return [socket.socket(fileno=int(number)) for number in numbers.split(",")]
    count, meant = os.environ.pop("LISTEN_FDS", "0"), os.environ.pop("LISTEN_PID", "")
    if meant != str(os.getpid()):  # it was for a parent of ours
        return []
    return [socket.socket(fileno=number) for number in range(_FIRST_FD, _FIRST_FD + int(count))]


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that queue connections from now on, at each address of the host. Raises OSError."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [
        socket.create_server((str(address[0]), port), family=family, backlog=_BACKLOG)
        for family, _, _, _, address in dict.fromkeys(found)
    ]


def say_ready() -> None:
    """Tells a supervisor that waits for it that this process serves; nothing where none does."""
    if number := os.environ.pop(READY_FD, ""):
        os.write(int(number), b"1")
        os.close(int(number))


def one_heap() -> None:
    """Has all threads take from one heap of glibc's; called once, before there are any. `MALLOC_ARENA_MAX` goes before it.

    By itself it makes one for each thread, up to eight for each core, and keeps what is free at the end of such a one, up to
    twice the largest piece that was ever freed (heap_trim in its malloc/arena.c), also where it is told to give back: mtrim in
    malloc/malloc.c does that for the process's own only. So each thread that ever stored or read an object went on to hold as
    much: of a worker that had archived for four minutes, 15 of them held 55 MB, with nothing in them.
    """
    if (limit := _of_libc("mallopt")) is not None and "MALLOC_ARENA_MAX" not in os.environ:
        limit(_M_ARENA_MAX, 1)


@asynccontextmanager
async def giving_back() -> AsyncIterator[None]:
    """Meanwhile, what is free in glibc's heap is returned to the system every half a minute.

    By itself it returns what lies at the heap's end only, and the pieces that it takes from the system one by one, and
    returns, become larger with each that is freed (mallopt(3), M_MMAP_THRESHOLD: up to 32 MiB). Answers with chunks of
    100 kB left 48 MB free in it after a quarter of an hour, and it grew with each peak. To fix that limit costs more:
    every large piece then comes with page faults, and a replay of such answers took twice the time. Nothing happens
    where there is no glibc (musl, macOS).
    """
    trimming = asyncio.create_task(_trim(), name="memory")
    try:
        yield
    finally:
        await cancel(trimming)


def _of_libc(name: str) -> Callable[..., object] | None:
    """None: another libc than glibc has no such function."""
    found: Callable[..., object] | None = getattr(ctypes.CDLL(None), name, None)
    return found


async def _trim() -> None:
    """In a thread, because a large heap takes milliseconds."""
    trim = _of_libc("malloc_trim")
    while trim is not None:
        await asyncio.sleep(_GIVE_BACK_EVERY_S)
        await asyncio.to_thread(trim, 0)


def begin_traces(end: Literal["api", "worker"], variables: Mapping[str, str]) -> None:
    """Traces, where the `OTEL_…` variables ask for them; called once, by the process's entry point. Those variables may be
    meant for others on this machine: what we cannot do is said, and no reason not to start."""
    try:
        tracing.begin(end, __version__, variables)
    except tracing.NotPossible as reason:
        logger.warning("no traces", reason=str(reason))
    except ValueError as error:  # a file that cannot be read
        refuse_to_start(str(error))


def begin_metrics(more: Collection[str] = ()) -> None:
    """Sets up the metrics of the whole process, and `more` of them; called once, by its entry point. Without the time each
    series began, which Prometheus does not need and which is as many series again."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    switch_on(more)
    if wants("genai"):
        genai.begin()
    BUILD.labels(__version__).set(1)
