"""Which file speaks which wire format."""

from __future__ import annotations

from worker.providers import anthropic, gemini, openai
from worker.providers.dialect import Dialect
from worker.providers.registry import Provider

_DIALECTS = {
    "anthropic": anthropic.DIALECT,
    "fake": openai.DIALECT,
    "gemini": gemini.DIALECT,
    "openai": openai.DIALECT,
}


def dialect_of(provider: Provider) -> Dialect:
    return _DIALECTS[provider.kind]
