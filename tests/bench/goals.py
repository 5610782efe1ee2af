"""The goals, as data: which figure of which measurement, how many times whose. Pure.

A goal is reached by a ratio to a peer in the same run, or by a figure as such. Without that peer there is no verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Results = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Measurement, target, figure."""
Verdict = Literal["better", "reached", "missed", "unknown"]
"""`better` is what we reach for, `reached` what must be; `unknown`: not measured, or its peer was not."""

OURS, DIRECT = "ours", "direct"


@dataclass(frozen=True)
class Limit:
    """Our figure must be at most (or at least) `times` that of the `peer`; without a peer, at most that many."""

    times: float
    peer: str = ""


@dataclass(frozen=True)
class Goal:
    """One row. `less` says that small figures are good. `added` takes the provider's own figure off first, everywhere."""

    number: str
    what: str
    measure: str
    figure: str
    unit: str
    must: tuple[Limit, ...]
    wish: tuple[Limit, ...] = ()
    less: bool = True
    added: bool = False
    peer_measure: str = ""
    peer_figure: str = ""

    def value(self, results: Results, target: str = OURS) -> float | None:
        """The target's figure, or None."""
        measure, figure = self.measure, self.figure
        if target != OURS:
            measure, figure = self.peer_measure or measure, self.peer_figure or figure
        found = results.get(measure, {}).get(target, {}).get(figure)
        if found is None or not self.added:
            return found
        own = results.get(measure, {}).get(DIRECT, {}).get(figure)
        return None if own is None else found - own

    def ratio(self, results: Results, peer: str) -> float | None:
        """Our figure as a multiple of the peer's."""
        ours, theirs = self.value(results), self.value(results, peer)
        return ours / theirs if ours is not None and theirs else None

    def verdict(self, results: Results) -> Verdict:
        must = self._met(results, self.must)
        if must is None:
            return "unknown"
        if not must:
            return "missed"
        return "better" if self.wish and self._met(results, self.wish) else "reached"

    def _met(self, results: Results, limits: tuple[Limit, ...]) -> bool | None:
        """False if one is missed, None if one is not known and none is missed."""
        met: bool | None = True
        for limit in limits:
            value = self.ratio(results, limit.peer) if limit.peer else self.value(results)
            if value is None:
                met = None
            elif (value > limit.times) if self.less else (value < limit.times):
                return False
        return met

    @property
    def peers(self) -> list[str]:
        return list(dict.fromkeys(limit.peer for limit in self.must + self.wish if limit.peer))


def _limits(*pairs: tuple[float, str] | float) -> tuple[Limit, ...]:
    return tuple(Limit(*pair) if isinstance(pair, tuple) else Limit(pair) for pair in pairs)


NGINX, NCHAN, NCHAN_REDIS, CEILING = "nginx", "nchan", "nchan-redis", "ceiling"
LITELLM, PORTKEY, RESUMABLE = "litellm", "portkey", "resumable"

GOALS: tuple[Goal, ...] = (
    Goal(
        "G1", "added time to first token, one stream, p50", "first", "ttft_p50_ms", "ms",
        _limits((0.30, LITELLM), (0.7, RESUMABLE)), _limits(3.5), added=True,
    ),
    Goal(
        "G2", "time to first token, 50 streams, p50", "streams-50", "ttft_p50_ms", "ms",
        _limits((0.30, PORTKEY)), _limits((0.15, PORTKEY)),
    ),
    Goal(
        "G2", "time to first token, 200 streams, p50", "streams-200", "ttft_p50_ms", "ms",
        _limits((0.30, PORTKEY)), _limits((0.15, PORTKEY)),
    ),
    Goal(
        "G3", "added delivery time, 200 streams, p50", "streams-200", "delivery_p50_ms", "ms",
        _limits((0.8, PORTKEY), (0.8, RESUMABLE)), _limits((0.4, PORTKEY), (0.4, RESUMABLE)), added=True,
    ),
    Goal(
        "G5", "CPU for each chunk, 50 streams", "streams-50", "cpu_us", "µs",
        _limits((0.20, LITELLM), (1.0, PORTKEY)), _limits((0.6, PORTKEY)),
    ),
    Goal(
        "G6", "live streams of 50 chunks/s on one core, delivery p50 under 20 ms", "steps", "streams_at_50", "",
        _limits(200), _limits(400), less=False,
    ),
    Goal(
        "G7", "chunks a second, 8 unthrottled streams", "flood", "chunks_per_s", "/s",
        _limits((2, PORTKEY)), _limits((1, RESUMABLE)), less=False,
    ),
    Goal(
        "G8", "deliveries for each core-second, 1,000 viewers", "fan-1000", "per_core_second", "/s",
        _limits((1.1, NCHAN), (1.5, NCHAN_REDIS)), _limits((1.35, NCHAN), (0.75, CEILING)), less=False,
    ),
    Goal(
        "G9", "delivery time, 1,000 viewers, p50", "fan-1000", "delivery_p50_ms", "ms",
        _limits((1.0, NCHAN)), _limits((0.7, NCHAN)),
    ),
    Goal(
        "G10", "delivery time, 5,000 viewers, p99", "fan-5000", "delivery_p99_ms", "ms",
        _limits((1.0, NCHAN)), _limits((0.7, NCHAN)),
    ),
    Goal("G11", "memory for each of 5,000 viewers", "fan-5000", "memory_kb_per_viewer", "kB", _limits(10), _limits(4)),
    Goal("G12", "replay of 10,000 chunks, hot, one viewer", "replay", "one_total_p50_ms", "ms", _limits((3, NGINX))),
    Goal("G12", "replay of 10,000 chunks, hot, 100 at once, p50", "replay", "many_total_p50_ms", "ms", _limits((4, NGINX))),
    Goal(
        "G13", "replay of 10,000 chunks, cold", "cold", "total_p50_ms", "ms", _limits((25, NGINX)), _limits((6, NGINX)),
        peer_measure="replay", peer_figure="one_total_p50_ms",
    ),
    Goal("G14", "job pick-up, p50", "pickup", "pickup_p50_ms", "ms", _limits(5), _limits(2)),
    Goal("G14", "CPU of a worker without work", "pickup", "idle_percent", "%", _limits(0.3)),
    Goal(
        "G15", "memory at 200 live streams, all processes", "memory", "memory_mb", "MB",
        _limits((0.3, LITELLM)), _limits((0.2, LITELLM)),
    ),
    Goal(
        "+", "Valkey bytes for each byte of a stored chunk's delta", "stored", "valkey_bytes_per_delta_byte", "",
        _limits(1.2),
    ),
    Goal("+", "CPU of 5,000 viewers that get nothing", "silent", "idle_percent", "%", _limits(2)),
    Goal("+", "first token of others while 1,000 viewers replay, against calm", "storm", "storm_ratio", "", _limits(2)),
    Goal(
        "G17", "CPU for each delta of a response, 50 streams, against a chat's", "responses", "cpu_ratio", "",
        _limits(1.3),
    ),
    Goal(
        "G17", "deliveries of a response for each core-second, 1,000 viewers, against a chat's", "responses", "fan_ratio",
        "", _limits(0.8), less=False,
    ),
    Goal(
        "G17", "replay of a response of 10,000 chunks, hot, against a chat's", "responses", "replay_ratio", "", _limits(2),
    ),
    Goal("G16", "gaps, repetitions and missing ends in all of it", "all", "faults", "", _limits(0)),
)  # fmt: skip


BEFORE = "before"
"""An earlier revision, in a run of `make bench-against`."""

AGAINST: tuple[Goal, ...] = (
    Goal(
        "", "added time to first token, one stream, p50", "first", "ttft_p50_ms", "ms", _limits((0.5, BEFORE)), added=True
    ),
    Goal("", "time to first token, 200 streams, p50", "streams-200", "ttft_p50_ms", "ms", _limits((0.5, BEFORE))),
    Goal("", "delivery time, 50 streams, p50", "streams-50", "delivery_p50_ms", "ms", _limits((0.35, BEFORE))),
    Goal("", "delivery time, 200 streams, p50", "streams-200", "delivery_p50_ms", "ms", _limits((0.35, BEFORE))),
    Goal("", "CPU for each chunk, 50 streams", "streams-50", "cpu_us", "µs", _limits((0.7, BEFORE))),
    Goal(
        "", "deliveries for each core-second, 1,000 viewers", "fan-1000", "per_core_second", "/s", (), less=False
    ),
    Goal("", "delivery time, 1,000 viewers, p50", "fan-1000", "delivery_p50_ms", "ms", _limits(25)),
    Goal("", "delivery time, 1,000 viewers, p99", "fan-1000", "delivery_p99_ms", "ms", _limits(60)),
    Goal("", "chunks a second, 8 unthrottled streams", "flood", "chunks_per_s", "/s", _limits((1.5, BEFORE)), less=False),
    Goal("", "replay of 10,000 chunks, hot, one viewer", "replay", "one_total_p50_ms", "ms", ()),
    Goal("", "replay of 10,000 chunks, hot, 100 at once, p50", "replay", "many_total_p50_ms", "ms", ()),
    Goal("", "replay of 10,000 chunks, cold", "cold", "total_p50_ms", "ms", _limits((0.25, BEFORE))),
    Goal(
        "", "the same of an archived answer, against a stored one", "cold", "archived_total_p50_ms", "ms",
        _limits((0.25, BEFORE)), peer_figure="total_p50_ms",
    ),
    Goal("", "memory for each of 1,000 viewers", "fan-1000", "memory_kb_per_viewer", "kB", _limits(6)),
    Goal("", "memory of API and worker without work", "idle", "ends_mb", "MB", _limits((0.8, BEFORE))),
    Goal("", "first token of others while 1,000 viewers replay, against calm", "storm", "storm_ratio", "", _limits(1.5)),
    Goal("", "gaps, repetitions and missing ends in all of it", "all", "faults", "", _limits(0)),
)  # fmt: skip
"""What `make bench-against` measures. Limits without a peer hold by themselves."""


def add_totals(results: Mapping[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """The results, with what follows from them: the sum of faults, and how much slower others are in a storm."""
    full = {
        measure: {target: dict(figures) for target, figures in rows.items()}
        for measure, rows in results.items()
        if measure != "all"
    }
    for figures in full.get("storm", {}).values():
        figures["storm_ratio"] = figures["storm_ttft_p50_ms"] / figures["calm_ttft_p50_ms"]
    targets = {target for rows in full.values() for target in rows}
    counts = ("faults", "gaps", "repeated", "missing_ends", "refused", "streams")
    full["all"] = {
        target: {key: sum(rows.get(target, {}).get(key, 0) for rows in full.values()) for key in counts}
        for target in targets
    }
    return full


def select(words: Callable[[str], bool]) -> list[str]:
    """The measurements that the goals need whose number or measurement satisfies `words`, in the order of the table."""
    chosen = [goal for goal in GOALS if words(goal.number.lower()) or words(goal.measure)]
    needed = [name for goal in chosen for name in (goal.measure, goal.peer_measure) if name not in ("", "all")]
    return list(dict.fromkeys(needed))
