"""The table of the history, as SQLAlchemy has it: its columns are those of `Record`, and `migrations/` makes it."""

from __future__ import annotations

from typing import get_args, get_type_hints

import sqlalchemy as sa

from shared.features.history.record import Record

METADATA = sa.MetaData()
_KINDS = {str: sa.Text, int: sa.BigInteger, dict[str, str]: sa.JSON}


def _column(name: str, hint: object) -> sa.Column[object]:
    kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
    return sa.Column(name, _KINDS[kinds[0]], primary_key=name == "id", nullable=len(kinds) > 1)


GENERATIONS = sa.Table(
    "streamspool_generations", METADATA, *map(_column, *zip(*get_type_hints(Record).items(), strict=True))
)
_C = GENERATIONS.c
COUNTED = ("status", "model", "provider", "source", "key_id", "error_code")
"""Columns that are counted by: each has an index that has all that is needed for that."""
NOT_COMPLETED = _C.status != sa.literal_column("'completed'")
"""As the index of those has it: a parameter would tell a planner nothing."""

INDEXES = (
    sa.Index("ix_streamspool_created", _C.created_at_ms),
    # What is listed, and what is counted under a filter: all of it stands there, so that no row is read for the count.
    sa.Index("ix_streamspool_listed", _C.tenant, _C.created_at_ms, *(_C[name] for name in COUNTED)),
    sa.Index(
        "ix_streamspool_not_completed",
        *(_C[name] for name in ("status", "created_at_ms", "tenant", *COUNTED[1:])),
        sqlite_where=NOT_COMPLETED,
        postgresql_where=NOT_COMPLETED,
    ),
    *(sa.Index(f"ix_streamspool_{name}", _C.tenant, _C[name], _C.created_at_ms) for name in COUNTED),
    *(
        sa.Index(
            f"ix_streamspool_{name}",
            _C.tenant,
            _C[f"{name}_id"],
            _C.created_at_ms,
            sqlite_where=_C[f"{name}_id"].is_not(None),
            postgresql_where=_C[f"{name}_id"].is_not(None),
        )
        for name in ("session", "batch")
    ),
)
