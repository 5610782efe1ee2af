"""What is in deploy/ for Prometheus and Grafana: it is about metrics that there are, says what to do, and fires in time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from shared.lib import telemetry
from tests.harness.processes import ROOT

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/streamspool.json").read_text())
RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}
OTHERS = {"job", "instance", "end", "le"}
"""Labels that Prometheus, its configuration and histograms add."""


def series() -> set[str]:
    """Every series there can be."""
    found = set()
    for metric in vars(telemetry).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
            found |= {family.name + ending for ending in endings}
    return found


def labels() -> set[str]:
    metrics = [metric for metric in vars(telemetry).values() if isinstance(metric, MetricWrapperBase)]
    return {label for metric in metrics for label in metric._labelnames} | OTHERS


def check_query(query: str) -> None:
    assert set(re.findall(r"streamspool_\w+", query)) <= series(), query
    assert set(re.findall(r"(\w+)=~?\"", query)) <= labels(), query
    grouped = {label.strip() for names in re.findall(r"(?:by|on) \(([^)]*)\)", query) for label in names.split(",")}
    assert grouped <= labels(), query


# ---- alerts


def test_alerts_are_about_metrics_that_there_are_and_lead_to_the_runbook() -> None:
    sections = dict(
        re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", (ROOT / "docs/RUNBOOK.md").read_text("utf-8"), re.M | re.S)
    )
    assert list(sections) == list(RULES)
    for name, rule in RULES.items():
        check_query(rule["expr"])
        assert rule["annotations"].keys() == {"summary", "do", "runbook"}
        assert rule["annotations"]["runbook"] == f"docs/RUNBOOK.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert re.findall(r"^\*\*(\w+(?: \w+)?)\*\*", sections[name], re.M) == ["Means", "Look at", "Do"], name


def test_the_recipe_scrapes_with_the_alerts_beside_it() -> None:
    scrape = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    assert [(DEPLOY / name).exists() for name in scrape["rule_files"]] == [True]
    (job,) = scrape["scrape_configs"]
    assert job["job_name"] == "streamspool"
    assert {one["labels"]["end"] for one in job["static_configs"]} == {"api", "worker"}


def promtool() -> str:
    if (program := shutil.which("promtool")) is None:
        pytest.skip("no promtool here: it is in Debian's package prometheus")
    return program


def test_promtool_takes_both() -> None:
    for words in (["check", "rules", "alerts.yaml"], ["check", "config", "prometheus.yaml"]):
        done = subprocess.run([promtool(), *words], cwd=DEPLOY, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


class Case(NamedTuple):
    """Series as promtool has them, `1x5` for five more samples like the first, one a minute: under which an alert fires at
    `minute` with these labels, and under which it does not."""

    fires: Mapping[str, str]
    rests: Mapping[str, str]
    labels: Mapping[str, str] = {}
    minute: int = 30


def first_chunk(slow_from: int) -> dict[str, str]:
    """Ten answers a minute: all within a second, from that minute on within thirty."""
    fast, whole = f"0+10x{slow_from} {10 * slow_from}x{1500 - slow_from}", "0+10x1500"
    name = "streamspool_time_to_first_chunk_seconds"
    buckets = {"1": fast, "30": whole, "+Inf": whole}
    told = {f'{name}_bucket{{provider="p", model="p/m", le="{le}"}}': values for le, values in buckets.items()}
    return {**told, f'{name}_count{{provider="p", model="p/m"}}': whole}


_ASKED = 'streamspool_upstream_request_seconds_count{provider="p", status="%s"}'
_SEALED = 'streamspool_generations_sealed_total{provider="p", status="%s"}'
_OLDEST = 'streamspool_queue_oldest_seconds{lane="%s"}'
_MEMORY, _MOST = "streamspool_redis_memory_bytes", "streamspool_redis_memory_limit_bytes"
_UP = 'up{job="streamspool", instance="a:8000"}'
_STARTED = 'process_start_time_seconds{job="streamspool", instance="a:8000"}'
_HERE = {"job": "streamspool", "instance": "a:8000"}
_P, _M = {"provider": "p"}, {"provider": "p", "model": "p/m"}
_ONCE, _NEVER = "0x20 1x20", "7x40"

CASES = {
    "StreamspoolDown": Case({_UP: "1x10 0x30"}, {_UP: "1x40"}, _HERE),
    "StreamspoolRestarts": Case({_STARTED: "100x18 200x3 300x3 400x20"}, {_STARTED: "100x18 200x20"}, _HERE),
    "StreamspoolNoWorker": Case({"streamspool_workers": "2x10 0x30"}, {"streamspool_workers": "2x40"}),
    "StreamspoolQueueOld": Case({_OLDEST % "generation": "40x40"}, {_OLDEST % "line": "400x40"}),
    "StreamspoolAnswersFail": Case(
        {_SEALED % "failed": "0+1x40", _SEALED % "completed": "0+9x40"},
        {_SEALED % "failed": "0+1x40", _SEALED % "completed": "0+99x40"},
        _P,
    ),
    "StreamspoolFirstChunkSlow": Case(first_chunk(1440), first_chunk(1500), {"model": "p/m"}, minute=1470),
    "StreamspoolProviderLimits": Case(
        {_ASKED % "429": "0+2x40", _ASKED % "200": "0+8x40"},
        {_ASKED % "429": "0+2x40", _ASKED % "200": "0+98x40"},
        _P,
    ),
    "StreamspoolProviderBusy": Case(
        {'streamspool_upstream_retries_total{provider="p", code="status_503"}': "0+60x40"},
        {'streamspool_upstream_retries_total{provider="p", code="status_503"}': "0+6x40"},
        _P,
    ),
    "StreamspoolFallbacks": Case(
        {'streamspool_upstream_fallbacks_total{provider="p"}': "0+3x40", "streamspool_attempts_total": "0+10x40"},
        {'streamspool_upstream_fallbacks_total{provider="p"}': "0+1x40", "streamspool_attempts_total": "0+10x40"},
    ),
    "StreamspoolBudgetNear": Case(
        {'streamspool_budget_warnings_total{tenant="acme"}': _ONCE},
        {'streamspool_budget_warnings_total{tenant="acme"}': _NEVER},
        {"tenant": "acme"},
    ),
    "StreamspoolBudgetReached": Case(
        {'streamspool_limit_rejections_total{limit="budget"}': _ONCE},
        {'streamspool_limit_rejections_total{limit="requests"}': _ONCE},
    ),
    "StreamspoolPriceUnknown": Case(
        {'streamspool_cost_unknown_total{provider="p", model="p/m"}': _ONCE},
        {'streamspool_cost_unknown_total{provider="p", model="p/m"}': _NEVER},
        _M,
    ),
    "StreamspoolRedisAway": Case(
        {'streamspool_redis_up{instance="a"}': "0x40", 'streamspool_redis_up{instance="b"}': "0x40"},
        {'streamspool_redis_up{instance="a"}': "0x40", 'streamspool_redis_up{instance="b"}': "1x40"},
    ),
    "StreamspoolRedisErrors": Case(
        {'streamspool_redis_errors_total{part="hub"}': "0+1x40"},
        {'streamspool_redis_errors_total{part="hub"}': _ONCE},
        {"part": "hub"},
    ),
    "StreamspoolRedisFilling": Case({_MEMORY: "90x40", _MOST: "100x40"}, {_MEMORY: "90x40", _MOST: "0x40"}),
    "StreamspoolRedisEvicts": Case(
        {"streamspool_redis_evicted_keys": _ONCE}, {"streamspool_redis_evicted_keys": _NEVER}
    ),
    "StreamspoolRedisNotWriting": Case(
        {"streamspool_redis_append_ok": "1x10 0x30"}, {"streamspool_redis_append_ok": "1x40"}
    ),
    "StreamspoolFileStorageFails": Case(
        {'streamspool_file_storage_errors_total{why="away"}': "0+1x40"},
        {'streamspool_file_storage_errors_total{why="away"}': "0x20 1x20"},
        {"why": "away"},
    ),
    "StreamspoolReaperActs": Case(
        {'streamspool_reaped_total{action="rung"}': _ONCE},
        {'streamspool_reaped_total{action="forgotten"}': _ONCE},
        {"action": "rung"},
    ),
    "StreamspoolViewersDropped": Case(
        {"streamspool_viewers_dropped_total": "0+10x40"}, {"streamspool_viewers_dropped_total": "0+1x40"}
    ),
    "StreamspoolWebhooksFail": Case(
        {'streamspool_webhook_deliveries_total{outcome="failed"}': _ONCE},
        {'streamspool_webhook_deliveries_total{outcome="retried"}': _ONCE},
    ),
    "StreamspoolBatchLate": Case(
        {'streamspool_batch_window_left_ratio{instance="a"}': "0.05x40"},
        {'streamspool_batch_window_left_ratio{instance="a"}': "0.5x40"},
    ),
    "StreamspoolHistoryAway": Case({"streamspool_history_away": "1x40"}, {"streamspool_history_away": "0x40"}),
}


def shown(text: str, labels: Mapping[str, str]) -> str:
    """A template as Prometheus fills it, as far as ours go."""
    text = re.sub(
        r"{{ with \$labels\.(\w+) }}(.*?){{ \. }}{{ end }}",
        lambda found: found[2] + labels[found[1]] if found[1] in labels else "",
        text,
    )
    return re.sub(r"{{ \$labels\.(\w+) }}", lambda found: labels[found[1]], text)


def unit_tests() -> Iterator[dict[str, Any]]:
    for name, case in CASES.items():
        rule = RULES[name]
        told = {about: shown(text, case.labels) for about, text in rule["annotations"].items()}
        fired = [{"exp_labels": {**rule["labels"], **case.labels}, "exp_annotations": told}]
        for samples, expected in ((case.fires, fired), (case.rests, [])):
            yield {
                "name": f"{name}, {'fires' if expected else 'rests'}",
                "interval": "1m",
                "input_series": [{"series": one, "values": values} for one, values in samples.items()],
                "alert_rule_test": [{"eval_time": f"{case.minute}m", "alertname": name, "exp_alerts": expected}],
            }


@pytest.mark.timeout(400)
def test_each_alert_fires_when_it_should_and_not_otherwise(tmp_path: Path) -> None:
    assert CASES.keys() == RULES.keys()
    file = tmp_path / "tests.yaml"
    rules = str(DEPLOY / "alerts.yaml")
    file.write_text(yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "1m", "tests": list(unit_tests())}))
    command = [promtool(), "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- the dashboard


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_the_dashboard_has_its_rows_and_asks_for_metrics_that_there_are() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert len(rows) == 8
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert {one["name"]: one["type"] for one in DASHBOARD["templating"]["list"]} == {
        "datasource": "datasource",
        "provider": "query",
        "model": "query",
    }
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            check_query(target["expr"])
        for name in re.findall(r"Streamspool\w+", panel["description"]):
            assert name in RULES, panel["title"]


def test_every_alert_has_a_panel_that_names_it() -> None:
    assert {name for panel in panels() for name in re.findall(r"Streamspool\w+", panel["description"])} == set(RULES)


def test_no_panel_lies_on_another() -> None:
    for one, other in combinations([panel["gridPos"] for panel in DASHBOARD["panels"]], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
    assert all(one["gridPos"]["x"] + one["gridPos"]["w"] <= 24 for one in DASHBOARD["panels"])
