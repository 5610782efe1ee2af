"""Gemini's own format (ai.google.dev/api/generate-content), as Google's Gemini API and Vertex AI speak it. Pure functions.

Hidden here: how its candidates and their parts become OpenAI's chunks. How a request is said: `gemini_request.py`.

- Thoughts are `reasoning_content`. The signatures that prove them stand where Google's own OpenAI-compatible API has
  them, `extra_content.google.thought_signature`, in the tool call, the image or the message, and go back from there.
- Parts that OpenAI has nothing like (code and its results, built-in tools, audio …) are `gemini_parts`, as they came,
  and go back, too. Their place among the text is not kept: they stand before it. Pictures are `images`.
- What Gemini says about a candidate (groundingMetadata, safetyRatings …) comes with its finish reason, under its own
  name; web pages it rests on are `annotations`, too. A prompt it will not answer ends with content_filter.
- A finish reason may stand in every event, or in the middle (behind a built-in tool), with what it is about or before that: the
  normalizer keeps the last.
"""

from __future__ import annotations

import re
from typing import Any

from shared.lib import json
from worker.providers.dialect import Dialect
from worker.providers.errors import readable, text_in
from worker.providers.finish import ending
from worker.providers.formats.gemini_request import call
from worker.providers.usage import figure_in

_SAID = ("content", "finishReason", "index")
"""Fields of a candidate that are not about it."""
_PATH = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\['((?:[^'\\]|\\.)*)'\]")


class _Answer:
    """One answer: each event has new parts of some candidates, and the figures up to here."""

    def __init__(self) -> None:
        self.done = False
        self._candidates: dict[int, _Candidate] = {}

    def feed(self, event: str, value: dict[str, Any]) -> list[dict[str, Any]]:
        with readable():
            if isinstance(inner := value.get("response"), dict):  # Google's Code Assist wraps each answer
                value = inner
            value = _camel(value)
            choices = []
            for candidate in value.get("candidates") or []:
                candidate = _camel(candidate)
                index = candidate.get("index") or 0
                known = self._candidates.setdefault(index, _Candidate(index))
                if choice := known.read(candidate):
                    choices.append(choice)
            known_fields = ("candidates", "usageMetadata", "modelVersion", "responseId", "createTime")
            chunk = {key: item for key, item in value.items() if key not in known_fields and item}
            blocked = (value.get("promptFeedback") or {}).get("blockReason")
            if blocked and not choices:
                self.done = True
                finish = {"finish_reason": "content_filter", "native_finish_reason": text_in(blocked)}
                choices.append({"index": 0, "delta": {}, **finish})
            chunk["choices"] = choices
            # Vertex sends the traffic's type alone until the figures are known.
            figures = _camel(value.get("usageMetadata") or {})
            if any(name in figures for name in ("promptTokenCount", "candidatesTokenCount")):
                chunk["usage"] = _usage(figures)
            return [chunk]


class _Candidate:
    """One choice, so far. `_open` is a function call whose arguments are still coming."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._counts: dict[str, int] = {}
        self._text: list[str] = []
        self._cited = 0
        self._about: dict[str, Any] = {}
        self._signature: str | None = None  # one that was not told yet
        self._reason: str | None = None
        self._open: tuple[int, Any] | None = None

    def read(self, candidate: dict[str, Any]) -> dict[str, Any] | None:
        delta: dict[str, Any] = {}
        content = candidate.get("content") or {}
        for part in [content] if isinstance(content, str) else content.get("parts") or []:
            self._read_part(_part(part), delta)
        for key, item in candidate.items():
            if key not in _SAID:
                old = self._about.get(key)
                self._about[key] = {**old, **item} if isinstance(old, dict) and isinstance(item, dict) else item
        reason = candidate.get("finishReason")
        if not reason and not delta and (self._signature or any(name not in _SAID for name in candidate)):
            reason = self._reason  # said about an end, after it
        if not reason:
            self._reason = None if delta else self._reason  # words after an end want one of their own
            return {"index": self._index, "delta": delta, "finish_reason": None} if delta else None
        self._reason = text_in(reason)
        self._close_call(delta, cut=ending("gemini", self._reason).status != "completed")
        if annotations := self._annotations():
            delta["annotations"] = annotations
        if self._signature:
            delta["extra_content"], self._signature = _extra(self._signature), None
        return {"index": self._index, "delta": delta, "finish_reason": self._reason, **self._about}

    def _add(self, delta: dict[str, Any], name: str, item: dict[str, Any]) -> int:
        """Lists of a delta have an index from 0 without gaps: OpenAI's SDK for Python takes it for the place."""
        index = self._counts[name] = self._counts.get(name, -1) + 1
        delta.setdefault(name, []).append({**item, "index": index})
        return index

    def _read_part(self, part: dict[str, Any], delta: dict[str, Any]) -> None:
        signature = part.get("thoughtSignature")
        if "functionCall" in part:
            self._read_call(part["functionCall"], delta, signature)
            return
        if "text" in part:
            text = text_in(part["text"] or "")
            field = "reasoning_content" if part.get("thought") else "content"
            if text:
                delta[field] = delta.get(field, "") + text
            if field == "content":
                self._text.append(text)
            self._signature = signature or self._signature
            return
        inline = _camel(part.get("inlineData") or {})
        if text_in(inline.get("mimeType", "")).startswith("image/") and not part.get("thought"):
            image: dict[str, Any] = {"type": "image_url"}
            image["image_url"] = {"url": f"data:{inline['mimeType']};base64,{text_in(inline['data'])}"}
            if signature:
                image["extra_content"] = _extra(signature)
            self._add(delta, "images", image)
            return
        if part:
            self._add(delta, "gemini_parts", part)

    def _read_call(self, call: dict[str, Any], delta: dict[str, Any], signature: Any) -> None:
        """A call comes whole, or (Vertex, where it is asked for) opened with its name and then value by value.

        What comes by value is handed out at the end: only then is it JSON. Until then there are empty pieces, which show
        that something is coming. Where the answer was cut within it, it is none: its last bracket is missing.
        """
        call = _camel(call)
        if name := call.get("name"):
            self._close_call(delta)
            item: dict[str, Any] = {"id": call.get("id"), "type": "function"}
            item["function"] = {"name": text_in(name), "arguments": ""}
            if signature:
                item["extra_content"] = _extra(signature)
            given = call.get("args") or {}
            self._open = self._add(delta, "tool_calls", item), given if isinstance(given, str | list) else dict(given)
        if self._open is None:
            raise ValueError
        for value in call.get("partialArgs") or []:
            _put(self._open[1], text_in(value["jsonPath"]), value)
        if not call.get("willContinue"):
            self._close_call(delta)
        elif not name:
            self._argue(delta, self._open[0], "")

    def _close_call(self, delta: dict[str, Any], *, cut: bool = False) -> None:
        if self._open is not None:
            index, arguments = self._open
            text = arguments if isinstance(arguments, str) else json.dumps(arguments).decode()
            if cut and not isinstance(arguments, str):
                text = text[:-1] if arguments else ""
            self._argue(delta, index, text)
            self._open = None

    def _argue(self, delta: dict[str, Any], index: int, text: str) -> None:
        """A piece of a call's arguments. In one delta a call is one item."""
        calls = delta.setdefault("tool_calls", [])
        item = next((item for item in calls if item["index"] == index), None)
        if item is None:
            item = {"index": index, "function": {"arguments": ""}}
            calls.append(item)
        item["function"]["arguments"] += text

    def _annotations(self) -> list[dict[str, Any]]:
        """The pages that the parts of the text rest on, as OpenAI's `url_citation`: those that were not told yet."""
        found: list[dict[str, Any]] = []
        grounding = self._about.get("groundingMetadata") or {}
        chunks = grounding.get("groundingChunks") or []
        for support in grounding.get("groundingSupports") or []:
            start, end = self._place(support.get("segment") or {})
            for at in support.get("groundingChunkIndices") or []:
                chunk = chunks[at] if at < len(chunks) else {}
                page = next((page for page in chunk.values() if isinstance(page, dict) and page.get("uri")), None)
                if page:
                    where = {"start_index": start, "end_index": end}
                    citation = {"url": page["uri"], "title": page.get("title") or "", **where}
                    found.append({"type": "url_citation", "url_citation": citation})
        new, self._cited = found[self._cited :], max(self._cited, len(found))
        return new

    def _place(self, segment: dict[str, Any]) -> tuple[int, int]:
        """Where a segment stands in the text, in characters. Gemini counts bytes, and by part: its text tells better."""
        self._text[:] = ["".join(self._text)]
        (said,) = self._text
        data, text = said.encode("utf-8", "surrogatepass"), segment.get("text")
        start = len(data[: segment.get("startIndex") or 0].decode("utf-8", "ignore"))
        if not isinstance(text, str):
            return start, len(data[: segment.get("endIndex") or 0].decode("utf-8", "ignore"))
        at = said.find(text, start)
        at = at if at >= 0 else max(said.find(text), 0)
        return at, at + len(text)


def _camel(value: dict[str, Any]) -> dict[str, Any]:
    """Names as Google's REST API spells them: its libraries for Python write `finish_reason`, and so do gateways in it."""
    if not any("_" in name for name in value):
        return value
    return {_SNAKE.sub(lambda found: found[1].upper(), name): item for name, item in value.items()}


_SNAKE = re.compile(r"(?<=[a-z])_([a-z])")


def _part(part: Any) -> dict[str, Any]:
    """A part without the fields that say nothing, which those libraries write, too."""
    if part is None or isinstance(part, str):
        return {"text": part or ""}
    return {name: item for name, item in _camel(part).items() if item is not None}


def _extra(signature: Any) -> dict[str, Any]:
    return {"google": {"thought_signature": text_in(signature)}}


def _put(arguments: dict[str, Any], path: str, value: dict[str, Any]) -> None:
    """Sets what a path like `$.a.b[0]` (RFC 9535) names. Pieces of one text follow each other under the same path."""
    keys = _keys(path)
    where: Any = arguments
    for key, following in zip(keys, keys[1:], strict=False):
        where = _slot(where, key, [] if isinstance(following, int) else {})
    new = next((value[kind] for kind in ("stringValue", "numberValue", "boolValue") if kind in value), None)
    old = _slot(where, keys[-1], None)
    where[keys[-1]] = old + new if isinstance(old, str) and isinstance(new, str) else new


def _keys(path: str) -> list[str | int]:
    keys: list[str | int] = []
    at = 1
    while at < len(path) or not keys:
        step = _PATH.match(path, at)
        if step is None or path[0] != "$":
            raise ValueError
        name, index, quoted = step.groups()
        keys.append(int(index) if index else name or re.sub(r"\\(.)", r"\1", quoted))
        at = step.end()
    return keys


def _slot(where: Any, key: str | int, empty: Any) -> Any:
    """What stands at a key, `empty` put there first if nothing does. A list only grows at its end."""
    if isinstance(where, list):
        if key == len(where):
            where.append(empty)
        return where[key]  # type: ignore[index]
    if not isinstance(key, str):
        raise TypeError
    return where.setdefault(key, empty)


_FIGURES = (
    "promptTokenCount",
    "candidatesTokenCount",
    "totalTokenCount",
    "thoughtsTokenCount",
    "cachedContentTokenCount",
    "toolUsePromptTokenCount",
)


def _usage(told: dict[str, Any]) -> dict[str, Any]:
    """Thoughts are told beside the text, and so is what built-in tools read; OpenAI counts both within. Where the text's
    count is left out, it is what the others leave of the sum."""
    figures = {name: figure_in(told.get(name)) for name in _FIGURES}
    thoughts, cached = figures["thoughtsTokenCount"] or 0, figures["cachedContentTokenCount"] or 0
    prompt = (figures["promptTokenCount"] or 0) + (figures["toolUsePromptTokenCount"] or 0)
    total, text = figures["totalTokenCount"] or 0, figures["candidatesTokenCount"]
    completion = text + thoughts if text is not None else max(total - prompt, thoughts) if prompt else thoughts
    return {
        **{key: value for key, value in told.items() if key not in _FIGURES or key == "toolUsePromptTokenCount"},
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total or prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": thoughts},
    }


DIALECT = Dialect(call, _Answer, wire_format="gemini", summarises=True)
