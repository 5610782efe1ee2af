"""What a process knows of the keys that are data: a copy, so that no request takes a round trip to be let in.

Hidden here: that the copy's version is compared some times a second, and all of it read again when that has changed; that the
last use of keys is written once a minute; and what holds while Redis is away. A key that is known goes on being good for
`STALE_S`. After that, and for a key that is not known while the copy is old, it cannot be told: the answer is then to come
again, never that the key is wrong, which clients take for final.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from shared.errors import Unavailable
from shared.features.access.keys import FORM, KeyRecord, KeyStore, digest_of, status_of
from shared.lib.clock import now_ms
from shared.lib.telemetry import get_logger
from shared.store.outage import log_redis_error
from shared.store.redis import RedisError

logger = get_logger(__name__)

LOOK_S = 0.3
"""Between two looks at the version: a change is to hold everywhere within a second."""
USED_S = 60.0
STALE_S = 60.0
_FRESH_S = 2.0
"""Without a look for so long, a key that is not known may be one that was just made."""


class KeyRing:
    """`find` a key; `run` keeps the copy new. `on_ended` is called with the id of each key of which a secret has ceased to open
    anything: it was revoked, it or its key has expired, or another one has replaced it."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._version: bytes | None = None
        self._by_digest: dict[bytes, tuple[KeyRecord, int | None]] = {}
        self._limits: Mapping[str, Mapping[str, int]] = {}
        self._records: Mapping[str, KeyRecord] = {}
        self._looked_at = -STALE_S
        self._looking = asyncio.Lock()
        """One look at a time: what an earlier one was told must not come in the place of what a later one was."""
        self._used: dict[str, int] = {}
        self._noted_at: dict[str, float] = {}
        self._alive: set[tuple[str, str]] = set()
        """Keys and their secrets that open something."""
        self._next_end = math.inf
        """When the first of them expires; Unix seconds."""
        self.on_ended: Callable[[str], Any] = lambda key_id: None

    def find(self, key: str) -> KeyRecord | None:
        """The record of a key that is good; None for one that is not. Raises Unavailable where that cannot be told."""
        return self.find_digest(digest_of(key)) if key.startswith(FORM) else None

    def find_digest(self, digest: bytes) -> KeyRecord | None:
        """The same by the digest of a secret."""
        known, age_s = self._by_digest.get(digest), time.monotonic() - self._looked_at
        if age_s > (STALE_S if known else _FRESH_S):
            raise Unavailable(
                "The broker's storage is away, and with it the keys. Try again.", code="storage_unavailable"
            )
        if known is None or status_of(known[0]) != "active" or (known[1] and known[1] * 1000 <= now_ms()):
            return None
        return known[0]

    def has_ended(self, key_id: str | None) -> bool:
        """Whether a key has ceased to be one. Those of the environment are not known here, and never do."""
        record = self._records.get(key_id or "")
        return record is not None and status_of(record) != "active"

    def name_of(self, key_id: str | None) -> str:
        """What its maker called it; empty for those of the environment."""
        record = self._records.get(key_id or "")
        return record["name"] if record else ""

    def record(self, key_id: str | None) -> KeyRecord | None:
        """What a key is now, good or not; None for those of the environment, which never change."""
        return self._records.get(key_id or "")

    @property
    def tenants(self) -> set[str]:
        """Those that have a key here, or had one."""
        return {record["tenant"] for record in self._records.values()}

    def limits(self) -> Mapping[str, Mapping[str, int]]:
        """What was set for tenants, or for `*`, while the server runs: the same object until any of it is changed."""
        return self._limits

    def note_used(self, key_id: str) -> None:
        """Written within a minute."""
        self._used[key_id] = now_ms() // 1000

    async def look(self) -> None:
        """Raises RedisError, OSError."""
        async with self._looking:
            if found := await self._store.changed(self._version):
                self._version, self._limits = found.version, found.limits
                self._take(found.records)
            if found or now_ms() >= self._next_end * 1000:
                self._note_ended()
            self._looked_at = time.monotonic()

    async def learn(self) -> None:
        """Looks now, after a change that this process made. Where Redis has just gone, the next look finds it."""
        with suppress(RedisError, OSError):
            await self.look()

    async def run(self) -> None:
        """For ever, also while Redis is away."""
        while True:
            try:
                await self.look()
                await self._write_used()
            except (RedisError, OSError) as error:
                log_redis_error("keys", error)
            await asyncio.sleep(LOOK_S)

    def _take(self, records: Iterable[KeyRecord]) -> None:
        self._records = {record["id"]: record for record in records}
        self._by_digest = {
            bytes.fromhex(one["sha256"]): (record, one.get("expires_at"))
            for record in self._records.values()
            for one in record["secrets"]
        }

    def _note_ended(self) -> None:
        now, alive, ends = now_ms(), set(), [math.inf]
        for record in self._records.values():
            for secret in record["secrets"] if status_of(record) == "active" else ():
                until = min(record["expires_at"] or math.inf, secret.get("expires_at") or math.inf)
                if until * 1000 > now:
                    alive.add((record["id"], secret["sha256"]))
                    ends.append(until)
        ended, self._alive, self._next_end = {key_id for key_id, _ in self._alive - alive}, alive, min(ends)
        for key_id in sorted(ended):
            logger.info("key ended", key_id=key_id)
            self.on_ended(key_id)

    async def _write_used(self) -> None:
        now = time.monotonic()
        due = {key_id: at for key_id, at in self._used.items() if now - self._noted_at.get(key_id, -USED_S) >= USED_S}
        if due:
            await self._store.note_used(due)
            for key_id in due:
                self._noted_at[key_id] = now
                if self._used[key_id] == due[key_id]:
                    del self._used[key_id]
