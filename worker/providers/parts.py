"""The parts of a request in OpenAI's format, read strictly, for those who have to say it in other words. Pure functions.

Hidden here: which request fields are OpenAI's (all others are a provider's own and travel untouched), and the shapes of
content, tools, choices and limits (platform.openai.com/docs/api-reference/chat/create). Everything raises BadRequest
with the path of what is wrong as `param`: a request whose meaning would be lost is refused, not sent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from shared.chat.chunks import EXTENSION_FIELDS
from shared.errors import BadRequest
from worker.providers import history
from worker.providers.accepts import Accepts

_OPENAI_FIELDS = frozenset(
    (
        "audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens "
        "messages metadata modalities model n parallel_tool_calls prediction presence_penalty prompt_cache_key "
        "prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed "
        "service_tier stop store stream stream_options temperature tool_choice tools top_logprobs top_p user "
        "verbosity web_search_options "
    ).split()
)

_NEUTRAL = {"n": 1, "modalities": ["text"], "verbosity": "medium"}
"""What a field may say, besides nothing, without asking for anything."""


def wrong(param: str, problem: str) -> BadRequest:
    return BadRequest(f"{param}: {problem}", param=param)


def refuse(body: dict[str, Any], provider: str, *fields: str) -> None:
    """Raises BadRequest for the first of these fields that asks for something: this provider cannot be asked for it."""
    for field in fields:
        value = body.get(field)
        if value and value != _NEUTRAL.get(field):
            raise wrong(field, f"{provider} has nothing like it. Leave it out, or ask another model.")


def add_own(request: dict[str, Any], body: dict[str, Any], *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The request plus those of the client's fields that are neither OpenAI's nor ours, untouched.

    An object may be added to; anything else that OpenAI's fields and the provider's own both say is refused.
    """
    own = {key: value for key, value in body.items() if key not in _OPENAI_FIELDS | EXTENSION_FIELDS}
    return _joined(request, {key: value for key, value in own.items() if key not in without}, "")


def _joined(request: dict[str, Any], own: dict[str, Any], path: str) -> dict[str, Any]:
    joined = {**request, **own}
    for key, theirs in own.items():
        if key not in request:
            continue
        ours = request[key]
        if not (isinstance(ours, dict) and isinstance(theirs, dict)):
            raise wrong(f"{path}{key}", "said twice, in the provider's own words and in OpenAI's. Send one of the two.")
        joined[key] = _joined(ours, theirs, f"{path}{key}.")
    return joined


# ---- shapes


def mapping(value: Any, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(param, "must be an object.")
    return value


def items(value: Any, param: str) -> list[tuple[dict[str, Any], str]]:
    """The objects of a list, each with its path; none for null."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong(param, "must be a list.")
    return [(mapping(item, f"{param}[{at}]"), f"{param}[{at}]") for at, item in enumerate(value)]


def string(value: Any, param: str) -> str:
    if not isinstance(value, str) or not value:
        raise wrong(param, "must be a string, and not empty.")
    return value


def unplaced(item: dict[str, Any]) -> dict[str, Any]:
    """Without the `index` that a list's items have only on the way to the client."""
    return {key: value for key, value in item.items() if key != "index"}


# ---- messages


def messages(body: dict[str, Any], provider: str, accepts: Accepts) -> list[tuple[dict[str, Any], str]]:
    """The messages as the provider can take them (history.py), each with its path.

    A `name` is a hint where all of a role share it, and refused where it tells speakers apart: others have no place for
    it. A tool's own `name` is its function's.
    """
    items(body["messages"], "messages")
    found = history.fitted(body["messages"], accepts)
    check_speakers(found, provider)
    return found


def check_speakers(found: list[tuple[dict[str, Any], str]], provider: str) -> None:
    """Raises BadRequest where messages of one role have several names, for a provider that knows none."""
    names: dict[str, Any] = {}
    for message, param in found:
        role, name = message["role"], message.get("name")
        if role not in ("tool", "function") and name is not None and names.setdefault(role, name) != name:
            raise wrong(f"{param}.name", f"{provider} cannot tell speakers apart. Say in the text who speaks.")


def content(message: dict[str, Any], param: str, *, blank: bool = True) -> list[tuple[dict[str, Any], str]]:
    """The parts of a message, each with its path. Plain text is one part; empty text says nothing, and is none. Without
    `blank`, text of white space alone is none, either."""
    whole, where = message.get("content"), f"{param}.content"
    parts = [({"type": "text", "text": whole}, where)] if isinstance(whole, str) else items(whole, where)
    if message["role"] == "assistant" and message.get("refusal"):
        parts.append(({"type": "text", "text": message["refusal"]}, f"{param}.refusal"))
    for part, where in parts:
        if part.get("type") == "text" and not isinstance(part.get("text"), str):
            raise wrong(f"{where}.text", "must be a string.")
    return [
        (part, where)
        for part, where in parts
        if part.get("type") != "text" or (part["text"] if blank else part["text"].strip())
    ]


def plain_text(message: dict[str, Any], param: str, who: str) -> str:
    """The text of a message that cannot hold anything else. `who` names it in the refusal."""
    texts = []
    for part, where in content(message, param):
        if part.get("type") != "text":
            raise wrong(where, f"{who} can only hold text here.")
        texts.append(part["text"])
    return joined(texts)


def joined(texts: list[str]) -> str:
    """Parts that are text as one text, each from a line of its own: run together, the end of one would change the next. It
    is what llama.cpp and vLLM make of them."""
    return "\n".join(texts)


def data_url(url: str, param: str) -> tuple[str, str] | None:
    """Media type and base64 data of a `data:` URL (RFC 2397); None for another URL."""
    if url[:5].lower() != "data:":
        return None
    head, _, data = history.media_url(url)[5:].partition(",")
    media_type, *options = head.split(";")
    if not media_type or "base64" not in options or not data:
        raise wrong(param, "must be like data:image/png;base64,… with a media type and data in base64.")
    return media_type, data


def image_url(part: dict[str, Any], param: str) -> str:
    """The URL of an `image_url` part. Its `detail` is a hint that no other provider has."""
    image = part.get("image_url")
    return string(image if isinstance(image, str) else mapping(image, f"{param}.image_url").get("url"), param)


class ToolCall(NamedTuple):
    """A call the assistant made. `whole` is as the client sent it."""

    id: str
    name: str
    arguments: dict[str, Any]
    whole: dict[str, Any]


def tool_calls(message: dict[str, Any], param: str) -> list[ToolCall]:
    """The calls, with their arguments whatever these are: it was a model that wrote them, and nobody can take them back."""
    found = []
    for call, where in items(message.get("tool_calls"), f"{param}.tool_calls"):
        if isinstance(custom := call.get("custom"), dict):  # OpenAI's free-form call, whose input is any text
            function, arguments = custom, {"input": custom.get("input") or ""}
        else:
            function = mapping(call.get("function"), f"{where}.function")
            arguments = history.arguments(function.get("arguments"))
        name = string(function.get("name"), f"{where}.function.name")
        found.append(ToolCall(string(call.get("id"), f"{where}.id"), name, arguments, call))
    return found


# ---- tools and limits


class Function(NamedTuple):
    """A function the model may call; `more` is what else the client said about it, such as `strict`."""

    name: str
    description: str | None
    parameters: dict[str, Any] | None
    more: dict[str, Any]


def tools(body: dict[str, Any]) -> tuple[list[Function], list[dict[str, Any]]]:
    """The functions, and the tools that are not OpenAI's and therefore the provider's own."""
    functions, own = [], []
    for tool, where in items(body.get("tools"), "tools"):
        if tool.get("type") == "custom" and "custom" in tool:
            raise wrong(where, "free-form tools are OpenAI's alone. Describe it as a function.")
        if "function" not in tool:
            own.append(tool)
            continue
        function = mapping(tool["function"], f"{where}.function")
        parameters, description = function.get("parameters"), function.get("description")
        functions.append(
            Function(
                string(function.get("name"), f"{where}.function.name"),
                string(description, f"{where}.function.description") if description else None,
                None if parameters is None else mapping(parameters, f"{where}.function.parameters"),
                {key: value for key, value in {**function, **tool}.items() if key not in _FUNCTION_FIELDS},
            )
        )
    return functions, own


_FUNCTION_FIELDS = frozenset(("type", "function", "name", "description", "parameters"))


def tool_choice(body: dict[str, Any]) -> tuple[str, str | None]:
    """`auto`, `none`, `required`, or `function` and its name."""
    choice = body.get("tool_choice")
    if choice is None or choice == "auto":
        return "auto", None
    if isinstance(choice, dict) and choice.get("type") in ("auto", "none", "required", "any") and len(choice) == 1:
        choice = choice["type"]  # Anthropic's form
    if choice == "auto":
        return "auto", None
    if choice in ("none", "required", "any"):
        return "none" if choice == "none" else "required", None
    if isinstance(choice, dict) and choice.get("type") in ("function", "tool"):
        flat = {"name": choice["name"]} if "name" in choice else None  # the Responses API's form, and Anthropic's
        function = mapping(choice.get("function") or flat, "tool_choice.function")
        return "function", string(function.get("name"), "tool_choice.function.name")
    raise wrong("tool_choice", "must be none, auto, required or one function.")


def token_limit(body: dict[str, Any]) -> int | None:
    """The newer of the two names counts; None for none, which is -1 with some."""
    limits = [body.get(field) for field in ("max_completion_tokens", "max_tokens")]
    return next((limit for limit in limits if limit and limit != -1), None)


def stops(body: dict[str, Any], accepts: Accepts) -> list[str]:
    """Where the answer is to end. Empty ones say nothing. Raises BadRequest for more than the provider takes."""
    stop = body.get("stop")
    found = [one for one in ([stop] if isinstance(stop, str) else stop or []) if one]
    if accepts.most_stops is not None and len(found) > accepts.most_stops:
        raise wrong("stop", f"this provider takes {accepts.most_stops} at most. Send fewer, or ask another model.")
    return found


def response_schema(body: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """`text`, `json_object`, or `json_schema` and the schema."""
    wanted = body.get("response_format") or {"type": "text"}
    kind = wanted.get("type")
    if kind == "json_schema":
        described = mapping(wanted.get("json_schema"), "response_format.json_schema")
        return kind, mapping(described.get("schema"), "response_format.json_schema.schema")
    if kind in ("text", "json_object"):
        return kind, None
    raise wrong("response_format", "must be text, json_object or json_schema.")


def effort(body: dict[str, Any]) -> str | None:
    """How much to think: none, minimal, low, medium, high, xhigh, max; None if nothing was said."""
    wanted = body.get("reasoning_effort")
    if wanted is None or wanted in ("none", "minimal", "low", "medium", "high", "xhigh", "max"):
        return wanted
    raise wrong("reasoning_effort", "must be none, minimal, low, medium, high, xhigh or max.")
