"""The worker process: what exists in it, for how long, and the loops that run side by side until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import stamina.instrumentation
import uvloop

from shared.config.environ import SettingsInvalid, environment
from shared.config.notices import notices, say_notices
from shared.config.settings import Settings, load_settings
from shared.errors import Unusable
from shared.generations.core import Core
from shared.generations.reaper import Reaper
from shared.lib.process import begin_metrics, begin_traces, collect_rarely, giving_back, one_heap, refuse_to_start
from shared.lib.tasks import cancel
from shared.lib.telemetry import configure_logging, get_logger
from shared.lib.traces import tracing
from shared.log.appender import Appender
from shared.log.streamlog import StreamLog
from shared.store.confirm import Confirmer
from shared.store.contact import Layout, check_servers, wait_for_layout
from shared.store.redis import ArqRedis, RedisError, connect, run_while_redis_is_away
from worker.arq_worker import StreamWorker
from worker.batches.batcher import Batcher
from worker.generate import Generator
from worker.heartbeat import Heartbeat
from worker.models.announcer import ModelAnnouncer
from worker.models.asking import ProviderAsker
from worker.opening import Openings
from worker.places import BATCHES
from worker.providers.registry import Provider
from worker.providers.switches import switch
from worker.status import showing
from worker.summaries import Summaries
from worker.upstream.client import Upstream
from worker.upstream.model_lists import ModelLists
from worker.webhooks import WebhookSender

logger = get_logger(__name__)

_POOL = 25
_CONFIRM_S = 2.0
_LONGEST_PAUSE_S = 3.0
"""Before Redis is tried again; less with a short lease, which must be renewed in time when it is back."""


async def serve(settings: Settings) -> None:
    """Runs a worker until SIGTERM or SIGINT. Needs `settings.redis_url`."""
    if settings.redis_url is None:
        refuse_to_start("A worker needs REDIS_URL. `streamspool up` runs everything without it.")
    url = settings.redis_url.get_secret_value()
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
    try:
        providers, models, found = switch(settings, environment())
        say_notices([*notices(settings), *found, *settings.upstream_proxies.notices])
        settings = settings.model_copy(update={"models": models})
        await check_servers(settings)
    except (ValueError, Unusable) as error:
        refuse_to_start(str(error))
    async with AsyncExitStack() as stack:
        stack.callback(tracing.end)
        own = await wait_for_layout(settings)
        redis = connect(url, **own, max_connections=_POOL, timeout_s=_timeout_s(settings))
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        log = StreamLog(redis, retention_s=settings.retention_s, safety_s=settings.log_safety_s)
        confirmer = await stack.enter_async_context(Confirmer(redis, name=worker_id, promised=settings.confirm))
        appender = await stack.enter_async_context(Appender(redis, confirmer))
        upstream = await stack.enter_async_context(Upstream(settings))
        core = Core(redis, log, settings, name=worker_id, confirmer=confirmer)
        generator = _generator(log, appender, upstream, providers, core, settings, worker_id)
        batcher = await stack.enter_async_context(_batcher(url, settings, worker_id, confirmer, redis, own))
        await core.prices.load()  # here, and not while somebody waits for the end of an answer
        openings = Openings(redis, log, appender, worker_id=worker_id)
        worker = StreamWorker(redis, generator, batcher, openings, appender, settings, worker_id=worker_id)
        heartbeat = Heartbeat(redis, worker, providers, settings.models, upstream.health)
        lists = await stack.enter_async_context(ModelLists(settings.upstream_proxies))
        announcer = ModelAnnouncer(redis, lists, providers, settings, upstream.health)
        asker = ProviderAsker(redis, lists, providers, upstream.health, worker_id)
        sender = await stack.enter_async_context(WebhookSender(core.webhooks, settings))
        reaper = Reaper(redis, log, core, settings, name=worker_id)
        if settings.worker_metrics_port:
            stack.enter_context(showing(settings.host, settings.worker_metrics_port, heartbeat))
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        await stack.enter_async_context(giving_back())
        collect_rarely()
        logger.info("worker started", worker_id=worker_id, providers=sorted(providers))
        pause_s = min(_LONGEST_PAUSE_S, settings.lease_s / 4)
        await _run(worker, stopped, heartbeat, announcer, asker, reaper, sender, pause_s)
        with suppress(TimeoutError, RedisError, OSError):
            async with asyncio.timeout(_CONFIRM_S):
                await confirmer.confirm_all()  # what this worker wrote last is in its memory only as long as it lives
        with suppress(RedisError, OSError):
            await heartbeat.withdraw()
        logger.info("worker stopped", worker_id=worker_id)


def _generator(
    log: StreamLog,
    appender: Appender,
    upstream: Upstream,
    providers: Mapping[str, Provider],
    core: Core,
    settings: Settings,
    worker_id: str,
) -> Generator:
    return Generator(
        log,
        appender,
        upstream,
        providers,
        core.outcomes,
        core.settlement,
        settings,
        worker_id=worker_id,
        summaries=Summaries(core.broker, settings),
        limiter=core.limiter,
    )


@asynccontextmanager
async def _batcher(
    url: str, settings: Settings, worker_id: str, confirmer: Confirmer, beside: ArqRedis, own: Layout
) -> AsyncIterator[Batcher]:
    """With connections of its own: each batch holds one while it waits, and running answers must not wait for those."""
    most, timeout_s = BATCHES + _POOL, _timeout_s(settings)
    redis = connect(url, **own, max_connections=most, timeout_s=timeout_s, beside=beside)
    try:
        log = StreamLog(redis, retention_s=settings.retention_s, safety_s=settings.log_safety_s)
        core = Core(redis, log, settings, name=worker_id, confirmer=confirmer)
        yield Batcher(redis, log, core, settings, worker_id=worker_id)
    finally:
        await redis.aclose(close_connection_pool=True)


def _timeout_s(settings: Settings) -> float:
    """How long an answer may take: a server that hangs must be given up in time to renew the leases on the next try."""
    return min(5.0, max(1.0, settings.lease_s / 2))


async def _run(
    worker: StreamWorker,
    stopped: asyncio.Event,
    heartbeat: Heartbeat,
    announcer: ModelAnnouncer,
    asker: ProviderAsker,
    reaper: Reaper,
    sender: WebhookSender,
    pause_s: float,
) -> None:
    """All loops side by side until told to stop; a loop that breaks takes the process with it. `pause_s` is the longest
    pause before one that Redis has broken is begun again."""
    loops = {
        "poll": worker.poll,
        "doorbell": worker.answer_doorbell,
        "lease": worker.renew_leases,
        "adopt": worker.adopt_old,
        "beat": heartbeat.run,
        "models": announcer.run,
        "asker": asker.run,
        "reaper": reaper.run,
        "doubts": reaper.withdraw_doubtful,
        "sender": sender.run,
    }
    tasks = [
        asyncio.create_task(run_while_redis_is_away(name, loop, most_s=pause_s), name=name)
        for name, loop in loops.items()
    ]
    waiting = asyncio.create_task(stopped.wait(), name="stop")
    try:
        done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiting}:
            task.result()
        await asyncio.gather(worker.drain(), sender.drain())
    finally:
        await cancel(*tasks, waiting)


def main() -> None:
    one_heap()
    try:
        settings = load_settings()
    except SettingsInvalid as error:
        refuse_to_start(str(error))
    configure_logging(settings.log_level)
    begin_metrics(settings.metrics)
    begin_traces("worker", environment())
    stamina.instrumentation.set_on_retry_hooks([])  # its log line quotes the provider, ours does not
    uvloop.run(serve(settings))
