"""What a WebSocket remembers: which responses were made through it, and what was only prepared.

Hidden here: that it holds names. What was asked and said stands in the logs of those responses, which are kept for as long as
any that is not stored, so a conversation on a socket goes on without `store`. Only what was prepared without asking a model
(`generate: false`) has no log: it is held itself, within bounds, and is gone with its socket.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

from shared.errors import TooLarge
from shared.features.responses.items import Item
from shared.log.blobs import INLINE_BYTES

_RESPONSES, _PREPARED = 1000, 8


class Prepared(NamedTuple):
    """The input of a request that was not to be answered, and the response that it goes on from."""

    items: list[Item]
    previous_response_id: str | None


class Memory:
    """Of one socket. It contains the ids of responses that may be gone on from there."""

    def __init__(self) -> None:
        self._responses: OrderedDict[str, str | None] = OrderedDict()
        self._prepared: OrderedDict[str, Prepared] = OrderedDict()

    def __contains__(self, response_id: object) -> bool:
        return response_id in self._responses

    def note(self, response_id: str, stream_id: str | None) -> None:
        """A response was begun here."""
        self._responses[response_id] = stream_id
        while len(self._responses) > _RESPONSES:
            self._responses.popitem(last=False)

    def forget(self, response_id: object) -> None:
        """Nothing that is not stored can be gone on from it any more."""
        if isinstance(response_id, str):
            self._responses.pop(response_id, None)
            self._prepared.pop(response_id, None)

    def stream_of(self, response_id: str) -> str | None:
        return self._responses.get(response_id)

    def check_size(self, size: int) -> None:
        """Raises TooLarge where what is to be prepared takes too much, in bytes."""
        if size > INLINE_BYTES:
            raise TooLarge(f"What is prepared may have {INLINE_BYTES} bytes. Send it with the request that it is for.")

    def prepare(self, response_id: str, prepared: Prepared) -> None:
        """Keeps what was prepared, the last eight of it."""
        self._prepared[response_id] = prepared
        while len(self._prepared) > _PREPARED:
            self._prepared.popitem(last=False)

    def with_prepared(self, given: dict[str, Any]) -> dict[str, Any]:
        """The request, with the input that was prepared for it in front of its own."""
        prepared = self._prepared.get(str(given.get("previous_response_id")))
        if prepared is None:
            return given
        own = given.get("input")
        items = [{"role": "user", "content": own}] if isinstance(own, str) else own if isinstance(own, list) else []
        return {
            **given,
            "input": [*prepared.items, *items],
            "previous_response_id": prepared.previous_response_id,
        }
