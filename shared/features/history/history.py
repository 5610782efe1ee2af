"""The history as processes have it: opened when it is first asked, and tried again where it is away.

Hidden here: that the libraries of databases are loaded only by who asks (they are an extra, `history`, and take memory),
and that nothing but the history stops while its database is away: lists have what Redis has then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from shared.errors import Unusable
from shared.features.history.record import Record
from shared.features.listing.filters import Filters
from shared.lib.telemetry import HISTORY_AWAY, get_logger

if TYPE_CHECKING:
    from shared.features.history.database import Database, Place

T = TypeVar("T")

logger = get_logger(__name__)

_AGAIN_S = 1.0
"""Between two tries to open a database that is away."""
_PAGE = 100


def check_installed() -> None:
    """Looks without loading anything. Raises Unusable where the extra is not installed."""
    for name in ("sqlalchemy", "alembic", "aiosqlite", "asyncpg"):
        if find_spec(name) is None:
            raise Unusable(
                f"STREAMSPOOL_HISTORY_URL needs the package {name}: pip install 'streamspool[history]', or set it to none."
            )


class History:
    """`close` it in the end. What is asked of a database that is away is None, or False."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._database: Database | None = None
        self._opening = asyncio.Lock()
        self._tried_at = -_AGAIN_S
        self._is_away = False

    async def close(self) -> None:
        if self._database is not None:
            await self._database.close()

    async def take(self, records: Sequence[Record], forgotten: Sequence[str]) -> bool:
        """Whether they are written."""

        async def written(database: Database) -> bool:
            await database.take(records, forgotten)
            return True

        return bool(await self._asked(written))

    async def prune(self, before_ms: int) -> bool:
        """Deletes a piece of the rows that were created before. Whether there may be more."""
        from shared.features.history.database import PRUNED_AT_ONCE

        return (await self._asked(lambda database: database.prune(before_ms)) or 0) >= PRUNED_AT_ONCE

    async def find(self, generation_id: str, tenant: str | None) -> Record | None:
        return await self._asked(lambda database: database.find(generation_id, tenant))

    async def page(
        self, tenants: Sequence[str] | None, wanted: Filters, after: Place | None = None, *, limit: int = _PAGE
    ) -> list[Record]:
        """As `Database.page`; nothing where it is away."""
        return await self._asked(lambda database: database.page(tenants, wanted, after, limit=limit)) or []

    async def counts(self, tenants: Sequence[str] | None, wanted: Filters, column: str) -> dict[str | None, int] | None:
        return await self._asked(lambda database: database.counts(tenants, wanted, column))

    async def is_there(self) -> bool:
        """Whether its database answers."""
        return await self._asked(lambda database: database.find("", None)) is None and not self._is_away

    async def size(self) -> int | None:
        return await self._asked(lambda database: database.size())

    async def _asked(self, ask: Callable[[Database], Awaitable[T]]) -> T | None:
        from shared.features.history.database import DatabaseError

        try:
            database = await self._opened()
            found = None if database is None else await ask(database)
        except DatabaseError as error:
            self._tell(error)
            return None
        if database is not None and self._is_away:
            self._is_away = False
            HISTORY_AWAY.set(0)
            logger.info("history is back")
        return found

    async def _opened(self) -> Database | None:
        """None: it was away a moment ago."""
        from shared.features.history.database import Database

        async with self._opening:
            now = asyncio.get_running_loop().time()
            if self._database is None and now - self._tried_at >= _AGAIN_S:
                self._tried_at = now
                self._database = await Database.open(self._url)
        return self._database

    def _tell(self, error: Any) -> None:
        """Once: an outage would fill the log. No address and no row is told, which such errors repeat."""
        if not self._is_away:
            self._is_away = True
            HISTORY_AWAY.set(1)
            cause = getattr(error, "orig", None) or error
            logger.warning("history is away", error=type(cause).__name__)
