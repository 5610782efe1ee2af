"""What Alembic runs: the steps that are missing, over the connection that it is given."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table="streamspool_history_version")
with context.begin_transaction():
    context.run_migrations()
