"""A provider's token figures in OpenAI's form, wherever and however it tells them. Pure functions.

Hidden here: that figures stand in the chunk, in a choice, in a delta or in a vendor's own field; that names and sums differ;
and that they come more than once. For example, xAI counts reasoning beside `completion_tokens`, OpenAI within; a last usage
of zeros after a real one is none.
"""

from __future__ import annotations

from typing import Any

_INSIDE = ("usage", "tokens", "billed_units")
_PROMPT = (
    "input_tokens",
    "prompt_token_count",
    "promptTokenCount",
    "inputTokens",
    "promptTokens",
    "inputTokenCount",
    "prompt_eval_count",
)
_COMPLETION = (
    "output_tokens",
    "candidates_token_count",
    "candidatesTokenCount",
    "outputTokens",
    "completionTokens",
    "outputTokenCount",
    "generated_tokens",
    "eval_count",
)
_CACHED = (
    "cached_tokens",  # Moonshot
    "prompt_cache_hit_tokens",  # DeepSeek
    "cache_read_input_tokens",  # Anthropic's, through proxies
    "num_cached_tokens",
    "cachedInputTokens",
)
_REASONING = ("reasoning_tokens", "thinking_tokens", "reasoningTokens")


PLACES = frozenset(
    "x_groq x_usage meta metadata metrics token_usage usageMetadata usage_metadata amazon-bedrock-invocationMetrics".split()
)
"""Fields of a chunk, besides `usage`, that hold figures or an object with some."""


_PLACE_OF = (
    ("prompt_tokens_details", "cached_tokens", frozenset(_CACHED) - {"cached_tokens"}),
    ("completion_tokens_details", "reasoning_tokens", frozenset(_REASONING) - {"reasoning_tokens"}),
)
"""Where OpenAI has a figure, and under which other names it is looked for."""
_ELSEWHERE = frozenset((*_CACHED, *_REASONING, "input_tokens_details", "output_tokens_details"))
"""Where it has none of them."""


def given(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The usage objects at the top of a chunk, the one called so last."""
    told = []
    for place in PLACES.intersection(value):
        holder = value[place]
        if isinstance(holder, dict):
            found = next((inner for key in _INSIDE if isinstance(inner := holder.get(key), dict) and inner), holder)
            if (
                _first(found, (*_PROMPT, *_COMPLETION, "prompt_tokens", "completion_tokens", "total_tokens"))
                is not None
            ):
                told.append(found)
    if isinstance(last := value.get("usage"), dict) and last:
        told.append(last)
    return told


def in_openais_form(told: dict[str, Any]) -> dict[str, Any]:
    """Figures under OpenAI's names, cached and reasoning tokens in their details, and sums as OpenAI's. What else there is
    stays. Empty where neither the prompt's nor the answer's can be known: a sum alone would leave both at nothing."""
    if _is_in_form(told):  # as most have it
        in_order = ("prompt_tokens", "completion_tokens", "total_tokens")
        return {**dict.fromkeys(in_order), **told}
    return _put_in_form(told)


def _is_in_form(told: dict[str, Any]) -> bool:
    """Whether nothing is to be done but to put the three figures first."""
    prompt, completion, total = told.get("prompt_tokens"), told.get("completion_tokens"), told.get("total_tokens")
    if not (type(prompt) is int and type(completion) is int and type(total) is int and _ELSEWHERE.isdisjoint(told)):
        return False
    if not (prompt >= 0 <= completion and prompt + completion == total < 2**53):
        return False
    for place, name, others in _PLACE_OF:
        if (details := told.get(place)) is None:
            continue
        if not (isinstance(details, dict) and others.isdisjoint(details)):
            return False
        if type(figure := details.get(name, 0)) is not int or not 0 <= figure < 2**53:
            return False
    return True


def _put_in_form(told: dict[str, Any]) -> dict[str, Any]:
    names = {"prompt_tokens": _PROMPT, "completion_tokens": _COMPLETION, "total_tokens": ()}
    found = {name: _first(told, (name, *others)) for name, others in names.items()}
    usage: dict[str, Any] = {name: figure for name, figure in found.items() if figure is not None}
    if usage.keys() <= {"total_tokens"}:
        return {}
    usage |= {name: value for name, value in told.items() if name not in names}
    _put_detail(usage, "prompt_tokens_details", "input_tokens_details", "cached_tokens", _CACHED)
    _put_detail(usage, "completion_tokens_details", "output_tokens_details", "reasoning_tokens", _REASONING)
    return _summed(usage)


def _put_detail(usage: dict[str, Any], place: str, other_place: str, name: str, others: tuple[str, ...]) -> None:
    """A zero where the figure belongs, and one that is none elsewhere: the latter was counted."""
    details = usage.get(place)
    inner = details if isinstance(details, dict) else {}
    if _count(inner.get(name)):
        return
    other = usage.get(other_place)
    sources = (inner, other if isinstance(other, dict) else {}, usage)
    figures = [found for source in sources if (found := _first(source, (name, *others))) is not None]
    if figures:
        usage[place] = {**inner, name: next(filter(None, figures), 0)}


def _summed(usage: dict[str, Any]) -> dict[str, Any]:
    prompt, completion, total = (_count(usage.get(f"{name}_tokens")) for name in ("prompt", "completion", "total"))
    if prompt is not None and completion is not None:
        details = usage.get("completion_tokens_details")
        reasoning = _count(details.get("reasoning_tokens")) if isinstance(details, dict) else None
        if reasoning and total == prompt + completion + reasoning:  # xAI: beside the answer's tokens, not within
            usage["completion_tokens"] = completion + reasoning
        elif total is None or (not total and prompt + completion):
            usage["total_tokens"] = prompt + completion
    elif total is not None and prompt is not None:
        usage["completion_tokens"] = max(total - prompt, 0)
    elif total is not None and completion is not None:
        usage["prompt_tokens"] = max(total - completion, 0)
    elif prompt is not None or completion is not None:
        usage["prompt_tokens"], usage["completion_tokens"] = prompt or 0, completion or 0
        usage["total_tokens"] = (prompt or 0) + (completion or 0)
    return usage


def later(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """The figures after another usage object has come. Figures are cumulative, so that a zero after one that is none says
    that nothing was counted there."""
    if not old:
        return new
    usage = _joined(old, new)
    if any(usage.get(name) != new.get(name) for name in ("total_tokens", "prompt_tokens", "completion_tokens")):
        prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
        if prompt is not None and completion is not None:
            usage["total_tokens"] = prompt + completion
    return usage


def _joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    joined = {**old, **new}
    for key, before in old.items():
        now = new.get(key)
        if isinstance(before, dict):
            joined[key] = _joined(before, now if isinstance(now, dict) else {})
        elif before and (now is None or (now == 0 and not isinstance(now, bool))):
            joined[key] = before
    return joined


def counted(usage: dict[str, Any]) -> bool:
    """Whether any token was."""
    return bool(  # not any(), which costs as much again
        _count(usage.get("completion_tokens"))
        or _count(usage.get("prompt_tokens"))
        or _count(usage.get("total_tokens"))
    )


def of_output(usage: dict[str, Any] | None) -> bool:
    """Whether tokens of an answer were counted."""
    return bool(usage and _count(usage.get("completion_tokens")))


def _first(source: dict[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        if (value := source.get(name)) is not None and (figure := _count(value)) is not None:
            return figure
    return None


def figure_in(value: Any) -> int | None:
    """A number of tokens, also one in text or with a point; None for what is none, such as -1."""
    return _count(value)


def _count(value: Any) -> int | None:
    """Cohere counts in floats, some in text; a provider may send anything."""
    if type(value) is int:
        return value if 0 <= value < 2**53 else None
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 16:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        return None
    return int(value)
