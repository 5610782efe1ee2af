"""What is counted by the day, which ends in the middle of a test now and then."""

from __future__ import annotations

import time

from tests.harness.processes import wait_until

_DAY_S = 86_400
_NEEDED_S = 60.0


def within_a_day() -> None:
    """Returns once this day, in UTC, lasts for as long as a test may take."""
    wait_until(lambda: _DAY_S - time.time() % _DAY_S > _NEEDED_S, 2 * _NEEDED_S, "midnight is over")
