"""/v1/embeddings and /v1/moderations: sent on as they came, answered as the provider answers, counted and repeated."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI

from tests.harness.processes import Stack
from tests.harness.upstream import refusal
from tests.support.wire import Client, Register, Scripted, refused

JSON = {"headers": {"content-type": "application/json"}}


def answer(count: int = 1, size: int = 2) -> dict[str, Any]:
    data = [{"object": "embedding", "index": at, "embedding": [0.5] * size} for at in range(count)]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return {"object": "list", "data": data, "model": "up", "usage": usage, "more": {"x": 1}}


def scripted_with(scripted: Register, value: Any) -> Scripted:
    return scripted([json.dumps(value, indent=1).encode()], **JSON)


def test_embeddings_come_as_the_provider_gives_them(client: Client, scripted: Register) -> None:
    script = scripted_with(scripted, answer())
    asked = {"input": ["a", "b"], "dimensions": 2, "encoding_format": "float", "new": [1]}
    made = client.http.post("/v1/embeddings", json={"model": script.model, **asked, "on_disconnect": "continue"})
    assert made.status_code == 200, made.text
    assert made.json() == answer()
    (call,) = script.script.calls
    assert call == {"model": script.name, **asked}
    assert call.head.startswith("POST /v1/embeddings ")
    state = client.state(made.headers["x-stream-id"])
    assert (state["status"], state["usage"]["prompt_tokens"]) == ("completed", 3)


def test_a_large_answer_is_kept_beside_redis_and_comes_whole(client: Client, scripted: Register) -> None:
    script = scripted_with(scripted, answer(20, 8000))
    made = client.http.post("/v1/embeddings", json={"model": script.model, "input": ["a"] * 20})
    assert made.json() == answer(20, 8000)


def test_moderations_pass_through(client: Client, scripted: Register) -> None:
    value = {"id": "modr-1", "model": "up", "results": [{"flagged": False}]}
    script = scripted_with(scripted, value)
    assert client.http.post("/v1/moderations", json={"model": script.model, "input": "x"}).json() == value
    assert script.script.calls[0].head.startswith("POST /v1/moderations ")


def test_a_refusal_keeps_its_status(client: Client, scripted: Register) -> None:
    no = refusal(400, "too_long")
    script = scripted(no.parts, status=no.status, headers=no.headers)
    refused(client.http.post("/v1/embeddings", json={"model": script.model, "input": "x"}), 400, "too_long")


def test_the_same_request_made_twice_is_one(client: Client, scripted: Register) -> None:
    script = scripted_with(scripted, answer())
    headers = {"idempotency-key": script.name}
    body = {"model": script.model, "input": "x"}
    first, second = (client.http.post("/v1/embeddings", json=body, headers=headers) for _ in range(2))
    assert first.json() == second.json()
    assert len(script.script.calls) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [({}, "input"), ({"input": []}, "input"), ({"input": 1}, "input"), ({"input": "x", "stream": True}, "stream")],
)
def test_what_is_wrong_is_named(client: Client, fields: dict[str, Any], param: str) -> None:
    assert refused(client.http.post("/v1/embeddings", json={"model": "fake/echo", **fields}), 400)["param"] == param


def test_a_provider_without_moderations_says_so(client: Client) -> None:
    answer = client.http.post("/v1/moderations", json={"model": "fake/echo", "input": "x"})
    assert refused(answer, 400)["param"] == "model"


def test_the_fake_models_embed_texts(client: Client, stack: Stack) -> None:
    with OpenAI(base_url=f"{stack.url}/v1", api_key="x", max_retries=0) as openai:
        found = openai.embeddings.create(model="fake/echo", input=["a", "b", "a"], dimensions=16)
    first, second, third = (one.embedding for one in found.data)
    assert len(first) == 16
    assert first == third != second
    assert sum(number * number for number in first) == pytest.approx(1)
    assert found.usage.prompt_tokens == 3
    plain = client.http.post("/v1/embeddings", json={"model": "fake/echo", "input": "a", "dimensions": 16}).json()
    assert plain["data"][0]["embedding"] == pytest.approx(first)
    answer = client.http.post("/v1/embeddings", json={"model": "fake/echo", "input": [[1, 2]]})
    assert refused(answer, 400)["param"] == "input"


def test_the_official_client(stack: Stack, scripted: Register) -> None:
    """It asks for base64, and reads floats as well."""
    script = scripted_with(scripted, answer(2))
    with OpenAI(base_url=f"{stack.url}/v1", api_key="x", max_retries=0) as openai:
        found = openai.embeddings.create(model=script.model, input=["a", "b"])
    assert [one.embedding for one in found.data] == [[0.5, 0.5]] * 2
    assert script.script.calls[0]["encoding_format"] == "base64"
