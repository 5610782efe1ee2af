"""What is done to a request before a route has it: whose word about us is believed, and which pages may ask."""

from __future__ import annotations

from typing import Any

import pytest

from api.application import Door
from shared.config.settings import Settings


def door(**settings: Any) -> Door:
    return Door.of(Settings(**settings))


def scope(client: str | None = "10.1.2.3", **headers: str) -> dict[str, Any]:
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"client": client and (client, 1234), "headers": fields, "scheme": "http"}


@pytest.mark.parametrize(
    ("proxies", "client", "believed"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("127.0.0.1, ::1", "::1", True),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("", "10.1.2.3", False),
        ("10.0.0.0/8", None, False),  # a socket of a file
        ("10.0.0.0/8", "strange", False),
    ],
)
def test_a_proxy_is_believed_if_it_is_named(proxies: str, client: str | None, believed: bool) -> None:
    asked = scope(client, x_forwarded_prefix="/told", x_forwarded_proto="https")
    assert door(trusted_proxies=proxies, root_path="/set").prefix(asked) == ("/told" if believed else "/set")


def test_a_proxy_that_tells_no_prefix_tells_the_scheme() -> None:
    asked = scope(x_forwarded_proto="https")
    assert door(trusted_proxies="10.0.0.0/8", root_path="/set").prefix(asked) == "/set"
    assert asked["scheme"] == "https"


@pytest.mark.parametrize(
    "told", ["/..", "/a/../b", "/.", "//a", "/a//b", "a", "/a?b", "/a#b", "/é", "/a\\b", "/%2e", ""]
)
def test_what_is_no_prefix_is_not_taken(told: str) -> None:
    assert door(trusted_proxies="10.0.0.0/8").prefix(scope(x_forwarded_prefix=told)) == ""


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ("https://a.example", "https://a.example", "https://a.example"),
        ("https://a.example,http://localhost:5173", "http://localhost:5173", "http://localhost:5173"),
        ("*", "https://any.example", "*"),
        ("https://a.example", "https://a.example.evil.example", None),
        ("https://a.example", "null", None),
        ("", "https://a.example", None),
    ],
)
def test_which_pages_may_ask(origins: str, origin: str, allowed: str | None) -> None:
    said = dict(door(cors_origins=origins).welcome(scope(origin=origin)))
    assert said.get(b"access-control-allow-origin", b"").decode() == (allowed or "")
    assert (said.get(b"vary") == b"origin") == bool(origins), "a cache must not give one page's answer to another"


@pytest.mark.parametrize(
    "wrong", ["a.example", "https://a.example/", "https://A.example", "null", "https://a.example/path"]
)
def test_what_is_no_origin_stops_the_start(wrong: str) -> None:
    with pytest.raises(ValueError, match="must be origins"):
        door(cors_origins=wrong)


@pytest.mark.parametrize("wrong", ["proxy.example", "10.0.0.1/8", "x"])
def test_so_does_what_is_no_address(wrong: str) -> None:
    with pytest.raises(ValueError, match="trusted_proxies"):
        door(trusted_proxies=wrong)


@pytest.mark.parametrize("wrong", ["llm", "/llm/", "/", "//llm", "/a/../b", "https://x"])
def test_and_what_is_no_prefix(wrong: str) -> None:
    with pytest.raises(ValueError, match="root_path"):
        door(root_path=wrong)
