"""Budgets as clients of a key meet them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import DONE, Pause, chunk, words
from tests.support.batch import ended, jsonl, line, results, start
from tests.support.days import within_a_day
from tests.support.wire import Client, Register, ask, refused

FIGURES: dict[str, Any] = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
Made = Callable[..., Client]


@pytest.fixture(autouse=True)
def same_day() -> None:
    within_a_day()


@pytest.fixture
def made(keyed: Stack, admin: Client) -> Iterator[Made]:
    """Clients with a key of their own, of the tenant `a`, and what it may spend."""
    clients: list[Client] = []

    def make(**budgets: float) -> Client:
        response = admin.http.post("/v1/keys", json={"tenant": "a", "budgets": budgets})
        assert response.status_code in (200, 201), response.text
        client = Client(keyed.url, response.json()["key"])
        clients.append(client)
        wait_until(lambda: client.get("/v1/models").status_code == 200, what="the key is known")
        return client

    yield make
    for client in clients:
        client.http.close()


def paid(cost: float, *middle: Any) -> list[Any]:
    event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}
    told = b"data: " + json.dumps({**event, "usage": {**FIGURES, "cost": cost}}).encode() + b"\n\n"
    return [*words(3), *middle, chunk({}, "stop"), told, DONE]


def spend(client: Client, model: str) -> None:
    """Until it is charged."""
    response = client.post(ask(model))
    assert response.status_code == 200, response.text
    key = client.state(response.headers["x-stream-id"])
    assert key["cost_usd"]
    params = {"model": model, "group_by": "key"}
    wait_until(lambda: client.get("/v1/usage", params=params).json()["total"]["requests"], what="it is charged")


def test_a_hard_budget_refuses_what_is_new(made: Made, scripted: Register) -> None:
    client = made(day_usd=0.5)
    spend(client, scripted(paid(0.3)).model)
    spend(client, scripted(paid(0.3)).model)
    different: list[dict[str, Any]] = [{}, {"stream": True}, {"background": True}]
    for fields in different:
        response = client.post(ask("fake/echo", **fields))
        refused(response, 429, "insufficient_quota")
        assert response.json()["error"]["type"] == "insufficient_quota"
        assert response.headers["x-should-retry"] == "false"
    refused(client.http.post("/v1/responses", json={"model": "fake/echo", "input": "hi"}), 429, "insufficient_quota")


def test_what_is_spent_of_a_budget_is_told(made: Made, scripted: Register) -> None:
    client = made(month_usd=1, soft_day_usd=0.2)
    spend(client, scripted(paid(0.3)).model)
    told = client.get("/v1/limits").json()
    found = {(one["period"], one["hard"]): one for one in told["key"]["budgets"]}
    assert {which: (one["limit_usd"], one["spent_usd"]) for which, one in found.items()} == {
        ("month", True): (1.0, 0.3),
        ("day", False): (0.2, 0.3),
    }
    assert found["day", False]["now"].startswith(found["month", True]["now"])
    assert told["budgets"] == []


def test_a_soft_budget_only_warns(made: Made, scripted: Register) -> None:
    client = made(soft_day_usd=0.2)
    assert "x-budget-warning" not in client.post(ask("fake/echo")).headers
    spend(client, scripted(paid(0.3)).model)
    for stream in (False, True):
        response = client.post(ask("fake/echo", stream=stream))
        assert response.status_code == 200
        assert response.headers["x-budget-warning"].endswith("0.3 of 0.2 USD")
        assert response.headers["x-budget-warning"].startswith("key ")


def test_lines_of_a_batch_are_refused_one_by_one(made: Made, scripted: Register) -> None:
    client = made(month_usd=0.2)
    spend(client, scripted(paid(0.3)).model)
    batch = ended(client.http, start(client.http, jsonl(line(f"l{n}", "fake/echo") for n in range(3))))
    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 3, "completed": 0, "failed": 3})
    found = results(client.http, batch["error_file_id"])
    assert sorted(found) == ["l0", "l1", "l2"]
    assert {one["error"]["code"] for one in found.values()} == {"insufficient_quota"}


def test_an_answer_that_runs_ends_with_what_it_said(made: Made, scripted: Register) -> None:
    """STREAMSPOOL_BUDGET_RUNNING is `stop` here. It is ended at the provider's next word."""
    client, go = made(day_usd=0.2), Pause()
    long = scripted(paid(9, *([go] + [part for n in range(2000) for part in (chunk(f"x{n} "), 0.02)])))
    with client.streaming(long.model) as viewer:
        viewer.until(b"w2")
        spend(client, scripted(paid(0.3)).model)
        go.go()
        viewer.rest()
        state = client.state(viewer.id)
    assert (state["status"], state["finish_reasons"], state["error"]["code"]) == (
        "incomplete",
        ["length"],
        "insufficient_quota",
    )
    answer = client.get(f"/v1/chat/completions/{state['id']}").json()["choices"][0]["message"]["content"]
    assert answer.startswith("w0 w1 w2 ")
