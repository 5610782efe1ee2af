"""What one installation has once: a secret that it made itself.

Hidden here: that whichever process asks first makes it, and that it is kept where everything else is. Who can read Redis can
read all answers anyway, so the secret is no worse off there; with Redis it is lost, and then another one is made.
"""

from __future__ import annotations

import secrets

from shared.store.redis import ArqRedis


class Installation:
    """Of one Redis, or of one prefix in it."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis, self._name = redis, redis.key.secret
        self._secret: bytes | None = None

    async def secret(self) -> bytes:
        """64 random bytes, the same in every process. Raises RedisError, OSError."""
        if self._secret is None:
            await self._redis.set(self._name, secrets.token_bytes(64), nx=True)
            self._secret = await self._redis.get(self._name)
        assert self._secret is not None
        return self._secret
