"""A managed failover whose old master lives on as a replica, with all connections that led to it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.figures_redis import managed
from tests.harness.upstream import ScriptedUpstream
from tests.support.pair import Pair
from tests.support.rig import Rig


@pytest.fixture(params=["valkey", "redis"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path / "pair", request.param) as running:
        yield running


@pytest.fixture
def rig(pair: Pair, upstream: ScriptedUpstream, tmp_path: Path) -> Iterator[Rig]:
    with Rig(upstream, tmp_path, redis_url=pair.url) as running:
        before = running.pids()
        yield running
        assert running.pids() == before


def test_f55_after_a_managed_failover_the_next_request_works(pair: Pair, rig: Rig) -> None:
    """The pool is warm and every connection in it leads to what is a replica now: none of them is asked twice."""
    found = managed(rig, pair)
    assert found["refused"] == 0
    assert found["ready"] == 200
    with ThreadPoolExecutor(10) as pool:  # as many as there are connections
        assert {response.status_code for response in pool.map(lambda _: rig.post(), range(40))} == {200}
