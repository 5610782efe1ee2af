"""A line of a batch that asks /v1/responses: its request as a chat, and its answer as a response object.

Hidden here: that a line stands alone, and is stored only if it says so; and that its items are made of the whole message:
reasoning first, then the text, then calls, which is the order in which almost all providers give them.
"""

from __future__ import annotations

from typing import Any

from shared.chat.messages import visible_text
from shared.errors import BadRequest
from shared.features.responses import ids
from shared.features.responses.namespaces import NAMESPACES, Own, own_names
from shared.features.responses.objects import ended_response
from shared.features.responses.output import Item, Open, Said, item_object
from shared.features.responses.request import TERMS, Asked, ResponsesRequest, echoed, to_chat
from shared.log.entry import Status
from shared.log.records import Header, Outcome

_ALONE = ("previous_response_id", "conversation")


def to_line(given: dict[str, Any]) -> Asked:
    """The chat request of a line's body. Raises BadRequest that names the field."""
    checked = ResponsesRequest.check(given)
    for field in _ALONE:
        if given.get(field) is not None:
            raise BadRequest(f"{field}: A line of a batch stands alone; send all items as input.", param=field)
    for number, item in enumerate(checked.items):
        if item.get("type") == "item_reference":
            raise BadRequest("A line of a batch stands alone; send the item itself.", param=f"input[{number}].type")
    asked = to_chat(given, checked, checked.items)
    asked.request.store = bool(checked.store)  # what is in the output need not be kept twice
    return asked


def line_object(
    header: Header, body: dict[str, Any], outcome: Outcome, message: dict[str, Any], *, think_tags: bool
) -> dict[str, Any]:
    """The response that a line's answer is, by what is stored of its request."""
    items = _items(header["id"], body, Status(outcome["status"]), message, think_tags=think_tags)
    return ended_response(header, echoed(header, body), outcome, output=items, stored=True)


def _items(
    generation_id: str, body: dict[str, Any], ended: Status, message: dict[str, Any], *, think_tags: bool
) -> list[Item]:
    content, reasoning = visible_text(message, think_tags=think_tags)
    calls, names = message.get("tool_calls") or (), own_names(body[TERMS].get(NAMESPACES))
    found: list[Open] = []
    if reasoning:
        found.append(Open("reasoning", 0, said=Said(None, reasoning)))
    if content or message.get("refusal") or not calls:
        parts = [] if message.get("refusal") and not content else [Said(None, content)]
        item = Open("message", len(found), said=parts[0] if parts else None, part="output_text" if parts else "")
        if refusal := message.get("refusal"):
            said = [{"type": "output_text", "text": content, "annotations": [], "logprobs": []}] if parts else []
            item = Open("message", len(found), said=Said(None, refusal), part="refusal", parts=tuple(said))
        found.append(item)
    for number, call in enumerate(calls):
        custom = call.get("type") == "custom"
        called = call.get("custom" if custom else "function") or {}
        text = called.get("input" if custom else "arguments") or ""
        kind = "custom_tool_call" if custom else "function_call"
        call_id = call.get("id") or ids.call_id(generation_id, number)
        flat = called.get("name") or ""
        name, space = names.get(flat, Own(flat))
        found.append(Open(kind, len(found), said=Said(None, text), call_id=call_id, name=name, namespace=space))
    summarised = bool(body[TERMS].get("summary"))
    last = len(found) - 1
    return [
        item_object(
            generation_id,
            item,
            "incomplete" if at == last and ended is Status.INCOMPLETE else "completed",
            summarised=summarised,
        )
        for at, item in enumerate(found)
    ]
