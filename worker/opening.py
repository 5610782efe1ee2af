"""The beginning of an answer: its job is taken, and the first attempt claimed in its log, in one step.

Hidden here: the script for it. The lease decides, as it does for `JobQueue.take`; `StreamLog.claim` would follow it in a round
trip of its own, while somebody waits for the first word. Where the server is full, or runs no scripts, that is the way. What
was asked for and not answered is kept until the job runs: it is ours all the same if only the replies were lost.

And that nobody waits until the queue knows all of it: what is taken has its lease, which alone decides, and is listed among
what runs; a worker that is lost before it said more leaves a lease that lapses, and a job that waits as well.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from hiredis import pack_command

from shared.lib import json
from shared.lib.clock import now_ms
from shared.log.appender import Appender
from shared.log.records import Attempt
from shared.log.streamlog import StreamLog
from shared.store.commands import Words
from shared.store.jobs import Lease
from shared.store.keys import Lane
from shared.store.lasting.outbox import Asked
from shared.store.queue import JobQueue, Taken
from shared.store.redis import ArqRedis, NoScriptError, OutOfMemoryError, TimeoutError
from shared.store.transaction import may_run_scripts, note_refused
from shared.store.turns import Waiting
from worker.places import Costs

_ANSWERS_S = 5.0
MOVED_S = 0.02
"""When it is said that jobs run: the first token of most has been asked for by then."""
_MOST_UNANSWERED = 1000

_SCRIPT = b"""
if redis.call('ZSCORE', ARGV[5], ARGV[6]) and redis.call('GET', ARGV[1]) ~= ARGV[2] then return false end
local taken = redis.pcall('SET', ARGV[1], ARGV[2], 'NX', 'PX', ARGV[3])
if type(taken) == 'table' and taken.err then return taken end
if not taken and redis.call('GET', ARGV[1]) ~= ARGV[2] then return false end
local replies = {redis.call('GET', ARGV[4])}
if not replies[1] then return replies end
redis.pcall('ZADD', ARGV[5], ARGV[7], ARGV[6])
local at = 8
while ARGV[at] do
  local words = tonumber(ARGV[at])
  replies[#replies + 1] = redis.pcall(unpack(ARGV, at + 1, at + words))
  at = at + words + 1
end
return replies
"""
"""ARGV: the lease, its holder, its life in ms, the job, the set of those that run, the job's id, when its lease is to end, then
each command as the number of its words and these. It returns the job's payload and the replies, the payload alone where the job
is unknown, and nothing where another worker has the lease, or runs the job by that set: it may be about to have its lease back.
On a full server the first command that writes is refused, and nothing is done."""
_DIGEST = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()


class Opening(NamedTuple):
    """The first attempt of a generation, as it was asked for together with its job."""

    attempt: Attempt
    data: bytes
    """The same as its entry has it."""
    asked: Asked | None
    """The replies to `StreamLog.claiming`; None where they did not come."""


def new_attempt(worker_id: str, reason: str, number: int = 1) -> Attempt:
    token = os.urandom(8).hex()
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
        if self._key.cells.apart or not may_run_scripts(self._pool):  # apart, the lease is not where the log is
            return None
        if len(self._open) > _MOST_UNANSWERED:  # of jobs that others took
            self._open.clear()
        asked = []
        for job in wanted:
            if job.lane is Lane.BATCH:
                return None
            opening = self._open.get(job.id) or self._opening()  # the one before, if it was not answered
            asked.append((job, opening, self._words(job, lease, opening.data)))
        before = self._open.keys() & {job.id for job in wanted}
        for job, opening, _ in asked:
            self._open[job.id] = opening
        replies, server = await self._ask(b"EVALSHA", _DIGEST, asked)
        for reply in replies:
            if isinstance(reply, NoScriptError):
                replies, server = await self._ask(b"EVAL", _SCRIPT, asked)
                break
        full = [job for (job, _, _), reply in zip(asked, replies, strict=True) if isinstance(reply, OutOfMemoryError)]
        for job in full:
            if job.id not in before:  # nothing was done: what is taken all the same is to be ended
                del self._open[job.id]
        if full:
            return None
        if any(isinstance(reply, Exception) for reply in replies):
            note_refused(self._pool)
            return None
        mine = []
        for (job, (attempt, data, _), _), reply in zip(asked, replies, strict=True):
            if reply and reply[0] is not None:
                self._open[job.id] = Opening(attempt, data, (reply[1:], server))
            elif job.id not in before:
                del self._open[job.id]
            if reply:
                mine.append((job, reply[0]))
        return Taken.of(mine, begun=False)

    async def begun(self, wanted: Sequence[Waiting]) -> list[Waiting]:
        """Those of the jobs whose logs have an attempt: their worker was lost before the queue knew that they run."""
        ends = await self._log.ends([job.id for job in wanted if job.lane is not Lane.BATCH])
        return [job for job in wanted if (end := ends.get(job.id)) and end.epoch]

    def _opening(self) -> Opening:
        attempt = new_attempt(self._worker_id, "queued")
        return Opening(attempt, json.dumps(attempt), None)

    def _words(self, job: Waiting, lease: Lease, data: bytes) -> list[Any]:
        """What the script is told."""
        told: list[Any] = [0, self._key.lease(job.id), lease.holder, lease.ms, self._key.job(job.id)]
        told += (self._key.running(job.lane), job.id, lease.end_ms)
        for words in self._log.claiming(job.id, 1, data):
            told += (len(words), *words)
        return told

    async def _ask(self, command: bytes, script: bytes, asked: Sequence[tuple[Waiting, Opening, list[Any]]]) -> Asked:
        """Where the appends go: what knows which server it is, and makes one write of what is sent at once."""
        packed = []
        for _, _, words in asked:
            packed.append(pack_command((command, script, *words)))
        return await answered(self._appender, b"".join(packed), len(asked))


async def answered(appender: Appender, packed: bytes, replies: int) -> Asked:
    """`Appender.ask` within 5 s, for a third of the cost of `asyncio.timeout`. Raises TimeoutError, too."""
    answer = appender.ask(packed, replies)
    limit = asyncio.get_running_loop().call_later(_ANSWERS_S, _give_up, answer)
    try:
        return await answer
    finally:
        limit.cancel()


def _give_up(answer: asyncio.Future[Asked]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError("The server did not answer in time."))


class Moves:
    """Where the queue has what was taken: it is told for all of a moment at once. `say` it before anything else is said of a
    job, or its costs are looked at."""

    def __init__(self, queue: JobQueue, appender: Appender, costs: Costs) -> None:
        self._queue, self._appender, self._costs = queue, appender, costs
        self._taken: list[tuple[Taken, Lease, float, bool]] = []

    def note(self, taken: Taken, lease: Lease, now: float, *, listed: bool) -> None:
        """What was taken `now`, by the loop's clock; `listed` is as for `JobQueue.strike_off`."""
        if not self._taken:
            asyncio.get_running_loop().call_later(MOVED_S, self.say)
        self._taken.append((taken, lease, now, listed))

    def say(self) -> None:
        noted, self._taken = self._taken, []
        moves: list[Words] = []
        for taken, lease, now, _ in noted:
            moves += self._queue.move(taken, lease, self._costs.begin(taken.jobs, now))
        self._appender.tell(*moves)
        for taken, _, _, listed in noted:
            if taken.unknown:
                for words in self._queue.strike_off(taken.unknown, listed=listed):
                    self._appender.tell(words)
