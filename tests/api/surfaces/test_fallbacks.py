"""Names of one's own: who is asked, who is asked next, and what is told of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.store import emptied
from tests.harness.upstream import DONE, Script, ScriptedUpstream, chunk, ending, words
from tests.support.wire import Client, ask, chunks, end_error, refused, text

MODELS = {
    "smart": ["scripted/first", "scripted/second", "fake/echo"],
    "plain": "fake/echo",
    "hopeless": ["scripted/first", "scripted/second"],
}
GOOD = [*words(2), *ending()]


def refusal(status: int, code: str = "busy", **headers: str) -> dict[str, Any]:
    """A script's answer that is none."""
    body = json.dumps({"error": {"message": "not now", "type": "t", "code": code}}).encode()
    return {"parts": [body], "status": status, "headers": {"content-type": "application/json", **headers}}


REFUSED = refusal(403, "no_credit")


@pytest.fixture(scope="module")
def own(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A server with names of its own, on a database of its own."""
    settings = {
        "STREAMSPOOL_MODELS": json.dumps(MODELS),
        "STREAMSPOOL_UPSTREAM_FIRST_S": "4",
        "STREAMSPOOL_HOLD_HEADERS_S": "30",
    }
    url = emptied(valkey.url.replace("db=0", "db=10"))
    directory = tmp_path_factory.mktemp("own")
    with (
        Stack(url, upstream.base_url, directory, **settings) as running,
        Client(running.url) as client,
    ):
        yield client


@pytest.fixture
def script(upstream: ScriptedUpstream) -> Any:
    def register(first: Any, second: Any = GOOD) -> tuple[Script, Script]:
        scripts = []
        for name, said in (("first", first), ("second", second)):
            scripts.append(upstream.script(name, **(said if isinstance(said, dict) else {"parts": said})))
        return scripts[0], scripts[1]

    return register


def test_the_first_one_answers(own: Client, script: Any) -> None:
    first, second = script(GOOD)
    response = own.stream("smart")
    found = chunks(response.content)
    assert text(found) == "w0 w1 "
    assert {value["model"] for value in found} == {"smart"}
    assert response.headers["x-served-by"] == "scripted/first"
    assert "x-fallback-from" not in response.headers
    assert (len(first.calls), len(second.calls)) == (1, 0)
    assert first.calls[0]["model"] == "first"
    state = own.state(response.headers["x-stream-id"])
    assert (state["model"], state["served_by"], state["refused"], state["retries"]) == (
        "smart",
        "scripted/first",
        [],
        0,
    )


@pytest.mark.parametrize(
    ("trouble", "status", "calls"),
    [
        (REFUSED, 403, 1),
        (refusal(401, "invalid_api_key"), 401, 1),
        (refusal(404, "model_not_found"), 404, 1),
        (refusal(429, "rate_limit", **{"retry-after": "60"}), 429, 1),
        (refusal(503), 503, 3),
        ([b": thinking\n\n", 60.0], 504, 1),
        ([b"data: nonsense\n\n"], 502, 1),
        ({"parts": [b"<html>"], "headers": {"content-type": "text/html"}}, 502, 1),
    ],
)
def test_the_next_one_is_asked(own: Client, script: Any, trouble: Any, status: int, calls: int) -> None:
    first, second = script(trouble)
    response = own.stream("smart", ids=True)
    found = chunks(response.content)
    assert text(found) == "w0 w1 "
    assert {value["model"] for value in found} == {"smart"}
    assert response.headers["x-served-by"] == "scripted/second"
    assert response.headers["x-fallback-from"] == f"scripted/first={status}"
    assert (len(first.calls), len(second.calls)) == (calls, 1)
    state = own.state(response.headers["x-stream-id"])
    assert state["served_by"] == "scripted/second"
    (refused_one,) = state["refused"]
    assert (refused_one["model"], refused_one["status"]) == ("scripted/first", status)
    assert (state["attempts"], state["retries"]) == (1, calls - 1)
    replayed = own.get(f"/v1/streams/{state['id']}")
    assert replayed.content == response.content
    assert replayed.headers["x-served-by"] == "scripted/second"


def test_down_to_the_last(own: Client, script: Any) -> None:
    script(REFUSED, refusal(401))
    response = own.post(ask("smart", "hello"))
    assert response.json()["choices"][0]["message"]["content"] == "hello"
    assert response.headers["x-served-by"] == "fake/echo"
    assert response.headers["x-fallback-from"] == "scripted/first=403, scripted/second=401"


def test_the_last_ones_refusal_is_the_answer(own: Client, script: Any) -> None:
    script(REFUSED, refusal(429, "rate_limit", **{"retry-after": "60"}))
    response = own.post(ask("hopeless"))
    refused(response, 429, "rate_limit")
    state = own.state(response.headers["x-stream-id"])
    assert (state["status"], state["served_by"]) == ("failed", None)
    assert [one["status"] for one in state["refused"]] == [403]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_wrong_is_wrong_everywhere(own: Client, script: Any, status: int) -> None:
    _, second = script(refusal(status, "context_length_exceeded"))
    refused(own.post(ask("smart")), status, "context_length_exceeded")
    assert not second.calls


def test_after_the_first_chunk_nobody_else_is_asked(own: Client, script: Any) -> None:
    _, second = script({"parts": words(2), "end": "cut"})
    response = own.stream("smart")
    assert end_error(response.content)["code"] == "upstream_incomplete"
    assert not second.calls


def test_one_model_under_another_name(own: Client) -> None:
    response = own.post(ask("plain", "hello"))
    assert response.json()["model"] == "plain"
    assert response.headers["x-served-by"] == "fake/echo"


def test_the_names_are_listed(own: Client) -> None:
    listed = {model["id"]: model["owned_by"] for model in own.get("/v1/models").json()["data"]}
    assert listed.items() >= {"smart": "streamspool", "plain": "streamspool", "fake/echo": "fake"}.items()
    assert own.get("/v1/models/smart").json()["id"] == "smart"
    refused(own.get("/v1/models/clever"), 404, "model_not_found")
    refused(own.post(ask("clever")), 404, "model_not_found")


def test_usage_is_booked_for_who_answered(own: Client, script: Any) -> None:
    script(REFUSED, [*words(1), chunk({}, "stop"), DONE])

    def rows() -> dict[str, Any]:
        return {row["model"]: row for row in own.get("/v1/usage").json()["data"]}

    before = rows().get("smart", {}).get("completed_requests", 0)
    own.post(ask("smart"))
    wait_until(lambda: rows().get("scripted/second", {}).get("estimate_requests"), what="it is settled")
    assert rows().get("smart", {}).get("completed_requests", 0) == before == 0
