"""OpenAI's chat format as a request: what every provider that is compatible with OpenAI is asked. Pure functions.

Hidden here: which of a client's fields are sent on, under which name the token limit goes, how the key is sent, and that one
format has as many readings as vendors: what a vendor refuses is said in the words it takes (`Accepts`), or left out where it
changes no answer's meaning. Fields that this product added to an answer go back to nobody but who wants them. An answer in this
format needs no translator: worker/normalizer.py reads it as it comes.
"""

from __future__ import annotations

from typing import Any

from shared.chat.chunks import EXTENSION_FIELDS
from shared.config.formats import WIRE_FORMATS
from worker.providers import history, parts, schemas
from worker.providers.accepts import FORMATS, REASONING_TEXTS, Accepts
from worker.providers.dialect import Call, Dialect
from worker.providers.registry import Provider

_LIMITS = ("max_completion_tokens", "max_tokens")
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

_MESSAGE_FIELDS = {
    "assistant": frozenset("role content name refusal audio tool_calls function_call".split()),
    "tool": frozenset("role content tool_call_id".split()),
}
_OTHER_FIELDS = frozenset(("role", "content", "name"))
"""What OpenAI knows of a message, by its role (platform.openai.com/docs/api-reference/chat/create)."""

_REASONING_FIELDS = frozenset((*REASONING_TEXTS, "reasoning_details"))
_ANSWERS_ONLY = frozenset(
    # A reader's of answers, or this product's own: no request has them.
    "annotations other_annotations citations images parsed finish_reason native_finish_reason stop_reason"
    " provider_specific_fields tool_plan extra_content reasoning_summary".split()
) | {name for row in WIRE_FORMATS.values() for name in row.lists}

_DROPPED, _NOTHING = _ANSWERS_ONLY | _REASONING_FIELDS, frozenset[str]()
_OF_TOOLS = frozenset(("tools", "parallel_tool_calls", "tool_choice"))


def build_request(
    body: dict[str, Any], model: str, accepts: Accepts = FORMATS["openai"], *, limit_field: str | None = None
) -> dict[str, Any]:
    """The body to send: the client's own, unknown fields included, less ours, streamed, asking for usage where one may.

    `body` is not changed. `stream_options` keeps its other keys. The two names of the token limit are never both sent:
    `limit_field` is the one the provider knows; without it the client's own, the newer of two. Raises BadRequest for what
    this provider could only be asked in part.
    """
    out = EXTENSION_FIELDS | {*accepts.leaves_out, *_LIMITS}
    request = {key: value for key, value in body.items() if key not in out}
    if "messages" in request:
        functions = bool(request.get("functions"))  # then the whole request is in the form of that time
        request["messages"] = _messages(request["messages"], accepts, functions=functions)
    request["model"] = model
    request["stream"] = True
    if "stream_options" not in accepts.leaves_out:
        options = request.get("stream_options")
        request["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    limits = [(field, limit) for field in _LIMITS if (limit := body.get(field)) is not None]
    if limits and (accepts.unlimited or limits[0][1] != -1):
        field, limit = limits[0]
        request[limit_field or field] = limit
    if "stop" in request:
        _fit_stop(request, accepts)
    if not _OF_TOOLS.isdisjoint(request):
        _fit_tools(request, accepts)
    if request.get("reasoning_effort") in _EFFORTS and accepts.efforts:
        request["reasoning_effort"] = _nearest(request["reasoning_effort"], accepts.efforts)
    for field, name in accepts.renames:
        if field in request:
            request.setdefault(name, request.pop(field))
    return request


def _fit_stop(request: dict[str, Any], accepts: Accepts) -> None:
    """A list without any sequence asks for nothing, and some refuse it."""
    stops = parts.stops(request, accepts)
    if not stops:
        del request["stop"]
    elif not isinstance(request["stop"], str):
        request["stop"] = stops


def _fit_tools(request: dict[str, Any], accepts: Accepts) -> None:
    """What is said about tools goes with tools only: OpenAI and others refuse it alone. A choice that needs tools stays, for
    the provider to refuse."""
    tools = request.get("tools")
    if not tools:
        request.pop("tools", None)
        request.pop("parallel_tool_calls", None)
        if request.get("tool_choice") in (None, "auto", "none"):
            request.pop("tool_choice", None)
    elif isinstance(tools, list):
        request["tools"] = [_tool(tool, accepts) for tool in tools]


def _tool(tool: Any, accepts: Accepts) -> Any:
    """A function without parameters has none in so many words: Mistral wants them said."""
    if not isinstance(tool, dict) or not accepts.strict:
        return tool
    fit = {key: value for key, value in tool.items() if key != "cache_control"}
    if isinstance(function := fit.get("function"), dict):
        said = {key: value for key, value in function.items() if value is not None}
        fit = {"type": "function", **fit, "function": {**said, "parameters": schemas.of_object(said.get("parameters"))}}
    return fit


def _nearest(effort: str, known: tuple[str, ...]) -> str:
    """To think less is not to think at all, so `none` is never the nearest of another."""
    if effort in known or effort == "none":
        return effort
    place = _EFFORTS.index(effort)
    return min((one for one in known if one != "none"), key=lambda one: abs(_EFFORTS.index(one) - place))


# ---- messages


def _messages(messages: Any, accepts: Accepts, *, functions: bool) -> list[Any]:
    found = history.fitted(messages, accepts, functions=functions)
    if not accepts.names:
        parts.check_speakers([pair for pair in found if isinstance(pair[0], dict)], "this provider")
    fit = [_message(message, accepts) for message, _ in found]
    if not accepts.empty_answers:
        fit = [message for message in fit if not _says_nothing(message, accepts)] or fit
    last = fit[-1] if fit and isinstance(fit[-1], dict) else {}
    if accepts.prefill_field and last.get("role") == "assistant" and last.get("content") and not last.get("tool_calls"):
        fit[-1] = {**last, accepts.prefill_field: True}
    return fit


def _says_nothing(message: Any, accepts: Accepts) -> bool:
    """An answer that was ended before its first word, as a session may have kept it."""
    if not isinstance(message, dict) or message.get("role") != "assistant":
        return False
    return not any(
        value for key, value in message.items() if key not in ("role", "name") and value != accepts.no_reasoning
    )


def _message(message: Any, accepts: Accepts) -> Any:
    if not isinstance(message, dict):
        return message
    role = message.get("role")
    known = _MESSAGE_FIELDS.get(str(role), _OTHER_FIELDS).union(accepts.message_fields)
    dropped = _DROPPED if role == "assistant" else _NOTHING
    kept = {key: value for key, value in message.items() if key in known or not (accepts.strict or key in dropped)}
    if not accepts.names and role not in ("tool", "function"):
        kept.pop("name", None)
    if role == "assistant":
        _fit_answer(kept, message, accepts)
    if isinstance(kept.get("content"), list):
        kept["content"] = _content(kept["content"], accepts)
    return kept


def _fit_answer(kept: dict[str, Any], message: dict[str, Any], accepts: Accepts) -> None:
    """An earlier answer: its calls, and its reasoning under the name it is taken under."""
    if kept.get("refusal") and not accepts.raw_arguments:
        refusal = kept.pop("refusal")
        kept["content"] = kept.get("content") or refusal
    if isinstance(calls := kept.get("tool_calls"), list):
        kept["tool_calls"] = [_call(call, accepts) for call in calls]
        kept.setdefault("content", None)
    if isinstance(legacy := kept.get("function_call"), dict):
        written = history.arguments_text(legacy.get("arguments"), raw=accepts.raw_arguments)
        kept["function_call"] = {**legacy, "arguments": written}
    for field in accepts.reasoning:
        if message.get(field):
            kept[field] = message[field]
    if accepts.reasoning and not any(kept.get(field) for field in accepts.reasoning):
        texts = [message[field] for field in REASONING_TEXTS if isinstance(message.get(field), str) and message[field]]
        if texts:
            kept[accepts.reasoning[0]] = texts[0]
        elif accepts.no_reasoning is not None:
            kept[accepts.reasoning[0]] = accepts.no_reasoning
    if isinstance(audio := kept.get("audio"), dict) and "id" in audio:
        kept["audio"] = {"id": audio["id"]}


def _call(call: Any, accepts: Accepts) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(custom := call.get("custom"), dict) and not accepts.raw_arguments:
        # A free-form call, which OpenAI alone knows: its input as the argument of a function.
        inner = {"name": custom.get("name"), "arguments": {"input": custom.get("input") or ""}}
        call = {**{key: item for key, item in call.items() if key != "custom"}, "type": "function", "function": inner}
    known = ("id", "type", "function", "custom", *accepts.message_fields)
    fit = {
        key: value
        for key, value in call.items()
        if key in known or not (accepts.strict or key in ("index", "extra_content"))
    }
    if isinstance(function := fit.get("function"), dict):
        fit.setdefault("type", "function")
        written = history.arguments_text(function.get("arguments"), raw=accepts.raw_arguments)
        more = {} if accepts.strict else {key: value for key, value in function.items() if key != "parsed_arguments"}
        fit["function"] = {**more, "name": function.get("name"), "arguments": written}
    return fit


def _content(content: list[Any], accepts: Accepts) -> Any:
    """Parts without others' marks for their caches where those are refused, and text as a string where it has to be one."""
    if accepts.strict:
        content = [
            {key: value for key, value in part.items() if key != "cache_control"} if isinstance(part, dict) else part
            for part in content
        ]
    if not accepts.raw_arguments:  # a part that OpenAI alone knows; to others it is what was said
        content = [
            {"type": "text", "text": part["refusal"]}
            if isinstance(part, dict) and isinstance(part.get("refusal"), str)
            else part
            for part in content
        ]
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    if not accepts.text_parts and len(texts) == len(content) and all(isinstance(text, str) for text in texts):
        return parts.joined([str(text) for text in texts if text])
    return content


# ---- the call


def call(provider: Provider, body: dict[str, Any], model: str) -> Call:
    """The request to a provider that speaks OpenAI's format."""
    request = build_request(body, model, provider.accepts, limit_field=provider.limit_field)
    return Call("/chat/completions", request, key_header(provider))


def key_header(provider: Provider) -> dict[str, str]:
    """The header that carries the key: as a bearer token, or bare where the provider has a header of its own (Azure)."""
    if provider.api_key is None:
        return {}
    bearer = provider.key_header == "authorization"
    return {provider.key_header: f"Bearer {provider.api_key}" if bearer else provider.api_key}


DIALECT = Dialect(call)
