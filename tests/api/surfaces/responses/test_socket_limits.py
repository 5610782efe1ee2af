"""Limits and budgets on a WebSocket: each request of a lane counts as it would over HTTP, and is refused in the same words."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import DONE, Pause, chunk, ending, words
from tests.support.days import within_a_day
from tests.support.responses import PATH
from tests.support.sockets import Socket
from tests.support.wire import Client, Register, refused


class Key:
    """A key of a tenant of its own, over HTTP, and how to open sockets with it."""

    def __init__(self, admin: Client, stack: Stack, **fields: Any) -> None:
        tenant = f"s-{uuid.uuid4().hex[:8]}"
        made = admin.http.post("/v1/keys", json={"tenant": tenant, **fields})
        assert made.status_code == 200, made.text
        self.id, self.key, self._url = made.json()["id"], made.json()["key"], stack.url
        self.http = Client(stack.url, self.key)
        wait_until(lambda: self.http.get("/v1/models").status_code == 200, what="the key is known")

    def socket(self) -> Socket:
        return Socket(self._url, self.key)

    @property
    def used(self) -> dict[str, int]:
        found: dict[str, int] = self.http.get("/v1/limits").json()["key"]["used"]
        return found


@pytest.fixture
def made(admin: Client, keyed: Stack) -> Iterator[Callable[..., Key]]:
    keys: list[Key] = []

    def make(**fields: Any) -> Key:
        keys.append(Key(admin, keyed, **fields))
        return keys[-1]

    yield make
    for key in keys:
        key.http.http.close()
        admin.http.delete(f"/v1/keys/{key.id}")


def test_requests_a_minute(made: Callable[..., Key]) -> None:
    key = made(limits={"requests_per_min": 2})
    with key.socket() as first, key.socket() as second:
        first.whole(stream_id="a")
        second.whole(stream_id="b")
        error = first.refused(429, "rate_limit_exceeded", stream_id="a")
        assert error["type"] == "requests"
        assert "on requests per min (RPM): Limit 2, Used 2, Requested 1." in error["message"]
        assert 1 <= int(error["headers"]["retry-after"]) <= 61
        assert error["headers"]["x-ratelimit-remaining-requests"] == "0"
        over_http = key.http.http.post(PATH, json={"model": "fake/echo", "input": "x"})
        assert refused(over_http, 429, "rate_limit_exceeded")["type"] == "requests"
        prepared = second.whole(input="x", generate=False)
        assert prepared["output"] == [], "what asks nobody is not counted"
    assert key.used["requests_per_min"] == 2


def test_answers_that_run(made: Callable[..., Key], scripted: Register) -> None:
    pause = Pause()
    slow = scripted([*words(1), pause, *ending()]).model
    key = made(limits={"running": 1})
    with key.socket() as socket:
        socket.send(model=slow, stream_id="slow")
        socket.until("response.output_text.delta", "slow")
        assert key.used["running"] == 1
        error = socket.refused(429, "rate_limit_exceeded", stream_id="other")
        assert "generations that have not ended: Limit 1, Used 1" in error["message"]
        pause.go()
        socket.until("response.completed", "slow")
        wait_until(lambda: key.used["running"] == 0, what="its place is free")
        socket.whole(stream_id="other")


def test_tokens_a_minute(made: Callable[..., Key]) -> None:
    key = made(limits={"tokens_per_min": 1500})
    with key.socket() as socket:
        socket.whole(input="one two three")
        wait_until(lambda: 0 < key.used["tokens_per_min"] < 100, what="what was used is counted")
        error = socket.refused(429, "rate_limit_exceeded", max_output_tokens=2000)
        assert error["type"] == "tokens"
        socket.whole(max_output_tokens=100)


def test_a_budget(made: Callable[..., Key], scripted: Register) -> None:
    figures = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12, "cost": 0.6}
    event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": figures}
    paid = scripted([*words(3), chunk({}, "stop"), b"data: " + json.dumps(event).encode() + b"\n\n", DONE]).model
    key = made(budgets={"day_usd": 0.5})
    within_a_day()
    with key.socket() as socket:
        socket.whole(model=paid)
        total = wait_until(lambda: key.http.get("/v1/usage").json()["total"]["requests"], what="it is charged")
        assert total == 1
        error = socket.refused(429, "insufficient_quota", stream_id="b")
        assert error["type"] == "insufficient_quota"
        assert error["headers"]["x-should-retry"] == "false"


def test_models_and_the_size_of_a_message(made: Callable[..., Key]) -> None:
    key = made(models=["fake/echo"], limits={"body_bytes": 2000})
    with key.socket() as socket:
        socket.refused(403, "model_not_allowed", model="fake/lorem")
        assert "body_bytes" in socket.refused(413, "request_too_large", input="x" * 3000)["message"]
        socket.whole()


def test_a_key_that_is_changed_meanwhile(made: Callable[..., Key], admin: Client) -> None:
    key = made()
    with key.socket() as socket:
        socket.whole()
        assert admin.http.post(f"/v1/keys/{key.id}", json={"models": ["fake/lorem"]}).status_code == 200
        socket.refused(403, "model_not_allowed")
        assert admin.http.post(
            f"/v1/keys/{key.id}", json={"models": None, "limits": {"requests_per_min": 1}}
        ).is_success
        socket.whole()
        socket.refused(429, "rate_limit_exceeded")
