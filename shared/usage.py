"""Token usage, and where a figure comes from: the provider's own, or an estimate that says so."""

from __future__ import annotations

from typing import Any, Literal

Source = Literal["provider", "estimate"]

_CHARACTERS_PER_TOKEN = 4


def estimate(body: dict[str, Any], answer_characters: int) -> dict[str, int]:
    """A quarter of the characters of the prompt's messages and of all the answer's text, reasoning included."""
    prompt = sum(_characters(message.get("content")) for message in body.get("messages", ()))
    prompt_tokens, completion_tokens = prompt // _CHARACTERS_PER_TOKEN, answer_characters // _CHARACTERS_PER_TOKEN
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _characters(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    if isinstance(content, list):
        return sum(
            len(part["text"]) for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return 0
