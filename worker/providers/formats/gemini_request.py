"""A chat request said in Gemini's own words (ai.google.dev/api/generate-content). Pure functions; `gemini.py` is the rest.

- Signatures go back from where the answer put them; a call that has none gets Google's own stand-in where one is needed.
- `generationConfig`, `toolConfig` and the like are the client's own and may add to what is made of OpenAI's fields.
- Hints are left out: user, store, prediction, prompt_cache_key, service_tier, a tool's `strict`, parallel_tool_calls
  (Gemini may always call several); and `metadata`, which labels the generation. Cache marks in parts are Anthropic's.
- A request of nothing but instructions is what the user says: Gemini wants at least one turn.
"""

from __future__ import annotations

import re
from mimetypes import guess_type
from typing import Any
from urllib.parse import quote, urlsplit

from shared.lib import json
from worker.providers import history, parts, schemas
from worker.providers.accepts import FORMATS, Accepts
from worker.providers.dialect import Call
from worker.providers.parts import wrong
from worker.providers.registry import Provider

_UNKNOWN = "logprobs top_logprobs logit_bias verbosity audio functions function_call web_search_options".split()

_CONFIG = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
    "frequency_penalty": "frequencyPenalty",
    "presence_penalty": "presencePenalty",
}

# Gemini 1 and 2 have a budget of thoughts, in tokens; 0 is none. From 3 on there are levels.
_HAS_BUDGET = re.compile(r"gemini-[12]\b")
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576, "max": 24576}
_LEVELS = {"max": "xhigh"}
_THINKS_NOT = re.compile(r"gemini-1\b|gemini-2\.0(?!.*thinking)|gemma-?[123]\b")
_THINKS_ALWAYS = re.compile(r"gemini-2\.5-pro")
_LEAST_BUDGET = 128
"""ai.google.dev/gemini-api/docs/thinking: models before 2.5 refuse to be told how to think; 2.5 Pro thinks at least so much."""

# ai.google.dev/gemini-api/docs/thought-signatures: for a call that another model made, or that lost its signature on
# the way. Without it Gemini 3 and later refuse the request; earlier ones want none.
_NO_SIGNATURE = "skip_thought_signature_validator"


def call(provider: Provider, body: dict[str, Any], model: str) -> Call:
    """A model with a slash is the path of another collection than `models`, such as `tunedModels/…`."""
    path = quote(model if "/" in model else f"models/{model}", safe="/@")
    if {"", ".", ".."} & set(path.split("/")):
        raise wrong("model", "is not a name of Gemini's.")
    headers = {} if provider.api_key is None else {"x-goog-api-key": provider.api_key}
    return Call(f"/{path}:streamGenerateContent?alt=sse", build_request(body, model, provider.accepts), headers)


def build_request(body: dict[str, Any], model: str, accepts: Accepts = FORMATS["gemini"]) -> dict[str, Any]:
    """The body to send. Raises BadRequest for what Gemini has no words for."""
    parts.refuse(body, "Gemini", *_UNKNOWN)
    system, contents = _conversation(body, model, accepts)
    request: dict[str, Any] = {"contents": contents}
    if system:
        request["systemInstruction"] = {"parts": system}
    if config := _config(body, model, accepts):
        request["generationConfig"] = config
    request |= _tools(body)
    return parts.add_own(request, body, without=("top_k",))


def _config(body: dict[str, Any], model: str, accepts: Accepts) -> dict[str, Any]:
    config = {name: body[field] for field, name in _CONFIG.items() if body.get(field) is not None}
    if (body.get("n") or 1) > 1:
        config["candidateCount"] = body["n"]
    if limit := parts.token_limit(body):
        config["maxOutputTokens"] = limit
    if stops := parts.stops(body, accepts):
        config["stopSequences"] = stops
    kind, schema = parts.response_schema(body)
    if kind != "text":
        config["responseMimeType"] = "application/json"
    if schema is not None:
        config["responseJsonSchema"] = schemas.for_gemini(schema)
    modalities = body.get("modalities")
    if modalities and modalities != ["text"]:
        if not isinstance(modalities, list) or not all(wanted in ("text", "image") for wanted in modalities):
            raise wrong("modalities", "must be text and image, or less. For others send generationConfig.")
        config["responseModalities"] = [wanted.upper() for wanted in modalities]
    effort = parts.effort(body)
    if effort is not None and not _THINKS_NOT.search(model):
        if effort == "none" and _THINKS_ALWAYS.search(model):
            thinking: dict[str, Any] = {"thinkingBudget": _LEAST_BUDGET}
        elif effort == "none" or _HAS_BUDGET.search(model):
            thinking = {"thinkingBudget": _BUDGETS[effort]}
        else:
            thinking = {"thinkingLevel": _LEVELS.get(effort, effort)}
        config["thinkingConfig"] = thinking if effort == "none" else {**thinking, "includeThoughts": True}
    return config


def _conversation(
    body: dict[str, Any], model: str, accepts: Accepts
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The system's parts, and the turns. The answers to calls made together are one turn."""
    system: list[dict[str, Any]] = []
    contents: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of the functions called, by the call's id: Gemini wants it with the answer
    previous = None
    for message, param in parts.messages(body, "Gemini", accepts):
        role = message["role"]
        if role in ("system", "developer"):
            text = parts.plain_text(message, param, "A system message")
            system += [{"text": text}] if text else []
            continue
        if role == "tool":
            said = _function_response(message, param, names)
        elif role == "assistant":
            said = _model_parts(message, param, model)
            names |= {call.id: call.name for call in parts.tool_calls(message, param)}
        else:
            said = _parts(message, param)
        if role == previous == "tool":
            contents[-1]["parts"] += said
        elif said:
            contents.append({"role": "model" if role == "assistant" else "user", "parts": said})
            previous = role
    if not contents and system:
        return [], [{"role": "user", "parts": system}]
    if not contents:
        raise wrong("messages", "nobody says anything. Add what the user says.")
    if contents[0]["role"] == "model":  # a conversation whose beginning was cut off
        contents.insert(0, {"role": "user", "parts": [{"text": history.BEGINNING}]})
    return system, contents


def _model_parts(message: dict[str, Any], param: str, model: str) -> list[dict[str, Any]]:
    if message.get("audio"):
        raise wrong(f"{param}.audio", "what was said before has to be text.")
    raw = parts.items(message.get("gemini_parts"), f"{param}.gemini_parts")
    said = [parts.unplaced(part) for part, _ in raw]
    for image, where in parts.items(message.get("images"), f"{param}.images"):
        said.append({**_file(parts.image_url(image, where), where), **_signature(image)})
    said += _parts(message, param)
    if signature := _signature(message):
        said.append({"text": "", **signature})
    calls = []
    for call in parts.tool_calls(message, param):
        function = {"id": call.id, "name": call.name, "args": call.arguments}
        calls.append({"functionCall": function, **_signature(call.whole)})
    if calls and not any("thoughtSignature" in part for part in calls) and not _HAS_BUDGET.search(model):
        calls[0]["thoughtSignature"] = _NO_SIGNATURE
    return said + calls


def _signature(item: dict[str, Any]) -> dict[str, Any]:
    extra = item.get("extra_content")
    google = extra.get("google") if isinstance(extra, dict) else None
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return {"thoughtSignature": signature} if signature else {}


def _function_response(message: dict[str, Any], param: str, names: dict[str, str]) -> list[dict[str, Any]]:
    """A result has to be an object; any other is Gemini's `output`. What it shows stands beside it: a result in a history
    cannot be taken back."""
    call_id = parts.string(message.get("tool_call_id"), f"{param}.tool_call_id")
    name = names.get(call_id) or message.get("name")
    if not name:
        raise wrong(f"{param}.tool_call_id", "no message before it calls a tool with this id.")
    shown = [part for part in _parts(message, param) if part.keys() & {"inlineData", "fileData"}]
    texts = [part for part, _ in parts.content(message, param) if part.get("type") == "text"]
    text = parts.joined([part["text"] for part in texts])
    try:
        response = json.loads(text.encode())
    except ValueError:
        response = None
    response = response if isinstance(response, dict) else {"output": text}
    answer = {"id": call_id, "name": parts.string(name, f"{param}.name"), "response": response}
    return [{"functionResponse": answer}, *shown]


def _parts(message: dict[str, Any], param: str) -> list[dict[str, Any]]:
    """The content of a message. Parts without a type are Gemini's own, and stay as they are."""
    said = []
    for part, where in parts.content(message, param):
        kind = part.get("type")
        if kind is None:
            said.append(part)
        elif kind == "text":
            said.append({"text": part["text"]})
        elif kind == "refusal":
            said.append({"text": parts.string(part.get("refusal"), f"{where}.refusal")})
        elif kind == "image_url":
            said.append(_file(parts.image_url(part, where), where))
        elif kind == "input_audio":
            audio = parts.mapping(part.get("input_audio"), f"{where}.input_audio")
            form = parts.string(audio.get("format"), f"{where}.input_audio.format")
            data = parts.string(audio.get("data"), f"{where}.input_audio.data")
            said.append({"inlineData": {"mimeType": f"audio/{form}", "data": data}})
        elif kind == "file":
            file = parts.mapping(part.get("file"), f"{where}.file")
            said.append(_file(parts.string(file.get("file_data") or file.get("file_id"), f"{where}.file"), where))
        else:
            raise wrong(where, "Gemini knows no part of this type. A part of its own has none.")
    return said


def _file(url: str, param: str) -> dict[str, Any]:
    """What a URL names: the data in it, or what Google finds there. It wants to be told what that is."""
    if data := parts.data_url(url, param):
        return {"inlineData": {"mimeType": data[0], "data": data[1]}}
    try:
        parsed = urlsplit(url)
    except ValueError:
        parsed = urlsplit("")
    if parsed.scheme not in ("https", "http", "gs"):
        raise wrong(param, "must be an http:, https:, gs: or data: URL.")
    media_type = guess_type(parsed.path)[0]
    return {"fileData": {"fileUri": url, **({"mimeType": media_type} if media_type else {})}}


def _tools(body: dict[str, Any]) -> dict[str, Any]:
    functions, tools = parts.tools(body)
    declarations = []
    for function in functions:
        declaration: dict[str, Any] = {"name": function.name}
        if function.description is not None:
            declaration["description"] = function.description
        if function.parameters and function.parameters.get("properties") != {}:
            declaration["parametersJsonSchema"] = schemas.for_gemini(function.parameters)
        declarations.append(declaration)
    if declarations:
        tools.append({"functionDeclarations": declarations})
    mode, name = parts.tool_choice(body)
    if not tools and mode in ("required", "function"):
        raise wrong("tool_choice", "there are no tools to choose from.")
    request: dict[str, Any] = {"tools": tools} if tools else {}
    if tools and mode != "auto":
        choice: dict[str, Any] = {"mode": "NONE" if mode == "none" else "ANY"}
        if name:
            choice["allowedFunctionNames"] = [name]
        request["toolConfig"] = {"functionCallingConfig": choice}
    return request
