"""A server that forgets what it acknowledged: killed before it wrote it down, or replaced by a replica that is behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.promises import Promises
from tests.support.forgetful import Follower, compiler, path_of, slow_sync
from tests.support.rig import Rig
from tests.support.upstream import ScriptedUpstream

LEASE = {"STREAMSPOOL_LEASE_S": "4"}


def killed(upstream: ScriptedUpstream, directory: Path) -> dict[str, object]:
    with slow_sync(directory, 1.0), Rig(upstream, directory, **LEASE) as rig:
        promises = Promises(rig)
        promises.until_in_the_middle()
        rig.kill_valkey()
        rig.start_valkey()
        return promises.judged()


def failed_over(upstream: ScriptedUpstream, directory: Path) -> dict[str, object]:
    with Rig(upstream, directory, **LEASE) as rig, Follower(directory / "follower", rig.valkey, 0.7) as follower:
        promises = Promises(rig)
        promises.until_in_the_middle()
        follower.promote()
        rig.proxy.refuse()  # whoever held a connection to the old one loses it
        rig.proxy.lead_to(path_of(follower.valkey))
        return promises.judged()


@pytest.mark.skipif(compiler() is None, reason="no C compiler: no disk can be made slow (apt install gcc libc6-dev)")
def test_f50_valkey_killed_before_it_wrote_down_what_it_acknowledged(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    found = killed(upstream, tmp_path)
    assert not found["wrong"], found
    assert found["mended"], "nothing was forgotten: the test shows nothing"


def test_f51_a_failover_to_a_replica_that_is_behind(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    found = failed_over(upstream, tmp_path)
    assert not found["wrong"], found
    assert found["mended"], "nothing was forgotten: the test shows nothing"
