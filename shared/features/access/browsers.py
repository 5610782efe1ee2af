"""Who is signed in with a browser: a key that was sent once stands behind a cookie from then on.

Hidden here: that of a session's id only the digest is kept, so that what is in Redis signs nobody in; that a session ends by
itself when nothing is asked for a while; and that it names the key's own secret by its digest, so that it ends with that: when
the key is revoked or has expired, or when that secret was replaced. A key of the environment is named by its id.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple, TypedDict

from shared.errors import RateLimited
from shared.features.tokens import digest_of, new_token
from shared.lib import json
from shared.store.availability import translate_errors
from shared.store.redis import ArqRedis

FAILURES = 20
"""So many wrong keys a minute from one address."""
_WINDOW_S = 60
_MOST_CHARACTERS = 100


class SignedIn(TypedDict):
    """The key that is behind a session."""

    key_id: str
    sha256: str | None
    """Of its secret; None: it is a key of the environment."""


class Found(NamedTuple):
    """`name` is where the session stands in Redis."""

    key: SignedIn
    name: str


class Browsers:
    """Open, find, end. Raises Unavailable."""

    def __init__(self, redis: ArqRedis, *, idle_s: int) -> None:
        self._redis, self._key, self.idle_s = redis, redis.key, idle_s

    async def open(self, key: SignedIn) -> str:
        """The id of a new session, which is told once."""
        text = new_token("cs_")
        with translate_errors():
            await self._redis.set(self._key.console(digest_of(text)), json.dumps(key), ex=self.idle_s)
        return text

    async def find(self, text: str) -> Found | None:
        """The session with this id, which is used by that; None if there is none, or not any more."""
        if not 0 < len(text) <= _MOST_CHARACTERS:
            return None
        name = self._key.console(digest_of(text))
        with translate_errors():
            raw = await self._redis.getex(name, ex=self.idle_s)
        return Found(json.loads(raw), name) if raw else None

    async def end(self, text: str) -> None:
        """Once more is harmless."""
        with translate_errors():
            await self._redis.delete(self._key.console(digest_of(text)))

    # ---- wrong keys

    async def check_failures(self, address: str) -> None:
        """Raises RateLimited after too many wrong keys from an address."""
        with translate_errors():
            failed = int(await self._redis.get(self._failed(address)) or 0)
        if failed >= FAILURES:
            raise RateLimited("Too many wrong keys from this address. Try again in a minute.", retry_after_s=_WINDOW_S)

    async def note_failure(self, address: str) -> None:
        name = self._failed(address)
        with translate_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(name, 0, ex=_WINDOW_S, nx=True)
                pipe.incr(name)
                await pipe.execute()

    def _failed(self, address: str) -> str:
        return self._key.console_failed(hashlib.sha256(address.encode()).hexdigest()[:16])
