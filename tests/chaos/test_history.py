"""The history's sink, killed again and again (F73): there is a row for each answer that was settled, and no other."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import httpx
import pytest
import sqlalchemy as sa

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.store import Store, open_store
from tests.harness.upstream import ScriptedUpstream
from tests.support.postgres import postgres, programs
from tests.support.wire import Client, ask

KILLS = 10
AT_ONCE = 20


@pytest.fixture(params=["sqlite", "postgres"])
def history_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/history.sqlite3"
    elif programs() is None:
        pytest.skip("Postgres is not installed")
    else:
        with postgres() as url:
            yield url


def taken(store: Store) -> int:
    return int(store.hget("streamspool:history-count", "taken") or 0)


@pytest.mark.timeout(900)
def test_f73_a_sink_that_is_killed_ten_times_under_load_keeps_each_settled_answer_once(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path, history_url: str
) -> None:
    url = valkey.url.replace("db=0", "db=3")
    sinks = ["api", "api-2"]
    with open_store(url) as store:
        store.flushdb()
        processes = " ".join(["worker", *sinks])
        with (
            Stack(url, upstream.base_url, tmp_path, processes=processes, STREAMSPOOL_HISTORY_URL=history_url) as stack,
            Client(stack.url) as client,
        ):

            def takes_while_more_is_asked(before: int) -> bool:
                for _ in range(AT_ONCE):
                    with suppress(httpx.TransportError):  # it was killed; it may have been accepted
                        client.post(ask("fake/lorem?tokens=1&rate=1000", background=True))
                return taken(store) > before

            for _ in range(KILLS):
                wait_until(partial(takes_while_more_is_asked, taken(store)), 120)
                holder = (store.get("streamspool:history-sink") or b"").decode()
                name = next((one for one in sinks if holder.endswith(f"-{stack.process(one).pid}")), sinks[0])
                stack.kill(name, signal.SIGKILL)
                stack.start(name)
            wait_until(lambda: not store.exists("streamspool:open") and not store.exists("streamspool:unsettled"), 120)
            wait_until(lambda: not store.xlen("streamspool:history"), 120)
            wait_until(stack.answers, 120)
            assert client.get("/v1/history").json()["lost"] == 0
        marks = store.scan_iter(match="streamspool:{*}:settled", count=1000)
        settled = {mark.decode().split("{")[1].split("}")[0] for mark in marks}
        store.flushdb()
    engine = sa.create_engine(history_url) if history_url.startswith("sqlite") else None
    if engine is not None:
        with engine.connect() as connection:
            kept = [row[0] for row in connection.execute(sa.text("SELECT id FROM streamspool_generations"))]
        engine.dispose()
    else:
        kept = ids_of(history_url)
    assert len(kept) == len(set(kept))
    assert len(settled) >= KILLS * AT_ONCE / 2
    assert set(kept) == settled


def ids_of(url: str) -> list[str]:
    async def ids() -> list[str]:
        connection = await asyncpg.connect(url)
        rows = await connection.fetch("SELECT id FROM streamspool_generations")
        await connection.close()
        return [row["id"] for row in rows]

    return asyncio.run(ids())
