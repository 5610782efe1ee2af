"""What a request asks for, whichever way it came: checked, as the chat that it becomes, and what it goes on from.

Hidden here: that a provider which speaks this API is asked in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container
from functools import partial
from typing import Any, NamedTuple

from api.services import Services
from api.surfaces.responses.continued import Before, continued, continued_natively
from shared.chat.request import ChatRequest
from shared.features.access.expected import expected
from shared.features.responses.native import NativeRequest, to_native
from shared.features.responses.request import ResponsesRequest, to_chat
from shared.generations.caller import Caller
from shared.generations.front import Front
from shared.lib import json
from shared.log.blobs import Cut


class Asking(NamedTuple):
    """A request in all its forms."""

    request: ResponsesRequest
    chat: ChatRequest
    body: dict[str, Any]
    """The chat as it is stored."""
    previous: Before

    def front(self, turn: str | None) -> Front:
        """What is to be said of it beside the chat."""
        expects = partial(expected, body=self.body, before=self.previous.tokens)
        return Front("responses", turn, self.previous.generations, expects=expects)


async def understand(services: Services, caller: Caller, given: Any, known: Container[str] = ()) -> Asking:
    """What the body `given` asks for. `known` are responses that may be gone on from although they are not stored. Raises
    BadRequest, NotFound."""
    model = given.get("model") if isinstance(given, dict) else None
    if isinstance(model, str) and await services.catalogue.speaks_responses(model):
        native = NativeRequest.check(given)
        previous, known_as = await continued_natively(services, caller, native, known)
        return Asking(native, *to_native(given, native, known_as), previous)
    checked = ResponsesRequest.check(given)
    previous, items, calls, thoughts = await continued(services, caller, checked, known)
    return Asking(checked, *to_chat(given, checked, items, calls=calls, thoughts=thoughts), previous)


async def turn_of(services: Services, session: str | None, given: dict[str, Any], cut: Cut) -> str | None:
    """What tells a request that a client makes again from a new one, for clients that name their session (Codex): they make
    it again, up to 30 times, with no key and no count, and a new one has another `client_metadata.turn_id`.

    It is what they ask for, and not how they write it down: Codex makes the body anew, with the fields of `client_metadata`
    in another order each time. Of those, the turn is what counts, where there is one.
    """
    if not session:
        return None
    metadata = given.get("client_metadata")
    turn = metadata.get("turn_id") if isinstance(metadata, dict) else None
    if isinstance(turn, str) and turn:
        given = {**given, "client_metadata": {"turn_id": turn}}
    digest = await services.blobs.digest(cut, json.dumps_sorted(given))
    return hashlib.sha256(f"{session}\0{digest}".encode()).hexdigest()
