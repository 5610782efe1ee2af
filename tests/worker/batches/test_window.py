"""How many lines may be open: fair shares, and a window that closes when a provider says so."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.batches.window import Demand, Window, fair_shares


def test_a_refusal_halves_the_window_and_closes_it_for_a_while() -> None:
    window = Window(16)
    assert window.room(10, now=0) == 6
    window.refused(asked_at=0, now=5, retry_after_s=None)
    assert (window.size, window.room(0, now=5.5), window.room(3, now=6.1)) == (8, 0, 5)


def test_what_was_on_its_way_already_does_not_count_again() -> None:
    window = Window(16)
    for _ in range(5):
        window.refused(asked_at=0, now=5, retry_after_s=None)
    assert window.size == 8
    window.refused(asked_at=6, now=7, retry_after_s=None)
    assert window.size == 4


def test_the_provider_says_how_long_to_wait() -> None:
    window = Window(4)
    window.refused(asked_at=0, now=0, retry_after_s=30)
    window.refused(asked_at=0, now=1, retry_after_s=3)
    assert (window.room(0, now=29.9), window.room(0, now=30)) == (0, 2)


def test_a_provider_that_says_a_day_does_not_cost_a_batch_its_window() -> None:
    window = Window(4)
    window.refused(asked_at=0, now=0, retry_after_s=86400)
    assert (window.room(0, now=599), window.room(0, now=600)) == (0, 2)


def test_refusals_in_a_row_close_it_longer_and_one_place_stays() -> None:
    window, now, pauses = Window(8), 0.0, []
    for _ in range(8):
        window.refused(asked_at=now, now=now, retry_after_s=None)
        start = now
        while not window.room(0, now):
            now += 0.5
        pauses.append(now - start)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert window.size == 1


def test_answers_open_it_again() -> None:
    window = Window(8)
    window.refused(asked_at=0, now=0, retry_after_s=None)
    for _ in range(100):
        window.answered()
    assert window.size == 8
    window.most = 3
    assert window.room(1, now=99) == 2


def test_tenants_share_alike_whatever_the_number_of_their_batches() -> None:
    demands = {f"a{n}": Demand("a", 100) for n in range(4)} | {"b": Demand("b", 100)}
    assert fair_shares(40, demands) == {"a0": 5, "a1": 5, "a2": 5, "a3": 5, "b": 20}


def test_what_one_does_not_need_goes_to_the_others() -> None:
    demands = {"a": Demand("a", 3), "b": Demand("b", 100), "c": Demand("c", 100)}
    assert fair_shares(43, demands) == {"a": 3, "b": 20, "c": 20}


_DEMANDS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.builds(Demand, st.sampled_from("xyz"), st.integers(0, 300)),
    min_size=1,
    max_size=12,
)


@given(st.integers(1, 500), _DEMANDS)
def test_shares_are_within_limit_and_need_and_nothing_is_left_lying(limit: int, demands: dict[str, Demand]) -> None:
    shares = fair_shares(limit, demands)
    assert shares.keys() == demands.keys()
    assert all(1 <= shares[name] <= max(1, demand.lines) for name, demand in demands.items())
    wanted = sum(max(1, demand.lines) for demand in demands.values())
    assert sum(shares.values()) == min(max(limit, len(demands)), wanted)


@given(st.integers(1, 500), _DEMANDS)
def test_every_worker_comes_to_the_same_shares(limit: int, demands: dict[str, Demand]) -> None:
    assert fair_shares(limit, demands) == fair_shares(limit, dict(reversed(demands.items())))
