"""What the ledger counts of a generation, and how such counts are shown.

Hidden here: that a count has a name of one letter where it is stored, since it is stored so often; and that times are kept as
histograms, which can be added up. They are OpenTelemetry's exponential histograms of scale 2: four buckets for each doubling,
so that a percentile is within 9 % of the true one, and 120 buckets reach from a millisecond to a year.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from shared.lib import money
from shared.log.records import Header, Outcome

Counts = Counter[str]
"""How much of each figure, by its stored name. They add up."""

_CODES = {
    "requests": "n",
    "completed_requests": "c",
    "incomplete_requests": "i",
    "failed_requests": "f",
    "cancelled_requests": "x",
    "prompt_tokens": "p",
    "cached_tokens": "h",
    "completion_tokens": "o",
    "reasoning_tokens": "r",
    "total_tokens": "t",
    "provider_requests": "P",
    "tokenizer_requests": "T",
    "estimate_requests": "E",
}
FIGURES = tuple(_CODES)
"""What is counted, by the name that it is shown under. The last three: how many usages came from which source."""
_COST, _UNKNOWN = "$", "u"
_PRICED, _FIRST, _WHOLE = "s:", "1:", "2:"
"""Begin the names of: requests by the source of their price; the histogram of the first token; that of the whole."""
_USED = (
    ("prompt_tokens", None),
    ("completion_tokens", None),
    ("total_tokens", None),
    ("cached_tokens", "prompt_tokens_details"),
    ("reasoning_tokens", "completion_tokens_details"),
)
"""What is counted of usage, and in which part of it that stands."""
_PERCENTILES = (50, 90, 99)
_PER_DOUBLING, _MOST_BUCKETS = 4, 120


def counted(header: Header, outcome: Outcome) -> Counts:
    """What one generation adds."""
    used = outcome.get("usage") or {}
    counts: Counts = Counter()
    counts["n"] = counts[_CODES[f"{outcome['status']}_requests"]] = 1
    for name, part in _USED:  # a provider may send anything; a ledger adds whole numbers
        figures = used if part is None else used.get(part)
        value = figures.get(name) if isinstance(figures, dict) else None
        if isinstance(value, int | float) and 0 < value < 2**53 and int(value):
            counts[_CODES[name]] = int(value)
    if source := outcome.get("usage_source"):
        counts[_CODES[f"{source}_requests"]] = 1
    cost = outcome.get("cost")
    amount = cost["picodollars"] if cost else None
    if cost is None or amount is None:
        counts[_UNKNOWN] = 1
    else:
        if amount:
            counts[_COST] = amount
        counts[f"{_PRICED}{' '.join(filter(None, (cost['source'], cost.get('version'))))}"] = 1
    created, ended, spoke = header.get("created_at_ms"), outcome["ended_at_ms"], outcome.get("spoke_at_ms")
    if created is not None:
        counts[f"{_WHOLE}{bucket(ended - created)}"] = 1
        if spoke is not None:
            counts[f"{_FIRST}{bucket(spoke - created)}"] = 1
    return counts


def older(fields: Mapping[str, int]) -> Counts:
    """Counts of the ledger as it was before it knew of prices and times: by the names they are shown under."""
    counts = Counter({_CODES[name]: number for name, number in fields.items() if name in _CODES})
    counts[_UNKNOWN] = counts["n"]
    return counts


def shown(counts: Mapping[str, int]) -> dict[str, Any]:
    """As the API tells them: `FIGURES`; `cost_usd` of the requests whose cost is known, null where that is none, and
    `unknown_costs`, how many more there are; `first_token_ms` and `duration_ms` as percentiles; `priced_by`."""
    unknown, requests = counts.get(_UNKNOWN, 0), counts.get("n", 0)
    is_known = requests == 0 or unknown < requests
    return {
        **{name: counts.get(code, 0) for name, code in _CODES.items()},
        "cost_usd": money.to_dollars(counts.get(_COST, 0)) if is_known else None,
        "unknown_costs": unknown,
        "first_token_ms": percentiles(counts, _FIRST),
        "duration_ms": percentiles(counts, _WHOLE),
        "priced_by": {
            name[len(_PRICED) :]: number for name, number in sorted(counts.items()) if name.startswith(_PRICED)
        },
    }


def added(many: Iterable[Mapping[str, int]]) -> Counts:
    total: Counts = Counter()
    for one in many:
        total.update(one)
    return total


def bucket(ms: int) -> int:
    """Of the histograms: 0 is below a millisecond, and each is a fourth of a doubling wide."""
    return 0 if ms < 1 else min(1 + math.floor(_PER_DOUBLING * math.log2(ms)), _MOST_BUCKETS)


def percentiles(counts: Mapping[str, int], prefix: str) -> dict[str, int] | None:
    """`{p50, p90, p99}` in ms, each the middle of its bucket; None where nothing was timed."""
    found = sorted((int(name[len(prefix) :]), number) for name, number in counts.items() if name.startswith(prefix))
    total = sum(number for _, number in found)
    if not total:
        return None
    answer = {}
    for percent in _PERCENTILES:
        left = math.ceil(total * percent / 100)
        for place, number in found:
            left -= number
            if left <= 0:
                answer[f"p{percent}"] = round(2 ** ((place - 0.5) / _PER_DOUBLING)) if place else 0
                break
    return answer
