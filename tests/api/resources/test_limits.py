"""Limits as a client meets them: statuses, headers, what an SDK makes of them, and that they hold while the server runs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import Pause, ending, words
from tests.support.wire import Client, Register, ask, refused

RATES = ("limit", "remaining", "reset")


@pytest.fixture
def tenant(admin: Client) -> Iterator[str]:
    """One of the test's own; what was set for it is taken back."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    yield name
    assert admin.http.delete(f"/v1/limits/{name}").status_code == 200


def key_of(admin: Client, tenant: str, **limits: int) -> str:
    response = admin.http.post("/v1/keys", json={"tenant": tenant, "limits": limits})
    assert response.status_code == 200, response.text
    return str(response.json()["key"])


def set_limits(admin: Client, tenant: str, **limits: int | None) -> dict[str, Any]:
    response = admin.http.post(f"/v1/limits/{tenant}", json=limits)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_a_limit_is_told_with_each_answer_and_then_refuses(keyed: Stack, admin: Client, tenant: str) -> None:
    with Client(keyed.url, key_of(admin, tenant, requests_per_min=2, tokens_per_min=5000)) as own:
        for left in (1, 0):
            for path in ("/v1/models", "/v1/streams"):
                assert "x-ratelimit-limit-requests" not in own.get(path).headers
            response = own.post(ask("fake/echo", stream=bool(left)))
            assert response.status_code == 200
            told = [response.headers[f"x-ratelimit-{what}-requests"] for what in RATES]
            assert told == ["2", str(left), "1m1s"]
            assert response.headers["x-ratelimit-limit-tokens"] == "5000"
        response = own.post(ask("fake/echo"))
        error = refused(response, 429, "rate_limit_exceeded")
        assert error["type"] == "requests"
        assert "on requests per min (RPM): Limit 2, Used 2, Requested 1. Please try again in " in error["message"]
        assert response.headers["x-should-retry"] == "true"
        assert 1 <= int(response.headers["retry-after"]) <= 61
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
        refused(own.http.post("/v1/responses", json={"model": "fake/echo", "input": "x"}), 429, "rate_limit_exceeded")
        refused(own.http.post("/v1/embeddings", json={"model": "fake/echo", "input": "x"}), 429, "rate_limit_exceeded")
        used = own.get("/v1/limits").json()["key"]["used"]
        assert used["requests_per_min"] == 2
        wait_until(lambda: own.get("/v1/limits").json()["key"]["used"]["tokens_per_min"] < 1000, what="settled")


def test_openais_client_has_its_error(keyed: Stack, admin: Client, tenant: str) -> None:
    key = key_of(admin, tenant, requests_per_min=1)
    client = openai.OpenAI(base_url=f"{keyed.url}/v1", api_key=key, max_retries=0)
    messages: Any = [{"role": "user", "content": "hello"}]
    with client:
        raw = client.chat.completions.with_raw_response.create(model="fake/echo", messages=messages)
        assert raw.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as refusal:
            client.chat.completions.create(model="fake/echo", messages=messages)
    assert (refusal.value.code, refusal.value.type) == ("rate_limit_exceeded", "requests")


def test_a_tenants_limit_is_set_changed_and_taken_back_while_the_server_runs(
    keyed: Stack, admin: Client, tenant: str
) -> None:
    with Client(keyed.url, key_of(admin, tenant)) as own:
        assert own.post(ask("fake/echo")).status_code == 200
        assert set_limits(admin, tenant, requests_per_min=1, running=5)["set"] == {"requests_per_min": 1, "running": 5}
        assert own.post(ask("fake/echo")).status_code == 200
        assert "in organization" in refused(own.post(ask("fake/echo")), 429)["message"]
        assert set_limits(admin, tenant, requests_per_min=None)["limits"] == {"running": 5}
        assert own.post(ask("fake/echo")).status_code == 200
        assert own.get("/v1/limits").json()["limits"] == {"running": 5}
        assert admin.get("/v1/limits", params={"tenant": tenant}).json()["limits"] == {"running": 5}
    entry = admin.get("/v1/audit", params={"subject": tenant, "limit": 1}).json()["data"][0]
    assert (entry["action"], entry["details"]) == ("limits.changed", {"running": 5})


def test_what_a_response_goes_on_from_is_part_of_its_tokens(keyed: Stack, admin: Client, tenant: str) -> None:
    with Client(keyed.url, key_of(admin, tenant)) as own:
        first = own.http.post("/v1/responses", json={"model": "fake/lorem?tokens=600", "input": "x"}).json()
        assert first["usage"]["total_tokens"] > 600
        set_limits(admin, tenant, tokens_per_min=500)
        body = {"model": "fake/echo", "input": "x", "max_output_tokens": 10}
        response = own.http.post("/v1/responses", json={**body, "previous_response_id": first["id"]})
        assert "Request too large" in refused(response, 429, "rate_limit_exceeded")["message"]
        assert own.http.post("/v1/responses", json=body).status_code == 200


@pytest.mark.parametrize("wrong", [{"rpm": 5}, {"running": 0}, {"running": "5"}, {"running": 1.5}])
def test_a_wrong_limit_is_refused(admin: Client, wrong: dict[str, Any]) -> None:
    refused(admin.http.post("/v1/limits/t-wrong", json=wrong), 400)
    refused(admin.http.post("/v1/limits/a%20b", json={"running": 1}), 400)


def test_what_is_a_tenants_is_no_keys(admin: Client, tenant: str) -> None:
    refused(admin.http.post("/v1/keys", json={"tenant": tenant, "limits": {"file_bytes": 5}}), 400)


def test_a_body_may_be_so_large(keyed: Stack, admin: Client, tenant: str) -> None:
    with Client(keyed.url, key_of(admin, tenant, body_bytes=2000)) as own:
        assert own.post(ask("fake/echo", "x" * 1000)).status_code == 200
        refused(own.post(ask("fake/echo", "x" * 3000)), 413, "request_too_large")


def test_files_take_so_much(keyed: Stack, admin: Client, tenant: str) -> None:
    set_limits(admin, tenant, file_bytes=3000)
    with Client(keyed.url, key_of(admin, tenant)) as own:

        def upload(size: int) -> Any:
            file = {"file": ("x.txt", b"x" * size)}
            return own.http.post("/v1/files", data={"purpose": "user_data"}, files=file)

        first = upload(2000)
        assert first.status_code == 200
        refused(upload(1500), 413, "storage_quota_exceeded")
        own.http.delete(f"/v1/files/{first.json()['id']}")
        assert upload(1500).status_code == 200


def test_so_many_may_watch(keyed: Stack, admin: Client, tenant: str, scripted: Register) -> None:
    pause = Pause()
    asked = scripted([*words(2), pause, *ending()])
    with Client(keyed.url, key_of(admin, tenant, viewers=1)) as own:
        with own.streaming(asked.model) as first:
            first.take(2)
            with own.view("GET", f"/v1/streams/{first.id}") as second:
                second.take(2)
                response = own.get(f"/v1/streams/{first.id}")
                assert "streams watched at once: Limit 1, Used 1" in refused(response, 429)["message"]
                assert own.state(first.id)["status"] == "in_progress", "its state may be read"
            pause.go()
        assert wait_until(lambda: own.get(f"/v1/streams/{first.id}").status_code == 200)
