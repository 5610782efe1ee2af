"""OpenAI's Responses format as an upstream (platform.openai.com/docs/api-reference/responses, openresponses.org).

Hidden here: messages as input items, tools and formats that are flat there; what an answer's events mean is
`responses_events.py`'s. Three defaults are set so that a request means what it means to Chat Completions: answers are
not stored, functions are not strict, and `reasoning_effort` asks for a summary, too, without which OpenAI shows none of
the reasoning. The client's own fields (`store`, `strict`, `reasoning`) say otherwise.

What Chat Completions has no place for is kept in deltas: `reasoning_items` (encrypted reasoning) and `responses_items`
(what hosted tools did), each item with its `index` in the list and its `output_index`. Sent back in an assistant
message they become input items again. The finish chunk names the response, `responses: {"id": …}`, which is what
`previous_response_id` wants.

Left out, since it changes no answer's meaning: `prediction`, and the one `name` that all messages of a role share.
"""

from __future__ import annotations

from typing import Any

from shared.features.responses.namespaces import NAMESPACES, own_names, with_own_name
from worker.providers import history, parts
from worker.providers.accepts import FORMATS, Accepts
from worker.providers.dialect import Call, Dialect
from worker.providers.formats import responses_verbatim
from worker.providers.formats.openai import key_header
from worker.providers.formats.responses_events import ResponsesTranslator
from worker.providers.parts import wrong
from worker.providers.registry import Provider

_WHO = "The Responses API"
_UNKNOWN = "n logit_bias stop audio modalities functions function_call web_search_options".split()
_SAME = (
    "frequency_penalty metadata parallel_tool_calls presence_penalty prompt_cache_key prompt_cache_retention"
    " safety_identifier service_tier temperature top_logprobs top_p user"
).split()
_LOGPROBS = "message.output_text.logprobs"
_KEPT = ("reasoning_items", "responses_items")


def call(provider: Provider, body: dict[str, Any], model: str) -> Call:
    if (native := responses_verbatim.request_of(body)) is not None:
        names = own_names(body["responses"].get(NAMESPACES))
        items = _input({"messages": responses_verbatim.history_of(body)}, provider.accepts)
        before = [with_own_name(item, names) for item in items]
        return Call("/responses", responses_verbatim.build(native, model, before), key_header(provider))
    return Call("/responses", build_request(body, model, provider.accepts), key_header(provider))


def build_request(body: dict[str, Any], model: str, accepts: Accepts = FORMATS["responses"]) -> dict[str, Any]:
    """The body to send. Raises BadRequest for what this format has no words for.

    Fields that are not Chat Completions' (`instructions`, `include`, `previous_response_id`, `truncation` …) are taken
    for the provider's own, and travel untouched.
    """
    parts.refuse(body, _WHO, *_UNKNOWN)
    for field in ("seed", "input"):
        if body.get(field) is not None:
            raise wrong(field, f"{_WHO} has no place for it beside messages. Leave it out, or ask another model.")
    store = body.get("store")
    request: dict[str, Any] = {"model": model, "input": _input(body, accepts), "stream": True, "store": store or False}
    request |= {field: body[field] for field in _SAME if body.get(field) is not None}
    if (limit := parts.token_limit(body)) is not None:
        request["max_output_tokens"] = limit
    if options := {key: value for key, value in (body.get("stream_options") or {}).items() if key != "include_usage"}:
        request["stream_options"] = options
    request |= _text(body) | _reasoning(body) | _tools(body) | _include(body)
    return parts.add_own(request, body, without=("include", "reasoning"))


def _text(body: dict[str, Any]) -> dict[str, Any]:
    """What the answer is to look like: `response_format`, flat, and `verbosity`."""
    text: dict[str, Any] = {}
    if form := body.get("response_format"):
        kind, _ = parts.response_schema(body)
        text["format"] = {**form["json_schema"], "type": kind} if kind == "json_schema" else form
    if body.get("verbosity") is not None:
        text["verbosity"] = body["verbosity"]
    return {"text": text} if text else {}


def _reasoning(body: dict[str, Any]) -> dict[str, Any]:
    own = parts.mapping(body.get("reasoning") or {}, "reasoning")
    effort = parts.effort(body)
    if effort is None:
        return {"reasoning": own} if own else {}
    if own.get("effort", effort) != effort:
        raise wrong("reasoning.effort", "said twice, and not the same as reasoning_effort. Send one of the two.")
    summary = {} if effort == "none" else {"summary": "auto"}
    return {"reasoning": {"effort": effort, **summary, **own}}


def _include(body: dict[str, Any]) -> dict[str, Any]:
    include = body.get("include") or []
    if not isinstance(include, list):
        raise wrong("include", "must be a list.")
    if body.get("logprobs") and _LOGPROBS not in include:
        include = [*include, _LOGPROBS]
    return {"include": include} if include else {}


def _tools(body: dict[str, Any]) -> dict[str, Any]:
    tools = [_flat_tool(tool, where) for tool, where in parts.items(body.get("tools"), "tools")]
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        choice = _flat(choice, "tool_choice")
    return {**({"tools": tools} if tools else {}), **({"tool_choice": choice} if choice is not None else {})}


def _flat_tool(tool: dict[str, Any], param: str) -> dict[str, Any]:
    """A tool that Responses hosts (`web_search` …) is flat already."""
    flat = _flat(tool, param)
    if flat is tool:
        return tool
    parts.string(flat.get("name"), f"{param}.{flat['type']}.name")
    if flat["type"] == "function":
        return {"parameters": {"type": "object", "properties": {}}, "strict": False, **flat}
    form = flat.get("format")
    if isinstance(form, dict) and isinstance(form.get("grammar"), dict):
        return {**flat, "format": {"type": "grammar", **form["grammar"]}}
    return flat


def _flat(value: dict[str, Any], param: str) -> dict[str, Any]:
    """`{type: TYPE, TYPE: {…}}`, the form of Chat Completions' tools and choices, as `{type: TYPE, …}`."""
    kind = value.get("type")
    if kind not in ("function", "custom", "allowed_tools") or kind not in value:
        return value
    inner = parts.mapping(value[kind], f"{param}.{kind}")
    if kind == "allowed_tools":
        tools = parts.items(inner.get("tools"), f"{param}.{kind}.tools")
        inner = {**inner, "tools": [_flat(tool, where) for tool, where in tools]}
    return {**{key: item for key, item in inner.items() if item is not None}, "type": kind}


# ---- messages


def _input(body: dict[str, Any], accepts: Accepts) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    custom: set[str] = set()
    for message, param in parts.messages(body, _WHO, accepts):
        role = message["role"]
        if role == "assistant":
            found += _said(message, param, custom)
        elif role == "tool":
            call_id = parts.string(message.get("tool_call_id"), f"{param}.tool_call_id")
            kind = "custom_tool_call_output" if call_id in custom else "function_call_output"
            found.append({"type": kind, "call_id": call_id, "output": _content(message, param)})
        else:
            found.append({"type": "message", "role": role, "content": _content(message, param)})
    return found


def _said(message: dict[str, Any], param: str, custom: set[str]) -> list[dict[str, Any]]:
    """An assistant's message: the items it kept for us, in their order, what it said, what it called."""
    if message.get("audio"):
        raise wrong(f"{param}.audio", f"{_WHO} cannot hear. Send what was said as text.")
    kept = [item for field in _KEPT for item, _ in parts.items(message.get(field), f"{param}.{field}")]
    kept.sort(key=lambda item: place if isinstance(place := item.get("output_index"), int) else 0)
    found = [{key: value for key, value in parts.unplaced(item).items() if key != "output_index"} for item in kept]
    refusal = message.get("refusal")
    said = [_said_part(part, where) for part, where in parts.content({**message, "refusal": None}, param)]
    if refusal:
        said.append({"type": "refusal", "refusal": parts.string(refusal, f"{param}.refusal")})
    if said:
        found.append({"type": "message", "role": "assistant", "content": said})
    return found + _calls(message, param, custom)


def _said_part(part: dict[str, Any], param: str) -> dict[str, Any]:
    if part.get("type") == "text":
        return {"type": "output_text", "text": part["text"], "annotations": []}
    if part.get("type") == "refusal":
        return {"type": "refusal", "refusal": parts.string(part.get("refusal"), f"{param}.refusal")}
    raise wrong(f"{param}.type", "must be text or refusal.")


def _calls(message: dict[str, Any], param: str, custom: set[str]) -> list[dict[str, Any]]:
    """Calls with arguments as they were written, JSON or not: it was the model who wrote them. Notes custom calls' ids."""
    found = []
    for one, where in parts.items(message.get("tool_calls"), f"{param}.tool_calls"):
        kind, field = ("custom", "input") if one.get("type") == "custom" else ("function", "arguments")
        inner = parts.mapping(one.get(kind), f"{where}.{kind}")
        call_id = parts.string(one.get("id"), f"{where}.id")
        name, words = parts.string(inner.get("name"), f"{where}.{kind}.name"), inner.get(field)
        if kind == "function":
            words = history.arguments_text(words, raw=True)
        elif not isinstance(words := words or "", str):
            raise wrong(f"{where}.{kind}.{field}", "must be a string.")
        if kind == "custom":
            custom.add(call_id)
        item = {"custom": "custom_tool_call", "function": "function_call"}[kind]
        found.append({"type": item, "call_id": call_id, "name": name, field: words})
    return found


def _content(message: dict[str, Any], param: str) -> str | list[dict[str, Any]]:
    if not isinstance(message.get("content"), list):
        return message.get("content") or ""
    return [_heard_part(part, where) for part, where in parts.content(message, param)]


def _heard_part(part: dict[str, Any], param: str) -> dict[str, Any]:
    """A part said to the model. What it holds besides (`prompt_cache_breakpoint`) stays."""
    kind = part.get("type")
    rest = {key: value for key, value in part.items() if key not in ("type", kind)}
    if kind == "text":
        return {**rest, "type": "input_text", "text": part["text"]}
    if kind == "image_url":
        url = parts.image_url(part, param)
        detail = part[kind].get("detail") if isinstance(part[kind], dict) else None
        return {**rest, "type": "input_image", "image_url": url, "detail": detail or "auto"}
    if kind == "file":
        return {**rest, **parts.mapping(part.get("file"), f"{param}.file"), "type": "input_file"}
    if isinstance(kind, str) and kind.startswith("input_"):
        return part
    raise wrong(f"{param}.type", "must be text, image_url, input_audio or file.")


DIALECT = Dialect(
    call, ResponsesTranslator, wire_format="responses", summarises=True, verbatim=responses_verbatim.VerbatimTranslator
)
