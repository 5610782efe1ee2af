"""One SVG for each table, by pygal, a development dependency: results in, text out."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import pygal
from pygal.style import Style

from tests.bench.goals import OURS, Results

# It is for plugins we do not have, and speaks a protocol of before Python 3.12: every later import would warn.
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "PluginImportFixer"]

STYLE = Style(
    background="white",
    plot_background="white",
    foreground="#333",
    foreground_strong="#111",
    font_family="sans-serif",
    colors=("#2a6f97", "#e07a5f", "#81b29a", "#f2cc8f", "#6d597a", "#b56576"),
)
FORM = {
    "style": STYLE,
    "js": (),
    "width": 760,
    "height": 380,
    "legend_at_bottom": True,
    "explicit_size": True,
    "disable_xml_declaration": True,
    "no_prefix": True,
}

PLOTS: dict[str, tuple[str, Sequence[tuple[str, str, str]], bool]] = {
    "gateway": (
        "Time to first token, p50, ms",
        [
            ("1 stream", "first", "ttft_p50_ms"),
            ("50", "streams-50", "ttft_p50_ms"),
            ("200", "streams-200", "ttft_p50_ms"),
        ],
        True,
    ),
    "cost": (
        "CPU for each chunk, µs",
        [("1 stream", "first", "cpu_us"), ("50", "streams-50", "cpu_us"), ("200", "streams-200", "cpu_us")],
        True,
    ),
    "fan": (
        "Deliveries for each core-second",
        [("1,000 viewers", "fan-1000", "per_core_second"), ("5,000 viewers", "fan-5000", "per_core_second")],
        False,
    ),
    "replay": (
        "Replay of 10,000 chunks, p50, ms",
        [("one viewer", "replay", "one_total_p50_ms"), ("100 at once", "replay", "many_total_p50_ms")],
        True,
    ),
}
"""For each table: title, series (name, measurement, figure), and whether the scale is logarithmic."""


def bars(results: Results, table: str, titles: Mapping[str, str]) -> str:
    """Bars for each target that has the table's first figures."""
    title, series, logarithmic = PLOTS[table]
    targets = [
        name
        for name in sorted(titles, key=lambda name: name == OURS)
        if any(results.get(measure, {}).get(name, {}).get(figure) for _, measure, figure in series)
    ]
    chart = pygal.Bar(title=title, logarithmic=logarithmic, **FORM)
    chart.x_labels = [titles[name] for name in targets]
    for label, measure, figure in series:
        chart.add(label, [results.get(measure, {}).get(name, {}).get(figure) for name in targets])
    return text_of(chart)


def lines(title: str, x_labels: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> str:
    """One line for each series."""
    chart = pygal.Line(title=title, **FORM)
    chart.x_labels = list(x_labels)
    for name, values in series.items():
        chart.add(name, list(values))
    return text_of(chart)


def text_of(chart: object) -> str:
    rendered: str = chart.render(is_unicode=True)  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in rendered.splitlines()) + "\n"
