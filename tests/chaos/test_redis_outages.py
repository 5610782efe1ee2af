"""Redis is away: stopped, killed, cut off, half-open or paused, for less and for more than a lease."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.harness.processes import wait_until
from tests.harness.upstream import Pause
from tests.support.names import jobs_left, keys
from tests.support.rig import LEASE_S, Rig
from tests.support.tracked import bells, readers


@contextmanager
def calm(rig: Rig) -> Iterator[None]:
    """No part of any process says more than about one line a second."""
    before, began = rig.log_lines(), time.monotonic()
    yield
    seconds = time.monotonic() - began
    for name, count in rig.log_lines().items():
        assert count - before[name] < 40 + 6 * seconds, rig.stack.log(name)[-3000:]


def away(rig: Rig, seconds: float, leave: Callable[[], object], come_back: Callable[[], object]) -> None:
    """An outage of this length in the middle of streams, all of which come through whole."""
    barrier = Pause()
    viewers = rig.streams(8, chunks=30, barrier=barrier)
    with calm(rig):
        leave()
        time.sleep(seconds)
        barrier.go()
        come_back()
        rig.whole(viewers)


def test_f13_redis_shut_down_and_started_again(rig: Rig) -> None:
    def shut_down() -> None:
        rig.redis.shutdown(save=False)
        wait_until(lambda: not rig.valkey.is_running())

    away(rig, 0.5, shut_down, rig.start_valkey)


def test_f14_redis_killed_and_started_again(rig: Rig) -> None:
    away(rig, 0.5, rig.kill_valkey, rig.start_valkey)


def test_f15_redis_away_is_told_at_once_and_nothing_runs_later(rig: Rig) -> None:
    barrier = Pause()
    refused = rig.upstream.script("refused", [])
    viewers = rig.streams(4, chunks=10, barrier=barrier)
    rig.proxy.refuse()
    asked = time.monotonic()
    response = rig.post("scripted/refused")
    assert time.monotonic() - asked < 15  # the row says 2 s; machines of a CI have other things to do
    assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_unavailable")
    assert response.headers["retry-after"]
    assert not rig.ready()
    before = [viewer.keepalives for viewer in viewers]
    wait_until(lambda: all(v.keepalives > b for v, b in zip(viewers, before, strict=True)), what="keep-alives")
    rig.proxy.heal()
    barrier.go()
    rig.whole(viewers)
    assert not refused.calls


def test_f16_redis_away_for_longer_than_the_lease(rig: Rig) -> None:
    """The leases of all running answers have lapsed when it is back, and two workers see them."""
    away(rig, 2.5 * LEASE_S, rig.proxy.refuse, rig.proxy.heal)


def test_f16_redis_stopped_for_longer_than_the_lease(rig: Rig) -> None:
    away(rig, 2 * LEASE_S, rig.kill_valkey, rig.start_valkey)


def test_f17_redis_half_open(rig: Rig) -> None:
    away(rig, 2.5 * LEASE_S, rig.proxy.hold, rig.proxy.heal)


def test_f17_redis_paused(rig: Rig) -> None:
    away(rig, 0, lambda: rig.redis.client_pause(int(1500 * LEASE_S)), lambda: None)


def test_f17_a_request_that_was_refused_while_redis_hung_never_runs(rig: Rig) -> None:
    """Redis gets the request late, when its caller has long been told that it was not taken."""
    script = rig.upstream.script("late", [])
    rig.redis.client_pause(10_000)  # well over the 2 s that it is waited for
    response = rig.post("scripted/late")
    assert response.status_code == 503
    wait_until(lambda: rig.redis.zcard("streamspool:open") == 0, what="nothing is open")
    rig.answers_again()
    wait_until(lambda: "revoked" in rig.stack.log("api") or not jobs_left(rig.redis), what="revoked")
    assert not script.calls


def test_f78_the_connections_by_which_logs_are_followed_are_killed_again_and_again(rig: Rig) -> None:
    """One of them is told what has news, the other one reads it; neither is told when the other one ends."""
    viewers = rig.streams(8, chunks=120)
    kills = [0, 0]
    while not all(viewer.watching is not None and viewer.watching.done() for viewer in viewers):
        which = sum(kills) % 2
        for number in (readers, bells)[which](rig.redis):
            kills[which] += rig.redis.client_kill_filter(_id=number)
        time.sleep(0.2)
    assert min(kills) > 3
    rig.whole(viewers)


def test_f17_connections_that_died_without_a_word(rig: Rig) -> None:
    """Nothing is asked on the doorbell's connection, so nothing would ever be missed on it."""
    barrier = Pause()
    viewers = rig.streams(4, chunks=10, barrier=barrier)
    before = {name: rig.stack.log(name).count('"doorbell"') for name in ("worker", "worker-2")}
    rig.proxy.forget()
    barrier.go()
    rig.whole(viewers)
    for name, count in before.items():
        wait_until(lambda name=name, count=count: rig.stack.log(name).count('"doorbell"') > count, what=f"{name} asks")
    wait_until(lambda: rig.redis.pubsub_numsub(keys.doorbell)[0][1] >= 2, what="the workers listen again")
