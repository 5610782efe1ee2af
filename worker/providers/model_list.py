"""A provider's own list of its models, in whichever shape it has one, as OpenAI's model objects. Pure functions.

Hidden here: where each format keeps its list, in which fields a dozen APIs say how long a context is or that a model sees
pictures, which of the listed answer no chat, and how much of it all is kept. What an object says beyond OpenAI's four fields
is said as OpenRouter says it (openrouter.ai/docs/api-reference/list-available-models), which pickers read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, NamedTuple
from urllib.parse import quote

from shared.lib import json
from worker.providers.formats.anthropic_request import VERSION as ANTHROPIC_VERSION
from worker.providers.formats.openai import key_header
from worker.providers.registry import VENDORS, Provider

MAX_MODELS = 1000
MAX_BYTES = 512 * 1024
"""Of one provider's list, as JSON: the longest known one, of some 400 models, has half of that."""
_MAX_ID, _MAX_TEXT, _MAX_WORDS = 200, 200, 60

_NO_CHAT = frozenset(
    "audio embedding embeddings image moderation rerank reranker speech transcribe transcription tts video".split()
)
"""Types that are said of models (LM Studio's, Together's and others') which answer no chat."""
_OPENAI_NO_CHAT = (
    "*embedding*|*moderation*|*realtime*|*transcribe*|*tts*|babbage-*|chatgpt-image*|dall-e*|davinci-*|gpt-audio*|"
    "gpt-image*|sora*|whisper*"
).split("|")
"""OpenAI's list says no more than the names."""

_CONTEXT = (
    ("context_length",),
    ("max_context_length",),
    ("context_window",),
    ("max_model_len",),
    ("max_input_tokens",),
    ("inputTokenLimit",),
    ("meta", "n_ctx"),
    ("meta", "n_ctx_train"),
    ("details", "context_length"),
    ("top_provider", "context_length"),
)
_OUTPUT = (
    ("max_completion_tokens",),
    ("max_output_tokens",),
    ("outputTokenLimit",),
    ("max_tokens",),
    ("top_provider", "max_completion_tokens"),
)
_PARAMETERS = {
    "tools": ("tools", "tool_choice"),
    "tool_use": ("tools", "tool_choice"),
    "function_calling": ("tools", "tool_choice"),
    "trained_for_tool_use": ("tools", "tool_choice"),
    "thinking": ("reasoning",),
    "reasoning": ("reasoning",),
}
"""Capabilities as others call them, and the parameters that they stand for."""

Model = dict[str, Any]
"""OpenAI's model object, its `id` without our prefix: `{id, object, created, owned_by}`, and where the provider tells it
`name`, `context_length`, `max_completion_tokens` (tokens), `architecture: {input_modalities, output_modalities}`,
`supported_parameters`, `pricing: {prompt, completion}` (US dollars a token, as text)."""


class Question(NamedTuple):
    """One request: GET `url`, or POST it with `body` as JSON."""

    url: str
    headers: dict[str, str]
    body: dict[str, Any] | None = None


def plain_question(provider: Provider) -> Question:
    """Its list as it comes when nothing more is said: for who only wants to know whether it answers."""
    base = provider.base_url
    if provider.kind == "anthropic":
        secret = {} if provider.api_key is None else {"x-api-key": provider.api_key}
        return Question(f"{base}/models", {"anthropic-version": ANTHROPIC_VERSION, **secret})
    if provider.kind == "gemini":
        return Question(f"{base}/models", {} if provider.api_key is None else {"x-goog-api-key": provider.api_key})
    key = key_header(provider)
    if provider.kind == "cohere":  # in the version before the one that answers
        return Question(f"{base.removesuffix('/v2')}/v1/models", key)
    if provider.kind == "ollama":
        return Question(f"{base}/tags", key)
    return Question(f"{base}/models" + (f"?{provider.query}" if provider.query else ""), key)


_PAGED = {"anthropic": "limit=1000", "gemini": "pageSize=1000", "cohere": "page_size=1000&endpoint=chat"}
"""What is said to a list that would come in short pages otherwise, or with what answers no chat."""


def questions(provider: Provider) -> list[Question]:
    """Where a provider keeps its list; the first that is answered counts. None where there is no list of what it can be
    asked for: Azure's is of all models there are, and what is asked for there is a deployment."""
    if provider.kind == "fake" or provider.name == "azure":
        return []
    plain = plain_question(provider)
    if paged := _PAGED.get(provider.kind):
        return [plain._replace(url=f"{plain.url}?{paged}")]
    if provider.name == "lmstudio":  # its own list tells more; older ones have only OpenAI's
        return [plain._replace(url=f"{provider.base_url.removesuffix('/v1')}/api/v0/models"), plain]
    return [plain]


def next_page(question: Question, value: Any) -> Question | None:
    """Where the list goes on, by its newest part."""
    if not isinstance(value, dict):
        return None
    if value.get("has_more") is True and isinstance(value.get("last_id"), str):
        name, token = "after_id", value["last_id"]
    elif isinstance(value.get("nextPageToken"), str) and value["nextPageToken"]:
        name, token = "pageToken", value["nextPageToken"]
    elif isinstance(value.get("next_page_token"), str) and value["next_page_token"]:
        name, token = "page_token", value["next_page_token"]
    else:
        return None
    first = question.url.partition(f"&{name}=")[0]
    return question._replace(url=f"{first}&{name}={quote(token, safe='')}")


def details(provider: Provider, model: Model) -> Question | None:
    """Where more is told of one model: Ollama's list has nothing but names (github.com/ollama/ollama, docs/api.md)."""
    if provider.kind != "ollama" or "context_length" in model:
        return None
    return Question(f"{provider.base_url}/show", key_header(provider), {"model": model["id"]})


def with_details(model: Model, told: Any) -> Model | None:
    """The model with what was answered to `details`; None if it turns out to answer no chat."""
    if not isinstance(told, dict):
        return model
    given = told.get("model_info")
    info: dict[str, Any] = given if isinstance(given, dict) else {}
    architecture = info.get("general.architecture")
    lengths = {"context_length": info.get(f"{architecture}.context_length")}
    read = _read({"id": model["id"], **lengths, "capabilities": told.get("capabilities")})
    return None if read is None else {**read, **model}


def models(provider: Provider, value: Any) -> list[Model] | None:
    """The models of one part of a list that answer chats, in its order; None where it is no list at all.

    What says nothing that can be understood is left out by itself: one odd entry must not hide the others.
    """
    items = value
    if isinstance(value, dict):
        items = next((value[name] for name in ("data", "models") if isinstance(value.get(name), list)), None)
    if not isinstance(items, list):
        return None
    by_name = provider.kind == "openai" and any(
        vendor.name == provider.name == "openai" and vendor.base_url == provider.base_url for vendor in VENDORS
    )
    found = [read for item in items if isinstance(item, dict) and (read := _read(item)) is not None]
    return [one for one in found if not (by_name and _matches(one["id"], _OPENAI_NO_CHAT))]


def bounded(found: Iterable[Model]) -> list[Model]:
    """Each model once, by name, within the bounds of one provider's list: details go first, then models."""
    once = {model["id"]: model for model in found}
    kept = [once[name] for name in sorted(once)][:MAX_MODELS]
    if len(json.dumps(kept)) > MAX_BYTES:
        kept = [{name: model[name] for name in ("id", "object", "created", "owned_by")} for model in kept]
    return kept


def chosen(
    names: Callable[[str], str], found: Iterable[Model], only: Iterable[str], without: Iterable[str]
) -> list[Model]:
    """The models that the operator's patterns leave. `names` makes of a model's own name the one that clients use."""
    wanted, unwanted = list(only), list(without)
    return [
        model
        for model in found
        if (not wanted or _matches(names(model["id"]), wanted)) and not _matches(names(model["id"]), unwanted)
    ]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _read(item: Mapping[str, Any]) -> Model | None:
    """One entry of a list; None if it is no model, or none that answers a chat."""
    name = _text(item.get("id") or item.get("model") or item.get("name"), _MAX_ID)
    name = name and name.removeprefix("models/")  # Gemini's
    if not name or not _answers_chats(item):
        return None
    model: Model = {
        "id": name,
        "object": "model",
        "created": _created(item),
        "owned_by": _text(item.get("owned_by") or item.get("organization") or item.get("publisher"), 64) or "",
    }
    title = _text(item.get("display_name") or item.get("displayName") or item.get("name"), _MAX_TEXT)
    if title and title.removeprefix("models/") != name:
        model["name"] = title
    for field, places in (("context_length", _CONTEXT), ("max_completion_tokens", _OUTPUT)):
        if (tokens := next(filter(None, (_tokens(item, place) for place in places)), None)) is not None:
            model[field] = tokens
    if "context_length" not in model and (lengths := _of_providers(item)):
        model["context_length"] = max(lengths)
    capabilities = _capabilities(item)
    if modalities := _modalities(item, capabilities):
        model["architecture"] = modalities
    parameters = _words(item.get("supported_parameters")) or [
        parameter for word, meant in _PARAMETERS.items() if word in capabilities for parameter in meant
    ]
    if parameters:
        model["supported_parameters"] = list(dict.fromkeys(parameters))
    if prices := _prices(item.get("pricing")):
        model["pricing"] = prices
    return model


def _answers_chats(item: Mapping[str, Any]) -> bool:
    """Whether nothing in the entry says that it does not."""
    methods, endpoints = item.get("supportedGenerationMethods"), item.get("endpoints")
    told, architecture = item.get("capabilities"), item.get("architecture")
    output = architecture.get("output_modalities") if isinstance(architecture, dict) else None
    return not (
        (isinstance(item.get("type"), str) and item["type"].lower() in _NO_CHAT)
        or (isinstance(methods, list) and "generateContent" not in methods)
        or (isinstance(endpoints, list) and all(isinstance(one, str) for one in endpoints) and "chat" not in endpoints)
        or (isinstance(told, dict) and told.get("completion_chat") is False)
        or (isinstance(told, list) and "embedding" in told and "completion" not in told)
        or (isinstance(output, list) and "text" not in output)
        or item.get("supports_chat") is False
        or item.get("active") is False
    )


def _capabilities(item: Mapping[str, Any]) -> set[str]:
    """All that is said to be on, by the words of whoever says it."""
    told = item.get("capabilities")
    found = set(_words(told))
    if isinstance(told, dict):
        found |= {
            name for name, on in told.items() if on is True or (isinstance(on, dict) and on.get("supported") is True)
        }
    for field, word in (("supports_tools", "tools"), ("supports_vision", "vision"), ("supports_image_input", "vision")):
        if item.get(field) is True:
            found.add(word)
    if item.get("thinking") is True:
        found.add("thinking")
    if item.get("type") == "vlm":
        found.add("vision")
    return found | set(_words(item.get("features")))


def _modalities(item: Mapping[str, Any], capabilities: set[str]) -> dict[str, list[str]]:
    """`{input_modalities, output_modalities}` as far as told: by name, or by what a model is said to see and hear."""
    told = item.get("architecture")
    told = told if isinstance(told, dict) else item
    found = {field: _words(told.get(field)) for field in ("input_modalities", "output_modalities")}
    if not found["input_modalities"] and capabilities & {"vision", "image_input"}:
        found = {"input_modalities": ["text", "image"], "output_modalities": found["output_modalities"] or ["text"]}
    return {field: words for field, words in found.items() if words}


def _prices(value: Any) -> dict[str, str]:
    """Only as OpenRouter tells them: others' numbers are by the million, or in another currency."""
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("prompt", "completion")):
        return {}
    return {name: value[name][:32] for name in ("prompt", "completion")}


def _of_providers(item: Mapping[str, Any]) -> list[int]:
    """A router's list (Hugging Face's) tells lengths by who serves the model."""
    served = item.get("providers")
    tokens = (
        [_tokens(one, ("context_length",)) for one in served if isinstance(one, dict)]
        if isinstance(served, list)
        else []
    )
    return [length for length in tokens if length]


def _tokens(item: Mapping[str, Any], place: tuple[str, ...]) -> int | None:
    value: Any = item
    for name in place:
        value = value.get(name) if isinstance(value, dict) else None
    return value if type(value) is int and 0 < value < 2**53 else None


def _created(item: Mapping[str, Any]) -> int:
    """Unix seconds; 0 where it is not told, or not in a form anyone knows."""
    for name in ("created", "created_at", "modified_at"):
        value = item.get(name)
        if type(value) is int and 0 < value < 2**40:
            return value
        if isinstance(value, str):
            try:
                return max(0, int(datetime.fromisoformat(value).timestamp()))
            except (ValueError, OverflowError, OSError):
                continue
    return 0


def _words(value: Any) -> list[str]:
    if not isinstance(value, list):
        return []
    return [text for one in value[:_MAX_WORDS] if (text := _text(one, 64))]


def _text(value: Any, most: int) -> str:
    """A line of text, or nothing: what is too long is no name."""
    return value if isinstance(value, str) and len(value) <= most and value.isprintable() else ""
