"""What the commands show: an answer as it comes, a bar, a table, what was used and what it cost.

Hidden here: answers go to stdout, everything else to stderr; colours only on a terminal and without NO_COLOR; nothing that a
model says may steer the terminal.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.cli.client import Event

_CONTROLS = dict.fromkeys(set(range(32)) - {9, 10} | set(range(127, 160)))
_RATE_OVER_S = 0.1
"""Within less, no rate can be told. It is that at which the answer came from the provider, not that of a replay."""
_EIGHTHS = " ▏▎▍▌▋▊▉"
_FULL = "█"
_COLUMNS = {
    "requests": "REQUESTS",
    "failed_requests": "FAILED",
    "prompt_tokens": "PROMPT",
    "cached_tokens": "CACHED",
    "completion_tokens": "COMPLETION",
    "reasoning_tokens": "REASONING",
}
"""Of a row of usage, and what stands above them."""


class Screen:
    """One answer on the terminal: text to stdout, reasoning and figures to stderr."""

    def __init__(self, *, no_stream: bool, as_json: bool) -> None:
        self._no_stream = no_stream
        self._as_json = as_json
        self._held: list[str] = []
        self._started = time.monotonic()
        self._first = 0.0
        self._clean = sys.stdout.isatty()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # half of an emoji must not end the show

    def show(self, event: Event) -> None:
        if self._as_json:
            typer.echo(json.dumps(event.data))
        elif event.kind == "attempt":
            if self._first:
                self._held.clear()
                say("\n[a new attempt begins: what was said so far does not count]", dim=True)
        elif event.text or event.reasoning:
            self._first = self._first or time.monotonic()
            if event.reasoning:
                say(self._safe(event.reasoning), dim=True, newline=False)
            if self._no_stream:
                self._held.append(event.text)
            else:
                typer.echo(self._safe(event.text), nl=False)

    def close(self) -> None:
        if not self._as_json:
            typer.echo("".join(self._held))

    def figures(self, state: dict[str, Any]) -> str:
        tokens = (state.get("usage") or {}).get("completion_tokens")
        parts = [state["id"], state["model"], state["status"]]
        if self._first:
            parts.append(f"first token after {self._first - self._started:.2f} s")
        if tokens is not None:
            parts.append(count(tokens, "token") + (" (estimate)" if state.get("usage_source") == "estimate" else ""))
            timings = state.get("timings") or {}
            said_ms = (timings.get("generation_ms") or 0) - (timings.get("first_chunk_ms") or 0)
            if said_ms >= 1000 * _RATE_OVER_S:
                parts.append(f"{1000 * tokens / said_ms:.0f} tokens/s")
        if state.get("cost_usd") is not None:
            parts.append(dollars(state["cost_usd"]))
        elif state.get("cost_source"):
            parts.append("cost unknown")
        return " · ".join(parts)

    def _safe(self, text: str) -> str:
        """A model's words must not steer the terminal."""
        return text.translate(_CONTROLS) if self._clean else text


class Progress:
    """A bar on the terminal: done, rate, time to go, failures, tokens. Nothing where there is no terminal."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]:.1f}/s"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[failed]} failed · {task.fields[tokens]} tokens"),
            console=Console(stderr=True, no_color=not coloured(sys.stderr)),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("uploading", total=None, rate=0.0, failed=0, tokens=0)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._bar.stop()

    def show(self, state: dict[str, Any]) -> None:
        counts = state["request_counts"]
        done = counts["completed"] + counts["failed"]
        started = state["in_progress_at"] or time.time()
        self._bar.update(
            self._task,
            description=state["status"],
            total=counts["total"] or None,
            completed=done,
            rate=done / max(1.0, time.time() - started),
            failed=counts["failed"],
            tokens=(state.get("usage") or {}).get("output_tokens", 0),
        )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """In columns, none of them cut: where a terminal is too narrow, it breaks the lines itself."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [cell.translate(_CONTROLS) for cell in row]
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def dollars(amount: float | None) -> str:
    """What is not known is called so; what is, has no exponent."""
    return "unknown" if amount is None else "$" + (f"{amount:.12f}".rstrip("0").rstrip(".") if amount else "0")


def show_usage(found: dict[str, Any], groups: Sequence[str], label: str) -> None:
    """`found` is what GET /v1/usage answers; `label` is `date` or `hour`."""
    rows = [(row[label], *(row.get(name) or "(none)" for name in groups), *_cells(row)) for row in found["data"]]
    total = ("all", *("" for _ in groups), *_cells(found["total"]))
    head = ("DAY" if label == "date" else "HOUR (UTC)", *(name.upper() for name in groups))
    table((*head, *_COLUMNS.values(), "FIRST p50", "p99", "WHOLE p50", "p99", "COST"), [*rows, total])
    bars = plotted(found["data"], label)
    if bars:
        typer.echo("")
    for line in bars:
        typer.echo(line)


def _cells(row: dict[str, Any]) -> list[str]:
    times = [(row.get(name) or {}).get(part) for name in ("first_token_ms", "duration_ms") for part in ("p50", "p99")]
    known, unknown = row.get("cost_usd"), row.get("unknown_costs")
    cost = dollars(known) + (f" + {unknown} unknown" if unknown and known is not None else "")
    return [
        *(str(row.get(name, 0)) for name in _COLUMNS),
        *("" if ms is None else f"{ms / 1000:.2f} s" for ms in times),
        cost,
    ]


def plotted(rows: Sequence[dict[str, Any]], label: str, width: int | None = None) -> list[str]:
    """A line for each day or hour, its bar as long as its share of the largest, in eighths of a character."""
    by_cost = any(row.get("cost_usd") for row in rows)
    sums: dict[str, float] = {}
    for row in rows:
        sums[row[label]] = sums.get(row[label], 0) + ((row["cost_usd"] or 0) if by_cost else row.get("total_tokens", 0))
    most = max(sums.values(), default=0)
    if not most:
        return []
    room = max(8, (width or shutil.get_terminal_size().columns) - 34)
    return [
        f"{at:<14}{_bar(amount / most, room)} {dollars(round(amount, 12)) if by_cost else f'{amount:,.0f} tokens'}"
        for at, amount in sorted(sums.items())
    ]


def _bar(share: float, room: int) -> str:
    eighths = round(share * room * 8)
    return _FULL * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def say(text: str, *, fg: str | None = None, dim: bool = False, newline: bool = True) -> None:
    typer.secho(text, fg=fg, dim=dim or None, nl=newline, err=True, color=coloured(sys.stderr))


def coloured(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR")
