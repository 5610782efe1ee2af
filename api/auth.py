"""Who asks: a bearer key becomes a Caller.

Hidden here: that keys come from two places, the environment and Redis, of which the first is good whatever becomes of the
second; comparing in constant time; and what protects a server without keys, which trusts whoever reaches it: only loopback
names may be asked for, and web pages of other origins may not ask at all (DNS rebinding and cross-site requests would
otherwise spend the owner's money).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.requests import HTTPConnection

from shared.config.limits import Limits
from shared.config.settings import Settings
from shared.errors import Forbidden, Unauthenticated
from shared.features.access.key_ring import KeyRing
from shared.features.access.keys import KeyRecord, Role, digest_of
from shared.generations.caller import Caller

LOCAL_TENANT = "local"


class Authenticator:
    """`caller(request)` or an error; made once for a process. `ring` is there once the process has begun."""

    def __init__(self, settings: Settings, ring: KeyRing | None = None) -> None:
        self.ring = ring
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

    def caller(self, request: HTTPConnection) -> Caller:
        """Raises Unauthenticated; Forbidden on a server without keys; Unavailable where it cannot be told."""
        if self.keyless:
            _refuse_strangers(request, self._origins)
            return Caller(LOCAL_TENANT)
        scheme, _, written = request.headers.get("authorization", "").partition(" ")
        key = written.strip()
        digest, found = digest_of(key), None
        for caller, known in self._callers:  # all of them, always: the time must not tell which one was close
            if hmac.compare_digest(digest, known):
                found = caller
        if scheme.lower() == "bearer" and found is None and self.ring is not None:
            record = self.ring.find(key)
            found = caller_of(record) if record else None
        if scheme.lower() != "bearer" or found is None:
            raise Unauthenticated("Send `Authorization: Bearer KEY` with one of the keys this server was given.")
        if self.ring is not None and found.key_id is not None:
            self.ring.note_used(found.key_id)
        return found


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
    origin = request.headers.get("origin")
    if origin in origins:
        origin = None
    asked = _host(f"//{request.headers.get('host', '')}")
    if not is_loopback(asked) or (origin and not is_loopback(_host(origin))):
        raise Forbidden(
            "This server has no API keys and therefore answers only to this machine. "
            "Set STREAMSPOOL_API_KEYS to open it."
        )


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # half a bracket
        return ""
