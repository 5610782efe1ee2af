"""What the ledger counts of a generation, and that what is counted can be added up."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.features.spend import figures
from tests.harness.records import header_with, outcome_with

HEADER = header_with({"id": "chatcmpl-1", "owner": "ann", "model": "smart", "created_at_ms": 1_795_340_525_000})


def outcome(**fields: Any) -> Any:
    return outcome_with({"status": "completed", "ended_at_ms": 1_795_340_527_304, "usage": {}, **fields})


def test_all_of_a_generation() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    cost = {"picodollars": 14_200_000, "source": "settings", "version": "abc", "price": {"input": "1"}}
    ended = outcome(usage=usage, usage_source="provider", cost=cost, spoke_at_ms=1_795_340_525_500)
    shown = figures.shown(figures.counted(HEADER, ended))
    assert {name: number for name, number in shown.items() if number} == {
        "requests": 1,
        "completed_requests": 1,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "cached_tokens": 4,
        "reasoning_tokens": 3,
        "provider_requests": 1,
        "cost_usd": 0.0000142,
        "first_token_ms": dict.fromkeys(("p50", "p90", "p99"), shown["first_token_ms"]["p50"]),
        "duration_ms": dict.fromkeys(("p50", "p90", "p99"), shown["duration_ms"]["p50"]),
        "priced_by": {"settings abc": 1},
    }
    assert shown["first_token_ms"]["p50"] == pytest.approx(500, rel=0.1)
    assert shown["duration_ms"]["p50"] == pytest.approx(2304, rel=0.1)


@pytest.mark.parametrize("cost", [None, {"picodollars": None, "source": "unknown"}])
def test_unknown_is_counted_and_is_not_nothing(cost: Any) -> None:
    unknown = figures.counted(HEADER, outcome(**({"cost": cost} if cost else {})))
    assert (figures.shown(unknown)["cost_usd"], figures.shown(unknown)["unknown_costs"]) == (None, 1)
    free = figures.counted(HEADER, outcome(cost={"picodollars": 0, "source": "settings"}))
    assert (figures.shown(free)["cost_usd"], figures.shown(free)["unknown_costs"]) == (0, 0)
    both = figures.shown(figures.added([unknown, free]))
    assert (both["cost_usd"], both["unknown_costs"], both["requests"]) == (0, 1, 2)
    assert figures.shown(Counter())["cost_usd"] == 0


@given(
    st.recursive(st.none() | st.floats() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_a_providers_usage_may_be_anything(value: Any) -> None:
    usage = {"prompt_tokens": value, "prompt_tokens_details": value}
    counts = figures.counted(HEADER, outcome(usage=usage, usage_source="provider"))
    assert all(0 < number < 2**53 for number in counts.values())


@given(st.integers(1, 2**28))
def test_a_bucket_is_within_nine_percent(ms: int) -> None:
    name = f"2:{figures.bucket(ms)}"
    shown = figures.percentiles({name: 1}, "2:")
    assert shown is not None
    assert abs(shown["p50"] - ms) <= 0.0906 * ms + 1


@pytest.mark.parametrize("ms", [-5, 0, 2**29, 10**15])
def test_times_that_are_none_have_a_bucket_too(ms: int) -> None:
    assert 0 <= figures.bucket(ms) <= 120


def test_percentiles_of_many_that_were_counted_apart() -> None:
    chance = random.Random(7)
    times = [int(chance.lognormvariate(7, 1)) for _ in range(5000)]
    parts = [Counter(f"1:{figures.bucket(ms)}" for ms in times[at::7]) for at in range(7)]
    shown = figures.percentiles(figures.added(parts), "1:")
    assert shown is not None
    for percent in (50, 90, 99):
        exact = sorted(times)[math.ceil(len(times) * percent / 100) - 1]
        assert shown[f"p{percent}"] == pytest.approx(exact, rel=0.0906, abs=1)


def test_what_an_older_ledger_knew_nothing_of_is_unknown() -> None:
    shown = figures.shown(figures.older({"requests": 3, "prompt_tokens": 9, "new_figure": 1}))
    assert (shown["requests"], shown["prompt_tokens"], shown["cost_usd"], shown["unknown_costs"]) == (3, 9, None, 3)
    assert (shown["first_token_ms"], shown["duration_ms"]) == (None, None)
