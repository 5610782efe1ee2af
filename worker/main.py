"""The worker process: arq with a lease, a doorbell, and no way to die of a Redis outage.

Hidden here: everything arq 0.28 does otherwise.
- Its in-progress key is our lease: short, renewed while the job runs. A worker that is gone lets it lapse, and any
  other worker's poll picks the job up.
- It sleeps between polls; ours is woken by the doorbell, whose payload is the id to start.
- It asks Redis four times for each job it starts, and about every running one on each poll; ours asks once for all.
- It finishes jobs it was fenced from, and ends when Redis is away; ours does neither.
- SIGTERM: no new jobs, the running ones get `drain_s`, the rest is handed over at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import stamina.instrumentation
import uvloop
from arq.worker import Retry, Worker, func
from prometheus_client import start_http_server

from shared import json
from shared.appender import Appender
from shared.batches import is_batch
from shared.broker import Broker
from shared.config import Settings, SettingsInvalid, environment, load_settings
from shared.confirm import Confirmer
from shared.contact import check_server
from shared.doorbell import LINE, is_line
from shared.errors import Unavailable, Unusable
from shared.process import collect_rarely, giving_back, refuse_to_start
from shared.reaper import Reaper
from shared.redis import (
    ArqRedis,
    RedisError,
    complain,
    connect,
    deserialize_job,
    persist,
    serialize_job,
)
from shared.streamlog import StreamLog
from shared.tasks import cancel
from shared.telemetry import configure_logging, get_logger
from worker.batch import Batcher
from worker.courier import Courier
from worker.generate import Generator
from worker.providers.registry import Provider, load_providers
from worker.takeover import TakeoverPause
from worker.upstream import Upstream

logger = get_logger(__name__)

POLL_S = 0.5
BEAT_S = 5.0
BEAT_TTL_S = 15
CATALOGUE_TTL_S = 86400
_POOL = 24
_RETRY_S = 1.0
_BATCHES = 32
"""How many batches one worker hands out at once; more wait for another worker, or for one of these to end."""
_BATCH_S = 8 * 86400
"""Longer than any batch may take."""


class StreamWorker(Worker):
    """arq's worker, with the differences listed above. `main()` runs until `stop()`."""

    def __init__(
        self, redis: ArqRedis, generator: Generator, batcher: Batcher, settings: Settings, *, worker_id: str
    ) -> None:
        self._generator, self._batcher = generator, batcher
        self._key = redis.key
        self._lost: set[str] = set()
        self._rung: set[str] = set()
        self._rung_lines: set[str] = set()
        self._batches: set[str] = set()
        self._lines: set[str] = set()
        self._woken = asyncio.Event()
        self._pause = TakeoverPause(settings.lease_s, POLL_S)
        self._settings = settings
        self.worker_id = worker_id
        super().__init__(
            functions=[
                func(self._generate, name="generate", max_tries=2**31),
                func(self._run_batch, name="batch", max_tries=2**31, timeout=_BATCH_S),
            ],
            redis_pool=redis,
            queue_name=redis.key.queue,
            handle_signals=False,
            max_jobs=settings.worker_concurrency,
            job_timeout=settings.generation_s + settings.upstream_connect_s + 60,
            poll_delay=POLL_S,
            keep_result=0,
            log_results=False,
            job_serializer=serialize_job,
            job_deserializer=deserialize_job,
        )
        self.in_progress_timeout_s = settings.lease_s

    async def _generate(self, ctx: dict[str, Any], generation_id: str) -> None:
        try:
            if not await self._generator.run(generation_id, ctx["job_try"]):
                self._lost.add(generation_id)
        except (RedisError, OSError) as error:
            complain("generation", error, generation_id=generation_id)
            raise Retry(_RETRY_S) from None

    async def _run_batch(self, ctx: dict[str, Any], batch_id: str) -> None:
        try:
            if not await self._batcher.run(batch_id):
                self._lost.add(batch_id)
        except (RedisError, OSError, Unavailable) as error:
            complain("batch", error, batch_id=batch_id)
            raise Retry(_RETRY_S) from None

    # ---- the loops; `serve` runs them side by side

    async def poll(self) -> None:
        """Starts what the doorbell named, at once, and looks through the queue every half second."""
        swept = self.loop.time()
        while self.allow_pick_jobs:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), POLL_S)
            self._woken.clear()
            rung, self._rung = self._rung, set()
            lines, self._rung_lines = self._rung_lines, set()
            self._forget_finished()
            if self.job_counter >= self.max_jobs:
                swept = self.loop.time()
                continue
            await self.start_jobs([job_id.encode() for job_id in rung])
            await self.start_jobs([job_id.encode() for job_id in lines], lines=True)
            if self.loop.time() - swept >= POLL_S:
                await self.sweep()
                swept = self.loop.time()

    async def answer_doorbell(self) -> None:
        """Listens for ids: one of ours may have been ended by somebody, any other is new work."""
        async with self.pool.pubsub() as pubsub:
            await pubsub.subscribe(self._key.doorbell)
            asked = False
            while True:
                message = await pubsub.get_message(timeout=BEAT_S)
                if message is None:
                    if asked:  # the other end is gone without a word, and we would be deaf for ever
                        raise ConnectionError("the doorbell does not answer")
                    await pubsub.ping()
                asked = message is None
                if message is None or message["type"] != "message":
                    continue
                rung = message["data"].decode()
                generation_id = rung.removeprefix(LINE)
                if generation_id in self.tasks:
                    await self._generator.stop_ended({generation_id})
                else:
                    (self._rung if rung == generation_id else self._rung_lines).add(generation_id)
                    self._woken.set()

    async def renew_leases(self) -> None:
        """Keeps our jobs ours, and lets go of those that were ended or taken meanwhile."""
        while True:
            running = [job_id for job_id, task in self.tasks.items() if not task.done()]
            if running:
                async with self.pool.pipeline(transaction=False) as pipe:
                    for job_id in running:
                        # First what a full server allows: the lease of a stream that waits for room must not lapse.
                        pipe.pexpire(self._key.in_progress(job_id), int(self._settings.lease_s * 1000))
                    held = await pipe.execute()
                    for job_id, there in zip(running, held, strict=True):
                        task = self.tasks.get(job_id)
                        if not there and task and not task.done():  # one that has ended meanwhile gave it up itself
                            pipe.set(
                                self._key.in_progress(job_id), self.worker_id, px=int(self._settings.lease_s * 1000)
                            )
                    await pipe.execute()
                self._pause.answered(self.loop.time())
                await self._generator.stop_ended()
                await self._generator.stop_unwatched()
            await asyncio.sleep(self._settings.lease_s / 4)

    def _forget_finished(self) -> None:
        for job_id, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[job_id]
                if not task.cancelled() and (error := task.exception()):
                    # Its lease is still ours, so the next sweep runs it again; if we die, another's does.
                    complain("job", error, generation_id=job_id)

    # ---- arq's own steps, changed

    async def start_jobs(self, job_ids: list[bytes], *, lines: bool = False) -> None:
        """Takes the leases of these jobs, as many as there is room for, in one round trip, and runs them.

        A lease names its holder: taking one whose reply was lost is taking it again, not a refusal. `lines` of batches
        have some of the places only; a batch itself, which only hands them out, needs none.
        """
        strange = [job_id for job_id in (raw.decode() for raw in job_ids) if job_id not in self.tasks]
        room = self.max_jobs - self.job_counter
        if lines:
            room = min(room, self._settings.worker_lines - len(self._lines))
        placed = [job_id for job_id in strange if not is_batch(job_id)][: max(0, room)]
        batches = [job_id for job_id in strange if is_batch(job_id)][: max(0, _BATCHES - len(self._batches))]
        wanted = placed + batches
        if not wanted or not self.allow_pick_jobs:
            return
        holding = self._lines if lines else set()
        holding.update(placed)
        self._batches.update(batches)
        self.job_counter += len(placed)
        started: set[str] = set()
        try:
            async with self.pool.pipeline(transaction=False) as pipe:
                for job_id in wanted:
                    pipe.set(
                        self._key.in_progress(job_id), self.worker_id, px=int(self._settings.lease_s * 1000), nx=True
                    )
                    pipe.get(self._key.in_progress(job_id))
                    pipe.zscore(self.queue_name, job_id)
                replies = await pipe.execute()
            for job_id, holder, score in zip(wanted, replies[1::3], replies[2::3], strict=True):
                leased = holder == self.worker_id.encode()
                if leased and score is not None:
                    task = self.tasks[job_id] = self.loop.create_task(self.run_job(job_id, int(score)))
                    task.add_done_callback(partial(self._leave, job_id))
                    started.add(job_id)
                elif leased:  # finished in the meantime: nothing to hold a lease on
                    await self.pool.delete(self._key.in_progress(job_id))
        finally:
            for job_id in wanted:
                if job_id not in started:
                    self._leave(job_id)

    def _leave(self, job_id: str, _: object = None) -> None:
        """Gives back the place of a job."""
        if is_batch(job_id):
            self._batches.discard(job_id)
        else:
            self._lines.discard(job_id)
            self.job_counter -= 1

    async def sweep(self) -> None:
        """Starts what nobody holds a lease on: never rung for, or its worker is lost.

        While leases may be gone whose workers live, nothing that was begun is taken over.
        """
        async with self.pool.pipeline(transaction=False) as pipe:
            pipe.pexpire(
                self._key.worker(self.worker_id), BEAT_TTL_S * 1000
            )  # a write: who only reads cannot renew either
            pipe.zrange(self.queue_name, 0, self.queue_read_limit - 1, withscores=True)
            pipe.time()
            _, waiting, clock = await pipe.execute()
        self._pause.answered(self.loop.time())
        self._look_at(clock)
        lines = {raw.decode(): is_line(score) for raw, score in waiting}
        strange = [job_id for job_id in lines if job_id not in self.tasks]
        if not strange:
            return
        async with self.pool.pipeline(transaction=False) as pipe:
            for job_id in strange:
                pipe.get(self._key.in_progress(job_id))
                pipe.exists(self._key.tries(job_id))
            pipe.time()  # last: had the clock been set on in between, the leases would be gone, and we would not know why
            *replies, clock = await pipe.execute()
        self._look_at(clock)
        paused = self._pause.holds(self.loop.time())
        mine = self.worker_id.encode()
        free = [
            job_id
            for job_id, holder, begun in zip(strange, replies[::2], replies[1::2], strict=True)
            if holder == mine or (holder is None and not (begun and paused))
        ]
        await self.start_jobs([job_id.encode() for job_id in free if not lines[job_id]])
        await self.start_jobs([job_id.encode() for job_id in free if lines[job_id]], lines=True)

    def _look_at(self, clock: tuple[int, int]) -> None:
        seconds, microseconds = clock
        self._pause.clock(seconds + microseconds / 1_000_000, self.loop.time())

    async def finish_job(self, job_id: str, *args: Any, **keywords: Any) -> None:
        """A job that is another worker's now is left alone, keys and all."""
        if job_id in self._lost:
            self._lost.discard(job_id)
        else:
            await super().finish_job(job_id, *args, **keywords)

    async def drain(self) -> None:
        """No new jobs; the running ones get `drain_s`; what is left is handed over for another worker to find now."""
        self.allow_pick_jobs = False
        running = {job_id: task for job_id, task in self.tasks.items() if not task.done()}
        logger.info("draining", running=len(running))
        batches = [job_id for job_id in running if is_batch(job_id)]
        await cancel(*(running.pop(job_id) for job_id in batches))  # nothing is gained by waiting for those
        await self._ring_again(batches)
        lines = set(self._lines)
        if running:
            await asyncio.wait(running.values(), timeout=self._settings.drain_s)
        rest = {job_id: task for job_id, task in running.items() if not task.done()}
        await cancel(*rest.values())
        await self._ring_again([f"{LINE if job_id in lines else ''}{job_id}" for job_id in rest])

    async def _ring_again(self, names: Sequence[str]) -> None:
        """Without a server to ring at, another worker finds them by their leases, which lapse."""
        with suppress(RedisError, OSError):
            for name in names:
                await self.pool.publish(self._key.doorbell, name)


async def beat(
    redis: ArqRedis, worker: StreamWorker, providers: dict[str, Provider], aliases: dict[str, list[str]]
) -> None:
    """Tells the API that this worker lives, and what it can do."""
    catalogue = {
        "aliases": aliases,
        "providers": {
            name: {"models": list(provider.models), "open": provider.kind != "fake"}
            for name, provider in sorted(providers.items())
        },
    }
    while True:
        report = {"pid": os.getpid(), "host": socket.gethostname(), "running": len(worker.tasks)}
        async with redis.pipeline(transaction=True) as pipe:
            pipe.set(redis.key.worker(worker.worker_id), json.dumps(report), ex=BEAT_TTL_S)
            pipe.sadd(redis.key.workers, worker.worker_id)
            pipe.expire(redis.key.workers, CATALOGUE_TTL_S)
            pipe.set(redis.key.catalogue, json.dumps(catalogue), ex=CATALOGUE_TTL_S)
            await pipe.execute()
        await asyncio.sleep(BEAT_S)


async def serve(settings: Settings) -> None:
    """Runs a worker until SIGTERM or SIGINT. Needs `settings.redis_url`."""
    if settings.redis_url is None:
        refuse_to_start("A worker needs REDIS_URL. `streamspool up` runs everything without it.")
    url = settings.redis_url.get_secret_value()
    try:
        await check_server(url)
    except Unusable as error:
        refuse_to_start(str(error))
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
    try:
        providers = load_providers(settings, environment())
    except ValueError as error:
        refuse_to_start(str(error))
    async with AsyncExitStack() as stack:
        redis = connect(url, prefix=settings.prefix, max_connections=_POOL, timeout_s=_timeout_s(settings))
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        log = StreamLog(redis, retention_s=settings.retention_s, safety_s=settings.log_safety_s)
        confirmer = await stack.enter_async_context(Confirmer(redis, name=worker_id, promised=settings.confirm))
        appender = await stack.enter_async_context(Appender(redis, confirmer))
        upstream = await stack.enter_async_context(Upstream(settings))
        broker = Broker(redis, log, settings, name=worker_id, confirmer=confirmer)
        generator = Generator(log, appender, upstream, providers, broker.closing, settings, worker_id=worker_id)
        batcher = await stack.enter_async_context(_batcher(url, settings, worker_id, confirmer))
        worker = StreamWorker(redis, generator, batcher, settings, worker_id=worker_id)
        courier = await stack.enter_async_context(Courier(broker, settings))
        reaper = Reaper(redis, log, broker, settings, name=worker_id)
        if settings.worker_metrics_port:
            server, _ = start_http_server(settings.worker_metrics_port, settings.host)
            stack.callback(server.shutdown)
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        await stack.enter_async_context(giving_back())
        collect_rarely()
        logger.info("worker started", worker_id=worker_id, providers=sorted(providers))
        await _run(worker, stopped, lambda: beat(redis, worker, providers, settings.models), reaper, courier)
        with suppress(RedisError, OSError):
            await redis.delete(redis.key.worker(worker_id))
            await redis.srem(redis.key.workers, worker_id)  # type: ignore[misc]
        logger.info("worker stopped", worker_id=worker_id)


@asynccontextmanager
async def _batcher(url: str, settings: Settings, worker_id: str, confirmer: Confirmer) -> AsyncIterator[Batcher]:
    """With connections of its own: each batch holds one while it waits, and running answers must not wait for those."""
    redis = connect(url, prefix=settings.prefix, max_connections=_BATCHES + _POOL, timeout_s=_timeout_s(settings))
    try:
        log = StreamLog(redis, retention_s=settings.retention_s, safety_s=settings.log_safety_s)
        yield Batcher(redis, log, Broker(redis, log, settings, name=worker_id, confirmer=confirmer), settings)
    finally:
        await redis.aclose(close_connection_pool=True)


def _timeout_s(settings: Settings) -> float:
    """How long an answer may take: a server that hangs must be given up in time to renew the leases on the next try."""
    return min(5.0, max(1.0, settings.lease_s / 2))


async def _run(
    worker: StreamWorker,
    stopped: asyncio.Event,
    beating: Callable[[], Awaitable[None]],
    reaper: Reaper,
    courier: Courier,
) -> None:
    """All loops side by side until told to stop; a loop that breaks takes the process with it."""
    loops = {
        "poll": worker.poll,
        "doorbell": worker.answer_doorbell,
        "lease": worker.renew_leases,
        "beat": beating,
        "reaper": reaper.run,
        "courier": courier.run,
    }
    tasks = [asyncio.create_task(persist(name, loop), name=name) for name, loop in loops.items()]
    waiting = asyncio.create_task(stopped.wait(), name="stop")
    try:
        done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiting}:
            task.result()
        await asyncio.gather(worker.drain(), courier.drain())
    finally:
        await cancel(*tasks, waiting)


def main() -> None:
    try:
        settings = load_settings()
    except SettingsInvalid as error:
        refuse_to_start(str(error))
    configure_logging(settings.log_level)
    stamina.instrumentation.set_on_retry_hooks([])  # its log line quotes the provider, ours does not
    uvloop.run(serve(settings))
