"""Alembic's: how the table of the history became what it is, step by step."""
