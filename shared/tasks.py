"""Ending tasks so that they have really ended."""

from __future__ import annotations

import asyncio
from typing import Any

_AGAIN_S = 1.0


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancels tasks and returns once all are done; what they raise is dropped.

    It asks again and again: `asyncio.wait_for` of Python 3.11, which redis-py sends every command through, swallows a
    cancellation that comes at the moment its own wait is over, and a loop that was asked once would run for ever.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=_AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()
