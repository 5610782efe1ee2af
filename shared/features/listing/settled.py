"""That what follows from an outcome was done, told in the transaction that does it: once for each generation."""

from __future__ import annotations

from functools import partial

from shared.features.effect import Commands, Ended
from shared.log.feed import Feed
from shared.log.feed import ended as told


class SettledEvents:
    """An effect. Without a feed it is told nowhere."""

    def __init__(self, feed: Feed | None) -> None:
        self._feed = feed

    async def effect(self, ended: Ended) -> Commands | None:
        if self._feed is None:
            return None
        return partial(self._feed.add, event=told("settled", ended.header, ended.outcome))
