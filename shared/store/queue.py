"""The queue of jobs: what waits, what runs, and who runs it. A job is a generation or a batch; its id is theirs.

Hidden here: of each lane, what waits and what runs are two sorted sets, so that a look for work reads no more than there
are places for, however much runs. A job is in one of them, and has a payload, from its put to its end. Who runs it holds
its lease, a key with an expiry, which alone decides; the scores of what runs only say where to look for leases that may
have lapsed. Whatever is done twice does no harm:

| | waiting | running | lease | payload |
| --- | --- | --- | --- | --- |
| `put` | added, if not there | | | set, if not there |
| `take` | | | set, if there is none | read |
| `move` | removed | added | | |
| `renew` | removed | added | prolonged | |
| `hand_back` | added | removed | removed | |
| `end` | removed | removed | removed | removed |

A job may be put while it runs, since `put` cannot know that in one round trip: then it is in both sets, a worker that comes
for it does not get its lease, and the one that runs it strikes it off where it waits. Methods raise RedisError and OSError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from shared.errors import Fenced
from shared.lib.clock import now_ms
from shared.store.commands import exchange_all, pack, watch
from shared.store.confirm import INFO, identity
from shared.store.jobs import Called, pack_job, unpack_job
from shared.store.keys import Lane
from shared.store.redis import ArqRedis, OutOfMemoryError, ResponseError
from shared.store.transaction import commit, transact

_LINE = "line:"
"""Before the id on the doorbell: a worker starts it only in the places that lines may have."""
_BATCH = "batch_"
_KNOWN_AT_ONCE = 1000
OVERDUE_AT_ONCE = 200
"""How many leases of others a worker looks at in one look."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What a worker takes and renews: its name, for how long, and when that ends by Redis's clock."""

    holder: str
    ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class Job:
    """One that was taken: its lease is the taker's."""

    id: str
    lane: Lane
    payload: bytes
    begun: bool
    """Whether another worker had it before."""

    def called(self) -> Called | None:
        """None for a payload that is none of ours."""
        return unpack_job(self.payload)


class Taken(NamedTuple):
    """What came of the wish to take some jobs."""

    jobs: list[Job]
    unknown: list[tuple[str, Lane]]
    """Those that have ended, or never were in this queue."""


Clock = tuple[int, int]
"""Redis's TIME: seconds and microseconds."""


class Seen(NamedTuple):
    """A look at what waits, at what may be lost, and at the server that says so."""

    waiting: dict[Lane, list[str]]
    overdue: dict[Lane, list[str]]
    clock: Clock
    server: str | None
    """Its identity: see confirm.py."""


def lane_of(job_id: str) -> Lane:
    """The lane of what was rung for without a word about it."""
    return Lane.BATCH if job_id.startswith(_BATCH) else Lane.GENERATION


def heard(payload: str) -> tuple[str, Lane]:
    """The id that a message of the doorbell is about, and its lane."""
    job_id = payload.removeprefix(_LINE)
    return job_id, Lane.LINE if job_id != payload else lane_of(job_id)


class JobQueue:
    """All jobs of one installation. It keeps no state: one is made wherever there is a client."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis, self._key = redis, redis.key

    # ---- who has work

    async def put(self, job_id: str, lane: Lane, *, expires_s: float) -> None:
        """Enqueues a job and wakes the workers, once however often it is called.

        An id is never two jobs, so there is nothing to watch.
        """
        now = now_ms()
        function = "batch" if lane is Lane.BATCH else "generate"
        payload = pack_job(function, job_id, now)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._key.job(job_id), payload, px=int(expires_s * 1000), nx=True)
            pipe.zadd(self._key.waiting(lane), {job_id: now}, nx=True)
            self._ring(pipe, job_id, lane)
            await pipe.execute()

    async def withdraw(self, job_id: str) -> None:
        """There is nothing to be done any more: takes it away where it waits, and tells the worker that runs it."""
        async with self._redis.pipeline(transaction=False) as pipe:  # also on a server that is full
            pipe.delete(self._key.job(job_id))
            for lane in Lane:
                pipe.zrem(self._key.waiting(lane), job_id)
            pipe.publish(self._key.doorbell, job_id)
            await pipe.execute()

    async def known(self, job_ids: Sequence[str]) -> set[str]:
        """Which of these wait or run."""
        names = [*map(self._key.waiting, Lane), *map(self._key.running, Lane)]
        if self._key.old:
            names.append(self._key.old.queue)
        found: set[str] = set()
        for start in range(0, len(job_ids), _KNOWN_AT_ONCE):
            page = job_ids[start : start + _KNOWN_AT_ONCE]
            async with self._redis.pipeline(transaction=False) as pipe:  # also on a server that is full
                for name in names:
                    pipe.zmscore(name, list(page))
                for scores in await pipe.execute():
                    found.update(job_id for job_id, score in zip(page, scores, strict=True) if score is not None)
        return found

    # ---- who works

    async def look(self, worker_id: str, beat_ms: int, count: Mapping[Lane, int], now_ms: int, skip: int) -> Seen:
        """The first jobs that wait, of each lane as many as `count` says and one that tells of more; and a page, after `skip`,
        of those that run and whose leases were to end by now, the longest ago first.

        In one round trip, over one connection. Prolongs the worker's heartbeat by `beat_ms`: a server that takes no writes
        raises its error here.
        """
        commands = [pack(b"PEXPIRE", self._key.worker(worker_id).encode(), b"%d" % beat_ms), pack(b"TIME")]
        commands += [
            pack(b"ZRANGE", self._key.waiting(lane).encode(), b"0", b"%d" % last) for lane, last in count.items()
        ]
        until = b"%d" % now_ms, b"LIMIT", b"%d" % skip, b"%d" % OVERDUE_AT_ONCE
        commands += [pack(b"ZRANGEBYSCORE", self._key.running(lane).encode(), b"-inf", *until) for lane in count]
        replies = await exchange_all(self._redis, [*commands, *INFO])
        for reply in replies[: len(commands)]:  # INFO may be refused
            if isinstance(reply, ResponseError):
                raise reply
        _, (seconds, microseconds), *pages = replies[: len(commands)]
        ids = [[member.decode() for member in page] for page in pages]
        return Seen(
            dict(zip(count, ids, strict=False)),
            dict(zip(count, ids[len(count) :], strict=True)),
            (int(seconds), int(microseconds)),
            identity(replies[len(commands) :]),
        )

    async def holders(self, job_ids: Sequence[str]) -> tuple[list[str | None], Clock]:
        """Who has the lease of each, and then Redis's TIME: had its clock been set on in between, leases would be gone."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.get(self._key.lease(job_id))
            pipe.time()
            *found, clock = await pipe.execute()
        return [raw.decode() if raw else None for raw in found], clock

    async def begun(self, lane: Lane, job_ids: Sequence[str]) -> set[str]:
        """Which of these run, whatever they do besides."""
        if not job_ids:
            return set()
        scores = await self._redis.zmscore(self._key.running(lane), list(job_ids))
        return {job_id for job_id, score in zip(job_ids, scores, strict=True) if score is not None}

    async def take(self, wanted: Sequence[tuple[str, Lane]], lease: Lease, *, begun: bool) -> Taken:
        """Takes the leases of those that no worker has, in one round trip; `move` is to follow, and needs no waiting for.

        A lease names its holder: taking one whose reply was lost is taking it again, not a refusal. `begun` says that
        a worker had them before. On a full server those and batches are taken all the same, because they can be ended
        there; raises OutOfMemoryError if there is none of them.
        """
        try:
            replies = await self._offer(wanted, lease, together=False).execute()
        except OutOfMemoryError:
            wanted = [job for job in wanted if begun or job[1] is Lane.BATCH]
            if not wanted:
                raise
            replies = await commit(self._offer(wanted, lease, together=True))
        answers = zip(replies[1::3], replies[2::3], strict=True)
        mine = [
            (job_id, lane, payload)
            for (job_id, lane), (holder, payload) in zip(wanted, answers, strict=True)
            if holder == lease.holder.encode()
        ]
        return Taken(
            [Job(job_id, lane, payload, begun) for job_id, lane, payload in mine if payload is not None],
            [(job_id, lane) for job_id, lane, payload in mine if payload is None],
        )

    def _offer(self, wanted: Sequence[tuple[str, Lane]], lease: Lease, *, together: bool) -> Any:
        pipe = self._redis.pipeline(transaction=together)
        for job_id, _ in wanted:
            pipe.set(self._key.lease(job_id), lease.holder, px=lease.ms, nx=True)
            pipe.get(self._key.lease(job_id))
            pipe.get(self._key.job(job_id))
        return pipe

    async def move(self, taken: Taken, lease: Lease, *, listed: bool) -> None:
        """Puts what was taken where the rest runs. What is unknown is let go, and struck off if it was `listed`."""
        async with self._redis.pipeline(transaction=True) as pipe:
            for job in taken.jobs:
                pipe.zrem(self._key.waiting(job.lane), job.id)
                pipe.zadd(self._key.running(job.lane), {job.id: lease.end_ms})
            for job_id, lane in taken.unknown:
                pipe.delete(self._key.lease(job_id))
                if listed:
                    pipe.zrem(self._key.waiting(lane), job_id)
                    pipe.zrem(self._key.running(lane), job_id)
            with suppress(OutOfMemoryError):  # the leases stand, and renewing them does the same again
                await commit(pipe)

    async def renew(self, jobs: Mapping[Lane, Sequence[str]], lease: Lease) -> list[tuple[str, Lane]]:
        """Prolongs the leases of those that run; returns those that have none any more.

        First what every full server takes, too: the lease of a stream that waits for room must not lapse.
        """
        held = [(job_id, lane) for lane, job_ids in jobs.items() for job_id in job_ids]
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id, _ in held:
                pipe.pexpire(self._key.lease(job_id), lease.ms)
            there = await pipe.execute()
            for lane, job_ids in jobs.items():
                if job_ids:
                    pipe.zrem(self._key.waiting(lane), *job_ids)
                    pipe.zadd(self._key.running(lane), dict.fromkeys(job_ids, lease.end_ms))
            with suppress(OutOfMemoryError):  # Redis 6.2: others look at the lease and see
                await commit(pipe)
        return [job for job, renewed in zip(held, there, strict=True) if not renewed]

    async def restore(self, jobs: Iterable[tuple[str, Lane]], lease: Lease) -> None:
        """Takes back the leases of jobs that run, which Redis has let go or forgotten, unless another worker has them."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id, _ in jobs:
                pipe.set(self._key.lease(job_id), lease.holder, px=lease.ms, nx=True)
            await commit(pipe)

    async def fence(self, pipe: Any, job_id: str, holder: str) -> None:
        """Begins a transaction in `pipe` that is done only while no other than `holder` has the job. Raises Fenced.

        A lease that is gone is no other's: its worker may be about to have it back.
        """
        lease = self._key.lease(job_id)
        (found,) = await watch(pipe, [lease], pack(b"GET", lease.encode()))
        if found not in (None, holder.encode()):
            raise Fenced(job_id)

    async def hand_back(self, job: Job, holder: str) -> None:
        """Puts it back where it stood before, for any worker to find at once; unless it is another worker's by now."""
        lease, called = self._key.lease(job.id), job.called()

        def give(pipe: Any, found: list[Any]) -> None:
            if found[0] in (None, holder.encode()):
                pipe.zadd(self._key.waiting(job.lane), {job.id: called.at_ms if called else now_ms()})
                pipe.zrem(self._key.running(job.lane), job.id)
                pipe.delete(lease)
                self._ring(pipe, job.id, job.lane)

        try:
            await transact(self._redis, [lease], [("GET", lease)], give)
        except OutOfMemoryError:  # Redis 6.2: it is found where it runs, when its lease was to end
            await self._redis.delete(lease)

    async def end(self, job: Job) -> None:
        """It is done. Not one transaction, which a full Redis 7.0 would refuse: what is in no set cannot be taken."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zrem(self._key.waiting(job.lane), job.id)
            pipe.zrem(self._key.running(job.lane), job.id)
            pipe.delete(self._key.job(job.id), self._key.lease(job.id))
            await pipe.execute()

    def _ring(self, pipe: Any, job_id: str, lane: Lane) -> None:
        pipe.publish(self._key.doorbell, f"{_LINE if lane is Lane.LINE else ''}{job_id}")
