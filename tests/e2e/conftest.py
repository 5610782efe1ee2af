"""Codex is not set up with the other clients, for its size. Without it its tests are not collected, so none is skipped."""

from __future__ import annotations

from tests.e2e.codex import PROGRAM

collect_ignore = [] if PROGRAM.exists() else ["test_codex.py"]
