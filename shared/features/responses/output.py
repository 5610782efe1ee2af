"""An item of an answer while it grows, and the object that it is at any point.

Hidden here: that what was said is a chain of pieces, which all later states share and none copies.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from shared.features.responses import ids
from shared.lib import json, sse

Item = dict[str, Any]


def event_frame(number: int, kind: str, fields: dict[str, Any]) -> bytes:
    """An event under its number."""
    fields.pop("sequence_number", None)
    data = json.dumps({"type": kind, "sequence_number": number, **fields})
    return sse.frame(data, id=b"%d" % number, event=kind.encode())


_TEXT_FRAME = (
    b"id: %d\nevent: response.output_text.delta\n"
    b'data: {"type":"response.output_text.delta","sequence_number":%d,%b%b,"logprobs":[]}\n\n'
)


@lru_cache(maxsize=4096)
def _text_middle(generation_id: str, place: int, part: int) -> bytes:
    item_id = ids.item_id("message", generation_id, place).encode()
    return b'"item_id":"%b","output_index":%d,"content_index":%d,"delta":' % (item_id, place, part)


def text_frame(generation_id: str, place: int, part: int, number: int, text: str) -> bytes:
    """The frame that `event_frame` makes of a delta of text without logprobs, put together from bytes."""
    middle = _text_middle(generation_id, place, part)
    return _TEXT_FRAME % (number, number, middle, json.dumps(text))


class ReasoningNames(NamedTuple):
    """What the events about reasoning are called, and their fields."""

    part: str
    text: str
    index_field: str
    kind: str


AS_TEXT = ReasoningNames("content_part", "reasoning_text", "content_index", "reasoning_text")
AS_SUMMARY = ReasoningNames("reasoning_summary_part", "reasoning_summary_text", "summary_index", "summary_text")


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
    namespace: str = ""


class Waiting(NamedTuple):
    """A reasoning item of which nothing is missing but the summary that another model makes."""

    place: int
    shown: Item
    summary: str | None = None

    def item(self) -> Item:
        """As it is now."""
        summary = [] if self.summary is None else [{"type": "summary_text", "text": self.summary}]
        return {**self.shown, "summary": summary}


class Held(NamedTuple):
    """A call that has not begun: its name has not come yet, or the call before it is not whole."""

    kind: str
    call_id: str = ""
    name: str = ""
    said: Said | None = None


def item_object(generation_id: str, item: Open, status: str, *, summarised: bool) -> Item:
    """An item as far as it is. With `summarised`, reasoning is shown as its summary."""
    base = {"id": ids.item_id(item.kind, generation_id, item.place), "type": item.kind, "status": status}
    if item.kind == "message":
        parts = [*item.parts, part_object(item)] if item.part else list(item.parts)
        return {**base, "role": "assistant", "content": parts}
    text = "".join(pieces(item.said))
    if item.kind == "reasoning":
        if item.said is None:
            return {**base, "summary": [], "encrypted_content": None}
        if summarised:
            return {**base, "summary": [{"type": "summary_text", "text": text}], "encrypted_content": None}
        return {**base, "summary": [], "content": [{"type": "reasoning_text", "text": text}], "encrypted_content": None}
    return {
        **base,
        "call_id": item.call_id,
        "name": item.name,
        **({"namespace": item.namespace} if item.namespace else {}),
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
    """Whether a call has all its arguments, as far as one can tell."""
    if item.kind == "custom_tool_call":
        return True
    if item.said is None or not item.said.piece.rstrip().endswith("}"):
        return False
    try:
        return isinstance(json.loads("".join(pieces(item.said)).encode()), dict)
    except ValueError:
        return False


def logprobs_of(logprobs: Any) -> list[Any]:
    """The tokens of a chat's `logprobs`, which are the same here."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return content if isinstance(content, list) else []


def annotation_object(annotation: Any) -> Item | None:
    """A chat's `{type: url_citation, url_citation: {…}}`, flat; None for one of another kind."""
    if not isinstance(annotation, dict) or annotation.get("type") != "url_citation":
        return None
    cited = annotation.get("url_citation") or annotation
    fields = {"start_index": 0, "end_index": 0, "title": "", "url": ""}
    return {"type": "url_citation", **{name: cited.get(name) or nothing for name, nothing in fields.items()}}
