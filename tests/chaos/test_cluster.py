"""A cluster of three masters and their replicas beneath running answers: slots move, masters die, half of it is away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from shared.store.cluster.cells import tags
from shared.store.cluster.slots import slot_of
from shared.store.redis import CELLS
from tests.harness.cluster import Cluster, Node
from tests.harness.processes import wait_until
from tests.harness.upstream import ScriptedUpstream
from tests.support.rig import Rig

PLACES = [slot_of(tag.encode()) for tag in (*tags(CELLS), "control")]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, masters=3, replicas=3) as running:
        yield running


@pytest.fixture
def rig(cluster: Cluster, upstream: ScriptedUpstream, tmp_path: Path) -> Iterator[Rig]:
    with Rig(upstream, tmp_path, redis_url=cluster.url) as running:
        before = running.pids()
        yield running
        assert running.pids() == before


def places(cluster: Cluster, node: Node) -> list[int]:
    return [slot for slot in PLACES if cluster.owner(slot) is node]


def test_f90_all_slots_of_a_node_move_key_by_key(cluster: Cluster, rig: Rig) -> None:
    viewers = rig.streams(8, chunks=200, pause_s=0.02)
    source, *others = cluster.nodes[:3]
    for number, slot in enumerate(places(cluster, source)):
        cluster.move(slot, others[number % 2])
    rig.whole(viewers)
    rig.answers_again()


def test_f90_all_slots_of_a_node_move_at_once(cluster: Cluster, rig: Rig) -> None:
    """As Valkey 9 does it."""
    viewers = rig.streams(8, chunks=200, pause_s=0.02)
    source, target, _ = cluster.nodes[:3]
    cluster.move_at_once(source, target)
    rig.whole(viewers)
    rig.answers_again()


def test_f91_a_master_is_killed(cluster: Cluster, rig: Rig) -> None:
    """Streams that speak all the while: whole, or an explicit error, never an end without one."""
    viewers = rig.streams(8, chunks=200, pause_s=0.02)
    cluster.nodes[0].kill()
    wait_until(lambda: len(cluster.masters_now()) == 3, 60, "its replica is the master")
    for viewer in viewers:
        viewer.end()
        assert not viewer.judge() or viewer.error is not None, viewer.judge()
        assert not viewer.repeated
    rig.answers_again()


def test_f92_most_masters_are_away_and_come_back(cluster: Cluster, rig: Rig) -> None:
    viewers = rig.streams(6, chunks=100, pause_s=0.02)
    away = cluster.nodes[1:]
    for node in away:
        node.pause()
    wait_until(lambda: rig.post().status_code == 503, what="nothing is accepted")
    for node in away:
        node.resume()
    wait_until(lambda: rig.post().status_code == 200, 60, "requests are accepted")
    for viewer in viewers:
        viewer.end()
        assert not viewer.judge() or viewer.error is not None, viewer.judge()
        assert not viewer.repeated
    rig.answers_again()


def test_what_a_tenant_has_is_whole_though_it_lies_in_many_cells(rig: Rig) -> None:
    """Sessions, lists, batches, files, usage: each has something in a cell and something in the control."""
    url = rig.stack.url
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        for number in range(3):
            body = {
                "model": "fake/echo",
                "messages": [{"role": "user", "content": f"turn {number}"}],
                "session_id": "s",
            }
            assert http.post("/v1/chat/completions", json=body).status_code == 200
        session = http.get("/v1/sessions/s").json()
        assert (session["turns"], session["open"]) == (3, [])
        said = [message["content"] for message in http.get("/v1/sessions/s/messages").json()["data"]]
        assert said[::2] == ["turn 0", "turn 1", "turn 2"]
        asked = {"model": "fake/echo", "messages": [{"role": "user", "content": "once"}]}
        ids = {
            http.post("/v1/chat/completions", json=asked, headers={"idempotency-key": "k"}).headers["x-stream-id"]
            for _ in range(3)
        }
        assert len(ids) == 1
        lines = [
            json.dumps({"custom_id": str(at), "method": "POST", "url": "/v1/chat/completions", "body": asked})
            for at in range(40)
        ]
        upload = {"file": ("lines.jsonl", "\n".join(lines).encode())}
        file_id = http.post("/v1/files", files=upload, data={"purpose": "batch"}).json()["id"]
        wanted = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch_id = http.post("/v1/batches", json=wanted).json()["id"]
        batch = wait_until(
            lambda: (found := http.get(f"/v1/batches/{batch_id}").json())["status"] == "completed" and found,
            60,
            "a batch",
        )
        assert batch["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
        output = http.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
        assert sorted(int(json.loads(line)["custom_id"]) for line in output) == list(range(40))
        listed = http.get("/v1/streams", params={"limit": 100}).json()["data"]
        assert [one["created_at"] for one in listed] == sorted((one["created_at"] for one in listed), reverse=True)
        (once,) = ids
        assert once in {one["id"] for one in listed}
        assert http.delete(f"/v1/streams/{once}").status_code < 300
        assert http.get(f"/v1/streams/{once}", headers={"accept": "application/json"}).status_code == 404
        used = wait_until(
            lambda: (
                (rows := http.get("/v1/usage").json()["data"]) and sum(row["requests"] for row in rows) == 44 and rows
            ),
            30,
            "all is settled",
        )
        assert {row["model"] for row in used} == {"fake/echo"}
