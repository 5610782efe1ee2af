"""Which file speaks which wire format."""

from __future__ import annotations

from worker.providers import anthropic, cohere, gemini, ollama, openai, responses
from worker.providers.dialect import Dialect
from worker.providers.registry import Provider

_DIALECTS = {
    "anthropic": anthropic.DIALECT,
    "cohere": cohere.DIALECT,
    "fake": openai.DIALECT,
    "gemini": gemini.DIALECT,
    "ollama": ollama.DIALECT,
    "openai": openai.DIALECT,
    "responses": responses.DIALECT,
}


def dialect_of(provider: Provider) -> Dialect:
    return _DIALECTS[provider.kind]
