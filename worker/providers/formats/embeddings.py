"""Embeddings in the formats of those who have one of their own: OpenAI's request goes in, OpenAI's object comes out.

Hidden here, for each format: where texts stand, what a dimension is called, which limits are asked for, and where vectors and
tokens are found (Gemini `batchEmbedContents`, https://ai.google.dev/api/embeddings; Cohere v2 `embed`,
https://docs.cohere.com/reference/embed; Ollama `/api/embed`, https://docs.ollama.com/api/embed). All give floats: where the
client wants `base64`, as OpenAI's libraries do unasked, they are written so here (little-endian 32-bit floats).
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from shared.errors import BadRequest, UpstreamInvalid
from worker.providers.dialect import Call
from worker.providers.formats.openai import key_header
from worker.providers.registry import Provider

PATH = "/embeddings"
_CHARACTERS_PER_TOKEN = 4
"""What a text is taken for where the provider does not count (Gemini)."""


class Embeddings(NamedTuple):
    """One format: its request, the vectors of an answer, and the tokens that it tells."""

    call: Callable[[Provider, dict[str, Any], list[str], str], Call]
    vectors: Callable[[dict[str, Any]], Any]
    tokens: Callable[[dict[str, Any]], Any]


def texts_of(asked: dict[str, Any]) -> list[str]:
    """Raises BadRequest for tokens, which are OpenAI's and mean nothing to others."""
    given = asked["input"]
    texts = given if isinstance(given, list) else [given]
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest(
            "input: This provider takes texts, and no tokens: they are another tokenizer's.", param="input"
        )
    return texts


def _gemini(provider: Provider, asked: dict[str, Any], texts: list[str], model: str) -> Call:
    path = model if "/" in model else f"models/{model}"
    more = {
        "taskType": asked.get("task_type"),
        "title": asked.get("title"),
        "outputDimensionality": asked.get("dimensions"),
    }
    options = {name: value for name, value in more.items() if value is not None}
    requests = [{"model": path, "content": {"parts": [{"text": text}]}, **options} for text in texts]
    headers = {} if provider.api_key is None else {"x-goog-api-key": provider.api_key}
    return Call(f"/{path}:batchEmbedContents", {"requests": requests}, headers)


def _cohere(provider: Provider, asked: dict[str, Any], texts: list[str], model: str) -> Call:
    """What the vectors are for has to be said: to be found, unless the client says another `input_type`."""
    more = {"output_dimension": asked.get("dimensions"), "truncate": asked.get("truncate")}
    body = {
        "model": model,
        "texts": texts,
        "input_type": asked.get("input_type") or "search_document",
        "embedding_types": ["float"],
        **{name: value for name, value in more.items() if value is not None},
    }
    return Call("/embed", body, key_header(provider))


def _ollama(provider: Provider, asked: dict[str, Any], texts: list[str], model: str) -> Call:
    passed = ("dimensions", "truncate", "options", "keep_alive")
    options = {name: asked[name] for name in passed if asked.get(name) is not None}
    return Call("/embed", {"model": model, "input": texts, **options}, key_header(provider))


def _of_gemini(value: dict[str, Any]) -> list[Any]:
    return [one["values"] for one in value["embeddings"]]


def _of_cohere(value: dict[str, Any]) -> Any:
    found = value["embeddings"]
    return found["float"] if isinstance(found, dict) else found


FORMATS = {
    "gemini": Embeddings(_gemini, _of_gemini, lambda value: (value.get("usageMetadata") or {}).get("promptTokenCount")),
    "cohere": Embeddings(
        _cohere,
        _of_cohere,
        lambda value: ((value.get("meta") or {}).get("billed_units") or {}).get("input_tokens"),
    ),
    "ollama": Embeddings(_ollama, lambda value: value["embeddings"], lambda value: value.get("prompt_eval_count")),
}
"""By kind."""


def to_openai(form: Embeddings, asked: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's object of an answer. Raises UpstreamInvalid for one that has not a vector for each text."""
    texts = texts_of(asked)
    try:
        vectors = form.vectors(value)
        wanted = [written(vector, asked.get("encoding_format")) for vector in vectors]
        tokens = form.tokens(value)
        count = None if tokens is None else int(tokens)
    except (KeyError, TypeError, ValueError, struct.error):
        raise UpstreamInvalid("The provider's answer is not one to a request for embeddings.") from None
    if len(wanted) != len(texts):
        raise UpstreamInvalid(f"The provider answered with {len(wanted)} vectors to {len(texts)} texts.")
    if count is None:
        count = sum(-(-len(text) // _CHARACTERS_PER_TOKEN) for text in texts)
    data = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(wanted)]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": data, "model": asked["model"], "usage": usage}


def written(vector: list[float], encoding: str | None) -> list[float] | str:
    """A vector as the client wants it. Raises TypeError, struct.error for what is none."""
    if encoding != "base64":
        if not all(isinstance(number, int | float) for number in vector):
            raise TypeError
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
