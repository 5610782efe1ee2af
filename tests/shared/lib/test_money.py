"""Money as whole numbers."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.lib import money


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        (0, 0),
        (0.0, 0),
        (1, money.PER_DOLLAR),
        (0.1, 100_000_000_000),
        ("0.0000142", 14_200_000),
        (Decimal("3.625e-9"), 3625),
        (1.5e-12, 2),  # half to even
        (2.5e-12, 2),
        (1_000_000, money.MOST),
    ],
)
def test_dollars_are_whole_pico_dollars(value: Any, amount: int) -> None:
    assert money.from_dollars(value) == amount


@pytest.mark.parametrize(
    "value", [-1, -1e-6, float("nan"), float("inf"), "1e999", "much", "", None, True, [], {}, 1_000_001]
)
def test_what_is_no_amount(value: Any) -> None:
    assert money.from_dollars(value) is None


@given(st.integers(0, money.MOST))
def test_it_is_shown_exactly(amount: int) -> None:
    text = money.shown(amount)
    assert "e" not in text.lower()
    assert money.from_dollars(text) == amount
    assert money.shown(-amount) == (f"-{text}" if amount else text)


@given(st.integers(0, 10**15 - 1))
def test_as_a_json_number_it_is_the_amount_to_fifteen_digits(amount: int) -> None:
    assert money.from_dollars(money.to_dollars(amount)) == amount
