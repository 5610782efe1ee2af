"""What each process of ours does once: how it starts, and how a start ends that cannot succeed."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import NoReturn

from prometheus_client import disable_created_metrics

from shared import __version__
from shared.lib import genai
from shared.lib.tasks import cancel
from shared.lib.telemetry import BUILD, switch_on, wants

WRONG_SETTINGS = 2
"""The exit code for what a restart will not heal."""

_THRESHOLDS = 5_000, 10, 10
_GIVE_BACK_EVERY_S = 30.0


def collect_rarely() -> None:
    """Has the garbage collector look less often, and never at what is here now: modules, routes, models.

    Chunks on their way make it run all the time, and find nothing: they are tuples of bytes, without cycles. It took a
    tenth of the time of a busy process.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def refuse_to_start(reason: str) -> NoReturn:
    """Says why on stderr, and ends the process with the exit code for wrong settings."""
    print(reason, file=sys.stderr)
    raise SystemExit(WRONG_SETTINGS)


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


async def _trim() -> None:
    """In a thread, because a large heap takes milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(_GIVE_BACK_EVERY_S)
        await asyncio.to_thread(trim, 0)


def begin_metrics(more: Collection[str] = ()) -> None:
    """Sets up the metrics of the whole process, and `more` of them; called once, by its entry point. Without the time each
    series began, which Prometheus does not need and which is as many series again."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    switch_on(more)
    if wants("genai"):
        genai.begin()
    BUILD.labels(__version__).set(1)
