"""A Responses request and answer that stay what they are: for clients of the Responses API whose provider speaks it, too.

Hidden here: that the log's chunks are a chat's all the same, so that usage, sessions and viewers of other APIs read them. The
events ride on them in `responses_events`, each as it came. A delta's text is in the chunk already, and not in the event
(`"delta": null`); what a finished response repeats of its items is left out. The events of the beginning are the front's own,
since it sends them before the provider has said anything.
"""

from __future__ import annotations

from typing import Any

from worker.providers.chunk_shapes import delta_chunk
from worker.providers.formats.responses_events import ResponsesTranslator

VERBATIM = "native"
"""Where the request stands as the client gave it, in the field of a chat request that is the front's."""

_BEGINNINGS = frozenset({"response.created", "response.queued", "response.in_progress"})
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})


def request_of(body: dict[str, Any]) -> dict[str, Any] | None:
    """The request as the client gave it; None where it is to be written anew."""
    found: dict[str, Any] | None = (body.get("responses") or {}).get(VERBATIM)
    return found


def build(native: dict[str, Any], model: str, before: list[dict[str, Any]]) -> dict[str, Any]:
    """The request with what has to be other for this provider: the model, and `before`, the items of what it goes on from."""
    given = native.get("input")
    items = given if isinstance(given, list) else [{"type": "message", "role": "user", "content": given}]
    return {**native, "model": model, "stream": True, **({"input": [*before, *items]} if before else {})}


def history_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages before the request's own, where the provider does not know them."""
    terms = body["responses"]
    messages: list[dict[str, Any]] = body["messages"]
    return messages[bool(terms.get("instructions")) : len(messages) - terms.get("own", 0)]


class VerbatimTranslator:
    """What the other one says, with the events beside it."""

    def __init__(self) -> None:
        self._chat = ResponsesTranslator()
        self._items = 0
        self.done = False

    def feed(self, event: str, value: dict[str, Any]) -> list[dict[str, Any]]:
        kind, kept = value.get("type") or event, dict(value)
        chunks = self._chat.feed(event, value)
        self.done = self._chat.done
        if not kind or kind in _BEGINNINGS:
            return chunks
        response = value["response"] if isinstance(value.get("response"), dict) else {}
        if kind == "response.done":  # what some call every end
            kind = f"response.{response.get('status')}"
            kind = kind if kind in _ENDS else "response.completed"
        kept["type"] = kind
        self._items += kind == "response.output_item.done"
        if kind in _ENDS:
            told = len(response.get("output") or ()) == self._items
            kept["response"] = {name: field for name, field in response.items() if name != "output" or not told}
        elif len(chunks) == 1 and isinstance(value.get("delta"), str) and _text_in(chunks[0]) == value["delta"]:
            kept["delta"] = None
        place = next((chunk for chunk in chunks if chunk.get("choices")), None)
        if place is None or kind in _ENDS:
            place = chunks[-1 - (not chunks[-1].get("choices"))] if chunks else delta_chunk()
            chunks = chunks or [place]
        place["responses_events"] = [kept]
        return chunks


def _text_in(chunk: dict[str, Any]) -> str | None:
    """The one text that a chunk adds."""
    [choice] = chunk["choices"]
    for name, value in choice["delta"].items():
        if name != "role" and isinstance(value, str):
            return value
        for call in value if isinstance(value, list) else ():
            inner = call.get("function") or call.get("custom") or {}
            text = inner.get("arguments", inner.get("input"))
            return text if isinstance(text, str) else None
    return None
