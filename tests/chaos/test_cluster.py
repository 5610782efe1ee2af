"""A cluster of three masters and their replicas beneath running answers: slots move, masters die, half of it is away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.store.cluster.cells import tags
from shared.store.cluster.slots import slot_of
from shared.store.redis import CELLS
from tests.harness.cluster import Cluster, Node
from tests.harness.processes import wait_until
from tests.harness.upstream import ScriptedUpstream
from tests.support.rig import Rig
from tests.support.tenant import look_at_all

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
    rig.answers_everywhere()


def test_f90_all_slots_of_a_node_move_at_once(cluster: Cluster, rig: Rig) -> None:
    """As Valkey 9 does it."""
    viewers = rig.streams(8, chunks=200, pause_s=0.02)
    source, target, _ = cluster.nodes[:3]
    cluster.move_at_once(source, target)
    rig.whole(viewers)
    rig.answers_everywhere()


def test_f91_a_master_is_killed(cluster: Cluster, rig: Rig) -> None:
    """Streams that speak all the while: whole, or an explicit error, never an end without one."""
    viewers = rig.streams(8, chunks=200, pause_s=0.02)
    cluster.nodes[0].kill()
    wait_until(lambda: len(cluster.masters_now()) == 3, 60, "its replica is the master")
    for viewer in viewers:
        viewer.end()
        assert not viewer.judge() or viewer.error is not None, viewer.judge()
        assert not viewer.repeated
    rig.answers_everywhere()


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
    rig.answers_everywhere()


def test_what_a_tenant_has_is_whole_though_it_lies_in_many_cells(rig: Rig) -> None:
    """Each has something in a cell and something in the control."""
    look_at_all(rig.stack.url)
