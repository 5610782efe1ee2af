"""The ledger's rows as a report: grouped as asked, as JSON and as CSV.

Hidden here: what can be grouped by what, and that requests without a name in their metadata are a row of their own, so that a
report by metadata adds up to all there is.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shared.errors import BadRequest
from shared.features.spend import figures
from shared.features.spend.figures import Counts
from shared.features.spend.ledger import Row, Width

GROUPS = ("tenant", "key", "model", "provider")
METADATA = "metadata."
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""With these a spreadsheet begins a formula (owasp.org, "CSV Injection")."""


def check_groups(groups: Sequence[str]) -> list[str]:
    """The names in `group_by`, each once. Raises BadRequest."""
    names = list(dict.fromkeys(name.strip() for text in groups for name in text.split(",") if name.strip()))
    for name in names:
        if name not in GROUPS and not (name.startswith(METADATA) and len(name) > len(METADATA)):
            known = ", ".join((*GROUPS, f"{METADATA}NAME"))
            raise BadRequest(f"`group_by` may be {known}; {name[:64]!r} is none of them.", param="group_by")
    by_metadata = [name for name in names if name.startswith(METADATA)]
    if by_metadata and set(names) - {"tenant", by_metadata[0]}:
        raise BadRequest(
            "What was used by metadata is added up by itself: group by one name of it, and by `tenant`.",
            param="group_by",
        )
    return names


def report(rows: Iterable[Row], groups: Sequence[str], width: Width, model: str | None = None) -> list[dict[str, Any]]:
    """A row for each hour or day and group, the oldest first: `date` or `hour`, the groups' names, and the figures.

    `groups` are of `check_groups`; `model` leaves out all others, and cannot be told by metadata. Raises BadRequest.
    """
    metadata = next((name for name in groups if name.startswith(METADATA)), None)
    if metadata and model is not None:
        raise BadRequest("What was used by metadata cannot be told by model.", param="model")
    sums: dict[tuple[str, ...], Counts] = {}
    for row in rows:
        if metadata is None or row.dims[0] == "model":
            if row.dims[0] == "model" and model in (None, row.dims[2]):
                place = _place(row, groups, "")
                sums.setdefault(place, Counter()).update(row.counts)
        elif row.dims[1] == metadata[len(METADATA) :]:
            sums.setdefault(_place(row, groups, f"={row.dims[2]}"), Counter()).update(row.counts)
            sums.setdefault(_place(row, groups, ""), Counter()).subtract(row.counts)
    label = "hour" if width == "hour" else "date"
    return [
        {label: at, **_named(groups, values), **figures.shown(+counts)}
        for (at, *values), counts in sorted(sums.items())
        if counts["n"]
    ]


def total(rows: Iterable[Row], model: str | None = None) -> dict[str, Any]:
    """The sum of what `report` has."""
    return figures.shown(
        figures.added(row.counts for row in rows if row.dims[0] == "model" and model in (None, row.dims[2]))
    )


def _place(row: Row, groups: Sequence[str], value: str) -> tuple[str, ...]:
    """Where a row is added. A value of metadata begins with `=`, so that none is not an empty one."""
    _, key, model = row.dims if row.dims[0] == "model" else ("", "", "")
    parts = {
        "tenant": row.tenant,
        "key": key,
        "model": model,
        "provider": model.partition("/")[0] if "/" in model else "",
    }
    return (row.at, *(parts.get(name, value) for name in groups))


def _named(groups: Sequence[str], values: Sequence[str]) -> dict[str, str | None]:
    named: dict[str, str | None] = {}
    for name, value in zip(groups, values, strict=True):
        if name.startswith(METADATA):
            named[name] = value[1:] if value else None
        else:
            named[name] = value or None
    return named


def as_csv(found: Sequence[Mapping[str, Any]], groups: Sequence[str], width: Width) -> str:
    """RFC 4180, a line for each row, with `unknown` where a cost is."""
    times = [f"{name}_{part}" for name in ("first_token_ms", "duration_ms") for part in ("p50", "p90", "p99")]
    head = ["hour" if width == "hour" else "date", *groups, *figures.FIGURES, "cost_usd", "unknown_costs", *times]
    text = io.StringIO()
    writer = csv.DictWriter(text, head, extrasaction="ignore", lineterminator="\r\n")
    writer.writeheader()
    for row in found:
        flat = {
            f"{name}_{part}": ms for name in ("first_token_ms", "duration_ms") for part, ms in (row[name] or {}).items()
        }
        cost = "unknown" if row["cost_usd"] is None else f"{row['cost_usd']:.12f}".rstrip("0").rstrip(".")
        cells = {**row, **flat, "cost_usd": cost}
        writer.writerow({name: _plain(cells.get(name)) for name in head})
    return text.getvalue()


def _plain(cell: Any) -> Any:
    """A name from outside must not be a formula in somebody's spreadsheet."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
