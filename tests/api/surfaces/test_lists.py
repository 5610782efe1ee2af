"""What happened to a request: its times, its body, its log lines, and finding it again among many."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.harness.processes import Stack, wait_until
from tests.support.wire import Client, Register, ask, refused

JSON = {"content-type": "application/json"}
TIMINGS = ("queued_ms", "first_chunk_ms", "generation_ms", "total_ms")


def made(client: Client, model: str = "fake/echo", **fields: Any) -> str:
    return str(client.post(ask(model, stream=True, **fields)).headers["x-stream-id"])


def found(client: Client, **query: Any) -> list[str]:
    response = client.get("/v1/streams", params=query)
    assert response.status_code == 200, response.text
    return [state["id"] for state in response.json()["data"]]


def test_where_the_time_went_and_what_was_said(client: Client) -> None:
    state = client.state(made(client, "fake/lorem?tokens=3"))
    timings = state["timings"]
    assert tuple(timings) == TIMINGS
    assert all(isinstance(value, int) and value >= 0 for value in timings.values())
    assert timings["first_chunk_ms"] <= timings["generation_ms"] <= timings["total_ms"]
    assert state["served_by"] == "fake/lorem?tokens=3"
    assert state["chunks"] == int(state["position"].partition("-")[2])


def test_a_refusal_has_the_status_it_was_answered_with(client: Client) -> None:
    state = client.state(made(client, "fake/echo?error=429"))
    assert state["error"]["status"] == 429
    assert state["timings"]["first_chunk_ms"] is None


def test_the_request_can_be_read_back_byte_for_byte_by_its_tenant(client: Client) -> None:
    body = b'{"model": "fake/echo",  "messages": [{"role": "user", "content": "\xc3\xa4"}], "x_own": 1.50}'
    sent = client.send(body)
    response = client.get(f"/v1/streams/{sent.headers['x-stream-id']}/request")
    assert (response.status_code, response.content) == (200, body)
    assert response.headers["content-type"] == "application/json"
    refused(client.get(f"/v1/streams/chatcmpl-{'0' * 32}/request"), 404, "not_found")


def test_another_tenant_cannot_read_it(alice: Client, bob: Client) -> None:
    path = f"/v1/streams/{made(alice)}/request"
    assert alice.get(path).status_code == 200
    refused(bob.get(path), 404, "not_found")


def test_each_filter_finds_what_it_names(newcomer: Client) -> None:
    client = newcomer
    mark = {"metadata[mark]": (token := uuid.uuid4().hex)}
    metadata = {"mark": token}
    good = made(client, metadata=metadata, session_id=f"s-{token}")
    cut = made(client, "fake/lorem?cut=1", metadata={**metadata, "kind": "cut"})
    away = made(client, "fake/lorem?error=503", metadata=metadata)
    created = client.state(good)["created_at"]
    assert found(client, **mark) == [away, cut, good]
    assert found(client, **mark, order="asc") == [good, cut, away]
    assert found(client, **mark, status="failed") == [away, cut]
    assert found(client, **mark, status="failed,completed") == [away, cut, good]
    assert found(client, **mark, model="fake/echo") == [good]
    assert found(client, **mark, model="fake/lorem*") == [away, cut]
    assert found(client, **mark, provider="fake") == [away, cut, good]
    assert found(client, **mark, provider="openai") == []
    assert found(client, **mark, error="upstream_incomplete") == [cut]
    assert found(client, **mark, session_id=f"s-{token}") == [good]
    assert found(client, **mark, **{"metadata[kind]": "cut"}) == [cut]
    assert found(client, **mark, batch_id="batch_none") == []
    assert found(client, **mark, since=str(created)) == [away, cut, good]
    assert found(client, **mark, until=str(created)) == []
    assert found(client, **mark, since="2020-01-01", until="2021-01-01T00:00:00Z") == []
    assert found(client, **mark, until="2999-01-01T00:00:00+01:00", order="asc") == [good, cut, away]
    assert found(client, **mark, after=away, limit=1) == [cut]
    assert found(client, **mark, served_by="fake/*") == [cut, good]
    assert found(client, **mark, source="chat,batch") == [away, cut, good]
    assert found(client, **mark, source="background") == []
    assert found(client, **mark, key_id="key_of_nobody") == []
    assert found(client, q=token.upper(), error="upstream_incomplete") == [cut]
    assert found(client, **mark, min_tokens=2) == [away, cut, good]
    assert found(client, **mark, max_cost_usd=1) == [away]  # of the others it is not known
    assert found(client, **mark, max_ttft_ms=10**9) == [cut, good]
    assert found(client, **mark, min_duration_ms=10**9) == []


def test_a_list_may_have_the_slowest_first(newcomer: Client) -> None:
    client, mark = newcomer, uuid.uuid4().hex
    models = ("fake/echo", "fake/lorem?first_ms=300", "fake/echo")
    ids = [made(client, model, metadata={"mark": mark}) for model in models]
    query = {"metadata[mark]": mark, "order": "slowest"}
    response = client.get("/v1/streams", params=query).json()
    took = [state["timings"]["total_ms"] for state in response["data"]]  # any of them, where the machine is busy
    assert took == sorted(took, reverse=True)
    assert took[0] >= 300
    assert {state["id"] for state in response["data"]} == set(ids)
    assert (response["has_more"], response["partial"]) == (False, False)
    (slowest,) = found(client, **query, limit=1)
    assert client.state(slowest)["timings"]["total_ms"] == took[0]
    refused(client.get("/v1/streams", params={**query, "after": slowest}), 400, "invalid_request")


@pytest.mark.parametrize(
    "query",
    [
        "status=done",
        "since=soon",
        "until=2026-13-01",
        "metadata[x=1",
        "order=up",
        "since=1e400",
        "source=x",
        "q=",
        "min_tokens=-1",
        "max_cost_usd=1e99",
    ],
)
def test_a_wrong_filter_is_refused(client: Client, query: str) -> None:
    assert client.get(f"/v1/streams?{query}").status_code == 400


def test_what_a_list_is_made_of(newcomer: Client) -> None:
    client, mark = newcomer, {"mark": uuid.uuid4().hex}
    for model in ("fake/echo", "fake/echo", "fake/lorem?cut=1"):
        made(client, model, metadata=mark)
    query = {"metadata[mark]": mark["mark"]}
    told = client.get("/v1/streams/facets", params=query).json()
    counts = {name: {v["value"]: v["count"] for v in one["values"]} for name, one in told["facets"].items()}
    assert counts["status"] == {"completed": 2, "failed": 1}
    assert counts["model"] == {"fake/echo": 2, "fake/lorem?cut=1": 1}
    assert (counts["source"], counts["error"]) == ({"chat": 3}, {"upstream_incomplete": 1})
    assert "tenant" not in counts
    assert (told["matched"], told["partial"]) == (3, False)
    assert told["looked_at"] >= 3
    assert sum(bar["count"] for bar in told["histogram"]["buckets"]) == 3
    assert told["duration_ms"]["count"] == 3
    narrow = client.get("/v1/streams/facets", params={**query, "status": "failed"}).json()
    assert narrow["matched"] == 1
    assert len(narrow["facets"]["status"]["values"]) == 2
    refused(client.get("/v1/streams/facets", params={"limit": 3}), 400, "invalid_request")


def test_one_line_says_how_a_request_ended_and_every_line_has_its_id(client: Client, stack: Stack) -> None:
    response = client.stream("fake/echo", "canary words")
    generation_id, request_id = response.headers["x-stream-id"], response.headers["x-request-id"]

    def lines() -> list[dict[str, Any]]:
        text = "".join(stack.log(name) for name in ("api", "worker"))
        return [json.loads(line) for line in text.splitlines() if generation_id in line]

    wait_until(lambda: any(line["event"] == "sealed" for line in lines()))
    (sealed,) = [line for line in lines() if line["event"] == "sealed"]
    expected = {
        "request_id": request_id,
        "model": "fake/echo",
        "served_by": "fake/echo",
        "status": "completed",
        "error_code": None,
        "completion_tokens": 2,
    }
    assert expected.items() <= sealed.items()
    assert 0 <= sealed["queued_ms"] <= sealed["total_ms"]
    assert 0 <= sealed["first_chunk_ms"] <= sealed["total_ms"]
    assert sealed["tenant"]
    assert {line["event"] for line in lines() if line.get("request_id") != request_id} == set()
    assert "canary" not in json.dumps(lines())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings"])
def test_metadata_may_come_as_headers(client: Client, scripted: Register, path: str) -> None:
    """For clients whose bodies are not ours to change: Open WebUI asks four times for one question."""
    mark = uuid.uuid4().hex
    what = {"input": "a", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    fields = {"/v1/responses": ["input"], "/v1/embeddings": ["input"], "/v1/completions": ["prompt"]}
    script = scripted([json.dumps({"object": "list", "data": [], "usage": {}}).encode()], headers=JSON)
    model = script.model if path == "/v1/embeddings" else "fake/echo"
    own = {name: what[name] for name in fields.get(path, ["messages"])}
    body = {"model": model, **own, "metadata": {"both": "body"}}
    headers = {"X-Metadata-Mark": mark, "X-Metadata-Both": "header", "X-Metadata-Empty": ""}
    made = client.http.post(path, json=body, headers=headers)
    assert made.status_code in (200, 400), made.text  # the fake provider knows no /v1/completions
    if made.status_code == 200:
        (id,) = found(client, **{"metadata[mark]": mark})
        assert client.state(id)["metadata"] == {"mark": mark, "both": "body"}
    for call in script.script.calls:
        assert "metadata" not in call  # they are ours: an embeddings API refuses what it does not know


def test_headers_do_not_make_wrong_metadata_right(client: Client) -> None:
    refused(client.post(ask("fake/echo", metadata=[1]), headers={"X-Metadata-A": "1"}), 400, "invalid_request")
    many = {f"X-Metadata-{number}": "1" for number in range(17)}
    refused(client.post(ask("fake/echo"), headers=many), 400, "invalid_request")
