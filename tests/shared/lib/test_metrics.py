"""Counting: what is shown of our metrics is what the library shows of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from shared.lib import metrics
from shared.lib.telemetry import get_logger

BOTH = [(metrics.Counter, prometheus_client.Counter), (metrics.Gauge, prometheus_client.Gauge)]
BOTH += [(metrics.Histogram, prometheus_client.Histogram)]


def shown(kind: Any, do: Callable[[Any], None], labels: tuple[str, ...] = ()) -> str:
    metric = kind("seen_things", "Help", labels, registry=(registry := CollectorRegistry()))
    do(metric)
    lines = generate_latest(registry).decode().splitlines()
    return "\n".join(line.partition(" # ")[0] for line in lines if "_created" not in line)


def counter(metric: Any) -> None:
    metric.inc()
    metric.inc(2.5)
    metric.inc(0)
    metric.inc(3, {"trace_id": "4bf92f35"})


def gauge(metric: Any) -> None:
    metric.inc()
    metric.dec()
    metric.dec(7)
    metric.inc(0.5)
    metric.set(metric._value.get() * 2)


def histogram(metric: Any) -> None:
    for amount in (-1, 0, 0.005, 0.0051, 10, 10.1, float("inf"), float("nan")):
        metric.observe(amount)
    metric.observe(0.3, {"trace_id": "4bf92f35"})


def children(metric: Any) -> None:
    for number in range(3):
        by_place = metric.labels("a", str(number))
        by_name = metric.labels(second=str(number), first="a")
        assert by_place is by_name is metric.labels("a", number)
        counter(by_place)
    metric.remove("a", "1")
    metric.labels("a", "1").inc()


@pytest.mark.parametrize(
    ("kinds", "do", "labels"),
    [(*pair, ()) for pair in zip(BOTH, (counter, gauge, histogram), strict=True)]
    + [(BOTH[0], children, ("first", "second"))],
)
def test_ours_show_what_the_librarys_show(kinds: Any, do: Any, labels: tuple[str, ...]) -> None:
    mine, theirs = (shown(kind, do, labels) for kind in kinds)
    assert mine == theirs
    assert "seen_things" in mine


def test_an_exemplar_is_kept() -> None:
    metric = metrics.Histogram("seen_s", "Help", registry=(registry := CollectorRegistry()))
    metric.observe(0.3, {"trace_id": "4bf92f35"})
    assert b'# {trace_id="4bf92f35"} 0.3' in generate_latest(registry)


WRONG = [
    lambda metric: metric.labels("a"),
    lambda metric: metric.labels("a", "b", "c"),
    lambda metric: metric.labels(),
    lambda metric: metric.labels("a", second="b"),
    lambda metric: metric.labels(first="a"),
    lambda metric: metric.labels(first="a", third="b"),
    lambda metric: metric.labels(first="a", second="b", third="c"),
    lambda metric: metric.labels("a", "b", first="a", second="b"),
    lambda metric: metric.labels("a", "b").labels("a", "b"),
    lambda metric: metric.inc(),
    lambda metric: metric.observe(1),
    lambda metric: metric.dec(),
    lambda metric: metric.labels("a", "b").inc(-1),
]


@pytest.mark.parametrize("kinds", BOTH, ids=lambda kinds: kinds[0].__name__)
@pytest.mark.parametrize("wrong", WRONG)
def test_ours_refuse_what_the_librarys_refuse(kinds: Any, wrong: Any) -> None:
    refused: list[type[Exception] | None] = []
    for kind in kinds:
        metric = kind("seen_things", "Help", ("first", "second"), registry=None)
        metric.labels("a", "b")
        try:
            wrong(metric)
            refused.append(None)
        except (ValueError, AttributeError) as error:
            refused.append(type(error))
    assert refused[0] is refused[1]


@pytest.mark.parametrize("kind", [metrics.Counter, metrics.Gauge])
def test_without_labels_there_are_no_children(kind: Any) -> None:
    with pytest.raises(ValueError, match="No label names were set"):
        kind("seen_things", "Help", registry=None).labels("a")


def test_threads_lose_no_count() -> None:
    metric = metrics.Counter("seen_things", "Help", registry=None)

    def count() -> None:
        for _ in range(20_000):
            metric.inc()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metric._value.get() == 80_000


_IN_FILES = """
import prometheus_client
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from shared.lib import metrics, telemetry

assert metrics.Counter is prometheus_client.Counter
assert metrics.Gauge is prometheus_client.Gauge
assert metrics.Histogram is prometheus_client.Histogram
telemetry.SUBMITTED.inc(3)
telemetry.QUEUE_SECONDS.observe(0.2)
MultiProcessCollector(registry := CollectorRegistry())
print(registry.get_sample_value("streamspool_generations_submitted_total"))
print(registry.get_sample_value("streamspool_queue_seconds_count"))
"""


def test_values_that_lie_in_files_are_the_librarys(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IN_FILES],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.split() == ["3.0", "1.0"], done.stderr


# ---- lines


_LINES = """
import structlog
from shared.lib.telemetry import configure_logging, get_logger
early, late = get_logger("early"), get_logger("late")
configure_logging("warning")
asked = []
def look(_, method, event):
    asked.append((method, event["logger"], event["event"]))
    raise structlog.DropEvent
structlog.get_config()["processors"].insert(3, look)
for logger in (early, late, early):
    logger.info("quiet")
    logger.warning("heard")
assert asked == [("warning", name, "heard") for name in ("early", "late", "early")], asked
assert {"info", "warning"} <= vars(early).keys()
"""


def test_a_logger_finds_each_method_once_when_it_is_set_up() -> None:
    done = subprocess.run([sys.executable, "-c", _LINES], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_logger_made_before_the_set_up_says_what_is_set_up_then() -> None:
    logger = get_logger("tests.lines")
    with structlog.testing.capture_logs() as before:
        logger.warning("before", much=1)
    with structlog.testing.capture_logs() as after:
        logger.warning("after", much=2)
    assert [(line["event"], line["much"]) for line in before + after] == [("before", 1), ("after", 2)]
