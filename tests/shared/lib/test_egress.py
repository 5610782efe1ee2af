"""Where a tenant may send this server: nothing but the public internet, however the address is written."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.lib.egress import MAX_URL, Policy, Refused

INNER = [
    *"0.0.0.0 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 169.254.169.254 172.16.0.1".split(),
    *"192.0.0.192 192.0.2.1 192.168.1.1 198.18.0.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255".split(),
    *"168.63.129.16 :: ::1 ::7f00:1 fe80::1 fec0::1 fc00::1 fd00:ec2::254 ff02::1 100::1 2001:db8::1".split(),
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::200e"]
SPECIAL = [
    *"0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29".split(),
    *"192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/31 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24".split(),
    *"192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4".split(),
    *"255.255.255.255/32 224.0.0.0/4 ::1/128 ::/128 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001:1::1/128".split(),
    *"2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28".split(),
    *"2001:30::/28 2001:100::/24 2001:db8::/32 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10".split(),
    *"fec0::/10 ff00::/8".split(),
]
"""IANA's two registries of special-purpose addresses (those inside others, too), multicast, and what used to be special."""
BESIDE = [
    *"1.0.0.0 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255".split(),
    *"169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.31.195.255 192.31.197.0 192.52.192.255 192.52.194.0".split(),
    *"192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 192.175.47.255 192.175.49.0 198.17.255.255".split(),
    *"198.20.0.0 198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255".split(),
    *"2001:200:: 2001:db7:ffff:: 2001:db9:: 2620:4f:7fff:: 2620:4f:8001:: 3fff:1000::".split(),
]
"""Addresses just before and after them."""
EMBEDDED = ["::ffff:{}", "64:ff9b::{}"]
"""Ways to write an IPv4 in an IPv6 that the network stack, or a translator on the way, follows."""

open_policy = Policy()


def refused(url: str, policy: Policy = open_policy) -> str:
    with pytest.raises(Refused) as caught:
        policy.check_url(url)
    return str(caught.value)


def literal(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.mark.parametrize("address", INNER)
def test_what_is_not_public_is_refused_by_its_number(address: str) -> None:
    refused(f"https://{literal(address)}/")
    with pytest.raises(Refused):
        open_policy.check_address("public.example.com", ip_address(address))


@pytest.mark.parametrize("block", SPECIAL)
def test_a_block_for_a_special_purpose_is_refused_from_end_to_end(block: str) -> None:
    network = ip_network(block)
    for address in (network[0], network[network.num_addresses // 2], network[-1]):
        assert not allowed(address), address


@pytest.mark.parametrize("address", BESIDE)
def test_what_lies_beside_such_a_block_may_be_called(address: str) -> None:
    assert allowed(ip_address(address))


@pytest.mark.parametrize(("inner", "public"), [("10.0.0.1", False), ("192.168.1.1", False), ("8.8.8.8", True)])
def test_an_isatap_address_is_public_only_if_both_its_parts_are(inner: str, public: bool) -> None:
    low = int(IPv4Address(inner))
    for interface in (0x00005EFE, 0x02005EFE):
        assert allowed(IPv6Address(0x2606_4700 << 96 | interface << 32 | low)) is public
        assert not allowed(IPv6Address(0xFE80 << 112 | interface << 32 | low))


@pytest.mark.parametrize("form", EMBEDDED)
@pytest.mark.parametrize("address", [a for a in INNER if ":" not in a])
def test_an_ipv4_inside_an_ipv6_is_what_it_is(address: str, form: str) -> None:
    refused(f"https://[{form.format(address)}]/")


@pytest.mark.parametrize("address", [*PUBLIC, "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_what_is_public_may_be_called(address: str) -> None:
    assert open_policy.check_url(f"https://{literal(address)}/x?y=1").path == "/x?y=1"
    open_policy.check_address("example.com", ip_address(address))


@given(st.integers(min_value=0, max_value=2**32 - 1))
def test_six_to_four_and_teredo_and_mapped_are_public_only_if_what_they_hold_is(number: int) -> None:
    inner = IPv4Address(number)
    public = allowed(inner)
    for outer in (
        IPv6Address(0xFFFF << 32 | number),
        IPv6Address(0x2002 << 112 | number << 80),
        IPv6Address((0x64FF9B << 96) | number),
        IPv6Address(0x20010000 << 96 | 0x08080808 << 64 | (number ^ 0xFFFFFFFF)),
    ):
        assert not allowed(outer) or public, (outer, inner)
    assert allowed(IPv6Address(0xFFFF << 32 | number)) == public


@given(st.ip_addresses())
def test_no_private_or_special_address_passes(address: IPv4Address | IPv6Address) -> None:
    inside = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)  # is judged, and tested above
    if allowed(address) and not inside:
        assert address.is_global
        assert not any((address.is_private, address.is_loopback, address.is_link_local, address.is_multicast))
        assert address.version == 4 or address in IPv6Network("2000::/3") or address in IPv6Network("64:ff9b::/96")


def allowed(address: IPv4Address | IPv6Address) -> bool:
    try:
        open_policy.check_address("example.com", address)
    except Refused:
        return False
    return True


@pytest.mark.parametrize(
    "host",
    [
        *"localhost LOCALHOST localhost. a.localhost printer.local metadata.google.internal box.lan db".split(),
        *"2130706433 127.1 0x7f.1 0x7f000001 0177.0.0.1 1.2.3.4.5 127.0.0.1. 10.0.0.1:443".split(),
        *"fe80::1%eth0 [fe80::1%25eth0] [::1] [v1.x] [example.com] ex_ample..com -a.com bücher.de".split(),
        *"user@example.com user:password@example.com example.com@10.0.0.1 example.com\\@10.0.0.1 10.0.0.1#.example.com".split(),
        *"example.com:0 example.com:22 example.com:6379x example.com:99999 example.com:80".split(),
        "",
        "exa mple.com",
        "example.com\n",
        "example.com\t",
    ],
)
def test_hosts_that_are_none_or_not_public_are_refused(host: str) -> None:
    refused(f"https://{host}/hook")


@pytest.mark.parametrize(
    "url",
    [
        *"x //example.com/ ftp://example.com/ file:///etc/passwd gopher://example.com http://example.com/".split(),
        *"https:example.com https://example.com/#x https:///example.com".split(),
        "",
        "https://example.com/" + "x" * MAX_URL,
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    refused(url)


@pytest.mark.parametrize("port", [443, 1024, 8443, 65535])
def test_ports_of_the_web_and_high_ones(port: int) -> None:
    assert open_policy.check_url(f"https://example.com:{port}/").port == port


def test_the_parts_are_what_a_client_needs() -> None:
    place = open_policy.check_url("HTTPS://Hooks.Example.COM.:8443?a=b")
    assert place == ("https", "hooks.example.com", 8443, "/?a=b")
    assert place.authority == "hooks.example.com:8443"
    assert open_policy.check_url("https://example.com").authority == "example.com"
    place = open_policy.check_url("https://[2606:4700::1111]/x")
    assert (place.authority, place.host) == ("[2606:4700::1111]", "2606:4700::1111")


def test_the_operators_exceptions() -> None:
    policy = Policy(["Hooks.Internal", "127.0.0.1", " 10.1.0.0/16 ", "fd00::/8", "queue"])
    for url in (
        "http://hooks.internal/",
        "http://127.0.0.1:81/",
        "http://10.1.2.3:22/",
        "http://[fd00::1]:9/",
        "http://queue/",
    ):
        policy.check_url(url)
    for url in (
        "http://10.2.0.1/",
        "http://x.hooks.internal/",
        "http://127.0.0.2/",
        "https://[fe80::1]/",
        "http://example.com/",
    ):
        refused(url, policy)
    policy.check_address("hooks.internal", ip_address("192.168.0.1"))
    policy.check_address("example.com", ip_address("10.1.0.1"))
    policy.check_address("example.com", ip_address("::ffff:10.1.0.1"))
    with pytest.raises(Refused):
        policy.check_address("example.com", ip_address("192.168.0.1"))


@pytest.mark.parametrize("entry", ["", "10.0.0.1/8", "a b", "http://x", "host:80", "*.internal", "127.1", "300.0.0.1"])
def test_a_wrong_exception_stops_the_start(entry: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        Policy([entry])


@given(st.text(max_size=60))
def test_any_text_is_refused_or_leads_to_the_public_internet(text: str) -> None:
    """Whatever passes has a host that is a public address, or a name with a dot that no C library takes for a number."""
    try:
        place = open_policy.check_url(f"https://{text}")
    except Refused:
        return
    try:
        address = ip_address(place.host)
    except ValueError:
        assert "." in place.host
        assert place.host.isascii()
        assert not place.host.rpartition(".")[2].isdigit()
    else:
        assert allowed(address)
        assert address not in IPv4Network("10.0.0.0/8")
