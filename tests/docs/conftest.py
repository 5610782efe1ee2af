"""A stack of the documentation's own: like the others, but quick to notice that everybody has left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack
from tests.harness.upstream import ScriptedUpstream


@pytest.fixture(scope="session")
def stack(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """API and worker as real processes, on a database of their own. Shared: leave it running."""
    url = valkey.url.replace("db=0", "db=5")
    settings = {
        "STREAMSPOOL_DISCONNECT_GRACE_S": "1",
        "STREAMSPOOL_LEASE_S": "4",
        "STREAMSPOOL_WEBHOOK_SECRET": "whsec_bm90LWEtc2VjcmV0LWl0LXN0YW5kcy1pbi1kb2NzLi4=",
        "STREAMSPOOL_WEBHOOK_ALLOW": "127.0.0.1",
    }
    with Stack(url, upstream.base_url, tmp_path_factory.mktemp("docs"), **settings) as running:
        yield running
