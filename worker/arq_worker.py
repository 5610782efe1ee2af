"""arq's worker, on a queue of our own, with a lease, a doorbell, and no way to die of a Redis outage.

Hidden here: everything arq 0.28 does otherwise. Of it remain the functions with their time-outs, and Retry.
- Its keys are called `arq:…` for every application, and what runs stays in the queue; ours are in shared/store/queue.py.
- Its in-progress key is our lease: short, renewed while the job runs. A worker that is gone lets it lapse, and any
  other worker's look finds the job.
- It sleeps between polls; ours is woken by the doorbell, whose payload is the id to start, and by a place that is free
  again while more is known to wait.
- It finishes jobs it was fenced from, and ends when Redis is away; ours does neither.
- A stop: no new jobs, the running ones get `drain_s`, the rest is handed over at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from arq.worker import Retry, Worker, func

from shared.config.settings import Settings
from shared.errors import Unavailable
from shared.lib.tasks import Alarm, cancel
from shared.lib.telemetry import get_logger
from shared.log.appender import Appender
from shared.store.commands import pack_each
from shared.store.jobs import Job, Lease, deserialize_job, heard, serialize_job
from shared.store.keys import Lane
from shared.store.lasting.subscription import listen
from shared.store.old_queue import adopt
from shared.store.queue import OVERDUE_AT_ONCE, Clock, JobQueue, Seen, Taken
from shared.store.redis import ArqRedis, OutOfMemoryError, RedisError, log_redis_error
from shared.store.transaction import raise_first
from shared.store.turns import Charges, Waiting
from worker.batches.batcher import Batcher
from worker.failover import FailoverHold
from worker.generate import Generator
from worker.opening import Moves, Openings, answered
from worker.places import ORDER, Costs, Places

logger = get_logger(__name__)

POLL_S = 0.5
BEAT_S = 5.0
BEAT_TTL_S = 15
_BATCH_S = 8 * 86400
"""Longer than any batch may take."""
_RETRY_S = 1.0
_ANSWERS_S = 5.0
_BREATH_S = 0.02
"""Between two looks, whatever happens."""
_ROUNDS = 20
"""How often one look goes on, where others were quicker."""


class StreamWorker(Worker):
    """arq's worker, with the differences listed above. `worker/process.py` runs its loops side by side until `drain`."""

    def __init__(
        self,
        redis: ArqRedis,
        generator: Generator,
        batcher: Batcher,
        openings: Openings,
        appender: Appender,
        settings: Settings,
        *,
        worker_id: str,
    ) -> None:
        super().__init__(
            functions=[
                func(self._generate, name="generate"),
                func(self._run_batch, name="batch", timeout=_BATCH_S),
            ],
            redis_pool=redis,
            queue_name=redis.key.tenants(Lane.GENERATION),
            handle_signals=False,
            max_jobs=settings.worker_concurrency,
            job_timeout=settings.generation_s + settings.upstream_connect_s + 60,
            job_serializer=serialize_job,
            job_deserializer=deserialize_job,
        )
        self._redis, self._queue, self._key = redis, JobQueue(redis), redis.key
        self._generator, self._batcher, self._openings, self._appender = generator, batcher, openings, appender
        self._settings = settings
        self.worker_id = worker_id
        self._running: dict[Lane, dict[str, asyncio.Task[None]]] = {lane: {} for lane in Lane}
        self._places, self._costs = Places(settings, self._running), Costs(settings.tenant_weights)
        self._moves = Moves(self._queue, appender, self._costs)
        self._jobs: dict[str, Job] = {}
        self._lost: set[str] = set()
        self._rung: dict[str, Lane] = {}
        self._again: dict[str, Lane] = {}
        """Jobs whose lease may still be ours although they do not run: the last word about them did not get through."""
        self._more: set[Lane] = set()
        """Where more is known to wait than there was room for."""
        self._skip = 0
        self._woken, self._strange, self._doubted = Alarm(), asyncio.Event(), asyncio.Event()
        self._due = 0.0
        self._pause = FailoverHold(settings.lease_s, POLL_S)
        self.resting = False
        """Whether an admin wants it to begin nothing; what runs goes on."""

    @property
    def count(self) -> int:
        """How many jobs run here."""
        return len(self._jobs)

    def places(self) -> dict[str, Any]:
        """How many places there are for answers, which of its jobs run here by lane, and whether it takes no more."""
        return {**self._places.shown(), "draining": not self.allow_pick_jobs, "resting": self.resting}

    # ---- what arq calls

    async def _generate(self, ctx: dict[str, Any], generation_id: str) -> None:
        try:
            if not await self._generator.run(generation_id, ctx["job_try"], ctx["opening"]):
                self._lost.add(generation_id)
        except (RedisError, OSError) as error:
            log_redis_error("generation", error, generation_id=generation_id)
            raise Retry(_RETRY_S) from None

    async def _run_batch(self, ctx: dict[str, Any], batch_id: str) -> None:
        try:
            if not await self._batcher.run(batch_id):
                self._lost.add(batch_id)
        except (RedisError, OSError, Unavailable) as error:
            log_redis_error("batch", error, batch_id=batch_id)
            raise Retry(_RETRY_S) from None

    # ---- the loops

    async def poll(self) -> None:
        """Starts what the doorbell named, at once, and looks through the queue every half second, or when it is worth it."""
        while self.allow_pick_jobs:
            await self._woken.sleep(self._due)
            if withdrawn_s := self._pause.until_withdrawn_s(self.loop.time()):
                await asyncio.sleep(withdrawn_s)
            rung, self._rung = self._rung, {}
            if self.resting:
                self._due = self.loop.time() + POLL_S
                continue
            if self._more and any(self._places.room(lane) for lane in rung.values() if lane in self._more):
                self._due = 0.0  # others have waited for longer
            at_once = [Waiting(*job) for job in rung.items() if self._places.may_begin(job[1], self._more)]
            await self._start(at_once, begun=False, listed=False)
            if self.loop.time() >= self._due:
                self._due = self.loop.time() + POLL_S
                await self.sweep()

    async def answer_doorbell(self) -> None:
        """Listens for ids: one of ours may have been ended elsewhere, any other is new work."""
        self._rung.clear()  # what was heard before an outage may have been begun elsewhere; it is found where it waits
        async with aclosing(listen(self._redis, self._key.doorbell, self._note_rung, beat_s=BEAT_S)) as ours:
            async for said in ours:
                await self._generator.running.stop_ended({heard(said.decode())[0]})

    def _note_rung(self, said: bytes) -> bool:
        """Whether it is new work."""
        job_id, lane = heard(said.decode(errors="replace"))  # who else shares the server may ring, too
        if is_new := job_id not in self._jobs:
            self._rung[job_id] = lane
            self._woken.set()
        return is_new

    async def renew_leases(self) -> None:
        """Keeps our jobs ours, and lets go of those that were ended or taken meanwhile."""
        while True:
            if self._jobs:
                gone = await self._queue.renew(list(self._jobs.values()), self._lease())
                self._pause.answered(self.loop.time())
                if ours := [job for job in gone if job.id in self._jobs]:  # one that has ended gave it up itself
                    await self._queue.restore(ours, self._lease())
                await self._generator.running.stop_ended()
                await self._generator.running.stop_unwatched()
                await self._generator.note_budgets()
            self._doubted.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.lease_s / 4):
                    await self._doubted.wait()

    async def adopt_old(self) -> None:
        """Takes over what a version before this one queued: at the start, and while such a one is still there."""
        while True:
            self._strange.clear()
            if moved := await adopt(self._redis, paused=self._pause.holds(self.loop.time())):
                logger.info("took over the queue of an older version", jobs=moved)
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._strange.wait()
            await asyncio.sleep(_BREATH_S)

    # ---- taking

    async def sweep(self) -> None:
        """Takes what no worker runs, as far as there is room: its worker is lost, or it was never rung for.

        What is lost comes first: from a lane that had no room for all of it, nothing is taken that waits. While leases may be
        gone whose workers live, nothing begun is taken over; while it may be forgotten who runs what, nothing at all.
        """
        await self._flush()  # or what was just taken would seem to wait
        tried: set[str] = set()
        for _ in range(_ROUNDS):
            lanes = {lane for lane in Lane if self._places.room(lane)}
            count = {lane: self._places.room(lane) + len(tried) for lane in Lane}
            clock_ms, cost = self._redis_ms(), self._costs.of
            seen = await self._queue.look(self.worker_id, BEAT_TTL_S * 1000, count, clock_ms, self._skip, cost)
            if self._is_doubtful(seen):
                return
            if surplus := self._places.surplus(seen.waiting[Lane.BATCH], self._jobs, self._costs):
                await self._hand_over({surplus: self._running[Lane.BATCH][surplus]})
                continue
            lost = await self._with_ours(await self._leaseless(seen.overdue))
            reached = await self._start(lost, begun=True)
            left = {job.lane for job in lost if job.id not in reached and job.id not in self._jobs}
            self._more = left | {lane for lane, jobs in seen.waiting.items() if len(jobs) > count[lane]}
            wanted = [job for lane in lanes - left for job in seen.waiting[lane] if job.id not in tried]
            tried |= await self._start(wanted, begun=False)  # where others were quicker, they are about to move them
            hopeful = self._more if lost or wanted else self._more - lanes
            if not any(map(self._places.room, hopeful)):
                break

    def _is_doubtful(self, seen: Seen) -> bool:
        """Whether another server said that, or one that was started again, just now: what it says waits may run. Or one that
        hung, where it may be withdrawn.

        Who runs it says so first. What is rung for is begun all the same, a moment later: it came after that.
        """
        now = self.loop.time()
        self._pause.answered(now)
        self._look_at(seen.clock)
        self._pause.server(seen.server, now)
        doubtful = self._pause.forgot(now)
        if doubtful:
            self._doubted.set()
        return doubtful or self._pause.until_withdrawn_s(now) > 0

    async def _leaseless(self, overdue: dict[Lane, list[str]]) -> list[Waiting]:
        """Of those whose leases were to end, those that have none. A full server may not note when one is renewed."""
        found = [Waiting(one, lane) for lane, job_ids in overdue.items() for one in job_ids if one not in self._jobs]
        lost: list[Waiting] = []
        if found and not self._pause.holds(self.loop.time()):
            holders, clock = await self._queue.holders([job.id for job in found])
            self._look_at(clock)
            if not self._pause.holds(self.loop.time()):
                lost = [job for job, holder in zip(found, holders, strict=True) if holder in (None, self.worker_id)]
        full_page = any(len(job_ids) == OVERDUE_AT_ONCE for job_ids in overdue.values())
        self._skip = self._skip + OVERDUE_AT_ONCE if full_page and not lost else 0
        return lost

    async def _with_ours(self, lost: list[Waiting]) -> list[Waiting]:
        """And what of `_again` may be taken now: in a pause what has our lease; another worker may have begun the rest."""
        found = [Waiting(*job) for job in self._again.items()]
        if found and self._pause.holds(self.loop.time()):
            holders, _ = await self._queue.holders([job.id for job in found])
            found = [job for job, holder in zip(found, holders, strict=True) if holder == self.worker_id]
        for job in found:
            del self._again[job.id]
        return [*found, *lost]

    async def _start(self, wanted: Iterable[Waiting], *, begun: bool, listed: bool = True) -> set[str]:
        """Takes of these jobs what there is room for, and runs them. Returns which it tried to."""
        chosen, left = self._places.choose([*{job.id: job for job in wanted if job.id not in self._jobs}.values()])
        if left:
            self._more |= {job.lane for job in left}
        if not chosen or not self.allow_pick_jobs:
            return set()
        lease = self._lease()
        try:
            at_once = None if begun else await self._openings.take(chosen, lease)
            taken = at_once or await self._take(chosen, lease, begun=begun)
        except OutOfMemoryError:
            raise
        except (RedisError, OSError):  # whether it was done or not: a lease of ours can be taken again
            if begun:  # the rest is found where it waits, unless another worker has begun it by then
                self._again.update((job.id, job.lane) for job in chosen if job.id not in self._jobs)
            raise
        self._moves.note(taken, lease, self.loop.time(), listed=listed)
        for job in taken.jobs:
            self._begin(job)
        if taken.unknown and not listed:
            self._strange.set()
        return {job.id for job in chosen}

    async def _take(self, chosen: list[Waiting], lease: Lease, *, begun: bool) -> Taken:
        if not begun and self._pause.holds(self.loop.time()):  # the leases of what runs may be back soon
            runs = await self._queue.begun(chosen, unless_by=self.worker_id)
            chosen = [job for job in chosen if job.id not in runs]
        try:
            return await self._queue.take(chosen, lease, begun=begun)
        except OutOfMemoryError:  # nothing can begin, but what seems to wait may have been begun, and can be ended
            lost = [] if begun else await self._openings.begun(chosen)
            if not lost:
                raise
            return await self._queue.take(lost, lease, begun=True)

    def _begin(self, job: Job) -> None:
        self._jobs[job.id] = job
        task = self._running[job.lane][job.id] = self.loop.create_task(self._run(job), name=job.id)
        task.add_done_callback(partial(self._leave, job))

    def _leave(self, job: Job, task: asyncio.Task[None]) -> None:
        """Gives back the place of a job, to be taken at once if more is known to wait."""
        del self._jobs[job.id], self._running[job.lane][job.id]
        if not task.cancelled() and (error := task.exception()):
            log_redis_error("job", error, generation_id=job.id)
            self._again[job.id] = job.lane
        if any(map(self._places.room, self._more)):
            self._due = min(self._due, self.loop.time() + _BREATH_S)
            self._woken.set()

    # ---- running

    async def _run(self, job: Job) -> None:
        """Calls the job's function; what becomes of the job then is said after it was said that it runs."""
        done = await self._call(job)
        self._moves.say()
        charges = self._costs.end(job, self.loop.time())
        if not done:
            await self._flush()
            await self._queue.hand_back(job, self.worker_id, charges)
        elif job.id in self._lost:  # another worker's now, keys and all
            self._lost.discard(job.id)
        else:
            await self._end(job, charges)

    async def _end(self, job: Job, charges: Charges) -> None:
        commands = self._queue.end(job, charges)
        replies, _ = await answered(self._appender, pack_each(commands), len(commands))
        raise_first([reply for reply in replies if not isinstance(reply, OutOfMemoryError)])  # charges only

    async def _flush(self) -> None:
        """Returns once the queue knows what runs here."""
        self._moves.say()
        async with asyncio.timeout(_ANSWERS_S):
            await self._appender.flush()

    async def _call(self, job: Job) -> bool:
        """False if it is to be called again. What else it raises is a bug; the reaper rings again for what has no end then."""
        called = job.called
        function = self.functions.get(called.function) if called else None
        if called is None or function is None:
            logger.warning("job is none of ours", generation_id=job.id)
            return True
        context = {"job_try": 2 if job.begun else 1, "opening": self._openings.pop(job.id)}
        timeout_s = self.job_timeout_s if function.timeout_s is None else function.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await function.coroutine(context, *called.arguments)
        except Retry as again:
            await asyncio.sleep((again.defer_score or 0) / 1000)
            return False
        except Exception as bug:
            logger.error("job broke", generation_id=job.id, exc_info=bug)
        return True

    async def drain(self) -> None:
        """No new jobs; the running ones get `drain_s`; what is left is handed over for another worker to find now."""
        self.allow_pick_jobs = False
        logger.info("draining", running=self.count)
        await self._hand_over(self._running[Lane.BATCH])  # nothing is gained by waiting for those
        if running := self._in_places():
            await asyncio.wait(running.values(), timeout=self._settings.drain_s)
        await self._hand_over(self._in_places())

    def _in_places(self) -> dict[str, asyncio.Task[None]]:
        return {job_id: task for lane in ORDER for job_id, task in self._running[lane].items()}

    async def _hand_over(self, tasks: dict[str, asyncio.Task[None]]) -> None:
        """Without a server that takes it, another worker finds them by their leases, which lapse."""
        ours = [(self._jobs[job_id], task) for job_id, task in tasks.items()]
        with suppress(TimeoutError):
            await self._flush()
        await cancel(*tasks.values())
        cut = [job for job, task in ours if task.cancelled()]
        for reply in await asyncio.gather(
            *(self._queue.hand_back(job, self.worker_id, self._costs.end(job, self.loop.time())) for job in cut),
            return_exceptions=True,
        ):
            if isinstance(reply, RedisError | OSError):
                log_redis_error("drain", reply)
            elif reply is not None:
                raise reply

    # ---- clocks

    def _lease(self) -> Lease:
        lease_ms = int(self._settings.lease_s * 1000)
        return Lease(self.worker_id, lease_ms, self._redis_ms() + lease_ms)

    def _redis_ms(self) -> int:
        """What Redis's clock says now, or said this long ago plus what has passed. It is for looking, not for deciding."""
        return int((self._pause.redis_time(self.loop.time()) or time.time()) * 1000)

    def _look_at(self, clock: Clock) -> None:
        seconds, microseconds = clock
        self._pause.clock(seconds + microseconds / 1_000_000, self.loop.time())
