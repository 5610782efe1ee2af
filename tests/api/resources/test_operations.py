"""Workers and the queue, of a real worker: what runs and waits while its only place is taken. And Redis, and the settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from shared import __version__
from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.store import emptied
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.support.wire import ADMIN_KEY, KEY_A, KEY_B, Client, ask, refused


@pytest.fixture(scope="module")
def narrow(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A server whose worker has one place."""
    settings = {
        "STREAMSPOOL_API_KEYS": f"a:{KEY_A},b:{KEY_B}",
        "STREAMSPOOL_ADMIN_KEYS": f"ops:{ADMIN_KEY}",
        "STREAMSPOOL_WORKER_CONCURRENCY": "1",
    }
    url = emptied(valkey.url.replace("db=0", "db=10"))
    with Stack(url, upstream.base_url, tmp_path_factory.mktemp("narrow"), **settings) as running:
        yield running


def lanes(client: Client, query: str = "") -> dict[str, Any]:
    response = client.get(f"/v1/queue{query}")
    assert response.status_code == 200, response.text
    return {one["lane"]: one for one in response.json()["data"]}


def test_what_waits_and_what_runs(narrow: Stack, upstream: ScriptedUpstream) -> None:
    pause = Pause()
    upstream.script("held", [*words(2), pause, *ending()])
    with Client(narrow.url, KEY_A) as ann, Client(narrow.url, KEY_B) as bob, Client(narrow.url, ADMIN_KEY) as boss:
        begun = ann.post(ask("scripted/held", background=True)).json()["id"]
        wait_until(lambda: ann.state(begun)["status"] == "in_progress")
        mine = [ann.post(ask("fake/echo", background=True)).json()["id"] for _ in range(2)]
        other = bob.post(ask("fake/echo", background=True)).json()["id"]

        def counts() -> tuple[int, int, int]:
            seen = lanes(boss)["background"]
            return seen["running"], seen["waiting"], seen["more_tenants"]

        wait_until(lambda: counts() == (1, 3, 0))  # what was just taken is counted as waiting, too, for a moment
        seen = lanes(boss)["background"]
        assert [(one["tenant"], one["waiting"]) for one in seen["tenants"]] == [("a", 2), ("b", 1)]
        made = ann.state(mine[0])["created_at"]
        assert seen["oldest_at"] in (made, made + 1)
        assert lanes(boss, "?tenant=*") == lanes(boss)
        assert [one["tenant"] for one in lanes(boss, "?tenant=b")["background"]["tenants"]] == ["b"]
        assert [one["tenant"] for one in lanes(ann)["background"]["tenants"]] == ["a"]
        assert lanes(ann)["generation"]["waiting"] == 0

        wait_until(lambda: boss.get("/v1/workers").json()["data"][0]["running"] == 1)
        (worker,) = boss.get("/v1/workers").json()["data"]
        assert (worker["version"], worker["status"], worker["places"]) == (__version__, "active", 1)
        assert worker["jobs"] == {"generation": 0, "background": 1, "line": 0, "batch": 0}
        assert worker["pid"] == narrow.process("worker").pid
        assert ann.get("/v1/workers").status_code == 403

        pause.go()
        for client, one in ((ann, begun), (ann, mine[0]), (ann, mine[1]), (bob, other)):
            wait_until(lambda client=client, one=one: client.state(one)["status"] == "completed")
        assert lanes(boss)["background"]["tenants"] == []


def test_a_worker_rests_and_begins_again(narrow: Stack) -> None:
    with Client(narrow.url, KEY_A) as ann, Client(narrow.url, ADMIN_KEY) as boss:

        def status() -> Any:
            return boss.get("/v1/workers").json()["data"][0]["status"]

        worker_id = boss.get("/v1/workers").json()["data"][0]["id"]
        assert boss.http.post(f"/v1/workers/{worker_id}/drain").json()["status"] == "resting"
        wait_until(lambda: status() == "resting")
        ready = boss.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["accept"]) == (503, "workers_resting"), (
            "nothing new would be run"
        )
        assert boss.get("/readyz?for=serve").status_code == 200
        one = ann.post(ask("fake/echo", background=True)).json()["id"]
        assert lanes(ann)["background"]["waiting"] == 1
        assert boss.http.post(f"/v1/workers/{worker_id}/resume").json()["status"] == "active"
        wait_until(lambda: ann.state(one)["status"] == "completed")
        wait_until(lambda: status() == "active")
        assert boss.get("/readyz").status_code == 200
        refused(boss.http.post("/v1/workers/nobody/drain"), 404, "not_found")


def test_what_redis_says_of_itself(narrow: Stack) -> None:
    with Client(narrow.url, ADMIN_KEY) as boss, Client(narrow.url, KEY_A) as ann:
        told = boss.get("/v1/redis").json()
        assert (told["object"], told["role"], told["eviction_policy"]) == ("redis", "master", "noeviction")
        assert 0 < told["used_bytes"] <= told["peak_bytes"]
        assert told["limit_bytes"] > told["used_bytes"]
        assert told["keys"] > 0
        assert told["answered_ms"] > 0
        refused(ann.get("/v1/redis"), 403)


def test_settings_are_told_with_their_sources_and_without_secrets(narrow: Stack) -> None:
    with Client(narrow.url, ADMIN_KEY) as boss, Client(narrow.url, KEY_A) as ann:
        response = boss.get("/v1/settings")
        told = {one["name"]: one for one in response.json()["data"]}
        assert told["STREAMSPOOL_WORKER_CONCURRENCY"] == {
            "name": "STREAMSPOOL_WORKER_CONCURRENCY",
            "value": "1",
            "source": "environment",
        }
        assert told["STREAMSPOOL_PROVIDERS"]["value"] == "scripted"
        assert told["STREAMSPOOL_PROVIDERS"]["source"] == "streamspool.toml"
        assert told["STREAMSPOOL_RETENTION_S"]["source"] == "default"
        assert told["STREAMSPOOL_API_KEYS"]["value"] == "a:****,b:****"
        assert not any(key in response.text for key in (KEY_A, KEY_B, ADMIN_KEY))
        refused(ann.get("/v1/settings"), 403)
