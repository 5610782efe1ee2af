"""What a list is made of: how many of each kind, when, how long they took, and what they cost.

Hidden here: that what one filter excludes is still counted among the values of that very filter, so that a page can show what
else could be chosen; and how wide the bars of the histogram are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from shared.features.listing.filters import Filters
from shared.features.listing.row import Row
from shared.lib import money

_VALUES = 50
"""So many values of a facet are told, those with the most first."""
_BARS = 60
_WIDTHS_S = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 10800, 21600, 43200, 86400, 604800)
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}

_OF: dict[str, Callable[[Row], str | None]] = {
    "status": lambda row: row.status,
    "model": lambda row: row.model,
    "served_by": lambda row: row.served_by,
    "provider": lambda row: row.provider,
    "source": lambda row: row.source,
    "key_id": lambda row: row.key_id,
    "session_id": lambda row: row.session_id,
    "batch_id": lambda row: row.batch_id,
    "error": lambda row: row.error_code,
    "tenant": lambda row: row.tenant,
}
FACETS = tuple(_OF)
_WITHOUT: dict[str, dict[str, Any]] = {
    "status": {"statuses": frozenset()},
    "model": {"model": None},
    "served_by": {"served_by": None},
    "provider": {"providers": frozenset()},
    "source": {"sources": frozenset()},
    "key_id": {"key_ids": frozenset()},
    "session_id": {"session_id": None},
    "batch_id": {"batch_id": None},
    "error": {"errors": frozenset()},
}


class Facets:
    """Of rows that are added one by one, matching or not."""

    def __init__(self, wanted: Filters) -> None:
        self._wanted = wanted
        self._wider = {
            name: wide for name, without in _WITHOUT.items() if (wide := replace(wanted, **without)) != wanted
        }
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in FACETS}
        self._when: list[tuple[int, str]] = []
        self._durations: list[int] = []
        self._starts: list[int] = []
        self._tokens = self._picodollars = self._unpriced = 0
        self.looked_at = 0

    def add(self, row: Row) -> None:
        self.looked_at += 1
        if not self._wanted.matches(row):
            for name, wider in self._wider.items():
                if wider.matches(row):
                    self._count(name, row)
            return
        for name in FACETS:
            self._count(name, row)
        self._when.append((row.created_at_ms, str(row.status)))
        if row.duration_ms is not None:
            self._durations.append(row.duration_ms)
            self._unpriced += row.picodollars is None
        if row.ttft_ms is not None:
            self._starts.append(row.ttft_ms)
        self._tokens += row.tokens or 0
        self._picodollars += row.picodollars or 0

    def _count(self, name: str, row: Row) -> None:
        if (value := _OF[name](row)) is not None:
            self._counts[name][str(value)] += 1

    def told(self) -> dict[str, Any]:
        """As JSON: `matched`, `facets`, `histogram`, `duration_ms`, `ttft_ms`, `tokens`, `cost_usd`, `unknown_costs`."""
        return {
            "matched": len(self._when),
            "facets": {name: _values(counts) for name, counts in self._counts.items()},
            "histogram": histogram(self._when, self._wanted.since_ms, self._wanted.until_ms),
            "duration_ms": quantiles(self._durations),
            "ttft_ms": quantiles(self._starts),
            "tokens": self._tokens,
            "cost_usd": money.to_dollars(self._picodollars),
            "unknown_costs": self._unpriced,
        }


def _values(counts: Counter[str]) -> dict[str, Any]:
    shown = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:_VALUES]
    return {"values": [{"value": value, "count": count} for value, count in shown], "more": len(counts) - len(shown)}


def histogram(when: Sequence[tuple[int, str]], since_ms: int | None, until_ms: int | None) -> dict[str, Any]:
    """How many there were when, by state, in at most some sixty bars: from the first to the last of them, or over the time that
    was asked for. Bars without any are left out."""
    if not when:
        return {"bucket_s": None, "buckets": []}
    first = since_ms if since_ms is not None else min(at for at, _ in when)
    last = until_ms if until_ms is not None else max(at for at, _ in when)
    wanted_s = max(1, (last - first) / 1000 / _BARS)
    width_s = next((width for width in _WIDTHS_S if width >= wanted_s), _WIDTHS_S[-1])
    bars: dict[int, Counter[str]] = {}
    for at, status in when:
        bars.setdefault(at // 1000 // width_s * width_s, Counter())[status] += 1
    return {
        "bucket_s": width_s,
        "buckets": [{"at": at, "count": bars[at].total(), "statuses": dict(bars[at])} for at in sorted(bars)],
    }


def quantiles(values: list[int]) -> dict[str, int | None]:
    """`count`, `p50`, `p90`, `p95`, `p99`, `max`; null without any. A quantile is one of the values: the nearest rank."""
    ordered = sorted(values)
    count = len(ordered)
    found: dict[str, int | None] = {"count": count}
    for name, share in _QUANTILES.items():
        found[name] = ordered[max(0, -(-count * int(share * 100) // 100) - 1)] if ordered else None
    return {**found, "max": ordered[-1] if ordered else None}
