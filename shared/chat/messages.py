"""What of an answer is the answer, and what a session keeps of it. Pure functions over OpenAI's messages.

Hidden here: under which names providers send their reasoning, and the tags some of them put it in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from shared.config.formats import WIRE_FORMATS

REASONING_FIELDS = (
    "reasoning_content",
    "reasoning",
    "thinking",
    "reasoning_details",
    "extra_content",
    *(name for row in WIRE_FORMATS.values() for name in row.resent),
)
"""Where reasoning stands in a message. The first three hold text, and a provider sends one of them; the others are what
it wants back to go on thinking."""

SUMMARY = "reasoning_summary"
"""Where a summary stands that another model made of the reasoning (worker/summaries.py)."""

_TEXT_FIELDS = REASONING_FIELDS[:3]
_KEPT = ("content", "tool_calls", "function_call", "refusal", "name", "audio")
"""What providers take back in an assistant's message; other fields of an answer (annotations, images) they refuse."""
_NO_TEXT = frozenset({"role", "type", "id", "tool_call_id", "image_url", "input_audio", "video_url", "file", "audio"})
CHARACTERS_PER_TOKEN = 4
"""What an estimate takes a token for."""
_OPEN, _CLOSE = "<think>", "</think>"


Messages = list[dict[str, Any]]
"""OpenAI's message objects, in their order."""


class Texts(NamedTuple):
    """The two texts of a message."""

    content: str
    reasoning: str


def visible_text(message: dict[str, Any], *, think_tags: bool = False) -> Texts:
    """Answer and reasoning apart. With `think_tags`, what stands in `<think>…</think>` at the start is reasoning."""
    reasoning = ""
    for field in _TEXT_FIELDS:
        if (text := message.get(field)) and isinstance(text, str):
            reasoning = text
            break
    content = message.get("content")
    if isinstance(content, list):  # Mistral: a list of parts, each `text` or `thinking`
        parts = [part for part in content if isinstance(part, dict)]
        reasoning += "".join(_text(thought) for part in parts for thought in _thoughts(part))
        return Texts("".join(map(_text, parts)), reasoning)
    if not isinstance(content, str):
        return Texts("", reasoning)
    if think_tags:
        content, inside = split_tags(content)
        return Texts(content, inside + reasoning)
    return Texts(content, reasoning)


def billable_text(message: dict[str, Any], *, think_tags: bool = False) -> Texts:
    """The two texts as providers count them: refusals and calls of tools are part of the answer."""
    texts = visible_text(message, think_tags=think_tags)
    calls = [call.get("function") for call in _list(message.get("tool_calls")) if isinstance(call, dict)]
    calls.append(message.get("function_call"))
    others = [message.get("refusal")]
    for call in calls:
        if isinstance(call, dict):
            others += [call.get("name"), call.get("arguments")]
    return Texts("".join([texts.content, *(text for text in others if isinstance(text, str))]), texts.reasoning)


def split_tags(content: str) -> tuple[str, str]:
    """`<think>why</think>because` as `("because", "why")`. One that was never closed is all reasoning."""
    start = content.lstrip()
    if not start.startswith(_OPEN):
        return content, ""
    reasoning, closed, answer = start[len(_OPEN) :].partition(_CLOSE)
    return (answer.lstrip("\n") if closed else ""), reasoning.strip("\n")


def turn_message(message: dict[str, Any], *, store_reasoning: bool, think_tags: bool) -> dict[str, Any]:
    """An answer's message as the next request carries it: without reasoning unless it is wanted.

    Where there is reasoning and nothing else, the reasoning is the turn: an empty one would read as if nothing had been
    said. A summary that was made of it stands in its place, unless tools are called: the model goes on thinking then.
    """
    kept = {field: message[field] for field in _KEPT if message.get(field) is not None}
    texts = visible_text(message, think_tags=think_tags)
    if isinstance(kept.get("audio"), dict):
        kept["audio"] = {"id": kept["audio"].get("id")}
    if store_reasoning and message.get(SUMMARY) and not kept.get("tool_calls"):
        kept["reasoning_content"] = message[SUMMARY]
    elif store_reasoning:
        kept |= {field: message[field] for field in REASONING_FIELDS if message.get(field)}
    else:
        kept["content"] = texts.content or None
    if not texts.content and not any(kept.get(field) for field in ("tool_calls", "function_call", "refusal", "audio")):
        kept["content"] = texts.reasoning
    kept.setdefault("content", None)
    return {"role": "assistant", **kept}


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message of a turn that is over, or for another model: nothing in it is one provider's alone."""
    plain = {name: value for name, value in message.items() if name not in REASONING_FIELDS}
    if calls := plain.get("tool_calls"):
        plain["tool_calls"] = [
            {name: call[name] for name in ("id", "type", call.get("type") or "function") if name in call}
            for call in calls
        ]
    else:
        plain.pop("tool_calls", None)
    return plain


def is_asked(messages: Messages) -> bool:
    """Whether a user says something among them: a provider that calls tools goes on thinking until then."""
    return any(message.get("role") == "user" for message in messages)


def present(messages: Sequence[dict[str, Any]]) -> Messages:
    """The messages as a provider is sent them: without marks of what was deleted (`shared.features.conversations`)."""
    found = []
    for message in messages:
        calls = message.get("tool_calls")
        if message["role"] == "deleted":
            continue
        if not calls or (not message.get("deleted") and all(call.get("type") != "deleted" for call in calls)):
            found.append(message)
            continue
        left = [call for call in calls if call.get("type") != "deleted"]
        rest = {name: value for name, value in message.items() if name not in ("tool_calls", "deleted")}
        if left:
            found.append({**rest, "tool_calls": left})
        elif rest.get("content") or rest.get("refusal"):
            found.append(rest)
    return found


def new_messages(history: Sequence[dict[str, Any]], messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a request adds to a history: instructions that clients repeat with every request stand there once."""
    held = [message for message in history if message.get("role") in ("system", "developer")]
    begun = False
    added = []
    for message in messages:
        begun = begun or message.get("role") not in ("system", "developer")
        if begun or message not in held:
            added.append(message)
    return added


def after_last_answer(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is new in a request whose client keeps the history itself: all after the last message of the assistant's."""
    last = max((i for i, message in enumerate(messages) if message.get("role") == "assistant"), default=-1)
    return list(messages[last + 1 :])


def characters(value: Any) -> int:
    """Length of all text in a message's content, tool calls included: what an estimate goes by."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        # An image or a sound is not text, however long its base64.
        return sum(characters(item) for key, item in value.items() if key not in _NO_TEXT)
    if isinstance(value, list):
        return sum(map(characters, value))
    return 0


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _thoughts(part: dict[str, Any]) -> list[Any]:
    """Mistral lists them; with others the part holds one."""
    thoughts = part.get("thinking")
    return [thoughts] if isinstance(thoughts, str) else _list(thoughts)


def _text(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    return text if isinstance(text, str) else ""
