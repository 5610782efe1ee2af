"""The application as HTTP sees it: what is done to every request before a route has it, and to every response after.

Hidden here: the names of responses (`x-request-id`) and their count; that those who only read come in one by one, and those who
ask for something new go before them; that the routes which begin an answer, or show one, are found without the framework; that
HEAD and OPTIONS are there wherever GET is; that `/v1/streams/` and `/v1//streams` are `/v1/streams`, without a redirect, which
would lose a body or a key on the way; the prefix under which a proxy shows us; and which pages of other origins may ask (CORS).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple, Self
from urllib.parse import unquote

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from api import spans
from api.auth import Authenticator
from api.errors import RATELIMITS, REQUEST_ID, to_response, unexpected
from api.live.client import AMONG, HEAD_ONLY, SEAT
from api.live.response import LATER
from api.services import Services
from shared.config.settings import Settings
from shared.errors import StreamspoolError
from shared.lib.tasks import FairTurns
from shared.lib.telemetry import REQUESTS, begin_request

_KEPT = ("type", "http_version", "extensions", "route", HEAD_ONLY, REQUEST_ID, AMONG, RATELIMITS, SEAT)
"""What of a request's scope the server, the count of responses and a viewer still need, beside the method: that the server
needs to the end."""
_NO_LIMITS: dict[str, str] = {}
_FORGOTTEN: Scope = {}
_GENERATION = re.compile(r"\bchatcmpl-[0-9a-f]{32}\b", re.ASCII)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_SLASHES = re.compile(rb"/{2,}")
_PREFIX = re.compile(rb"(?:/(?!\.+(?:/|$))[\w.~-]+)+/?", re.ASCII)
_FIELD_NAMES = re.compile(rb"[\w!#$%&'*+.^`|~-]+(?:[ \t]*,[ \t]*[\w!#$%&'*+.^`|~-]+)*", re.ASCII)

_METRICS = "/metrics"
"""Has one spelling: a proxy keeps it from the world by that, and may not know `//metrics` or `/%6detrics` for the same."""

_READING_ROUNDS = 4
"""One who only reads comes in every so many rounds of the loop: what comes meanwhile waits for a part of one, and not for one
more in each of its own rounds."""
_FIRST_S = 0.01
"""So long a prompt goes before those who wait to read: enough to be stored, and taken by a worker on the same machine."""

PREFLIGHT_S = 7200
"""How long a browser may remember what a page may ask: Chromium remembers nothing for longer."""
EXPOSED = (
    "Location, Retry-After, X-Request-Id, X-Stream-Id, X-Session-Id, X-Served-By, X-Fallback-From, X-Cost-Usd, "
    "X-Budget-Warning, X-Should-Retry, Idempotent-Replayed, Content-Disposition, Content-Range, "
    "X-Ratelimit-Limit-Requests, X-Ratelimit-Remaining-Requests, X-Ratelimit-Reset-Requests, X-Ratelimit-Limit-Tokens, "
    "X-Ratelimit-Remaining-Tokens, X-Ratelimit-Reset-Tokens"
)
"""Response headers that a page may read; others a browser keeps to itself (Fetch standard, 3.2.3)."""

_responses = lru_cache(maxsize=1000)(REQUESTS.labels)

Fields = Sequence[tuple[bytes, bytes]]
Answer = Callable[[Request], Awaitable[Response]]


class Door(NamedTuple):
    """What stands between the world and the routes, as the settings have it."""

    root_path: str
    proxies: Sequence[IPv4Network | IPv6Network]
    """Whose `X-Forwarded-…` is believed."""
    origins: frozenset[bytes]
    """Which pages may ask; `*` among them: all."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(
            settings.root_path,
            [ip_network(proxy) for proxy in settings.trusted_proxies],
            frozenset(origin.encode() for origin in settings.cors_origins),
        )

    def prefix(self, scope: Scope) -> str:
        """Under what the world knows this server; `X-Forwarded-Prefix` of a proxy that is named beats the setting."""
        client = scope.get("client")
        if self.proxies and client and self._believes(client[0]):
            told = _values(scope, b"x-forwarded-prefix")
            if told and _PREFIX.fullmatch(told[0]):
                return told[0].decode().rstrip("/")
            if scheme := _values(scope, b"x-forwarded-proto"):
                scope["scheme"] = "https" if scheme[0].lower() == b"https" else "http"
        return self.root_path

    def welcome(self, scope: Scope) -> Fields:
        """The headers by which a browser lets a page of another origin read the response."""
        if not self.origins:
            return ()
        origin = _values(scope, b"origin")
        if len(origin) != 1 or not self.origins & {origin[0], b"*"}:
            return ((b"vary", b"origin"),)
        allowed = b"*" if b"*" in self.origins else origin[0]
        return (
            (b"vary", b"origin"),
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", EXPOSED.encode()),
        )

    def _believes(self, host: str) -> bool:
        try:
            address = ip_address(host)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in self.proxies)


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for field, value in scope["headers"] if field == name]


class Application(FastAPI):
    """FastAPI that lets go of a request before its stream begins: a viewer may stay for an hour.

    Of those who only read, one comes in at a time: a thousand of them at once must not keep a prompt waiting.
    """

    def __init__(self, *, door: Door, **options: Any) -> None:
        super().__init__(redirect_slashes=False, **options)
        self._door = door
        self._reading = FairTurns(1, rounds=_READING_ROUNDS)
        self._hastened: dict[str, tuple[APIRoute, Answer]] = {}
        self.authenticator: Authenticator
        self.services: Services
        """Set by app.py; this there is as long as the process runs."""

    def hasten(self, method: str, route: APIRoute, answer: Answer) -> None:
        """Has requests to a route, which may have a `{generation_id}` and no other parameter, answered without the framework:
        to find the route, and then what it depends on, takes that a tenth of all that a prompt costs here. `answer` is given
        the request, and does what the route and all that it depends on would do."""
        self._hastened[f"{method} {route.path}"] = route, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """With a small frame for a viewer's stay: what it takes to get there has one of its own, which goes."""
        shown = await self._begin(scope, receive, send)
        del scope, receive, send
        if shown is not None:
            await shown

    async def _begin(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None] | None:
        """Answers, or returns what is left of it: a stream, where nobody traces the request."""
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
            return None
        self._place(scope)
        if scope["type"] == "websocket":
            await super().__call__(scope, receive, _Named(self, scope, send, ()))
            return None
        welcome, method = self._door.welcome(scope), scope["method"]
        if method == "HEAD":
            scope = {**scope, "method": "GET", HEAD_ONLY: True}
        if method in ("GET", "HEAD"):
            await self._reading.turn()
        elif method == "POST":
            self._reading.hold(_FIRST_S)
            self.services.hub.rounds.hold(_FIRST_S)
        named = _Named(self, scope, send, welcome)
        if method == "OPTIONS" and (methods := self.methods(scope)):
            await _tell_options(scope, methods, welcome, named)
            return None
        if (span := spans.serving(scope, scope[REQUEST_ID])) is None:
            return await self._respond(scope, receive, named)
        with span:
            if (shown := await self._respond(scope, receive, named)) is not None:
                await shown
        return None

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None] | None:
        scope[LATER] = None
        if (answer := self._find(scope)) is not None:
            await self._answer(answer, scope, receive, send)
        else:
            await super().__call__(scope, receive, send)
        if not (serve := scope.pop(LATER)):
            return None
        _forget(scope)
        shown: Awaitable[None] = serve(scope, receive, send)
        return shown

    def _find(self, scope: Scope) -> Answer | None:
        """What answers instead of the framework; `scope` is then as the framework would have it."""
        path = scope["path"].removeprefix(scope["root_path"])
        params = {}
        if found := _GENERATION.search(path):
            params["generation_id"] = found[0]
            path = f"{path[: found.start()]}{{generation_id}}{path[found.end() :]}"
        if (hastened := self._hastened.get(f"{scope['method']} {path}")) is None:
            return None
        scope["app"], scope["route"], scope["path_params"] = self, hastened[0], params
        return hastened[1]

    async def _answer(self, answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await answer(request)
        except StreamspoolError as error:
            response = to_response(error)
        except Exception as error:
            broken = await unexpected(request, error)
            await broken(scope, receive, send)
            raise
        await response(scope, receive, send)

    def _place(self, scope: Scope) -> None:
        """Finds what is asked for: its path, and the prefix in front of it."""
        written: bytes = scope["raw_path"]
        _straighten(scope)
        scope["root_path"] = self._door.prefix(scope)
        if scope["path"].removeprefix(scope["root_path"]) == _METRICS and written != scope["path"].encode():
            scope["path"] = written.decode("ascii")

    def has_socket(self, scope: Scope) -> bool:
        """Whether there is a WebSocket at the path of a request that offers one."""
        _straighten(scope)
        return self._takes({**scope, "root_path": self._door.prefix(scope)})

    def methods(self, scope: Scope) -> list[str]:
        """What may be done with a path; nothing if there is none."""
        if scope["path"] == "*":  # the server as a whole (RFC 9110 §9.3.7)
            return [*_METHODS, "HEAD", "OPTIONS"]
        found = [method for method in _METHODS if self._takes({**scope, "method": method})]
        return [*found, *(["HEAD"] if "GET" in found else []), *(["OPTIONS"] if found else [])]

    def _takes(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self.routes)


class _Named:
    """Sends a response with the id of its request, and without a body to HEAD. A class, because a closure for each viewer is
    memory."""

    __slots__ = ("_app", "_ended", "_scope", "_send", "_welcome")

    def __init__(self, app: Application, scope: Scope, send: Send, welcome: Fields) -> None:
        self._app, self._scope, self._send, self._welcome = app, scope, send, welcome
        self._ended = False
        scope[REQUEST_ID] = f"req_{os.urandom(16).hex()}"
        begin_request(scope[REQUEST_ID])

    async def __call__(self, message: Message) -> None:
        if self._ended:
            return
        if message["type"] == "websocket.accept":
            _responses(getattr(self._scope.get("route"), "path", "none"), 101).inc()
        elif message["type"].endswith("http.response.start"):
            scope, headers = self._scope, message.get("headers", ())
            if message["status"] == 405:  # the framework knows the methods of one route only
                allowed = ", ".join(self._app.methods(scope)).encode()
                headers = [*(field for field in headers if field[0] != b"allow"), (b"allow", allowed)]
            message["headers"] = fields = [*headers, (b"x-request-id", scope[REQUEST_ID].encode())]
            for name, value in scope.get(RATELIMITS, _NO_LIMITS).items():
                fields.append((name.encode(), value.encode()))
            fields += self._welcome
            _responses(getattr(scope.get("route"), "path", "none"), message["status"]).inc()
            spans.answered(scope, message["status"])
            self._welcome = ()
        await self._send(message)
        if message["type"] == "http.response.start":
            if HEAD_ONLY in self._scope:
                self._ended = True
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            elif LATER not in self._scope:
                _forget(self._scope, ())
                self._scope = _FORGOTTEN


async def _tell_options(scope: Scope, methods: Iterable[str], welcome: Fields, send: Send) -> None:
    """What may be asked, without a key: a browser asks so before it sends one (Fetch standard, CORS-preflight request)."""
    allowed = ", ".join(methods).encode()
    headers = [(b"allow", allowed)]
    if len(welcome) > 1 and _values(scope, b"access-control-request-method"):
        headers += [
            (b"access-control-allow-methods", allowed),
            (b"access-control-max-age", b"%d" % PREFLIGHT_S),
        ]
        names = b",".join(_values(scope, b"access-control-request-headers"))
        if _FIELD_NAMES.fullmatch(names):
            headers.append((b"access-control-allow-headers", names))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _forget(scope: Scope, but: Iterable[str] = _KEPT) -> None:
    """The framework's leavings would stay as long as the viewer."""
    kept: Scope = {"method": sys.intern(scope["method"])}
    for name in but:
        if name in scope:
            kept[name] = scope[name]
    scope.clear()
    scope.update(kept)


def _straighten(scope: Scope) -> None:
    """`/v1//streams/` to `/v1/streams`. Slashes that are percent-encoded belong to a name, and stay."""
    raw: bytes = scope["raw_path"]
    if b"//" in raw or (raw.endswith(b"/") and len(raw) > 1):
        raw = _SLASHES.sub(b"/", raw).rstrip(b"/") or b"/"
        scope["raw_path"], scope["path"] = raw, unquote(raw.decode("ascii"))
