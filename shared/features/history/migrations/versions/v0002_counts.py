"""Indexes that have all that is counted by, smaller ones, and what is only shown in fewer bytes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TABLE = "streamspool_generations"
_COUNTED = ["status", "model", "provider", "source", "key_id", "error_code"]


def upgrade() -> None:
    for name in ("created", "listed", "session", "batch"):
        op.drop_index(f"ix_streamspool_{name}", _TABLE)
    op.create_index("ix_streamspool_created", _TABLE, ["created_at_ms"])
    op.create_index("ix_streamspool_listed", _TABLE, ["tenant", "created_at_ms", *_COUNTED])
    _create_partial("not_completed", ["status", "created_at_ms", "tenant", *_COUNTED[1:]], "status != 'completed'")
    for name in ("session", "batch"):
        _create_partial(name, ["tenant", f"{name}_id", "created_at_ms"], f"{name}_id IS NOT NULL")


def downgrade() -> None:
    for name in ("created", "listed", "not_completed", "session", "batch"):
        op.drop_index(f"ix_streamspool_{name}", _TABLE)
    op.create_index("ix_streamspool_created", _TABLE, ["created_at_ms", "id"])
    op.create_index("ix_streamspool_listed", _TABLE, ["tenant", "created_at_ms", "id"])
    for name in ("session", "batch"):
        op.create_index(f"ix_streamspool_{name}", _TABLE, ["tenant", f"{name}_id", "created_at_ms"])


def _create_partial(name: str, columns: list[str], where: str) -> None:
    condition = sa.text(where)
    op.create_index(f"ix_streamspool_{name}", _TABLE, columns, sqlite_where=condition, postgresql_where=condition)
