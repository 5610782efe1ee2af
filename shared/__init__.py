"""What API and worker have in common, in rooms: each knows only those below it (see `layers` in pyproject.toml)."""

__version__ = "0.2.0"
"""The one place: the wheel, `--version`, the OpenAPI schema and requests to providers show it."""
