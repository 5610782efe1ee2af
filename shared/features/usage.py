"""Token usage: where a figure comes from.

Hidden here: the order of sources: the provider's own figure, else a tokenizer's count, else an estimate. Every usage says which
it is; one of which the provider told half is called what the other half is. Who used what is added up in `spend/ledger.py`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from shared.chat import tokens
from shared.chat.messages import CHARACTERS_PER_TOKEN, Texts, characters

Source = Literal["provider", "tokenizer", "estimate"]


class Measured(NamedTuple):
    """A usage object as OpenAI has it, and its source."""

    figures: dict[str, Any]
    source: Source


def source_of(told: str | None) -> Source | None:
    """What a chunk says of where its figures are from; None where they are the provider's own."""
    return "estimate" if told == "estimate" else "tokenizer" if told == "tokenizer" else None


def is_half(told: dict[str, Any] | None) -> bool:
    """Whether it counts the prompt and not the answer, or the answer alone: Ollama leaves out a prompt that it has cached."""
    if not told:
        return False
    asked, said = told.get("prompt_tokens"), told.get("completion_tokens")
    return type(asked) is type(said) is int and bool(asked) is not bool(said)


async def measure(
    model: str, prompt: list[dict[str, Any]], text: Texts, given: dict[str, Any] | None = None
) -> Measured:
    """What an answer used, finished or not: `given` is the provider's own usage, `model` who said it."""
    if given and not is_half(given):
        return Measured(given, "provider")
    own = await _measured(model, prompt, text)
    return _filled(given, own) if given else own


def _filled(given: dict[str, Any], own: Measured) -> Measured:
    """A provider's figures with our own where it counted none."""
    lacks, has = "prompt_tokens", "completion_tokens"
    if given[lacks]:
        lacks, has = has, lacks
    if not own.figures[lacks]:
        return Measured(given, "provider")  # there was nothing to count
    figures = {**given, lacks: own.figures[lacks], "total_tokens": given[has] + own.figures[lacks]}
    if lacks == "completion_tokens" and (details := own.figures.get("completion_tokens_details")):
        figures["completion_tokens_details"] = {**(given.get("completion_tokens_details") or {}), **details}
    return Measured(figures, own.source)


async def _measured(model: str, prompt: list[dict[str, Any]], text: Texts) -> Measured:
    if counted := await tokens.count(model, prompt, text.content, text.reasoning):
        return Measured(_usage(counted["prompt"], counted["answer"], counted["reasoning"]), "tokenizer")
    asked = sum(characters(message.get("content")) for message in prompt)
    whole = (len(text.content) + len(text.reasoning)) // CHARACTERS_PER_TOKEN
    reasoning = len(text.reasoning) // CHARACTERS_PER_TOKEN
    return Measured(_usage(asked // CHARACTERS_PER_TOKEN, whole - reasoning, reasoning), "estimate")


def _usage(prompt: int, answer: int, reasoning: int) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": answer + reasoning,
        "total_tokens": prompt + answer + reasoning,
    }
    if reasoning:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return usage


NOTHING = Measured(_usage(0, 0, 0), "estimate")
"""Of what was never asked."""
