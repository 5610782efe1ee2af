"""One connection of a client: uvicorn's HTTP protocol with our limits. Everything private of uvicorn's is touched here.

Hidden here: httptools keeps a request line, a header or a trailer for as long as it grows, and has no setting for that; it
calls trailers headers; and a socket that is closed with something unread answers with a reset, which takes the response
with it. So everything that is no body is counted: a head (request line and header fields), trailers, and what chunks have
around their data. Too much of it is answered with 431 (intake.py), in its turn, and then the connection lingers: nothing
more is said, and what still comes is dropped, until the client has seen the answer (RFC 9112 §9.6).

Hidden as well: which client holds a connection by doing nothing, how a response writes to the connection without a detour,
or ends it in mid-response, and what httptools and uvicorn take another way than the world does:

- A request that may be asked in HTTP/1.1, but offers another protocol, as Java's and curl's clients do: httptools leaves its
  body unread. It is asked again without the offer, which a server may ignore (RFC 9110 §7.8). Only where the application has
  a WebSocket at its path, an offer of one is taken, and the connection is sockets/protocol.py's from there on.
- An HTTP/1.0 client knows no chunks: its answer ends where the connection does (RFC 9112 §6.1, §6.3).
- A client that shuts its sending side still wants its answer. One that has gone looks the same until it is written to: a
  stream is probed with a comment, and whether it counts as gone before that is the response's to say.

A request of the common kind, which comes in one piece, costs a few comparisons. What is larger is taken in slices: where two
share one, the count of an unfinished head may be short by it; a finished one is added up exactly. pyproject.toml admits the
versions of uvicorn that this was read against; tests/project/test_uvicorn.py names each part used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api import intake, stand_ins
from api.live.client import CONNECTION
from api.stand_ins import AnyLength, Held, Lingering, Pipeline, Writable, leftover, new_parser
from shared.errors import StreamspoolError, without_frames
from shared.lib.telemetry import REQUESTS, get_logger

logger = get_logger(__name__)

HEADERS_S = 30.0
"""How long a client may take to say what it wants: until the headers of its first request, and of each later one."""
LINGER_S, LINGER_IDLE_S = 30.0, 5.0
"""How long a client that was answered may go on sending: in all, and without a byte."""

_SLICE_BYTES = 16 * 1024
_CHUNK_BYTES = 32
"""More than a chunk without extensions has around it: its length in hexadecimal, and two line breaks."""

_GRACE_S = 5.0
"""What a client that does not read is given beyond STREAMSPOOL_SEND_TIMEOUT_S."""
_PROBES, _PROBE_S = 3, 0.25
_NOT_AWAITED = asyncio.Event()

_BETWEEN, _HEAD, _BODY = range(3)


class _Intake(HttpToolsProtocol):
    """uvicorn's protocol with these limits, for an application that speaks HTTP/1.1 and nothing else."""

    __slots__ = tuple("_around _dropped _linger _offer _piece _place _refusal _shared _socket deaf ended".split())

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.pipeline = Pipeline()  # type: ignore[assignment]
        self.deaf = self._dropped = False
        """Nothing that comes is read any more; and whether something was dropped since one last looked."""
        self.ended = False
        """The client has shut its sending side."""
        self._offer = False
        """The request being read offers another protocol, and is to be read again without that."""
        self._socket: Any = False
        """What the connection goes on as, if not as it is: True once that is settled, then the protocol."""
        self._place = _BETWEEN
        self._piece = 0
        """Bytes of the last slice, as long as no request has begun in it."""
        self._shared = False
        """The head began in a slice that other requests have a part in, which was not counted."""
        self._around = 0
        """Bytes that came of this head; after it, of this request and not of its body."""
        self._refusal: StreamspoolError | None = None
        """To be said when those before it have their answers."""
        self._linger: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if len(data) <= _SLICE_BYTES:
            self._take(data)
            return
        whole = memoryview(data)
        for start in range(0, len(data), _SLICE_BYTES):
            self._take(whole[start : start + _SLICE_BYTES])

    def _take(self, data: bytes | memoryview) -> None:
        if self.deaf:
            self._dropped = True
            return
        if self._socket:  # the rest of what came with its offer
            self._socket.data_received(bytes(data))
            return
        if self._place == _BETWEEN:
            self._piece = len(data)
            self.parser = self.parser or new_parser(self)
        else:
            self._around += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offered:
            rest = memoryview(data)[offered.args[0] :]
            self._go_on_as_socket(rest) if self._socket else self._take_without_offer(rest)
            return
        except httptools.HttpParserError as error:
            why = error.__context__  # what a callback of ours raised
            self.refuse(without_frames(why) if isinstance(why, StreamspoolError) else intake.malformed())
            return
        if self._around > intake.HEAD_BYTES:
            self.refuse(intake.too_large())
        elif self._around < 0:  # a chunk had less around it than it might have
            self._around = 0

    def _take_without_offer(self, rest: memoryview) -> None:
        """The head that offered another protocol again, without its offer, and what came behind it."""
        self.parser = new_parser(self)
        self._place, self._offer = _BETWEEN, False
        self._take(intake.without_offer(self.scope["method"], self.url, self.scope["http_version"], self.headers))
        if rest and not self.deaf:
            self._take(rest)

    def _go_on_as_socket(self, rest: memoryview) -> None:
        """Nothing of this protocol is called any more."""
        self._unset_keepalive_if_required()
        self.handle_websocket_upgrade()
        self._socket = self.transport.get_protocol()
        if rest:
            self._take(rest)

    def on_message_begin(self) -> None:
        self._place, self._around, self._piece, self._shared = _HEAD, self._piece, 0, not self._piece
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        name, value = name.lower(), value.strip(b" \t")  # blanks around it are no part of it (RFC 9110 §5.5)
        if name == b"expect":
            super().on_header(name, value)
        else:  # all that uvicorn does
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._shared or self._around > intake.HEAD_BYTES or len(self.headers) > intake.HEAD_FIELDS:
            intake.weigh(self.headers, intake.LINE_BYTES + len(self.url))
        version = self.parser.get_http_version()
        intake.check_host(self.headers, version)
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise intake.no_tunnel()
            self.scope["method"], self.scope["http_version"] = self.parser.get_method().decode(), version
            busy, app = self.pipeline or (self.cycle is not None and not self.cycle.response_complete), self.config.app
            self._socket = not busy and intake.opens_socket(self.scope, self.url, self.headers, app.has_socket)  # type: ignore[arg-type, union-attr]
            self._offer = True
            return
        self._place, self._around = _BODY, 0
        super().on_headers_complete()
        self.headers = []  # for trailers: whoever looked at the headers must not have missed some (RFC 9110 §6.5.1)
        if version == "1.0":
            self.cycle.chunked_encoding = self.cycle.waiting_for_100_continue = False  # no 100 for it (RFC 9110 §15.2)
            self.cycle.expected_content_length = AnyLength()
        self.cycle.keep_alive &= not self.config.app.services.drain.native  # type: ignore[union-attr]
        if not self.cycle.keep_alive:
            self.cycle.transport = cast("asyncio.Transport", Lingering(self))
        if len(self.pipeline) > intake.PIPELINED:
            raise intake.too_many()

    def on_chunk_header(self) -> None:
        self._around -= _CHUNK_BYTES

    def on_body(self, body: bytes) -> None:
        self._around -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._offer:
            return  # nothing of it was read but its head
        if self.headers:
            intake.weigh(self.headers)
            self.headers.clear()
        self._place = _BETWEEN
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._linger is not None:
            self.server_state.total_requests += 1
            return
        last = not self.pipeline
        super().on_response_complete()
        if last and self._refusal is not None and not self.transport.is_closing():
            self._say(self._refusal)

    def refuse(self, error: StreamspoolError) -> None:
        """Reads nothing more, and answers with the error once those before it have their answers; or not at all, if the
        request that is at fault has one already."""
        self.deaf = True
        self._unset_keepalive_if_required()
        cycle = self.cycle
        logger.debug("request refused", error_code=error.code)
        if self._place != _BODY or cycle is None:  # it has no cycle: `cycle` is the one before it
            waits = cycle is not None and not cycle.response_complete
        elif self.pipeline and self.pipeline[0][0] is cycle:
            del self.pipeline[0]
            waits = True
        elif cycle.response_started:
            if cycle.response_complete:
                self.linger()
            cycle.keep_alive = False
            return
        else:
            cycle.disconnected = True  # whatever the application has to say to half a request is not sent
            cycle.message_event.set()
            waits = False
        if waits:
            self._refusal = error
            self.flow.pause_reading()
        else:
            self._say(error)

    def linger(self) -> None:
        """Says that nothing more will be said, and drops what comes until the client has understood."""
        if self._linger is not None or self.transport.is_closing():
            return
        self.deaf, self._dropped, self._refusal = True, False, None
        self._unset_keepalive_if_required()
        if self.ended or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._look_again(self.loop.time() + LINGER_S)

    @property
    def mid_request(self) -> bool:
        """Whether a request has begun and is not over."""
        return self._place != _BETWEEN

    def shutdown(self) -> None:
        self.transport.close() if self._linger is not None else super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        super().connection_lost(exc)
        if self.cycle is not None:
            self.cycle.transport = self.transport  # a circle would wait for the garbage collector, which comes rarely

    def _look_again(self, until: float) -> None:
        self._dropped = False
        patience_s = min(LINGER_IDLE_S, max(0.0, until - self.loop.time()))
        self._linger = self.loop.call_later(patience_s, self._end_linger, until)

    def _end_linger(self, until: float) -> None:
        if self._dropped and self.loop.time() < until:
            self._look_again(until)
        else:
            self.transport.close()

    def _say(self, error: StreamspoolError) -> None:
        REQUESTS.labels("none", error.status).inc()
        self.transport.write(intake.refusal(error, self.server_state.default_headers))
        self.linger()


class Protocol(_Intake):
    """Puts itself into the ASGI scope, and lets no client hold a connection by doing nothing.

    There are two ways to do that. Not to say what one wants: uvicorn's keep-alive timer is taken off by any byte, be it
    a blank line or the rest of a body that nobody waits for, so a timer of ours runs whenever no request does. And not
    to read: then bytes stay in the transport's buffer, which is to hold none. The relay drops, counts and logs its own
    viewers; this is for every other response, and for what is left after a close.
    """

    # a dict of more than uvicorn's own would be twice as large
    __slots__ = ("_patience", "_unread", "comment", "lost", "needed", "on_lost")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.on_lost: Callable[[], None] | None = None
        """What to call when the connection is gone."""
        self.lost = False
        self.needed = False
        """A client that has said all it has to say counts as gone: what it waits for is to end without it."""
        self.comment = b""
        """What may be written at any time into the stream that is being sent, and means nothing."""
        self._patience: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.server, self.client = stand_ins.server_address(self.server), stand_ins.client_address(self.client)
        self.flow._is_writable_event = Writable()  # type: ignore[assignment]
        transport.set_write_buffer_limits(high=0)  # paused, and the timer runs, as soon as the socket takes no more
        self._begin_patience()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and self.cycle.response_complete:
            self._begin_patience()

    def eof_received(self) -> bool:  # type: ignore[override]  # whether the connection stays open, as asyncio has it
        cycle = self.cycle
        due = cycle is not None and not cycle.response_complete and self._place != _BODY
        if not due or self._linger is not None or (self.needed and not self.comment):
            return False
        self._end_patience()
        self.ended, cycle.keep_alive = True, False
        self._probe(_PROBES)
        return True

    def _probe(self, times: int) -> None:
        """Writes to a client that may be gone: the first time it answers with a reset, and the next time that is seen."""
        over = self.pipeline or self.cycle.response_complete or self.transport.is_closing()
        if times and not over and (comment := self.comment):
            self.transport.write(b"%x\r\n%b\r\n" % (len(comment), comment) if self.chunked else comment)
            self.loop.call_later(_PROBE_S, self._probe, times - 1)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_patience()
        self.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]

    @property
    def chunked(self) -> bool:
        """Whether the response that is being sent is in chunks, so that a chunk more may be written to the transport."""
        return bool(self.cycle and self.cycle.chunked_encoding and not self.cycle.response_complete)

    def asked(self) -> None:
        """Nobody will ask for more of this request: its head goes, and what uvicorn would wake them by is shared by all."""
        if self.cycle is not None and not self.pipeline:
            self.cycle.message_event, self.cycle.body = _NOT_AWAITED, b""  # type: ignore[assignment]
        if self._place == _BETWEEN:  # else it is that of the next one
            self.headers, self.url, self.parser = (), b"", None  # type: ignore[assignment]

    def begun(self) -> None:
        """The response has begun: of its request's scope, nobody wants more than the method."""
        cycle = self.cycle  # after HEAD, whose response is over by now, maybe that of the next request
        if cycle is not None and cycle.response_started and not self.pipeline and cycle.scope is self.scope:
            scope: Any = leftover(self.scope["method"])
            cycle.scope = self.scope = scope

    def hold_head(self) -> Held | None:
        """Holds what is sent of the response until `Held.send`. None: what would begin is not this request's, or its connection
        is to be closed behind it, or what went before is not gone yet."""
        cycle = self.cycle
        if cycle is None or self.pipeline or cycle.response_started or cycle.transport is not self.transport:
            return None
        return None if self.transport.get_write_buffer_size() else Held(self)

    def on_headers_complete(self) -> None:
        self._end_patience()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:  # it was answered before it was over
            self._end_patience()
            self._begin_patience(self.timeout_keep_alive)

    def refuse(self, error: StreamspoolError) -> None:
        self._end_patience()  # those before it may take their time, and lingering has timers of its own
        super().refuse(error)

    def pause_writing(self) -> None:
        super().pause_writing()
        send_timeout_s: float = self.config.app.services.settings.send_timeout_s  # type: ignore[union-attr]
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
        if self.scope is not None and "extensions" in self.scope:
            self.scope["extensions"] = {}  # this connection was in there, and has the scope: a circle for the collector

    def _begin_patience(self, patience_s: float | None = None) -> None:
        if self._patience is None and not self._socket:
            self._patience = self.loop.call_later(patience_s or HEADERS_S, self.transport.close)

    def _end_patience(self) -> None:
        if self._patience:
            self._patience.cancel()
            self._patience = None
