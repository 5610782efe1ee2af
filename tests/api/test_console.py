"""Signing in with a browser: a key once, a cookie from then on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.auth import SESSION_COOKIE
from api.openapi import document
from shared.features.access.browsers import FAILURES
from tests.harness.processes import Stack, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import Pause, ending, words
from tests.support.wire import ADMIN_KEY, KEY_A, Client, Register, ask, refused

PAGE = {"sec-fetch-site": "same-origin"}


@pytest.fixture
def page(keyed: Stack) -> Iterator[Client]:
    """A browser: httpx keeps its cookies, but sends none that is `Secure` over http, so the tests do."""
    with Client(keyed.url) as http:
        yield http


def sign_in(page: Client, key: str, **headers: str) -> dict[str, str]:
    """Headers of a page that is signed in."""
    response = page.http.post("/console/session", json={"key": key}, headers=headers)
    assert response.status_code == 200, response.text
    written = response.headers["set-cookie"]
    assert "max-age" not in written.lower()
    name, _, rest = written.partition("=")
    assert name == SESSION_COOKIE
    assert {part.strip().lower() for part in rest.split(";")[1:]} == {"httponly", "path=/", "samesite=strict", "secure"}
    return {"cookie": written.partition(";")[0], **PAGE}


def made(admin: Client, **fields: Any) -> dict[str, Any]:
    key: dict[str, Any] = admin.http.post("/v1/keys", json=fields).json()
    return key


def test_whoever_signs_in_is_whoever_the_key_is(page: Client, admin: Client) -> None:
    viewer = made(admin, tenant="a", role="viewer", name="dashboard")
    shown = page.get("/console/session", headers=sign_in(page, viewer["key"]))
    assert shown.json() == {
        "object": "console.session",
        "keyless": False,
        "tenant": "a",
        "role": "viewer",
        "key": {"id": viewer["id"], "name": "dashboard"},
        "idle_s": 43200,
    }
    assert shown.headers["cache-control"] == "no-store"
    headers = sign_in(page, viewer["key"])
    refused(page.http.post("/v1/chat/completions", json=ask("fake/echo"), headers=headers), 403, "forbidden")
    assert page.get("/console/session", headers=sign_in(page, ADMIN_KEY)).json()["role"] == "admin"
    tenant = sign_in(page, KEY_A)
    assert page.get("/console/session", headers=tenant).json()["key"]["name"] == ""
    asked = page.http.post("/v1/chat/completions", json=ask("fake/echo"), headers=tenant)
    assert page.get(f"/v1/streams/{asked.headers['x-stream-id']}", headers=tenant).status_code == 200
    assert page.get("/console/session", headers={"authorization": f"Bearer {KEY_A}"}).json()["tenant"] == "a"
    refused(page.get("/console/session"), 401, "invalid_api_key")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "cross-site", "origin": "{own}"},
        {"origin": "https://attacker.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1"},
        {"origin": "{own}.attacker.example"},
        {"referer": "{own}/"},
    ],
)
def test_a_cookie_counts_only_where_a_page_of_this_server_asks(
    keyed: Stack, page: Client, headers: dict[str, str]
) -> None:
    cookie = {"cookie": sign_in(page, KEY_A)["cookie"]}
    sent = {name: value.replace("{own}", keyed.url) for name, value in headers.items()}
    for method, path in (("GET", "/v1/streams"), ("POST", "/v1/chat/completions"), ("DELETE", "/console/session")):
        body = ask("fake/echo") if method == "POST" else None
        response = page.http.request(method, path, headers={**cookie, **sent}, json=body)
        refused(response, 403, "cross_origin")
        assert "set-cookie" not in response.headers


def test_an_origin_that_is_the_host_is_as_good(keyed: Stack, page: Client) -> None:
    cookie = sign_in(page, KEY_A)["cookie"]
    assert page.get("/v1/streams", headers={"cookie": cookie, "origin": keyed.url}).status_code == 200
    proxied = {"cookie": cookie, "host": "llm.example.org", "origin": "https://llm.example.org"}
    assert page.get("/v1/streams", headers=proxied).status_code == 200
    assert page.get("/v1/streams", headers={**proxied, "host": "llm.example.org:443"}).status_code == 200
    refused(page.get("/v1/streams", headers={**proxied, "host": "llm.example.org:8443"}), 403, "cross_origin")


def test_a_key_that_is_sent_beats_the_cookie(page: Client) -> None:
    headers = {**sign_in(page, KEY_A), "authorization": "Bearer wrong"}
    refused(page.get("/v1/streams", headers=headers), 401, "invalid_api_key")


@pytest.mark.parametrize("value", ["", "x", "cs_" + "x" * 43, "x" * 5000, "a=b; c", '"', "ü"])
def test_a_cookie_of_no_session_opens_nothing(page: Client, value: str) -> None:
    headers = {"cookie": f"{SESSION_COOKIE}={value}".encode(), "sec-fetch-site": b"same-origin"}
    assert page.http.get("/v1/streams", headers=headers).status_code == 401  # type: ignore[arg-type]


def test_it_ends_when_it_is_signed_out(page: Client) -> None:
    headers, other = sign_in(page, KEY_A), sign_in(page, KEY_A)
    response = page.http.delete("/console/session", headers=headers)
    assert response.json() == {"object": "console.session.deleted", "deleted": True}
    assert "max-age=0" in response.headers["set-cookie"].lower()
    refused(page.get("/v1/streams", headers=headers), 401, "invalid_api_key")
    assert page.http.delete("/console/session", headers=headers).status_code == 200, "once more is harmless"
    assert page.http.delete("/console/session").status_code == 200
    assert page.get("/v1/streams", headers=other).status_code == 200, "another browser's goes on"


def test_it_ends_with_its_key_and_with_its_keys_secret(page: Client, admin: Client) -> None:
    revoked, rotated = made(admin, tenant="a"), made(admin, tenant="a")
    of_revoked, of_rotated = sign_in(page, revoked["key"]), sign_in(page, rotated["key"])
    assert page.get("/v1/streams", headers=of_revoked).status_code == 200
    admin.http.delete(f"/v1/keys/{revoked['id']}")
    newer = admin.http.post(f"/v1/keys/{rotated['id']}/rotate").json()["key"]
    for headers in (of_revoked, of_rotated):
        refused(page.get("/v1/streams", headers=headers), 401, "invalid_api_key")
    assert page.get("/v1/streams", headers=sign_in(page, newer)).status_code == 200


def test_what_is_watched_is_cut_when_it_is_signed_out(keyed: Stack, page: Client, scripted: Register) -> None:
    pause = Pause()
    headers = sign_in(page, KEY_A)
    asked = page.http.post(
        "/v1/chat/completions",
        json=ask(scripted([*words(2), pause, *ending()]).model, background=True),
        headers=headers,
    )
    path = f"/v1/streams/{asked.json()['id']}"
    with Client(keyed.url) as watching, watching.view("GET", path, headers=headers) as viewer:
        viewer.take(1)
        page.http.delete("/console/session", headers=headers)
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            viewer.rest()
    pause.go()
    again = {"authorization": f"Bearer {KEY_A}"}
    assert wait_until(lambda: page.get(path, headers={**again, "accept": "application/json"}).json()["ended_at"])


def test_only_its_digest_is_kept_and_a_session_that_is_not_used_ends(keyed: Stack, page: Client) -> None:
    headers = sign_in(page, KEY_A)
    text = headers["cookie"].partition("=")[2]
    with open_store(keyed.redis_url) as store:
        names = list(store.scan_iter(match="*:console:*", count=1000))
        assert names
        for name in names:
            assert text.encode() not in name + store.get(name)
            assert KEY_A.encode() not in store.get(name)
            assert 0 < store.ttl(name) <= 43200
            store.delete(name)
    refused(page.get("/v1/streams", headers=headers), 401, "invalid_api_key")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"key": 1}', b'{"key": "x", "more": 1}', b'{"token": "x"}'])
def test_what_is_sent_is_checked(page: Client, body: bytes) -> None:
    response = page.http.post("/console/session", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    refused(page.http.post("/console/session", content=b"x" * 5000), 413)
    form = {"content-type": "text/plain"}
    refused(page.http.post("/console/session", content=json.dumps({"key": KEY_A}).encode(), headers=form), 415)


def test_no_page_of_another_origin_signs_in_and_no_plain_http_from_afar(page: Client) -> None:
    body = {"key": KEY_A}
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "https://attacker.example"}):
        refused(page.http.post("/console/session", json=body, headers=headers), 403, "cross_origin")
    plain = {"host": "box.lan:8000", "origin": "http://box.lan:8000"}
    refused(page.http.post("/console/session", json=body, headers=plain), 400, "https_needed")


def test_wrong_keys_are_bounded_and_told_nothing(keyed: Stack, page: Client, admin: Client) -> None:
    gone = made(admin, tenant="a")
    admin.http.delete(f"/v1/keys/{gone['id']}")
    with open_store(keyed.redis_url) as store:
        for name in store.scan_iter(match="*:console-failed:*", count=1000):
            store.delete(name)  # of other tests
        try:
            told = set()
            for number in range(FAILURES):
                wrong = gone["key"] if number % 2 else f"wrong-{number}"
                told.add(page.http.post("/console/session", json={"key": wrong}).content)
            assert len(told) == 1
            refused(page.http.post("/console/session", json={"key": "wrong"}), 429, "rate_limit_exceeded")
            limited = page.http.post("/console/session", json={"key": KEY_A})
            assert limited.headers["retry-after"] == "60"
            refused(limited, 429, "rate_limit_exceeded")
            assert page.get("/v1/models", headers={"authorization": f"Bearer {KEY_A}"}).status_code == 200
        finally:
            for name in store.scan_iter(match="*:console-failed:*", count=1000):
                assert 0 < store.ttl(name) <= 60
                store.delete(name)


def test_without_keys_there_is_nothing_to_sign_in_with(client: Client) -> None:
    shown = client.get("/console/session").json()
    assert (shown["keyless"], shown["tenant"], shown["key"]) == (True, "local", None)
    response = client.http.post("/console/session", json={})
    assert response.json()["keyless"]
    assert "set-cookie" not in response.headers
    refused(client.get("/console/session", headers={"origin": "https://attacker.example"}), 403, "forbidden")


def test_no_log_has_the_key_or_the_session(keyed: Stack, page: Client) -> None:
    text = sign_in(page, KEY_A)["cookie"].partition("=")[2]
    logs = keyed.log("api") + keyed.log("worker")
    assert text not in logs
    assert KEY_A not in logs


def test_the_description_names_the_cookie() -> None:
    assert document._SECURITY["signedIn"]["name"] == SESSION_COOKIE
