"""Tokens that let a viewer watch one stream for a while, where a key cannot be sent: an EventSource has nothing but its URL.

Hidden here: that a token is known only by its digest, so that what is in Redis opens nothing, and that it ends by itself. It is
looked at when a connection begins: a stream that is being watched goes on when its token has ended.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import NamedTuple

from shared.lib import json
from shared.lib.clock import now_ms
from shared.store.availability import translate_errors
from shared.store.redis import ArqRedis

LONGEST_S = 3600
DEFAULT_S = 600
_MOST_CHARACTERS = 100


class Token(NamedTuple):
    """`text` is told once, and kept nowhere."""

    text: str
    expires_at: int
    """Unix seconds."""


class Opened(NamedTuple):
    """Whose stream a token opens, and with which key it was asked for."""

    tenant: str
    key_id: str | None


class Tokens:
    """Make and look up. Raises Unavailable."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis, self._key = redis, redis.key

    async def make(self, tenant: str, generation_id: str, life_s: int, key_id: str | None = None) -> Token:
        text = f"st_{secrets.token_urlsafe(32)}"
        with translate_errors():
            opens = json.dumps({"tenant": tenant, "id": generation_id, "key_id": key_id})
            await self._redis.set(self._key.token(_digest(text)), opens, ex=life_s)
        return Token(text, now_ms() // 1000 + life_s)

    async def opened(self, text: str, generation_id: str) -> Opened | None:
        """Whose stream it opens; None if it does not open this one, or not any more."""
        if len(text) > _MOST_CHARACTERS:
            return None
        with translate_errors():
            raw = await self._redis.get(self._key.token(_digest(text)))
        opens = json.loads(raw) if raw else {}
        return Opened(str(opens["tenant"]), opens.get("key_id")) if opens.get("id") == generation_id else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
