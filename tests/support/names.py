"""What the keys of an installation with the default prefix are called."""

from __future__ import annotations

from typing import Any

from shared.store.keys import Keys, Lane

keys = Keys()

WAITING = keys.waiting(Lane.GENERATION)
BATCHES_WAITING = keys.waiting(Lane.BATCH)


def jobs_left(client: Any) -> list[str]:
    """The keys that jobs have, seen through a client that blocks: of those that wait, or run, or left something behind."""
    return [
        key.decode()
        for kind in ("queue", "running", "job", "lease")
        for key in client.scan_iter(f"{keys.prefix}:{kind}:*", count=1000)
    ]
