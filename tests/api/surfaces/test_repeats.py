"""What a refused request tells a client about making it again: whether that is free, and never where it is not.

What each client makes of it is in tests/api/test_repeats.py.
"""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.harness.upstream import words
from tests.support.wire import Client, Register, ask, refused


def refusal(status: int, code: str = "some_code") -> dict[str, Any]:
    """A provider's; the worker does not wait for so long."""
    body = b'{"error": {"message": "not at this time", "type": "t", "code": "%b"}}' % code.encode()
    return {"parts": [body], "status": status, "headers": {"content-type": "application/json", "retry-after": "60"}}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("told", "status"), [(408, 504), (409, 409), (429, 429), (503, 502)], ids=["408", "409", "429", "503"]
)
def test_a_refusal_that_passes_may_be_repeated(
    client: Client, scripted: Register, stream: bool, told: int, status: int
) -> None:
    asked = scripted(**refusal(told))
    response = client.post(ask(asked.model, stream=stream))
    refused(response, status, "some_code")
    assert (response.headers["x-should-retry"], response.headers["retry-after"]) == ("true", "60")
    assert len(asked.script.calls) == 1


@pytest.mark.parametrize(
    ("told", "code"),
    [(400, "c"), (401, "c"), (403, "c"), (404, "c"), (500, "c"), (504, "c"), (429, "insufficient_quota")],
)
def test_any_other_is_not_to_be_repeated(client: Client, scripted: Register, told: int, code: str) -> None:
    response = client.post(ask(scripted(**refusal(told, code)).model))
    assert response.headers["x-should-retry"] == "false"


def test_once_something_was_said_it_is_paid_and_not_to_be_repeated(client: Client, scripted: Register) -> None:
    event = b'data: {"error": {"message": "not at this time", "type": "t", "code": 429}}\n\n'
    for parts, repeatable in (([event], "true"), ([*words(2), event], "false")):
        response = client.post(ask(scripted(parts).model))
        refused(response, 429)
        assert response.headers["x-should-retry"] == repeatable


def test_a_repeat_that_would_be_given_the_same_refusal_is_not_asked_for(client: Client, scripted: Register) -> None:
    asked = scripted(**refusal(429))
    key = {"idempotency-key": uuid.uuid4().hex}
    for _ in range(2):
        response = client.post(ask(asked.model), headers=key)
        refused(response, 429)
        assert response.headers["x-should-retry"] == "false"
    assert len(asked.script.calls) == 1
