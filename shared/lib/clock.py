"""The time as records carry it, Unix time in milliseconds, and as clients are told it."""

from __future__ import annotations

import time


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def go_duration(seconds: int) -> str:
    """As Go writes it, and OpenAI in `x-ratelimit-reset-…`: `1s`, `6m0s`."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"
