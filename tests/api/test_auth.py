"""Who may ask, and for what: keys, tenants, and what protects a server without keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from api.access.rules import RULES
from api.auth import Authenticator, key_id
from api.openapi.document import OPERATIONS
from shared.config.settings import Settings
from shared.generations.caller import Caller
from tests.harness.processes import Stack
from tests.harness.upstream import Pause, ending, words
from tests.support.wire import KEY_A, KEY_B, Client, Register, ask, frames, refused

OPEN = {
    "/",
    "/healthz",
    "/health",
    "/readyz",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/console",
    "/console/{path}",
    "/s",
}

ROUTES = [tuple(name.split()) for name in OPERATIONS]
LOCKED = [(method, path) for method, path in ROUTES if RULES.get(f"{method} {path}") is not RULES["GET /"]]
"""What /openapi.json lists, so that each is a test of its own; compared with it below."""

BAD_KEYS: dict[str, Any] = {
    "none": {},
    "empty": {"authorization": ""},
    "no scheme": {"authorization": KEY_A},
    "scheme only": {"authorization": "Bearer"},
    "other scheme": {"authorization": f"Basic {KEY_A}"},
    "wrong": {"authorization": "Bearer wrong"},
    "prefix": {"authorization": f"Bearer {KEY_A[:-1]}"},
    "longer": {"authorization": f"Bearer {KEY_A}x"},
    "other case": {"authorization": f"Bearer {KEY_A.upper()}"},
    "two keys": {"authorization": f"Bearer {KEY_A} {KEY_B}"},
    "tenant and key": {"authorization": f"Bearer a:{KEY_A}"},
    "not ASCII": {"authorization": "Bearer schlüssel".encode("latin-1")},
    "long": {"authorization": "Bearer " + "x" * 10_000},
    "other header": {"x-api-key": KEY_A, "api-key": KEY_A},
    "cookie": {"cookie": f"authorization=Bearer {KEY_A}"},
}


@pytest.fixture(scope="module")
def stranger(keyed: Stack) -> Iterator[Client]:
    """Nobody's client of the keyed server."""
    with Client(keyed.url) as http:
        yield http


@pytest.fixture(scope="module")
def of_alice(alice: Client) -> str:
    """A finished generation of tenant a's."""
    return str(alice.stream("fake/lorem?tokens=5").headers["x-stream-id"])


def filled(path: str, generation_id: str) -> str:
    return path.format(
        generation_id=generation_id,
        response_id=generation_id.replace("chatcmpl-", "resp_"),
        session_id="s-1",
        model="fake/echo",
        file_id="file-1",
        batch_id="batch_1",
        conversation_id="conv_1",
        item_id="msg_1",
        key_id="key_1",
        share_id="share_1",
        worker_id="w-1",
        name="openai",
        tenant="a",
        completion_id=generation_id.replace("chatcmpl-", "cmpl-"),
    )


def test_the_routes_here_are_all_there_are(stranger: Client) -> None:
    paths = stranger.get("/openapi.json").json()["paths"]
    listed = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert listed == set(ROUTES)


@pytest.mark.parametrize(("method", "path"), LOCKED)
def test_every_route_wants_a_key(stranger: Client, of_alice: str, method: str, path: str) -> None:
    """Whatever is wrong with the key, and whatever else is wrong, the answer is the same."""
    urls = [
        filled(path, of_alice),
        filled(path, "nobody"),
        filled(path, of_alice) + "?limit=x&stream=x&starting_after=x",
    ]
    responses = [
        stranger.http.request(method, url, headers=headers, content=b"{")
        for url in urls
        for headers in BAD_KEYS.values()
    ]
    for response in responses:
        refused(response, 401, "invalid_api_key")
        assert "location" not in response.headers
    assert len({response.content for response in responses}) == 1


@pytest.mark.parametrize("path", sorted(OPEN))
def test_probes_and_documentation_need_none(stranger: Client, path: str) -> None:
    assert stranger.get(path).status_code == 200


def test_an_error_of_authentication_shows_no_key(stranger: Client) -> None:
    response = stranger.get("/v1/streams", headers={"authorization": "Bearer canary-key"})
    for secret in ("canary", KEY_A, KEY_B):
        assert secret not in response.text


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_a_key_opens_the_door(stranger: Client, scheme: str) -> None:
    assert stranger.get("/v1/models", headers={"authorization": f"{scheme} {KEY_A}"}).status_code == 200


def test_a_server_with_keys_may_have_any_name(alice: Client) -> None:
    headers = {"host": "streams.example.org", "origin": "https://app.example.org"}
    assert alice.get("/v1/models", headers=headers).status_code == 200


# ---- tenants

FOREIGN: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/v1/streams/{}", {}),
    ("GET", "/v1/streams/{}", {"headers": {"accept": "application/json"}}),
    ("GET", "/v1/streams/{}", {"headers": {"last-event-id": "1-2"}}),
    ("GET", "/v1/streams/{}", {"headers": {"last-event-id": "9007199254740991-0"}}),
    ("GET", "/v1/streams/{}", {"headers": {"last-event-id": "garbage"}}),
    ("GET", "/v1/streams/{}?starting_after=99", {}),
    ("GET", "/v1/streams/{}?last_event_id=1", {}),
    ("GET", "/v1/chat/completions/{}", {}),
    ("GET", "/v1/chat/completions/{}?stream=true", {}),
    ("GET", "/v1/chat/completions/{}?stream=true&starting_after=1", {}),
    ("POST", "/v1/streams/{}/cancel", {}),
    ("DELETE", "/v1/streams/{}", {}),
    ("GET", "/v1/streams?after={}", {}),
    ("GET", "/v1/chat/completions?after={}", {}),
    ("GET", "/v1/chat/completions/{}/messages", {}),
    ("POST", "/v1/chat/completions/{}", {"json": {"metadata": {}}}),
    ("DELETE", "/v1/chat/completions/{}", {}),
]


@pytest.mark.parametrize(("method", "path", "options"), FOREIGN)
def test_somebody_elses_stream_is_unknown(
    bob: Client, of_alice: str, method: str, path: str, options: dict[str, Any]
) -> None:
    foreign = bob.http.request(method, path.format(of_alice), **options)
    unknown = bob.http.request(method, path.format("chatcmpl-" + "0" * 32), **options)
    refused(foreign, 404, "not_found")
    assert foreign.content == unknown.content
    assert foreign.headers.keys() == unknown.headers.keys()


def test_somebody_elses_running_stream_goes_on(alice: Client, bob: Client, scripted: Register) -> None:
    pause = Pause()
    asked = scripted([*words(2), pause, *ending()])
    with alice.streaming(asked.model) as first:
        first.take(3)
        for method, path, options in FOREIGN:
            refused(bob.http.request(method, path.format(first.id), **options), 404)
        assert alice.state(first.id)["viewers"] == 1
        pause.go()
        assert first.rest().endswith(b"data: [DONE]\n\n")
    assert not asked.script.hung_up


def test_lists_are_apart(alice: Client, bob: Client) -> None:
    model = "fake/lorem?tokens=1"
    ids = {name: who.stream(model).headers["x-stream-id"] for name, who in (("a", alice), ("b", bob))}

    def listed(who: Client) -> set[str]:
        return {state["id"] for state in who.get("/v1/streams?limit=100").json()["data"]}

    assert ids["a"] in listed(alice)
    assert ids["b"] in listed(bob)
    assert not listed(alice) & listed(bob)


def test_an_owner_still_sees_it_all(alice: Client, of_alice: str) -> None:
    assert len(frames(alice.whole(of_alice))) == 8
    assert alice.state(of_alice)["status"] == "completed"


# ---- without keys

STRANGE_HOSTS = [
    "attacker.example",
    "attacker.example:80",
    "127.attacker.example",
    "127.0.0.1.attacker.example",
    "localhost.attacker.example",
    "192.168.0.1",
    "0.0.0.0",
    "[::2]",
    "",
]
NO_HOSTS = ["[", "[::1", "a@b@c", "127.0.0.1@attacker.example"]
STRANGE_ORIGINS = [
    "https://attacker.example",
    "http://127.attacker.example",
    "http://127.0.0.1.attacker.example",
    "http://localhost.attacker.example",
    "http://localhost@attacker.example",
    "null",
    "http://[",
    "file://",
    "x",
]


@pytest.mark.parametrize(("header", "value"), [
    *(("host", host) for host in STRANGE_HOSTS),
    *(("origin", origin) for origin in STRANGE_ORIGINS),
])  # fmt: skip
def test_without_keys_strangers_are_refused(client: Client, scripted: Register, header: str, value: str) -> None:
    asked = scripted([*words(1), *ending()])
    headers = {header: value}
    refused(client.get("/v1/streams", headers=headers), 403, "forbidden")
    refused(client.post(ask(asked.model), headers=headers), 403, "forbidden")
    assert not asked.script.calls


@pytest.mark.parametrize("host", NO_HOSTS)
def test_who_names_no_host_is_refused_before_that(client: Client, scripted: Register, host: str) -> None:
    asked = scripted([*words(1), *ending()])
    headers = {"host": host}
    refused(client.get("/v1/streams", headers=headers), 400, "invalid_http")
    refused(client.post(ask(asked.model), headers=headers), 400, "invalid_http")
    assert not asked.script.calls


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:8000"])
def test_without_keys_local_pages_are_served(client: Client, origin: str) -> None:
    assert client.get("/v1/models", headers={"origin": origin}).status_code == 200


def test_no_page_of_another_origin_is_invited(alice: Client) -> None:
    origin = {"origin": "https://attacker.example", "access-control-request-method": "POST"}
    for response in (
        alice.http.options("/v1/chat/completions", headers=origin),
        alice.get("/v1/models", headers=origin),
    ):
        assert not [name for name in response.headers if name.startswith("access-control-")]


# ---- logs


def test_logs_hold_no_prompt_no_answer_and_no_key(
    keyed: Stack, alice: Client, stranger: Client, scripted: Register
) -> None:
    """At level debug, over every way a request can end."""
    said = [part.replace(b"w0", b"canary-answer") for part in words(2)]
    broken = b'data: {"error": {"message": "canary-answer"}}\n\n'
    models = [
        scripted([*said, *ending()]).model,
        scripted([*said, *ending()], provider="openai").model,
        scripted([*said, broken]).model,
        scripted([*said, b"data: canary-answer {\n\n"]).model,
        scripted(said, end="cut").model,
        scripted([b'{"error": {"message": "canary-answer"}}'], status=400).model,
        "fake/echo",
    ]
    for model in models:
        for stream in (True, False):
            response = alice.post(ask(model, "canary-prompt", stream=stream, user="canary-prompt"))
            alice.get(f"/v1/chat/completions/{response.headers['x-stream-id']}")
    alice.send(b'{"model": "fake/echo", "messages": "canary-prompt')
    alice.send(b'{"model": "fake/echo", "messages": "canary-prompt"}')
    alice.get("/v1/streams/canary-prompt?starting_after=canary-prompt")
    stranger.get("/v1/streams", headers={"authorization": "Bearer canary-key"})
    pause = Pause()
    with alice.streaming(scripted([*said, pause]).model, "canary-prompt") as first:
        first.take(2)
        alice.cancel(first.id)
    logs = keyed.log("api") + keyed.log("worker")
    assert "accepted" in logs
    assert "sealed" in logs
    for secret in ("canary", KEY_A, KEY_B):
        assert secret not in logs, re.findall(f".{{0,200}}{secret}.{{0,100}}", logs)[:3]


def test_metrics_hold_no_prompt_and_no_key(keyed: Stack) -> None:
    shown = httpx.get(f"{keyed.url}/metrics", trust_env=False, timeout=60).text
    for secret in ("canary", KEY_A, KEY_B, "hello there"):
        assert secret not in shown


async def test_a_key_keeps_its_id_whichever_others_come_and_go() -> None:
    async def caller(keys: str) -> Caller:
        request = Request({"type": "http", "headers": [(b"authorization", b"Bearer second-key-of-a")]})
        return (await Authenticator(Settings(_env_file=None, api_keys=keys)).identify(request)).caller

    both, alone = await caller("a:first-key-of-a,a:second-key-of-a"), await caller("a:second-key-of-a")
    assert both == alone
    assert re.fullmatch(r"[0-9a-f]{8}", both.key_id or "")
    assert both.key_id != key_id("first-key-of-a")


async def test_a_key_becomes_the_caller_that_routes_are_given() -> None:
    authenticator = Authenticator(Settings(_env_file=None, api_keys="a:first-key-of-a,b:first-key-of-b"))
    headers = [(b"authorization", b"Bearer first-key-of-b")]
    found = await authenticator.identify(Request({"type": "http", "headers": headers}))
    assert found.caller == Caller("b", key_id("first-key-of-b"))
    local = Request({"type": "http", "headers": [(b"host", b"localhost")]})
    assert (await Authenticator(Settings(_env_file=None)).identify(local)).caller == Caller("local")
