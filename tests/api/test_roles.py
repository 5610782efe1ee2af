"""Every route, asked by every kind of caller, about what is theirs and what is another's, over the real application.

What is right is said here once more, in other words than in api/access/rules.py: by the path's beginning and the method.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from api.access.rules import RULES
from api.openapi.document import OPERATIONS
from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import DONE, ScriptedUpstream, ending, words
from tests.support.wire import ADMIN_KEY, KEY_A, KEY_B, Client, Register, ask

OPEN = {
    "GET /",
    "GET /docs",
    "GET /docs/swagger",
    "GET /docs/swagger/{name}",
    "GET /openapi.json",
    "GET /health",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
}
OPEN |= {"POST /console/session", "DELETE /console/session", "POST /s/session"}
OPEN |= {"GET /console", "GET /console/{path}", "GET /s"}
ONLY_COUNTS = {"POST /v1/responses/input_tokens", "POST /v1/streams/{generation_id}/tokens"}
ADMINS = ("/v1/keys", "/v1/workers", "/v1/providers", "/v1/redis", "/v1/settings", "/v1/audit", "/v1/limits/")
TOKENS = {"GET /v1/streams/{generation_id}"}
SHARES = TOKENS | {"GET /v1/streams/{generation_id}/request"}
CONTROLS = SHARES | {"POST /v1/streams/{generation_id}/cancel"}
SOCKETS = {"WEBSOCKET /v1/responses"}
"""No operations of OpenAPI's, which has no word for them."""
ENDLESS = {"GET /v1/events"}
"""Answers that are not waited for: their headers tell."""
OF_ALL = {
    "GET /v1/events",
    "GET /v1/streams",
    "GET /v1/streams/facets",
    "GET /v1/streams/counts",
    "GET /v1/chat/completions",
    "GET /v1/responses",
    "GET /v1/sessions",
    "GET /v1/files",
    "GET /v1/batches",
    "GET /v1/keys",
    "GET /v1/queue",
    "GET /v1/audit",
    "GET /v1/usage",
}
"""Lists that an admin may have of all tenants at once."""
NO_TENANTS = ("GET /v1/models/", *ADMINS)
"""What they name is no tenant's."""

PROMPT = {"model": "scripted/roles", "prompt": "hello"}
CHAT = ask("fake/echo", store=True)
BODIES: dict[str, Any] = {
    "POST /v1/chat/completions": CHAT,
    "POST /v1/chat/completions/{generation_id}": {"metadata": {}},
    "POST /v1/completions": PROMPT,
    "POST /v1/responses": {"model": "fake/echo", "input": "hello"},
    "POST /v1/responses/input_tokens": {"model": "fake/echo", "input": "hello"},
    "POST /v1/responses/compact": {"model": "fake/echo", "input": "hello"},
    "POST /v1/conversations": {},
    "POST /v1/conversations/{conversation_id}": {"metadata": {}},
    "POST /v1/conversations/{conversation_id}/items": {"items": [{"role": "user", "content": "more"}]},
    "POST /v1/embeddings": {"model": "fake/echo", "input": "hello"},
    "POST /v1/moderations": {"model": "fake/echo", "input": "hello"},
    "POST /v1/batches": {"endpoint": "/v1/chat/completions", "completion_window": "1h"},
    "POST /v1/streams/cancel": {"ids": ["chatcmpl-none"]},
    "POST /v1/keys": {"tenant": "made"},
    "POST /v1/keys/{key_id}": {"name": "changed"},
    "POST /v1/limits/{tenant}": {"running": None},
    "POST /console/session": {"key": KEY_A},
}


class Who(NamedTuple):
    """A caller: its headers and query, what its role is, and whether what is asked for is its tenant's."""

    headers: dict[str, str]
    query: dict[str, str]
    role: str
    own: bool


class Objects(NamedTuple):
    """Things of tenant a's, and a key."""

    generation_id: str
    response_id: str
    completion_id: str
    session_id: str
    file_id: str
    batch_id: str
    conversation_id: str
    item_id: str
    key_id: str
    share_id: str
    share_token: str
    model: str = "fake/echo"
    tenant: str = "a"
    path: str = "requests"
    worker_id: str = "none-such"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def made(admin: Client, **fields: Any) -> dict[str, Any]:
    response = admin.http.post("/v1/keys", json=fields)
    assert response.status_code == 200, response.text
    key: dict[str, Any] = response.json()
    return key


def upload(client: Client) -> str:
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": ask("fake/slow?tokens=1000")}
    file = {"file": ("in.jsonl", json.dumps(line).encode())}
    return str(client.http.post("/v1/files", data={"purpose": "batch"}, files=file).json()["id"])


def new_objects(alice: Client, admin: Client) -> Objects:
    response = alice.http.post("/v1/responses", json={"model": "fake/echo", "input": "hello", "store": True})
    completion = alice.http.post("/v1/completions", json=PROMPT)
    session_id = f"roles-{uuid.uuid4().hex}"  # another one is deleted
    session = alice.post(ask("fake/echo", store=True, session_id=session_id))
    for one in (response, completion, session):
        assert one.status_code == 200, one.text
    file_id = upload(alice)
    batch = alice.http.post("/v1/batches", json={**BODIES["POST /v1/batches"], "input_file_id": file_id})
    assert batch.status_code == 200, batch.text
    items = {"items": [{"type": "message", "role": "user", "content": "hello"}]}
    conversation = alice.http.post("/v1/conversations", json=items).json()["id"]
    listed = alice.get(f"/v1/conversations/{conversation}/items").json()["data"]
    generation_id = session.headers["x-stream-id"]
    share = shared(alice, generation_id)
    return Objects(
        generation_id,
        response.json()["id"],
        completion.json()["id"],
        session_id,
        file_id,
        batch.json()["id"],
        conversation,
        listed[0]["id"],
        made(admin, tenant="a")["id"],
        share["id"],
        share["token"],
    )


def shared(alice: Client, generation_id: str, **fields: Any) -> dict[str, Any]:
    response = alice.http.post(f"/v1/streams/{generation_id}/shares", json=fields)
    assert response.status_code == 200, response.text
    share: dict[str, Any] = response.json()
    return share


def browser(keyed: Stack, path: str, body: dict[str, str]) -> dict[str, str]:
    """Headers of a page of the server's, in a browser that was given a cookie there."""
    with Client(keyed.url) as http:
        response = http.http.post(path, json=body)
    assert response.status_code == 200, response.text
    cookie = response.headers["set-cookie"].partition(";")[0]
    return {"cookie": cookie, "sec-fetch-site": "same-origin"}


@pytest.fixture(scope="module")
def objects(alice: Client, admin: Client, upstream: ScriptedUpstream) -> Objects:
    choice = {"text": "hello", "index": 0, "logprobs": None, "finish_reason": "stop"}
    chunk = {"id": "cmpl-up", "object": "text_completion", "created": 1, "model": "up", "choices": [choice]}
    upstream.script("roles", [b"data: %b\n\n" % json.dumps(chunk).encode(), DONE])
    return new_objects(alice, admin)


@pytest.fixture(scope="module")
def callers(keyed: Stack, alice: Client, admin: Client, objects: Objects) -> dict[str, Who]:
    viewers = {tenant: made(admin, tenant=tenant, role="viewer")["key"] for tenant in "ab"}
    tenants = {tenant: made(admin, tenant=tenant)["key"] for tenant in "ab"}
    boss = made(admin, tenant="ops", role="admin")["key"]
    gone = made(admin, tenant="a")
    admin.http.delete(f"/v1/keys/{gone['id']}")
    other = alice.stream("fake/echo").headers["x-stream-id"]
    mine, foreign = (
        alice.http.post(f"/v1/streams/{one}/tokens").json()["token"] for one in (objects.generation_id, other)
    )
    shares = {
        mode: shared(alice, objects.generation_id, mode=mode, include=["answer", "prompt"])
        for mode in ("view", "control")
    }
    shares["foreign"] = shared(alice, other, mode="control", include=["answer", "prompt"])
    opened = {name: browser(keyed, "/s/session", {"token": one["token"]}) for name, one in shares.items()}
    ids = {name: {"share": one["id"]} for name, one in shares.items()}
    revoked = shared(alice, objects.generation_id, mode="control")
    ended = browser(keyed, "/s/session", {"token": revoked["token"]})
    alice.http.delete(f"/v1/streams/{objects.generation_id}/shares/{revoked['id']}")
    signed_in = {
        name: browser(keyed, "/console/session", {"key": key})
        for name, key in {"admin": boss, "tenant": tenants["a"], "viewer": viewers["a"], "other": tenants["b"]}.items()
    }
    return {
        "a share": Who(opened["view"], ids["view"], "share", True),
        "a share with control": Who(opened["control"], ids["control"], "control", True),
        "a share of another stream": Who(opened["foreign"], ids["foreign"], "control", False),
        "a share that was revoked": Who(ended, {"share": revoked["id"]}, "none", False),
        "a share that was not opened": Who({"sec-fetch-site": "same-origin"}, ids["control"], "none", False),
        "a share, with another's cookie": Who(opened["view"], ids["control"], "none", False),
        "a share, from elsewhere": Who(
            {**opened["control"], "sec-fetch-site": "cross-site"}, ids["control"], "elsewhere", True
        ),
        "a browser of an admin": Who(signed_in["admin"], {"tenant": "a"}, "admin", True),
        "a browser of the tenant": Who(signed_in["tenant"], {}, "tenant", True),
        "a browser of a viewer": Who(signed_in["viewer"], {}, "viewer", True),
        "a browser of another tenant": Who(signed_in["other"], {}, "tenant", False),
        "a browser of the tenant, from elsewhere": Who(
            {**signed_in["tenant"], "sec-fetch-site": "same-site"}, {}, "crossing", True
        ),
        "nobody": Who({}, {}, "none", False),
        "a wrong key": Who(bearer("sk-ss-wrong"), {}, "none", False),
        "a revoked key": Who(bearer(gone["key"]), {}, "none", False),
        "the tenant, by the environment": Who(bearer(KEY_A), {}, "tenant", True),
        "the tenant": Who(bearer(tenants["a"]), {}, "tenant", True),
        "another tenant, by the environment": Who(bearer(KEY_B), {}, "tenant", False),
        "another tenant": Who(bearer(tenants["b"]), {}, "tenant", False),
        "another tenant that names this one": Who(bearer(tenants["b"]), {"tenant": "a"}, "pretender", False),
        "a viewer that names its own": Who(bearer(viewers["a"]), {"tenant": "a"}, "pretender", True),
        "a viewer": Who(bearer(viewers["a"]), {}, "viewer", True),
        "another tenant's viewer": Who(bearer(viewers["b"]), {}, "viewer", False),
        "an admin": Who(bearer(boss), {}, "admin", False),
        "an admin, by the environment": Who(bearer(ADMIN_KEY), {}, "admin", False),
        "an admin for the tenant": Who(bearer(boss), {"tenant": "a"}, "admin", True),
        "an admin for another tenant": Who(bearer(boss), {"tenant": "b"}, "admin", False),
        "an admin for all": Who(bearer(boss), {"tenant": "*"}, "admin of all", True),
        "a token": Who({}, {"token": mine}, "token", True),
        "a token of another stream": Who({}, {"token": foreign}, "token", False),
    }


@pytest.fixture(scope="module")
def http(keyed: Stack) -> Iterator[Client]:
    with Client(keyed.url) as client:
        yield client


def right(route: str, who: Who) -> set[int]:
    """The statuses that are right for a caller; 0 stands for all that let it in."""
    method, path = route.split()
    if route.replace(":path", "") in OPEN:
        crosses = method != "GET" and (who.role == "crossing" or (who.role == "elsewhere" and method == "POST"))
        return {403} if crosses else {0}
    if who.role == "token":
        return {0} if route in TOKENS and who.own else {401}
    if who.role in ("share", "control"):
        opens = SHARES if who.role == "share" else CONTROLS
        asks = route in CONTROLS
        return ({0} if route in opens else {403}) if asks and who.own else {404} if asks else {401}
    if who.role == "elsewhere":
        return {403} if route in CONTROLS else {401}
    if who.role == "crossing":
        return {403}
    if who.role == "none":
        return {401}
    writes = not (method == "GET" or route in ONLY_COUNTS)
    if path.startswith(ADMINS) and not who.role.startswith("admin"):
        return {403}
    if who.role == "pretender" or (who.role == "viewer" and writes):
        return {403}
    if who.role == "admin of all":
        return {0} if route in OF_ALL else {400}
    return {0} if who.own or "{" not in path or route.startswith(NO_TENANTS) or path.startswith(ADMINS) else {404}


def wrong(http: Client, route: str, who: Who, objects: Objects) -> str:
    """What is wrong with the answer; nothing if it is right."""
    method, path = route.split()
    body = BODIES.get(route)
    if route == "POST /v1/batches":
        body = {**BODIES[route], "input_file_id": objects.file_id}
    if route == "POST /s/session":
        body = {"token": objects.share_token}
    if route == "DELETE /console/session" and who.role != "crossing":  # others of these tests are to stay signed in
        who = who._replace(headers={})
    if route in SOCKETS:
        return judged(route, who, opened(f"{http.http.base_url}{path}", who))
    files = {"file": ("x.txt", b"{}")} if route == "POST /v1/files" else None
    response = http.http.request(
        "HEAD" if route in ENDLESS else method,
        path.replace(":path", "").format(**objects._asdict(), name="fake" if "/providers/" in path else "start.js"),
        params=who.query,
        headers=who.headers,
        json=body if method == "POST" and files is None else None,
        data={"purpose": "batch"} if files else None,
        files=files,
    )
    return judged(route, who, response)


def opened(url: str, who: Who) -> httpx.Response:
    """The answer to an offer of a WebSocket."""
    address = str(httpx.URL(url.replace("//v1", "/v1")).copy_merge_params(who.query)).replace("http", "ws", 1)
    try:
        with connect(address, additional_headers=who.headers, proxy=None):
            return httpx.Response(101)
    except InvalidStatus as refused:
        return httpx.Response(refused.response.status_code, content=bytes(refused.response.body))


def judged(route: str, who: Who, response: httpx.Response) -> str:
    expected, status = right(route, who), response.status_code
    if expected == {0}:
        # A batch's file is another's 404, and a moderation by a chat model a refusal of the provider's: both were let in.
        let_in = status < 400 or status >= 500 or (status in (400, 404, 409) and route in UNSURE)
        return "" if let_in else f"{route}: {status} {response.text[:200]}"
    return "" if status in expected else f"{route}: {status} in place of {expected}, {response.text[:200]}"


UNSURE = {
    "GET /v1/streams/counts",  # it keeps no history
    "POST /v1/workers/{worker_id}/drain",  # there is none such
    "POST /v1/workers/{worker_id}/resume",
    "POST /v1/batches",  # the file is another tenant's
    "POST /v1/responses/compact",  # the model's provider has none
    "POST /v1/moderations",
    "POST /v1/batches/{batch_id}/cancel",  # it may have ended
    "POST /v1/streams/{generation_id}/retry",  # its session is busy
    "POST /v1/batches/{batch_id}/redeliver",  # there is no webhook
    "POST /v1/streams/{generation_id}/redeliver",
    "GET /v1/batches/{batch_id}/output",
    "GET /v1/batches/{batch_id}/errors",
}


def test_there_is_a_rule_for_each_route_and_no_other() -> None:
    documented = set(OPERATIONS)
    assert {route.replace(":path", "") for route in RULES} == documented | OPEN | SOCKETS


@pytest.mark.parametrize("route", sorted(RULES))
def test_who_is_let_in(
    http: Client, alice: Client, admin: Client, callers: dict[str, Who], objects: Objects, route: str
) -> None:
    method = route.split()[0]
    found = []
    for name, who in callers.items():
        deletes = method == "DELETE" and right(route, who) == {0}
        about = new_objects(alice, admin) if deletes else objects
        if problem := wrong(http, route, who, about):
            found.append(f"{name}, {problem}")
    assert not found, "\n".join(found)


def test_how_many_cases_there_are(callers: dict[str, Who]) -> None:
    assert len(RULES) * len(callers) >= 1000


def test_what_was_refused_was_not_done(alice: Client, objects: Objects) -> None:
    for path in (
        f"/v1/chat/completions/{objects.generation_id}",
        f"/v1/responses/{objects.response_id}",
        f"/v1/files/{objects.file_id}",
        f"/v1/conversations/{objects.conversation_id}",
    ):
        assert alice.get(path).status_code == 200, path


def test_an_admin_has_all_tenants_streams_in_one_list_page_by_page(
    alice: Client, bob: Client, admin: Client, scripted: Register
) -> None:
    model = scripted([*words(1), *ending()]).model
    mine = [str(one.stream(model).headers["x-stream-id"]) for one in (alice, bob, alice, bob, alice)]
    for order, expected in (("desc", mine[::-1]), ("asc", mine)):
        seen: list[tuple[str, str]] = []
        query: dict[str, Any] = {"tenant": "*", "limit": 2, "order": order, "model": f"{model[:-1]}*"}
        while True:
            page = admin.get("/v1/streams", params=query).json()
            seen += [(state["id"], state["tenant"]) for state in page["data"]]
            if not page["has_more"]:
                break
            query["after"] = page["last_id"]
        assert len(seen) == len(set(seen))
        assert [generation_id for generation_id, _ in seen if generation_id in mine] == expected
        assert {tenant for generation_id, tenant in seen if generation_id in mine} == {"a", "b"}


def test_what_an_admin_asks_for_a_tenant_is_the_tenants(alice: Client, admin: Client) -> None:
    asked = admin.post(CHAT, params={"tenant": "a"})
    assert alice.state(asked.headers["x-stream-id"])["status"] == "completed"
    for wrong_name in ("a b", "", "x" * 65, "{a}"):
        assert admin.get("/v1/streams", params={"tenant": wrong_name}).status_code == 400


def test_a_key_has_no_more_of_a_tenant_than_its_models(admin: Client, http: Client) -> None:
    key = made(admin, tenant="a", models=["fake/e*", "smart"])["key"]
    headers = bearer(key)
    listed = http.get("/v1/models", headers=headers).json()["data"]
    assert [model["id"] for model in listed] == ["fake/echo"]
    assert http.post(CHAT, headers=headers).status_code == 200
    for path, body in (
        ("/v1/chat/completions", ask("fake/lorem")),
        ("/v1/responses", {"model": "fake/lorem", "input": "hello"}),
        ("/v1/completions", {"model": "fake/lorem", "prompt": "hello"}),
        ("/v1/embeddings", {"model": "fake/lorem", "input": "hello"}),
    ):
        refused = http.http.post(path, json=body, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed"), path
    assert http.get("/v1/models/fake/lorem", headers=headers).status_code == 403
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": ask("fake/lorem")}
    file = {"file": ("in.jsonl", json.dumps(line).encode())}
    file_id = http.http.post("/v1/files", data={"purpose": "batch"}, files=file, headers=headers).json()["id"]
    body = {**BODIES["POST /v1/batches"], "input_file_id": file_id}
    batch_id = http.http.post("/v1/batches", json=body, headers=headers).json()["id"]

    def ended() -> Any:
        batch = http.get(f"/v1/batches/{batch_id}", headers=headers).json()
        return batch if batch["status"] == "completed" else None

    batch = wait_until(ended)
    errors = http.get(f"/v1/files/{batch['error_file_id']}/content", headers=headers).text
    assert "model_not_allowed" in errors


LISTS = ["chat/completions", "sessions", "files", "batches"]


@pytest.mark.parametrize("name", LISTS)
def test_an_admin_has_what_all_tenants_have_in_every_list_page_by_page(
    alice: Client, bob: Client, admin: Client, name: str
) -> None:
    mine: list[tuple[str, str]] = []
    for tenant, client in (("a", alice), ("b", bob), ("a", alice), ("b", bob)):
        session_id = f"all-{'same' if len(mine) < 2 else uuid.uuid4().hex}"  # two tenants have one of the same name
        if name in ("files", "batches"):
            made_id = upload(client)
            if name == "batches":
                body = {**BODIES["POST /v1/batches"], "input_file_id": made_id}
                made_id = client.http.post("/v1/batches", json=body).json()["id"]
        else:
            response = client.post(ask("fake/echo", store=True, session_id=session_id))
            made_id = session_id if name == "sessions" else response.headers["x-stream-id"]
        mine.append((tenant, made_id))
    seen: list[tuple[str, str]] = []
    query: dict[str, Any] = {"tenant": "*", "limit": 3}
    while True:
        page = admin.get(f"/v1/{name}", params=query).json()
        seen += [(one["tenant"], one["id"]) for one in page["data"]]
        if not page["has_more"]:
            break
        query["after"] = page["last_id"]
    assert len(seen) == len(set(seen))
    found = [one for one in seen if one in mine]
    assert found == (mine if name == "chat/completions" else mine[::-1])
    for wrong_one in ("x", "a:x", "b:x", mine[0][1] + "x"):
        refused = admin.get(f"/v1/{name}", params={"tenant": "*", "after": wrong_one})
        assert refused.status_code == 404, wrong_one
    assert "tenant" not in admin.get(f"/v1/{name}", params={"tenant": "a"}).json()["data"][0]
    assert bob.get(f"/v1/{name}", params={"tenant": "*"}).status_code == 403
