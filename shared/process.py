"""What each process of ours sets once, when it has started."""

from __future__ import annotations

import gc

_THRESHOLDS = 5_000, 10, 10


def collect_rarely() -> None:
    """Has the garbage collector look less often, and never at what is here now: modules, routes, models.

    Chunks on their way make it run all the time, and find nothing: they are tuples of bytes, without cycles. It took a
    tenth of the time of a busy process.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
