"""A server with a provider that speaks the Responses API itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack
from tests.harness.upstream import ScriptedUpstream
from tests.support.wire import Client


@pytest.fixture(scope="session")
def native(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """Its models are `own/…`, for scripts by the same name; `alias` is one of them under another name."""
    table = (
        f'[models]\nalias = "own/aliased"\n\n[providers.own]\nkind = "responses"\nbase_url = "{upstream.base_url}"\n'
    )
    directory = tmp_path_factory.mktemp("native")
    url = valkey.url.replace("db=0", "db=12")
    with Stack(url, upstream.base_url, directory, config=table) as stack, Client(stack.url) as http:
        yield http
