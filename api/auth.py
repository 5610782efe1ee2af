"""Who asks: a bearer key becomes a Caller.

Hidden here: comparing in constant time against every key, and what protects a server without keys, which trusts
whoever reaches it: only loopback names may be asked for, and web pages of other origins may not ask at all
(DNS rebinding and cross-site requests would otherwise spend the owner's money).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.requests import Request

from shared.config.settings import Settings
from shared.errors import Forbidden, Unauthenticated
from shared.generations.caller import Caller

LOCAL_TENANT = "local"


class Authenticator:
    """`caller(request)` or an error; made once for a process."""

    def __init__(self, settings: Settings) -> None:
        self._origins = frozenset(settings.cors_origins)
        self._callers = [
            (Caller(tenant, key_id(key.get_secret_value())), _digest(key.get_secret_value()))
            for tenant, keys in settings.api_keys.items()
            for key in keys
        ]

    @property
    def keyless(self) -> bool:
        return not self._callers

    def admit_stranger(self, request: Request) -> None:
        """Someone without a key, who has a token: on a server without keys the rules for those hold all the same."""
        if self.keyless:
            _refuse_strangers(request, self._origins)

    def caller(self, request: Request) -> Caller:
        """Raises Unauthenticated, or Forbidden on a server without keys."""
        if self.keyless:
            _refuse_strangers(request, self._origins)
            return Caller(LOCAL_TENANT)
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        digest = _digest(key.strip())
        found = None
        for caller, known in self._callers:  # all of them, always: the time must not tell which one was close
            if hmac.compare_digest(digest, known):
                found = caller
        if scheme.lower() != "bearer" or found is None:
            raise Unauthenticated("Send `Authorization: Bearer KEY` with one of the keys this server was given.")
        return found


def key_id(key: str) -> str:
    """What a key is called where its secret is not to be: the same whichever others there are. Eight digits of a hash that
    stands for nothing else, so that it neither leads back to the key nor helps to compare it with one that leaked."""
    return hashlib.blake2b(key.encode(), digest_size=4, person=b"streamspool-key").hexdigest()


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _refuse_strangers(request: Request, origins: frozenset[str]) -> None:
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


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
