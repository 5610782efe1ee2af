"""The HTTP client of both ends: the only module that knows which library does it.

Hidden here: aiohttp, whose connections they are: a paced chunk costs a quarter of what it does through httpx's, and all that
came in one packet is read at once. Of httpx there are the errors, the reading of a URL and the certificates. All other code
sees a client, a response and a few errors.

A kept connection may have been closed by the server while it was idle, and that shows only when the next request goes
out. If nothing of a response came on a connection that was used before, the request is made again at once, on a new one:
RFC 9112 §9.3.1 has it for requests that can be repeated, browsers do it for all (Chromium's HttpNetworkTransaction), since
a server that has closed has read nothing. Never twice, and never once a byte of the response has come.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple, Self

import aiohttp
import httpx
import yarl
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from multidict import CIMultiDictProxy

from shared import __version__
from shared.lib import light_http
from shared.lib.proxies import NO_PROXIES, Proxies

logger = logging.getLogger(__name__)  # the library's own: structlog's takes 0.1 s more to import, in every command

TransportError = httpx.TransportError
"""Base of the ones below and of every other way the connection may fail. Its text may hold an address: do not show it."""

Timeout = httpx.TimeoutException
ConnectTimeout = httpx.ConnectTimeout
ConnectError = httpx.ConnectError
ProxyError = httpx.ProxyError
"""The proxy is away, or refuses to connect. Its text is ours and holds no address."""

InvalidURL = httpx.InvalidURL
"""The URL cannot be asked at all. Not a TransportError."""

Tap = Callable[[bytes], bool]

_IDLE_S = 30.0
_READ_AHEAD = 64 * 1024
"""Bytes aiohttp may hold, twice, before it stops reading from a provider whose stream is not read."""
_HEADER_LINE = 64 * 1024
_URLS = 256
_WITH_BODY = ("POST", "PUT", "PATCH")
_NO_TYPE = ("Content-Type",)


def open_client(connect_timeout_s: float, proxies: Proxies = NO_PROXIES) -> Client:
    """A client that only ever times out while connecting: how long silence may last is the caller's to say.

    Idle connections are kept for 30 s, since a TLS handshake costs a provider's first token 50 to 200 ms. There is no
    limit on open ones: the number of generations is limited elsewhere. Without `proxies` nothing is asked through any,
    whatever the environment says.
    """
    return Client(connect_timeout_s, proxies)


class Client:
    """Requests over connections that are kept, and nothing else: no cookies (one tenant's answer must not leave one that goes
    out with another's request), no redirects, no credentials or time-outs from elsewhere. An async context manager.

    What follows from a URL alone is found out once for each of the last 256.
    """

    def __init__(self, connect_timeout_s: float, proxies: Proxies) -> None:
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s)
        self._headers = {"user-agent": user_agent(), "accept": "*/*", "accept-encoding": "identity"}
        self._address = lru_cache(_URLS)(partial(_address, proxies))
        self._keeping: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None
        """Its connections are new ones, each for one request."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in filter(None, (self._keeping, self._fresh)):
            await session.close()

    async def request(
        self, method: str, url: str, *, headers: Mapping[str, str], content: bytes | AsyncIterable[bytes] | None = None
    ) -> Response:
        """Returns once the response's headers are there; its body is read from it, and it has to be closed.

        `headers`, in lower case, go before our own; with an iterable as `content` they have its `content-length`. Raises
        InvalidURL, TransportError, and UnicodeEncodeError for a header that is not ASCII.
        """
        "".join(headers.values()).encode("ascii")
        is_kept = content is None or isinstance(content, bytes)  # a body in pieces could not be sent once more
        try:
            address = self._address(url)
            none = {"Content-Length": "0"} if not content and method in _WITH_BODY else {}
            size = {"Content-Length": str(len(content))} if content and isinstance(content, bytes) else {}
            sent = {"Host": address.host, **none, **self._headers, **headers, **size, **address.headers}
            while True:
                session = (self._keeping if is_kept else self._fresh) or self._open(is_kept=is_kept)
                try:
                    response = await session.request(
                        method,
                        address.url,
                        headers=sent,
                        skip_auto_headers=None if "content-type" in headers else _NO_TYPE,
                        data=content or None,
                        allow_redirects=False,
                        proxy=address.proxy,
                        proxy_headers=address.proxy_headers,
                    )
                    return Response(response)
                except _Stale:
                    logger.debug("connection had been closed")
                    is_kept = False
        except _FAILURES as error:
            raise _told(error) from error
        except ValueError as error:  # yarl's own words for a port that is none, aiohttp's for headers that cannot be
            raise httpx.UnsupportedProtocol(str(error)) from None

    def _open(self, *, is_kept: bool) -> aiohttp.ClientSession:
        """It belongs to the loop it is made in."""
        kept_s = _IDLE_S if is_kept else None
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=kept_s, force_close=not is_kept)
        connector._factory = partial(_Handler, loop=asyncio.get_running_loop())  # type: ignore[assignment]
        session = aiohttp.ClientSession(
            connector=connector,
            response_class=_Response,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=self._timeout,
            read_bufsize=_READ_AHEAD,
            max_line_size=_HEADER_LINE,
            max_field_size=_HEADER_LINE,
        )
        if is_kept:
            self._keeping = session
        else:
            self._fresh = session
        return session


class _Address(NamedTuple):
    """What follows from a URL and the proxies alone. A proxy is told `headers` with a request that it reads, and
    `proxy_headers` with the CONNECT to where it reads none."""

    url: yarl.URL
    host: str
    headers: Mapping[str, str]
    proxy: str | None
    proxy_headers: Mapping[str, str] | None


def _address(proxies: Proxies, url: str) -> _Address:
    """Raises InvalidURL, ValueError."""
    parsed = httpx.URL(url)
    text = str(parsed)
    proxy = proxies.proxy_for(text) if proxies.by_scheme else None
    headers, connecting = dict[str, str](), None
    if proxy and proxy.user is not None:
        credentials = f"Basic {b64encode(f'{proxy.user}:{proxy.password}'.encode()).decode('ascii')}"
        if parsed.scheme == "https":
            connecting = {"authorization": credentials}  # which aiohttp makes the proxy's
        else:
            headers = {"proxy-authorization": credentials}
    host, through = parsed.netloc.decode("ascii"), proxy.url if proxy else None
    return _Address(yarl.URL(text, encoded=True), host, headers, through, connecting)


class _Stale(Exception):
    """The connection was kept from an earlier request, and broke before anything of this one's response had come."""


class _Handler(ResponseHandler):
    """One connection, which also remembers what aiohttp forgets when it breaks.

    And it closes where something comes that was not asked for: a 408 before a kept connection is closed, or more than the
    body said. aiohttp would keep it for the next request, perhaps another tenant's, as the response to that.
    """

    requests = 0
    heard = False
    """Something of the response to the last request has come."""
    tap: Tap | None = None
    """Is offered each piece of the body for which somebody waits."""
    _answered = False

    def set_response_params(self, **options: Any) -> None:
        self.requests += 1
        self.heard = self._answered = False
        super().set_response_params(**options)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """aiohttp asks for it after each piece of a body that was read, and feeds its parser, though nothing was held."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def data_received(self, data: bytes) -> None:
        self.heard = self.heard or bool(data)  # aiohttp says b"" where it reads on
        if data and self._answered and (self._payload is None or self._payload.is_eof()):
            self._unasked()
        else:
            super().data_received(data)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """`data` is a response's head and its body."""
        if self._answered:
            self._unasked()
            return
        self._answered = data[0].code >= 200  # those before it are no answers (RFC 9110 §15.2)
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Where chunks are none, aiohttp tells who waits for a head, and lets who waits for the body wait."""
        super().set_exception(exc, *cause)
        if (body := self._payload) is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError(str(exc)))

    def _unasked(self) -> None:
        logger.debug("connection closed: nobody had asked for what came")
        if self.transport is not None:
            self.transport.close()


class _Response(aiohttp.ClientResponse):
    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """Raises _Stale."""
        handler = connection.protocol
        try:
            return await super().start(connection)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, ConnectionError) as error:
            # Where aiohttp should have made a connection of another kind, nothing is known of it, and so nothing repeated.
            if isinstance(handler, _Handler) and handler.requests > 1 and not handler.heard:
                raise _Stale from error
            raise


_feed = aiohttp.StreamReader.feed_data


class _Body(aiohttp.StreamReader):
    """What aiohttp's parser feeds a body to, with a tap. It makes that itself, so one becomes this."""

    __slots__ = ()

    def feed_data(self, data: bytes, size: int = 0) -> bool:
        if self._waiter is not None and not self._buffer and not self._waiter.done():  # nor is it told to wait no more
            tap: Tap | None = self._protocol.tap  # type: ignore[attr-defined]
            if tap is not None and tap(data):
                return False
        return _feed(self, data)


class Headers(Mapping[str, str]):
    """Of a response, by their names in any case. What came in several is one, with commas (RFC 9110 §5.3)."""

    __slots__ = ("_received",)

    def __init__(self, received: CIMultiDictProxy[str]) -> None:
        self._received = received

    def __getitem__(self, name: str) -> str:
        value = ", ".join(self._received.getall(name))
        return value if value.isascii() else _decoded(value)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.lower() for name in self._received))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self._received else default


def _decoded(value: str) -> str:
    """What aiohttp has taken for UTF-8, leaving marks for the bytes that are none."""
    received = value.encode("utf-8", "surrogateescape")
    try:
        return received.decode()
    except UnicodeDecodeError:
        return received.decode("latin-1")


class Response:
    """`status_code`, `headers`, and a body. Closed before its end, it closes the connection; read to its end, the connection
    is kept."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status_code = response.status
        self.headers = Headers(response.headers)
        self._response, self._content = response, response.content
        self._broken: Exception | None = None
        self._tap: Tap | None = None
        self._tapped: _Handler | None = None

    def offer(self, tap: Tap) -> None:
        """A piece of the body that comes while it is waited for is offered to `tap` from now on: if that takes it, nobody
        wakes for it."""
        connection = self._response.connection
        handler = connection.protocol if connection is not None else None
        if type(self._content) is aiohttp.StreamReader and isinstance(handler, _Handler):
            self._content.__class__ = _Body
            handler.tap = self._tap = tap
            self._tapped = handler

    async def piece(self) -> bytes:
        """What has come of the body since the last one, once there is something; b"" at its end. Raises TransportError."""
        data = b""
        try:
            if self._broken is None:
                data = await self._content.readany()
        except _FAILURES as error:
            self._broken = error
            data = self._content._read_nowait(-1)  # came before the connection broke, and aiohttp would drop it
        finally:
            if not data:
                self._offer_no_more()
        if self._broken is not None and not data:
            raise _told(self._broken) from self._broken
        return data

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """All that comes, as `piece` has it."""
        while data := await self.piece():
            yield data

    @property
    def is_complete(self) -> bool:
        """All of the body has come, be it read or not: the connection is another request's. Or it is closed."""
        return self._response.connection is None

    def close(self) -> None:
        self._offer_no_more()
        if self._response.connection is not None:
            self._response.close()

    def _offer_no_more(self) -> None:
        if self._tapped is not None and self._tapped.tap is self._tap:  # else the next request has it already
            self._tapped.tap = None
        self._tapped = None


_FAILURES = (aiohttp.ClientError, asyncio.IncompleteReadError, OSError)


def _told(error: Exception) -> TransportError:
    """What aiohttp raised as what httpx would: the worker tells failures apart by these."""
    match error:
        case aiohttp.ConnectionTimeoutError() | aiohttp.ServerTimeoutError():
            return ConnectTimeout(str(error))
        case aiohttp.ClientHttpProxyError():
            return ProxyError(f"the proxy refuses with HTTP {error.status}")
        case aiohttp.ClientProxyConnectionError():
            return ProxyError(f"the proxy cannot be reached ({reason(error.os_error)})")
        case aiohttp.ClientConnectorError():
            return ConnectError(str(error))
        case aiohttp.InvalidURL():
            return httpx.UnsupportedProtocol(str(error))
        case aiohttp.ClientResponseError():  # not HTTP, or headers beyond all measure
            return httpx.RemoteProtocolError(str(error))
    return httpx.ReadError(str(error))


def reason(error: BaseException) -> str:
    """Why there was no connection, in a few words without an address; the error's name where nothing better is known."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ProxyError):
            return str(link)
        if isinstance(link, httpx.TimeoutException):
            return "no answer in time"
        if isinstance(link, httpx.RemoteProtocolError):
            return "it does not speak HTTP as expected"
        if isinstance(link, aiohttp.ClientConnectorDNSError):
            return "the name is not known here"
        if isinstance(link, aiohttp.ClientConnectorCertificateError):
            return light_http.said_of(link.certificate_error)
        if said := light_http.said_of(link):
            return said
        link = link.__cause__ or link.__context__
    return type(error).__name__


def public_tls() -> ssl.SSLContext:
    """Checks certificates against the public authorities, or those that SSL_CERT_FILE or SSL_CERT_DIR names."""
    return httpx.create_ssl_context(trust_env=True)


def user_agent() -> str:
    """`streamspool/VERSION`."""
    return f"streamspool/{__version__}"
