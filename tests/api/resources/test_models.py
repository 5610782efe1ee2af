"""GET /v1/models of a running server: what its pickers get, while one of three providers says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import ScriptedUpstream
from tests.support.listing import ListingProvider
from tests.support.wire import Client, refused

OPENROUTER = {
    "id": "anthropic/claude-3.5:beta",
    "name": "Anthropic: Claude 3.5",
    "created": 1741818122,
    "context_length": 200000,
    "architecture": {"input_modalities": ["text", "image"], "output_modalities": ["text"]},
    "pricing": {"prompt": "0.000003", "completion": "0.000015"},
    "supported_parameters": ["tools"],
}
CONFIG = """
[models]
smart = "router/anthropic/claude-3.5:beta"
[providers.router]
base_url = "{router}/api/v1"
models = ["declared"]
[providers.local]
kind = "ollama"
base_url = "{local}/api"
[providers.dead]
base_url = "{dead}/v1"
models = ["declared"]
"""


@pytest.fixture
def listings() -> Iterator[tuple[ListingProvider, ListingProvider, ListingProvider]]:
    """Two that answer, and one that takes what it is asked and says nothing."""
    router = ListingProvider({"/api/v1/models": {"data": [OPENROUTER]}})
    local = ListingProvider(
        {"/api/tags": {"models": [{"model": "llama3.2:latest", "modified_at": "2025-05-04T17:37:44Z"}]}}
    )
    local.answers["/api/show"] = {
        "capabilities": ["completion", "tools"],
        "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
    }
    with router, local, ListingProvider() as dead:
        dead.heard.clear()
        yield router, local, dead


@pytest.fixture
def client(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path, listings: tuple[ListingProvider, ...]
) -> Iterator[Client]:
    url = valkey.url.replace("db=0", "db=3")
    router, local, dead = (listing.url for listing in listings)
    config = CONFIG.format(router=router, local=local, dead=dead)
    with open_store(url) as store:
        store.flushdb()
        with (
            Stack(url, upstream.base_url, tmp_path, config=config, STREAMSPOOL_MODELS_REFRESH_S="1") as running,
            Client(running.url) as http,
        ):
            yield http
        store.flushdb()


def open_webui(listed: Any) -> dict[str, str]:
    """Names by id, as Open WebUI's picker has them (backend/open_webui/routers/openai.py): a list or `data`, no `error`."""
    entries = listed if isinstance(listed, list) else listed["data"]
    assert "error" not in listed
    return {model.get("id") or model["name"]: model.get("name", model["id"]) for model in entries}


def librechat(listed: Any) -> tuple[list[str], dict[str, int] | None]:
    """Ids, and contexts by id, as LibreChat takes them (packages/api/src/endpoints/models.ts): the second only where every
    model has a context and prices as text."""
    ids = [model["id"] for model in listed["data"]]
    told = all(
        isinstance(model.get("context_length"), int)
        and all(isinstance(model.get("pricing", {}).get(name), str) for name in ("prompt", "completion"))
        for model in listed["data"]
    )
    return ids, {model["id"]: model["context_length"] for model in listed["data"]} if told else None


def models(client: Client) -> dict[str, Any]:
    response = client.get("/v1/models")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    listed = response.json()
    assert listed["object"] == "list"
    found = {model["id"]: model for model in listed["data"]}
    assert len(found) == len(listed["data"]), "each once"
    assert all({"id", "object", "created", "owned_by"} <= model.keys() for model in listed["data"])
    assert all(model["object"] == "model" and model["owned_by"] for model in listed["data"])
    assert open_webui(listed).keys() == found.keys()
    assert all(isinstance(name, str) for name in open_webui(listed).values())
    assert librechat(listed) == (list(found), None)
    return found


def test_three_providers_one_of_them_dead(client: Client, listings: tuple[ListingProvider, ...]) -> None:
    router, local, dead = listings
    wait_until(lambda: dead.asked, 60)
    found = wait_until(lambda: (now := models(client)) and "local/llama3.2:latest" in now and now, 60)
    assert not dead.heard.is_set(), "nothing was waited for: the dead one still says nothing"
    assert found["router/anthropic/claude-3.5:beta"] == {
        **OPENROUTER,
        "id": "router/anthropic/claude-3.5:beta",
        "object": "model",
        "owned_by": "router",
    }
    assert found["local/llama3.2:latest"] == {
        "id": "local/llama3.2:latest",
        "object": "model",
        "created": 1746380264,
        "owned_by": "local",
        "context_length": 131072,
        "supported_parameters": ["tools", "tool_choice"],
    }
    assert found["smart"]["context_length"] == 200000
    assert open_webui({"data": list(found.values())})["router/anthropic/claude-3.5:beta"] == "Anthropic: Claude 3.5"
    assert librechat({"data": [found["router/anthropic/claude-3.5:beta"], found["smart"]]})[1] == {
        "router/anthropic/claude-3.5:beta": 200000,
        "smart": 200000,
    }
    assert {"router/declared", "dead/declared", "fake/echo", "scripted/any"} <= found.keys()

    # By its name, with slashes and colons, as they are and encoded.
    name = "router/anthropic/claude-3.5:beta"
    for path in (name, name.replace("/", "%2F").replace(":", "%3A")):
        assert client.get(f"/v1/models/{path}").json() == found[name]
    assert client.get("/v1/models/router/not/listed:x").json()["owned_by"] == "router"
    refused(client.get("/v1/models/nobody/x"), 404, "model_not_found")

    # One goes away: what it listed stays. The other's news comes.
    router.status = 503
    asked = len(router.asked)
    local.answers["/api/tags"] = {"models": [{"model": "new:1b"}]}
    found = wait_until(lambda: (now := models(client)) and "local/new:1b" in now and now, 60)
    wait_until(lambda: len(router.asked) > asked, 60)
    assert name in models(client)
    assert "local/llama3.2:latest" not in models(client)

    # The dead one comes to.
    dead.answers["/v1/models"] = {"data": [{"id": "awake", "max_model_len": 4096}]}
    dead.heard.set()
    found = wait_until(lambda: (now := models(client)) and "dead/awake" in now and now, 60)
    assert found["dead/awake"]["context_length"] == 4096
