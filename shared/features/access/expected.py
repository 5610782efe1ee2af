"""How many tokens a request may use: what is taken of a minute's, and held of a budget, before anything is known."""

from __future__ import annotations

from typing import Any

from shared.chat.messages import CHARACTERS_PER_TOKEN, characters
from shared.chat.request import ChatRequest

_ANSWER_TOKENS = 1000
"""For an answer whose request does not say how long it may be."""


def expected(request: ChatRequest) -> tuple[int, int]:
    """How many tokens a request may use: of the prompt, a quarter of its characters, and as many as its answers may have."""
    prompt = sum(_length(message.content) for message in request.messages) // CHARACTERS_PER_TOKEN
    told = request.max_completion_tokens or request.max_tokens or 0
    return prompt, (told if told > 0 else _ANSWER_TOKENS) * (request.n or 1)


def _length(content: Any) -> int:
    parts = content if isinstance(content, list) else [content]
    return sum(characters(getattr(part, "model_extra", None) or part) for part in parts)
