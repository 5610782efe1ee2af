"""The answer of yesterday: what lists and states say of generations whose logs are gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.store import emptied
from tests.harness.upstream import ScriptedUpstream
from tests.support.wire import KEY_A, KEY_B, Client, ask, refused

CANARY = "canary"


@pytest.fixture(scope="module")
def remembering(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Logs are kept for some seconds, their rows for a month."""
    directory = tmp_path_factory.mktemp("history")
    settings = {
        "STREAMSPOOL_API_KEYS": f"a:{KEY_A},b:{KEY_B}",
        "STREAMSPOOL_ADMIN_KEYS": "ops:key-of-the-admin-of-history",
        "STREAMSPOOL_RETENTION_S": "4",
        "STREAMSPOOL_HISTORY_URL": f"sqlite:///{directory}/history.sqlite3",
    }
    url = emptied(valkey.url.replace("db=0", "db=2"))
    with Stack(url, upstream.base_url, directory, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def ann(remembering: Stack) -> Iterator[Client]:
    with Client(remembering.url, KEY_A) as http:
        yield http


@pytest.fixture(scope="module")
def ben(remembering: Stack) -> Iterator[Client]:
    with Client(remembering.url, KEY_B) as http:
        yield http


def asked(client: Client, model: str = "fake/echo", **fields: Any) -> str:
    response = client.post(ask(model, f"{CANARY} asks", **fields))
    return str(response.headers["x-stream-id"])


def expired(client: Client, generation_id: str) -> dict[str, Any]:
    """What is said of it, once its log is gone and its row is there."""

    def known() -> dict[str, Any] | None:
        response = client.get(f"/v1/streams/{generation_id}")
        if response.status_code != 404 or response.json()["error"]["code"] != "stream_expired":
            return None
        error: dict[str, Any] = response.json()["error"]
        return error

    found: dict[str, Any] = wait_until(known, 60)
    return found


def listed(client: Client, **query: Any) -> list[str]:
    """All pages of two."""
    found: list[str] = []
    while True:
        page = client.get("/v1/streams", params={"limit": 2, **query}).json()
        found += [state["id"] for state in page["data"]]
        if not page["has_more"]:
            return found
        query["after"] = page["last_id"]


def test_what_is_gone_is_still_known_but_for_its_words(ann: Client, ben: Client) -> None:
    before = ann.get("/v1/history").json()
    mine = asked(ann, metadata={"task": "title"})
    was = ann.state(mine)
    error = expired(ann, mine)
    stream = error["stream"]
    for name in was.keys() - {"viewers", "webhook"}:
        assert stream[name] == was[name], name
    assert CANARY not in str(error)
    refused(ben.get(f"/v1/streams/{mine}"), 404, "not_found")
    refused(ann.get(f"/v1/streams/{mine}/request"), 404, "not_found")
    refused(ann.get(f"/v1/chat/completions/{mine}"), 404, "not_found")
    after = ann.get("/v1/history").json()
    assert (after["status"], after["kept_s"], after["lost"]) == ("ok", 30 * 86400, 0)
    assert after["added"] > before["added"]


def test_one_list_has_what_is_recent_and_what_is_not(ann: Client, ben: Client) -> None:
    old = [asked(ann), asked(ann, "fake/lorem?tokens=2"), asked(ann, "fake/lorem?tokens=1000&rate=1", background=True)]
    ann.cancel(old[2])
    for one in old:
        expired(ann, one)
    of_ben = asked(ben)
    new = [asked(ann), asked(ann)]
    mine = set(old + new)
    assert [one for one in listed(ann) if one in mine] == [*old, *new][::-1]
    assert [one for one in listed(ann, order="asc") if one in mine] == [*old, *new]
    assert of_ben not in listed(ann)
    assert [one for one in listed(ann, model="fake/lorem?tokens=2") if one in mine] == [old[1]]
    assert [one for one in listed(ann, status="cancelled") if one in mine] == [old[2]]
    refused(ann.get("/v1/streams", params={"after": "chatcmpl-" + "0" * 32}), 404, "not_found")
    refused(ben.get("/v1/streams", params={"after": old[0]}), 404, "not_found")


def test_an_admin_has_that_of_all_tenants(remembering: Stack, ann: Client, ben: Client) -> None:
    both = [asked(ann), asked(ben)]
    for client, one in zip((ann, ben), both, strict=True):
        expired(client, one)
    with Client(remembering.url, "key-of-the-admin-of-history") as admin:
        assert [one for one in listed(admin, tenant="*") if one in both] == both[::-1]
        assert admin.get(f"/v1/streams/{both[0]}", params={"tenant": "a"}).json()["error"]["stream"]["id"] == both[0]


def test_what_its_owner_deleted_is_not_known_any_more(ann: Client) -> None:
    gone, stays = asked(ann, store=True), asked(ann)
    assert ann.http.delete(f"/v1/streams/{gone}").status_code == 200
    expired(ann, stays)
    assert wait_until(lambda: not ann.get("/v1/history").json()["waiting"])
    assert gone not in listed(ann)
    refused(ann.get(f"/v1/streams/{gone}"), 404, "not_found")


def test_all_are_counted(remembering: Stack, ann: Client, ben: Client) -> None:
    model = "fake/lorem?tokens=3"
    for _ in range(3):
        asked(ann, model)
    asked(ben, model)

    def counts(client: Client, **query: str) -> Any:
        found = client.get("/v1/streams/counts", params={"by": "model", "model": model, **query}).json()
        return [(one["value"], one["count"]) for one in found["data"]]

    assert wait_until(lambda: counts(ann) == [(model, 3)] and counts(ben) == [(model, 1)])
    assert counts(ann, by="status") == [("completed", 3)]
    assert counts(ann, status="failed") == []
    with Client(remembering.url, "key-of-the-admin-of-history") as admin:
        assert counts(admin, tenant="*") == [(model, 4)]
    refused(ann.get("/v1/streams/counts", params={"by": "text"}), 400, "invalid_request")


def test_without_it_nothing_is_kept(client: Client) -> None:
    refused(client.get("/v1/streams/counts"), 400, "no_history")
    assert client.get("/v1/history").json()["status"] == "off"
