"""One WebSocket of a client: uvicorn's protocol for those, with our limits. connection.py hands its connections over.

Hidden here: what uvicorn leaves open of a client that does little or too much. A message that is large waits for room as large
bodies do (bodies.py), and has to come in time; a client that does not read is cut off, answers to its pings included; and where
the server stops, a socket is told, and closes itself when its answers are whole: uvicorn closes all of them at once.

Compression is not offered: it costs memory for each socket and time for each token. pyproject.toml admits the versions of
uvicorn that this was read against; tests/project/test_uvicorn.py names each part used.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from api.bodies import LargeBody
from api.live.client import CONNECTION
from shared.errors import Unavailable
from shared.log.blobs import INLINE_BYTES

_PIECE_BYTES, _PIECE_S = 64 * 1024, 30.0
"""How long each 64 KiB of a large message may take."""
_PONGS_BYTES = 64 * 1024
"""So much that is not read, and pings on top, is no client's."""
_GRACE_S = 5.0
"""What a client that does not read is given beyond STREAMSPOOL_SEND_TIMEOUT_S."""
_GOODBYE_S = 5.0
"""How long a client may take to answer a close."""
LINGER_S = 30.0
"""How long a client that was told why may go on sending: a reset would take the reason with it."""
_TOO_SLOW, _NO_ROOM = 1008, 1013


class SocketProtocol(WebSocketsSansIOProtocol):
    """Stands in the ASGI scope as the extension CONNECTION."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.close_timeout = _GOODBYE_S
        self.on_stopping: Callable[[], None] | None = None
        """What to call when the server stops; before that is set, or where it is not, the socket is closed at once."""
        self._deaf = False
        """It has failed, and what comes is dropped."""
        self._unread: asyncio.TimerHandle | None = None
        self._slow: asyncio.TimerHandle | None = None
        self._coming = self._timed = 0
        """Bytes of the message that is coming, and of them, those that came in time."""
        self._making: asyncio.Task[None] | None = None
        self._room: LargeBody | None = None
        self._rooms: deque[LargeBody | None] = deque()
        """What the messages that nobody has received yet take."""

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        extensions: dict[str, Any] = {CONNECTION: self, "websocket.http.response": {}}
        self.scope["extensions"] = extensions

    async def receive(self) -> Any:
        """A message has the room that it takes as `room`, to be kept as long as the message is."""
        message: Any = await super().receive()
        if message["type"] == "websocket.receive":
            message["room"] = self._rooms.popleft()
        return message

    # ---- what comes

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._coming += len(data)
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.transport.close()
        if self._coming - self._timed >= _PIECE_BYTES and self._room is not None:
            self._time()
        if self._coming > INLINE_BYTES and self._room is None and self._making is None:
            self.transport.pause_reading()
            self._making = self.loop.create_task(self._make_room())
            self.tasks.add(self._making)
            self._making.add_done_callback(self.tasks.discard)

    def send_receive_event_to_app(self) -> None:
        if not self.close_sent:
            self._rooms.append(self._room)
        self._room, self._coming, self._timed = None, 0, 0
        self._end_time()
        super().send_receive_event_to_app()

    async def _make_room(self) -> None:
        """A message does not tell its length: it counts as the largest."""
        services = self.config.app.services  # type: ignore[union-attr]
        try:
            self._room = await services.bodies.hold(services.settings.max_body_bytes)
        except Unavailable as error:
            self._fail(_NO_ROOM, str(error))
            return
        finally:
            self._making = None
        if not self.transport.is_closing():
            self._time()
            self.transport.resume_reading()

    def _time(self) -> None:
        self._end_time()
        self._timed = self._coming
        self._slow = self.loop.call_later(_PIECE_S, self._fail, _TOO_SLOW, "The message did not arrive in time.")

    def _end_time(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _fail(self, code: int, reason: str) -> None:
        if not (self._deaf or self.transport.is_closing()):
            self.conn.fail(code, reason[:120])
            self.handle_parser_exception()

    def handle_parser_exception(self) -> None:
        """What came was none of ours, or too much: the client is told why, and has time to hear it."""
        closed = self.conn.close_sent
        code, reason = (closed.code, closed.reason) if closed is not None else (1006, "")
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self._deaf = self.close_sent = True
        self._end_time()
        self._room = None
        self.close_timer = self.loop.call_later(LINGER_S, self.transport.close)
        self.transport.resume_reading()

    def handle_ping(self) -> None:
        if self.transport.get_write_buffer_size() > _PONGS_BYTES:
            self.transport.abort()
        else:
            super().handle_ping()

    # ---- what goes

    def pause_writing(self) -> None:
        super().pause_writing()
        send_timeout_s: float = self.config.app.services.settings.send_timeout_s  # type: ignore[union-attr]
        self._unread = self.loop.call_later(send_timeout_s + _GRACE_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._end_unread()
        super().resume_writing()

    def _end_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def shutdown(self) -> None:
        if self.on_stopping is not None and self.handshake_complete and not self.close_sent:
            self.on_stopping()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_unread()
        self._end_time()
        if self._making is not None:
            self._making.cancel()
        self._room = None
        super().connection_lost(exc)
