"""Which generations a list shows, and in which order: one object, whichever source it is asked of.

Hidden here: what each filter means. Whoever has rows in a database says the same in its language, field by field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from shared.features.listing.row import Row
from shared.log.entry import Status

Order = Literal["desc", "asc", "slowest", "slowest_start", "most_expensive", "most_tokens"]
"""By the time they were created, the newest or the oldest first; or what is largest of `duration_ms`, `ttft_ms`, `picodollars`
or `tokens` first, and the newest first of those that are equal. What is not known comes last."""


class Between(NamedTuple):
    """Both ends belong to it; None: without an end. With an end, what is not known is outside."""

    least: float | None = None
    most: float | None = None

    def holds(self, value: float | None) -> bool:
        if self.least is None and self.most is None:
            return True
        return (
            value is not None
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
        )


_ANY = Between()


@dataclass(frozen=True, slots=True)
class Filters:
    """None, or empty: all of them. What is given holds together. Whose generations these are is no filter: the caller says it.

    `model` and `served_by` with `*` at their end are what the name begins with.
    """

    statuses: frozenset[Status] = frozenset()
    model: str | None = None
    served_by: str | None = None
    providers: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    key_ids: frozenset[str] = frozenset()
    errors: frozenset[str] = frozenset()
    """Codes."""
    session_id: str | None = None
    batch_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """All of these, with these values."""
    text: str | None = None
    """Stands in the id, a model's name, the error's code, the session's id, or a key or value of the metadata; capitals are as
    good as small letters."""
    since_ms: int | None = None
    """Created then or later."""
    until_ms: int | None = None
    """Created before."""
    duration_ms: Between = _ANY
    ttft_ms: Between = _ANY
    tokens: Between = _ANY
    picodollars: Between = _ANY
    order: Order = "desc"

    @property
    def by_time(self) -> bool:
        return self.order in ("asc", "desc")

    def matches(self, row: Row) -> bool:
        return (
            (not self.statuses or row.status in self.statuses)
            and _named(self.model, row.model)
            and _named(self.served_by, row.served_by)
            and (not self.providers or row.provider in self.providers)
            and (not self.sources or row.source in self.sources)
            and (not self.key_ids or row.key_id in self.key_ids)
            and (not self.errors or row.error_code in self.errors)
            and (self.session_id is None or row.session_id == self.session_id)
            and (self.batch_id is None or row.batch_id == self.batch_id)
            and self.metadata.items() <= row.metadata.items()
            and (self.since_ms is None or row.created_at_ms >= self.since_ms)
            and (self.until_ms is None or row.created_at_ms < self.until_ms)
            and self.duration_ms.holds(row.duration_ms)
            and self.ttft_ms.holds(row.ttft_ms)
            and self.tokens.holds(row.tokens)
            and self.picodollars.holds(row.picodollars)
            and (self.text is None or _has(row, self.text.lower()))
        )

    def rank(self, row: Row) -> tuple[float, int, str]:
        """What rows are sorted by, from small to large."""
        if self.order == "asc":
            return 0, row.created_at_ms, row.id
        amount = {
            "slowest": row.duration_ms,
            "slowest_start": row.ttft_ms,
            "most_expensive": row.picodollars,
            "most_tokens": row.tokens,
        }.get(self.order)
        return -1 if self.by_time else 1 if amount is None else -amount, -row.created_at_ms, row.id


def _named(wanted: str | None, name: str | None) -> bool:
    if wanted is None:
        return True
    return name is not None and (name.startswith(wanted[:-1]) if wanted.endswith("*") else name == wanted)


def _has(row: Row, text: str) -> bool:
    texts = (row.id, row.model, row.served_by, row.error_code, row.session_id, *row.metadata, *row.metadata.values())
    return any(text in one.lower() for one in texts if one)
