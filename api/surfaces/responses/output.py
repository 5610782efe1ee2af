"""An item of an answer while it grows, and the object that it is at any point.

Hidden here: that what was said is a chain of pieces, which all later states share and none copies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from api.surfaces.responses import ids
from shared.lib import json

Item = dict[str, Any]


class Said(NamedTuple):
    """A piece of text, or of a list, and what came before it: shared by all folds that come after."""

    before: Said | None
    piece: Any


def pieces(said: Said | None) -> list[Any]:
    """All pieces, in their order."""
    found = []
    while said is not None:
        found.append(said.piece)
        said = said.before
    found.reverse()
    return found


class Open(NamedTuple):
    """An item that has begun and is not closed."""

    kind: str
    place: int
    """Its `output_index`."""
    said: Said | None = None
    """What the open part says; the arguments of a call."""
    part: str = ""
    """Of a message: the type of its open part."""
    parts: tuple[Item, ...] = ()
    """Of a message: the parts that are closed."""
    notes: Said | None = None
    """Annotations of the open part."""
    logprobs: Said | None = None
    call: int = 0
    """Of a call: its index in the chat."""
    call_id: str = ""
    name: str = ""


class Unnamed(NamedTuple):
    """A call whose name has not come yet, and what did."""

    call_id: str
    kind: str
    said: Said | None


def item_object(generation_id: str, item: Open, status: str, *, summarised: bool) -> Item:
    """An item as far as it is. With `summarised`, reasoning is shown as its summary."""
    base = {"id": ids.item_id(item.kind, generation_id, item.place), "type": item.kind, "status": status}
    if item.kind == "message":
        parts = [*item.parts, part_object(item)] if item.part else list(item.parts)
        return {**base, "role": "assistant", "content": parts}
    text = "".join(pieces(item.said))
    if item.kind == "reasoning":
        if summarised:
            return {**base, "summary": [{"type": "summary_text", "text": text}], "encrypted_content": None}
        return {**base, "summary": [], "content": [{"type": "reasoning_text", "text": text}], "encrypted_content": None}
    return {
        **base,
        "call_id": item.call_id,
        "name": item.name,
        ("arguments" if item.kind == "function_call" else "input"): text,
    }


def part_object(item: Open) -> Item:
    """The open part of a message."""
    text = "".join(pieces(item.said))
    if item.part == "refusal":
        return {"type": "refusal", "refusal": text}
    logprobs = [token for tokens in pieces(item.logprobs) for token in tokens]
    return {"type": "output_text", "text": text, "annotations": pieces(item.notes), "logprobs": logprobs}


def is_whole(item: Open) -> bool:
    """Whether a call that is not the last one has all its arguments."""
    if item.kind == "custom_tool_call":
        return True
    try:
        return isinstance(json.loads("".join(pieces(item.said)).encode()), dict)
    except ValueError:
        return False
