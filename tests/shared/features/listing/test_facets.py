"""What a list is made of, counted from rows."""

from __future__ import annotations

from typing import Any

from shared.features.listing.facets import Facets, histogram, quantiles
from shared.features.listing.filters import Filters
from shared.log.entry import Status
from tests.shared.features.listing.test_filters import made


def values(told: dict[str, Any], facet: str) -> dict[str, int]:
    return {one["value"]: one["count"] for one in told["facets"][facet]["values"]}


def test_each_value_is_counted_and_so_is_what_else_a_filter_could_have_let_in() -> None:
    facets = Facets(Filters(statuses=frozenset({Status.FAILED}), sources=frozenset({"chat"})))
    for status, source in (("failed", "chat"), ("failed", "batch"), ("completed", "chat"), ("completed", "batch")):
        facets.add(made(status=Status(status), source=source, error_code="x" if status == "failed" else None))
    told = facets.told()
    assert (facets.looked_at, told["matched"]) == (4, 1)
    assert values(told, "status") == {"failed": 1, "completed": 1}  # of those from a chat
    assert values(told, "source") == {"chat": 1, "batch": 1}  # of those that failed
    assert values(told, "error") == {"x": 1}
    assert values(told, "model") == {"fast": 1}
    assert values(told, "batch_id") == {}


def test_the_most_frequent_values_come_first_and_the_rest_is_counted() -> None:
    facets = Facets(Filters())
    for number in range(60):
        facets.add(made(model=f"m{number:02}"))
    facets.add(made(model="m59"))
    told = facets.told()["facets"]["model"]
    assert told["values"][0] == {"value": "m59", "count": 2}
    assert (len(told["values"]), told["more"]) == (50, 10)


def test_sums_and_quantiles_are_of_what_matches() -> None:
    facets = Facets(Filters(model="fast"))
    for duration_ms in (10, 20, 30, 40):
        facets.add(made(duration_ms=duration_ms, tokens=5, picodollars=10**12))
    facets.add(made(picodollars=None, tokens=None, duration_ms=50))
    facets.add(made(duration_ms=None, ttft_ms=None, picodollars=None, tokens=None, status=Status.IN_PROGRESS))
    facets.add(made(model="slow", duration_ms=10**6, tokens=99))
    told = facets.told()
    assert told["duration_ms"] == {"count": 5, "p50": 30, "p90": 50, "p95": 50, "p99": 50, "max": 50}
    assert told["ttft_ms"]["count"] == 5
    assert (told["tokens"], told["cost_usd"], told["unknown_costs"]) == (20, 4.0, 1)


def test_quantiles_of_nothing_and_of_many() -> None:
    assert quantiles([]) == {"count": 0, "p50": None, "p90": None, "p95": None, "p99": None, "max": None}
    assert quantiles(list(range(1, 101))) == {"count": 100, "p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}


def test_the_histogram_fits_the_time_it_is_about() -> None:
    assert histogram([], None, None) == {"bucket_s": None, "buckets": []}
    when = [(1_000_000, "completed"), (1_000_500, "failed"), (1_059_000, "completed")]
    told = histogram(when, None, None)
    assert told["bucket_s"] == 1
    assert told["buckets"] == [
        {"at": 1000, "count": 2, "statuses": {"completed": 1, "failed": 1}},
        {"at": 1059, "count": 1, "statuses": {"completed": 1}},
    ]
    day = histogram(when, 0, 86_400_000)
    assert (day["bucket_s"], [one["at"] for one in day["buckets"]]) == (1800, [0])
    assert histogram([(0, "failed"), (10**12, "failed")], None, None)["bucket_s"] == 604800
