"""Token usage: where a figure comes from, and the ledger of who used what.

Hidden here: the order of sources (the provider's own figure, else a tokenizer's count, else an estimate, and every usage
says which it is), and how the ledger is kept: one hash a tenant and day, added to in the transaction that settles a
generation, so that each counts once.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, NamedTuple

from shared.chat import tokens
from shared.chat.messages import CHARACTERS_PER_TOKEN, Texts, characters
from shared.features.effect import Commands, Ended
from shared.log.records import Header, Outcome
from shared.store.availability import translate_errors
from shared.store.keys import Keys
from shared.store.redis import ArqRedis

Source = Literal["provider", "tokenizer", "estimate"]

_LEDGER_S = 400 * 86400
"""How long a day is kept, from its last entry on."""
_SEPARATOR = "\x1f"
"""Between a model's name and a figure's in a field of the ledger: no model name may hold it (shared/chat/request.py)."""


class Measured(NamedTuple):
    """A usage object as OpenAI has it, and its source."""

    figures: dict[str, Any]
    source: Source


def source_of(told: str | None) -> Source | None:
    """What a chunk says of where its figures are from; None where they are the provider's own."""
    return "estimate" if told == "estimate" else "tokenizer" if told == "tokenizer" else None


async def measure(
    model: str, prompt: list[dict[str, Any]], text: Texts, given: dict[str, Any] | None = None
) -> Measured:
    """What an answer cost, finished or not: `given` is the provider's own usage, `model` who said it."""
    if given:
        return Measured(given, "provider")
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


# ---- the ledger


class Ledger:
    """Adds up by tenant, day and model. An effect of each generation that ends."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis, self._key = redis, redis.key

    async def effect(self, ended: Ended) -> Commands | None:
        name, figures = ledger_entry(self._key, ended.header, ended.outcome)

        def add(pipe: Any) -> None:
            for field, amount in figures.items():
                pipe.hincrby(name, field, amount)
            pipe.pexpire(name, _LEDGER_S * 1000)

        return add

    async def read(self, tenant: str, first: date, last: date) -> list[dict[str, Any]]:
        """The tenant's figures from the first day to the last (UTC): one object for each day and model there is, oldest
        day first, `{date, model, requests, …_tokens, …_requests}`. Raises Unavailable."""
        days = [first + timedelta(days=i) for i in range((last - first).days + 1)]
        with translate_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for day in days:
                    pipe.hgetall(self._key.usage(tenant, day.isoformat()))
                found = await pipe.execute()
        return [row for day, fields in zip(days, found, strict=True) for row in _rows(day, fields)]


def ledger_entry(key: Keys, header: Header, outcome: Outcome) -> tuple[str, dict[str, int]]:
    """The ledger's key for a generation that has ended, and what to add to which field of it."""
    used = outcome.get("usage") or {}
    served = outcome.get("served")
    model = (served.get("model") if served else None) or header["model"]
    figures = {
        "requests": 1,
        f"{outcome['status']}_requests": 1,
        "prompt_tokens": _figure(used, "prompt_tokens"),
        "completion_tokens": _figure(used, "completion_tokens"),
        "total_tokens": _figure(used, "total_tokens"),
        "cached_tokens": _figure(used.get("prompt_tokens_details"), "cached_tokens"),
        "reasoning_tokens": _figure(used.get("completion_tokens_details"), "reasoning_tokens"),
    }
    if source := outcome.get("usage_source"):
        figures[f"{source}_requests"] = 1
    day = datetime.fromtimestamp(outcome["ended_at_ms"] / 1000, UTC).date()
    fields = {f"{model}{_SEPARATOR}{name}": number for name, number in figures.items() if number}
    return key.usage(header["owner"], day.isoformat()), fields


FIGURES = (
    "requests",
    "completed_requests",
    "incomplete_requests",
    "failed_requests",
    "cancelled_requests",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "total_tokens",
    "provider_requests",
    "tokenizer_requests",
    "estimate_requests",
)
"""What the ledger counts, a field each. The last three: how many usages came from which source."""


def _rows(day: date, fields: dict[bytes, bytes]) -> Iterator[dict[str, Any]]:
    models: dict[str, dict[str, int]] = {}
    for raw, number in fields.items():
        model, _, name = raw.decode().rpartition(_SEPARATOR)
        models.setdefault(model, dict.fromkeys(FIGURES, 0))[name] = int(number)
    for model, figures in sorted(models.items()):
        yield {"date": day.isoformat(), "model": model, **figures}


def _figure(usage: Any, name: str) -> int:
    """A provider may send anything; a ledger adds whole numbers."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return int(value) if isinstance(value, int | float) and 0 < value < 2**53 else 0
