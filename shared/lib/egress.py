"""Where this server may be sent by a tenant: the rules for URLs that come with a request.

Hidden here: every way to write an address that is not on the public internet (private, loopback, link-local, shared,
multicast, reserved; as an IPv4 in IPv6; as the number or the hexadecimal that the C library also takes for an IPv4),
names that never mean a public host, ports, and the operator's exceptions. No I/O: `check_url` knows what can be known
before anything is resolved, `check_address` has to be asked about every address the name turned out to have, and
the connection must then be made to an address that was asked about (OWASP, "Server-Side Request Forgery Prevention").
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address

MAX_URL = 2048

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_VISIBLE = re.compile(r"[!-\[\]-~]+")  # printable ASCII without space and backslash, which parsers read differently

# IANA's special-purpose names (RFC 6761, 6762, 7686, 8375, 9476), and what clouds and home routers call their insides.
_INNER = ("localhost", "local", "internal", "intranet", "lan", "home", "corp", "private", "home.arpa", "test", "example",
          "invalid", "onion", "alt")  # fmt: skip
_GLOBAL_IPV6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)
_NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            *"0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.168.0.0/16".split(),
            *"192.0.2.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4".split(),
            "192.0.0.0/24",  # protocol assignments: anycast to the nearest box; Oracle's metadata
            "192.31.196.0/24",  # AS112 (RFC 7535), as are 192.175.48.0/24 and 2620:4f:8000::/48 (RFC 7534): the nearest sink
            "192.175.48.0/24",
            "192.52.193.0/24",  # the nearest relay of multicast (AMT, RFC 7450)
            "192.88.99.0/24",  # the nearest 6to4 relay, while there were any (RFC 7526)
            "168.63.129.16/32",  # in no registry: Azure's way to the host of a virtual machine
            "2001::/23",  # protocol assignments: benchmarks, AMT, AS112, ORCHID, drones' names
            "2001:db8::/32",
            "2620:4f:8000::/48",
            "3fff::/20",  # documentation (RFC 9637)
        ),
    )
)
"""IANA's registries of special-purpose addresses (RFC 6890, 8190), whole, and multicast; of IPv6, what lies in 2000::/3. Also
what is reachable from everywhere there: no web server is meant to be there. Not left to the standard library, whose list
depends on the version of Python: that of 3.11 lacks six of these blocks."""

_WEB_PORT = 443
_FIRST_HIGH_PORT = 1024


class Refused(ValueError):
    """The URL or address is not one to call. The text says why, and nothing of the URL but its host's address."""


class Place(NamedTuple):
    """A URL taken apart: `host` as it is looked up and certified, without the brackets of an IPv6."""

    scheme: str
    host: str
    port: int
    path: str
    """Path and query."""

    @property
    def authority(self) -> str:
        """The Host header (RFC 9110 §7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"


class Policy:
    """What may be called: public addresses over https, and what `allow` names: hosts, addresses and networks."""

    def __init__(self, allow: Iterable[str] = ()) -> None:
        """Raises ValueError for an entry that is none of the three."""
        self._names: set[str] = set()
        self._networks: list[IPv4Network | IPv6Network] = []
        for entry in allow:
            network = parse_entry(entry)
            if isinstance(network, str):
                self._names.add(network)
            else:
                self._networks.append(network)

    def check_url(self, url: str) -> Place:
        """The URL's parts. Raises Refused."""
        place = _take_apart(url)
        address = _literal(place.host)
        if place.host in self._names:
            return place
        if address is not None:
            self.check_address(place.host, address)
            if self._listed(address):
                return place
        elif _is_inner(place.host):
            raise Refused("the host's name is not one of the public internet")
        if place.scheme != "https":
            raise Refused("it must start with https://")
        if place.port != _WEB_PORT and place.port < _FIRST_HIGH_PORT:
            raise Refused(f"the port must be {_WEB_PORT}, or {_FIRST_HIGH_PORT} and above")
        return place

    def check_address(self, host: str, address: Address) -> None:
        """Raises Refused unless the host, which has this address, may be called there."""
        if host not in self._names and not self._listed(address) and not _is_public(address):
            raise Refused(f"{address} is not an address of the public internet")

    def _listed(self, address: Address) -> bool:
        """An IPv4 inside an IPv6 counts as what it is: the network stack would go there."""
        return any(one in network for one in (address, *_inside(address)) for network in self._networks)


def parse_entry(entry: str) -> str | IPv4Network | IPv6Network:
    """One exception: a host's name in lower case, or a network (a single address is one). Raises ValueError."""
    text = entry.strip().lower().rstrip(".")
    try:
        return ip_network(text.strip("[]"))
    except ValueError:
        if _NAME.fullmatch(text) and not _is_numeric(text):
            return text
    raise ValueError(f"{entry!r} is neither a host name, nor an address, nor a network like 10.0.0.0/8")


def _take_apart(url: str) -> Place:
    if len(url) > MAX_URL:
        raise Refused(f"it is longer than {MAX_URL} characters")
    if not _VISIBLE.fullmatch(url):
        raise Refused("it holds characters that a URL cannot have; percent-encode them, and write the host in punycode")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Refused("it is not a URL") from None
    if parts.scheme not in ("http", "https"):
        raise Refused("it must start with https://")
    if "@" in parts.netloc:
        raise Refused("it must not hold a user or a password")
    if "#" in url:
        raise Refused("it must not have a fragment (#)")
    host = (parts.hostname or "").removesuffix(".")
    literal, bracketed = _literal(host), "[" in parts.netloc
    if (literal is None and (not _NAME.fullmatch(host) or _is_numeric(host))) or bracketed != (":" in host):
        raise Refused("it has no host, or one that is neither a name nor a plain address")
    if port == 0:
        raise Refused("the port must not be 0")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Place(parts.scheme, host, port or _default_port(parts.scheme), path)


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _literal(host: str) -> Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return None if "%" in host else address  # a zone (fe80::1%eth0) has no place in a URL


def _is_numeric(host: str) -> bool:
    """Whether the C library might read an IPv4 from this name: 2130706433, 127.1, 0x7f.0.0.1 (inet_aton)."""
    return bool(_NUMBER.fullmatch(host.rpartition(".")[2]))


def _is_inner(name: str) -> bool:
    return "." not in name or any(name.endswith(f".{suffix}") for suffix in _INNER)


def _inside(address: Address) -> list[IPv4Address]:
    """The IPv4 addresses that an IPv6 stands for: mapped, translated (RFC 6052), 6to4, Teredo (server and client)."""
    if address.version == 4:
        return []
    assert isinstance(address, IPv6Address)
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in found if one is not None]


def _is_public(address: Address) -> bool:
    if inside := _inside(address):
        return all(map(_is_public, inside))
    if address.version == 6:
        number = int(address)
        if address not in _GLOBAL_IPV6:
            return False
        # A router may unpack it at its end (RFC 5214 §6.1), in our own network if the prefix is ours.
        if number >> 32 & 0xFFFFFFFF in _ISATAP and not _is_public(IPv4Address(number & 0xFFFFFFFF)):
            return False
    # What a newer Python knows, and this list does not, counts as well.
    return not any(address in network for network in _NOT_PUBLIC) and address.is_global
