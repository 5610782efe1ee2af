"""Prometheus' counter, gauge and histogram, cheaper to count with.

Hidden here: the library asks in functions of its own whether a metric has all its labels before it counts, and makes lists to
look for a child by them, and a request counts dozens of times. Here a value is changed where it lies, and a child that is there
is found in the library's own table. All else is the library's: what is shown, new children, every refusal. Where values lie in
files (PROMETHEUS_MULTIPROC_DIR), the classes are the library's as well.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, TypeVar

import prometheus_client
from prometheus_client import values
from prometheus_client.metrics import MetricWrapperBase

T = TypeVar("T", bound=MetricWrapperBase)


class _Labelled(MetricWrapperBase):
    _metrics: Any = {}  # what has no labels has no children

    def labels(self: T, *labelvalues: object, **labelkwargs: object) -> T:
        key: Any = labelvalues
        if labelkwargs:
            right = not labelvalues and len(labelkwargs) == len(self._labelnames)
            key = tuple(map(labelkwargs.get, self._labelnames)) if right else None
        found: Any = self._metrics.get(key)  # by strings: other values are the library's to spell
        return super().labels(*labelvalues, **labelkwargs) if found is None else found


class _Counter(_Labelled, prometheus_client.Counter):
    _value: Any = None  # of one that has labels, not its children

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        value = self._value
        if value is None or amount < 0 or exemplar:
            super().inc(amount, exemplar)
        else:
            with value._lock:
                value._value += amount


class _Gauge(_Labelled, prometheus_client.Gauge):
    _value: Any = None
    _is_most_recent: bool

    def inc(self, amount: float = 1) -> None:
        value = self._value
        if value is None or self._is_most_recent:
            super().inc(amount)
        else:
            with value._lock:
                value._value += amount

    def dec(self, amount: float = 1) -> None:
        value = self._value
        if value is None or self._is_most_recent:
            super().dec(amount)
        else:
            with value._lock:
                value._value -= amount


class _Histogram(_Labelled, prometheus_client.Histogram):
    _sum: Any = None

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        total = self._sum
        if total is None or exemplar or amount != amount:  # NaN is in no bucket
            super().observe(amount, exemplar)
            return
        bucket = self._buckets[bisect_left(self._upper_bounds, amount)]
        with total._lock:
            total._value += amount
        with bucket._lock:
            bucket._value += 1


if TYPE_CHECKING or values.ValueClass is not values.MutexValue:
    from prometheus_client import Counter, Gauge, Histogram
else:
    Counter, Gauge, Histogram = _Counter, _Gauge, _Histogram

__all__ = ["Counter", "Gauge", "Histogram"]
