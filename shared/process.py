"""What each process of ours does once: how it starts, and how a start ends that cannot succeed."""

from __future__ import annotations

import gc
import sys
from typing import NoReturn

WRONG_SETTINGS = 2
"""The exit code for what a restart will not heal."""

_THRESHOLDS = 5_000, 10, 10


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
