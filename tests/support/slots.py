"""That each transaction, script and command has its keys in one slot: looked at where a client sends them.

Hidden here: how commands are found among the bytes that go to the server. A cluster refuses what this refuses, but for what is
watched over one connection and written over another.
"""

from __future__ import annotations

from typing import Any

import hiredis

from shared.store.cluster.slots import keys_of, slot_of
from shared.store.redis import ArqRedis

_WATCH, _MULTI, _ENDS = b"WATCH", b"MULTI", (b"EXEC", b"DISCARD")


class OtherSlot(AssertionError):
    """What has to be in one slot is in several."""


class SlotChecker:
    """Of one connection: `see` everything that it sends."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._slots: dict[int, bytes] = {}
        self._watching = self._inside = False

    def see(self, packed: Any) -> None:
        self._reader.feed(packed if isinstance(packed, bytes) else b"".join(packed))
        while (words := self._reader.gets()) is not False:
            self._command(words)

    def _command(self, words: list[bytes]) -> None:
        name = words[0].upper()
        if name == _MULTI:
            self._inside = True
        if name in (b"EVAL", b"EVALSHA"):
            assert int(words[2]), "a script that declares no keys goes to any node of a cluster"
        together = self._slots if self._inside or self._watching else {}
        for key in keys_of(words):
            together.setdefault(slot_of(key), key)
        if len(together) > 1:
            raise OtherSlot(f"{name.decode()}: {sorted(together.values())}")
        if name == _WATCH:
            self._watching, self._slots = True, together
        if name in (*_ENDS, b"UNWATCH"):
            self._watching = self._inside = False
            self._slots = {}


def check_slots(client: ArqRedis) -> ArqRedis:
    """The client, whose connections fail a test that has keys of two slots in one step."""
    pool = client.connection_pool

    class Checked(pool.connection_class):  # type: ignore[misc,name-defined]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._seen = SlotChecker()

        async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            self._seen.see(command)
            await super().send_packed_command(command, check_health)

    pool.connection_class = Checked
    return client
