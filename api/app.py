"""The composition root of the HTTP end: what exists in an API process, and for how long."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from fastapi import Depends
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from api import errors
from api.access import rules
from api.application import Answer, Application, Door
from api.auth import Authenticator
from api.console import routes as console_pages
from api.console.assets import Assets
from api.deps import Submission, asked, check_query, guard, submission
from api.live.drain import Drain
from api.live.feed import LiveFeed
from api.live.hub import Hub
from api.live.watching import Watching
from api.openapi import document
from api.resources import (
    audit,
    batches,
    console,
    files,
    health,
    keys,
    limits,
    models,
    operations,
    reference,
    sessions,
    swagger,
    usage,
)
from api.services import Services
from api.surfaces import completions, events, whole
from api.surfaces.chat import routes as chat
from api.surfaces.chat import stored
from api.surfaces.responses import compact, conversations
from api.surfaces.responses import routes as responses
from api.surfaces.responses import socket as responses_socket
from api.surfaces.streams import counts, shares
from api.surfaces.streams import routes as streams
from shared import __version__
from shared.config.settings import Settings
from shared.errors import Unavailable
from shared.features.history.sink import Sink
from shared.generations.catalogue import Catalogue
from shared.generations.reaper import Reaper
from shared.lib.process import collect_rarely, giving_back
from shared.lib.tasks import cancel
from shared.lib.traces import tracing
from shared.log.following import BLOCK_MS
from shared.log.streamlog import StreamLog
from shared.store.confirm import Confirmer
from shared.store.contact import wait_for_layout
from shared.store.redis import RedisError, connect, run_while_redis_is_away

_ROUTES = (
    chat,
    stored,
    responses,
    responses_socket,
    compact,
    conversations,
    completions,
    whole,
    counts,
    streams,
    shares,
    sessions,
    files,
    batches,
    usage,
    keys,
    limits,
    audit,
    models,
    operations,
    console,
    events,
    health,
    reference,
    console_pages,
    swagger,
)
_POOL = 17
_TIMEOUT_S = 2.0
_PATIENCE_S = _TIMEOUT_S + BLOCK_MS / 1000
_AHEAD_S, _DOUBTS_PAUSE_S = 0.8, 0.5
_MENDED_S = 2.0
"""How much longer than the lease a log that was forgotten is waited for: whoever takes it over has to find it."""


def create_app(settings: Settings, drain: Drain) -> Application:
    """The application. It connects when its lifespan starts; `settings.redis_url` must be set."""

    authenticator = Authenticator(settings)

    @asynccontextmanager
    async def lifespan(app: Application) -> AsyncIterator[None]:
        url = _redis_url(settings)
        async with AsyncExitStack() as stack:
            stack.callback(tracing.end)
            own = await wait_for_layout(settings)
            redis = connect(url, **own, max_connections=_POOL, timeout_s=_TIMEOUT_S)
            stack.push_async_callback(redis.aclose, close_connection_pool=True)
            reading = connect(url, **own, max_connections=4, timeout_s=_PATIENCE_S, beside=redis)
            stack.push_async_callback(reading.aclose, close_connection_pool=True)
            log = StreamLog(redis, retention_s=settings.retention_s, safety_s=settings.log_safety_s)
            name = f"api:{socket.gethostname()}-{os.getpid()}"
            confirmer = await stack.enter_async_context(Confirmer(redis, name=name, promised=settings.confirm))
            hub = await stack.enter_async_context(
                Hub(
                    log,
                    reading,
                    grace_s=settings.disconnect_grace_s,
                    keepalive_s=settings.keepalive_s,
                    confirmer=confirmer,
                    patience_s=settings.lease_s + _MENDED_S,
                )
            )
            services = Services(redis, log, settings, hub, drain, name=name, confirmer=confirmer)
            reaper = Reaper(redis, log, services, settings, name=name)
            _run(stack, "reaper", run_while_redis_is_away("reaper", reaper.run))
            _run(stack, "doubts", run_while_redis_is_away("doubts", reaper.withdraw_doubtful, most_s=_DOUBTS_PAUSE_S))
            watching = Watching(redis, hub, name)
            _run(stack, "watching", run_while_redis_is_away("watching", watching.run))
            services.feed = await stack.enter_async_context(LiveFeed(redis, reading, log, services.catalogue, watching))
            await _learn_keys(stack, authenticator, services)
            _keep_current(stack, services, confirmer)
            _keep_history(stack, services)
            app.services = services
            await stack.enter_async_context(giving_back())
            collect_rarely()
            yield

    app = _application(settings, lifespan)
    app.authenticator = authenticator
    app.state.console = Assets()
    errors.install(app)
    document.install(app, keyed=settings.keyed)
    _add_routes(app)
    return app


def _redis_url(settings: Settings) -> str:
    assert settings.redis_url is not None
    return settings.redis_url.get_secret_value()


def _application(settings: Settings, lifespan: Any) -> Application:
    return Application(
        title="Streamspool",
        version=__version__,
        summary="LLM answers, generated once, kept as a log, watched by many, resumed by anyone.",
        lifespan=lifespan,
        docs_url=None,  # reference.py
        redoc_url=None,
        door=Door.of(settings),
    )


def _add_routes(app: Application) -> None:
    """Each behind its rule."""
    own = list(app.routes)
    for routes in _ROUTES:
        app.include_router(routes.router, dependencies=[Depends(guard)])
    rules.check_complete([*own, *(route for routes in _ROUTES for route in routes.router.routes)])
    for method, routes, endpoint, answer in (
        ("POST", chat, chat.create, _begin(chat.create)),
        ("POST", responses, responses.create, _begin(responses.create)),
        ("GET", streams, streams.watch, _watch),
    ):
        (route,) = [one for one in routes.router.routes if isinstance(one, APIRoute) and one.endpoint is endpoint]
        app.hasten(method, route, answer)


def _begin(create: Callable[[Submission], Awaitable[Response]]) -> Answer:
    async def answer(request: Request) -> Response:
        await guard(request)
        return await create(await submission(request))

    return answer


async def _watch(request: Request) -> Response:
    await guard(request)
    check_query(request)
    query, generation_id = request.query_params, request.path_params["generation_id"]
    cursors = query.get("last_event_id"), query.get("starting_after")
    return await streams.watch(request, *asked(request), generation_id, *cursors)


def _run(stack: AsyncExitStack, name: str, work: Coroutine[Any, Any, Any]) -> None:
    """As long as the process."""
    stack.push_async_callback(cancel, asyncio.create_task(work, name=name))


def _keep_current(stack: AsyncExitStack, services: Services, confirmer: Confirmer) -> None:
    _run(stack, "look ahead", _look_ahead(services.catalogue, confirmer))
    _run(stack, "limits", services.limiter.run())
    _run(stack, "viewers", services.viewers.run())


async def _look_ahead(catalogue: Catalogue, confirmer: Confirmer) -> None:
    """What each request has to know, and may be a second old, is looked at a little sooner than that: so none waits for it."""
    while True:
        await asyncio.sleep(_AHEAD_S)
        with suppress(Unavailable, RedisError, OSError, ValueError):  # whoever needs it is told
            await catalogue.look()
            await confirmer.server(age_s=0)


def _keep_history(stack: AsyncExitStack, services: Services) -> None:
    if services.history is not None:
        stack.push_async_callback(services.history.close)
        sink = Sink(services.outbox, services.history, name=services.name, kept_s=services.settings.history_s)
        _run(stack, "history", sink.run())


async def _learn_keys(stack: AsyncExitStack, authenticator: Authenticator, services: Services) -> None:
    """Those that are data are known from the first request on, where Redis is there, and followed from then on."""
    services.configured = authenticator.configured
    authenticator.browsers = services.browsers
    if not authenticator.keyless:
        authenticator.ring = services.ring
        await services.ring.learn()
        _run(stack, "keys", services.ring.run())
