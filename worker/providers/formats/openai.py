"""OpenAI's chat format as a request: what every provider that is compatible with OpenAI is asked. Pure functions.

Hidden here: which of a client's fields are sent on, under which name the token limit goes, and how the key is sent. An
answer in this format needs no translator: worker/normalizer.py reads it as it comes.
"""

from __future__ import annotations

from typing import Any

from shared.chat.chunks import EXTENSION_FIELDS
from worker.providers.dialect import Call, Dialect
from worker.providers.registry import Provider

_LIMITS = ("max_completion_tokens", "max_tokens")


def build_request(body: dict[str, Any], model: str, *, limit_field: str | None = None) -> dict[str, Any]:
    """The body to send: the client's own, unknown fields included, less ours, streamed, always asking for usage.

    `body` is not changed. `stream_options` keeps its other keys. The two names of the token limit are never both sent:
    `limit_field` is the one the provider knows; without it the client's own, the newer of two.
    """
    request = {key: value for key, value in body.items() if key not in EXTENSION_FIELDS}
    options = request.get("stream_options")
    request["model"] = model
    request["stream"] = True
    request["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    limits = [(field, limit) for field in _LIMITS if (limit := request.pop(field, None)) is not None]
    if limits:
        field, limit = limits[0]
        request[limit_field or field] = limit
    return request


def call(provider: Provider, body: dict[str, Any], model: str) -> Call:
    """The request to a provider that speaks OpenAI's format."""
    return Call("/chat/completions", build_request(body, model, limit_field=provider.limit_field), key_header(provider))


def key_header(provider: Provider) -> dict[str, str]:
    """The header that carries the key: as a bearer token, or bare where the provider has a header of its own (Azure)."""
    if provider.api_key is None:
        return {}
    bearer = provider.key_header == "authorization"
    return {provider.key_header: f"Bearer {provider.api_key}" if bearer else provider.api_key}


DIALECT = Dialect(call)
