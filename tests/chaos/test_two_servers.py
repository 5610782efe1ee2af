"""F93, F94: logs on one server, the queue and the rest on another, and one of them is killed and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import kill_valkey, wait_until
from tests.harness.upstream import Pause, Script, ScriptedUpstream, chunk, ending, whole, words
from tests.support.rig import LEASE_S, Rig, Viewer

PLACES = 8
WATCHED = 4
MANY = 24


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "logs") as server:
        yield server


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "queue") as server:
        yield server


@pytest.fixture
def rig(logs: EmbeddedValkey, queue: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path) -> Iterator[Rig]:
    settings = {"STREAMSPOOL_QUEUE_URL": queue.url, "STREAMSPOOL_WORKER_CONCURRENCY": str(PLACES // 2)}
    with Rig(upstream, tmp_path, redis_url=logs.url, **settings) as running:
        before = running.pids()
        yield running
        assert running.pids() == before


def checks(rig: Rig) -> dict[str, str]:
    found: dict[str, str] = httpx.get(f"{rig.stack.url}/readyz", timeout=60, trust_env=False).json()["checks"]
    return found


def accepted(rig: Rig, release: Pause) -> tuple[list[str], Script]:
    """More than there are places for: some of them speak, and stop before their last words, and the rest waits."""
    role, *said = words(5)
    script = rig.upstream.script("held", [role, *said, release, chunk({"content": "the end"}), *ending()])
    answers = [rig.post("scripted/held", background=True) for _ in range(MANY)]
    assert {one.status_code for one in answers} == {202}, answers[0].text
    wait_until(lambda: len(script.calls) == PLACES - WATCHED, what="every place is taken")
    return [one.json()["id"] for one in answers], script


def speaking(rig: Rig, go_on: Pause) -> list[Viewer]:
    """Streams that have begun to, and go on when they may, for some seconds."""
    role, *said = words(200)
    parts: list[bytes | float | Pause] = [role, *said[:5], go_on]
    for piece in said[5:]:
        parts += [piece, 0.02]
    viewers = [rig.watch([*parts, *ending()], whole(200)) for _ in range(WATCHED)]
    wait_until(lambda: all(viewer.says("w4 ") for viewer in viewers), what="all streams speak")
    return viewers


def until_refused(rig: Rig) -> list[str]:
    """Asks until that is refused. Returns what was accepted before: in its first second an API knows the models, and needs the
    logs' server alone."""
    late = []

    def refused() -> bool:
        response = rig.post(background=True)
        if response.status_code == 202:
            late.append(response.json()["id"])
        return response.status_code == 503

    wait_until(refused, what="nothing is accepted")
    return late


def all_end(rig: Rig, ids: list[str]) -> None:
    for one in ids:
        found = wait_until(
            lambda one=one: (state := rig.state(one))["status"] not in ("queued", "in_progress") and state,
            90,
            "every accepted answer ends",
        )
        assert found["status"] == "completed", found


def start(server: EmbeddedValkey) -> None:
    server.launch()
    server.wait_ready()


def test_f93_the_server_of_the_queue_is_killed_and_comes_back(rig: Rig, queue: EmbeddedValkey) -> None:
    """What runs is said on, and ends, though it is away for longer than a lease; what waits is begun when it is back."""
    barrier, release = Pause(), Pause()
    viewers = rig.streams(WATCHED, chunks=20, barrier=barrier)
    ids, script = accepted(rig, release)
    kill_valkey(queue)
    late = until_refused(rig)
    told = checks(rig)
    assert (told["redis"], told["queue"], told["serve"]) == ("ok", "storage_unavailable", "storage_unavailable")
    barrier.go()
    for viewer in viewers:
        assert not viewer.end().judge()
    time.sleep(1.5 * LEASE_S)
    start(queue)
    release.go()
    rig.whole(viewers)
    all_end(rig, [*ids, *late])
    assert len(script.calls) == MANY
    rig.answers_again()


def test_f94_the_server_of_the_logs_is_killed_and_comes_back(rig: Rig, logs: EmbeddedValkey) -> None:
    """Beneath streams that speak all the while: what it forgot is written again."""
    release, go_on = Pause(), Pause()
    viewers = speaking(rig, go_on)
    ids, script = accepted(rig, release)
    go_on.go()
    wait_until(lambda: all(viewer.says("w9 ") for viewer in viewers), what="they speak")
    kill_valkey(logs)
    late = until_refused(rig)
    told = checks(rig)
    assert (told["redis"], told["queue"]) == ("storage_unavailable", "ok")
    start(logs)
    release.go()
    rig.whole(viewers)
    all_end(rig, [*ids, *late])
    assert len(script.calls) == MANY
    rig.answers_again()
