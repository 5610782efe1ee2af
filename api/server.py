"""The server process: uvicorn with our signal handling and our protocol (connection.py).

Hidden here: refusing to serve the world without keys, sockets that are handed down, and the order of a stop: no new
connection, native viewers first, then what is kept open and asks nothing, the rest by the deadline, then the process.

A connection that was just made has its request still to come, and a client that keeps one may be asking at this moment: to
close it would be a reset. So for LEAVE_S such connections are answered once more, with `Connection: close`, as nginx does with
its keepalive_min_timeout.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from types import FrameType
from typing import cast

import uvicorn
import uvloop

from api.app import create_app
from api.auth import is_loopback
from api.connection import Protocol
from api.live.drain import Drain
from api.services import Services
from api.sockets.protocol import SocketProtocol
from shared.config.environ import SettingsInvalid, environment
from shared.config.notices import notices, say_notices, weak_keys
from shared.config.settings import Settings, load_settings
from shared.errors import Unusable
from shared.features.history.history import check_installed
from shared.lib.process import (
    LISTEN_FD,
    begin_metrics,
    begin_traces,
    inherited,
    listen,
    one_heap,
    refuse_to_start,
    say_ready,
)
from shared.lib.telemetry import configure_logging, get_logger
from shared.store.contact import check_servers

logger = get_logger(__name__)

LEAVE_S = 1.0
"""How long a connection without a request may still be used, once this process stops: more than a request is on its way."""

_LOOK_S = 0.05
_BACKLOG = 2048


class Server(uvicorn.Server):
    """Ends the streams before it waits for their connections. `supervised`: SIGHUP tells it that another has its place."""

    def __init__(self, config: uvicorn.Config, drain: Drain, drain_s: float, *, supervised: bool = False) -> None:
        super().__init__(config)
        self._drain, self._drain_s, self._supervised = drain, drain_s, supervised

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn has logged the reason, and would end with a code of its own
            host, port = self.config.host, self.config.port
            sys.exit(
                f"Cannot listen on port {port} of {host}. End the program that uses it, or choose another with PORT."
            )
        if self._supervised:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._leave)
        say_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """One signal stops gently, a second one at once."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    def _leave(self) -> None:
        self._drain.followed = self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info("api stopping", connections=len(self.server_state.connections))
        self._drain.native = True
        self._wake()
        deadline = asyncio.create_task(self._end_everyone())
        try:
            await self._answer_the_last(sockets or [])
            await super().shutdown(sockets)
        finally:
            deadline.cancel()

    async def _answer_the_last(self, sockets: list[socket.socket]) -> None:
        """Takes no more connections, and leaves those that are here the time for one more request."""
        for server in self.servers:
            server.close()
        for one in sockets:
            one.close()
        loop = asyncio.get_running_loop()
        until = loop.time() + min(LEAVE_S, self._drain_s)
        await asyncio.sleep(0)  # one that was accepted in this turn of the loop is known in the next
        while self.server_state.connections and loop.time() < until and not self.force_exit:  # noqa: ASYNC110 - as uvicorn's own
            await asyncio.sleep(_LOOK_S)
        for _ in range(2):  # a turn of the loop: what has come by now is read before anything is closed
            await asyncio.sleep(0)

    async def _end_everyone(self) -> None:
        await asyncio.sleep(self._drain_s)
        self._drain.everyone = True
        self._wake()

    def _wake(self) -> None:
        """Has all viewers look whether they are to leave."""
        services: Services = self.config.app.services  # type: ignore[union-attr]
        services.hub.wake()
        services.feed.wake()


def main() -> None:
    """`python -m api`."""
    one_heap()
    try:
        settings = load_settings()
    except SettingsInvalid as error:
        refuse_to_start(str(error))
    configure_logging(settings.log_level)
    begin_metrics(settings.metrics)
    begin_traces("api", environment())
    say_notices(notices(settings))
    if settings.redis_url is None:
        refuse_to_start("The API needs REDIS_URL. `streamspool up` runs everything without it.")
    supervised, handed = LISTEN_FD in os.environ, inherited()
    for host in {str(one.getsockname()[0]) for one in handed} or {settings.host}:
        if not settings.keyed and not is_loopback(host):
            refuse_to_start(
                f"Refusing to listen on {host} without keys: anybody could spend your provider's tokens.\n"
                "Set STREAMSPOOL_API_KEYS=tenant:key, or HOST=127.0.0.1."
            )
    if weak := weak_keys(settings):
        refuse_to_start(weak)
    if not settings.keyed:
        logger.warning("no API keys: serving this machine only", host=settings.host)
    try:
        if settings.keeps_history:
            check_installed()
        uvloop.run(check_servers(settings))
    except Unusable as error:
        refuse_to_start(str(error))
    drain = Drain()
    config = uvicorn.Config(
        create_app(settings, drain),
        host=settings.host,
        port=settings.port,
        http=Protocol,
        loop="uvloop",
        ws=SocketProtocol,
        ws_max_size=settings.max_body_bytes,
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nothing here asks who the client is
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=cast("int", settings.connection_idle_s),  # it is only handed to a timer
        timeout_graceful_shutdown=int(settings.drain_s) + 5,
    )
    sockets = handed if supervised else _with_own(handed, settings)
    Server(config, drain, settings.drain_s, supervised=supervised).run(sockets or None)


def _with_own(handed: list[socket.socket], settings: Settings) -> list[socket.socket]:
    """And where this process alone is asked, if it is to be. None: uvicorn makes the one there is."""
    host, port = settings.host, settings.api_metrics_port
    try:
        return [*(handed or listen(host, settings.port)), *listen(host, port)] if port else handed
    except OSError as error:
        sys.exit(f"Cannot listen on {host}: {error.strerror}. PORT and STREAMSPOOL_API_METRICS_PORT must both be free.")
