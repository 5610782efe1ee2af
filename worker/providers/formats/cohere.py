"""Cohere's Chat API, version 2, as an upstream (docs.cohere.com/v2/reference/chat-stream).

Hidden here: its names for sampling options and formats, thinking by a budget, and events that tell one message in
blocks. Messages, tools and tool calls are shaped like OpenAI's. `documents`, `citation_options`, `safety_mode` and
whatever else only Cohere knows travel untouched; its citations are `cohere_citations` of a delta, each with its `index`,
and go back as citations.

- `reasoning_effort` is a budget of thinking; from `high` on there is no limit but Cohere's own.
- That a certain function must be called is asked for by showing no other, and requiring a call.
- `strict` is for all functions or none here: it is asked for where every function asks for it, and left out elsewhere.
- Left out, since it changes no answer's meaning: who asks and how it is billed, kept or sped up (metadata, user, store,
  service_tier, prompt_cache_key, prediction …), reasoning in the history, and the one `name` that all messages of a role
  share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shared.lib import json
from worker.providers import parts, schemas
from worker.providers.accepts import FORMATS, Accepts
from worker.providers.chunk_shapes import delta_chunk, finish_chunk, usage_chunk
from worker.providers.dialect import Call, Dialect
from worker.providers.errors import readable, refusal, text_in
from worker.providers.finish import ending
from worker.providers.formats.openai import key_header
from worker.providers.parts import wrong
from worker.providers.registry import Provider

_WHO = "Cohere"
_UNKNOWN = "n top_logprobs logit_bias audio modalities verbosity functions function_call web_search_options".split()
_SAME = ("frequency_penalty", "logprobs", "presence_penalty", "seed", "temperature")
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192}

_Chunks = list[dict[str, Any]]

# ---- the request


def call(provider: Provider, body: dict[str, Any], model: str) -> Call:
    return Call("/chat", build_request(body, model, provider.accepts), key_header(provider))


def build_request(body: dict[str, Any], model: str, accepts: Accepts = FORMATS["cohere"]) -> dict[str, Any]:
    """The body to send. Raises BadRequest for what Cohere has no words for."""
    parts.refuse(body, _WHO, *_UNKNOWN)
    said = [_message(message, where) for message, where in parts.messages(body, _WHO, accepts)]
    messages = [message for message in said if message.keys() != {"role"}]  # what was never said cannot be sent
    if not messages:
        raise wrong("messages", "nobody says anything. Add what the user says.")
    request: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
    request |= {field: body[field] for field in _SAME if body.get(field) is not None}
    renamed = {"p": body.get("top_p"), "k": body.get("top_k"), "max_tokens": parts.token_limit(body)}
    request |= {field: value for field, value in renamed.items() if value is not None}
    if stop := parts.stops(body, accepts):
        request["stop_sequences"] = stop
    if effort := parts.effort(body):
        budget = {"token_budget": _BUDGETS[effort]} if effort in _BUDGETS else {}
        request["thinking"] = {"type": "disabled" if effort == "none" else "enabled", **budget}
    request |= _format(body) | _tools(body)
    return parts.add_own(request, body, without=("top_k",))


def _format(body: dict[str, Any]) -> dict[str, Any]:
    """JSON with a schema is JSON all the same; Cohere's own form of that is left as it is."""
    kind, schema = parts.response_schema(body)
    if kind == "json_schema":
        return {"response_format": {"type": "json_object", "json_schema": schema}}
    return {"response_format": body["response_format"]} if kind == "json_object" else {}


def _tools(body: dict[str, Any]) -> dict[str, Any]:
    functions, others = parts.tools(body)
    if others:
        raise wrong("tools", f"{_WHO} knows functions only.")
    if functions and body.get("parallel_tool_calls") is False:
        raise wrong("parallel_tool_calls", f"{_WHO} cannot be told. Leave it out, or ask another model.")
    mode, name = parts.tool_choice(body)
    shown = [one for one in functions if name in (None, one.name)]
    if not shown and mode in ("required", "function"):
        raise wrong("tool_choice", "there is no such function in tools.")
    if not shown:
        return {}
    wanted: dict[str, Any] = {"tools": [_tool(one) for one in shown]}
    if all(one.more.get("strict") is True for one in shown):
        wanted["strict_tools"] = True
    if mode != "auto":
        wanted["tool_choice"] = "NONE" if mode == "none" else "REQUIRED"
    return wanted


def _tool(one: parts.Function) -> dict[str, Any]:
    described = {} if one.description is None else {"description": one.description}
    parameters = schemas.of_object(one.parameters)
    return {"type": "function", "function": {"name": one.name, **described, "parameters": parameters}}


def _message(message: dict[str, Any], param: str) -> dict[str, Any]:
    role = "system" if message["role"] == "developer" else message["role"]
    if message.get("audio"):
        raise wrong(f"{param}.audio", f"{_WHO} cannot hear. Send what was said as text.")
    said: dict[str, Any] = {"role": role}
    content = [_part(part, where, role) for part, where in parts.content(message, param)]
    if len(content) == 1 and content[0]["type"] == "text":
        said["content"] = content[0]["text"]
    elif content or role != "assistant":
        said["content"] = content or ""
    if role == "tool":
        said["tool_call_id"] = parts.string(message.get("tool_call_id"), f"{param}.tool_call_id")
    if role == "assistant":
        if calls := [_call(one) for one in parts.tool_calls(message, param)]:
            said["tool_calls"] = calls
        if message.get("tool_plan"):
            said["tool_plan"] = message["tool_plan"]
        if cited := parts.items(message.get("cohere_citations"), f"{param}.cohere_citations"):
            said["citations"] = [parts.unplaced(citation) for citation, _ in cited]
    return said


def _call(one: parts.ToolCall) -> dict[str, Any]:
    function = {"name": one.name, "arguments": json.dumps(one.arguments).decode()}
    return {"id": one.id, "type": "function", "function": function}


def _part(part: dict[str, Any], param: str, role: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind in ("text", "refusal"):
        return {"type": "text", "text": parts.string(part.get(kind), f"{param}.{kind}")}
    if kind == "image_url" and role == "user":
        image = part[kind] if isinstance(part.get(kind), dict) else {}
        return {"type": kind, "image_url": {**image, "url": parts.image_url(part, param)}}
    if (kind, role) in (("document", "tool"), ("thinking", "assistant")):
        return part  # Cohere's own
    raise wrong(f"{param}.type", f"{_WHO} does not take it in a message of the role {role}.")


# ---- the answer


class _Translator:
    def __init__(self) -> None:
        self.done = False
        self._calls: dict[Any, int] = {}
        self._begun = 0
        self._citations = 0

    def feed(self, event: str, value: dict[str, Any]) -> _Chunks:
        with readable():
            handler = _HANDLERS.get(value.get("type") or event)
            if handler is not None:
                return handler(self, value, value.get("delta") or {})
            if "type" not in value and isinstance(value.get("message"), dict):
                return self.whole(value)
            if "type" not in value and "message" in value:  # what an error's body looks like
                raise refusal(value, status=502)
            return []

    def content(self, value: dict[str, Any], delta: dict[str, Any]) -> _Chunks:
        block = delta["message"]["content"] or {}
        block = {"text": block} if isinstance(block, str) else block
        if block.get("thinking"):
            return [delta_chunk(reasoning_content=text_in(block["thinking"]))]
        if not block.get("text"):
            return []
        chunk = delta_chunk(content=text_in(block["text"]))
        if value.get("logprobs"):
            chunk["choices"][0]["logprobs"] = _logprobs(block["text"], value["logprobs"]["logprobs"])
        return [chunk]

    def plan(self, value: dict[str, Any], delta: dict[str, Any]) -> _Chunks:
        words = delta["message"]["tool_plan"]
        return [delta_chunk(reasoning_content=text_in(words))] if words else []

    def call_start(self, value: dict[str, Any], delta: dict[str, Any]) -> _Chunks:
        call = _only(delta["message"]["tool_calls"])
        index = self._calls[value.get("index")] = self._begun
        self._begun += 1
        function = {
            "name": text_in(call["function"]["name"]),
            "arguments": call["function"].get("arguments") or "",
        }
        opening = {"index": index, "id": call.get("id"), "type": "function", "function": function}
        return [delta_chunk(tool_calls=[opening])]

    def call_delta(self, value: dict[str, Any], delta: dict[str, Any]) -> _Chunks:
        words = _only(delta["message"]["tool_calls"])["function"]["arguments"]
        index = self._calls[value.get("index")]
        return [delta_chunk(tool_calls=[{"index": index, "function": {"arguments": text_in(words)}}])] if words else []

    def citation(self, value: dict[str, Any], delta: dict[str, Any]) -> _Chunks:
        found = delta["message"]["citations"]
        first, found = self._citations, found if isinstance(found, list) else [found]
        self._citations += len(found)
        told = [{**citation, "index": first + at} for at, citation in enumerate(found)]
        return [delta_chunk(cohere_citations=told)] if told else []

    def end(self, value: dict[str, Any], delta: dict[str, Any]) -> _Chunks:
        """Whatever is told of an error is one, except for what is known to be an end."""
        native, error = text_in(delta.get("finish_reason") or ""), delta.get("error")
        if error and (not native or ending("cohere", native).reason is None):
            status = ending("cohere", native).http_status if native else 502
            raise refusal({"message": error, "code": native.lower() or None}, status=status)
        self.done = True
        usage = delta.get("usage") or value.get("usage")
        return [finish_chunk(native or None), *([_usage(usage)] if usage else [])]

    def whole(self, value: dict[str, Any]) -> _Chunks:
        """An answer that comes in one piece, as the events it would have been."""
        message = value["message"]
        chunks: _Chunks = []
        if message.get("tool_plan"):
            chunks += self.plan({}, {"message": {"tool_plan": message["tool_plan"]}})
        content = message.get("content") or ()
        for block in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            chunks += self.content({}, {"message": {"content": block}})
        for at, call in enumerate(message.get("tool_calls") or ()):
            chunks += self.call_start({"index": at}, {"message": {"tool_calls": call}})
        if message.get("citations"):
            chunks += self.citation({}, {"message": {"citations": message["citations"]}})
        return chunks + self.end({}, value)


def _only(calls: Any) -> dict[str, Any]:
    """The call of an event, which some tell as a list of one. Raises ValueError for one of several."""
    (call,) = calls if isinstance(calls, list) else [calls]
    found: dict[str, Any] = call
    return found


def _logprobs(words: str, odds: list[float]) -> dict[str, Any]:
    """Cohere gives the odds of a piece's tokens, but not where each ends: the piece stands for them, with their sum."""
    entry: dict[str, Any] = {"token": words, "logprob": sum(odds), "bytes": None, "top_logprobs": []}
    return {"content": [entry], "refusal": None}


_COUNTED = ("input_tokens", "output_tokens")


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    """The tokens there were; those that were billed where nothing else is known. What was billed is kept, too."""
    told = [one for one in (usage.get("tokens"), usage.get("billed_units"), usage) if isinstance(one, dict)]
    tokens = next((one for one in told if one.get("input_tokens") or one.get("output_tokens")), {})
    tokens = {name: next((one[name] for one in (tokens, *told) if one.get(name)), 0) for name in _COUNTED}
    more = {key: figure for key, figure in usage.items() if key not in ("tokens", "cached_tokens", *_COUNTED)}
    if usage.get("cached_tokens") is not None:
        more["prompt_tokens_details"] = {"cached_tokens": int(usage["cached_tokens"])}
    return usage_chunk(tokens.get("input_tokens"), tokens.get("output_tokens"), **more)


_HANDLERS: dict[str, Callable[[_Translator, dict[str, Any], dict[str, Any]], _Chunks]] = {
    "citation-start": _Translator.citation,
    "content-delta": _Translator.content,
    "content-start": _Translator.content,
    "message-end": _Translator.end,
    "tool-call-delta": _Translator.call_delta,
    "tool-call-start": _Translator.call_start,
    "tool-plan-delta": _Translator.plan,
}

DIALECT = Dialect(call, _Translator, wire_format="cohere")
