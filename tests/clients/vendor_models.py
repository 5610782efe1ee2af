"""Holds requests against the vendors' own SDKs' models of a request: what their clients could not have said, we do not send.

Called with nothing; reads `{name: {"sdk": SDK, "body": {…}}}` as JSON and prints `{name: problem or null}`. It runs in
.venv-vendors and connects to nothing. The models are read strictly: a field that a model does not have is a problem, and so
is one that is missing, though the SDKs themselves let some of that pass.
"""

import json
import sys
import types
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

import typing_extensions
from pydantic import BaseModel

Problem = str | None


def problem(value: Any, model: Any, path: str = "body", also: Mapping[str, frozenset[str]] = {}) -> Problem:
    """What of a value does not fit a type. `also`: fields that a model of this name has besides its own; `*` for any."""
    origin, members = get_origin(model), get_args(model)
    if isinstance(model, typing_extensions.TypeAliasType):
        return problem(value, model.__value__, path, also)
    if isinstance(origin, typing_extensions.TypeAliasType):
        return problem(value, origin.__value__[members], path, also)
    if origin in (Annotated, Required, NotRequired, typing_extensions.Required, typing_extensions.NotRequired):
        return problem(value, members[0], path, also)
    if origin in (Union, types.UnionType):
        return _one_of(value, members, path, also)
    if origin is Literal:
        return None if value in members else f"{path} is {value!r}, not one of {members}"
    if typing_extensions.is_typeddict(model):
        return _fields(value, model.__name__, _hints(model), set(model.__required_keys__), path, also)
    if isinstance(model, type) and issubclass(model, BaseModel):
        hints = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
        needed = {field.alias or name for name, field in model.model_fields.items() if field.is_required()}
        return _fields(value, model.__name__, hints, needed, path, also)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return None if isinstance(value, dict) else f"{path} is no object"
    if origin is not None and members:  # lists of all kinds
        if not isinstance(value, list):
            return f"{path} is no list"
        return next(
            filter(None, (problem(one, members[0], f"{path}[{at}]", also) for at, one in enumerate(value))), None
        )
    return _plain(value, model, path)


@cache
def _hints(model: Any) -> dict[str, Any]:
    return typing_extensions.get_type_hints(model, include_extras=True)


def _one_of(value: Any, members: tuple[Any, ...], path: str, also: Mapping[str, frozenset[str]]) -> Problem:
    """The problem of the member that fits best: the one whose problem lies deepest."""
    problems = [problem(value, member, path, also) for member in members]
    return None if None in problems else max(filter(None, problems), key=lambda found: len(found.split(" ")[0]))


def _fields(
    value: Any, name: str, hints: dict[str, Any], needed: set[str], path: str, also: Mapping[str, frozenset[str]]
) -> Problem:
    if not isinstance(value, dict):
        return f"{path} is no {name}"
    more = also.get(name, frozenset())
    if "*" not in more and (unknown := value.keys() - hints.keys() - more):
        return f"{path}.{min(unknown)} is unknown to {name}"
    if missing := needed - value.keys():
        return f"{path}.{min(missing)} is missing in {name}"
    kind = hints.get("type", hints.get("role"))
    ordered = sorted(value, key=lambda key: key not in ("type", "role")) if kind else list(value)
    return next(
        filter(None, (problem(value[key], hints[key], f"{path}.{key}", also) for key in ordered if key in hints)), None
    )


def _plain(value: Any, model: Any, path: str) -> Problem:
    if model in (Any, object) or isinstance(model, typing_extensions.TypeVar) or not isinstance(model, type):
        return None
    if model is type(None):
        return None if value is None else f"{path} is not null"
    kinds: dict[type, tuple[type, ...]] = {float: (int, float), bytes: (str,), list: (list,), dict: (dict,)}
    wanted = kinds.get(model, (model,))
    if issubclass(model, str):  # enumerations among them
        wanted = (str,)
        if issubclass(model, Enum) and str(value).lower() not in [str(member.value).lower() for member in model]:
            return f"{path} is {value!r}, not one of {model.__name__}"
    good = isinstance(value, wanted) and not (isinstance(value, bool) and bool not in wanted)
    return None if good else f"{path} is {value!r}, no {model.__name__}"


# ---- the SDKs


def openai(body: dict[str, Any]) -> Problem:
    from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming

    return problem(body, CompletionCreateParamsStreaming)


def openai_and_reasoning(body: dict[str, Any]) -> Problem:
    """OpenAI's, for vendors that add nothing but fields of an answer's reasoning."""
    from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming

    fields = frozenset(("reasoning_content", "reasoning", "reasoning_details", "annotations", "partial"))
    return problem(body, CompletionCreateParamsStreaming, also={"ChatCompletionAssistantMessageParam": fields})


def responses(body: dict[str, Any]) -> Problem:
    from openai.types.responses.response_create_params import ResponseCreateParamsStreaming

    return problem(body, ResponseCreateParamsStreaming)


def anthropic(body: dict[str, Any]) -> Problem:
    from anthropic.lib._parse._transform import transform_schema
    from anthropic.types.message_create_params import MessageCreateParamsStreaming

    # Older models have them, the SDK no more.
    sampling = frozenset(("temperature", "top_p", "top_k"))
    schema = ((body.get("output_config") or {}).get("format") or {}).get("schema")
    if schema is not None and transform_schema(schema) != schema:
        return f"body.output_config.format.schema is {schema}, which Anthropic's client would change"
    return problem(body, MessageCreateParamsStreaming, also={"MessageCreateParamsStreaming": sampling})


def gemini(body: dict[str, Any]) -> Problem:
    from google.genai import types as google

    models: dict[str, Any] = {
        "contents": list[google.Content],
        "systemInstruction": google.Content,
        "generationConfig": google.GenerationConfig,
        "tools": list[google.Tool],
        "toolConfig": google.ToolConfig,
    }
    if unknown := body.keys() - models.keys():
        return f"body.{min(unknown)} is unknown"
    for content in body["contents"]:
        google.Content.model_validate(content)
    google.GenerationConfig.model_validate(body.get("generationConfig") or {})
    return next(filter(None, (problem(value, models[key], key) for key, value in body.items())), None)


def cohere(body: dict[str, Any]) -> Problem:
    import inspect

    from cohere.v2.client import V2Client

    parameters = typing_extensions.get_type_hints(V2Client.chat_stream)
    signature = inspect.signature(V2Client.chat_stream).parameters
    needed = {name for name, one in signature.items() if one.default is inspect.Parameter.empty and name != "self"}
    return _fields(body, "chat_stream", {**parameters, "stream": bool}, needed, "body", {})


def mistral(body: dict[str, Any]) -> Problem:
    from mistralai.client.models import ChatCompletionStreamRequest

    ChatCompletionStreamRequest.model_validate(body)
    return problem(body, ChatCompletionStreamRequest)


def ollama(body: dict[str, Any]) -> Problem:
    from ollama._types import ChatRequest, Message

    ChatRequest.model_validate(body)
    # docs.ollama.com/api/chat has the ids; the SDK of today does not. Schemas are passed on to the model as they are.
    more = {"Message": ("tool_call_id",), "ToolCall": ("id",), "Parameters": ("*",), "Property": ("*",)}
    also = {name: frozenset(fields) for name, fields in more.items()}
    # As part of a request a message may be any object, and an image is a model that takes a string.
    messages = [{key: value for key, value in message.items() if key != "images"} for message in body["messages"]]
    return problem(messages, list[Message], "messages", also) or problem(body, ChatRequest, "body", also)


SDKS: dict[str, Callable[[dict[str, Any]], Problem]] = {
    function.__name__: function
    for function in (openai, openai_and_reasoning, responses, anthropic, gemini, cohere, mistral, ollama)
}


def main() -> None:
    found: dict[str, Problem] = {}
    for name, cell in json.load(sys.stdin).items():
        try:
            found[name] = SDKS[cell["sdk"]](cell["body"])
        except Exception as error:  # a model that refuses says why
            found[name] = f"{type(error).__name__}: {str(error)[:500]}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
