"""The few things that routes are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, NamedTuple, TypeGuard, TypeVar

from fastapi import Depends, Query
from fastapi.dependencies.models import Dependant
from starlette.requests import HTTPConnection, Request

from api.access.rules import OF_SHARES, Access, Rule, check_role, rule_of, tenant_meant
from api.auth import Authenticator, Identity, check_same_origin, fields_of, share_cookie
from api.bodies import small_body
from api.errors import RATELIMITS
from api.live.answer import SPEAK_AFTER, speak_after_s
from api.live.client import AMONG, CONNECTION, SEAT
from api.live.cursor import is_cursor
from api.live.viewers import Grant
from api.services import Services
from shared.chat.request import ChatRequest
from shared.errors import BadRequest, NotFound, TooLarge, Unauthenticated
from shared.features.access.shares import is_share_id
from shared.features.tokens import Opened
from shared.generations.caller import Caller, Role
from shared.generations.front import CHAT, Front
from shared.lib import json
from shared.log.blobs import Cut
from shared.log.records import Header
from shared.store.availability import NO_STREAM

T = TypeVar("T")

_CALLER = "streamspool.caller"
"""ASGI scope: who asks, once that is known."""
_IN_THREAD_BYTES = 1024 * 1024
"""What is larger is not parsed on the event loop."""
_HEADER_OPTIONS = {
    f"x-{field.replace('_', '-')}".encode(): field
    for field in "on_interruption on_disconnect session_id session_policy session_trim max_tokens_per_s".split()
}
"""Our extension fields that may come as header fields, too, by those."""
_METADATA = b"x-metadata-"


async def _services(connection: HTTPConnection) -> Services:  # async: FastAPI would hand plain functions to a thread
    services: Services = connection.scope["app"].services
    return services


async def guard(connection: HTTPConnection) -> None:
    """Before every route: who asks, and whether its rule lets them. Raises Unauthenticated, Forbidden, Unavailable."""
    scope = connection.scope
    rule = rule_of(scope)
    if rule.access is Access.OPEN:
        return
    authenticator: Authenticator = scope["app"].authenticator
    services: Services = scope["app"].services
    caller, grant = await _identified(connection, rule, authenticator, services)
    if not (rule.alone and authenticator.keyless):
        check_role(rule, caller.role)
    if scope["query_string"]:
        tenant = tenant_meant(rule, caller.role, connection.query_params.getlist("tenant"))
        caller = caller if tenant is None else replace(caller, tenant=tenant)
    if services.limiter.scopes(caller):
        if rule.access in (Access.WRITE, Access.CONTROL):
            caller = caller.for_one_request()
            scope[RATELIMITS] = caller.ratelimits
        elif (seat := services.limiter.seat(caller)) is not None:
            scope[SEAT] = seat
    scope[_CALLER] = caller
    if (viewers := services.viewers.of(caller.key_id, grant)) is not None:
        scope[AMONG] = viewers


async def _identified(
    connection: HTTPConnection, rule: Rule, authenticator: Authenticator, services: Services
) -> tuple[Caller, Grant | None]:
    """Who asks, and what lets them that may be taken back while they watch."""
    if connection.scope["query_string"] and b"authorization" not in fields_of(connection.scope):
        if rule.access is Access.WATCH and (token := connection.query_params.get("token")) is not None:
            authenticator.admit_stranger(connection)
            return await _by_token(connection, services, token)
        if rule.access in OF_SHARES and (share_id := connection.query_params.get("share")) is not None:
            authenticator.admit_stranger(connection)
            return await _by_share(connection, services, share_id)
    found: Identity = await authenticator.identify(connection)
    return found.caller, Grant(found.session, services.browsers.idle_s) if found.session else None


async def _by_token(connection: HTTPConnection, services: Services, token: str) -> tuple[Caller, Grant | None]:
    opens = await services.tokens.opened(token)
    if not _is_good(opens, services) or opens.generation_id != connection.path_params["generation_id"] or opens.share:
        raise Unauthenticated("This token does not open this stream, or not any more. Ask for another one.")
    return Caller(opens.tenant, opens.key_id, role="token"), None


async def _by_share(connection: HTTPConnection, services: Services, share_id: str) -> tuple[Caller, Grant | None]:
    """By the cookie that the share's token was exchanged for. To those who have it, every other stream is not there."""
    check_same_origin(connection)
    text = connection.cookies.get(share_cookie(share_id)) if is_share_id(share_id) else None
    opens = await services.tokens.opened(text) if text else None
    if not _is_good(opens, services) or opens.share is None or opens.share["id"] != share_id:
        raise Unauthenticated("This share has ended, or was not opened in this browser. Open its link.")
    if opens.generation_id != connection.path_params["generation_id"]:
        raise NotFound(NO_STREAM)
    role: Role = "control" if opens.share["mode"] == "control" else "share"
    return Caller(opens.tenant, opens.key_id, role, share=opens.share), Grant(opens.name)


def _is_good(opens: Opened | None, services: Services) -> TypeGuard[Opened]:
    """It ends with the key that it was asked for with, too."""
    return opens is not None and not services.ring.has_ended(opens.key_id)


async def _caller(connection: HTTPConnection) -> Caller:
    caller: Caller = connection.scope[_CALLER]
    return caller


OpenedShare = Annotated[str | None, Query(description="the share that was opened in this browser, by its id")]
"""The query of routes that shares open; `guard` has looked at it."""


async def _viewer(
    connection: HTTPConnection,
    token: Annotated[
        str | None, Query(description="opens this stream, for an EventSource, which cannot send a key")
    ] = None,
    share: OpenedShare = None,
) -> Caller:
    caller: Caller = connection.scope[_CALLER]
    return caller


async def _body(
    request: Request, services: Annotated[Services, Depends(_services)], caller: CurrentCaller
) -> bytes | bytearray:
    """The raw body, after the key was checked. Raises TooLarge, BadRequest, Unavailable."""
    most = services.settings.max_body_bytes
    limit = min(most, services.limiter.body_bytes(caller) or most)
    connection = request.scope.get("extensions", {}).get(CONNECTION)
    came = connection is not None and not connection.mid_request
    if (body := await services.bodies.read(request, fields_of(request.scope), limit, came=came)) is not None:
        return body
    whose = "STREAMSPOOL_MAX_BODY_BYTES" if limit == most else "body_bytes of this key"
    raise TooLarge(f"The request body is over the limit of {limit} bytes ({whose}).")


def parsed(body: bytes | bytearray) -> Any:
    """The body as JSON. Raises BadRequest."""
    try:
        return json.loads_strict(body)
    except ValueError as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.", code="invalid_json") from None


def with_options(body: Any, request: HTTPConnection) -> Any:
    """Our extension fields may come as headers too (`x-on-interruption`), and metadata, each as one (`x-metadata-task`), for
    clients whose bodies are not ours to change; the body's own win."""
    if not isinstance(body, dict):
        return body
    given = []
    for name, value in request.scope["headers"]:
        if name in _HEADER_OPTIONS or name.startswith(_METADATA):
            given.append((name, value.decode("latin-1")))
    if not given:
        return body
    options: dict[str, Any] = {_HEADER_OPTIONS[name]: value for name, value in given[::-1] if name in _HEADER_OPTIONS}
    if rate := options.get("max_tokens_per_s"):
        with suppress(ValueError):  # what is no number is refused as the field would be
            options["max_tokens_per_s"] = json.loads_strict(rate.encode())
    metadata = {
        name.removeprefix(_METADATA).decode("latin-1"): value
        for name, value in given
        if name.startswith(_METADATA) and value  # what a template leaves empty says nothing
    }
    own = body.get("metadata")
    if metadata and (own is None or isinstance(own, dict)):
        body = {**body, "metadata": {**metadata, **(own or {})}}
    return {**options, **body}


async def _idempotency_key(request: Request) -> str | None:
    """Raises BadRequest."""
    keys = set(request.headers.getlist("idempotency-key"))
    if len(keys) > 1:
        raise BadRequest("Two Idempotency-Keys: which of them is meant? Send one.", param="idempotency-key")
    key = next(iter(keys), None)
    if key is not None and not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
        raise BadRequest("An Idempotency-Key is 1 to 255 printable ASCII characters.", param="idempotency-key")
    return key


def asked(request: Request) -> tuple[Services, Caller, str]:
    """What of it every route may have. `guard` has looked at it."""
    return request.scope["app"].services, request.scope[_CALLER], request.scope["root_path"]


async def _root(request: Request) -> str:
    root: str = request.scope["root_path"]
    return root


async def read(services: Services, text: bytes | bytearray, make: Callable[[Any], T]) -> T:
    """What `make` makes of a body, off the event loop if it is large. Raises BadRequest, and what `make` raises."""
    if len(text) <= _IN_THREAD_BYTES:
        return make(parsed(text))
    return await services.bodies.parse(lambda: make(parsed(text)))


CurrentServices = Annotated[Services, Depends(_services)]
CurrentCaller = Annotated[Caller, Depends(_caller)]
CurrentViewer = Annotated[Caller, Depends(_viewer)]
"""Who may watch the stream that the path names: with a key, or with a token for it."""
Body = Annotated[bytes | bytearray, Depends(_body)]
SmallBody = Annotated[bytes, Depends(small_body)]
IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]
REPLAYED = {"idempotent-replayed": "true"}
"""Response headers of what was there before."""
Root = Annotated[str, Depends(_root)]
"""The prefix under which the client knows this server; what is said of a path begins with it."""


class Begun(NamedTuple):
    """A generation that a request began, or that was there before it."""

    header: Header
    fresh: bool
    headers: dict[str, str]
    """Those of the response that tell which."""


class Submission:
    """A request that begins a generation, whichever API it is of: what all of them are told beside their bodies."""

    def __init__(
        self, request: Request, services: Services, caller: Caller, body: bytes | bytearray, key: str | None
    ) -> None:
        """Raises BadRequest."""
        self.request, self.services, self.caller, self.body, self._key = request, services, caller, body, key
        self.root: str = request.scope["root_path"]
        self.fields = fields = fields_of(request.scope)
        count = fields.get(b"x-stainless-retry-count", b"")  # of OpenAI's clients: so often it asked and got no answer
        self._repeat = count.strip(b"0") != b"" if count.isdigit() else None
        self.silent_s = speak_after_s(fields.get(SPEAK_AFTER), services.settings)

    def with_options(self, value: Any) -> Any:
        return with_options(value, self.request)

    async def read(self, check: Callable[[Any], T]) -> tuple[T, Cut]:
        """What `check` makes of the body; and the cut by which that is stored. Raises BadRequest, and what `check` raises."""
        cut = await self.services.blobs.cut(self.body)
        return await read(self.services, cut.text, lambda value: check(with_options(value, self.request))), cut

    async def submit(
        self,
        asked: ChatRequest,
        cut: Cut,
        body: dict[str, Any] | None = None,
        *,
        front: Front = CHAT,
        client_history: bool = False,
    ) -> Begun:
        """Begins it, with what `cut` was made of, or with `body`, which was made of that. A turn that the front names may be
        made again. Raises what `Broker.submit` raises."""
        stored = cut if body is None else await self.services.blobs.cut(json.dumps(body), cut)
        header, replayed = await self.services.broker.submit(
            stored,
            asked,
            self.caller,
            idempotency_key=self._key,
            repeat=True if front.turn is not None else self._repeat,
            client_history=client_history,
            front=front,
        )
        return Begun(header, not replayed, REPLAYED if replayed else {})


async def submission(request: Request) -> Submission:
    """One dependency, and not seven, of each of which FastAPI looks at its own."""
    services, caller, _ = asked(request)
    key = await _idempotency_key(request) if b"idempotency-key" in fields_of(request.scope) else None
    return Submission(request, services, caller, await _body(request, services, caller), key)


NewGeneration = Annotated[Submission, Depends(submission)]


class KnownQuery:
    """Refuses queries that a route has no meaning for. A filter or a cursor that is misspelt and ignored would answer with
    everything, and look like the answer. For routes that have any query; those without ignore it, as the web does.

    `prefixes` begin the names that a route looks at itself.
    """

    def __init__(self, *prefixes: str) -> None:
        self._prefixes = prefixes

    async def __call__(self, request: Request, _: CurrentCaller) -> None:
        """After the key. Raises BadRequest."""
        check_query(request, self._prefixes)


async def _known_to_viewers(request: Request, _: CurrentViewer) -> None:
    check_query(request)


def check_query(request: Request, prefixes: tuple[str, ...] = ()) -> None:
    if not request.scope["query_string"] or request.method != "GET":
        return
    names = set(_queries(request.scope["route"].dependant))
    cursors = any(map(is_cursor, names))
    given = request.query_params
    for name in given if names else ():
        if (cursors and is_cursor(name)) or name.startswith(prefixes) or name == "tenant":  # an admin's, see `guard`
            continue
        if name not in names:
            known = ", ".join(sorted(names))
            raise BadRequest(f"There is no query {name[:64]!r} here. There are: {known}.", param=name[:64])
        if len(set(given.getlist(name))) > 1:
            raise BadRequest(f"The query {name!r} stands there twice. Send one.", param=name)


def _queries(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for one in dependant.dependencies:
        yield from _queries(one)


known_query = Depends(KnownQuery())
"""For routers and routes, in `dependencies`."""
known_to_viewers = Depends(_known_to_viewers)
"""The same for a route that a token opens."""
