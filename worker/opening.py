"""The beginning of an answer: its job is taken, and the first attempt claimed in its log, in one step.

Hidden here: the script for it. The lease decides, as it does for `JobQueue.take`; `StreamLog.claim` would follow it in a round
trip of its own, while somebody waits for the first word. Where the server is full, or runs no scripts, that is the way. What
was asked for and not answered is kept until the job runs: it is ours all the same if only the replies were lost.
"""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from shared.lib.clock import now_ms
from shared.log.appender import Appender
from shared.log.records import Attempt
from shared.log.streamlog import StreamLog
from shared.store.commands import pack
from shared.store.jobs import Lease
from shared.store.keys import Lane
from shared.store.lasting.outbox import Asked
from shared.store.queue import Taken
from shared.store.redis import ArqRedis, NoScriptError, OutOfMemoryError, TimeoutError
from shared.store.transaction import may_run_scripts, note_refused
from shared.store.turns import Waiting

_ANSWERS_S = 5.0
_MOST_UNANSWERED = 1000

_SCRIPT = b"""
local taken = redis.pcall('SET', ARGV[1], ARGV[2], 'NX', 'PX', ARGV[3])
if type(taken) == 'table' and taken.err then return taken end
if not taken and redis.call('GET', ARGV[1]) ~= ARGV[2] then return false end
local replies = {redis.call('GET', ARGV[4])}
if not replies[1] then return replies end
local at = 5
while ARGV[at] do
  local words = tonumber(ARGV[at])
  replies[#replies + 1] = redis.pcall(unpack(ARGV, at + 1, at + words))
  at = at + words + 1
end
return replies
"""
"""ARGV: the lease, its holder, its life in ms, the job, then each command as the number of its words and these. It returns the
job's payload and the replies, the payload alone where the job is unknown, and nothing where another worker has the lease. On a
full server the first command is refused, and nothing is done."""
_DIGEST = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()


class Opening(NamedTuple):
    """The first attempt of a generation, as it was asked for together with its job."""

    attempt: Attempt
    asked: Asked | None
    """The replies to `StreamLog.claiming`; None where they did not come."""


def new_attempt(worker_id: str, reason: str, number: int = 1) -> Attempt:
    token = secrets.token_hex(8)
    return {"worker": worker_id, "at_ms": now_ms(), "token": token, "reason": reason, "number": number}


class Openings:
    """`take` jobs, and `pop` the opening of each when it runs. One task takes."""

    def __init__(self, redis: ArqRedis, log: StreamLog, appender: Appender, *, worker_id: str) -> None:
        self._pool, self._key = redis.connection_pool, redis.key
        self._log, self._appender, self._worker_id = log, appender, worker_id
        self._open: dict[str, Opening] = {}

    def pop(self, job_id: str) -> Opening | None:
        return self._open.pop(job_id, None)

    async def take(self, wanted: Sequence[Waiting], lease: Lease) -> Taken | None:
        """Takes the leases of those that no worker has, and claims their logs. None where that cannot be so: `JobQueue.take`
        does what it does also for those that were taken here. Raises RedisError, OSError; it may be done then.
        """
        if any(job.lane is Lane.BATCH for job in wanted) or not may_run_scripts(self._pool):
            return None
        if self._key.cells.apart:  # the lease is not where the log is
            return None
        attempts = {job.id: new_attempt(self._worker_id, "queued") for job in wanted}
        if len(self._open) > _MOST_UNANSWERED:  # of jobs that others took
            self._open.clear()
        self._open.update((job_id, Opening(attempt, None)) for job_id, attempt in attempts.items())
        words = [self._words(job.id, lease, attempts[job.id]) for job in wanted]
        replies, server = await self._ask([pack(b"EVALSHA", _DIGEST, *one) for one in words])
        if any(isinstance(reply, NoScriptError) for reply in replies):
            replies, server = await self._ask([pack(b"EVAL", _SCRIPT, *one) for one in words])
        if refusals := [reply for reply in replies if isinstance(reply, Exception)]:
            if not any(isinstance(reply, OutOfMemoryError) for reply in refusals):
                note_refused(self._pool)
            return None
        mine = [(job, reply[0]) for job, reply in zip(wanted, replies, strict=True) if reply]
        for job, reply in zip(wanted, replies, strict=True):
            if reply and reply[0] is not None:
                self._open[job.id] = Opening(attempts[job.id], (reply[1:], server))
            else:
                del self._open[job.id]
        return Taken.of(mine, begun=False)

    def _words(self, job_id: str, lease: Lease, attempt: Attempt) -> list[bytes]:
        """What the script is told."""
        told = [b"0", self._key.lease(job_id).encode(), lease.holder.encode(), b"%d" % lease.ms]
        told.append(self._key.job(job_id).encode())
        for words in self._log.claiming(job_id, 1, attempt):
            told += (b"%d" % len(words), *words)
        return told

    async def _ask(self, packed: Sequence[bytes]) -> Asked:
        """Where the appends go: what knows which server it is, and makes one write of what is sent at once."""
        try:
            async with asyncio.timeout(_ANSWERS_S):
                return await self._appender.ask(b"".join(packed), len(packed))
        except builtins.TimeoutError:
            raise TimeoutError("The server did not answer in time.") from None
