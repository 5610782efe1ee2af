"""/v1/providers of a running server: how they do, and whether one answers, without a word of their keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.store import emptied
from tests.harness.upstream import ScriptedUpstream
from tests.support.listing import ListingProvider
from tests.support.wire import Client, ask, refused

KEY = "sk-secret-of-the-lab-0123456789"
CONFIG = """
[models]
smart = "lab/small"
[providers.lab]
base_url = "{lab}/v1"
api_key_env = "LAB_KEY"
models = ["small"]
"""


@pytest.fixture
def lab() -> Iterator[ListingProvider]:
    with ListingProvider({"/v1/models": {"data": [{"id": "small"}, {"id": "large"}]}}) as server:
        yield server


@pytest.fixture
def client(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path, lab: ListingProvider
) -> Iterator[Client]:
    url = emptied(valkey.url.replace("db=0", "db=14"))
    config = CONFIG.format(lab=lab.url)
    with (
        Stack(url, upstream.base_url, tmp_path, config=config, LAB_KEY=KEY) as stack,
        Client(stack.url) as http,
    ):
        yield http


def provider(client: Client, name: str) -> dict[str, Any]:
    response = client.get("/v1/providers")
    assert response.status_code == 200, response.text
    assert KEY not in response.text
    assert "127.0.0.1" not in response.text
    (found,) = [one for one in response.json()["data"] if one["name"] == name]
    return dict(found)


def tried(client: Client, name: str) -> dict[str, Any]:
    """On a busy machine, no worker may come to it in time."""

    def answer() -> Any:
        response = client.http.post(f"/v1/providers/{name}/test")
        return response.json() if response.status_code != 503 else None

    return dict(wait_until(answer, 60))


def test_how_providers_do_and_whether_one_answers(client: Client, lab: ListingProvider) -> None:
    told = tried(client, "lab")
    assert (told["ok"], told["models"], told["error"]) == (True, 2, None)
    assert lab.asked[-1].headers["authorization"] == f"Bearer {KEY}"
    assert tried(client, "fake")["ok"] is True
    refused(client.http.post("/v1/providers/nobody/test"), 404, "not_found")

    wait_until(lambda: provider(client, "lab")["last_success_at"])
    found = provider(client, "lab")
    assert (found["kind"], found["has_key"], found["models"], found["aliases"]) == (
        "openai",
        True,
        ["small"],
        ["smart"],
    )
    assert (found["listed_models"], found["failed"], found["last_error"]) == (2, 0, None)

    lab.status = 401
    told = tried(client, "lab")
    assert (told["ok"], told["models"], told["error"]["status"]) == (False, None, 401)
    assert KEY not in str(told)
    wait_until(lambda: provider(client, "lab")["last_error"])
    assert provider(client, "lab")["last_error"]["status"] == 401
    assert provider(client, "lab")["error_rate"] > 0

    client.stream("fake/lorem?tokens=2&first_ms=20")
    client.post(ask("fake/echo?error=503"))
    wait_until(lambda: provider(client, "fake")["failed"])
    found = provider(client, "fake")
    assert found["first_chunk_ms"]["count"] >= 1
    assert found["last_error"]["status"] == 503
    assert found["has_key"] is False
