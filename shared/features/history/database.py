"""The history's database: SQLite in a file, or Postgres. The one place that names SQLAlchemy and Alembic.

Hidden here: what the two say differently, that the schema is brought up to date by whoever opens it first, that a row is
written once however often it is given, and what each filter of a list is in SQL. Rows that are too old are deleted a
thousand at a time, so that nobody waits for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import asyncpg  # type: ignore[import-untyped]
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.sql.operators import custom_op

from shared.features.history.record import Record
from shared.features.history.tables import COUNTED, GENERATIONS, NOT_COMPLETED
from shared.features.listing.filters import Between, Filters
from shared.lib import json, private
from shared.log.entry import Status

DatabaseError = (sa.exc.SQLAlchemyError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What a database that is away raises, or one that does not let us in."""

PRUNED_AT_ONCE = 1000
_COLUMNS = GENERATIONS.c
_TIMEOUT_S = 5.0
_ENDS = frozenset(Status) - {Status.QUEUED, Status.IN_PROGRESS}

_Columns = Mapping[str, sa.ColumnElement[Any]]
"""The table's, by name, as a statement is to write them."""

Place = tuple[int, str]
"""Where a list goes on: the time a generation was created at, in ms, and its id."""


class Database:
    """Open it with `Database.open`; `close` it in the end. Every method raises `DatabaseError`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._insert: Any = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert

    @classmethod
    async def open(cls, url: str) -> Self:
        """Brings the schema up to date."""
        made = sa.make_url(url)
        is_sqlite = made.get_backend_name() == "sqlite"
        if is_sqlite and made.database:
            _make_private(Path(made.database))
        options: dict[str, Any] = {"connect_args": {"timeout": _TIMEOUT_S}}
        if not is_sqlite:
            made = made.set(query={"ssl" if name == "sslmode" else name: text for name, text in made.query.items()})
            options |= {"pool_size": 2, "max_overflow": 2, "pool_pre_ping": True, "pool_timeout": _TIMEOUT_S}
        engine = create_async_engine(
            made.set(drivername="sqlite+aiosqlite" if is_sqlite else "postgresql+asyncpg"),
            json_serializer=lambda value: json.dumps(value).decode(),
            json_deserializer=lambda text: json.loads(text.encode()),
            **options,
        )
        if is_sqlite:
            sa.event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        try:
            async with engine.begin() as connection:
                if not is_sqlite:  # one process at a time: the others find it done
                    await connection.execute(sa.text("SELECT pg_advisory_xact_lock(7320115061)"))
                await connection.run_sync(_migrate)
        except BaseException:
            await engine.dispose()
            raise
        return cls(engine)

    async def close(self) -> None:
        await self._engine.dispose()

    # ---- what the sink does

    async def take(self, records: Sequence[Record], forgotten: Sequence[str] = ()) -> None:
        """Writes rows, each once by its id, and deletes others, in one transaction."""
        async with self._engine.begin() as connection:
            if records:
                newest = list({one["id"]: one for one in records}.values())
                statement = self._insert(GENERATIONS)
                changed = {column.name: statement.excluded[column.name] for column in _COLUMNS if column.name != "id"}
                await connection.execute(
                    statement.on_conflict_do_update(index_elements=[_COLUMNS.id], set_=changed), newest
                )
            if forgotten:
                await connection.execute(sa.delete(GENERATIONS).where(_COLUMNS.id.in_(forgotten)))

    async def prune(self, before_ms: int) -> int:
        """Deletes some of the rows that were created before. Returns how many: `PRUNED_AT_ONCE` if there may be more."""
        old = (
            sa.select(_COLUMNS.id)
            .where(_COLUMNS.created_at_ms < before_ms)
            .order_by(_COLUMNS.created_at_ms)
            .limit(PRUNED_AT_ONCE)
        )
        async with self._engine.begin() as connection:
            done = await connection.execute(sa.delete(GENERATIONS).where(_COLUMNS.id.in_(old)))
        return int(done.rowcount)

    # ---- what is read

    async def find(self, generation_id: str, tenant: str | None) -> Record | None:
        """One row; None where there is none, or it is another tenant's."""
        wanted = sa.select(GENERATIONS).where(_COLUMNS.id == generation_id)
        found = await self._rows(wanted if tenant is None else wanted.where(_COLUMNS.tenant == tenant))
        return found[0] if found else None

    async def page(
        self, tenants: Sequence[str] | None, wanted: Filters, after: Place | None = None, *, limit: int
    ) -> list[Record]:
        """The rows of these tenants (None: of all) that match, by time in the order that is wanted, from just after a place."""
        oldest_first = wanted.order == "asc"
        place = sa.tuple_(_COLUMNS.created_at_ms, _COLUMNS.id)
        conditions = self._conditions(tenants, wanted, self._columns(tenants, wanted, counting=False))
        statement = sa.select(GENERATIONS).where(*conditions).limit(limit)
        if after is not None:
            edge = sa.tuple_(sa.literal(after[0], sa.BigInteger), sa.literal(after[1], sa.Text))
            statement = statement.where(place > edge if oldest_first else place < edge)
        by = (_COLUMNS.created_at_ms, _COLUMNS.id)
        return await self._rows(statement.order_by(*(one.asc() if oldest_first else one.desc() for one in by)))

    async def counts(self, tenants: Sequence[str] | None, wanted: Filters, column: str) -> dict[str | None, int]:
        """How many rows match, by the values of one of `COUNTED`."""
        if column not in COUNTED:
            raise ValueError(f"not counted by: {column}")
        if Status.COMPLETED not in wanted.statuses:
            return dict(await self._counted(tenants, wanted, column))
        # Nearly all: what is left of all without the others, which have an index of their own, sorts far less.
        found = await self._counted(tenants, replace(wanted, statuses=frozenset()), column)
        if others := _ENDS - wanted.statuses:
            found -= await self._counted(tenants, replace(wanted, statuses=others), column)
        return {value: number for value, number in found.items() if number > 0}

    async def _counted(self, tenants: Sequence[str] | None, wanted: Filters, column: str) -> Counter[str | None]:
        statement = self._counting(tenants, wanted, column)
        found: Counter[str | None] = Counter()
        async with self._engine.connect() as connection:
            for _, value, number in await connection.execute(statement):
                found[value] += number
        return found

    async def size(self) -> int:
        """How many rows there are."""
        async with self._engine.connect() as connection:
            return int(await connection.scalar(sa.select(sa.func.count()).select_from(GENERATIONS)) or 0)

    def _counting(self, tenants: Sequence[str] | None, wanted: Filters, column: str) -> sa.Select[Any, Any, int]:
        columns = self._columns(tenants, wanted, counting=True)
        by = columns["tenant"], columns[column]
        return sa.select(*by, sa.func.count()).where(*self._conditions(tenants, wanted, columns)).group_by(*by)

    def _columns(self, tenants: Sequence[str] | None, wanted: Filters, *, counting: bool) -> _Columns:
        """As they are written for SQLite, which has no idea of how many rows a condition leaves, and takes the wrong index; `+`
        keeps it from one (sqlite.org/optoverview, "Disqualifying WHERE Clause Terms Using Unary-+").

        Without a filter, groups come in the order of an index, and nothing is sorted. With one, it would still take that index,
        and read each row to look at the filter: it is to take one that has every column that is counted by. A page of all
        tenants is to come in the order of time, and not to be sorted."""
        columns: dict[str, sa.ColumnElement[Any]] = dict(_COLUMNS)
        just_when = Filters(since_ms=wanted.since_ms, until_ms=wanted.until_ms, order=wanted.order)
        if self._engine.dialect.name != "sqlite" or (wanted == just_when if counting else tenants is not None):
            return columns
        hidden = set(COUNTED)
        if _is_rare(wanted):
            hidden = hidden - {"status"} | ({"tenant"} if counting else set())
        elif counting and tenants is None:
            hidden.add("created_at_ms")
        return columns | {name: _unindexed(_COLUMNS[name]) for name in hidden}

    def _conditions(
        self, tenants: Sequence[str] | None, wanted: Filters, columns: _Columns
    ) -> list[sa.ColumnElement[bool]]:
        metadata = [self._has_metadata(*one) for one in wanted.metadata.items()]
        return [*_conditions(tenants, wanted, columns), *metadata]

    def _has_metadata(self, key: str, value: str) -> sa.ColumnElement[bool]:
        """A path of SQLite's has no form for each key."""
        if self._engine.dialect.name == "postgresql":
            return cast("sa.ColumnElement[bool]", _COLUMNS.metadata[key].as_string() == value)
        each = sa.func.json_each(_COLUMNS.metadata).table_valued("key", "value")
        return sa.exists().where(each.c.key == key, each.c.value == value).correlate(GENERATIONS)

    async def _rows(self, statement: sa.Select[Any]) -> list[Record]:
        async with self._engine.connect() as connection:
            return [cast(Record, dict(found)) for found in (await connection.execute(statement)).mappings()]


def _make_private(path: Path) -> None:
    """Before SQLite makes it: what it makes beside it has the same mode (sqlite.org/src, `findCreateFileMode`)."""
    private.make_directory(path.parent)
    with open(path, "ab", opener=private.opener):
        pass


def _prepare_sqlite(connection: Any, _: Any) -> None:
    """Readers do not wait for the writer, and what was taken survives a cut of the power."""
    cursor = connection.cursor()
    for word in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {word}")
    cursor.close()


def _migrate(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _unindexed(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    return sa.UnaryExpression(column, operator=custom_op("+"), type_=column.type)


def _is_rare(wanted: Filters) -> bool:
    """Whether all that match stand in the index of what was not completed."""
    return bool(wanted.statuses) and Status.COMPLETED not in wanted.statuses


def _conditions(tenants: Sequence[str] | None, wanted: Filters, of: _Columns) -> list[sa.ColumnElement[bool]]:
    """As `Filters.matches` has them, but for metadata."""
    found: list[sa.ColumnElement[bool]] = [NOT_COMPLETED] if _is_rare(wanted) else []
    if tenants is not None:
        found.append(of["tenant"] == tenants[0] if len(tenants) == 1 else of["tenant"].in_(tenants))
    for column, values in (
        (of["status"], wanted.statuses),
        (of["provider"], wanted.providers),
        (of["source"], wanted.sources),
        (of["key_id"], wanted.key_ids),
        (of["error_code"], wanted.errors),
    ):
        if values:
            found.append(column.in_(sorted(map(str, values))))
    for column, name in ((of["model"], wanted.model), (of["served_by"], wanted.served_by)):
        if name is not None:
            found.append(column.startswith(name[:-1], autoescape=True) if name.endswith("*") else column == name)
    for column, value in ((of["session_id"], wanted.session_id), (of["batch_id"], wanted.batch_id)):
        if value is not None:
            found.append(column == value)
    if wanted.since_ms is not None:
        found.append(of["created_at_ms"] >= wanted.since_ms)
    if wanted.until_ms is not None:
        found.append(of["created_at_ms"] < wanted.until_ms)
    for column, between in (
        (of["duration_ms"], wanted.duration_ms),
        (of["ttft_ms"], wanted.ttft_ms),
        (of["tokens"], wanted.tokens),
        (of["picodollars"], wanted.picodollars),
    ):
        found += _within(column, between)
    if wanted.text is not None:
        texts = [of[name] for name in ("id", "model", "served_by", "error_code", "session_id")]
        said = [*texts, sa.cast(of["metadata"], sa.Text)]
        found.append(sa.or_(*(column.icontains(wanted.text, autoescape=True) for column in said)))
    return found


def _within(column: sa.ColumnElement[int], between: Between) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if between.least is not None:
        found.append(column >= between.least)
    if between.most is not None:
        found.append(column <= between.most)
    return found
