"""Fixtures of all tiers: a real Valkey, a scripted provider, the two ends as real processes; and what must not be left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack
from tests.harness.store import open_store
from tests.harness.upstream import ScriptedUpstream
from tests.support.names import keys

FORBID_SKIPS = os.environ.get("FORBID_SKIPS") == "1"

# How long an example takes says how busy the machine is, and how many are of no use is chance.
hypothesis_settings.register_profile(
    "busy",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
hypothesis_settings.load_profile("busy")


def pytest_configure() -> None:
    """Ctrl-C reaches the processes of tests, too, when the run is one that a shell has put into the background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Under nohup; who starts processes anew on it leaves it ignored, too.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """CI installs everything, so a skipped test there is a test that did not run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if FORBID_SKIPS and reporter and reporter.stats.get("skipped") and session.exitstatus == 0:
        session.exitstatus = 1


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """One real Valkey for each test process, ended with it."""
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def upstream() -> Iterator[ScriptedUpstream]:
    """A provider on loopback that says, byte for byte, what a test tells it to."""
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="session")
def stack(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """API and worker as real processes, with `fake/…` and `scripted/…` models and no keys. Shared: leave it running."""
    with Stack(valkey.url, upstream.base_url, tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture
def own_stack(valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path) -> Iterator[Stack]:
    """A stack of the test's own, on a database of its own, to be killed, stopped and started at will."""
    url = valkey.url.replace("db=0", "db=3")
    client = open_store(url)
    client.flushdb()
    with Stack(url, upstream.base_url, tmp_path) as running:
        yield running
    client.flushdb()
    client.close()


@pytest.fixture(autouse=True)
def no_key_without_end(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every key a test leaves behind has a TTL, or is on the permanent list."""
    yield
    if "valkey" not in request.fixturenames:
        return
    server: EmbeddedValkey = request.getfixturevalue("valkey")
    if not server.is_running():
        return
    # What still runs on a shared stack may be between a key and its TTL just now.
    immortal = _without_end(server)
    deadline = time.monotonic() + 10
    while immortal and time.monotonic() < deadline:
        time.sleep(0.1)
        immortal &= _without_end(server)
    assert not immortal, f"keys without a TTL: {sorted(immortal)[:5]}"


def _without_end(server: EmbeddedValkey) -> set[tuple[int, str]]:
    found = set()
    for database in range(4):
        with open_store(server.url.replace("db=0", f"db={database}")) as client:
            for key in client.scan_iter(count=1000):
                if client.ttl(key) == -1 and not keys.is_permanent(key.decode()):
                    found.add((database, key.decode()))
    return found
