"""The table, and what it is searched by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TABLE = "streamspool_generations"


def upgrade() -> None:
    op.create_table(
        _TABLE,
        sa.Column("id", sa.Text, primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("tenant", "status", "model", "provider", "source")),
        *(sa.Column(name, sa.Text) for name in ("key_id", "served_by", "session_id", "batch_id", "error_code")),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("created_at_ms", "ended_at_ms")),
        *(sa.Column(name, sa.BigInteger) for name in ("ttft_ms", "duration_ms", "tokens", "picodollars")),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("more", sa.Text, nullable=False),
    )
    op.create_index("ix_streamspool_created", _TABLE, ["created_at_ms", "id"])
    op.create_index("ix_streamspool_listed", _TABLE, ["tenant", "created_at_ms", "id"])
    for name in ("status", "model", "provider", "source", "key_id", "error_code"):
        op.create_index(f"ix_streamspool_{name}", _TABLE, ["tenant", name, "created_at_ms"])
    for name in ("session", "batch"):
        op.create_index(f"ix_streamspool_{name}", _TABLE, ["tenant", f"{name}_id", "created_at_ms"])


def downgrade() -> None:
    op.drop_table(_TABLE)
