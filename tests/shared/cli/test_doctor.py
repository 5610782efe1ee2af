"""What the doctor finds at a real server, and what it advises."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.cli import doctor
from shared.cli.client import Client
from shared.cli.embedded import CannotStart, EmbeddedValkey
from shared.config.settings import Settings
from shared.errors import Unauthenticated
from shared.store.redis import connect
from tests.support.server import Server


async def findings(url: str) -> dict[str, doctor.Finding]:
    found = await doctor._database(Settings.model_validate({"redis_url": url}))
    return {finding.what: finding for finding in found}


async def test_a_server_as_it_should_be(valkey: EmbeddedValkey) -> None:
    found = await findings(valkey.url)
    assert all(finding.ok for finding in found.values())
    assert "version 9." in found["Redis"].found
    assert found["Redis persistence"].found == "append-only file"


async def test_a_server_that_may_drop_streams(valkey: EmbeddedValkey) -> None:
    client = connect(valkey.url, max_connections=1)
    await client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        finding = (await findings(valkey.url))["Redis eviction"]
    finally:
        await client.config_set("maxmemory-policy", "noeviction")
        await client.aclose(close_connection_pool=True)
    assert not finding.ok
    assert "noeviction" in finding.found


async def test_a_server_that_is_not_there() -> None:
    found = await findings("redis://:hush@127.0.0.1:1/0")
    assert not found["Redis"].ok
    assert found["Redis"].found == "redis://127.0.0.1:1/0: connection refused. Start it, or correct REDIS_URL."


async def test_a_server_that_can_never_be_used_like_this(tmp_path: Path) -> None:
    with Server(tmp_path / "server", "--requirepass", "hush") as server:
        wrong = server.url.replace("//", "//:canary@")
        found = (await findings(wrong))["Redis"]
        assert not found.ok
        assert "refuses the password or user" in found.found
        assert found.found.endswith("Correct REDIS_URL.")
        assert "canary" not in found.found
        found = (await findings(wrong.replace("redis:", "rediss:")))["Redis"]
        assert "does not speak TLS on that port" in found.found
        missing = f"rediss://127.0.0.1:{server.port}?ssl_ca_certs=/nowhere"
        assert "names certificates" in (await findings(missing))["Redis"].found


def test_no_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise CannotStart("no binary here")

    monkeypatch.setattr(doctor, "find_binary", none)
    assert doctor._binary() == doctor.Finding(False, "embedded Valkey", "no binary here")


async def test_an_api_that_wants_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Client("http://127.0.0.1:1") as client:

        async def ready() -> dict[str, object]:
            return {"status": "ok", "checks": {"redis": "ok"}}

        async def models() -> dict[str, object]:
            raise Unauthenticated("Send a key.")

        monkeypatch.setattr(client, "ready", ready)
        monkeypatch.setattr(client, "models", models)
        api, listed = await doctor._api(Settings(), client)
    assert api.ok
    assert not listed.ok
    assert "STREAMSPOOL_API_KEY" in listed.found
