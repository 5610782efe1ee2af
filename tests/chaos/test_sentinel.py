"""The master is lost or demoted, and a sentinel names another one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.processes import wait_until
from tests.harness.upstream import Pause, ScriptedUpstream
from tests.support.rig import Rig
from tests.support.sentinels import Sentinels


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Sentinels]:
    """With passwords, which matter at each new connection."""
    with Sentinels(tmp_path, passwords=True) as running:
        yield running


@pytest.fixture
def rig(sentinels: Sentinels, upstream: ScriptedUpstream, tmp_path: Path) -> Iterator[Rig]:
    with Rig(upstream, tmp_path, redis_url=sentinels.url) as running:
        before = running.pids()
        yield running
        assert running.pids() == before


@pytest.mark.parametrize("fault", ["it is killed", "it lives on, and takes no writes"])
def test_f21_there_is_another_master(sentinels: Sentinels, rig: Rig, fault: str) -> None:
    """Replication lags by what was written in the last instant, so what was said is given time to get there."""
    barrier = Pause()
    viewers = rig.streams(4, chunks=5, barrier=barrier)
    wait_until(lambda: all(viewer.says("w4 ") for viewer in viewers), what="all have said it")
    sentinels.replicated()
    if fault == "it is killed":
        sentinels.kill_master()
    else:
        sentinels.fail_over()
    barrier.go()
    rig.whole(viewers)
    rig.answers_again()


def test_f21_what_a_fail_over_loses_is_told(sentinels: Sentinels, rig: Rig) -> None:
    """Streams that speak all the while: whole, or an explicit error, never an end without one."""
    viewers = rig.streams(4, chunks=150, pause_s=0.02)
    sentinels.kill_master()
    for viewer in viewers:
        viewer.end()
        assert not viewer.judge() or viewer.error is not None, viewer.judge()
        assert not viewer.repeated
    rig.answers_again()
