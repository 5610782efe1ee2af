"""Requests that clients make again by themselves: OpenAI's client libraries after a time-out, and without a key.

Hidden here: how the answer is found that such a request is about. Every request leaves the digest of who asked for what in the
transaction that creates its log, which costs no round trip; a request that says it is a repeat (`x-stainless-retry-count`)
joins the newest that has the same, if that still runs or has ended just now. A request that does not say so never looks: two
that are equal by chance stay two. So do two of which one was refused: what its client then repeats has no answer yet, and is
not about the other's.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Container
from operator import attrgetter
from typing import Any

from shared.chat.request import ChatRequest
from shared.config.settings import Settings
from shared.errors import StreamspoolError
from shared.generations.caller import Caller
from shared.lib import json
from shared.lib.clock import now_ms
from shared.log.entry import Status
from shared.log.records import Summary
from shared.log.streamlog import StreamLog
from shared.store.redis import ArqRedis

_ENDED_MS = 180_000
"""Longer than a client waits before it asks again: OpenAI's 8 s, or what `Retry-After` says, up to 120 s (openai-python)."""
_REPEATED = frozenset({408, 409, 429})
"""What OpenAI's clients ask for again by themselves, but for what says `x-should-retry: false`."""
_LONGEST_WAIT_S, _SHORT_WAIT_S = 120.0, 10.0
"""How long they wait before, if they are told, and without that."""
_NOTED_A_SECOND = 100
_options = attrgetter(
    "on_interruption",
    "on_disconnect",
    "session_id",
    "session_policy",
    "session_trim",
    "max_tokens_per_s",
    "metadata",
)
"""What may come in headers, beside the body."""


class Repeats:
    """Raises RedisError, OSError."""

    def __init__(self, redis: ArqRedis, log: StreamLog, settings: Settings) -> None:
        self._redis, self._log, self._key = redis, log, redis.key
        self._life_ms = int(settings.generation_s * 1000) + _ENDED_MS
        self._noted_at, self._noted = 0.0, 0

    def name(self, body: bytes, request: ChatRequest, caller: Caller, turn: str | None = None) -> str:
        """The key of what this caller asks for; where a `turn` tells it from others, that stands for the body."""
        digest = hashlib.sha256(json.dumps_sorted([caller.key_id, _options(request), turn]))
        digest.update(b"" if turn else body)
        return self._key.asked(caller.tenant, digest.hexdigest())

    def note(self, pipe: Any, name: str, generation_id: str) -> None:
        """Adds a command to the transaction that creates the generation."""
        pipe.set(name, generation_id, px=self._life_ms)

    async def refused(self, name: str, why: BaseException) -> None:
        """Takes note of a request that nothing was made of, where its client asks again by itself, for as long as that may
        take. Not where Redis is away, which would be waited for twice; nor of many a second: refusals are to cost little."""
        if not isinstance(why, StreamspoolError) or why.status not in _REPEATED or why.retryable is False:
            return
        now = time.monotonic()
        if now - self._noted_at >= 1:
            self._noted_at, self._noted = now, 0
        self._noted += 1
        if self._noted > _NOTED_A_SECOND:
            return
        life_s = min(why.retry_after_s or 0, _LONGEST_WAIT_S) + _SHORT_WAIT_S
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.incrby(self._key.refused(name), 1)
            pipe.pexpire(self._key.refused(name), int(life_s * 1000))
            await pipe.execute()

    async def find(self, name: str, *, unless: Container[str]) -> Summary | None:
        """What was asked for before, if it is an answer that runs, or has just ended; None for as many as were refused, and
        `unless` it is one of these."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.get(name)
            pipe.get(self._key.refused(name))
            found, refused = await pipe.execute()
        if int(refused or 0) > 0:
            if await self._redis.decrby(self._key.refused(name), 1) >= 0:
                return None  # also where there is none yet: its next repeat is about what is made now
            await self._redis.delete(self._key.refused(name))  # it has just expired, or others took the last
        if found is None:
            return None
        (summary,) = await self._log.describe([found.decode()])
        if summary is None or summary.header["id"] in unless:
            return None
        if summary.outcome is None:
            return summary
        whole = summary.status in (Status.COMPLETED, Status.INCOMPLETE)
        return summary if whole and now_ms() - summary.outcome["ended_at_ms"] <= _ENDED_MS else None
