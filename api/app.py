"""The composition root of the HTTP end: what exists in an API process, and for how long."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from api import errors
from api.auth import Authenticator
from api.errors import REQUEST_ID
from api.live.drain import Drain
from api.live.hub import BLOCK_MS, Hub
from api.live.response import LATER
from api.resources import batches, files, health, models, sessions, usage
from api.services import Services
from api.surfaces.chat import routes as chat
from api.surfaces.chat import stored
from api.surfaces.streams import routes as streams
from shared import __version__
from shared.config.settings import Settings
from shared.generations.reaper import Reaper
from shared.lib.process import collect_rarely, giving_back
from shared.lib.tasks import FairTurns, cancel
from shared.lib.telemetry import REQUESTS
from shared.log.streamlog import StreamLog
from shared.store.confirm import Confirmer
from shared.store.redis import connect, run_while_redis_is_away

_POOL = 17
_KEPT = frozenset({"type", "method", "http_version", "extensions", "route", REQUEST_ID})
"""What of a request's scope the server, the count of responses and a viewer still need."""
_TIMEOUT_S = 2.0
_MENDED_S = 2.0
"""How much longer than the lease a log that was forgotten is waited for: whoever takes it over has to find it."""


def create_app(settings: Settings, drain: Drain) -> FastAPI:
    """The application. It connects when its lifespan starts; `settings.redis_url` must be set."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        assert settings.redis_url is not None
        url = settings.redis_url.get_secret_value()
        async with AsyncExitStack() as stack:
            redis = connect(url, prefix=settings.prefix, max_connections=_POOL, timeout_s=_TIMEOUT_S)
            stack.push_async_callback(redis.aclose, close_connection_pool=True)
            patience_s = _TIMEOUT_S + BLOCK_MS / 1000
            reading = connect(url, prefix=settings.prefix, max_connections=2, timeout_s=patience_s, beside=redis)
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
            reaping = asyncio.create_task(run_while_redis_is_away("reaper", reaper.run), name="reaper")
            stack.push_async_callback(cancel, reaping)
            app.state.services = services
            await stack.enter_async_context(giving_back())
            collect_rarely()
            yield

    app = Application(
        title="Streamspool",
        version=__version__,
        summary="LLM answers, generated once, kept as a log, watched by many, resumed by anyone.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.authenticator = Authenticator(settings)
    errors.install(app)
    for routes in (chat, stored, streams, sessions, files, batches, usage, models, health):
        app.include_router(routes.router)
    return app


class Application(FastAPI):
    """FastAPI that lets go of a request before its stream begins: a viewer may stay for an hour.

    Every response is named here (`x-request-id`) and counted. Of those who only read, one comes in at a time: a thousand
    of them at once must not keep a prompt waiting.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._reading = FairTurns(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if scope["method"] == "GET":
            await self._reading.turn()
        named = _Named(scope, send)
        scope[LATER] = None
        await super().__call__(scope, receive, named)
        if serve := scope.pop(LATER):
            kept = {name: scope[name] for name in _KEPT if name in scope}
            scope.clear()  # the framework's leavings would stay as long as the viewer
            scope.update(kept)
            await serve(scope, receive, named)


class _Named:
    """Sends a response with the id of its request. A class, because a closure for each viewer is memory."""

    __slots__ = ("_scope", "_send")

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        scope[REQUEST_ID] = f"req_{uuid.uuid4().hex}"

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            scope = self._scope
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", scope[REQUEST_ID].encode())]
            REQUESTS.labels(getattr(scope.get("route"), "path", "none"), message["status"]).inc()
        await self._send(message)
