"""The server process: uvicorn with our signal handling and our protocol.

Hidden here: refusing to serve the world without keys, the socket a supervisor may hand over, the transport that the
relay needs to end a connection in mid-response, and the order of a stop: native viewers first, the rest by the
deadline, then the process.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.app import create_app
from api.auth import is_loopback
from api.relay import TRANSPORT, Drain
from shared.config import SettingsInvalid, load_settings
from shared.telemetry import configure_logging, get_logger

logger = get_logger(__name__)

LISTEN_FD = "STREAMSPOOL_LISTEN_FD"
"""Environment variable: a listening socket inherited from the supervisor, so that connections wait while we restart."""

_BACKLOG = 2048


_HEADERS_S = 30.0


class Protocol(HttpToolsProtocol):
    """Puts the transport into the ASGI scope, and gives a client 30 s to say what it wants."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._patience = self.loop.call_later(_HEADERS_S, self._give_up)

    def on_headers_complete(self) -> None:
        if self._patience:
            self._patience.cancel()
            self._patience = None
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._patience:
            self._patience.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        """The first request never came, or never ended its headers. Later ones fall under the keep-alive timer."""
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._patience is None:
            self._patience = self.loop.call_later(_HEADERS_S, self._give_up)
        extensions: dict[str, Any] = {TRANSPORT: self.transport}
        self.scope["extensions"] = extensions


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
        hub = self._app_hub()
        hub.wake()
        deadline = asyncio.create_task(self._end_everyone(hub))
        try:
            await super().shutdown(sockets)
        finally:
            deadline.cancel()

    async def _end_everyone(self, hub: Any) -> None:
        await asyncio.sleep(self._drain_s)
        self._drain.everyone = True
        hub.wake()

    def _app_hub(self) -> Any:
        return self.config.app.state.parts.hub  # type: ignore[union-attr]


def main() -> None:
    """`python -m api`."""
    try:
        settings = load_settings()
    except SettingsInvalid as error:
        sys.exit(str(error))
    configure_logging(settings.log_level)
    if settings.redis_url is None:
        sys.exit("The API needs REDIS_URL. `streamspool up` runs everything without it.")
    if not settings.api_keys and not is_loopback(settings.host):
        sys.exit(
            f"Refusing to listen on {settings.host} without keys: anybody could spend your provider's tokens.\n"
            "Set STREAMSPOOL_API_KEYS=tenant:key, or HOST=127.0.0.1."
        )
    if not settings.api_keys:
        logger.warning("no API keys: serving this machine only", host=settings.host)
    drain = Drain()
    config = uvicorn.Config(
        create_app(settings, drain),
        host=settings.host,
        port=settings.port,
        http=Protocol,
        loop="uvloop",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=int(settings.drain_s) + 5,
    )
    inherited = os.environ.pop(LISTEN_FD, None)
    sockets = [socket.socket(fileno=int(inherited))] if inherited else None
    Server(config, drain, settings.drain_s).run(sockets)
