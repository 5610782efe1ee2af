"""The history's database, on SQLite and on Postgres: rows are written once, found by every filter, and go when they are old."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.ext.asyncio import create_async_engine

from shared.features.history.database import PRUNED_AT_ONCE, Database, _migrate
from shared.features.history.history import History
from shared.features.history.record import Record, summary
from shared.features.history.tables import COUNTED, METADATA
from shared.features.listing.filters import Between, Filters
from shared.features.listing.row import row
from shared.lib import json
from shared.log.entry import Status
from tests.support.postgres import postgres, programs


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    if programs() is None:
        pytest.skip("Postgres is not installed")
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new/history.sqlite3"
    found: str = request.getfixturevalue("postgres_url")
    engine = create_async_engine(found.replace("postgresql", "postgresql+asyncpg"))
    async with engine.begin() as connection:
        await connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        await connection.execute(sa.text("CREATE SCHEMA public"))
    await engine.dispose()
    return found


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    opened = await Database.open(url)
    yield opened
    await opened.close()


def made(number: int, **fields: Any) -> Record:
    common: dict[str, Any] = {
        "id": f"chatcmpl-{number:032x}",
        "tenant": "alice",
        "key_id": "key_1",
        "created_at_ms": 1000 + number,
        "ended_at_ms": 2000 + number,
        "status": "completed",
        "model": "fast",
        "served_by": "openai/gpt_1",
        "provider": "openai",
        "source": "chat",
        "session_id": None,
        "batch_id": None,
        "error_code": None,
        "ttft_ms": 50,
        "duration_ms": 1000,
        "tokens": 30,
        "picodollars": 7,
        "metadata": {},
        "more": "{}",
    }
    one = {**common, **fields}
    more = json.dumps({"u": {"total_tokens": one["tokens"]}}).decode()
    return Record(**{**one, "more": more, "ended_at_ms": one["created_at_ms"] + one["duration_ms"]})  # type: ignore[typeddict-item]


ROWS = [
    made(1),
    made(
        2, status="failed", error_code="upstream_refused", served_by=None, ttft_ms=None, tokens=None, picodollars=None
    ),
    made(3, model="slow%", served_by="groq/x", provider="groq", duration_ms=9000, session_id="s-1"),
    made(4, tenant="bob", metadata={"task": "Title"}),
    made(5, metadata={"task": "Title", 'a "b".c': "d'e"}, source="batch", batch_id="batch_1", key_id=None),
    made(6, model="fastest", tokens=31, created_at_ms=1005),
    made(7, metadata={"ü": "ÄÖ"}, status="cancelled"),
]
WANTED = [
    Filters(),
    Filters(order="asc"),
    Filters(statuses=frozenset({Status.FAILED, Status.CANCELLED})),
    Filters(model="fast"),
    Filters(model="fast*"),
    Filters(model="slow%*"),
    Filters(model="f_st*"),
    Filters(served_by="openai/*"),
    Filters(served_by="groq/x"),
    Filters(providers=frozenset({"groq", "x"})),
    Filters(sources=frozenset({"batch"})),
    Filters(key_ids=frozenset({"key_1"})),
    Filters(errors=frozenset({"upstream_refused"})),
    Filters(session_id="s-1"),
    Filters(batch_id="batch_1"),
    Filters(metadata={"task": "Title"}),
    Filters(metadata={'a "b".c': "d'e", "task": "Title"}),
    Filters(metadata={"none": ""}),
    Filters(text="SLOW%"),
    Filters(text="title"),
    Filters(text="_"),
    Filters(text="refused"),
    Filters(since_ms=1003, until_ms=1006),
    Filters(duration_ms=Between(2000)),
    Filters(ttft_ms=Between(None, 50)),
    Filters(tokens=Between(31, 31)),
    Filters(picodollars=Between(0.5, 7.5)),
    Filters(statuses=frozenset({Status.COMPLETED}), model="fast*", tokens=Between(30), order="asc"),
]


@pytest.mark.parametrize("wanted", WANTED, ids=range(len(WANTED)))  # a set prints itself in another order each time
async def test_a_filter_finds_what_it_finds_in_redis(database: Database, wanted: Filters) -> None:
    await database.take(ROWS)
    newest_first = wanted.order != "asc"
    for tenants in (["alice"], ["alice", "bob"], None, ["nobody"]):
        there = [one for one in ROWS if tenants is None or one["tenant"] in tenants]
        matching = [one for one in there if wanted.matches(row(summary(one)))]
        expected = sorted(matching, key=lambda one: (one["created_at_ms"], one["id"]), reverse=newest_first)
        assert await database.page(tenants, wanted, limit=100) == expected
        for column in COUNTED:
            counts: dict[Any, int] = {}
            for one in matching:
                counts[one[column]] = counts.get(one[column], 0) + 1  # type: ignore[literal-required]
            assert await database.counts(tenants, wanted, column) == counts
    assert len([one for one in WANTED if any(one.matches(row(summary(kept))) for kept in ROWS)]) >= 20


async def test_a_row_is_written_once_however_often_it_comes(database: Database) -> None:
    await database.take(ROWS)
    await database.take([*ROWS, ROWS[0]])
    assert await database.size() == len(ROWS)
    changed = {**ROWS[0], "status": "failed"}
    await database.take([changed])  # type: ignore[list-item]
    assert await database.find(ROWS[0]["id"], "alice") == changed
    assert await database.find(ROWS[0]["id"], "bob") is None
    assert await database.find(ROWS[0]["id"], None) == changed
    await database.take([], [ROWS[0]["id"], "chatcmpl-none"])
    assert await database.find(ROWS[0]["id"], "alice") is None
    await database.take([])


@pytest.mark.parametrize("order", ["desc", "asc"])
async def test_pages_follow_each_other_without_a_gap(database: Database, order: Any) -> None:
    many = [made(number, created_at_ms=1000 + number // 4) for number in range(23)]
    await database.take(many)
    seen: list[Record] = []
    place = None
    while page := await database.page(["alice"], Filters(order=order), place, limit=5):
        seen += page
        place = page[-1]["created_at_ms"], page[-1]["id"]
    assert sorted(one["id"] for one in seen) == sorted(one["id"] for one in many)
    places = [(one["created_at_ms"], one["id"]) for one in seen]
    assert all((one > other) == (order == "desc") for one, other in pairwise(places))


async def test_what_is_old_is_deleted_in_pieces(database: Database) -> None:
    await database.take([made(number) for number in range(PRUNED_AT_ONCE + 7)])
    assert await database.prune(1000) == 0
    assert await database.prune(1000 + PRUNED_AT_ONCE + 5) == PRUNED_AT_ONCE
    assert await database.prune(1000 + PRUNED_AT_ONCE + 5) == 5
    assert [one["created_at_ms"] for one in await database.page(None, Filters(), limit=10)] == [2006, 2005]


async def test_it_is_opened_again_as_it_was(url: str, database: Database) -> None:
    await database.take(ROWS)
    again = await Database.open(url)
    assert await again.size() == len(ROWS)
    await again.close()


async def test_the_steps_lead_to_the_table_that_is_used(database: Database) -> None:
    def found(connection: sa.Connection) -> tuple[Any, Any]:
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        options = {"version_table": "streamspool_history_version"}
        context = MigrationContext.configure(connection, opts=options)
        return compare_metadata(context, METADATA), context.get_current_revision()

    async with database._engine.connect() as connection:
        differences, revision = await connection.run_sync(found)
    assert (differences, revision) == ([], "0002")


async def test_a_database_that_is_away_is_told_once_and_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "there" / "history.sqlite3"
    history = History(f"sqlite:///{path}")
    path.parent.write_text("")  # a file where the folder is to be
    assert not await history.take(ROWS, [])
    assert await history.page(None, Filters()) == []
    assert await history.find(ROWS[0]["id"], None) is None
    path.parent.unlink()
    history._tried_at -= 10
    assert await history.take(ROWS, [])
    assert await history.size() == len(ROWS)
    await history.close()


async def test_a_file_of_its_own_is_its_users_alone(tmp_path: Path) -> None:
    database = await Database.open(f"sqlite:///{tmp_path}/new/history.sqlite3")
    await database.take(ROWS)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()}
    assert set(modes.values()) == {0o600}, modes
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    await database.close()


def test_sqlite_lets_others_read_meanwhile(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/x.sqlite3")
    with engine.begin() as connection:
        _migrate(connection)
    engine.dispose()
    with sqlite3.connect(tmp_path / "x.sqlite3") as connection_:
        assert connection_.execute("SELECT count(*) FROM streamspool_generations").fetchone() == (0,)
    connection_.close()


@pytest.mark.parametrize("tenants", [["alice"], None], ids=["one", "all"])
@pytest.mark.parametrize(
    "wanted",
    [
        Filters(),
        Filters(since_ms=1003),
        Filters(statuses=frozenset({Status.FAILED})),
        Filters(statuses=frozenset({Status.COMPLETED})),
        Filters(providers=frozenset({"openai"}), since_ms=1003),
        Filters(sources=frozenset({"batch"})),
        Filters(key_ids=frozenset({"key_1"})),
        Filters(errors=frozenset({"upstream_refused"})),
        Filters(model="fast*"),
    ],
    ids=str,
)
async def test_sqlite_reads_no_row_to_count(tmp_path: Path, wanted: Filters, tenants: list[str] | None) -> None:
    database = await Database.open(f"sqlite:///{tmp_path}/history.sqlite3")
    for column in COUNTED:
        asked = database._counting(tenants, wanted, column).compile(
            dialect=sqlite_dialect(), compile_kwargs={"literal_binds": True}
        )
        async with database._engine.connect() as connection:
            plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked}")
            steps = [step for *_, step in plan if " streamspool_generations " in step]
        assert len(steps) == 1, steps
        assert "COVERING INDEX" in steps[0], steps
        if tenants is None and wanted.statuses == {Status.FAILED}:
            assert "not_completed" in steps[0], steps
    await database.close()


def test_a_row_is_small() -> None:
    assert len(json.dumps(ROWS[0])) < 500


async def test_a_server_that_does_not_let_us_in_or_is_not_there_is_away(postgres_url: str) -> None:
    wrong = postgres_url.replace("/postgres", "/nothing")
    for url in (wrong, "postgresql://tests@127.0.0.1:1/postgres", f"{postgres_url}?sslmode=require"):
        history = History(url)
        assert not await history.take(ROWS, [])
        assert not await history.is_there()
        await history.close()
    history = History(f"{postgres_url}?sslmode=disable")
    assert await history.is_there()
    await history.close()
