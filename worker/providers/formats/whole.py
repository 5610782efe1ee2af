"""Requests that are answered with one object, which is passed on as it came: embeddings, moderations.

Hidden here: that the log has a chat's chunks all the same: the object is a field of the chunk that ends an answer without
words. It is for providers that speak OpenAI's own formats; the others have embeddings of other forms.
"""

from __future__ import annotations

from typing import Any

from shared.chat.whole import ANSWER, FIELD
from shared.errors import BadRequest
from shared.lib import sse
from worker.providers.chunk_shapes import finish_chunk
from worker.providers.dialect import Call, Dialect
from worker.providers.formats.openai import key_header
from worker.providers.registry import Provider

_KINDS = ("openai", "responses")


class _Body:
    """A body that is one event, whatever is in it."""

    refused = False

    def __init__(self, limit: int) -> None:
        self._limit, self._body = limit, bytearray()

    def feed(self, data: bytes) -> list[sse.Event]:
        self._body += data
        if len(self._body) > self._limit:
            raise sse.EventTooLarge(f"a body is over {self._limit} bytes")
        return []

    def close(self) -> list[sse.Event]:
        return [sse.Event(bytes(self._body))] if self._body.strip() else []


class _Translator:
    """One object in, the end of an answer out."""

    done = False

    def feed(self, event: str, value: dict[str, Any]) -> list[dict[str, Any]]:
        self.done = True
        chunk = {**finish_chunk("stop"), ANSWER: value}
        usage = value.get("usage")
        return [chunk, {"choices": [], "usage": usage}] if isinstance(usage, dict) and usage else [chunk]


def _call(provider: Provider, body: dict[str, Any], model: str) -> Call:
    asked = body[FIELD]
    if provider.kind not in _KINDS:
        raise BadRequest(
            f"{provider.name}: {asked['path'].lstrip('/')} can be had from providers that speak OpenAI's format; "
            f"this one is of the kind {provider.kind}.",
            param="model",
        )
    headers = {**key_header(provider), "accept": "application/json"}
    return Call(asked["path"], {**asked["body"], "model": model}, headers)


DIALECT = Dialect(_call, _Translator, decoder=_Body)
