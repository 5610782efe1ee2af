"""Who watches with which key, so that the viewers of one that is revoked are turned out.

Hidden here: that only keys that can be revoked are kept track of, since a server may have thousands of viewers; and that a
viewer that has left is forgotten by itself.
"""

from __future__ import annotations

from weakref import WeakSet

from api.live.client import Client


class Viewers:
    """Of one process."""

    def __init__(self) -> None:
        self._by_key: dict[str, WeakSet[Client]] = {}

    def of(self, key_id: str) -> WeakSet[Client] | None:
        """Where the clients of a key are kept; None for one that cannot be revoked."""
        if not key_id.startswith("key_"):
            return None
        if (own := self._by_key.get(key_id)) is None:
            own = self._by_key[key_id] = WeakSet()
        return own

    def turn_out(self, key_id: str) -> None:
        """Cuts all connections that show a stream for this key."""
        for client in list(self._by_key.pop(key_id, ())):
            client.turn_out()
