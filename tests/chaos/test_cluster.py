"""A cluster of three masters and their replicas beneath running answers: slots move, masters die, half of it is away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.cluster import Cluster
from tests.harness.upstream import ScriptedUpstream
from tests.support.cluster_faults import (
    a_master_is_killed,
    all_slots_move_at_once,
    all_slots_move_key_by_key,
    most_masters_are_away,
    nothing_silent,
    rigged,
)
from tests.support.rig import Rig
from tests.support.tenant import look_at_all


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, masters=3, replicas=3) as running:
        yield running


@pytest.fixture
def rig(cluster: Cluster, upstream: ScriptedUpstream, tmp_path: Path) -> Iterator[Rig]:
    with rigged(cluster, upstream, tmp_path) as running:
        yield running


def test_f90_all_slots_of_a_node_move_key_by_key(cluster: Cluster, rig: Rig) -> None:
    rig.whole(all_slots_move_key_by_key(cluster, rig))
    rig.answers_everywhere()


def test_f90_all_slots_of_a_node_move_at_once(cluster: Cluster, rig: Rig) -> None:
    rig.whole(all_slots_move_at_once(cluster, rig))
    rig.answers_everywhere()


def test_f91_a_master_is_killed(cluster: Cluster, rig: Rig) -> None:
    """Streams that speak all the while: whole, or an explicit error, never an end without one."""
    nothing_silent(a_master_is_killed(cluster, rig))
    rig.answers_everywhere()


def test_f92_most_masters_are_away_and_come_back(cluster: Cluster, rig: Rig) -> None:
    nothing_silent(most_masters_are_away(cluster, rig))
    rig.answers_everywhere()


def test_what_a_tenant_has_is_whole_though_it_lies_in_many_cells(rig: Rig) -> None:
    """Each has something in a cell and something in the control."""
    look_at_all(rig.stack.url)
