"""Fixtures of the tests that break things: processes that a whole file shares, and finds mended before each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.upstream import Pause, ScriptedUpstream
from tests.support.fleet import Fleet
from tests.support.judge import Judges
from tests.support.rig import Rig

LONGEST_S = 300
"""Of a test that says nothing else: it starts processes, and waits for several things one after the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LONGEST_S))


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedUpstream]:
    """One of the file's own: no other file has left it a script."""
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest,
    valkey: EmbeddedValkey,
    upstream: ScriptedUpstream,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    """Two workers and an API, with the SETTINGS of the file."""
    settings = getattr(request.module, "SETTINGS", {})
    with Fleet(valkey, upstream, tmp_path_factory.mktemp("fleet"), **settings) as fleet:
        yield fleet


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    """What a test holds ends with it, also where it failed: the next one's would wait behind it for a place."""
    yield
    Pause.all_go()


@pytest.fixture
def fleet(request: pytest.FixtureRequest, running: Fleet) -> Fleet:
    """All of it alive, and with it the PROCESSES that the file names."""
    running.heal(*getattr(request.module, "PROCESSES", ()))
    return running


@pytest.fixture
def judges(request: pytest.FixtureRequest) -> Iterator[Judges]:
    """Viewers, with the API_KEY of the file if it has one."""
    with Judges(getattr(request.module, "API_KEY", None)) as found:
        yield found


@pytest.fixture(scope="module")
def shared_rig(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(upstream, tmp_path_factory.mktemp("rig")) as running:
        yield running


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    """The same processes for every test of a file: none may end, whatever Redis does or says."""
    before = shared_rig.pids()
    yield shared_rig
    shared_rig.proxy.heal()
    assert shared_rig.pids() == before
    shared_rig.answers_again()
