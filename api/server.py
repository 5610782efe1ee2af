"""The server process: uvicorn with our signal handling and our protocol (connection.py).

Hidden here: refusing to serve the world without keys, the socket a supervisor may hand over, and the order of a stop:
native viewers first, the rest by the deadline, then the process.
"""

from __future__ import annotations

import asyncio
import os
import socket
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
from shared.config.environ import SettingsInvalid
from shared.config.notices import notices, say_notices, weak_keys
from shared.config.settings import load_settings
from shared.errors import Unusable
from shared.features.history.history import check_installed
from shared.lib.process import begin_metrics, refuse_to_start
from shared.lib.telemetry import configure_logging, get_logger
from shared.store.contact import check_server

logger = get_logger(__name__)

LISTEN_FD = "STREAMSPOOL_LISTEN_FD"
"""Environment variable: a listening socket inherited from the supervisor, so that connections wait while we restart."""

_BACKLOG = 2048


class Server(uvicorn.Server):
    """Ends the streams before it waits for their connections."""

    def __init__(self, config: uvicorn.Config, drain: Drain, drain_s: float) -> None:
        super().__init__(config)
        self._drain, self._drain_s = drain, drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """One signal stops gently, a second one at once."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info("api stopping", connections=len(self.server_state.connections))
        self._drain.native = True
        self._wake()
        deadline = asyncio.create_task(self._end_everyone())
        try:
            await super().shutdown(sockets)
        finally:
            deadline.cancel()

    async def _end_everyone(self) -> None:
        await asyncio.sleep(self._drain_s)
        self._drain.everyone = True
        self._wake()

    def _wake(self) -> None:
        """Has all viewers look whether they are to leave."""
        services: Services = self.config.app.state.services  # type: ignore[union-attr]
        services.hub.wake()
        services.feed.wake()


def main() -> None:
    """`python -m api`."""
    try:
        settings = load_settings()
    except SettingsInvalid as error:
        refuse_to_start(str(error))
    configure_logging(settings.log_level)
    begin_metrics(settings.metrics)
    say_notices(notices(settings))
    if settings.redis_url is None:
        refuse_to_start("The API needs REDIS_URL. `streamspool up` runs everything without it.")
    if not settings.keyed and not is_loopback(settings.host):
        refuse_to_start(
            f"Refusing to listen on {settings.host} without keys: anybody could spend your provider's tokens.\n"
            "Set STREAMSPOOL_API_KEYS=tenant:key, or HOST=127.0.0.1."
        )
    if weak := weak_keys(settings):
        refuse_to_start(weak)
    if not settings.keyed:
        logger.warning("no API keys: serving this machine only", host=settings.host)
    try:
        if settings.keeps_history:
            check_installed()
        uvloop.run(check_server(settings.redis_url.get_secret_value()))
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
    inherited = os.environ.pop(LISTEN_FD, None)
    sockets = [socket.socket(fileno=int(inherited))] if inherited else None
    Server(config, drain, settings.drain_s).run(sockets)
