"""Who asks: a bearer key, or a browser that is signed in with one, becomes a Caller.

Hidden here: that keys come from two places, the environment and Redis, of which the first is good whatever becomes of the
second; comparing in constant time; and what protects a server without keys, which trusts whoever reaches it: only loopback
names may be asked for, and web pages of other origins may not ask at all (DNS rebinding and cross-site requests would
otherwise spend the owner's money).

A cookie goes with whatever a browser is made to ask, so it counts only where the browser says that a page of this server asks:
`Sec-Fetch-Site: same-origin` (w3c.github.io/webappsec-fetch-metadata), or an `Origin` (RFC 6454 §7) that is the host that is
asked. Cookies are `__Host-`: of this host alone, and only over https (RFC 6265bis §4.1.3.2), which for Chromium and Firefox
http on a loopback address is as good as; Safari keeps none there.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Scope

from shared.config.limits import Limits
from shared.config.settings import Settings
from shared.errors import BadRequest, Forbidden, Unauthenticated
from shared.features.access.browsers import Browsers, SignedIn
from shared.features.access.key_ring import KeyRing
from shared.features.access.keys import KeyRecord, Role, digest_of
from shared.generations.caller import Caller

LOCAL_TENANT = "local"
SESSION_COOKIE = "__Host-streamspool"
"""Has the id of a browser's session."""
_SHARE_COOKIE = "__Host-streamspool-"
_FIELDS = "streamspool.fields"
"""ASGI scope: what `fields_of` has found."""
_NO_KEY = "Send `Authorization: Bearer KEY` with one of the keys this server was given."


class Identity(NamedTuple):
    """Who asks, and the session by which that is known, as it stands in Redis; None: by a key, or there are none."""

    caller: Caller
    session: str | None = None


_LOCAL = Identity(Caller(LOCAL_TENANT))


class Authenticator:
    """`identify(request)` or an error; made once for a process. `ring` and `browsers` are there once the process has begun."""

    def __init__(self, settings: Settings, ring: KeyRing | None = None, browsers: Browsers | None = None) -> None:
        self.ring, self.browsers = ring, browsers
        self._origins = frozenset(settings.cors_origins)
        by_role: tuple[tuple[Role, dict[str, list[str]]], ...] = (
            ("tenant", _plain(settings.api_keys)),
            ("admin", _plain(settings.admin_keys)),
        )
        self._callers = [
            (Caller(tenant, key_id(key), role), digest_of(key))
            for role, keys in by_role
            for tenant, own in keys.items()
            for key in own
        ]

    @property
    def keyless(self) -> bool:
        return not self._callers

    @property
    def configured(self) -> list[Caller]:
        """Of the keys in the environment."""
        return [caller for caller, _ in self._callers]

    def admit_stranger(self, request: HTTPConnection) -> None:
        """Someone without a key, who has a token: on a server without keys the rules for those hold all the same."""
        if self.keyless:
            _refuse_strangers(request, self._origins)

    async def identify(self, request: HTTPConnection) -> Identity:
        """Raises Unauthenticated; Forbidden on a server without keys, and for what a page of another origin asks with a cookie;
        BadRequest where two keys are named; Unavailable where it cannot be told."""
        if not self._callers:
            _refuse_strangers(request, self._origins)
            return _LOCAL
        fields = fields_of(request.scope)
        cookie = request.cookies.get(SESSION_COOKIE) if b"cookie" in fields else None
        named = fields.get(b"authorization")
        if cookie is None or named is not None or self.browsers is None:
            for name, value in request.scope["headers"]:
                if name == b"authorization" and value != named:  # a proxy added one, say: its owner did not ask
                    raise BadRequest("Two Authorization headers: who is asking? Send one.", param="authorization")
            scheme, _, written = (named or b"").decode("latin-1").partition(" ")
            found = self._opened_by(written.strip()) if scheme.lower() == "bearer" else None
            return Identity(self._noted(found and found[0]))
        check_same_origin(request)
        session = await self.browsers.find(cookie)
        if session is None:
            raise Unauthenticated(_NO_KEY)
        return Identity(self.caller_behind(session.key), session.name)

    def sign_in(self, key: str) -> SignedIn | None:
        """What a session with this key is to keep; None: it is none. Raises Unavailable."""
        found = self._opened_by(key)
        return None if found is None else SignedIn(key_id=found[0].key_id or "", sha256=found[1])

    def caller_behind(self, key: SignedIn) -> Caller:
        """Who is signed in. Raises Unauthenticated where the key does not hold any more; Unavailable."""
        return self._noted(self._behind(key))

    def _opened_by(self, key: str) -> tuple[Caller, str | None] | None:
        """Whose key it is; and the digest of its secret if it is data."""
        digest, found = digest_of(key), None
        for caller, known in self._callers:  # all of them, always: the time must not tell which one was close
            if hmac.compare_digest(digest, known):
                found = caller
        if found is not None:
            return found, None
        record = self.ring.find(key) if self.ring is not None else None
        return (caller_of(record), digest.hex()) if record else None

    def _behind(self, key: SignedIn) -> Caller | None:
        """Who is signed in, as long as the key holds."""
        if key["sha256"] is None:
            return next((caller for caller, _ in self._callers if caller.key_id == key["key_id"]), None)
        record = self.ring.find_digest(bytes.fromhex(key["sha256"])) if self.ring is not None else None
        return caller_of(record) if record else None

    def _noted(self, found: Caller | None) -> Caller:
        if found is None:
            raise Unauthenticated(_NO_KEY)
        if self.ring is not None and found.key_id is not None:
            self.ring.note_used(found.key_id)
        return found


def fields_of(scope: Scope) -> Mapping[bytes, bytes]:
    """A request's header fields by their names in small letters; of several with one name, the first. Put in order
    once: Starlette's `request.headers` goes through all of them for each that is asked for, and those are a dozen."""
    found: Mapping[bytes, bytes] | None = scope.get(_FIELDS)
    if found is None:
        found = scope[_FIELDS] = dict(reversed(scope["headers"]))
    return found


def check_same_origin(request: HTTPConnection) -> None:
    """Whether a page of this server asks: what a cookie says counts only then. Raises Forbidden."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site != "same-origin" if site is not None else not _is_own(origin, request):
        raise Forbidden("With a cookie only pages of this server may ask. Send a key.", code="cross_origin")


def check_may_keep_cookies(request: HTTPConnection) -> None:
    """Of what hands out a cookie: a page of another origin may not ask, and a browser has to keep it. Raises Forbidden,
    BadRequest."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None or origin is not None:
        check_same_origin(request)
    if origin is not None and origin.startswith("http://") and not is_loopback(_host(origin)):
        raise BadRequest(
            "Browsers keep this cookie over https only. Put a proxy with a certificate in front, or come by 127.0.0.1.",
            code="https_needed",
        )


def set_cookie(response: Response, name: str, value: str, life_s: int | None = None) -> None:
    """`life_s`: None keeps it as long as the browser runs; 0 takes it back."""
    response.set_cookie(name, value, max_age=life_s, path="/", secure=True, httponly=True, samesite="strict")


def share_cookie(share_id: str) -> str:
    """Each share has one of its own: a browser may have several open."""
    return f"{_SHARE_COOKIE}{share_id}"


def _is_own(origin: str | None, request: HTTPConnection) -> bool:
    scheme, _, authority = (origin or "").partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme)
    if default is None or not authority:
        return False
    return authority.removesuffix(default) == request.headers.get("host", "").lower().removesuffix(default)


def caller_of(record: KeyRecord) -> Caller:
    """Who asks with a key that is data."""
    models = record["models"]
    return Caller(
        record["tenant"],
        record["id"],
        record["role"],
        Limits(**record["limits"]),
        None if models is None else tuple(models),
        budgets=record["budgets"],
    )


def key_id(key: str) -> str:
    """What a key of the environment is called where its secret is not to be: the same whichever others there are. Eight digits
    of a hash that stands for nothing else, so that it neither leads back to the key nor helps to compare it with one that
    leaked."""
    return hashlib.blake2b(key.encode(), digest_size=4, person=b"streamspool-key").hexdigest()


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _plain(keys: dict[str, list[SecretStr]]) -> dict[str, list[str]]:
    return {tenant: [key.get_secret_value() for key in own] for tenant, own in keys.items()}


def _refuse_strangers(request: HTTPConnection, origins: frozenset[str]) -> None:
    """`origins` may ask all the same; `*` is none of them here."""
    fields = fields_of(request.scope)
    origin = fields.get(b"origin", b"").decode("latin-1")
    if origin in origins:
        origin = ""
    asked = _host(f"//{fields.get(b'host', b'').decode('latin-1')}")
    if not is_loopback(asked) or (origin and not is_loopback(_host(origin))):
        raise Forbidden(
            "This server has no API keys and therefore answers only to this machine. "
            "Set STREAMSPOOL_API_KEYS to open it."
        )


@lru_cache(maxsize=256)
def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # half a bracket
        return ""
