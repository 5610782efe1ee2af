"""A server for each test, which it may stop, kill or have refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.store import Store
from tests.support.server import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as server:
        yield server


@pytest.fixture
def control(server: Server) -> Iterator[Store]:
    with server.client() as client:
        yield client
