"""What API and worker have in common, in rooms: each knows only those below it (see `layers` in pyproject.toml)."""
