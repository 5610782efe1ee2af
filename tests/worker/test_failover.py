"""When a missing lease is not yet the loss of a worker."""

from __future__ import annotations

import pytest

from worker.failover import FailoverHold

LEASE_S = 10.0


@pytest.fixture
def pause() -> FailoverHold:
    """Redis has answered without a break until second 100, its clock 5,000 s ahead of ours."""
    made = FailoverHold(LEASE_S, 0.5)
    for tenths in range(0, 1001, 5):
        made.answered(tenths / 10)
        made.clock(5000 + tenths / 10, tenths / 10)
    return made


def answers(pause: FailoverHold, since: float, until: float) -> None:
    """All the while."""
    for tenths in range(round(10 * since), round(10 * until), 5):
        pause.answered(tenths / 10)


def test_one_that_has_just_started_waits_for_half_a_lease() -> None:
    pause = FailoverHold(LEASE_S, 0.5)
    assert pause.holds(7.0)
    answers(pause, 7.0, 12.0)
    pause.clock(5007.0, 7.0)
    assert (pause.holds(11.9), pause.holds(12.1)) == (True, False)


def test_in_ordinary_times_a_missing_lease_is_a_lost_worker(pause: FailoverHold) -> None:
    assert not pause.holds(100.0)


def test_after_an_outage_the_others_get_a_lease_to_come_back(pause: FailoverHold) -> None:
    answers(pause, 106.0, 116.0)
    assert (pause.holds(115.9), pause.holds(116.1)) == (True, False)


def test_after_such_a_silence_it_holds_before_anything_was_answered(pause: FailoverHold) -> None:
    """What is asked next may be what ends an outage."""
    assert (pause.holds(104.9), pause.holds(105.1)) == (False, True)


def test_after_redis_clock_was_set_on_the_others_get_a_lease_to_renew_theirs(pause: FailoverHold) -> None:
    pause.clock(5190.5, 100.5)
    answers(pause, 100.5, 111.0)
    assert (pause.holds(110.4), pause.holds(110.6)) == (True, False)
    pause.clock(5201.0, 111.0)
    assert not pause.holds(111.0)


@pytest.mark.parametrize("step_s", [-90.0, -1.0, 1.0, 4.9])
def test_steps_that_end_no_lease_change_nothing(pause: FailoverHold, step_s: float) -> None:
    pause.clock(5100.5 + step_s, 100.5)
    assert not pause.holds(100.5)


def test_another_server_may_have_forgotten_who_runs_what_and_half_a_lease_is_for_saying_so(
    pause: FailoverHold,
) -> None:
    pause.server("first", 100.0)
    pause.server(None, 100.5)  # it may not be asked
    pause.server("first", 101.0)
    assert not pause.forgot(101.0)
    pause.server("second", 102.0)
    answers(pause, 102.0, 107.0)
    assert (pause.forgot(106.9), pause.forgot(107.1)) == (True, False)
    assert (pause.holds(106.9), pause.holds(107.1)) == (True, False)
    pause.server("second", 107.2)
    assert not pause.forgot(107.2)


def test_after_a_hang_of_longer_than_callers_wait_nothing_is_begun_for_a_moment(pause: FailoverHold) -> None:
    assert not pause.until_withdrawn_s(100.9)
    assert pause.until_withdrawn_s(101.4) == 0.5  # what rings has come through
    pause.answered(101.5)
    assert pause.until_withdrawn_s(101.5) == 0.5
    pause.answered(101.6)
    assert (pause.until_withdrawn_s(101.9) > 0, pause.until_withdrawn_s(102.1)) == (True, 0.0)


@pytest.mark.parametrize("gap_s", [1.1, 2, 7, 30])
def test_a_server_that_is_slow_all_the_while_has_its_jobs_begun(pause: FailoverHold, gap_s: float) -> None:
    held = []
    for number in range(1, 31):
        now = 100 + number * gap_s
        pause.answered(now)
        held.append(pause.until_withdrawn_s(now) > 0)
    assert held[0]
    assert held.count(True) <= len(held) / 2
