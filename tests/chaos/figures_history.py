"""How long the history's first page and its counts take with a million rows: `python -m tests.chaos.figures_history`.

Options: --rows 1000000, --url sqlite:///FILE or postgresql://… (a file of its own, if not given).
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from shared.features.history.database import Database
from shared.features.history.record import Record
from shared.features.history.tables import COUNTED, GENERATIONS
from shared.features.listing.filters import Filters
from shared.lib.clock import now_ms
from shared.log.entry import Status

_AT_ONCE = 10_000
_TIMES = 9
_MORE = '{"a":[[100,"queued"]],"p":[1,240],"by":"host-14901-648cb8","f":["stop"],"u":[12,240],"ch":[960,0],"cs":"genai-prices"}'


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
    unused = Filters(key_ids=frozenset({"key_none"}))
    failed, week = Filters(statuses=frozenset({Status.FAILED})), Filters(since_ms=since)
    filters = {
        "the failed": failed,
        "the completed": Filters(statuses=frozenset({Status.COMPLETED})),
        "batches": Filters(sources=frozenset({"batch"})),
        "a model": Filters(model="openai/gpt-3"),
        "a key": Filters(key_ids=frozenset({f"key_{3:024x}"})),
    }
    asked: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
        ("first page, one tenant", lambda: database.page(mine, Filters(), limit=21)),
        ("first page, all tenants", lambda: database.page(None, Filters(), limit=21)),
        ("a page in the middle", lambda: database.page(mine, Filters(), place, limit=21)),
        ("first page of the failed", lambda: database.page(mine, failed, limit=21)),
        ("first page of a model", lambda: database.page(mine, Filters(model="openai/gpt-3"), limit=21)),
        ("first page of a key that never asked", lambda: database.page(mine, unused, limit=21)),
        *((f"counts by {one}, one tenant", lambda one=one: database.counts(mine, Filters(), one)) for one in COUNTED),
        *((f"counts by {one}, all tenants", lambda one=one: database.counts(None, Filters(), one)) for one in COUNTED),
        ("counts by model, one tenant, a week", lambda: database.counts(mine, week, "model")),
        *(
            (
                f"counts by {by} of {what}, {whose}",
                lambda whom=whom, wanted=wanted, by=by: database.counts(whom, wanted, by),
            )
            for what, wanted in filters.items()
            for whose, whom in (("one tenant", mine), ("all tenants", None))
            for by in ("model", "error_code")
        ),
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
        url = given.url or f"sqlite:///{path}"
        asyncio.run(figures(url, given.rows))
        if url.startswith("sqlite:"):
            print(sizes(url.removeprefix("sqlite:///"), given.rows))


def sizes(path: str, count: int) -> str:
    """Pages of the file, by what stands in them (sqlite.org/dbstat)."""
    with closing(sqlite3.connect(path)) as database:
        found = database.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC").fetchall()
    rows = next(size for name, size in found if name == GENERATIONS.name)
    every = ", ".join(f"{name.removeprefix('ix_streamspool_')} {size / count:.0f}" for name, size in found)
    return f"bytes a row: {rows / count:.0f}, with its indexes {sum(size for _, size in found) / count:.0f} ({every})"


if __name__ == "__main__":
    main()
