"""The log as its native events: chunks with their positions, and an event for each new attempt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from api.chunk_events import ChunkEvents
from api.live.projection import Fold
from shared.lib import json, sse


class NativeEvents(ChunkEvents):
    """Its viewers know attempts."""

    native = True

    def attempt(self, epoch: int, replaced: Fold) -> Sequence[bytes]:
        """What the viewer has is void: `event: attempt`, with the cursor of the new attempt's start."""
        return [sse.frame(json.dumps({"attempt": epoch}), id=b"%d-0" % epoch, event=b"attempt")]


@cache
def native_events(*, include_usage: bool) -> NativeEvents:
    """One for all viewers."""
    return NativeEvents(ids=True, include_usage=include_usage)
