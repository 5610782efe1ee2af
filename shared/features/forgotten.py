"""What a Redis has forgotten: blobs and logs in the storage that neither a log nor a session can name any more.

Hidden here: that a server which was emptied, or went back to an older state, knows nothing of what lies in the storage; how old
that has to be before it is nobody's; and that the storage may be another installation's as well.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from shared.config.settings import Settings
from shared.errors import FileStorageFailed
from shared.features.blobs import COPY, DUE_MS, FOLDER, GRACE_MS
from shared.features.storage import Storage
from shared.lib.clock import now_ms
from shared.lib.telemetry import get_logger
from shared.log.archive.form import FOLDER as LOGS
from shared.log.archive.form import Name
from shared.store.redis import ArqRedis

logger = get_logger(__name__)

_OBJECT = re.compile(r"blobs/of-(?P<tenant>[A-Za-z0-9_.-]{1,64})/(?P<digest>[0-9a-f]{64})\.(?P<copy>[0-9a-f]{8})")
_SEARCH_MS = 86_400_000
_USERS = "blobs-users"
"""A folder with an empty object for each installation that stores here, written anew each day."""
_FORGOTTEN_USER_S = 40 * 86_400.0


class Forgotten:
    """The search for them. `age_s` is how old they are."""

    def __init__(self, redis: ArqRedis, settings: Settings, storage: Callable[[], Storage]) -> None:
        self._redis, self._key, self._storage = redis, redis.key, storage
        self._installation = _installation(settings)
        self.age_s = 3600 + max(
            settings.retention_s, settings.stored_retention_s, settings.session_retention_s, GRACE_MS / 1000
        )

    async def search(self) -> None:
        """For the reaper, once a day: what is stored and was forgotten by a Redis that lost its keys is to be removed. It is
        older than anything that could name it: an hour more than the longest that a log or a session is kept.

        Nothing is where another installation stores as well: what this one does not know may be that one's.
        """
        if not await self._redis.set(self._key.blobs_searched, b"1", nx=True, px=_SEARCH_MS):
            return
        with suppress(FileStorageFailed):  # it is looked through tomorrow
            if not await self._is_alone():
                return
            for folder, unknown in ((FOLDER, self._unknown), (LOGS, self._unknown_logs)):
                async for names in self._storage().older(folder, self.age_s):
                    if forgotten := await unknown(names):
                        await self._redis.zadd(self._key.files_end, dict.fromkeys(forgotten, now_ms() - DUE_MS))
                        logger.warning("objects forgotten", folder=folder, count=len(forgotten))

    async def _is_alone(self) -> bool:
        """Whether no other installation has said within the last weeks that it stores here; this one says it."""
        mine = f"{_USERS}/{self._installation}"
        await self._storage().put(mine, b"")
        old = {name async for names in self._storage().older(_USERS, _FORGOTTEN_USER_S) for name in names}
        users = {name async for names in self._storage().older(_USERS, -60) for name in names}
        for name in old:
            await self._storage().delete(name)
        return users - old == {mine}

    async def _unknown(self, names: Sequence[str]) -> list[str]:
        """Those that are no tenant's copy, and that nothing else is about to remove."""
        found = [(name, match) for name in names if (match := _OBJECT.fullmatch(name))]
        async with self._redis.pipeline(transaction=False) as pipe:
            for name, match in found:
                pipe.hget(self._key.blob(match["tenant"], match["digest"]), COPY.decode())
                pipe.zscore(self._key.files_end, name)
            told = await pipe.execute()
        return [
            name
            for (name, match), copy, due in zip(found, told[::2], told[1::2], strict=True)
            if due is None and (copy is None or copy.decode().partition(":")[0] != match["copy"])
        ]

    async def _unknown_logs(self, names: Sequence[str]) -> list[str]:
        """The same of archived logs: what stays of one in Redis came with its place in the list of their objects."""
        found = [(name, parsed) for name in names if (parsed := Name.parse(name))]
        async with self._redis.pipeline(transaction=False) as pipe:
            for name, parsed in found:
                pipe.zscore(self._key.archived(self._key.cells.of(parsed.generation_id)), name)
                pipe.zscore(self._key.files_end, name)
            told = await pipe.execute()
        rows = zip(found, told[::2], told[1::2], strict=True)
        return [name for (name, _), here, due in rows if here is None and due is None]


def _installation(settings: Settings) -> str:
    """The same for all processes of an installation, also after its Redis has forgotten everything."""
    url = urlsplit(settings.redis_url.get_secret_value() if settings.redis_url else "")
    where = f"{url.scheme} {url.netloc.rpartition('@')[2]} {url.path} {settings.prefix}"
    return hashlib.sha256(where.encode()).hexdigest()[:32]
