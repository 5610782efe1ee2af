"""What one more of each thing costs, by the last measurement: `docs/performance/results.json`, made by `make bench-peers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "docs/performance/results.json"
RATE = 50
"""Chunks a second of a live stream."""
BUSY = 0.7
"""How busy a core may be before it is full at times."""


def rows() -> list[tuple[str, ...]]:
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(RESULTS.read_text())["scale"]
    streams, viewers, apis = found["streams"], found["viewers"], found["apis"]
    busiest, wide = streams[max(streams, key=int)], viewers["1000"]
    few, many = min(apis, key=int), max(apis, key=int)
    read_us = (apis[many]["valkey_us_per_stored_chunk"] - apis[few]["valkey_us_per_stored_chunk"]) / (
        int(many) - int(few)
    )
    return [
        _row("live stream, with one viewer", "worker", busiest["cpu_worker_us"]),
        _row("", "API", busiest["cpu_api_us"]),
        _row("", "Valkey", busiest["cpu_valkey_us"]),
        _row("further viewer of it", "API", wide["cpu_api_us"]),
        _row("further API process that has viewers of it", "Valkey", read_us),
    ]


def _row(what: str, where: str, cost_us: float) -> tuple[str, ...]:
    share = RATE * cost_us / 1e6
    return what, where, f"{cost_us:.1f}", f"{share:.2%}".replace("%", " %"), f"{BUSY / share:,.0f}"
