"""The HTTP client of both ends: the only module that knows which library does it.

Hidden here: httpx, its defaults we do not want (proxies and netrc from the environment, redirects, cookies, a pool that
a cancelled request can jam), and the transport under it. Everybody else sees a client, a response and five errors.
"""

from __future__ import annotations

from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib import metadata

import httpx

Client = httpx.AsyncClient
"""An async context manager; `build_request`, `send(request, stream=True)`."""

Response = httpx.Response
"""`status_code`, `headers` (case-insensitive), `aiter_raw()`, `aclose()`."""

TransportError = httpx.TransportError
"""Base of the ones below and of every other way the connection may fail. Its text may hold an address: do not show it."""

Timeout = httpx.TimeoutException
ConnectTimeout = httpx.ConnectTimeout
ConnectError = httpx.ConnectError
InvalidURL = httpx.InvalidURL
"""The URL cannot be asked at all. Not a TransportError."""

_IDLE_CONNECTIONS = 100
_IDLE_S = 30.0


def open_client(connect_timeout_s: float) -> Client:
    """A client that only ever times out while connecting: how long silence may last is the caller's to say.

    Idle connections are kept for 30 s, since a TLS handshake costs a provider's first token 50 to 200 ms. There is no
    limit on open ones: a limited pool is dead after as many cancelled requests, and the number of
    generations is limited elsewhere.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=_IDLE_CONNECTIONS, keepalive_expiry=_IDLE_S)
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(trust_env=False, limits=limits),
        timeout=httpx.Timeout(None, connect=connect_timeout_s),
        follow_redirects=False,
        trust_env=False,
        # One tenant's answer must not leave a cookie that goes out with another's request.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={"user-agent": user_agent()},
    )


def user_agent() -> str:
    """`streamspool/VERSION`; the version is 0 when run from a tree that was never installed."""
    try:
        return f"streamspool/{metadata.version('streamspool')}"
    except metadata.PackageNotFoundError:
        return "streamspool/0"
