"""What a generation cost: the provider's own figure where it gave one, else an estimate; and which of the two it is."""

from __future__ import annotations

from typing import Any

from shared import usage
from worker.providers.openai import Normalizer


def measure(body: dict[str, Any], answer: Normalizer) -> tuple[dict[str, Any], usage.Source]:
    """Usage of an answer, finished or not, and its source."""
    if answer.usage:
        return answer.usage, "provider"
    return usage.estimate(body, answer.content_chars + answer.reasoning_chars), "estimate"
