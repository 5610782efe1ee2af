"""/v1/keys: what becomes of a key, on the process that was asked and on another one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, kill_valkey, wait_until
from tests.harness.store import emptied, open_store
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.support.names import keys
from tests.support.wire import ADMIN_KEY, KEY_A, Client, Register, refused


@pytest.fixture(scope="module")
def pair(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Two API processes over one store, with an admin and a tenant of the environment."""
    url = emptied(valkey.url.replace("db=0", "db=10"))
    settings = {"STREAMSPOOL_ADMIN_KEYS": f"ops:{ADMIN_KEY}", "STREAMSPOOL_API_KEYS": f"a:{KEY_A}"}
    directory = tmp_path_factory.mktemp("pair")
    with Stack(url, upstream.base_url, directory, processes="worker api api-2", **settings) as running:
        wait_until(lambda: running.answers("api-2"), 90)
        yield running
    with open_store(url) as client:
        client.flushdb()


@pytest.fixture(scope="module")
def boss(pair: Stack) -> Iterator[Client]:
    with Client(pair.url, ADMIN_KEY) as http:
        yield http


def made(boss: Client, **fields: Any) -> dict[str, Any]:
    response = boss.http.post("/v1/keys", json={"tenant": "t", **fields})
    assert response.status_code == 200, response.text
    key: dict[str, Any] = response.json()
    return key


def asks(pair: Stack, secret: str, name: str = "api-2") -> httpx.Response:
    headers = {"authorization": f"Bearer {secret}"}
    return httpx.get(f"{pair.at(name)}/v1/models", headers=headers, trust_env=False, timeout=60)


def lets_in(pair: Stack, secret: str, name: str = "api-2") -> bool:
    return asks(pair, secret, name).status_code == 200


def test_a_key_is_good_at_once_and_soon_everywhere(pair: Stack, boss: Client) -> None:
    key = made(boss, name="n", models=["fake/*"], limits={"requests_per_min": 5}, budgets={"day_usd": 1.5})
    assert key["key"].startswith("sk-ss-")
    assert key["key"].endswith(key["hint"])
    assert (key["status"], key["source"], key["limits"]) == ("active", "api", {"requests_per_min": 5})
    assert lets_in(pair, key["key"], "api")
    wait_until(lambda: lets_in(pair, key["key"]))
    told = boss.get(f"/v1/keys/{key['id']}").json()
    assert "key" not in told
    assert {**told, "last_used_at": None, "key": key["key"]} == key
    wait_until(lambda: boss.get(f"/v1/keys/{key['id']}").json()["last_used_at"])


def test_what_is_in_redis_opens_nothing(pair: Stack, boss: Client) -> None:
    key = made(boss)
    with open_store(pair.redis_url) as client:
        raw = client.hget(keys.keys, key["id"])
        everything = b"".join(client.hvals(keys.keys))
    assert key["key"].encode() not in everything
    assert not lets_in(pair, str(raw))
    logs = pair.log("api") + pair.log("api-2")
    assert key["key"] not in logs


def test_a_revoked_key_is_refused_everywhere_within_a_second_and_its_viewers_are_cut_off(
    pair: Stack, boss: Client, scripted: Register
) -> None:
    key = made(boss)
    wait_until(lambda: lets_in(pair, key["key"]))
    pause = Pause()
    asked = scripted([*words(2), pause, *ending()])
    with (
        Client(pair.at("api-2"), key["key"]) as own,
        Client(pair.at("api-2")) as stranger,
        own.streaming(asked.model) as viewer,
    ):
        viewer.take(2)
        token = own.http.post(f"/v1/streams/{viewer.id}/tokens").json()["token"]
        with stranger.view("GET", f"/v1/streams/{viewer.id}", params={"token": token}) as guest:
            guest.take(2)
            assert boss.http.delete(f"/v1/keys/{key['id']}").json()["deleted"]
            assert asks(pair, key["key"], "api").status_code == 401, "where it was revoked: at once"
            began = time.monotonic()
            wait_until(lambda: asks(pair, key["key"]).status_code == 401)
            print(f"401 on the other process after {1000 * (time.monotonic() - began):.0f} ms")
            for one in (viewer, guest):
                with pytest.raises(httpx.TransportError):
                    one.rest()
            refused(stranger.get(f"/v1/streams/{viewer.id}", params={"token": token}), 401, "invalid_api_key")
        pause.go()
        state = wait_until(lambda: _ended(boss, viewer.id))
        assert state["status"] == "completed", "what it asked for goes on"
    assert boss.get(f"/v1/keys/{key['id']}").json()["status"] == "revoked"
    assert boss.http.delete(f"/v1/keys/{key['id']}").status_code == 200, "once more is harmless"
    refused(boss.http.post(f"/v1/keys/{key['id']}", json={"name": "x"}), 400, "key_revoked")
    refused(boss.http.post(f"/v1/keys/{key['id']}/rotate"), 400, "key_revoked")


def _ended(boss: Client, generation_id: str) -> Any:
    headers = {"accept": "application/json"}
    state = boss.get(f"/v1/streams/{generation_id}", params={"tenant": "t"}, headers=headers).json()
    return state if state["ended_at"] else None


def test_a_rotated_key_has_two_secrets_for_a_while(pair: Stack, boss: Client) -> None:
    first = made(boss)
    second = boss.http.post(f"/v1/keys/{first['id']}/rotate", json={"overlap_s": 3600}).json()
    assert second["id"] == first["id"]
    assert second["overlap_until"] > time.time() + 3000
    wait_until(lambda: lets_in(pair, second["key"]))
    assert lets_in(pair, first["key"])
    third = boss.http.post(f"/v1/keys/{first['id']}/rotate", json={"overlap_s": 1}).json()
    wait_until(lambda: lets_in(pair, third["key"]))
    wait_until(lambda: not lets_in(pair, first["key"]) and not lets_in(pair, second["key"]))
    fourth = boss.http.post(f"/v1/keys/{first['id']}/rotate").json()
    assert lets_in(pair, fourth["key"], "api")
    assert not lets_in(pair, third["key"], "api"), "without an overlap it is over at once"


def test_a_key_ends_by_itself(pair: Stack, boss: Client) -> None:
    key = made(boss)
    wait_until(lambda: lets_in(pair, key["key"]) and lets_in(pair, key["key"], "api"))
    ends = boss.http.post(f"/v1/keys/{key['id']}", json={"expires_at": int(time.time()) + 3})
    assert ends.status_code == 200, ends.text
    wait_until(lambda: not lets_in(pair, key["key"]) and not lets_in(pair, key["key"], "api"))
    assert boss.get(f"/v1/keys/{key['id']}").json()["status"] == "expired"
    boss.http.post(f"/v1/keys/{key['id']}", json={"expires_at": None})
    wait_until(lambda: lets_in(pair, key["key"]))


def test_a_change_replaces_what_it_names(boss: Client) -> None:
    key = made(boss, name="n", models=["fake/*"], limits={"running": 3})
    changed = boss.http.post(f"/v1/keys/{key['id']}", json={"models": None, "limits": {"waiting": 2}}).json()
    assert (changed["name"], changed["models"], changed["limits"]) == ("n", None, {"waiting": 2})


WRONG: list[dict[str, Any]] = [
    {"tenant": "a b"},
    {"tenant": ""},
    {"role": "token"},
    {"role": "root"},
    {"expires_at": 1},
    {"expires_at": "soon"},
    {"models": []},
    {"models": [""]},
    {"limits": {"requests_per_minute": 5}},
    {"limits": {"running": 0}},
    {"limits": {"running": 1.5}},
    {"budgets": {"Day": 1}},
    {"budgets": {"day_usd": -1}},
    {"key": "my-own-key"},
    {"name": "x" * 101},
]


@pytest.mark.parametrize("fields", WRONG, ids=str)
def test_what_is_wrong_is_refused_by_name(boss: Client, fields: dict[str, Any]) -> None:
    error = refused(boss.http.post("/v1/keys", json={"tenant": "t", **fields}), 400)
    assert str(error["param"]).startswith(next(iter(fields)))


def test_unknown_keys_and_those_of_the_environment(boss: Client) -> None:
    for key_id in ("key_" + "0" * 24, "key_1", "x", "key_{}"):
        refused(boss.get(f"/v1/keys/{key_id}"), 404, "not_found")
        refused(boss.http.delete(f"/v1/keys/{key_id}"), 404, "not_found")
    listed = boss.get("/v1/keys", params={"limit": 100}).json()["data"]
    configured = [key for key in listed if key["source"] == "environment"]
    assert {(key["tenant"], key["role"]) for key in configured} == {("a", "tenant"), ("ops", "admin")}
    for key in configured:
        assert boss.get(f"/v1/keys/{key['id']}").json()["tenant"] == key["tenant"]
        refused(boss.http.delete(f"/v1/keys/{key['id']}"), 400)
        refused(boss.http.post(f"/v1/keys/{key['id']}", json={"name": "x"}), 400)
    for wrong in ({"overlap_s": -1}, {"overlap_s": True}, {"other": 1}, [1]):
        refused(boss.http.post(f"/v1/keys/{made(boss)['id']}/rotate", json=wrong), 400)


def test_the_list_is_paged_and_by_tenant(boss: Client) -> None:
    tenant = f"paged-{uuid.uuid4().hex[:8]}"
    mine = [made(boss, tenant=tenant)["id"] for _ in range(5)]
    seen: list[str] = []
    query: dict[str, Any] = {"tenant": tenant, "limit": 2}
    while True:
        page = boss.get("/v1/keys", params=query).json()
        seen += [key["id"] for key in page["data"]]
        if not page["has_more"]:
            break
        query["after"] = page["last_id"]
    assert sorted(seen) == sorted(mine)
    refused(boss.get("/v1/keys?after=x"), 404, "not_found")


def test_without_redis_it_cannot_be_told_whether_a_key_is_good(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """A key of the environment is good, whatever then becomes of the request; one that cannot be any of ours is wrong; of one
    that may have been made just now it is said to come again."""
    with (
        EmbeddedValkey(tmp_path) as server,
        Stack(server.url, upstream.base_url, tmp_path, STREAMSPOOL_API_KEYS=f"a:{KEY_A}") as running,
    ):
        kill_valkey(server)
        wait_until(lambda: asks(running, "sk-ss-unknown", "api").status_code == 503)
        assert asks(running, "nobody", "api").status_code == 401
        with Client(running.url, KEY_A) as own:
            assert own.get("/v1/streams").json()["error"]["code"] == "storage_unavailable"
            refused(own.get("/v1/streams?tenant=b"), 403, "forbidden")
