"""How many tokens a request may use: what is taken of a minute's, and held of a budget, before anything is known.

Hidden here: that nothing is asked or fetched for it, and where each API has its text. Text is a quarter of its characters. A
picture, a sound or a file is one figure, since how large it is often stands at another server: what OpenAI counts for a picture
of 1,024 × 1,024 points, and for one of `low` detail (platform.openai.com/docs/guides/images-vision, "Calculating costs": 85,
and 170 for each of four tiles).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from shared.chat.messages import CHARACTERS_PER_TOKEN
from shared.chat.request import ChatRequest
from shared.chat.whole import FIELD
from shared.features.responses.request import TERMS
from shared.lib import json

_ANSWER_TOKENS = 1000
"""For an answer whose request does not say how long it may be."""
_PICTURE_TOKENS, _SMALL_PICTURE_TOKENS = 85 + 4 * 170, 85
_PICTURES = frozenset({"image_url", "input_image", "input_audio", "file", "input_file", "video_url"})
"""Types of parts that are no text."""
_NO_CONTENT = frozenset({"role", "type", "id", "call_id", "tool_call_id", "status", "index"})
_WITHOUT_WORDS = ("/embeddings", "/moderations")
"""Paths of APIs whose answers are no tokens."""


class Expected(NamedTuple):
    """Tokens of one request."""

    prompt: int
    answer: int
    tier: str | None = None
    """The service tier that the request asks for."""

    @property
    def total(self) -> int:
        return self.prompt + self.answer

    def after(self, history: int) -> Expected:
        """With so many tokens before its own."""
        return self._replace(prompt=self.prompt + history) if history else self


Expects = Callable[[ChatRequest], Expected]


def expected(request: ChatRequest, *, body: Mapping[str, Any] | None = None, before: int = 0) -> Expected:
    """Of what a request says itself, after `before` tokens that it goes on from, and as many as its answers may have. `body` is
    the chat as it is stored, of a request that came through another API and whose own words stand beside that."""
    whole, native = (body or {}).get(FIELD), ((body or {}).get(TERMS) or {}).get("native")
    if whole is not None:
        own = whole["body"]
        size, told = _size([own.get(name) for name in ("instructions", "input", "prompt")]), own.get("max_tokens")
        told, tier = 0 if whole["path"] in _WITHOUT_WORDS else told, None
    elif native is not None:
        tools = json.dumps(native["tools"]).decode() if native.get("tools") else ""
        size = _size([native.get("instructions"), native.get("input"), tools])
        told, tier = native.get("max_output_tokens"), native.get("service_tier")
    else:
        size, tier = _size_of_chat(request), request.service_tier
        told = request.max_completion_tokens or request.max_tokens
    answer = told if isinstance(told, int) and told >= 0 else _ANSWER_TOKENS
    return Expected(before + size.characters // CHARACTERS_PER_TOKEN + size.tokens, answer * (request.n or 1), tier)


class _Size(NamedTuple):
    characters: int
    tokens: int
    """Of what is no text."""


def _size_of_chat(request: ChatRequest) -> _Size:
    length = tokens = 0
    for message in request.messages:
        if isinstance(message.content, str):
            length += len(message.content)
        else:
            parts = [{"type": part.type, **(part.model_extra or {})} for part in message.content or ()]
            found = _size(parts)
            length, tokens = length + found.characters, tokens + found.tokens
        if message.tool_calls:
            length += _size(message.tool_calls).characters
    length += sum(len(json.dumps(tool.model_dump(exclude_none=True))) for tool in request.tools or ())
    return _Size(length, tokens)


def _size(value: Any) -> _Size:
    """Of any JSON. A number stands for a token, as in a prompt that is given as tokens."""
    if isinstance(value, str):
        return _Size(len(value), 0)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _Size(CHARACTERS_PER_TOKEN, 0)
    if isinstance(value, dict):
        if isinstance(kind := value.get("type"), str) and kind in _PICTURES:
            return _Size(0, _picture(value))
        value = [item for key, item in value.items() if key not in _NO_CONTENT]
    length = tokens = 0
    for item in value if isinstance(value, list) else ():
        found = _size(item)
        length, tokens = length + found.characters, tokens + found.tokens
    return _Size(length, tokens)


def _picture(part: Mapping[str, Any]) -> int:
    """`detail` stands in the part in Responses, and in its URL's object in a chat."""
    shown = part.get("image_url")
    detail = part.get("detail") or (shown.get("detail") if isinstance(shown, dict) else None)
    return _SMALL_PICTURE_TOKENS if detail == "low" else _PICTURE_TOKENS
