"""Ollama's own chat format as an upstream (docs.ollama.com/api/chat, github.com/ollama/ollama api/types.go).

Hidden here: a stream of one JSON object a line, options in an object of their own, images as bare base64, tool calls
whose arguments are objects and may have no id, durations in nanoseconds.

- `reasoning_effort` is `think`: with gpt-oss a level (minimal is low, xhigh is high), with others whether to think at all,
  since they refuse levels. Reasoning in the history goes back.
- A message has one text: parts that are text are joined with a line break, where run together they would read as one word.
- Where no tool may be called, none is shown; that one must be called, or which, cannot be asked for.
- Left out, since it changes no answer's meaning: who asks and how it is billed, kept or sped up (metadata, user, store,
  service_tier, prompt_cache_key, prediction …), an image's `detail`, a function's `strict`, and the one `name` that all
  messages of a role share.
"""

from __future__ import annotations

import re
from typing import Any

from shared.lib import sse
from worker.providers import parts, schemas
from worker.providers.accepts import FORMATS, Accepts
from worker.providers.chunk_shapes import delta_chunk, finish_chunk, logprobs, usage_chunk
from worker.providers.dialect import Call, Dialect
from worker.providers.errors import parse, readable, text_in
from worker.providers.formats.openai import key_header
from worker.providers.parts import wrong
from worker.providers.registry import Provider

_WHO = "Ollama"
_UNKNOWN = "n logit_bias audio modalities verbosity functions function_call web_search_options".split()
_OPTIONS = frozenset(
    "frequency_penalty min_p mirostat mirostat_eta mirostat_tau num_ctx num_keep num_predict presence_penalty"
    " repeat_last_n repeat_penalty seed temperature top_k top_p typical_p".split()
)
"""What stands at the top of OpenAI's requests, or of those to its imitators, and in `options` here."""

_THINK = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
_HAS_LEVELS = re.compile(r"gpt-?oss", re.I)
"""docs.ollama.com/capabilities/thinking: other models are told true or false."""

# ---- the request


def call(provider: Provider, body: dict[str, Any], model: str) -> Call:
    return Call(
        "/chat",
        build_request(body, model, provider.accepts),
        {"accept": "application/x-ndjson", **key_header(provider)},
    )


def build_request(body: dict[str, Any], model: str, accepts: Accepts = FORMATS["ollama"]) -> dict[str, Any]:
    """The body to send. Raises BadRequest for what Ollama has no words for."""
    parts.refuse(body, _WHO, *_UNKNOWN)
    names: dict[str, str] = {}
    messages = [_message(message, where, names) for message, where in parts.messages(body, _WHO, accepts)]
    request: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
    options = {key: body[key] for key in sorted(_OPTIONS) if body.get(key) is not None}
    if (limit := parts.token_limit(body)) is not None:
        options["num_predict"] = limit
    if stop := parts.stops(body, accepts):
        options["stop"] = stop
    if options:
        request["options"] = options
    if effort := parts.effort(body):
        request["think"] = _THINK.get(effort, effort) if _HAS_LEVELS.search(model) else effort != "none"
    kind, schema = parts.response_schema(body)
    if kind != "text":
        request["format"] = schema or "json"
    if tools := _tools(body):
        request["tools"] = tools
    request |= {field: body[field] for field in ("logprobs", "top_logprobs") if body.get(field)}
    return parts.add_own(request, body, without=tuple(_OPTIONS))


def _tools(body: dict[str, Any]) -> list[dict[str, Any]]:
    functions, others = parts.tools(body)
    if others:
        raise wrong("tools", f"{_WHO} knows functions only.")
    mode, _ = parts.tool_choice(body)
    if mode in ("required", "function"):
        raise wrong("tool_choice", f"{_WHO} has nothing like it. Leave it out, or ask another model.")
    if functions and body.get("parallel_tool_calls") is False:
        raise wrong("parallel_tool_calls", f"{_WHO} cannot be told. Leave it out, or ask another model.")
    return [
        {
            "type": "function",
            "function": {
                "name": one.name,
                "description": one.description or "",
                "parameters": schemas.of_object(one.parameters),
            },
        }
        for one in functions
        if mode == "auto"
    ]


def _message(message: dict[str, Any], param: str, names: dict[str, str]) -> dict[str, Any]:
    """`names`: of the functions called so far, by the calls' ids; a result tells the function by its name."""
    role = "system" if message["role"] == "developer" else message["role"]
    if message.get("audio"):
        raise wrong(f"{param}.audio", f"{_WHO} cannot hear. Send what was said as text.")
    words, images = [], []
    for part, where in parts.content(message, param):
        if part.get("type") == "image_url":
            images.append(_image(parts.image_url(part, where), where))
        elif part.get("type") in ("text", "refusal"):
            words.append(parts.string(part.get(part["type"]), where))
        else:
            raise wrong(f"{where}.type", f"{_WHO} takes text and images only.")
    said: dict[str, Any] = {"role": role, "content": parts.joined(words)}
    if images:
        said["images"] = images
    if role == "assistant":
        said |= _thought(message) | _calls(message, param, names)
    if role == "tool":
        said["tool_call_id"] = parts.string(message.get("tool_call_id"), f"{param}.tool_call_id")
        if name := names.get(said["tool_call_id"]) or message.get("name"):
            said["tool_name"] = name
    return said


def _thought(message: dict[str, Any]) -> dict[str, Any]:
    told = (message.get(key) for key in ("reasoning_content", "reasoning", "thinking"))
    thought = next((thought for thought in told if thought and isinstance(thought, str)), None)
    return {"thinking": thought} if thought else {}


def _calls(message: dict[str, Any], param: str, names: dict[str, str]) -> dict[str, Any]:
    calls = parts.tool_calls(message, param)
    names |= {one.id: one.name for one in calls}
    told = [{"id": one.id, "function": {"name": one.name, "arguments": one.arguments}} for one in calls]
    return {"tool_calls": told} if told else {}


def _image(url: str, param: str) -> str:
    """The base64 of a data: URL. Ollama fetches nothing, and neither do we."""
    data = parts.data_url(url, param)
    if data is None:
        raise wrong(param, f"{_WHO} takes images as data: URLs only.")
    return data[1]


# ---- the answer

_DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


class _Lines:
    """Newline-delimited JSON as events, with the interface of sse.Decoder. CRLF ends a line, too; empty ones are none.

    A last line without its end counts if it is whole, as only JSON can tell. What proxies make of it is read as well: lines
    as an event stream, a byte order mark, and a whole answer over many lines.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._limit = max_event_bytes
        self._tail = bytearray()
        self._spread: bytearray | None = None
        """A whole answer over many lines, so far."""
        self._begun = False
        self.refused = False

    def feed(self, data: bytes) -> list[sse.Event]:
        """Raises EventTooLarge; lines before the oversized one are returned first, and the next call raises."""
        if self.refused:
            raise sse.EventTooLarge(f"a line is over {self._limit} bytes")
        *lines, rest = data.split(b"\n")
        events: list[sse.Event] = []
        for line in lines:
            whole = bytes(self._tail + line).removesuffix(b"\r")
            self._tail.clear()
            if len(whole) > self._limit:
                return self._refuse(events)
            if not self._begun:
                whole = whole.removeprefix(b"\xef\xbb\xbf")
            if not self._begun and whole.strip() == b"{":
                self._spread = bytearray()
            self._begun = self._begun or bool(whole.strip())
            if self._spread is not None:
                self._spread += whole
                if len(self._spread) > self._limit:
                    return self._refuse(events)
            elif data_ := _unframed(whole):
                events.append(sse.Event(data_))
        # A CR at the end may be half a line's end, which is not the line's: the verdict must not depend on the split.
        if len(self._tail) + len(rest) - (rest or self._tail).endswith(b"\r") > self._limit:
            return self._refuse(events)
        self._tail += rest
        return events

    def close(self) -> list[sse.Event]:
        events = self.feed(b"")
        tail = _unframed(bytes(self._spread or b"") + bytes(self._tail).strip())
        self._tail.clear()
        return [*events, sse.Event(tail)] if parse(tail) is not None else events

    def _refuse(self, events: list[sse.Event]) -> list[sse.Event]:
        self._tail.clear()
        self.refused = True
        return events or self.feed(b"")


def _unframed(line: bytes) -> bytes:
    """What an event stream's line says; nothing for those that are no data."""
    if line.startswith((b":", b"event:", b"id:", b"retry:")):
        return b""
    return line[5:].strip() if line.startswith(b"data:") else line if line.strip() else b""


class _Translator:
    def __init__(self) -> None:
        self.done = False
        self._calls = 0

    def feed(self, event: str, value: dict[str, Any]) -> list[dict[str, Any]]:
        with readable():
            message = value.get("message")
            if message is None and isinstance(value.get("response"), str):  # what /api/generate says
                message = {"content": value["response"], "thinking": value.get("thinking")}
            delta = self._delta(message or {})
            self.done = value.get("done") in (True, "true")
            if not (delta or self.done):
                return []
            # Older servers give no reason.
            chunk = finish_chunk(value.get("done_reason"), **delta) if self.done else delta_chunk(**delta)
            if value.get("logprobs"):
                chunk["choices"][0]["logprobs"] = logprobs(value["logprobs"])
            return [chunk, *_usage(value)] if self.done else [chunk]

    def _delta(self, message: dict[str, Any]) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        for ours, theirs in (("reasoning_content", "thinking"), ("content", "content")):
            if message.get(theirs):
                delta[ours] = text_in(message[theirs])
        if calls := [self._call(one) for one in message.get("tool_calls") or () if one is not None]:
            delta["tool_calls"] = calls
        return delta

    def _call(self, one: dict[str, Any]) -> dict[str, Any]:
        function = one.get("function") or one
        inner = {"name": text_in(function["name"]), "arguments": function.get("arguments") or {}}
        self._calls += 1
        return {"index": self._calls - 1, "id": one.get("id"), "type": "function", "function": inner}


def _usage(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Ollama leaves out a count of zero: a prompt that was kept from before may have none."""
    if "eval_count" not in value and "prompt_eval_count" not in value:
        return []
    chunk = usage_chunk(value.get("prompt_eval_count"), value.get("eval_count"))
    durations = {key: value[key] for key in _DURATIONS if key in value}
    return [{**chunk, "ollama": durations} if durations else chunk]


DIALECT = Dialect(
    call,
    _Translator,
    _Lines,
    frozenset(
        "application/x-ndjson application/ndjson application/json application/octet-stream text/plain".split() + [""]
    ),
    wire_format="ollama",
)
