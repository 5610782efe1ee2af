"""Tables, from results. Pure: results in, text out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from tests.bench.goals import GOALS, OURS, Goal, Limit, Results

VERDICTS = {
    "better": "reached, and what we reach for",
    "reached": "reached",
    "missed": "**not reached**",
    "unknown": "no verdict",
}

COLUMNS: dict[str, list[tuple[str, str, str]]] = {
    "gateway": [
        ("first token, 1 stream, ms", "first", "ttft_p50_ms"),
        ("p99", "first", "ttft_p99_ms"),
        ("50 streams", "streams-50", "ttft_p50_ms"),
        ("200 streams", "streams-200", "ttft_p50_ms"),
        ("delivery, 1 stream, ms", "first", "delivery_p50_ms"),
        ("50 streams", "streams-50", "delivery_p50_ms"),
        ("p99", "streams-50", "delivery_p99_ms"),
        ("200 streams", "streams-200", "delivery_p50_ms"),
        ("p99", "streams-200", "delivery_p99_ms"),
    ],
    "cost": [
        ("CPU a chunk, 1 stream, µs", "first", "cpu_us"),
        ("50 streams", "streams-50", "cpu_us"),
        ("200 streams", "streams-200", "cpu_us"),
        ("cores used at 200", "streams-200", "cores"),
        ("unthrottled chunks/s", "flood", "chunks_per_s"),
        ("memory at 200 streams, MB", "memory", "memory_mb"),
    ],
    "fan": [
        ("deliveries a core-second, 1,000 viewers", "fan-1000", "per_core_second"),
        ("p50, ms", "fan-1000", "delivery_p50_ms"),
        ("p99, ms", "fan-1000", "delivery_p99_ms"),
        ("deliveries a core-second, 5,000 viewers", "fan-5000", "per_core_second"),
        ("p50, ms", "fan-5000", "delivery_p50_ms"),
        ("p99, ms", "fan-5000", "delivery_p99_ms"),
        ("memory a viewer, kB", "fan-5000", "memory_kb_per_viewer"),
    ],
    "replay": [
        ("one viewer, ms", "replay", "one_total_p50_ms"),
        ("100 at once: p50, ms", "replay", "many_total_p50_ms"),
        ("slowest, ms", "replay", "many_total_max_ms"),
        ("CPU a chunk, µs", "replay", "many_cpu_us"),
        ("fresh process, ms", "cold", "total_p50_ms"),
    ],
}
"""The tables of figures: heading, measurement, figure."""

FAULTS = ("lost, repeated, endless", "all", "faults")


def number(value: float | None) -> str:
    """Three significant digits, thousands apart; `–` for nothing."""
    if value is None or math.isnan(value):
        return "–"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{round(value, digits):,.{min(digits, 4)}f}"
    return text.rstrip("0").rstrip(".") if "." in text and float(text.replace(",", "")).is_integer() else text


def limit(goal: Goal, bound: Limit, titles: Mapping[str, str]) -> str:
    sign = "≤" if goal.less else "≥"
    return (
        f"{sign} {bound.times:g}× {titles.get(bound.peer, bound.peer)}"
        if bound.peer
        else f"{sign} {bound.times:g} {goal.unit}".strip()
    )


def goal_rows(results: Results, titles: Mapping[str, str], goals: Iterable[Goal] = GOALS) -> list[list[str]]:
    """Every goal with our figure, the peers' of the same run and the ratios; first row: the headings."""
    rows = [["", "measure", "ours", "peers of the same run", "must", "reach for", "verdict"]]
    for goal in goals:
        ours = goal.value(results)
        against = []
        for peer in goal.peers:
            ratio = goal.ratio(results, peer)
            if ratio is not None:
                against.append(f"{titles.get(peer, peer)} {number(goal.value(results, peer))}: {number(ratio)}×")
        rows.append(
            [
                goal.number,
                goal.what,
                f"{number(ours)} {goal.unit}".strip() if ours is not None else "not measured",
                "; ".join(against) or "–",
                ", ".join(limit(goal, bound, titles) for bound in goal.must),
                ", ".join(limit(goal, bound, titles) for bound in goal.wish) or "–",
                VERDICTS[goal.verdict(results)],
            ]
        )
    return rows


def figure_rows(results: Results, table: str, titles: Mapping[str, str]) -> list[list[str]]:
    """One row for each target that has any of the table's figures, ours last."""
    columns = COLUMNS[table]
    rows = [["", *(heading for heading, _, _ in columns), FAULTS[0]]]
    for target in sorted(titles, key=lambda name: name == OURS):
        cells = [results.get(measure, {}).get(target, {}).get(figure) for _, measure, figure in columns]
        if any(cell is not None for cell in cells):
            name = f"**{titles[target]}**" if target == OURS else titles[target]
            faults = sum(int(results.get(m, {}).get(target, {}).get("faults", 0)) for m in {m for _, m, _ in columns})
            rows.append([name, *map(number, cells), str(faults)])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    numeric = (
        [all(re.fullmatch(r"[\d.,–-]+", row[column]) for row in body) for column in range(len(head))] if body else []
    )
    rule = [" ---: " if right else " --- " for right in numeric] or [" --- "] * len(head)
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(rule) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body])


def plain(rows: Sequence[Sequence[str]]) -> str:
    """For a terminal."""
    shown = [[cell.replace("**", "") for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown
    )


def fill(document: str, blocks: Mapping[str, str]) -> str:
    """The document with what is between `<!-- bench: NAME -->` and `<!-- /bench -->` replaced. Raises KeyError for a
    block that the document does not have."""
    for name, text in blocks.items():
        form = re.compile(rf"(<!-- bench: {re.escape(name)} -->\n).*?(<!-- /bench -->)", re.S)
        if not form.search(document):
            raise KeyError(f"no block {name!r} in the document")
        document = form.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", document)  # noqa: B023  # used at once
    return document
