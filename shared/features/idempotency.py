"""Idempotency-Key: what is made with one is made once, however often and wherever it is asked for.

Hidden here: that the key is settled before anything is made, so that two requests at once agree on one id; that a request that
differs under the same key is refused; and that a claim whose maker died is taken up by the next one, under the same id.
"""

from __future__ import annotations

import hashlib

from shared.errors import KeyReused
from shared.lib import json
from shared.store.redis import ArqRedis


def key_digest(key: str, kind: str = "") -> str:
    """What stands for a client's key: the same key means another thing for each `kind` of thing that is made."""
    return hashlib.sha256(f"{kind}\n{key}".encode() if kind else key.encode()).hexdigest()


def fingerprint(request: object) -> str:
    """What two requests have in common that are the same: fields in any order."""
    return hashlib.sha256(json.dumps_sorted(request)).hexdigest()


class Idempotency:
    """Claims in Redis. Raises RedisError, OSError."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis, self._key = redis, redis.key

    async def claim(self, tenant: str, digest: str, new_id: str, request: str, life_ms: int) -> str:
        """The id that the key stands for: `new_id`, or that of whoever named the key first. `request` is a fingerprint.

        Raises KeyReused for another request.
        """
        mine, name = {"id": new_id, "body": request}, self._key.idempotency(tenant, digest)
        first = None
        while first is None:  # taken, and gone when we look: it was just freed
            if await self._redis.set(name, json.dumps(mine), nx=True, px=life_ms):
                first = mine
            elif taken := await self._redis.get(name):
                first = json.loads(taken)
        if first["body"] != request:
            raise KeyReused("This Idempotency-Key was used for another request. Take a new one.")
        return str(first["id"])

    async def replace(self, tenant: str, digest: str, new_id: str, request: str, life_ms: int) -> None:
        """The key stands for another thing from now on: what it stood for is gone, or never came to be."""
        mine = {"id": new_id, "body": request}
        await self._redis.set(self._key.idempotency(tenant, digest), json.dumps(mine), px=life_ms)

    async def free(self, tenant: str, digest: str) -> None:
        await self._redis.delete(self._key.idempotency(tenant, digest))
