"""The queue of jobs: what waits, what runs, and who runs it. A job is a generation or a batch; its id is theirs.

Hidden here: of each lane, what waits and what runs are sorted sets, so that a look for work reads no more than there are
places for, however much runs; what waits is in a set of its tenant, and turns.py says whose turn it is. A job is in one of
them, or both, and has a payload, from its put to its end. Who runs it holds its lease, a key with an expiry, which alone
decides; the scores of what runs only say where to look for leases that may have lapsed. Whatever is done twice does no harm:

| | waiting | running | lease | payload |
| --- | --- | --- | --- | --- |
| `put` | added, if not there | | | set, if not there |
| `take` | | added, by the script of worker/opening.py | set, if there is none | read |
| `move` | removed | added | | |
| `strike_off` | removed | removed | removed | |
| `renew` | removed | added | prolonged | |
| `hand_back` | added | removed | removed | |
| `end` | removed | removed | removed | removed |

What is added where it waits is added together with its tenant, so that no look misses it.

A job may be put while it runs, since `put` cannot know that in one round trip: then it is in both sets, a worker that comes
for it does not get its lease, and the one that runs it strikes it off where it waits. Methods raise RedisError and OSError;
`move`, `strike_off` and `end` only say which commands do it, for the worker's one connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self

from shared.errors import Fenced
from shared.lib.clock import now_ms
from shared.store.commands import Words, exchange_all, pack, watch
from shared.store.confirm import INFO, identity
from shared.store.jobs import UNKNOWN, Job, Lease, pack_job, queue, ringing, unpack_job
from shared.store.keys import Lane
from shared.store.redis import ArqRedis, NoPermissionError, OutOfMemoryError
from shared.store.transaction import commit, raise_first, transact
from shared.store.turns import CLOCK, Charges, Cost, Line, Waiting, advancing, charging, joining, let_go, settling

_KNOWN_AT_ONCE = 1000
_PAGES_OF_NOTHING = 20
"""How often a look goes on, where tenants seemed to have jobs waiting, and had none."""
_TENANTS_MORE = 20
"""So many tenants are looked at beyond those that would do if each had a job."""
OVERDUE_AT_ONCE = 200
"""How many leases of others a worker looks at in one look."""


class Taken(NamedTuple):
    """What came of the wish to take some jobs."""

    jobs: list[Job]
    unknown: list[Waiting]
    """Those that have ended, or never were in this queue."""
    turns: list[Waiting]
    """What was wished for of the first."""

    @classmethod
    def of(cls, mine: Sequence[tuple[Waiting, bytes | None]], *, begun: bool) -> Self:
        """Of jobs whose leases are the taker's, with their payloads."""
        taken = cls([], [], [])
        for job, payload in mine:
            if payload is None:
                taken.unknown.append(job)
                continue
            called = unpack_job(payload)
            tenant = job.tenant if job.tenant is not None else called.tenant if called else UNKNOWN
            taken.jobs.append(Job(job.id, job.lane, called, begun, tenant))
            taken.turns.append(job)
        return taken


Clock = tuple[int, int]
"""Redis's TIME: seconds and microseconds."""


class Seen(NamedTuple):
    """A look at what waits, at what may be lost, and at the server that says so."""

    waiting: dict[Lane, list[Waiting]]
    """In turn."""
    overdue: dict[Lane, list[str]]
    clock: Clock
    server: str | None
    """Its identity: see confirm.py."""


class JobQueue:
    """All jobs of one installation. It keeps no state: one is made wherever there is a client."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis, self._key = redis, redis.key
        self._given: dict[str, tuple[Job, float]] = {}
        """What this process has just handed back, and when: a renewal under way must not hide it from the others."""

    # ---- who has work

    async def put(
        self, job_id: str, lane: Lane, tenant: str, *, expires_s: float, also: Callable[[Any], None] | None = None
    ) -> None:
        """Enqueues a job and wakes the workers, once however often it is called.

        An id is never two jobs, so there is nothing to watch. `also` adds further commands to the transaction.
        """
        async with self._redis.pipeline(transaction=True) as pipe:
            self.put_with(pipe, job_id, lane, tenant, expires_s=expires_s)
            if also is not None:
                also(pipe)
            await pipe.execute()

    def put_with(self, pipe: Any, job_id: str, lane: Lane, tenant: str, *, expires_s: float) -> None:
        """The same, with what else `pipe` does in its transaction."""
        now = now_ms()
        payload = pack_job("batch" if lane is Lane.BATCH else "generate", job_id, now, tenant)
        put = b"SET", self._key.job(job_id), payload, b"PX", int(expires_s * 1000), b"NX"
        queue(pipe, put, *self._adding(job_id, lane, tenant, now, b"NX"))

    def withdraw_if_given_up(self, pipe: Any, job_id: str, lane: Lane, tenant: str) -> None:
        """What `pipe` puts is withdrawn right behind that, where its caller does not wait for it."""
        pipe.given_up += (lambda: self._withdrawing(job_id, [lane], tenant),)

    async def withdraw(self, job_id: str) -> None:
        """There is nothing to be done any more: takes it away where it waits, and tells the worker that runs it."""
        payload = await self._redis.get(self._key.job(job_id))
        called = unpack_job(payload) if payload else None
        async with self._redis.pipeline(transaction=False) as pipe:  # also on a server that is full
            queue(pipe, *self._withdrawing(job_id, Lane if called else (), called.tenant if called else UNKNOWN))
            await pipe.execute()

    def _withdrawing(self, job_id: str, lanes: Iterable[Lane], tenant: str) -> list[Words]:
        places = [(b"ZREM", self._key.waiting(lane, tenant), job_id) for lane in lanes]
        return [(b"DEL", self._key.job(job_id)), *places, (b"PUBLISH", self._key.doorbell, job_id)]

    async def known(self, job_ids: Sequence[str]) -> set[str]:
        """Which of these wait or run."""
        running = [*map(self._key.running, Lane)]
        found: set[str] = set()
        for start in range(0, len(job_ids), _KNOWN_AT_ONCE):
            page = job_ids[start : start + _KNOWN_AT_ONCE]
            found |= await self._members(dict.fromkeys(running, page))
            if self._key.old:
                try:
                    found |= await self._members({self._key.old.queue: page})
                except NoPermissionError:  # a user for our names alone
                    self._key.old = None
            if rest := [job_id for job_id in page if job_id not in found]:
                found |= await self._members(await self._places_to_wait(rest))
        return found

    async def _places_to_wait(self, job_ids: Sequence[str]) -> dict[str, list[str]]:
        """In which sets each would be, if it waits."""
        places: dict[str, list[str]] = {}
        payloads = await self._redis.mget([self._key.job(job_id) for job_id in job_ids])
        for job_id, payload in zip(job_ids, payloads, strict=True):
            if payload and (called := unpack_job(payload)):
                for lane in Lane:
                    places.setdefault(self._key.waiting(lane, called.tenant), []).append(job_id)
        return places

    async def _members(self, names: Mapping[str, Sequence[str]]) -> set[str]:
        """Which of the ids are in the sorted set that they are named for."""
        found: set[str] = set()
        if names:
            async with self._redis.pipeline(transaction=False) as pipe:  # also on a server that is full
                for name, ids in names.items():
                    pipe.zmscore(name, list(ids))
                for ids, scores in zip(names.values(), await pipe.execute(), strict=True):
                    found.update(one for one, score in zip(ids, scores, strict=True) if score is not None)
        return found

    # ---- who works

    async def look(
        self, worker_id: str, beat_ms: int, count: Mapping[Lane, int], now_ms: int, skip: int, cost: Cost
    ) -> Seen:
        """The jobs of each lane whose turn it is, as many as `count` says and one that tells of more; and a page, after `skip`,
        of those that run and whose leases were to end by now, the longest ago first.

        In one round trip, over one connection, and a second one for each lane where tenants seem to wait. Prolongs the
        worker's heartbeat by `beat_ms`: a server that takes no writes raises its error here.
        """
        commands = [pack(b"PEXPIRE", self._key.worker(worker_id).encode(), b"%d" % beat_ms), pack(b"TIME")]
        commands += [
            pack(b"ZRANGE", self._key.tenants(lane).encode(), b"0", b"%d" % (last + _TENANTS_MORE), b"WITHSCORES")
            for lane, last in count.items()
        ]
        until = b"%d" % now_ms, b"LIMIT", b"%d" % skip, b"%d" % OVERDUE_AT_ONCE
        commands += [pack(b"ZRANGEBYSCORE", self._key.running(lane).encode(), b"-inf", *until) for lane in count]
        replies = await exchange_all(self._redis, [*commands, *INFO])
        raise_first(replies[: len(commands)])  # INFO may be refused
        _, (seconds, microseconds), *pages = replies[: len(commands)]
        scores = {
            lane: {page[at].decode(): float(page[at + 1]) for at in range(0, len(page), 2)}
            for lane, page in zip(count, pages, strict=False)
        }
        overdue = [[member.decode() for member in page] for page in pages[len(count) :]]
        return Seen(
            {lane: await self._in_turn(lane, scores[lane], last, cost) for lane, last in count.items()},
            dict(zip(count, overdue, strict=True)),
            (int(seconds), int(microseconds)),
            identity(replies[len(commands) :]),
        )

    async def _in_turn(self, lane: Lane, scores: dict[str, float], last: int, cost: Cost) -> list[Waiting]:
        """The first `last + 1` jobs of a lane, whose first tenants are these."""
        for _ in range(_PAGES_OF_NOTHING):
            if not scores:
                break
            tags = pack(b"ZMSCORE", self._key.tags(lane).encode(), CLOCK.encode(), *(one.encode() for one in scores))
            reads = [pack(b"ZRANGE", self._key.waiting(lane, one).encode(), b"0", b"%d" % last) for one in scores]
            replies = await exchange_all(self._redis, [tags, *reads])
            raise_first(replies)
            left, *pages = replies
            line = Line(lane, scores, dict(zip(scores, [[m.decode() for m in page] for page in pages], strict=True)))
            line.read([None if tag is None else float(tag) for tag in left])
            found = line.order(last + 1, cost)
            if joined := line.joined():
                with suppress(OutOfMemoryError):  # they are counted from when they joined at the next look as well
                    await self._redis.zadd(self._key.tenants(lane), joined, xx=True, gt=True)
            more = len(scores) > last + _TENANTS_MORE
            if not await let_go(self._redis, line, cost) or len(found) > last or not more:
                return found
            page = await self._redis.zrange(self._key.tenants(lane), 0, last + _TENANTS_MORE, withscores=True)
            scores = {member.decode(): score for member, score in page}
        return []

    async def holders(self, job_ids: Sequence[str]) -> tuple[list[str | None], Clock]:
        """Who has the lease of each, and then Redis's TIME: had its clock been set on in between, leases would be gone."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.get(self._key.lease(job_id))
            pipe.time()
            *found, clock = await pipe.execute()
        return [raw.decode() if raw else None for raw in found], clock

    async def begun(self, jobs: Sequence[Waiting], *, unless_by: str) -> set[str]:
        """Which of these run, whatever they do besides; but for those whose lease this worker has."""
        places: dict[str, list[str]] = {}
        for job in jobs:
            places.setdefault(self._key.running(job.lane), []).append(job.id)
        found = [*await self._members(places)]
        holders, _ = await self.holders(found)
        return {job_id for job_id, holder in zip(found, holders, strict=True) if holder != unless_by}

    async def take(self, wanted: Sequence[Waiting], lease: Lease, *, begun: bool) -> Taken:
        """Takes the leases of those that no worker has, in one round trip; `move` and `strike_off` are to follow, and need no
        waiting for.

        A lease names its holder: taking one whose reply was lost is taking it again, not a refusal. `begun` says that
        a worker had them before. On a full server those and batches are taken all the same, because they can be ended
        there; raises OutOfMemoryError if there is none of them.
        """
        try:
            replies = await self._offer(wanted, lease, together=False).execute()
        except OutOfMemoryError:
            wanted = [job for job in wanted if begun or job.lane is Lane.BATCH]
            if not wanted:
                raise
            replies = await commit(self._offer(wanted, lease, together=True))
        answers = zip(wanted, replies[1::3], replies[2::3], strict=True)
        mine = [(job, payload) for job, holder, payload in answers if holder == lease.holder.encode()]
        return Taken.of(mine, begun=begun)

    def _offer(self, wanted: Sequence[Waiting], lease: Lease, *, together: bool) -> Any:
        pipe = self._redis.pipeline(transaction=together)
        for job in wanted:
            pipe.set(self._key.lease(job.id), lease.holder, px=lease.ms, nx=True)
            pipe.get(self._key.lease(job.id))
            pipe.get(self._key.job(job.id))
        return pipe

    def move(self, taken: Taken, lease: Lease, charges: Charges) -> list[Words]:
        """What puts that which was taken where the rest runs, and charges it. To be done as one, before anything else becomes
        of these jobs; where it is not, the leases stand, and renewing them does the same again."""
        found: list[Words] = []
        for job in taken.jobs:
            found += (
                (b"ZREM", self._key.waiting(job.lane, job.tenant), job.id),
                (b"ZADD", self._key.running(job.lane), lease.end_ms, job.id),
            )
        return [*found, *charging(self._key, charges), *advancing(self._key, taken.turns)]

    def strike_off(self, unknown: Iterable[Waiting], *, listed: bool) -> list[Words]:
        """What lets go of that which was taken and is unknown, and takes it away where it is `listed`. Not to be one
        transaction, as with `end`: a full server would refuse it, and who looks would come for these again and again."""
        found: list[Words] = []
        for gone in unknown:
            if listed:
                if gone.tenant is not None:
                    found.append((b"ZREM", self._key.waiting(gone.lane, gone.tenant), gone.id))
                found.append((b"ZREM", self._key.running(gone.lane), gone.id))
            found.append((b"DEL", self._key.lease(gone.id)))
        return found

    async def renew(self, jobs: Sequence[Job], lease: Lease) -> list[Job]:
        """Prolongs the leases of those that run; returns those that have none any more.

        First what every full server takes, too: the lease of a stream that waits for room must not lapse.
        """
        until = time.monotonic() - lease.ms / 1000
        self._given = {job_id: given for job_id, given in self._given.items() if given[1] > until}
        places: dict[str, list[str]] = {}
        running: dict[str, dict[str, int]] = {}
        async with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.pexpire(self._key.lease(job.id), lease.ms)
            there = await pipe.execute()
            for job in jobs:
                if self._has_given(job):
                    continue
                places.setdefault(self._key.waiting(job.lane, job.tenant), []).append(job.id)
                running.setdefault(self._key.running(job.lane), {})[job.id] = lease.end_ms
            for name, job_ids in places.items():
                pipe.zrem(name, *job_ids)
            for name, ends in running.items():
                pipe.zadd(name, ends)
            with suppress(OutOfMemoryError):  # Redis 6.2: others look at the lease and see
                await commit(pipe)
        return [job for job, renewed in zip(jobs, there, strict=True) if not (renewed or self._has_given(job))]

    def _has_given(self, job: Job) -> bool:
        """Whether it was handed back just now, and not taken again."""
        return job.id in self._given and self._given[job.id][0] is job

    async def restore(self, jobs: Iterable[Job], lease: Lease) -> None:
        """Takes back the leases of jobs that run, which Redis has let go or forgotten, unless another worker has them."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.set(self._key.lease(job.id), lease.holder, px=lease.ms, nx=True)
            await commit(pipe)

    async def fence(self, pipe: Any, job_id: str, holder: str) -> None:
        """Begins a transaction in `pipe` that is done only while no other than `holder` has the job. Raises Fenced.

        A lease that is gone is no other's: its worker may be about to have it back.
        """
        lease = self._key.lease(job_id)
        if pipe.control is pipe:
            (found,) = await watch(pipe, [lease], pack(b"GET", lease.encode()))
        else:  # it is in another slot than what is to be done: it is looked at, and may be taken right after
            found = await self._redis.get(lease)
        if found not in (None, holder.encode()):
            raise Fenced(job_id)

    async def hand_back(self, job: Job, holder: str, charges: Charges) -> None:
        """Puts it back where it stood before, for any worker to find at once; unless it is another worker's by now."""
        lease, called = self._key.lease(job.id), job.called
        self._given[job.id] = job, time.monotonic()

        def give(pipe: Any, found: list[Any]) -> None:
            if found[0] in (None, holder.encode()):
                queue(pipe, *self._adding(job.id, job.lane, job.tenant, called.at_ms if called else now_ms()))
                pipe.zrem(self._key.running(job.lane), job.id)
                pipe.delete(lease)
                queue(pipe, *settling(self._key, charges))

        try:
            await transact(self._redis, [lease], [("GET", lease)], give)
        except OutOfMemoryError:  # Redis 6.2: it is found where it runs, when its lease was to end
            await self._redis.delete(lease)

    def end(self, job: Job, charges: Charges) -> list[Words]:
        """What says that it is done; `charges` puts right what it was charged. Not to be one transaction, which a full Redis
        7.0 would refuse: what is in no set cannot be taken, and of these commands it refuses the charges only."""
        return [
            (b"ZREM", self._key.waiting(job.lane, job.tenant), job.id),
            (b"ZREM", self._key.running(job.lane), job.id),
            (b"DEL", self._key.job(job.id), self._key.lease(job.id)),
            *settling(self._key, charges),
        ]

    def _adding(self, job_id: str, lane: Lane, tenant: str, at_ms: int, *how: bytes) -> list[Words]:
        """What puts it where it waits, and rings."""
        return [
            (b"ZADD", self._key.waiting(lane, tenant), *how, at_ms, job_id),
            joining(self._key, lane, tenant),
            ringing(self._key.doorbell, job_id, lane),
        ]
