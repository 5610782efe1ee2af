"""A request whose provider speaks this API itself: it is sent what the client said, whatever that is.

Hidden here: which fields are for us, or are said in another way, and the chat that stands in the log beside the request, which
is what of it a chat can say: usage is measured by it, conversations keep it, and other providers go on from it.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import model_validator

from shared.chat.checking import wrong
from shared.chat.request import ChatRequest
from shared.features.responses.items import readable
from shared.features.responses.namespaces import NAMESPACES, spaces_in, with_flat_name
from shared.features.responses.request import NOTHING_NEW, SAME, TERMS, Asked, ResponsesRequest, session_terms

_NOT_ITS_OWN = frozenset(
    "background conversation previous_response_id on_interruption on_disconnect max_tokens_per_s webhook "
    "store_reasoning".split()
)
"""What of a request a provider that speaks this API is not sent as it came: it is for us, or is said in another way."""


class NativeRequest(ResponsesRequest):
    """The same for a provider that speaks this API itself: what it knows is its own affair."""

    tools: list[dict[str, Any]] | None = None  # type: ignore[assignment]
    tool_choice: Any = None
    text: dict[str, Any] | None = None  # type: ignore[assignment]
    max_tool_calls: Any = None
    truncation: str | None = None  # type: ignore[assignment]
    reasoning: dict[str, Any] | None = None  # type: ignore[assignment]
    stream_options: dict[str, Any] | None = None  # type: ignore[assignment]

    @model_validator(mode="after")
    def _can_be_carried(self) -> Self:
        if self.conversation is not None and self.previous_response_id is not None:
            raise wrong("conversation", "Not allowed with previous_response_id: a response goes on from one of them")
        if self.background and self.on_disconnect == "cancel":
            raise wrong("on_disconnect", "Not allowed with background, which nobody has to watch")
        return self


def to_native(given: dict[str, Any], request: NativeRequest, known_as: str | None) -> Asked:
    """A request for a provider that speaks this API: as it came, with what of it a chat can say beside it. `known_as` is what
    the provider itself calls the response that it goes on from."""
    native = {field: value for field, value in given.items() if field not in _NOT_ITS_OWN}
    if known_as is not None:
        native["previous_response_id"] = known_as
    own = readable(list(map(with_flat_name, request.items)), {})
    messages = [
        *([{"role": "system", "content": request.instructions}] if request.instructions is not None else []),
        *own,
    ]
    body = {field: given[field] for field in ("model", "metadata", "background") if given.get(field) is not None}
    body |= {field: given[field] for field in SAME if field in _NOT_ITS_OWN and given.get(field) is not None}
    body["messages"] = messages
    terms = {
        "native": native,
        "own": len(own),
        "instructions": True if request.instructions is not None else None,
        "previous_response_id": request.previous_response_id,
        "conversation": request.conversation_id,
        "store": request.store,
        NAMESPACES: spaces_in(request.tools or ()) or None,
    }
    body[TERMS] = {name: value for name, value in terms.items() if value is not None}
    if request.conversation_id is not None:
        body |= session_terms(request)
    checked = ChatRequest.check(body if messages else {**body, "messages": [NOTHING_NEW]})
    checked.store = request.store is not False
    return Asked(checked, body)
