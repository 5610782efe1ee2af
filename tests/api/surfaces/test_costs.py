"""What an answer cost, wherever a client may look."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from tests.harness.upstream import DONE, Pause, chunk, words
from tests.support.wire import Client, Register, ask

FIGURES: dict[str, Any] = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def event(**fields: Any) -> bytes:
    return (
        b"data: " + json.dumps({"id": "c", "object": "chunk", "created": 1, "model": "m", **fields}).encode() + b"\n\n"
    )


def told(cost: Any) -> bytes:
    return event(choices=[], usage={**FIGURES, "cost": cost})


def priced(cost: Any) -> list[bytes]:
    return [*words(3), chunk({}, "stop"), told(cost), DONE]


def completed(cost: Any) -> list[bytes]:
    said = [
        event(choices=[{"index": 0, "text": text, "finish_reason": end}]) for text, end in (("hi", None), ("", "stop"))
    ]
    return [*said, told(cost), DONE]


def test_a_whole_answer_says_what_it_cost(client: Client, scripted: Register) -> None:
    script = scripted(priced(0.0000142))
    response = client.post(ask(script.model))
    assert response.headers["x-cost-usd"] == "0.0000142"
    generation_id = response.headers["x-stream-id"]
    state = client.state(generation_id)
    assert (state["cost_usd"], state["cost_source"]) == (0.0000142, "provider")
    (listed,) = [one for one in client.get("/v1/streams").json()["data"] if one["id"] == generation_id]
    assert (listed["cost_usd"], listed["cost_source"]) == (0.0000142, "provider")
    again = client.get(f"/v1/chat/completions/{generation_id}")
    assert again.headers["x-cost-usd"] == "0.0000142"


@pytest.mark.parametrize(
    ("path", "prompt", "parts"),
    [("/v1/responses", {"input": "hi"}, priced(0.25)), ("/v1/completions", {"prompt": "hi"}, completed(0.25))],
)
def test_whichever_api_it_was_asked_through(
    client: Client, scripted: Register, path: str, prompt: dict[str, str], parts: list[bytes]
) -> None:
    script = scripted(parts)
    response = client.http.post(path, json={"model": script.model, **prompt})
    assert response.status_code == 200, response.text
    assert Decimal(response.headers["x-cost-usd"]) == Decimal("0.25")


def test_unknown_is_no_price(client: Client) -> None:
    response = client.post(ask("fake/echo"))
    assert "x-cost-usd" not in response.headers
    state = client.state(response.headers["x-stream-id"])
    assert (state["cost_usd"], state["cost_source"]) == (None, "unknown")


def test_it_is_not_known_before_the_end(client: Client, scripted: Register) -> None:
    script = scripted([*words(3), Pause()])
    with client.streaming(script.model) as viewer:
        viewer.until(b"w2")
        state = client.state(viewer.id)
        assert (state["cost_usd"], state["cost_source"]) == (None, None)
        ended = client.cancel(viewer.id).json()
    assert (ended["cost_usd"], ended["cost_source"]) == (None, "unknown")


def test_what_was_refused_cost_nothing(client: Client, scripted: Register) -> None:
    script = scripted(status=401)
    response = client.post(ask(script.model))
    assert response.is_error
    state = client.state(response.headers["x-stream-id"])
    assert (state["cost_usd"], state["cost_source"]) == (0, "nothing")
