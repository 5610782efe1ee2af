"""How many lines of a batch may be open: what the provider bears, and what others leave.

Pure. A window opens slowly and closes at once, like TCP's: a provider that says 429 is met with half as much, after the
time it asked for; each answer opens it a little again. Times are in seconds of any clock that only goes forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from typing import NamedTuple

LONGEST_ASKED_S = 600.0
"""A provider's Retry-After is kept to, up to here. It may be any number, and be about one model of many; to ask again costs
one refusal, and not to ask costs the batch."""
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


class Window:
    """One provider's, for one batch. `most` is what the settings allow."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._size = float(most)
        self._pause_s = _FIRST_PAUSE_S
        self._narrowed_at = float("-inf")
        self._closed_until = float("-inf")

    @property
    def size(self) -> int:
        return max(1, int(self._size))

    def room(self, opened: int, now: float) -> int:
        """How many more lines may be asked now, when so many are open."""
        return 0 if now < self._closed_until else max(0, min(self.size, self.most) - opened)

    def answered(self) -> None:
        """An answer, or a refusal that has nothing to do with how much was asked."""
        self._size = min(float(self.most), self._size + 1 / self._size)
        self._pause_s = _FIRST_PAUSE_S

    def refused(self, asked_at: float, now: float, retry_after_s: float | None) -> None:
        """Too much was asked. Lines that were on their way already when that was understood do not count again."""
        if asked_at > self._narrowed_at:
            self._size = max(1.0, self._size / 2)
            self._narrowed_at = now
            self._closed_until = max(self._closed_until, now + self._pause_s)
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        if retry_after_s:
            self._closed_until = max(self._closed_until, now + min(retry_after_s, LONGEST_ASKED_S))


class Demand(NamedTuple):
    """Whose batch, and how many lines it could have open."""

    tenant: str
    lines: int


def fair_shares(limit: int, demands: Mapping[str, Demand]) -> dict[str, int]:
    """What each batch may have open of a provider's `limit`: tenants alike, and the batches of one tenant alike.

    What one batch does not need goes to the others. Each has one at least, even if that is more than the limit.
    """
    tenants: dict[str, dict[str, int]] = {}
    for batch_id, demand in demands.items():
        tenants.setdefault(demand.tenant, {})[batch_id] = max(1, demand.lines)
    of_tenants = _level(
        limit,
        {tenant: sum(wanted.values()) for tenant, wanted in tenants.items()},
        {tenant: len(wanted) for tenant, wanted in tenants.items()},
    )
    shares: dict[str, int] = {}
    for tenant, share in of_tenants.items():
        shares |= _level(share, tenants[tenant], dict.fromkeys(tenants[tenant], 1))
    return shares


def _level(limit: int, wanted: Mapping[str, int], least: Mapping[str, int]) -> dict[str, int]:
    """Fills all alike, from the least that each must have, until the limit is used up or each has enough; the rest
    of a division goes by name."""
    shares = dict(least)
    left = limit - sum(shares.values())
    poor = [(share, name) for name, share in shares.items() if share < wanted[name]]
    heapify(poor)
    while left > 0 and poor:
        share, name = heappop(poor)
        shares[name], left = share + 1, left - 1
        if share + 1 < wanted[name]:
            heappush(poor, (share + 1, name))
    return shares
