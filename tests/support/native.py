"""What recordings in providers' own formats amount to, folded from their native events by rules of these formats alone.

The result has the form of INDEX.jsonl, so that one test serves all formats. Sources: docs.anthropic.com/en/api/messages-
streaming, ai.google.dev/api/generate-content, docs.cohere.com/v2/docs/streaming, OpenAI's reference of Responses events.
"""

from __future__ import annotations

import json
from typing import Any

from tests.support.recordings import Row, in_one_form, payloads, summary

_FINISH = {
    "anthropic": {"end_turn": "stop", "stop_sequence": "stop", "tool_use": "tool_calls", "max_tokens": "length"},
    "gemini": {"STOP": "stop", "MAX_TOKENS": "length"},
    "cohere": {"COMPLETE": "stop", "STOP_SEQUENCE": "stop", "TOOL_CALL": "tool_calls", "MAX_TOKENS": "length"},
}


class Said:
    """One answer while it is folded. Calls of tools are kept by where their events say they belong."""

    def __init__(self) -> None:
        self.content = self.reasoning = self.refusal = ""
        self.calls: dict[Any, dict[str, Any]] = {}
        self.finish: str | None = None
        self.usage: dict[str, int] | None = None
        self.error: dict[str, Any] | None = None
        self.figures: dict[str, int] = {}
        """Anthropic tells them in two events."""
        self.tree: dict[str, Any] = {}
        """The arguments of the call that Gemini is at."""

    def call(self, at: Any, name: str, arguments: str = "", id: str | None = None) -> None:
        self.calls[at] = {"id": id, "name": name, "arguments": arguments}

    def count(self, prompt: int, completion: int, total: int | None = None) -> None:
        total = prompt + completion if total is None else total
        self.usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def expected(row: Row) -> dict[str, Any]:
    """`{"choices", "usage", "error"}` of a recording: INDEX.jsonl's own for the chat format, else folded here."""
    if row["format"] == "chat":
        return in_one_form(row["expected"])
    said = Said()
    for event in map(json.loads, payloads(row)):
        _READERS[row["format"]](said, event)
    if not said.calls and not said.content and not said.reasoning and said.error:
        return {"choices": {}, "usage": said.usage, "error": said.error}
    fields = {name: getattr(said, name) for name in ("content", "reasoning", "refusal", "finish")}
    choice = {**fields, "tools": dict(enumerate(said.calls.values()))}
    return {"choices": comparable(row, summary({"0": choice})), "usage": said.usage, "error": said.error}


def comparable(row: Row, choices: dict[str, Any]) -> dict[str, Any]:
    """A summary without what a format leaves open: how arguments are spelled, and ids where calls have none."""
    if row["format"] == "chat":
        return choices
    for choice in choices.values():
        for call in choice["tools"]:
            call["arguments"] = json.loads(call["arguments"] or "{}")
            if row["format"] == "gemini":
                call["id"] = None
    return choices


def counted(row: Row, usage: dict[str, Any] | None) -> dict[str, Any] | None:
    """The three figures that all formats have."""
    if usage is None:
        return usage
    return {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


def _anthropic(said: Said, event: dict[str, Any]) -> None:
    delta = event.get("delta", {})
    match event["type"]:
        case "message_start":
            said.figures = event["message"]["usage"]
        case "content_block_start" if event["content_block"]["type"] == "tool_use":
            block = event["content_block"]
            said.call(event["index"], block["name"], id=block["id"])
        case "content_block_delta":
            said.content += delta.get("text", "")
            said.reasoning += delta.get("thinking", "")
            if event["index"] in said.calls:
                said.calls[event["index"]]["arguments"] += delta.get("partial_json", "")
        case "message_delta":
            said.finish = _FINISH["anthropic"][delta["stop_reason"]]
            figures = {**said.figures, **event["usage"]}
            cached = ("cache_read_input_tokens", "cache_creation_input_tokens")
            said.count(
                figures["input_tokens"] + sum(figures.get(name) or 0 for name in cached), figures["output_tokens"]
            )
        case "error":
            said.error = event["error"]


def _gemini(said: Said, event: dict[str, Any]) -> None:
    for candidate in event.get("candidates", ()):
        for part in candidate.get("content", {}).get("parts", ()):
            if "functionCall" in part:
                _gemini_call(said, part["functionCall"])
            elif part.get("thought"):
                said.reasoning += part.get("text", "")
            else:
                said.content += part.get("text", "")
        if reason := candidate.get("finishReason"):
            said.finish = "tool_calls" if said.calls and reason == "STOP" else _FINISH["gemini"][reason]
    if figures := event.get("usageMetadata"):
        output = figures.get("candidatesTokenCount", 0) + figures.get("thoughtsTokenCount", 0)
        said.count(figures.get("promptTokenCount", 0), output, figures.get("totalTokenCount", 0))


def _gemini_call(said: Said, call: dict[str, Any]) -> None:
    """Arguments come whole, or piece by piece as `partialArgs`, each at a JSON path."""
    if "name" in call:
        said.tree = call.get("args", {})
        said.call(len(said.calls), call["name"], json.dumps(said.tree))
    for piece in call.get("partialArgs", ()):
        at, keys = said.tree, piece["jsonPath"].removeprefix("$.").replace("[", ".").replace("]", "").split(".")
        for key, following in zip(keys, [*keys[1:], None], strict=True):
            place: Any = int(key) if key.isdigit() else key
            empty: Any = "" if following is None else [] if following.isdigit() else {}
            if isinstance(at, list) and place == len(at):
                at.append(empty)
            elif isinstance(at, dict):
                at.setdefault(place, empty)
            if following is None:
                at[place] += piece["stringValue"]
            at = at[place]
        said.calls[len(said.calls) - 1]["arguments"] = json.dumps(said.tree)


def _cohere(said: Said, event: dict[str, Any]) -> None:
    delta = event.get("delta", {})
    message = delta.get("message") or {}
    match event["type"]:
        case "content-start" | "content-delta":
            said.content += message["content"].get("text", "")
            said.reasoning += message["content"].get("thinking", "")
        case "tool-plan-delta":
            said.reasoning += message["tool_plan"]
        case "tool-call-start":
            call = message["tool_calls"]
            said.call(event["index"], call["function"]["name"], call["function"]["arguments"], call["id"])
        case "tool-call-delta":
            said.calls[event["index"]]["arguments"] += message["tool_calls"]["function"]["arguments"]
        case "message-end":
            said.finish = _FINISH["cohere"][delta["finish_reason"]]
            tokens = delta["usage"]["tokens"]
            said.count(int(tokens["input_tokens"]), int(tokens["output_tokens"]))


def _responses(said: Said, event: dict[str, Any]) -> None:
    match event["type"]:
        case "response.output_text.delta":
            said.content += event["delta"]
        case "response.refusal.delta":
            said.refusal += event["delta"]
        case "response.reasoning_text.delta" | "response.reasoning_summary_text.delta":
            said.reasoning += event["delta"]
        case "response.output_item.done" if event["item"]["type"] == "function_call":
            item = event["item"]
            said.call(event["output_index"], item["name"], item["arguments"], item["call_id"])
        case "response.completed" | "response.incomplete" | "response.failed":
            response = event["response"]
            said.finish = {"completed": "tool_calls" if said.calls else "stop", "incomplete": "length"}.get(
                response["status"]
            )
            said.error = response.get("error") or said.error
            if figures := response.get("usage"):
                said.count(figures["input_tokens"], figures["output_tokens"], figures["total_tokens"])
        case "error":
            said.error = event.get("error") or event


_READERS = {"anthropic": _anthropic, "gemini": _gemini, "cohere": _cohere, "responses": _responses}
