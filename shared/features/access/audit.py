"""Who changed what of the keys, limits and shares, and when: a log that is only added to.

Hidden here: that an entry is written in the transaction that makes the change, so there is none without the other; and that
it is one stream, of which the oldest entries go once there are too many. No secret is in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict

from shared.errors import NotFound
from shared.lib import json
from shared.lib.clock import now_ms
from shared.lib.telemetry import current_request
from shared.log.decoding import by_name
from shared.store.availability import translate_errors
from shared.store.redis import ArqRedis

MOST = 100_000
"""Entries that are kept, some hundred more or fewer."""
_PAGE = 500
_ID = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)
_PARTS = 2**64
"""Each half of an entry's id is below it; what is not, or is older than any id (0-0), Redis refuses as no id at all."""
_FIELD = "e"


class Actor(NamedTuple):
    """Who makes a change: a key, without its secret."""

    key_id: str | None
    tenant: str


class Entry(TypedDict):
    """One change. `at_ms` is Unix time."""

    at_ms: int
    key_id: str | None
    """The key that made it."""
    actor_tenant: str
    request_id: str | None
    action: str
    """What was done to what: `key.created`, `limits.changed`."""
    subject: str
    """The id of the key, or the tenant, that was changed."""
    tenant: str
    """Whose that is."""
    details: dict[str, Any]
    """The fields that were told, as they are now."""


class Audit:
    """Add to it and read it. `page` raises Unavailable."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis, self._key = redis, redis.key

    def note(
        self, pipe: Any, by: Actor, action: str, subject: str, tenant: str, details: Mapping[str, Any] | None = None
    ) -> None:
        """Adds the entry to a transaction, a pipeline in MULTI."""
        entry: Entry = {
            "at_ms": now_ms(),
            "key_id": by.key_id,
            "actor_tenant": by.tenant,
            "request_id": current_request(),
            "action": action,
            "subject": subject,
            "tenant": tenant,
            "details": dict(details or {}),
        }
        pipe.xadd(self._key.audit, {_FIELD: json.dumps(entry)}, maxlen=MOST, approximate=True)

    async def page(
        self, count: int, after: str | None = None, wanted: Callable[[Entry], bool] = lambda entry: True
    ) -> list[tuple[str, Entry]]:
        """The newest `count` entries that are wanted, with their ids; those older than `after`. Raises NotFound for an id that
        is none."""
        if after is not None and not _is_id(after):
            raise NotFound("`after` must be the id of an entry of this list.", param="after")
        found: list[tuple[str, Entry]] = []
        end = f"({after}" if after else "+"
        with translate_errors():
            while len(found) < count:
                raw = await self._redis.xrevrange(self._key.audit, end, "-", count=_PAGE)
                entries = [
                    (entry_id.decode(), json.loads(by_name(fields)[_FIELD.encode()])) for entry_id, fields in raw
                ]
                found += [pair for pair in entries if wanted(pair[1])]
                if len(raw) < _PAGE:
                    break
                end = f"({entries[-1][0]}"
        return found[:count]


def _is_id(text: str) -> bool:
    found = _ID.fullmatch(text)
    return found is not None and 0 < max(map(int, found.groups())) < _PARTS
