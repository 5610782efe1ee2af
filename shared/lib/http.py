"""The HTTP client of both ends: the only module that knows which library does it.

Hidden here: httpx, of which we want the words and not the client (netrc from the environment, redirects, cookies), and the
transport under it, which is aiohttp's: a paced chunk costs a quarter of what it does through httpx's own, and all that came in
one packet is read at once. All other code sees a client, a response and a few errors.

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
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

import aiohttp
import httpx
import yarl
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

from shared import __version__
from shared.lib import light_http
from shared.lib.proxies import NO_PROXIES, Proxies, Proxy

logger = logging.getLogger(__name__)  # the library's own: structlog's takes 0.1 s more to import, in every command

Request = httpx.Request

Response = httpx.Response
"""`status_code`, `headers` (case-insensitive), `aiter_raw()`, `aclose()`."""

TransportError = httpx.TransportError
"""Base of the ones below and of every other way the connection may fail. Its text may hold an address: do not show it."""

Timeout = httpx.TimeoutException
ConnectTimeout = httpx.ConnectTimeout
ConnectError = httpx.ConnectError
ProxyError = httpx.ProxyError
"""The proxy is away, or refuses to connect. Its text is ours and holds no address."""

InvalidURL = httpx.InvalidURL
"""The URL cannot be asked at all. Not a TransportError."""

_IDLE_S = 30.0
_READ_AHEAD = 64 * 1024
"""Bytes aiohttp may hold, twice, before it stops reading from a provider whose stream is not read."""
_HEADER_LINE = 64 * 1024


def open_client(connect_timeout_s: float, proxies: Proxies = NO_PROXIES) -> Client:
    """A client that only ever times out while connecting: how long silence may last is the caller's to say.

    Idle connections are kept for 30 s, since a TLS handshake costs a provider's first token 50 to 200 ms. There is no
    limit on open ones: the number of generations is limited elsewhere. Without `proxies` nothing is asked through any,
    whatever the environment says.
    """
    return Client(_Transport(connect_timeout_s, proxies))


class Client:
    """Requests through a transport, and nothing else: no cookies (one tenant's answer must not leave one that goes out
    with another's request), no redirects, no credentials or time-outs from elsewhere. An async context manager.

    httpx's own client would go through each of those for every request, to find them turned off.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport
        self._headers = {"user-agent": user_agent(), "accept": "*/*", "accept-encoding": "identity"}

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    def build_request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes | AsyncIterable[bytes] | None = None,
        extensions: dict[str, Any] | None = None,
    ) -> Request:
        """`headers`, in lower case, go before our own. Raises InvalidURL."""
        return httpx.Request(method, url, headers={**self._headers, **headers}, content=content, extensions=extensions)

    async def send(self, request: Request) -> Response:
        """Returns once the response's headers are there; its body is read from it, and it has to be closed. Raises
        TransportError."""
        response = await self._transport.handle_async_request(request)
        response.request = request
        return response


class _Transport(httpx.AsyncBaseTransport):
    """aiohttp under httpx's API, in HTTP/1.1: bodies of both directions as they come."""

    def __init__(self, connect_timeout_s: float, proxies: Proxies) -> None:
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s)
        self._proxies = proxies
        self._keeping: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None
        """Its connections are new ones, each for one request."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            with _errors():
                response = await self._ask(request)
        except ValueError as error:  # aiohttp's InvalidURL, and yarl's own words for a port that is none
            raise httpx.UnsupportedProtocol(str(error)) from None
        stream = _Stream(response)
        return httpx.Response(response.status, headers=response.raw_headers, stream=stream, request=request)

    async def _ask(self, request: httpx.Request) -> aiohttp.ClientResponse:
        body = _body(request)
        url = str(request.url)
        proxy = self._proxies.proxy_for(url) if self._proxies.by_scheme else None
        if isinstance(body, bytes | None):
            if self._keeping is None:  # it belongs to the loop it is made in
                self._keeping = self._open(aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S))
            try:
                return await _send(self._keeping, request, url, body, proxy)
            except _Stale:
                logger.debug("connection had been closed")
        # Or a body in pieces: it could not be sent once more.
        if self._fresh is None:
            self._fresh = self._open(aiohttp.TCPConnector(limit=0, force_close=True))
        return await _send(self._fresh, request, url, body, proxy)

    def _open(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        connector._factory = partial(_Handler, loop=asyncio.get_running_loop())  # type: ignore[assignment]
        return aiohttp.ClientSession(
            connector=connector,
            response_class=_Response,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=self._timeout,
            read_bufsize=_READ_AHEAD,
            max_line_size=_HEADER_LINE,
            max_field_size=_HEADER_LINE,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    async def aclose(self) -> None:
        for session in (self._keeping, self._fresh):
            if session is not None:
                await session.close()


async def _send(
    session: aiohttp.ClientSession,
    request: httpx.Request,
    url: str,
    body: bytes | AsyncIterable[bytes] | None,
    proxy: Proxy | None,
) -> aiohttp.ClientResponse:
    headers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in request.headers.raw]
    told: dict[str, str] = {}
    if proxy and proxy.user is not None:
        credentials = b64encode(f"{proxy.user}:{proxy.password}".encode()).decode("ascii")
        if request.url.scheme == "https":
            told["authorization"] = f"Basic {credentials}"  # of the CONNECT, where aiohttp makes it the proxy's
        else:
            headers.append(("proxy-authorization", f"Basic {credentials}"))
    return await session.request(
        request.method,
        yarl.URL(url, encoded=True),
        headers=headers,
        data=body,
        allow_redirects=False,
        proxy=proxy.url if proxy else None,
        proxy_headers=told or None,
    )


class _Stale(Exception):
    """The connection was kept from an earlier request, and broke before anything of this one's response had come."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Handler(ResponseHandler):
    """One connection, which also remembers what aiohttp forgets when it breaks.

    And it closes where something comes that was not asked for: a 408 before a kept connection is closed, or more than the
    body said. aiohttp would keep it for the next request, perhaps another tenant's, as the response to that.
    """

    requests = 0
    heard = False
    """Something of the response to the last request has come."""
    tap: Callable[[bytes], bool] | None = None
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
                raise _Stale(error) from error
            raise


def _body(request: httpx.Request) -> bytes | AsyncIterable[bytes] | None:
    if isinstance(request.stream, httpx.ByteStream):
        return request.content or None
    assert isinstance(request.stream, httpx.AsyncByteStream)
    return request.stream


def pieces(response: Response, tap: Callable[[bytes], bool] | None = None) -> AsyncGenerator[bytes, None]:
    """The body as it comes, once, as `aiter_raw` has it, without httpx's way around each piece. Raises TransportError.

    A piece that comes while the next one is waited for is offered to `tap` first: if that takes it, nobody wakes for it.
    """
    stream = response.stream
    assert isinstance(stream, _Stream)
    return stream.pieces(tap)


_feed = aiohttp.StreamReader.feed_data


class _Body(aiohttp.StreamReader):
    """What aiohttp's parser feeds a body to, with a tap. It makes that itself, so one becomes this."""

    __slots__ = ()

    def feed_data(self, data: bytes, size: int = 0) -> bool:
        if self._waiter is not None and not self._buffer and not self._waiter.done():  # nor is it told to wait no more
            tap: Callable[[bytes], bool] | None = self._protocol.tap  # type: ignore[attr-defined]
            if tap is not None and tap(data):
                return False
        return _feed(self, data)


class _Stream(httpx.AsyncByteStream):
    """A response's body. Closed before its end, it closes the connection; read to its end, the connection is kept."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    def __aiter__(self) -> AsyncGenerator[bytes, None]:
        return self.pieces(None)

    async def pieces(self, tap: Callable[[bytes], bool] | None) -> AsyncGenerator[bytes, None]:
        """See the function."""
        content, connection = self._response.content, self._response.connection
        handler = connection.protocol if connection is not None else None
        if tap is not None and type(content) is aiohttp.StreamReader and isinstance(handler, _Handler):
            content.__class__ = _Body
            handler.tap = tap
        with _errors():
            try:
                while data := await content.readany():
                    yield data
            except (aiohttp.ClientError, OSError):
                if rest := content._read_nowait(-1):  # came before the connection broke, and aiohttp would drop it
                    yield rest
                raise
            finally:
                if isinstance(handler, _Handler) and handler.tap is tap:  # else the next request has it already
                    handler.tap = None

    async def aclose(self) -> None:
        self._response.close()


@contextmanager
def _errors() -> Iterator[None]:
    """What aiohttp raises as what httpx would: the worker tells failures apart by these."""
    try:
        yield
    except (aiohttp.ConnectionTimeoutError, aiohttp.ServerTimeoutError) as error:
        raise httpx.ConnectTimeout(str(error)) from error
    except aiohttp.ClientHttpProxyError as error:
        raise ProxyError(f"the proxy refuses with HTTP {error.status}") from error
    except aiohttp.ClientProxyConnectionError as error:
        raise ProxyError(f"the proxy cannot be reached ({reason(error.os_error)})") from error
    except aiohttp.ClientConnectorError as error:
        raise httpx.ConnectError(str(error)) from error
    except aiohttp.InvalidURL:
        raise
    except aiohttp.ClientResponseError as error:  # not HTTP, or headers beyond all measure
        raise httpx.RemoteProtocolError(str(error)) from error
    except (aiohttp.ClientError, asyncio.IncompleteReadError, OSError) as error:
        raise httpx.ReadError(str(error)) from error


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
