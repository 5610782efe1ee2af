"""HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY: which proxy a URL is asked through. Pure.

Hidden here: what these variables mean, on which no standard but custom agrees (curl's manual, "Environment"; Go's
golang.org/x/net/http/httpproxy): lower case wins over upper case; a proxy without a scheme is http://; NO_PROXY lists hosts,
domains, which hold for all below them, addresses and networks, each perhaps with a port, or is `*`. This machine itself, all
names below `localhost` with it (RFC 6761 §6.3), is never asked through a proxy, which would look for it on its own.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Proxy(NamedTuple):
    """`url` is without user and password; `variable` is where it was found."""

    url: str
    variable: str
    user: str | None = None
    password: str = ""


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies of an environment; with none, everything is asked directly."""

    by_scheme: Mapping[str, Proxy] = field(default_factory=dict)
    direct: tuple[str, ...] = ()
    """What NO_PROXY lists, in lower case."""
    notices: tuple[str, ...] = ()
    """Which variables cannot be used, a line for each, without their values."""

    def proxy_for(self, url: str) -> Proxy | None:
        """None: asked directly."""
        parts = urlsplit(url)
        proxy = self.by_scheme.get(parts.scheme)
        if proxy is None or self._is_direct(parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)):
            return None
        return proxy

    def _is_direct(self, host: str, port: int) -> bool:
        address, host = _address(host), host.rstrip(".")
        if host in ("", "localhost") or host.endswith(".localhost") or (address is not None and address.is_loopback):
            return True
        return any(_covers(entry, host, port, address) for entry in self.direct)


NO_PROXIES = Proxies()


def from_environment(variables: Mapping[str, str]) -> Proxies:
    """What the variables say; those that mean no HTTP proxy, SOCKS for one, are told and not used."""
    by_scheme: dict[str, Proxy] = {}
    notices: dict[str, str] = {}
    for scheme in ("http", "https"):
        for name in (f"{scheme}_proxy", "all_proxy"):
            variable = name if variables.get(name) else name.upper()
            if not (value := variables.get(variable, "").strip()):
                continue
            try:
                by_scheme[scheme] = _proxy(value, variable)
                break
            except ValueError:
                notices[variable] = f"{variable} names no http:// or https:// proxy and is not used"
    listed = variables.get("no_proxy") or variables.get("NO_PROXY") or ""
    direct = tuple(entry.lower() for entry in listed.replace(",", " ").split())
    return Proxies(by_scheme, direct, tuple(notices.values()))


def _proxy(value: str, variable: str) -> Proxy:
    """Raises ValueError, without the value."""
    parts = urlsplit(value if "://" in value else f"http://{value}")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("not a proxy") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or re.search(r"\s", parts.hostname):
        raise ValueError("not a proxy")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    url = f"{parts.scheme}://{host}{f':{port}' if port else ''}"
    user = unquote(parts.username) if parts.username is not None else None
    return Proxy(url, variable, user, unquote(parts.password or ""))


def _covers(entry: str, host: str, port: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    if entry == "*":
        return True
    name, colon, wanted = entry.rpartition(":")
    if colon and wanted.isdigit() and (":" not in name or name.endswith("]")):  # else it is a bare IPv6 address
        if int(wanted) != port:
            return False
        entry = name
    entry = entry.strip("[]")
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    domain = entry.removeprefix("*").lstrip(".").rstrip(".")
    return bool(domain) and (host.lower() == domain or host.lower().endswith(f".{domain}"))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
