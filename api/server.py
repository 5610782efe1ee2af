"""The server process: uvicorn with our signal handling and our protocol.

Hidden here: refusing to serve the world without keys, the socket a supervisor may hand over, the connection that the
relay needs to write to without a detour and to end in mid-response, and the order of a stop: native viewers first, the
rest by the deadline, then the process.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
import uvloop

from api.app import create_app
from api.auth import is_loopback
from api.intake import Intake
from api.live.client import CONNECTION
from api.live.drain import Drain
from shared.config.settings import SettingsInvalid, load_settings
from shared.errors import StreamspoolError, Unusable
from shared.lib.process import refuse_to_start
from shared.lib.telemetry import configure_logging, get_logger
from shared.store.contact import check_server

logger = get_logger(__name__)

LISTEN_FD = "STREAMSPOOL_LISTEN_FD"
"""Environment variable: a listening socket inherited from the supervisor, so that connections wait while we restart."""

_BACKLOG = 2048

HEADERS_S = 30.0
"""How long a client may take to say what it wants: until the headers of its first request, and of each later one."""

_GRACE_S = 5.0
_NOBODY_WAITS = asyncio.Event()


class _Writable:
    """asyncio.Event for the one response that waits; the Event's deque of waiters takes 600 bytes for each connection."""

    __slots__ = ("_set", "_waiter")

    def __init__(self) -> None:
        self._set = True
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        self._set = False

    async def wait(self) -> None:
        while not self._set:
            if self._waiter is None or self._waiter.done():
                self._waiter = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._waiter)
        self._waiter = None


class Protocol(Intake):
    """Puts itself into the ASGI scope, and lets no client hold a connection by doing nothing.

    There are two ways to do that. Not to say what one wants: uvicorn's keep-alive timer is taken off by any byte, be it
    a blank line or the rest of a body that nobody waits for, so a timer of ours runs whenever no request does. And not
    to read: then bytes stay in the transport's buffer, which is to hold none. The relay drops, counts and logs its own
    viewers; this is for every other response, and for what is left after a close.
    """

    __slots__ = ("_patience", "_unread", "lost", "on_lost")  # a dict of more than uvicorn's own would be twice as large

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.on_lost: Callable[[], None] | None = None
        """What to call when the connection is gone."""
        self.lost = False
        self._patience: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow._is_writable_event = _Writable()  # type: ignore[assignment]
        transport.set_write_buffer_limits(high=0)  # paused, and the timer runs, as soon as the socket takes no more
        self._begin_patience()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and self.cycle.response_complete:
            self._begin_patience()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_patience()
        extensions: dict[str, Any] = {CONNECTION: self}
        self.scope["extensions"] = extensions

    @property
    def chunked(self) -> bool:
        """Whether the response that is being sent is in chunks, so that a chunk more may be written to the transport."""
        return bool(self.cycle and self.cycle.chunked_encoding and not self.cycle.response_complete)

    def asked(self) -> None:
        """Nobody will ask for more of this request: its headers go, and what uvicorn would wake them by is shared by all."""
        if self.cycle is not None:
            self.cycle.message_event = _NOBODY_WAITS
        self.headers = []

    def on_headers_complete(self) -> None:
        self._end_patience()
        super().on_headers_complete()

    def refuse(self, error: StreamspoolError) -> None:
        self._end_patience()  # those before it may take their time, and lingering has timers of its own
        super().refuse(error)

    def pause_writing(self) -> None:
        super().pause_writing()
        send_timeout_s: float = self.config.app.state.services.settings.send_timeout_s  # type: ignore[union-attr]
        self._unread = self.loop.call_later(send_timeout_s + _GRACE_S, self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_patience()
        if self._unread:
            self._unread.cancel()
        super().connection_lost(exc)
        self.lost = True
        if self.on_lost:
            self.on_lost()
        if self.scope is not None:
            self.scope["extensions"] = {}  # this connection was in there, and has the scope: a circle for the collector

    def _begin_patience(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(HEADERS_S, self.transport.close)

    def _end_patience(self) -> None:
        if self._patience:
            self._patience.cancel()
            self._patience = None


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
        return self.config.app.state.services.hub  # type: ignore[union-attr]


def main() -> None:
    """`python -m api`."""
    try:
        settings = load_settings()
    except SettingsInvalid as error:
        refuse_to_start(str(error))
    configure_logging(settings.log_level)
    if settings.redis_url is None:
        refuse_to_start("The API needs REDIS_URL. `streamspool up` runs everything without it.")
    if not settings.api_keys and not is_loopback(settings.host):
        refuse_to_start(
            f"Refusing to listen on {settings.host} without keys: anybody could spend your provider's tokens.\n"
            "Set STREAMSPOOL_API_KEYS=tenant:key, or HOST=127.0.0.1."
        )
    if not settings.api_keys:
        logger.warning("no API keys: serving this machine only", host=settings.host)
    try:
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
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nothing here asks who the client is
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=int(settings.drain_s) + 5,
    )
    inherited = os.environ.pop(LISTEN_FD, None)
    sockets = [socket.socket(fileno=int(inherited))] if inherited else None
    Server(config, drain, settings.drain_s).run(sockets)
