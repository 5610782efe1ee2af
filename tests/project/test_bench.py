"""The bench's own arithmetic: quantiles of the C tools' histogram, medians, ratios to goals, tables."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.bench import against, goals, report, run, scale
from tests.bench.__main__ import chosen
from tests.bench.compare import ALT, DOCUMENT, ORDER, blocks, rounded
from tests.bench.goals import GOALS, Goal, Limit
from tests.bench.load import SOURCES, Load, find_compiler
from tests.bench.machine import CannotMeasure, Cores, cpu_s, family
from tests.bench.measures import QUICK, added, median, of_load
from tests.bench.plots import PLOTS, bars

LOAD = {
    "viewers": 10, "complete": 10, "gaps": 0, "repeated": 0, "endless": 0, "broken": 0, "refused": 0, "unfinished": 0,
    "chunks": 50, "bytes": 5000, "window_s": 1.0, "cpu_s": 0.1,
    "headers_ms": None, "ttft_ms": {"p50": 2.0, "p99": 3.0, "max": 4.0}, "delivery_ms": None, "total_ms": None,
}  # fmt: skip
TITLES = {"ours": "Ours", "direct": "the provider", "peer": "Peer"}


def goal(**changes: object) -> Goal:
    given = {"number": "G0", "what": "x", "measure": "m", "figure": "f", "unit": "ms", "must": (Limit(0.5, "peer"),)}
    return Goal(**{**given, **changes})  # type: ignore[arg-type]


def figures(ours: float | None = None, peer: float | None = None, direct: float | None = None) -> goals.Results:
    found = {"ours": ours, "peer": peer, "direct": direct}
    return {"m": {name: {"f": value} for name, value in found.items() if value is not None}}


@pytest.mark.parametrize(
    ("ours", "peer", "verdict"),
    [(5, 10, "reached"), (5.01, 10, "missed"), (2, 10, "better"), (5, None, "unknown"), (None, 10, "unknown")],
)
def test_a_ratio_to_a_peer_decides(ours: float | None, peer: float | None, verdict: str) -> None:
    assert goal(wish=(Limit(0.2, "peer"),)).verdict(figures(ours, peer)) == verdict


def test_where_more_is_better_the_limit_is_a_floor() -> None:
    floor = goal(must=(Limit(2, "peer"),), less=False)
    assert [floor.verdict(figures(ours, 10)) for ours in (19.9, 20)] == ["missed", "reached"]


def test_one_missed_limit_is_enough_and_an_unknown_one_hides_no_missed_one() -> None:
    two = goal(must=(Limit(0.5, "peer"), Limit(0.5, "nobody")))
    assert two.verdict(figures(6, 10)) == "missed"
    assert two.verdict(figures(5, 10)) == "unknown"


def test_a_figure_may_be_limited_as_such() -> None:
    assert [goal(must=(Limit(3),)).verdict(figures(value)) for value in (3, 3.1)] == ["reached", "missed"]


def test_what_is_added_is_without_the_providers_own_time_on_both_sides() -> None:
    taken = goal(added=True)
    assert taken.value(figures(5, 10, 1)) == 4
    assert taken.ratio(figures(5, 10, 1), "peer") == pytest.approx(4 / 9)
    assert taken.value(figures(5, 10)) is None


def test_goals_name_figures_that_are_measured() -> None:
    steps = {step.name for step in run.STEPS} | {"all"}
    peers = {kind.name for kind in ORDER}
    for one in GOALS:
        assert one.measure in steps
        assert set(one.peers) <= peers
    assert {one.number for one in GOALS} >= {f"G{n}" for n in (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)}
    assert set(report.COLUMNS) == set(PLOTS) == set(ALT)


def test_goals_against_an_earlier_revision_name_figures_that_are_measured() -> None:
    assert {one.measure for one in goals.AGAINST} - {"all"} == set(against.NAMES)
    assert against.chosen(None) == list(against.NAMES)
    assert against.chosen("flood, idle") == ["flood", "idle"]
    with pytest.raises(CannotMeasure, match="no such measurement"):
        against.chosen("stored")


def rounds(*pairs: tuple[float, float]) -> list[goals.Results]:
    return [{"flood": {"before": {"chunks_per_s": b}, "ours": {"chunks_per_s": o}}, "all": {}} for b, o in pairs]


def test_a_ratio_is_that_of_one_round_and_the_median_of_the_rounds_counts() -> None:
    titles = {"before": "old", "ours": "new"}
    (_, row) = against.rows(rounds((10, 20), (100, 160), (50, 50)), titles)
    assert row[1:4] == ["50 (10–100)", "50 (20–160)", "1.60 (1–2)"]
    assert row[4:] == ["≥ 1.5× old", "reached; in 1 of 3 rounds not"]
    assert against.rows(rounds((10, 10), (10, 12)), titles)[1][5] == "**not reached**"
    assert against.rows(rounds((10, 20)), titles)[1][1:4] == ["10", "20", "2"]
    assert against.rows([{"flood": {"ours": {"chunks_per_s": 5}}}], titles)[1][1:] == [
        "–",
        "5",
        "–",
        "≥ 1.5× old",
        "no verdict",
    ]


def test_goals_and_measurements_can_be_chosen() -> None:
    assert chosen("G5, g13") == ["streams-50", "cold", "replay"]
    assert chosen("silent") == ["silent"]
    assert chosen("G16") == chosen(None) == list(run.NAMES)
    with pytest.raises(CannotMeasure, match="no such goal"):
        chosen("G99")


def test_totals_add_up_what_was_lost_and_compare_the_storm_with_the_calm() -> None:
    storm = {"storm_ttft_p50_ms": 6.0, "calm_ttft_p50_ms": 3.0, "faults": 1, "streams": 5}
    full = goals.add_totals(
        {"storm": {"ours": storm}, "m": {"ours": {"faults": 2, "streams": 7}, "peer": {"faults": 4}}}
    )
    assert full["storm"]["ours"]["storm_ratio"] == 2
    assert (full["all"]["ours"]["faults"], full["all"]["ours"]["streams"], full["all"]["peer"]["faults"]) == (3, 12, 4)
    assert goals.add_totals(full) == full


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({}, 0),
        ({"gaps": 2, "complete": 9}, 3),
        ({"repeated": 1, "complete": 9}, 2),
        ({"complete": 7, "endless": 3, "broken": 3, "refused": 3}, 3),
        ({"complete": 8, "unfinished": 2, "endless": 2}, 2),
    ],
)
def test_whatever_a_viewer_did_not_get_is_a_fault(changes: dict[str, int], faults: int) -> None:
    assert Load.parse(json.dumps(LOAD | changes)).faults == faults


def test_medians_of_figures_sums_of_faults_and_the_largest_maximum() -> None:
    runs = [{"a_ms": value, "a_max_ms": value, "faults": 1.0, "streams": 2.0} for value in (1.0, 9.0, 2.0)]
    assert median(runs) == {"a_ms": 2.0, "a_max_ms": 9.0, "faults": 3.0, "streams": 6.0}
    found = of_load(Load.parse(json.dumps(LOAD)))
    assert (found["ttft_p50_ms"], found["streams"], "delivery_p50_ms" in found) == (2.0, 10, False)
    assert added(found, found)["streams"] == 20


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (0, "0"), (0.01234, "0.0123"), (1.5, "1.50"), (3.0, "3"), (12.34, "12.3"),
     (999.6, "1,000"), (46_789.1, "46,789"), (-0.5, "-0.500")],
)  # fmt: skip
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert report.number(value) == text


def test_the_table_of_goals_says_what_was_not_measured() -> None:
    rows = report.goal_rows(figures(4, 10), TITLES, [goal(), goal(measure="other")])
    assert rows[1][2:5] == ["4 ms", "Peer 10: 0.400×", "≤ 0.5× Peer"]
    assert [row[6] for row in rows[1:]] == ["reached", "no verdict"]
    assert rows[2][2] == "not measured"
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in report.markdown(rows).splitlines()}
    assert widths == {8}


def test_tables_of_figures_have_a_row_for_each_target_that_was_measured() -> None:
    results = {"first": {"ours": {"ttft_p50_ms": 3.0}, "peer": {"ttft_p50_ms": 20.0, "faults": 2}}}
    rows = report.figure_rows(results, "gateway", TITLES)
    assert [(row[0], row[1], row[-1]) for row in rows[1:]] == [("Peer", "20", "2"), ("**Ours**", "3", "0")]
    assert "Peer" in bars(results, "gateway", TITLES)


def test_places_in_a_document_are_filled_and_filled_again() -> None:
    text = "a\n<!-- bench: x -->\nold\n<!-- /bench -->\nb\n"
    once = report.fill(text, {"x": "new \\1"})
    assert once == "a\n<!-- bench: x -->\n\nnew \\1\n\n<!-- /bench -->\nb\n"
    assert report.fill(once, {"x": "new \\1"}) == once
    with pytest.raises(KeyError):
        report.fill(text, {"y": ""})


def test_every_place_of_the_document_is_filled() -> None:
    level = dict.fromkeys((*scale.COST, "delivery_p50_ms", "delivery_p99_ms", "faults"), 2.0)
    level |= {"memory_kb_per_viewer": 10.0, "valkey_us_per_stored_chunk": 5.0, "replay_ms": 1.0}
    grown = {name: {"1": level, "4": level} for name in scale.HEADINGS}
    found = {"date": "", "command": "", "machine": {}, "versions": {}, "failures": [], "results": {}, "scale": grown}
    found |= {"scale-apart": grown, "scale-cores": "valkey | api"}
    written = blocks(found, TITLES)
    places = re.findall(r"<!-- bench: ([\w-]+) -->", DOCUMENT.read_text("utf-8"))
    assert set(places) - {"against"} == set(written)
    assert len(places) == len(set(places))


def test_parts_with_cores_of_their_own_stand_in_one_table_with_the_delays_they_had_on_one() -> None:
    level = dict.fromkeys((*scale.COST, "delivery_p50_ms", "delivery_p99_ms", "faults"), 2.0)
    slower = level | {"delivery_p50_ms": 4.0, "delivery_p99_ms": 9.0}
    rows = scale.apart({"streams": {1: level, 50: level}, "workers": {1: level}}, {"streams": {1: slower, 50: slower}})
    assert [(row[1], *row[-5:]) for row in rows[1:]] == [
        ("1", "2", "2", "4", "9", "2"),
        ("50", "2", "2", "4", "9", "2"),
        ("1", "2", "2", "–", "–", "2"),
    ]
    assert [row[0] for row in rows[1:]] == ["streams of 50 chunks/s, one viewer each", "", scale.HEADINGS["workers"][0]]
    assert len({len(row) for row in rows}) == 1


@pytest.mark.parametrize(
    ("free", "told"),
    [
        ({3, 5}, "valkey and worker | api, load and provider"),
        ({0, 1, 2}, "valkey and worker | api | load and provider"),
        (set(range(8)), "valkey | worker | api | load and provider"),
    ],
)
def test_parts_get_as_many_cores_as_there_are(free: set[int], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: free)
    cores = Cores.choose_apart()
    assert cores.told() == told
    assert {cores.server, cores.load, *cores.own.values()} <= free
    assert cores.load != cores.server


def test_parts_do_not_get_cores_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4})
    with pytest.raises(CannotMeasure, match="two of them"):
        Cores.choose_apart()


def test_the_arithmetic_for_many_streams() -> None:
    level = dict.fromkeys(scale.COST, 7.0) | {
        "memory_kb_per_viewer": 2**20 / 100_000,
        "valkey_us_per_stored_chunk": 10.0,
    }
    wide = level | {"cpu_api_us": 14.0, "valkey_us_per_stored_chunk": 40.0}
    rows = scale.arithmetic({"streams": {200: level}, "viewers": {1000: wide}, "apis": {1: level, 4: wide}})
    cells = {row[0]: row[1:] for row in rows[1:]}
    assert cells["workers"] == ["500,000", "7", "5"]
    assert cells["API, writing to viewers"] == ["5,000,000", "14", "100"]
    assert cells["Valkey, each further API process that serves the stream"][1] == "10"
    assert cells["memory of 100,000 viewers"][-1] == "1 GiB"
    assert cells["one Valkey (one core for commands) carries"] == ["100,000 chunks", "", "2,000 streams"]


def test_what_is_kept_has_four_digits() -> None:
    assert rounded({"a": [1.23456, 3], 5: {"b": 123456.7}}) == {"a": [1.235, 3], "5": {"b": 123500.0}}


def test_quantiles_of_the_histogram_are_off_by_less_than_a_percent(tmp_path: Path) -> None:
    compiler = find_compiler()
    if not compiler:
        pytest.skip("no C compiler")
    (tmp_path / "check.c").write_text(
        '#include "common.h"\nint main(void) { static histogram h; for (uint64_t v = 1; v <= 100000; v++) record(&h, v * 1000);'
        ' print_histogram("h", &h); printf("\\n"); static histogram none; print_histogram("none", &none); return 0; }\n'
    )
    built = str(tmp_path / "check")
    subprocess.run([compiler, "-std=gnu11", "-I", str(SOURCES), "-o", built, str(tmp_path / "check.c")], check=True)
    first, second = subprocess.run([built], check=True, capture_output=True, text=True).stdout.splitlines()
    found = json.loads(f"{{{first}}}")["h"]
    assert second == '"none":null'
    assert (found["count"], found["max"]) == (100_000, 100.0)
    for name, true in (("p50", 50), ("p90", 90), ("p99", 99), ("mean", 50)):
        assert found[name] == pytest.approx(true, rel=0.01)


def test_cpu_time_is_that_of_a_process_and_its_children() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 30 & while [ $((i=i+1)) -lt 100000 ]; do :; done; read x; kill $!"],
                          stdin=subprocess.PIPE) as process:  # fmt: skip
        try:
            while cpu_s([process.pid]) < 0.01:
                assert process.poll() is None
            assert len(family([process.pid])) == 2
        finally:
            process.communicate(b"\n")
    assert cpu_s([process.pid]) == 0


def test_there_is_a_core_for_each_side() -> None:
    cores = Cores.choose()
    assert cores.server <= cores.load
    assert QUICK.reps == 1
