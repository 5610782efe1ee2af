"""What the doctor finds at a real server, and what it advises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.cli import doctor, doctor_rights
from shared.cli.client import Client
from shared.cli.doctor_redis import examine_redis
from shared.cli.doctor_rights import Part
from shared.cli.embedded import CannotStart, EmbeddedValkey
from shared.cli.findings import Finding
from shared.config.settings import Settings
from shared.errors import Unauthenticated
from shared.store.cluster.cells import Cells
from shared.store.cluster.placing import patterns
from shared.store.keys import Keys
from shared.store.redis import connect
from tests.harness.processes import ROOT
from tests.harness.store import configured
from tests.support.server import Server


async def findings(url: str) -> dict[str, Finding]:
    found = await examine_redis(Settings.model_validate({"redis_url": url}))
    return {finding.what: finding for finding in reversed(found)}  # of two about the same, the first


async def test_a_server_as_it_should_be(valkey: EmbeddedValkey) -> None:
    found = await findings(valkey.url)
    assert not [finding for finding in found.values() if not finding.ok]
    assert "version 9." in found["Redis"].found
    assert found["Redis persistence"].found == "append-only file"


async def test_a_server_that_may_drop_streams(valkey: EmbeddedValkey) -> None:
    client = connect(valkey.url, max_connections=1)
    async with configured(client, maxmemory_policy="allkeys-lru"):
        finding = (await findings(valkey.url))["Redis eviction"]
    await client.aclose(close_connection_pool=True)
    assert not finding.ok
    assert "noeviction" in finding.found


async def test_a_server_that_is_not_there() -> None:
    found = await findings("redis://:hush@127.0.0.1:1/0")
    assert not found["Redis"].ok
    assert found["Redis"].found == "redis://127.0.0.1:1/0: connection refused. Start it, or correct REDIS_URL."


async def test_a_server_of_its_own_for_the_queue(valkey: EmbeddedValkey) -> None:
    """Each is told of by its name."""
    settings = {"redis_url": valkey.url, "queue_url": valkey.url.replace("db=0", "db=1")}
    found = {one.what: one for one in await examine_redis(Settings.model_validate(settings))}
    assert not [one for one in found.values() if not one.ok]
    assert found.keys() >= {"Redis", "Redis rights", "clock", "queue", "queue rights", "queue clock"}
    settings["queue_url"] = "redis://:hush@127.0.0.1:1/0"
    found = {one.what: one for one in await examine_redis(Settings.model_validate(settings))}
    assert [what for what, one in found.items() if not one.ok] == ["queue"]
    assert found["queue"].found.endswith("connection refused. Start it, or correct STREAMSPOOL_QUEUE_URL.")


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
    assert doctor._binary() == Finding(False, "embedded Valkey", "no binary here")


async def test_an_api_that_wants_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("http://127.0.0.1:1")

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


async def test_a_user_who_may_not_do_all_that_is_needed(tmp_path: Path) -> None:
    """Each right that is missing is named, and nothing is left behind."""
    rules = {
        "whole": "on >p ~streamspool:* &streamspool:* +@all -@admin -@dangerous +info",
        "poor": "on >p ~streamspool:* &streamspool:* +@all -xadd -zadd -subscribe",
        "elsewhere": "on >p ~other:* &other:* +@all",
    }
    with Server(tmp_path / "server") as server:
        admin = connect(server.url, max_connections=1)
        try:
            for name, rule in rules.items():
                await admin.execute_command("ACL", "SETUSER", name, *rule.split())
            found = {name: await findings(server.url.replace("//", f"//{name}:p@")) for name in rules}
            assert await admin.keys("*") == []
        finally:
            await admin.aclose(close_connection_pool=True)
    assert found["whole"]["Redis rights"].ok is None
    assert "CONFIG" in found["whole"]["Redis rights"].found
    assert found["poor"]["Redis rights"].ok is False
    advice = "lacks SUBSCRIBE XADD ZADD. ACL SETUSER poor +subscribe +unsubscribe +xadd +zadd"
    assert found["poor"]["Redis rights"].found.endswith(advice)
    assert found["elsewhere"]["Redis rights"].ok is False
    places = "lacks channels `streamspool:*`, keys `streamspool:*`. ACL SETUSER elsewhere &streamspool:* ~streamspool:*"
    assert found["elsewhere"]["Redis rights"].found.endswith(places)


async def test_a_server_without_an_operators_commands_is_told_of(tmp_path: Path) -> None:
    """A managed one has no CONFIG, for whoever asks: that is no right that could be given, and nothing that is needed."""
    with Server(tmp_path / "server", "--rename-command", "CONFIG", "") as server:
        found = await findings(server.url)
    assert found["Redis rights"].ok is None
    assert found["Redis rights"].found == "without CONFIG how it is set is not known."
    assert found["Redis eviction"].ok


def test_every_command_of_the_protocol_is_tried() -> None:
    (listed,) = re.findall(r"```text commands\n(.*?)```", (ROOT / "shared/log/PROTOCOL.md").read_text("utf-8"), re.S)
    tried = {words[0] for words in doctor_rights._needed("x")}
    tried |= {words[0] for wished in doctor_rights._WISHED.values() for words in wished}
    assert set(listed.split()) - tried == {"PUBLISH", "UNSUBSCRIBE"}  # of which one is tried with the channel


def test_the_documentation_has_the_same_keys_and_channels() -> None:
    text = " ".join((ROOT / "docs/OPERATIONS.md").read_text("utf-8").split())
    one, parted, many = Cells(), Cells(1, apart=True), Cells(64)
    for cells, part in (
        (one, Part()),
        (many, Part()),
        (parted, Part(control=False)),
        (many, Part(control=False)),
        (parted, Part(logs=False)),
    ):
        keys, channels = patterns(Keys(cells=cells), logs=part.logs, control=part.control)
        assert f"`{' '.join([*(f'~{key}' for key in keys), *(f'&{channel}' for channel in channels)])}`" in text


async def test_a_server_without_a_limit_of_memory_and_without_a_file(tmp_path: Path) -> None:
    with Server(tmp_path / "server") as server:
        found = await findings(server.url)
        assert (found["Redis memory"].ok, found["Redis persistence"].ok, found["clock"].ok) == (None, None, True)
        client = connect(server.url, max_connections=1)
        try:
            await client.config_set("maxmemory", "1000000")
        finally:
            await client.aclose(close_connection_pool=True)
        full = await findings(server.url)
    assert full["Redis memory"].ok is False
    assert "full" in full["Redis memory"].found


async def test_files_are_written_read_and_removed(tmp_path: Path) -> None:
    place = tmp_path / "files"
    place.mkdir()
    settings = Settings(_env_file=None, files_url=place.as_uri())
    assert (await doctor._files(settings)).ok
    assert [path for path in place.rglob("*") if path.is_file()] == []
    missing = Settings(_env_file=None, files_url=(tmp_path / "later").as_uri())
    assert "is made with the first file" in (await doctor._files(missing)).found
    assert not (tmp_path / "later").exists()
