"""The ledger as its owner sees it."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from tests.harness.processes import wait_until
from tests.harness.upstream import Pause, chunk, ending, words
from tests.support.wire import Client, Register, ask, refused

TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")


def row(client: Client, model: str) -> dict[str, Any]:
    found = client.get("/v1/usage", params={"model": model}).json()
    assert found["object"] == "list"
    return {**found["total"], "days": len(found["data"])}


def test_all_generations_are_in_it_once(newcomer: Client) -> None:
    model = "fake/lorem?tokens=3&reasoning=2"
    used = []
    for number in range(20):
        response = newcomer.post(ask(model, "one two three"[: 3 + number], n=1 + number % 2))
        used.append(response.json()["usage"])
    wait_until(lambda: row(newcomer, model)["requests"] == 20, what="all are settled")
    total = row(newcomer, model)
    assert {name: total[name] for name in TOKENS} == {name: sum(one[name] for one in used) for name in TOKENS}
    assert total["reasoning_tokens"] == 2 * 30
    assert (total["completed_requests"], total["provider_requests"], total["failed_requests"]) == (20, 20, 0)


def test_failed_and_cancelled_ones_too(client: Client, scripted: Register) -> None:
    cut = scripted([*words(5)], end="cut")
    client.post(ask(cut.model, stream=True))
    wait_until(lambda: row(client, cut.model)["failed_requests"] == 1, what="it is settled")
    total = row(client, cut.model)
    assert (total["estimate_requests"], total["completion_tokens"]) == (1, len("w0 w1 w2 w3 w4 ") // 4)
    stopped = scripted([*words(5), Pause(), *ending()])
    with client.streaming(stopped.model) as viewer:
        viewer.until(b"w4")
        state = client.cancel(viewer.id).json()
    assert (state["usage_source"], state["usage"]["completion_tokens"]) == ("estimate", 3)
    wait_until(lambda: row(client, stopped.model)["cancelled_requests"] == 1, what="it is settled")


@pytest.mark.parametrize("end", ["cancel", "cut", "finish"])
def test_openais_models_are_counted(client: Client, scripted: Register, end: str, upstream: Any) -> None:
    said = [chunk({"role": "assistant", "content": "Hello there, how are you today?"})]
    # The name decides: this provider answers to it as OpenAI would, but tells no usage.
    parts = {"finish": [*said, *ending(usage=False)], "cut": said, "cancel": [*said, Pause()]}[end]
    upstream.script("gpt-4o", parts, end="cut" if end == "cut" else "clean")

    def answered() -> dict[str, Any]:
        with client.streaming("scripted/gpt-4o", "hi") as viewer:
            viewer.until(b"today")
            if end == "cancel":
                client.cancel(viewer.id)
            viewer.rest()
        return client.state(viewer.id)

    def counted() -> dict[str, Any] | None:
        """An end waits only so long for a tokenizer that is still being loaded; the next one finds it there."""
        state = answered()
        return state if state["usage_source"] == "tokenizer" else None

    state = wait_until(counted, 200, "the tokenizer is loaded")
    assert state["usage"] == {"prompt_tokens": 8, "completion_tokens": 8, "total_tokens": 16}


def test_it_is_the_tenants_own(alice: Client, bob: Client, scripted: Register) -> None:
    model = scripted([*words(1), *ending()]).model
    alice.post(ask(model))
    wait_until(lambda: row(alice, model)["requests"] == 1, what="it is settled")
    assert row(bob, model)["requests"] == 0


@pytest.mark.parametrize(
    "query",
    [{"start": "2026-02-30"}, {"start": "x"}, {"start": "2026-02-02", "end": "2026-02-01"}, {"start": "2020-01-01"}],
)
def test_days_that_are_none(client: Client, query: dict[str, str]) -> None:
    refused(client.get("/v1/usage", params=query), 400, "invalid_request")


# ---- what it cost, by whom and what


def priced(cost: float | None) -> list[bytes]:
    figures: dict[str, Any] = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12, "cost": cost}
    event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": figures}
    return [*words(3), chunk({}, "stop"), b"data: " + json.dumps(event).encode() + b"\n\n", b"data: [DONE]\n\n"]


def test_costs_add_up_and_what_is_unknown_is_said(newcomer: Client, scripted: Register) -> None:
    client = newcomer
    known, unknown = scripted(priced(0.1)), scripted(priced(None))
    for model in (known.model, known.model, unknown.model):
        client.post(ask(model, metadata={"team": known.model[-8:]}))
    wait_until(lambda: row(client, known.model)["requests"] == 2, what="they are settled")
    wait_until(lambda: row(client, unknown.model)["requests"] == 1, what="it is settled")
    total = row(client, known.model)
    assert (total["cost_usd"], total["unknown_costs"], total["priced_by"]) == (0.2, 0, {"provider": 2})
    assert total["first_token_ms"]["p50"] <= total["duration_ms"]["p50"]
    total = row(client, unknown.model)
    assert (total["cost_usd"], total["unknown_costs"], total["priced_by"]) == (None, 1, {})
    by_team = client.get("/v1/usage", params={"group_by": "metadata.team"}).json()
    (team,) = [one for one in by_team["data"] if one["metadata.team"] == known.model[-8:]]
    assert (team["requests"], team["cost_usd"], team["unknown_costs"]) == (3, 0.2, 1)
    assert sum(one["requests"] for one in by_team["data"]) == by_team["total"]["requests"]
    hours = client.get("/v1/usage", params={"bucket": "hour", "model": known.model}).json()["data"]
    assert sum(one["requests"] for one in hours) == 2
    by_provider = client.get("/v1/usage", params={"group_by": "provider"}).json()["data"]
    assert {one["provider"] for one in by_provider} == {"scripted"}
    text = client.get("/v1/usage", params={"format": "csv", "group_by": "model,key"})
    assert text.headers["content-type"] == "text/csv; charset=utf-8"
    table = {line["model"]: line for line in csv.DictReader(io.StringIO(text.text))}
    assert (table[known.model]["cost_usd"], table[unknown.model]["cost_usd"]) == ("0.2", "unknown")


def test_a_row_is_of_the_key_that_asked(alice: Client, bob: Client, admin: Client, scripted: Register) -> None:
    model = scripted([*words(1), *ending()]).model
    alice.post(ask(model))
    found = wait_until(
        lambda: alice.get("/v1/usage", params={"model": model, "group_by": "key,tenant"}).json()["data"], what="settled"
    )
    assert [(one["tenant"], bool(one["key"])) for one in found] == [("a", True)]
    assert bob.get("/v1/usage", params={"model": model, "group_by": "tenant"}).json()["data"] == []
    for query in ({"group_by": "tenant"}, {"group_by": "tenant", "tenant": "*"}, {"group_by": "tenant", "tenant": "a"}):
        rows = admin.get("/v1/usage", params={"model": model, **query}).json()["data"]
        assert [(one["tenant"], one["requests"]) for one in rows] == [("a", 1)]
    assert admin.get("/v1/usage", params={"model": model, "tenant": "b"}).json()["data"] == []
    refused(bob.get("/v1/usage", params={"tenant": "a"}), 403, "forbidden")


@pytest.mark.parametrize(
    "query",
    [
        {"group_by": "nonsense"},
        {"group_by": "metadata."},
        {"group_by": "metadata.a,model"},
        {"group_by": "metadata.a", "model": "fake/echo"},
        {"bucket": "week"},
        {"format": "xml"},
        {"bucket": "hour", "start": "2025-12-01", "end": "2025-12-02"},
    ],
)
def test_reports_that_are_none(client: Client, query: dict[str, str]) -> None:
    refused(client.get("/v1/usage", params=query), 400, "invalid_request")
