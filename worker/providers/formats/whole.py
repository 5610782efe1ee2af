"""Requests that are passed on as they came: embeddings and moderations, answered with one object, and completions of a prompt.

Hidden here: that the log has a chat's chunks all the same: the object is a field of the chunk that ends an answer without
words, and text is a delta's content. Embeddings are for all who have some (embeddings.py), the others for providers that speak
OpenAI's own formats.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from shared.chat import legacy
from shared.chat.whole import ANSWER, COMPACT, FIELD
from shared.errors import BadRequest, UpstreamInvalid
from shared.lib import sse
from worker.providers.chunk_shapes import finish_chunk
from worker.providers.dialect import Call, Dialect
from worker.providers.errors import readable
from worker.providers.formats.embeddings import FORMATS, PATH, texts_of, to_openai
from worker.providers.formats.openai import key_header
from worker.providers.registry import Provider

_LISTS = ("data", "results", "output")
"""What OpenAI's objects have: vectors, verdicts, a compacted conversation. Without, an empty object would pass for one."""
_KINDS, _COMPACT = ("openai", "responses"), COMPACT.removeprefix("/v1")


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

    def __init__(self, read: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> None:
        """`read` makes of a provider's object OpenAI's."""
        self._read = read

    def feed(self, event: str, value: dict[str, Any]) -> list[dict[str, Any]]:
        self.done = True
        if self._read is not None:
            value = self._read(value)
        elif not any(isinstance(value.get(name), list) for name in _LISTS):
            raise UpstreamInvalid("The provider's answer has nothing of what was asked for.")
        chunk = {**finish_chunk("stop"), ANSWER: value}
        usage = value.get("usage")
        return [chunk, {"choices": [], "usage": usage}] if isinstance(usage, dict) and usage else [chunk]


def _call(provider: Provider, body: dict[str, Any], model: str) -> Call:
    asked = body[FIELD]
    if asked["path"] == _COMPACT and provider.kind != "responses":
        raise BadRequest(f"{provider.name}: only a provider of kind responses compacts conversations.", param="model")
    if provider.kind not in _KINDS:
        raise BadRequest(
            f"{provider.name}: {asked['path'].lstrip('/')} can be had from providers that speak OpenAI's format; "
            f"this one is of the kind {provider.kind}.",
            param="model",
        )
    headers = {**key_header(provider), "accept": "application/json"}
    return Call(asked["path"], {**asked["body"], "model": model}, headers)


def _stream(provider: Provider, body: dict[str, Any], model: str) -> Call:
    path, asked, headers = _call(provider, body, model)
    return Call(path, {**asked, "stream": True, "stream_options": {"include_usage": True}}, key_header(provider))


class _TextTranslator:
    """Chunks of /completions as a chat's: what is `text` there is a delta's content."""

    done = False

    def feed(self, event: str, value: dict[str, Any]) -> list[dict[str, Any]]:
        with readable():
            choices = []
            for choice in value.get("choices") or ():
                rest = {name: field for name, field in choice.items() if name != "text"}
                choices.append({"finish_reason": None, **rest, "delta": {"content": choice.get("text") or ""}})
            return [{**value, "choices": choices}]


_OBJECT = Dialect(_call, _Translator, decoder=_Body)
_TEXT = Dialect(_stream, _TextTranslator)


def dialect_for(provider: Provider, whole: dict[str, Any]) -> Dialect:
    """For a request that is passed on to this provider: what stands in the stored one beside the chat."""
    path, asked = whole["path"], whole["body"]
    form = FORMATS.get(provider.kind)
    if path != PATH or form is None:
        return _TEXT if path == legacy.PATH else _OBJECT
    return Dialect(
        lambda provider, _, model: form.call(provider, asked, texts_of(asked), model),
        lambda: _Translator(partial(to_openai, form, asked)),
        decoder=_Body,
    )
