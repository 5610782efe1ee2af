"""OpenAI's chunks, spelled for translators. Pure functions, to be used where the event is `errors.readable`."""

from __future__ import annotations

from typing import Any

from shared.log.entry import Chunk

_COMMON_BYTES = 128
"""Of a chunk that all of an answer's have in common, at least."""
_LEAST_BYTES = 64
"""What a chunk costs those who store it and read it, however little it says."""


def delta_chunk(**delta: Any) -> dict[str, Any]:
    """A chunk of the only choice that a translated answer has."""
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def finish_chunk(word: str | None, **delta: Any) -> dict[str, Any]:
    """The last chunk of the choice, with the provider's own word for the end; None where it has none."""
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": word}]}


def logprobs(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """A choice's `logprobs`, whose entries carry all fields that OpenAI's clients require."""
    content = [
        {"bytes": None, **entry, "top_logprobs": [{"bytes": None, **one} for one in entry.get("top_logprobs") or ()]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def usage_chunk(prompt: Any, completion: Any, **more: Any) -> dict[str, Any]:
    """The chunk of usage alone. Cohere counts tokens in floats, and a count that is missing is none."""
    prompt_tokens, completion_tokens = int(prompt or 0), int(completion or 0)
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return {"choices": [], "usage": {**usage, "total_tokens": prompt_tokens + completion_tokens, **more}}


def answer_bytes(chunks: list[Chunk]) -> int:
    """What they count for the limit of an answer. Not what is stored of them: chunks that are alike are stored as next to
    nothing, and are as long as ever for their readers."""
    # Without max(), which costs as much again.
    return sum([n if (n := len(payload) - _COMMON_BYTES) > _LEAST_BYTES else _LEAST_BYTES for payload, *_ in chunks])
