"""F95 to F98, clusters that are not like the others: of Redis 7, with TLS and a user of few rights, one whose replica lacks
what was said last, and one that grows."""

from __future__ import annotations

from pathlib import Path

from shared.store.cluster.cells import Cells, tags
from shared.store.cluster.slots import SLOTS, slot_of
from shared.store.redis import CELLS
from tests.harness.cluster import Cluster
from tests.harness.processes import wait_until
from tests.harness.upstream import ScriptedUpstream
from tests.support.cluster_faults import nothing_silent, places, rigged
from tests.support.server import Certificates
from tests.support.tenant import look_at_all


def test_f95_redis_7(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """Slots move key by key, and a master is killed."""
    with (
        Cluster(tmp_path, masters=3, replicas=3, kind="redis") as cluster,
        rigged(cluster, upstream, tmp_path) as rig,
    ):
        viewers = rig.streams(8, chunks=150, pause_s=0.02)
        source, target, _ = cluster.nodes[:3]
        for slot in places(cluster, source)[:8]:
            cluster.move(slot, target)
        rig.whole(viewers)
        viewers = rig.streams(8, chunks=150, pause_s=0.02)
        cluster.nodes[2].kill()
        wait_until(lambda: len(cluster.masters_now()) == 3, 60, "its replica is the master")
        nothing_silent(viewers)
        rig.answers_everywhere()


def test_f96_tls_and_a_user_of_few_rights(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """Whatever a tenant has works, also while slots are elsewhere than they were. Of Redis: the Valkey here has no TLS."""
    certificates = Certificates(tmp_path / "certificates", "localhost", "127.0.0.1")
    with (
        Cluster(tmp_path, masters=3, kind="redis", tls=certificates, user=True) as cluster,
        rigged(cluster, upstream, tmp_path) as rig,
    ):
        look_at_all(rig.stack.url)
        viewers = rig.streams(6, chunks=150, pause_s=0.02)
        source, target, _ = cluster.nodes
        for slot in places(cluster, source)[:6]:
            cluster.move(slot, target)
        rig.whole(viewers)
        rig.answers_everywhere()
        assert "NOPERM" not in "".join(rig.stack.log(name) for name in ("api", "worker", "worker-2"))
        assert "one blocking read is used" not in rig.stack.log("api")


def test_f97_a_replica_without_what_was_said_last_is_promoted(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """What the dead master had acknowledged and its replica never got: the workers write it again."""
    with Cluster(tmp_path, masters=3, replicas=3) as cluster, rigged(cluster, upstream, tmp_path) as rig:
        viewers = rig.streams(12, chunks=600, pause_s=0.02)  # for longer than it takes to cut it off
        master = cluster.owner(slot_of(tags(CELLS)[Cells(CELLS).of(viewers[0].id)].encode()))
        replica = cluster.nodes[3 + cluster.nodes.index(master)]
        cluster.cut_off(replica)
        said = [len(viewer.text) for viewer in viewers]
        wait_until(
            lambda: all(len(viewer.text) > before + 40 for viewer, before in zip(viewers, said, strict=True)),
            60,
            "all have said more than the replica knows",
        )
        master.kill()
        wait_until(lambda: replica in cluster.masters_now(), 60, "the replica is the master")
        nothing_silent(viewers)
        mended = [rig.stack.log(name).count("entries written again") for name in ("worker", "worker-2")]
        assert sum(mended) > 0, "nothing was lost: the test lost nothing"
        rig.answers_everywhere()


def test_f98_a_node_is_added(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """It takes a quarter of the slots, some key by key, under streams."""
    with Cluster(tmp_path, masters=3) as cluster, rigged(cluster, upstream, tmp_path) as rig:
        viewers = rig.streams(8, chunks=250, pause_s=0.02)
        old = cluster.nodes[:3]
        new = cluster.add()
        for slot in places(cluster, old[0])[:3]:
            cluster.move(slot, new)
        for number, node in enumerate(old[1:], 1):
            first = number * SLOTS // 3
            cluster.move_ranges(node, new, [(first, first + SLOTS // 12)])
        assert len(places(cluster, new)) > 8
        rig.whole(viewers)
        more = rig.streams(8, chunks=20)
        rig.whole(more)
        rig.answers_everywhere()
        with new.client() as client:
            assert client.dbsize() > 0
