"""One browser for each module of tests; and what is not collected here.

Codex is not set up with the other clients, for its size. Without it its tests are not collected, so none is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.e2e.codex import PROGRAM
from tests.e2e.console import chromium

collect_ignore = [] if PROGRAM.exists() else ["test_codex.py"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running
