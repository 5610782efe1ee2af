"""Streams recorded from real providers, and a fold of chat chunks that knows nothing of the broker.

The recordings are kept beside the repository, or where STREAMSPOOL_RECORDED says. INDEX.jsonl tells for each what it must
amount to, computed by another program (its README.md).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("STREAMSPOOL_RECORDED") or Path(__file__).resolve().parents[3] / "shared" / "recorded")
MISSING = f"no recordings in {FOLDER}; STREAMSPOOL_RECORDED names them"

Row = dict[str, Any]


def recordings(*formats: str) -> list[Row]:
    """The rows of INDEX.jsonl of these formats; empty where the folder is missing."""
    index = FOLDER / "INDEX.jsonl"
    rows = map(json.loads, index.read_text("utf-8").splitlines()) if index.is_file() else ()
    return [row for row in rows if row["format"] in formats]


def payloads(row: Row) -> list[bytes]:
    """The data of a recording's events, read by the rules of the standard alone; `[DONE]` is not among them."""
    data = (FOLDER / row["file"]).read_bytes()
    if row["wire"] != "sse":
        return [line for line in data.split(b"\n") if line.strip()]
    blocks = data.replace(b"\r\n", b"\n").split(b"\n\n")
    lines = [[line.partition(b":") for line in block.split(b"\n")] for block in blocks]
    events = [b"\n".join(value.removeprefix(b" ") for name, _, value in block if name == b"data") for block in lines]
    return [event for event in events if event and event.strip() != b"[DONE]"]


def wire(row: Row, *, done: bool = True) -> bytes:
    """A recording as its provider sent it. Where the framing was not kept, the simplest one is put around the payloads,
    and, for formats that are `done` with it, `[DONE]` at the end."""
    if row["wire"] == "sse":
        return Path(FOLDER, row["file"]).read_bytes()
    return b"".join(b"data: %b\n\n" % payload for payload in [*payloads(row), *([b"[DONE]"] if done else [])])


def pieces(stream: bytes, seed: str) -> Iterator[bytes]:
    """A stream in pieces of random sizes, down to single bytes; the same seed gives the same pieces."""
    sizes, at = random.Random(seed), 0
    while at < len(stream):
        size = sizes.choice((1, 2, 3, 7, 100, 1460, 65536))
        yield stream[at : at + size]
        at += size


def fold(chunks: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What a client that follows OpenAI's rules would make of it: no dialects here, except in where text may stand."""
    choices: dict[str, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            new: dict[str, Any] = {"content": "", "reasoning": "", "refusal": "", "finish": None, "tools": {}}
            total, delta = choices.setdefault(str(choice["index"]), new), choice["delta"]
            add_text(total, delta)
            for call in delta.get("tool_calls") or []:
                tool = total["tools"].setdefault(call["index"], {"id": None, "name": "", "arguments": ""})
                assert tool["id"] is None or "id" not in call
                tool["id"] = call.get("id") or tool["id"]
                tool["name"] += call["function"].get("name") or ""
                tool["arguments"] += call["function"].get("arguments") or ""
            total["finish"] = choice.get("finish_reason") or total["finish"]
    return choices


def fold_whole(completion: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The same of a `chat.completion`."""
    choices: dict[str, dict[str, Any]] = {}
    for choice in completion["choices"]:
        message = choice["message"]
        calls = [
            {"id": call.get("id"), "name": call["function"]["name"], "arguments": call["function"]["arguments"]}
            for call in message.get("tool_calls") or []
        ]
        total = {"content": "", "reasoning": "", "refusal": "", "finish": choice["finish_reason"]}
        add_text(total, message)
        choices[str(choice["index"])] = {**total, "tools": dict(enumerate(calls))}
    return choices


def add_text(total: dict[str, Any], said: dict[str, Any]) -> None:
    """Adds what a delta or a message says. Mistral's content may be a list of parts."""
    content = said.get("content") or ""
    if isinstance(content, list):
        thoughts = [thought for part in content for thought in part.get("thinking") or []]
        total["reasoning"] += "".join(thought["text"] for thought in thoughts)
        content = "".join(part["text"] for part in content if part["type"] == "text")
    total["content"] += content
    total["reasoning"] += said.get("reasoning_content") or said.get("reasoning") or ""
    total["refusal"] += said.get("refusal") or ""


def in_one_form(expected: dict[str, Any]) -> dict[str, Any]:
    """What a recording amounts to, in the house's form: an answer that is whole and gave no reason (Snowflake) did end, and
    reasoning that xAI counts beside the answer's tokens counts within, as OpenAI has it."""
    if expected["error"]:
        return expected
    choices = {index: {**choice, "finish": choice["finish"] or "stop"} for index, choice in expected["choices"].items()}
    usage = expected["usage"]
    if usage and usage["total_tokens"] != usage["prompt_tokens"] + usage["completion_tokens"]:
        usage = {**usage, "completion_tokens": usage["total_tokens"] - usage["prompt_tokens"]}
    return {**expected, "choices": choices, "usage": usage}


def summary(choices: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A fold in the form of INDEX.jsonl."""
    return {
        index: {
            "content_sha": digest(choice["content"]),
            "content_len": len(choice["content"]),
            "reasoning_sha": digest(choice["reasoning"]),
            "reasoning_len": len(choice["reasoning"]),
            "refusal": choice["refusal"],
            "finish": choice["finish"],
            "tools": [choice["tools"][at] for at in sorted(choice["tools"])],
        }
        for index, choice in sorted(choices.items())
    }


_OURS = (
    {"id", "object", "created", "model", "usage", "usage_source", "choices", "obfuscation"},
    {"index", "delta", "finish_reason", "native_finish_reason", "logprobs", "message"},
    {"role", "content", "tool_calls", "annotations"},
)
"""Fields that the broker may set or move, of a chunk, of its choices, and of their deltas."""


def unknown_fields(chunks: Iterable[dict[str, Any]]) -> list[dict[str, list[Any]]]:
    """The values of all other fields, by name, in their order, each once: on top, in choices and in deltas."""
    found: list[dict[str, list[Any]]] = [{}, {}, {}]
    for chunk in chunks:
        choices = chunk.get("choices") or []
        for place, parts in enumerate(([chunk], choices, [choice.get("delta") or {} for choice in choices])):
            for part in parts:
                for key, value in _with_thoughts(part).items():
                    if key not in _OURS[place] and value and value not in found[place].get(key, ()):
                        found[place].setdefault(key, []).append(value)
    return found


def _with_thoughts(part: dict[str, Any]) -> dict[str, Any]:
    """Thinking that is a part of the content stands in a field of its own in the house's form."""
    said = {"content": "", "reasoning": "", "refusal": ""}
    if isinstance(part.get("content"), list):
        add_text(said, {"content": part["content"]})
    return {**part, "reasoning_content": said["reasoning"]} if said["reasoning"] else part


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
