"""Input items as messages of the canonical chat.

Hidden here: that one message of the assistant's is several items. For example, a `message` and the two `function_call` items
after it are one message with two `tool_calls`. What a chat cannot carry is refused by its path, such as
`input[2].content[0].type`.

Clients send items in many spellings, all of which are read: without `type`, without `id` or with a foreign one, with any
`status`, with `content: null`, outputs as a string or as a list, `annotations` and `logprobs` in text that is sent back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from shared.chat.messages import REASONING_FIELDS
from shared.errors import BadRequest
from shared.features.responses import ids
from shared.lib import json

Item = dict[str, Any]
Message = dict[str, Any]

_ROLES = ("user", "assistant", "system", "developer")
OUTPUTS = {"function_call_output": "function_call", "custom_tool_call_output": "custom_tool_call"}
"""Which item each kind of output answers."""
Calls = Mapping[tuple[str, str], str]
"""The `call_id` of each call, by its kind and any id it has: some clients answer the item's id."""
_LOOKED_UP = ("type", "id", "call_id")
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def as_items(given: Any) -> list[Item]:
    """The `input` of a request as a list of items. Raises BadRequest."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list):
        raise BadRequest("input: Input should be a string or an array of items.", param="input")
    _check(given, "input")
    return given


def _check(items: Sequence[Any], path: str) -> None:
    """Raises BadRequest for what is no item, or has something else than text where it is looked up by that."""
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise _wrong(f"{path}[{number}]", "Input should be an object")
        for field in _LOOKED_UP:
            if not isinstance(item.get(field), str | None):
                raise _wrong(f"{path}[{number}].{field}", "Input should be a string")


def have_outputs(items: Sequence[Item], path: str = "input") -> bool:
    """Whether any of them is what a tool gave. Raises BadRequest for what is no item."""
    _check(items, path)
    return any(item.get("type") in OUTPUTS for item in items)


def to_messages(
    items: Sequence[Item],
    *,
    path: str = "input",
    keep_reasoning: bool = False,
    calls: Calls | None = None,
    thoughts: Mapping[str, Message] | None = None,
) -> list[Message]:
    """The messages that these items amount to, which are those of the field `path`; `calls` are those of what they go on from.

    With `keep_reasoning`, reasoning is sent back where a tool was called in the same turn, as `reasoning_content`. Where
    `thoughts` has the message that the provider gave, by its generation, its reasoning goes back as it came then.
    Raises BadRequest with the path of what is wrong.
    """
    _check(items, path)
    reader = _Reader(calls or {}, thoughts or {}, keep_reasoning=keep_reasoning)
    for number, item in enumerate(items):
        reader.read(f"{path}[{number}]", item)
    return reader.end()


def to_items(messages: Sequence[Message], generation_id: str) -> list[Item]:
    """The same back: the items that these messages of a request were made of, under ids of ours.

    What a chat does not carry is not there: ids that a client gave, and reasoning.
    """
    return [one.item for one in placed(messages, generation_id)]


def readable(items: Sequence[Item], calls: Calls) -> list[Message]:
    """The messages that items amount to as far as a chat has them: what hosted tools did, it has not."""
    reader = _Reader(calls, {}, keep_reasoning=False)
    for item in items:
        with suppress(BadRequest):
            reader.read("input", item)
    return reader.end()


class Placed(NamedTuple):
    """An item, and where it is among messages: in which, and which call of its."""

    item: Item
    message: int
    call: int | None = None


def placed(messages: Sequence[Message], generation_id: str, first: int = ids.FIRST_INPUT) -> list[Placed]:
    """The items with their places, whose ids are counted from `first`. What was deleted keeps its number."""
    found: list[Placed] = []
    customs: set[str] = set()
    count = first

    def add(at: int, fields: Item | None, call: int | None = None) -> None:
        nonlocal count
        if fields is not None:
            kind = fields["type"]
            base = {"id": ids.item_id(kind, generation_id, count), "type": kind, "status": "completed"}
            found.append(Placed({**base, **fields}, at, call))
        count += 1

    for at, message in enumerate(messages):
        role, content = message["role"], message.get("content")
        if role != "assistant":
            add(at, _heard_item(message, customs))
            continue
        if content is not None or message.get("refusal") is not None:
            add(at, {"type": "message", "role": role, "content": _said_parts(message)})
        elif message.get("deleted"):
            add(at, None)
        for number, call in enumerate(message.get("tool_calls") or ()):
            item = _call_item(call)
            if item is not None and item["type"] == "custom_tool_call":
                customs.add(item["call_id"])
            add(at, item, number)
    return found


def _heard_item(message: Message, customs: set[str]) -> Item | None:
    """What is not the assistant's; None if it was deleted. `customs` are the custom calls before."""
    role, content = message["role"], message.get("content")
    if role == "deleted":
        return None
    if role != "tool":
        parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        return {"type": "message", "role": role, "content": [_item_part(part) for part in parts]}
    call_id = message["tool_call_id"]
    kind = "custom_tool_call_output" if call_id in customs else "function_call_output"
    output = [_item_part(part) for part in content] if isinstance(content, list) else content
    return {"type": kind, "call_id": call_id, "output": output}


def _call_item(call: dict[str, Any]) -> Item | None:
    """A chat may have left out what an item has, or have it as JSON: providers differ in what they want."""
    kind = call.get("type") or "function"
    if kind == "deleted":
        return None
    called = call.get(kind)
    told = called if isinstance(called, dict) else {}
    kind, text = ("custom_tool_call", "input") if kind == "custom" else ("function_call", "arguments")
    return {"type": kind, "call_id": _told(call, "id"), "name": _told(told, "name"), text: _told(told, text)}


def _told(value: dict[str, Any], field: str) -> str:
    found = value.get(field)
    return found if isinstance(found, str) else "" if found is None else json.dumps(found).decode()


def _item_part(part: dict[str, Any]) -> dict[str, Any]:
    """A part of a chat's content as one of an input item."""
    kind = part["type"]
    if kind == "text":
        return {"type": "input_text", "text": part["text"]}
    if kind == "image_url":
        image = part.get("image_url")
        image = image if isinstance(image, dict) else {"url": image}  # Mistral's is the URL itself
        detail = image.get("detail", "auto")
        return {"type": "input_image", "image_url": image.get("url"), "detail": detail, "file_id": None}
    if kind == "file":
        return {"type": "input_file", **(part.get("file") or {})}
    return part


def _said_parts(message: Message) -> list[dict[str, Any]]:
    content, refusal = message.get("content"), message.get("refusal")
    given = content if isinstance(content, list) else [] if content is None else [{"type": "text", "text": content}]
    parts = [
        {"type": "output_text", "text": one["text"], "annotations": [], "logprobs": []}
        if one["type"] == "text"
        else one
        for one in given
    ]
    return parts if refusal is None else [*parts, {"type": "refusal", "refusal": refusal}]


class _Reader:
    """Reads items in their order."""

    def __init__(self, calls: Calls, given: Mapping[str, Message], *, keep_reasoning: bool) -> None:
        self._given, self._keep_reasoning = given, keep_reasoning
        self._by_call = {call.get("id"): one for one in given.values() for call in one.get("tool_calls") or ()}
        self._answer: Message | None = None
        """The provider's own message that the reasoning before belongs to."""
        self._messages: list[Message] = []
        self._open: Message | None = None
        """The assistant's message that further items may belong to."""
        self._thoughts: list[str] = []
        self._calls = dict(calls)

    def read(self, path: str, item: Item) -> None:
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "message":
            self._read_message(path, item)
        elif kind in ("function_call", "custom_tool_call"):
            self._read_call(path, item, kind)
        elif kind in OUTPUTS:
            self._read_output(path, item, kind)
        elif kind == "reasoning":
            self._read_reasoning(path, item)
        elif kind is None:
            raise _wrong(f"{path}.type", "Input is required, unless there is a role")
        else:
            raise _wrong(
                f"{path}.type",
                "This server takes message, function_call, function_call_output, custom_tool_call, "
                "custom_tool_call_output, reasoning and item_reference; what hosted tools of OpenAI's made, it cannot carry",
            )

    def end(self) -> list[Message]:
        self._close()
        return self._messages

    def _close(self) -> None:
        if self._open is not None:
            self._messages.append(self._open)
        self._open = self._answer = None
        self._thoughts.clear()

    def _assistant(self) -> Message:
        if self._open is None:
            self._open = {"role": "assistant", "content": None}
        return self._open

    def _read_message(self, path: str, item: Item) -> None:
        role = item.get("role")
        if role not in _ROLES:
            raise _wrong(f"{path}.role", "Input should be user, assistant, system or developer")
        if role != "assistant":
            self._close()
            self._messages.append({"role": role, "content": _content(f"{path}.content", item.get("content"))})
            return
        if self._open is not None:
            self._close()
        text, refusal = _said(f"{path}.content", item.get("content"))
        message = self._assistant()
        message["content"] = text
        if refusal is not None:
            message["refusal"] = refusal

    def _read_call(self, path: str, item: Item, kind: str) -> None:
        call_id = _string(path, item, "call_id")
        field, text = ("function", "arguments") if kind == "function_call" else ("custom", "input")
        message = self._assistant()
        written = item if item.get(text) is not None else {**item, text: ""}  # a call without arguments, to some
        called = {"name": _string(path, item, "name"), text: _string(path, written, text, empty=True)}
        call = {"id": call_id, "type": field, field: called}
        answer = self._answer or self._of(item) or self._by_call.get(call_id)
        if answer is not None:
            message |= {name: answer[name] for name in REASONING_FIELDS if answer.get(name)}
            own: dict[str, Any] = next((one for one in answer.get("tool_calls") or () if one.get("id") == call_id), {})
            call = {**own, **call}
        elif self._keep_reasoning and self._thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        message.setdefault("tool_calls", []).append(call)
        self._calls[kind, call_id] = call_id
        if isinstance(item.get("id"), str):
            self._calls.setdefault((kind, item["id"]), call_id)

    def _read_output(self, path: str, item: Item, kind: str) -> None:
        given = _string(path, item, "call_id")
        call_id = self._calls.get((OUTPUTS[kind], given))
        if call_id is None:
            raise BadRequest(
                f"No tool call found for the output of {path}: send the {OUTPUTS[kind]} with this call_id before it, or "
                "the previous_response_id of the answer that has it.",
                param=f"{path}.call_id",
            )
        self._close()
        output = item.get("output")
        if not isinstance(output, str):
            output = _output(f"{path}.output", output)
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": output})

    def _of(self, item: Item) -> Message | None:
        """The provider's own message that this item is a part of, if it is known."""
        place = ids.place(item["id"]) if isinstance(item.get("id"), str) else None
        return self._given.get(place.generation_id) if place is not None else None

    def _read_reasoning(self, path: str, item: Item) -> None:
        if self._open is not None:
            self._close()
        self._answer = self._of(item)
        for field in ("content", "summary"):
            if not isinstance(item.get(field), str | list | None):
                raise _wrong(f"{path}.{field}", "Input should be an array")
        for part in item.get("content") or item.get("summary") or ():
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                self._thoughts.append(part["text"])


def _content(path: str, content: Any) -> Any:
    """What a user, or a system, says: text, or parts."""
    if isinstance(content, str):
        return content
    parts = [_part(f"{path}[{number}]", part) for number, part in enumerate(_list(path, content))]
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _said(path: str, content: Any) -> tuple[str | None, str | None]:
    """Text and refusal of an assistant's message; parts of one text belong together without anything between them."""
    if isinstance(content, str):
        return content, None
    texts, refusals = [], []
    for number, part in enumerate(_list(path, content) if content is not None else ()):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _TEXTS:
            texts.append(_string(f"{path}[{number}]", part, "text", empty=True))
        elif kind == "refusal":
            refusals.append(_string(f"{path}[{number}]", part, "refusal", empty=True))
        else:
            raise _wrong(f"{path}[{number}].type", "Input should be output_text or refusal in an assistant's message")
    return "".join(texts) if texts or not refusals else None, "".join(refusals) if refusals else None


def _output(path: str, output: Any) -> Any:
    """What a tool gave, as a list of parts: as one string where it is nothing but text, which every provider takes."""
    parts = [_part(f"{path}[{number}]", part) for number, part in enumerate(_list(path, output))]
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _part(path: str, part: Any) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise _wrong(path, "Input should be an object")
    kind = part.get("type")
    if kind in _TEXTS:
        return {"type": "text", "text": _string(path, part, "text", empty=True)}
    if kind == "input_image":
        if part.get("file_id") is not None:
            raise _wrong(f"{path}.file_id", "Images by file id cannot be carried to other providers; send image_url")
        image = {"url": _string(path, part, "image_url")}
        if part.get("detail") is not None:
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    if kind == "input_file":
        return {"type": "file", "file": _file(path, part)}
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    raise _wrong(f"{path}.type", "Input should be input_text, input_image, input_file or input_audio")


def _file(path: str, part: dict[str, Any]) -> dict[str, Any]:
    if part.get("file_url") is not None:
        raise _wrong(f"{path}.file_url", "Files by URL cannot be carried to other providers; send file_data")
    file = {field: part[field] for field in ("file_data", "file_id", "filename") if part.get(field) is not None}
    if not ("file_data" in file or "file_id" in file):
        raise _wrong(f"{path}.file_data", "Input is required: the file as a data URL in base64")
    return file


def _list(path: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(path, "Input should be a string or an array")
    return value


def _string(path: str, value: dict[str, Any], field: str, *, empty: bool = False) -> str:
    text = value.get(field)
    if not isinstance(text, str) or not (text or empty):
        raise _wrong(
            f"{path}.{field}", "Input should be a string" if empty else "Input should be a string that is not empty"
        )
    return text


def _wrong(path: str, message: str) -> BadRequest:
    return BadRequest(f"{path}: {message}.", param=path)
