"""Stored completions over HTTP: list, retrieve, update, delete, and the messages of the request."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.processes import wait_until
from tests.harness.upstream import Pause, ending, words
from tests.support.wire import Client, Register, ask, refused

PATH = "/v1/chat/completions"
UNKNOWN = "chatcmpl-" + "0" * 32


@pytest.fixture
def alice(newcomer: Client) -> Client:
    """Who has nothing else: a page looks at so many only, and other tests' are older."""
    return newcomer


@pytest.fixture
def run(alice: Client) -> Iterator[str]:
    """Marks what a test stores, by metadata; it is deleted afterwards."""
    mark = uuid.uuid4().hex
    yield mark
    for found in listed(alice, run=mark, limit="100")["data"]:
        alice.http.delete(f"{PATH}/{found['id']}")


def store(client: Client, run: str, model: str = "fake/echo", **metadata: str) -> str:
    body = ask(model, "one two", store=True, metadata={"run": run, **metadata})
    answer = client.post(body)
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["id"]
    return found


def listed(client: Client, *, run: str, **query: str) -> dict[str, Any]:
    response = client.get(PATH, params={"metadata[run]": run, **query})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def ids(page: dict[str, Any]) -> list[str]:
    return [found["id"] for found in page["data"]]


def test_stored_answers_are_listed_oldest_first(alice: Client, run: str) -> None:
    stored = [store(alice, run, number=str(number)) for number in range(3)]
    page = listed(alice, run=run)
    assert ids(page) == stored
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == (
        "list",
        stored[0],
        stored[2],
        False,
    )
    assert page["data"][1] == alice.get(f"{PATH}/{stored[1]}").json()
    assert page["data"][1]["metadata"] == {"run": run, "number": "1"}
    assert page["data"][1]["choices"][0]["message"]["content"] == "one two"
    assert ids(listed(alice, run=run, order="desc")) == stored[::-1]


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_follow_each_other(alice: Client, run: str, order: str) -> None:
    stored = [store(alice, run) for _ in range(5)]
    found: list[str] = []
    after: dict[str, str] = {}
    for more in (True, True, False):
        page = listed(alice, run=run, order=order, limit="2", **after)
        assert page["has_more"] is more
        found += ids(page)
        after = {"after": page["last_id"]}
    assert found == (stored if order == "asc" else stored[::-1])
    empty = listed(alice, run=run, order=order, **after)
    assert (empty["data"], empty["first_id"], empty["last_id"], empty["has_more"]) == ([], None, None, False)


def test_filters_hold_together(alice: Client, run: str) -> None:
    echo, lorem = store(alice, run, a="1"), store(alice, run, "fake/lorem?tokens=1", a="1", b="2")
    assert ids(listed(alice, run=run, **{"metadata[a]": "1"})) == [echo, lorem]
    assert ids(listed(alice, run=run, **{"metadata[a]": "1", "metadata[b]": "2"})) == [lorem]
    assert ids(listed(alice, run=run, **{"metadata[a]": "2"})) == []
    assert ids(listed(alice, run=run, model="fake/echo")) == [echo]
    assert ids(listed(alice, run=run, model="fake/echo", **{"metadata[b]": "2"})) == []


def test_what_was_not_to_be_stored_is_not_listed(alice: Client, run: str, scripted: Register) -> None:
    stored = store(alice, run)
    for option in (False, None):
        assert alice.post(ask("fake/echo", store=option, metadata={"run": run})).status_code == 200
    assert alice.post(ask("fake/echo", metadata={"run": run})).status_code == 200
    pause = Pause()
    model = scripted([*words(1), pause, *ending()]).model
    with alice.streaming(model, store=True, metadata={"run": run}) as running:
        assert ids(listed(alice, run=run)) == [stored]
        pause.go()
        running.rest()
    wait_until(lambda: ids(listed(alice, run=run)) == [stored, running.id])
    failed = alice.post(ask("fake/echo?error=500", store=True, metadata={"run": run}))
    assert failed.status_code == 502
    assert ids(listed(alice, run=run)) == [stored, running.id]
    assert alice.state(stored)["stored"] is True


def test_neither_store_nor_metadata_reach_the_provider(alice: Client, run: str, scripted: Register) -> None:
    asked = scripted([*words(1), *ending()])
    store(alice, run, asked.model)
    assert not {"store", "metadata"} & asked.script.calls[0].keys()


def test_metadata_are_replaced_wherever_they_are_shown(alice: Client, run: str) -> None:
    stored = store(alice, run, old="x")
    new = {"run": run, "new": "y"}
    updated = alice.http.post(f"{PATH}/{stored}", json={"metadata": new})
    assert updated.status_code == 200, updated.text
    assert updated.json()["metadata"] == new
    assert updated.json() == alice.get(f"{PATH}/{stored}").json()
    assert alice.state(stored)["metadata"] == new
    assert ids(listed(alice, run=run, **{"metadata[new]": "y"})) == [stored]
    assert ids(listed(alice, run=run, **{"metadata[old]": "x"})) == []
    assert alice.http.post(f"{PATH}/{stored}", json={"metadata": None}).json()["metadata"] == {}
    assert alice.http.post(f"{PATH}/{stored}", json={"metadata": new}).json()["metadata"] == new


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "metadata"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"metadata": {}, "model": "x"}, "model"),
        ([], None),
    ],
)
def test_wrong_updates_change_nothing(alice: Client, run: str, body: Any, param: str | None) -> None:
    stored = store(alice, run)
    assert refused(alice.http.post(f"{PATH}/{stored}", json=body), 400)["param"] == param
    assert alice.state(stored)["metadata"] == {"run": run}


def test_an_update_that_is_not_json(alice: Client, run: str) -> None:
    headers = {"content-type": "application/json"}
    refused(alice.http.post(f"{PATH}/{store(alice, run)}", content=b"{", headers=headers), 400, "invalid_json")


def test_what_is_deleted_is_gone(alice: Client, run: str) -> None:
    stored = store(alice, run)
    alice.http.post(f"{PATH}/{stored}", json={"metadata": {"run": run}})
    deleted = alice.http.delete(f"{PATH}/{stored}")
    assert deleted.json() == {"object": "chat.completion.deleted", "id": stored, "deleted": True}
    assert ids(listed(alice, run=run)) == []
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/messages")):
        refused(alice.http.request(method, f"{PATH}/{stored}{path}"), 404, "not_found")
    refused(alice.http.post(f"{PATH}/{stored}", json={"metadata": {}}), 404, "not_found")


MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "ann"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]},
    {"role": "tool", "tool_call_id": "c", "content": "42"},
    {"role": "user", "content": "so?"},
]


def test_the_messages_of_the_request(alice: Client, run: str) -> None:
    body = {"model": "fake/echo", "messages": MESSAGES, "store": True, "metadata": {"run": run}}
    stored = alice.post(body).json()["id"]
    page = alice.get(f"{PATH}/{stored}/messages").json()
    wanted = [{"name": None, "content_parts": None, **m, "id": f"{stored}-{n}"} for n, m in enumerate(MESSAGES)]
    wanted[1] |= {"content": None, "content_parts": MESSAGES[1]["content"]}
    assert page == {
        "object": "list",
        "data": wanted,
        "first_id": f"{stored}-0",
        "last_id": f"{stored}-4",
        "has_more": False,
    }
    query: dict[str, Any] = {"limit": 2, "order": "desc"}
    first = alice.get(f"{PATH}/{stored}/messages", params=query).json()
    assert (ids(first), first["has_more"]) == ([f"{stored}-4", f"{stored}-3"], True)
    rest = alice.get(f"{PATH}/{stored}/messages", params={**query, "limit": 9, "after": first["last_id"]}).json()
    assert (ids(rest), rest["has_more"]) == ([f"{stored}-{n}" for n in (2, 1, 0)], False)
    refused(alice.get(f"{PATH}/{stored}/messages", params={"after": f"{stored}-5"}), 404, "not_found")


def test_what_is_anothers_is_not_there(alice: Client, bob: Client, run: str) -> None:
    stored = store(alice, run)
    assert ids(listed(bob, run=run)) == []
    refused(bob.get(PATH, params={"after": stored}), 404, "not_found")
    for generation_id in (stored, UNKNOWN, "x"):
        refused(bob.http.post(f"{PATH}/{generation_id}", json={"metadata": {}}), 404, "not_found")
        refused(bob.http.delete(f"{PATH}/{generation_id}"), 404, "not_found")
        refused(bob.get(f"{PATH}/{generation_id}/messages"), 404, "not_found")
    assert ids(listed(alice, run=run)) == [stored]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=x", "order=up", "metadata=x", "metadata[]=x", "metadata[a]=1&metadata[a]=2"],
)
def test_wrong_queries_are_refused(alice: Client, query: str) -> None:
    error = refused(alice.get(f"{PATH}?{query}"), 400)
    assert error["param"] == query.split("=")[0].split("[")[0]


def test_nothing_of_it_is_there_without_a_key(alice: Client) -> None:
    for method, path in (
        ("GET", PATH),
        ("POST", f"{PATH}/{UNKNOWN}"),
        ("DELETE", f"{PATH}/{UNKNOWN}"),
        ("GET", f"{PATH}/{UNKNOWN}/messages"),
    ):
        response = alice.http.request(method, path, headers={"authorization": "Bearer wrong"}, json={"metadata": {}})
        refused(response, 401, "invalid_api_key")
