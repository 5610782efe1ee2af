"""A server of each kind, for what has to be seen on real ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.server import KINDS, Server


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), kind=request.param) as running:
        yield running
