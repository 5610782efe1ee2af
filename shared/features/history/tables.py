"""The table of the history, as SQLAlchemy has it; `migrations/` makes it."""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()

GENERATIONS = sa.Table(
    "streamspool_generations",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("ended_at_ms", sa.BigInteger, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("served_by", sa.Text),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("session_id", sa.Text),
    sa.Column("batch_id", sa.Text),
    sa.Column("error_code", sa.Text),
    sa.Column("ttft_ms", sa.BigInteger),
    sa.Column("duration_ms", sa.BigInteger),
    sa.Column("tokens", sa.BigInteger),
    sa.Column("picodollars", sa.BigInteger),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("more", sa.Text, nullable=False),
)
COUNTED = ("status", "model", "provider", "source", "key_id", "error_code")
"""Columns that are counted by: each has an index that has all that is needed for that."""

INDEXES = (
    sa.Index("ix_streamspool_created", GENERATIONS.c.created_at_ms, GENERATIONS.c.id),
    sa.Index("ix_streamspool_listed", GENERATIONS.c.tenant, GENERATIONS.c.created_at_ms, GENERATIONS.c.id),
    *(
        sa.Index(f"ix_streamspool_{name}", GENERATIONS.c.tenant, GENERATIONS.c[name], GENERATIONS.c.created_at_ms)
        for name in COUNTED
    ),
    sa.Index("ix_streamspool_session", GENERATIONS.c.tenant, GENERATIONS.c.session_id, GENERATIONS.c.created_at_ms),
    sa.Index("ix_streamspool_batch", GENERATIONS.c.tenant, GENERATIONS.c.batch_id, GENERATIONS.c.created_at_ms),
)
