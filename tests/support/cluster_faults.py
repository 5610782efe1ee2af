"""What happens to a cluster of three masters and their replicas while streams speak (F90 to F92), and what viewers may see.

A fault begins streams, is over when the cluster has its masters again, and returns the viewers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shared.store.cluster.cells import tags
from shared.store.cluster.slots import slot_of
from shared.store.redis import CELLS
from tests.harness.cluster import Cluster, Node
from tests.harness.processes import wait_until
from tests.harness.upstream import ScriptedUpstream
from tests.support.rig import Rig, Viewer

PLACES = [slot_of(tag.encode()) for tag in (*tags(CELLS), "control")]


@contextmanager
def rigged(cluster: Cluster, upstream: ScriptedUpstream, directory: Path) -> Iterator[Rig]:
    """A system on it, whose processes survive."""
    with Rig(upstream, directory, redis_url=cluster.url) as rig:
        before = rig.pids()
        yield rig
        assert rig.pids() == before


def places(cluster: Cluster, node: Node) -> list[int]:
    return [slot for slot in PLACES if cluster.owner(slot) is node]


def nothing_silent(viewers: Sequence[Viewer]) -> None:
    """Each is whole, or ended with an error; none was told anything twice."""
    for viewer in viewers:
        viewer.end()
        assert not viewer.judge() or viewer.error is not None, viewer.judge()
        assert not viewer.repeated


def all_slots_move_key_by_key(cluster: Cluster, rig: Rig) -> list[Viewer]:
    viewers = rig.streams(8, chunks=200, pause_s=0.02)
    source, *others = cluster.nodes[:3]
    for number, slot in enumerate(places(cluster, source)):
        cluster.move(slot, others[number % 2])
    return viewers


def all_slots_move_at_once(cluster: Cluster, rig: Rig) -> list[Viewer]:
    """As Valkey 9 does it."""
    viewers = rig.streams(8, chunks=200, pause_s=0.02)
    source, target, _ = cluster.nodes[:3]
    cluster.move_at_once(source, target)
    return viewers


def a_master_is_killed(cluster: Cluster, rig: Rig) -> list[Viewer]:
    viewers = rig.streams(8, chunks=200, pause_s=0.02)
    cluster.nodes[0].kill()
    wait_until(lambda: len(cluster.masters_now()) == 3, 60, "its replica is the master")
    return viewers


def most_masters_are_away(cluster: Cluster, rig: Rig) -> list[Viewer]:
    viewers = rig.streams(6, chunks=100, pause_s=0.02)
    away = cluster.nodes[1:]
    for node in away:
        node.pause()
    wait_until(lambda: rig.post(background=True).status_code == 503, what="nothing is accepted")
    for node in away:
        node.resume()
    wait_until(lambda: rig.post().status_code == 200, 60, "requests are accepted")
    return viewers
