"""Tokens that open one stream for a while, where a key cannot be sent: an EventSource has nothing but its URL.

Hidden here: that a token is known only by its digest, so that what is in Redis opens nothing, and that it ends by itself. A
viewer's own token is looked at when a connection begins: a stream that is being watched goes on when it has ended. That of a
share (`access/shares.py`) is looked at all the time.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any, Literal, NamedTuple, TypedDict

from shared.lib import json
from shared.lib.clock import now_ms
from shared.store.availability import translate_errors
from shared.store.redis import ArqRedis

LONGEST_S = 3600
DEFAULT_S = 600
_MOST_CHARACTERS = 100

Mode = Literal["view", "control"]
Part = Literal["answer", "prompt", "reasoning"]


class Share(TypedDict):
    """What a share lets see and do. Times are Unix seconds, `log_made_ms` is Unix ms."""

    id: str
    mode: Mode
    include: list[Part]
    created_at: int
    expires_at: int
    log_made_ms: int
    """When the log was created: one that has the same id later is another."""


class Token(NamedTuple):
    """`text` is told once, and kept nowhere."""

    text: str
    expires_at: int
    """Unix seconds."""


class Opened(NamedTuple):
    """Whose stream a token opens, which, and with which key it was asked for; `name` is where that stands in Redis."""

    tenant: str
    generation_id: str
    key_id: str | None
    share: Share | None
    name: str


class Tokens:
    """Make and look up. Raises Unavailable."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis, self._key = redis, redis.key

    async def make(self, tenant: str, generation_id: str, life_s: int, key_id: str | None = None) -> Token:
        text = new_token("st_")
        with translate_errors():
            opens = record(tenant, generation_id, key_id)
            await self._redis.set(self._key.token(digest_of(text)), opens, ex=life_s)
        return Token(text, now_ms() // 1000 + life_s)

    async def opened(self, text: str) -> Opened | None:
        """What it opens; None if that is nothing, or not any more."""
        if len(text) > _MOST_CHARACTERS:
            return None
        name = self._key.token(digest_of(text))
        with translate_errors():
            raw = await self._redis.get(name)
        if not raw:
            return None
        opens: dict[str, Any] = json.loads(raw)
        return Opened(opens["tenant"], opens["id"], opens.get("key_id"), opens.get("share"), name)


def new_token(form: str) -> str:
    """256 random bits."""
    return f"{form}{secrets.token_urlsafe(32)}"


def record(tenant: str, generation_id: str, key_id: str | None, share: Share | None = None) -> bytes:
    """What is kept of a token."""
    opens: dict[str, Any] = {"tenant": tenant, "id": generation_id, "key_id": key_id}
    return json.dumps(opens if share is None else {**opens, "share": share})


def digest_of(text: str) -> str:
    """By what a token is known."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
