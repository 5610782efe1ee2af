"""How long the history's first page and its counts take with a million rows: `python -m tests.chaos.figures_history`.

Options: --rows 1000000, --url sqlite:///FILE or postgresql://… (a file of its own, if not given).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from shared.features.history.database import Database
from shared.features.history.record import Record
from shared.features.history.tables import COUNTED
from shared.features.listing.filters import Filters
from shared.lib.clock import now_ms
from shared.log.entry import Status

_AT_ONCE = 10_000
_TIMES = 9
_MORE = (
    '{"a":[[1795340527310,"queued",1]],"sa":1795340527410,"p":[1,240],"by":"host-14901-648cb8","f":["stop"],'
    '"u":{"prompt_tokens":12,"completion_tokens":240,"total_tokens":252},"us":"provider","ch":{"content":960,"reasoning":0},'
    '"cs":"genai-prices"}'
)


def row(number: int, newest_ms: int, count: int) -> Record:
    """Spread over 30 days, three tenants, a dozen models."""
    model = f"openai/gpt-{number * 7 % 12}"
    failed = number % 50 == 0
    return Record(
        id=f"chatcmpl-{number * 2654435761 % 2**128:032x}",
        tenant=f"team-{number % 3}",
        key_id=f"key_{number % 20:024x}",
        created_at_ms=newest_ms - (count - number) * (30 * 86_400_000 // count),
        ended_at_ms=newest_ms,
        status="failed" if failed else "completed",
        model=model,
        served_by=None if failed else model,
        provider="openai",
        source="batch" if number % 4 == 0 else "chat",
        session_id=None,
        batch_id=None,
        error_code="upstream_refused" if failed else None,
        ttft_ms=100 + number % 400,
        duration_ms=1000 + number % 9000,
        tokens=252,
        picodollars=123_000,
        metadata={"task": "chat"},
        more=_MORE,
    )


async def timed(ask: Callable[[], Awaitable[Any]]) -> str:
    """The processor's time is this process's: SQLite's as well, a server's not. It does not say how busy the machine is."""
    await ask()
    took, used = [], []
    for _ in range(_TIMES):
        start, cpu = time.perf_counter(), time.process_time()
        await ask()
        took.append((time.perf_counter() - start) * 1000)
        used.append((time.process_time() - cpu) * 1000)
    return (
        f"{statistics.median(took):.1f} ms (median of {_TIMES}, {min(took):.1f} to {max(took):.1f}), "
        f"{statistics.median(used):.1f} ms of CPU"
    )


async def figures(url: str, count: int) -> None:
    database, newest = await Database.open(url), now_ms()
    start = time.perf_counter()
    for first in range(await database.size(), count, _AT_ONCE):
        await database.take([row(number, newest, count) for number in range(first, min(count, first + _AT_ONCE))])
    print(f"{await database.size()} rows, written in {time.perf_counter() - start:.0f} s")
    mine, since = ["team-1"], newest - 7 * 86_400_000
    (middle,) = (await database.page(mine, Filters(until_ms=newest - 15 * 86_400_000), limit=1))[:1]
    place = middle["created_at_ms"], middle["id"]
    failed, week = Filters(statuses=frozenset({Status.FAILED})), Filters(since_ms=since)
    asked: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
        ("first page, one tenant", lambda: database.page(mine, Filters(), limit=21)),
        ("first page, all tenants", lambda: database.page(None, Filters(), limit=21)),
        ("a page in the middle", lambda: database.page(mine, Filters(), place, limit=21)),
        ("first page of the failed", lambda: database.page(mine, failed, limit=21)),
        ("first page of a model", lambda: database.page(mine, Filters(model="openai/gpt-3"), limit=21)),
        *((f"counts by {one}, one tenant", lambda one=one: database.counts(mine, Filters(), one)) for one in COUNTED),
        *((f"counts by {one}, all tenants", lambda one=one: database.counts(None, Filters(), one)) for one in COUNTED),
        ("counts by model, one tenant, a week", lambda: database.counts(mine, week, "model")),
        ("counts by model of the failed", lambda: database.counts(mine, failed, "model")),
    ]
    for what, ask in asked:
        print(f"{what}: {await timed(ask)}", flush=True)
    await database.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--url")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "history.sqlite3"
        asyncio.run(figures(given.url or f"sqlite:///{path}", given.rows))
        if path.exists():
            print(f"{path.stat().st_size / given.rows:.0f} bytes a row, indexes included")


if __name__ == "__main__":
    main()
