"""Open WebUI's Stop button, which closes the connection: what that means here. How it reads is in tests/clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.harness.processes import Stack, wait_until

QUESTION = {"model": "fake/lorem?tokens=1000&rate=20", "messages": [{"role": "user", "content": "x"}], "stream": True}


@pytest.fixture
def webui(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{stack.url}/v1", trust_env=False, timeout=60) as client:
        yield client


def stopped(webui: httpx.Client, **fields: Any) -> str:
    """Asks, presses Stop at the first bytes, and returns the path of the stream."""
    with webui.stream("POST", "/chat/completions", json={**QUESTION, **fields}) as response:
        next(response.iter_raw())
        return f"/streams/{response.headers['x-stream-id']}"


def state(webui: httpx.Client, stream: str) -> Any:
    return webui.get(stream, headers={"Accept": "application/json"}).json()


def test_after_stop_the_answer_goes_on(webui: httpx.Client) -> None:
    stream = stopped(webui)
    left_at = wait_until(lambda: (now := state(webui, stream))["viewers"] == 0 and now, 30)
    after = wait_until(lambda: (now := state(webui, stream))["position"] != left_at["position"] and now, 30)
    assert after["status"] == "in_progress"
    assert webui.post(f"{stream}/cancel").json()["status"] == "cancelled"


def test_stop_ends_the_answer_if_the_model_has_that_parameter(webui: httpx.Client) -> None:
    stream = stopped(webui, on_disconnect="cancel")
    wait_until(lambda: state(webui, stream)["status"] == "cancelled", 60)
