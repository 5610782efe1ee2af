"""Workers that are killed, stopped, drained or never rung for: real processes, a real Valkey, a real provider.

Each test is a row of the fault matrix (docs/RELIABILITY.md). Times are not asserted beyond the row's own bar: the
lease is two seconds here, so a takeover takes two or three.
"""

from __future__ import annotations

import pickle
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.log.entry import VERSION
from tests.chaos.bursts import check_ledger, kill_workers_around_the_end, wait_still
from tests.chaos.tally import Tally
from tests.harness.processes import wait_until
from tests.harness.upstream import Pause, ScriptedUpstream, ending, whole, words
from tests.support.fleet import BAR_S, STOP_S, Fleet, ask
from tests.support.judge import Judges
from tests.support.names import WAITING, jobs_left, keys, wait

DIES_BEFORE_ITS_SEAL = """
import os, signal
from shared.generations.outcome import Outcomes

async def seal(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

Outcomes.seal = seal
"""


def test_f01_a_worker_killed_before_the_first_chunk_is_replaced_unseen(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream
) -> None:
    pause = Pause()
    script = upstream.script("f01", [pause, *words(3), *ending()])
    viewer = judges.post([fleet.url], ask("f01"))
    wait_until(lambda: viewer.id)
    fleet.kill(fleet.owner(viewer.id))
    killed = time.monotonic()
    pause.go()
    judges.wait()
    assert (viewer.outcome, viewer.text, viewer.attempts) == ("whole", whole(3), [])
    assert viewer.ended_at - killed < BAR_S
    found = fleet.state(viewer.id)
    assert (found["status"], found["attempts"], found["interrupted"]) == ("completed", 2, ["worker_lost"])
    assert len(script.calls) == 2
    wait_until(lambda: script.live == 0)


@pytest.mark.parametrize("asked", ["body", "header"])
def test_f02_with_restart_a_marker_and_then_the_second_attempt_only(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream, asked: str
) -> None:
    pause = Pause()
    script = upstream.script("f02", [*words(3), pause, *words(30)[4:], *ending()])
    options: dict[str, Any] = {"on_interruption": "restart"} if asked == "body" else {}
    headers = {"x-on-interruption": "restart"} if asked == "header" else {}
    openai = judges.post([fleet.url], ask("f02", **options), headers=headers)
    wait_until(lambda: openai.text == whole(3))
    native = judges.watch([fleet.url], openai.id)
    wait_until(lambda: native.text == whole(3))
    fleet.kill(fleet.owner(openai.id))
    killed = time.monotonic()
    fleet.owner(openai.id, attempt=2)
    pause.go()
    judges.wait()
    assert native.marker_at - killed < BAR_S
    assert (native.outcome, native.attempts, native.first_text, native.text) == ("whole", [2], whole(3), whole(30))
    assert (openai.outcome, openai.code, openai.text) == ("failed", "generation_interrupted", whole(3))
    late = judges.watch([fleet.url], openai.id)
    late_openai = judges.watch([fleet.url], openai.id, view="chat/completions")
    judges.wait()
    assert (late.outcome, late.text) == (late_openai.outcome, late_openai.text) == ("whole", whole(30))
    assert late_openai.attempts == []
    found = fleet.state(openai.id)
    assert (found["status"], found["attempts"], found["interrupted"]) == ("completed", 2, ["worker_lost"])
    assert fleet.stored(openai.id) == whole(30)
    assert len(script.calls) == 2


def test_f03_a_worker_killed_in_the_middle_is_an_explicit_error(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream
) -> None:
    script = upstream.script("f03", [*words(3), Pause()])
    openai = judges.post([fleet.url], ask("f03"))
    wait_until(lambda: openai.text == whole(3))
    native = judges.watch([fleet.url], openai.id)
    wait_until(lambda: native.text == whole(3))
    fleet.kill(fleet.owner(openai.id))
    killed = time.monotonic()
    judges.wait()
    for viewer in (openai, native):
        assert (viewer.outcome, viewer.code, viewer.text) == ("failed", "generation_interrupted", whole(3))
        assert viewer.ended_at - killed < BAR_S
    found = fleet.state(openai.id)
    assert (found["status"], found["error"]["code"]) == ("failed", "generation_interrupted")
    assert found["usage"]["completion_tokens"] > 0
    assert fleet.stored(openai.id) == whole(3)
    assert len(script.calls) == 1


def test_f04_killed_between_the_last_chunk_and_the_seal_is_completed_without_another_call(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream
) -> None:
    """The finish reason is written when nothing follows it, and the seal right after: hence a worker that dies by itself."""
    script = upstream.script("f04", [*words(3), *ending()])
    for name in fleet.running():
        fleet.kill(name)
    fleet.start_and_wait("worker-doomed", fault=DIES_BEFORE_ITS_SEAL)
    viewer = judges.post([fleet.url], ask("f04", on_interruption="restart"))
    wait_until(lambda: not fleet.alive("worker-doomed"))
    fleet.start_and_wait("worker")
    judges.wait()
    assert (viewer.outcome, viewer.text) == ("whole", whole(3))
    found = fleet.state(viewer.id)
    assert (found["status"], found["attempts"], found["usage_source"]) == ("completed", 1, "provider")
    assert len(script.calls) == 1


def test_f04_killed_while_many_streams_end(fleet: Fleet, upstream: ScriptedUpstream) -> None:
    """Before, between and after finish chunk, seal and settlement, as it comes."""
    tally, chance = Tally(), random.Random(1)
    for burst in range(2):
        kill_workers_around_the_end(fleet, upstream, tally, chance, burst=burst)
    wait_still(fleet)
    check_ledger(fleet, tally, fleet.states())
    assert tally.problems == []
    assert (tally.lost, tally.duplicated, tally.seen["kills"]) == (0, 0, 2)


def without_workers(fleet: Fleet) -> None:
    """Every worker is killed, and their heartbeats have run out (15 s by themselves), as have those of earlier ones."""
    for name in fleet.running():
        fleet.kill(name)
    fleet.client.delete(*fleet.client.keys("streamspool:worker:*"))
    wait_until(lambda: not fleet.answers(), what="not ready")


@pytest.fixture
def hasty(fleet: Fleet) -> Iterator[Fleet]:
    """Its API waits a second for a worker to come. Others wait longer than a busy machine takes to start one again."""
    fleet.stop("api")
    fleet.start_and_wait("api", STREAMSPOOL_NO_WORKER_S="1")
    yield fleet
    fleet.stop("api")


def test_f05_without_any_worker_the_viewers_are_told(hasty: Fleet, judges: Judges, upstream: ScriptedUpstream) -> None:
    """What waits, what was cut, and what was whole but for its seal: three ends, none of them silence."""
    fleet = hasty
    script = upstream.script("f05", [*words(3), Pause()])
    upstream.script("f05-said", [*words(3), *ending()])
    for name in fleet.running():
        fleet.kill(name)
    fleet.start_and_wait("worker-doomed", fault=DIES_BEFORE_ITS_SEAL)
    cut = judges.post([fleet.url], ask("f05"))
    wait_until(lambda: cut.text == whole(3))
    said = judges.post([fleet.url], ask("f05-said"))
    wait_until(lambda: not fleet.alive("worker-doomed"))
    without_workers(fleet)
    waiting = judges.post([fleet.url], ask("f05"))
    judges.wait()
    assert (waiting.outcome, waiting.code, waiting.text) == ("failed", "no_worker", "")
    assert (cut.outcome, cut.code, cut.text) == ("failed", "no_worker", whole(3))
    assert cut.keepalives
    assert (said.outcome, said.text) == ("whole", whole(3))
    assert fleet.state(said.id)["status"] == "completed"
    found = fleet.state(cut.id)
    assert (found["status"], found["error"]["code"], found["usage_source"]) == ("failed", "no_worker", "estimate")
    assert fleet.stored(cut.id) == whole(3)
    assert len(script.calls) == 1


def test_f06_a_request_that_kills_every_worker_ends_after_three_attempts(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream
) -> None:
    poison = upstream.script("f06", [*words(1), Pause()])
    pause = Pause()
    upstream.script("f06-other", [*words(2), pause, *ending()])
    viewer = judges.post([fleet.url], ask("f06", on_interruption="restart"))
    wait_until(lambda: viewer.id)
    native = judges.watch([fleet.url], viewer.id)
    other_id = fleet.submit("f06-other", on_interruption="restart")
    other = judges.watch([fleet.url], other_id)
    wait_until(lambda: other.text == whole(2))
    pause.go()
    for attempt in (1, 2, 3):
        owner = fleet.owner(viewer.id, attempt)
        fleet.until_said(viewer.id, 2, attempt)
        fleet.kill(owner)
        fleet.start(owner)
    judges.wait()
    assert (native.outcome, native.code, native.attempts) == ("failed", "worker_lost", [2, 3])
    found = fleet.state(viewer.id)
    assert (found["status"], found["attempts"], found["usage_source"]) == ("failed", 3, "estimate")
    assert len(poison.calls) == 3
    assert (other.outcome, other.text) == ("whole", whole(2))


def test_f07_zombie_a_stopped_worker_that_wakes_up_writes_nothing(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream
) -> None:
    pause = Pause()
    script = upstream.script("f07", [*words(2), pause, *words(50)[3:], *ending()])
    viewer = judges.post([fleet.url], ask("f07"))
    wait_until(lambda: viewer.text == whole(2))
    zombie = fleet.owner(viewer.id)
    fleet.kill(zombie, signal.SIGSTOP)
    judges.wait()
    before = fleet.entries(viewer.id)
    pause.go()
    fleet.kill(zombie, signal.SIGCONT)
    wait_until(lambda: script.live == 0, what="the zombie hangs up")
    wait_until(lambda: fleet.logged(zombie, viewer.id, "stopped"))
    assert fleet.entries(viewer.id) == before
    assert fleet.alive(zombie)
    assert (viewer.outcome, viewer.code, viewer.text) == ("failed", "generation_interrupted", whole(2))
    assert len(script.calls) == 1


def test_f07_zombie_two_attempts_hear_the_provider_and_one_is_written(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream
) -> None:
    """The stopped worker wakes up to words that wait in its socket, while its successor is at work."""
    more, rest = Pause(), Pause()
    script = upstream.script("f07-2", [*words(2), more, *words(20)[3:], rest, *words(50)[21:], *ending()])
    generation_id = fleet.submit("f07-2", on_interruption="restart")
    viewer = judges.watch([fleet.url], generation_id)
    wait_until(lambda: viewer.text == whole(2))
    zombie = fleet.owner(generation_id)
    fleet.kill(zombie, signal.SIGSTOP)
    fleet.until_said(generation_id, 3, attempt=2)
    more.go()
    fleet.until_said(generation_id, 21, attempt=2)
    fleet.kill(zombie, signal.SIGCONT)
    wait_until(lambda: fleet.logged(zombie, generation_id, "fenced"))
    wait_until(lambda: script.live == 1, what="the zombie hangs up")
    rest.go()
    judges.wait()
    assert (viewer.outcome, viewer.attempts, viewer.text) == ("whole", [2], whole(50))
    assert sum(position.startswith("1-") for position in fleet.entries(generation_id)) == 4
    assert len(script.calls) == 2
    assert fleet.alive(zombie)


def test_f08_stopped_for_less_than_its_lease_a_worker_only_pauses(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream
) -> None:
    pause = Pause()
    script = upstream.script("f08", [*words(2), pause, *words(20)[3:], *ending()])
    generation_id = fleet.submit("f08")
    viewer = judges.watch([fleet.url], generation_id)
    wait_until(lambda: viewer.text == whole(2))
    owner = fleet.owner(generation_id)
    fleet.kill(owner, signal.SIGSTOP)
    lease = keys.lease(generation_id)
    fleet.client.pexpire(lease, 10_000)  # the default lease, so that a busy machine cannot lose it
    pause.go()
    wait_until(lambda: fleet.client.pttl(lease) < 9_000, what="a second of silence")
    assert viewer.text == whole(2)
    fleet.kill(owner, signal.SIGCONT)
    judges.wait()
    assert (viewer.outcome, viewer.text, viewer.attempts) == ("whole", whole(20), [])
    assert fleet.state(generation_id)["attempts"] == 1
    assert len(script.calls) == 1


def test_f09_a_drained_worker_hands_over_at_once(fleet: Fleet, judges: Judges, upstream: ScriptedUpstream) -> None:
    """Of its two generations one has said nothing and goes on unseen; the other was cut, and says so.
    A lease that is over would lead to the same; it is not over."""
    fleet.replace_workers("worker-1st", "worker-2nd", STREAMSPOOL_LEASE_S="100")
    pause = Pause()
    script = upstream.script("f09", [pause, *words(2), *ending()])
    cut_script = upstream.script("f09-cut", [*words(2), Pause()])
    silent = fleet.submit("f09")
    name = fleet.owner(silent)
    viewer = judges.watch([fleet.url], silent)
    cut = None
    while cut is None:  # until both run in the same worker
        generation_id = fleet.submit("f09-cut")
        fleet.until_said(generation_id, 3)
        if fleet.owner(generation_id) == name:
            cut = judges.watch([fleet.url], generation_id)
        else:
            fleet.http.post(f"{fleet.url}/v1/streams/{generation_id}/cancel")
    fleet.kill(name, signal.SIGTERM)
    assert fleet.process(name).wait(STOP_S) == 0
    assert fleet.owner(silent, attempt=2) != name
    pause.go()
    judges.wait()
    assert (viewer.outcome, viewer.text) == ("whole", whole(2))
    assert len(script.calls) == 2
    assert (cut.outcome, cut.code, cut.text) == ("failed", "generation_interrupted", whole(2))
    wait_until(lambda: cut_script.live == 0)


def test_f09_rolling_workers_loses_nothing_that_ends_in_time(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream
) -> None:
    fleet.replace_workers("worker", "worker-2", STREAMSPOOL_DRAIN_S="60")  # in time is whatever a busy machine takes
    pauses = [Pause(), Pause()]
    viewers, scripts = [], []
    for turn, name in enumerate(["worker", "worker-2"]):
        scripts.append(upstream.script(f"f09-{turn}", [*words(2), pauses[turn], *words(9)[3:], *ending()]))
        started = [judges.post([fleet.url], ask(f"f09-{turn}")) for _ in range(6)]
        wait_until(lambda started=started: all(viewer.text == whole(2) for viewer in started))
        fleet.kill(name, signal.SIGTERM)
        pauses[turn].go()
        assert fleet.process(name).wait(STOP_S) == 0
        fleet.start_and_wait(name)
        viewers += started
    judges.wait()
    assert [(viewer.outcome, viewer.text) for viewer in viewers] == [("whole", whole(9))] * 12
    assert [len(script.calls) for script in scripts] == [6, 6]


SKEWED = """
import time
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + {skew}
time.time_ns = lambda: _time_ns() + {skew} * 10**9
"""


@pytest.mark.parametrize("skew", [-90, 90])
def test_f40_clocks_that_disagree_delay_and_expire_nothing(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream, skew: int
) -> None:
    """The worker's clock is wrong one way, the API's the other; then the worker dies and one in time takes over."""
    for name in fleet.running():
        fleet.stop(name)
    fleet.start("worker-skewed", fault=SKEWED.format(skew=skew))
    fleet.start("api-skewed", fault=SKEWED.format(skew=-skew))
    wait_until(lambda: fleet.up("worker-skewed") and fleet.up("api-skewed"))
    pause = Pause()
    upstream.script("f40", [*words(3), *ending()])
    upstream.script("f40-cut", [*words(3), pause, *words(9)[4:], *ending()])
    quick = judges.post([fleet.at("api-skewed")], ask("f40"))
    judges.wait(80)  # less than the clocks are apart
    assert (quick.outcome, quick.text) == ("whole", whole(3))
    assert fleet.client.ttl(keys.log(quick.id)) > 86_000
    restarted = fleet.submit("f40-cut", url=fleet.at("api-skewed"), on_interruption="restart")
    viewer = judges.watch([fleet.url], restarted)
    wait_until(lambda: viewer.text == whole(3))
    fleet.start_and_wait("worker")
    fleet.kill("worker-skewed")
    assert fleet.owner(restarted, attempt=2) == "worker"
    pause.go()
    judges.wait()
    assert (viewer.outcome, viewer.attempts, viewer.text) == ("whole", [2], whole(9))
    listed = fleet.http.get(f"{fleet.url}/v1/streams?limit=100").json()["data"]
    assert {quick.id, restarted} <= {found["id"] for found in listed}


def test_f44_requests_of_another_version(fleet: Fleet, judges: Judges, upstream: ScriptedUpstream) -> None:
    """Older ones lack fields, newer ones have more, and those of a newer log format are refused, not misread."""
    script = upstream.script("f44", [*words(2), *ending()])
    older = fleet.plant("f44")
    newer = fleet.plant("f44", v=VERSION, priority="high", on_disconnect="continue", after={"x": [1]})
    alien = fleet.plant("f44", v=VERSION + 1)
    viewers = [judges.watch([fleet.url], generation_id) for generation_id in (older, newer, alien)]
    fleet.ring(older, newer, alien)
    judges.wait()
    assert [viewer.outcome for viewer in viewers] == ["whole", "whole", "failed"]
    assert viewers[2].code == "unsupported_version"
    assert len(script.calls) == 2


def test_f44_a_job_this_worker_does_not_know_is_not_the_end_of_its_generation(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream
) -> None:
    """A newer API asked for another function: the job is thrown away, and the reaper rings for the log."""
    script = upstream.script("f44-job", [*words(2), *ending()])
    generation_id = fleet.plant("f44-job")
    viewer = judges.watch([fleet.url], generation_id)
    job = b'{"t":null,"f":"generate_v9","a":["%b"],"k":{},"et":1}' % generation_id.encode()
    fleet.client.set(keys.job(generation_id), job, ex=60)
    wait(fleet.client, {generation_id: 1})
    judges.wait()
    assert (viewer.outcome, viewer.text) == ("whole", whole(2))
    assert len(script.calls) == 1


def test_a_pickled_job_is_never_unpickled(fleet: Fleet, tmp_path: Path) -> None:
    proof = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (proof,)

    fleet.client.set(keys.job("bomb"), pickle.dumps({"f": Bomb(), "a": (), "k": {}, "t": None, "et": 1}), ex=60)
    wait(fleet.client, {"bomb": 1})
    fleet.client.publish(keys.doorbell, "bomb")
    wait_until(lambda: fleet.client.zscore(WAITING, "bomb") is None, what="the job is thrown away")
    assert not proof.exists()
    assert fleet.alive("worker")


def test_the_queue_keeps_nothing_of_a_finished_generation(fleet: Fleet, upstream: ScriptedUpstream) -> None:
    upstream.script("tidy", [*words(1), *ending()])
    fleet.ended(fleet.submit("tidy"))
    wait_until(lambda: not jobs_left(fleet.client), what="its keys are gone")
