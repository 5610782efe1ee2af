"""Amounts of money as whole numbers, so that adding them up loses nothing and two processes come to the same sum.

Hidden here: the unit, a trillionth of a US dollar ("pico-dollar"). At it a price of up to six decimals for a million tokens is
exact for each token: $0.003625 a million is 3,625 pico-dollars a token. Redis adds 64-bit numbers, so a sum may be
9.2 million dollars.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any

PER_DOLLAR = 10**12
MOST = 1_000_000 * PER_DOLLAR
"""What no single answer costs: a figure above it is no price."""


def from_dollars(value: Any) -> int | None:
    """Dollars as pico-dollars, rounded half to even; None for what is no amount: no number, negative, not finite, too large.

    A float is taken as it is written, shortest form: 0.1 is a tenth. A text may be a number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        amount = Decimal(str(value)) * PER_DOLLAR
        whole = int(amount.quantize(Decimal(1), ROUND_HALF_EVEN)) if amount.is_finite() else -1
    except InvalidOperation:
        return None
    return whole if 0 <= whole <= MOST else None


def to_dollars(amount: int) -> float:
    """As a JSON number: the nearest there is, which to 15 digits is the amount itself."""
    return amount / PER_DOLLAR


def shown(amount: int) -> str:
    """As a decimal without an exponent, exact: `0.0000142`."""
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    dollars, rest = divmod(amount, PER_DOLLAR)
    decimals = f"{rest:012d}".rstrip("0")
    return f"{sign}{dollars}.{decimals}" if decimals else f"{sign}{dollars}"
