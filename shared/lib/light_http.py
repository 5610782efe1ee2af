"""HTTP/1.1 for programs that ask and end, and that are to start quickly: one request over a connection of its own.

Hidden here: connecting, sending and framing (httptools, the parser that the server has, too). shared.lib.http does more, keeps
connections, and takes half a second to import, which is longer than most commands run.

A response may come before its request has been sent: a body that is too large is refused while it is on its way. It is read
then, whatever became of the rest (RFC 9112 §9.5).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import httptools

from shared import __version__

_PIECE_BYTES = 64 * 1024
_HEAD_BYTES = 256 * 1024
_AS_IT_IS = "!#$%&'()*+,/:;=?@[]~"
"""What a path and query may hold beside letters and digits; the rest is percent-encoded."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


class InvalidURL(ValueError):
    """No http or https URL with a host."""


class Broken(Exception):
    """There was no connection, no HTTP, or no end of a response. The text says why in a few words, without an address."""


class Response:
    """`status_code`, `headers` by their names in lower case (of one that came twice, the last)."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self.status_code = connection.status
        self.headers = connection.headers

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The body, as it comes. Raises Broken where it ends too soon; one without a length may end anywhere."""
        while piece := await self._connection.body():
            yield piece

    async def read(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])


@asynccontextmanager
async def asked(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    content: bytes | AsyncIterator[bytes] | None = None,
    connect_timeout_s: float,
) -> AsyncIterator[Response]:
    """Sends a request and gives its response once the head is there; the connection is closed when the context ends.

    `headers`, in lower case, go before our own; with an iterator as `content` they have its `content-length`. Only connecting
    times out by itself, with Broken. Raises InvalidURL, Broken.
    """
    place = _place(url)
    head = _head(method, place, headers, content)
    reader, writer = await _connected(place, connect_timeout_s)
    sending = asyncio.create_task(_send(writer, head, content))
    try:
        connection = _Connection(reader)
        await connection.head()
        yield Response(connection)
    finally:
        writer.transport.abort()
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending  # raises what `content` did


class _Place(NamedTuple):
    scheme: str
    host: str
    port: int
    authority: str
    path: str


def _place(url: str) -> _Place:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidURL(str(error)) from None
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise InvalidURL(url)
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise InvalidURL(str(error)) from None
    authority = quote(f"[{name}]" if ":" in name else name, safe="[]:.-_~")
    path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_AS_IT_IS)
    default = _DEFAULT_PORTS[parts.scheme]
    return _Place(
        parts.scheme,
        name,
        default if port is None else port,
        authority if port is None else f"{authority}:{port}",
        path,
    )


def _head(
    method: str, place: _Place, headers: Mapping[str, str], content: bytes | AsyncIterator[bytes] | None
) -> bytes:
    length = {"content-length": str(len(content))} if isinstance(content, bytes) else {}
    ours = {"host": place.authority, "user-agent": f"streamspool/{__version__}", "connection": "close", **length}
    lines = [f"{method} {place.path} HTTP/1.1", *(f"{name}: {value}" for name, value in {**ours, **headers}.items())]
    if any("\n" in line or "\r" in line or "\0" in line for line in lines):
        raise ValueError("a header cannot have a line break")
    return "\r\n".join((*lines, "\r\n")).encode("latin-1")


async def _connected(place: _Place, timeout_s: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To the first of the host's addresses that takes it."""
    loop = asyncio.get_running_loop()
    tls = ssl.create_default_context() if place.scheme == "https" else None
    failure: Exception | None = None
    try:
        async with asyncio.timeout(timeout_s):
            found = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        for *_, address in found:
            try:
                async with asyncio.timeout(timeout_s):
                    return await asyncio.open_connection(
                        str(address[0]),
                        place.port,
                        limit=_PIECE_BYTES,
                        ssl=tls,
                        server_hostname=place.host if tls else None,
                    )
            except (OSError, TimeoutError, ValueError) as error:
                failure = error
    except (OSError, TimeoutError, ValueError) as error:  # ValueError: a name that none can be
        failure = error
    raise Broken(reason(failure) if failure else "the name is not known here") from failure


async def _send(writer: asyncio.StreamWriter, head: bytes, content: bytes | AsyncIterator[bytes] | None) -> None:
    """An error of the connection is the reader's to tell; where `content` fails, the connection is cut."""
    try:
        writer.write(head)
        if isinstance(content, bytes):
            writer.write(content)
        elif content is not None:
            async for piece in content:
                writer.write(piece)
                await writer.drain()
        await writer.drain()
    except ConnectionError:
        pass
    except BaseException:
        writer.transport.abort()
        raise


class _Connection:
    """A response as it is parsed: httptools calls the `on_…` methods."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._head_whole = self._whole = False
        self.status = 0
        self.headers: dict[str, str] = {}

    async def head(self) -> None:
        size = 0
        while not self._head_whole:
            received = await self._received()
            size += len(received)
            if not received and not self._head_whole:
                raise Broken("the connection was closed without an answer")
            if size > _HEAD_BYTES and not self._head_whole:
                raise Broken("the headers of its answer have no end")

    async def body(self) -> bytes:
        """The next piece, b"" at the end."""
        while not self._pieces and not self._whole:
            if await self._received():
                continue
            if "content-length" in self.headers or "chunked" in self.headers.get("transfer-encoding", "").lower():
                raise Broken("the connection was cut")
            self._whole = True
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)

    async def _received(self) -> bytes:
        try:
            received = await self._reader.read(_PIECE_BYTES)
            if received:
                self._parser.feed_data(received)
        except httptools.HttpParserUpgrade:
            raise Broken("it changed to another protocol") from None
        except httptools.HttpParserError:
            if self._whole:  # what follows a whole response is nothing that was asked for
                return b""
            raise Broken("what answers there does not speak HTTP") from None
        except OSError as error:
            raise Broken(reason(error)) from error
        return received

    def on_message_begin(self) -> None:
        self.headers = {} if not self._head_whole else self.headers

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_whole:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and not self._head_whole:  # those before it are no answers (RFC 9110 §15.2)
            self.status, self._head_whole = status, True

    def on_body(self, body: bytes) -> None:
        if not self._whole:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._whole = self._head_whole


def reason(error: BaseException) -> str:
    """Why there was no connection, in a few words without an address; the error's name where nothing better is known."""
    link: BaseException | None = error
    while link is not None:
        if said := said_of(link):
            return said
        link = link.__cause__ or link.__context__
    return type(error).__name__


def said_of(error: BaseException) -> str:
    """The same of one error alone; empty where nothing is known."""
    if isinstance(error, Broken):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror | UnicodeError):
        return "the name is not known here"
    if isinstance(error, ssl.SSLCertVerificationError):
        why = getattr(error, "verify_message", "")
        return f"its certificate is not accepted ({why})" if why else "its certificate is not accepted"
    if isinstance(error, ssl.SSLError):
        return "it does not speak TLS as expected"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return ""
