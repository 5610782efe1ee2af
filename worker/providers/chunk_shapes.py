"""OpenAI's chunks: spelled for translators, where the event is `errors.readable`; and what may stand in their places. Pure.

Hidden here: which types OpenAI's clients expect under OpenAI's names (openai 3.57, `ChatCompletionChunk` and `ChatCompletion`),
and what becomes of other vendors' values there. A model of OpenAI's refuses a whole answer for one of them: Pydantic AI
does for a `service_tier` of `on_demand` (Groq). One rule: what says nothing is left out, what means the same in another form
is put into OpenAI's, and all else stands in `provider_specific_fields` of the same object, under its own name, which is where
LiteLLM has such things.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shared.chat.chunks import FOREIGN, PLACED
from shared.chat.messages import visible_text
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
    return sum([n if (n := len(chunk[0]) - _COMMON_BYTES) > _LEAST_BYTES else _LEAST_BYTES for chunk in chunks])


def payload_bytes(payload: bytes) -> int:
    """The same of one."""
    size = len(payload) - _COMMON_BYTES
    return size if size > _LEAST_BYTES else _LEAST_BYTES


# ---- what may stand where

WITH_THE_WORDS = frozenset(("index", "delta", "logprobs", "message", "finish_reason"))
"""Fields of a choice that belong to what it says; the others of a finish chunk are about the end."""
_TIERS = frozenset(("auto", "default", "flex", "scale", "priority", "fast"))
_MODERATED = {"error": ("code", "message"), "moderation_results": ("model",)}
_AUDIO = {"id": str, "data": str, "transcript": str, "expires_at": int}
_PROMPT_DETAILS = ("audio_tokens", "cache_write_tokens", "cached_tokens", "image_tokens", "text_tokens")
_COMPLETION_DETAILS = (
    "accepted_prediction_tokens",
    "audio_tokens",
    "reasoning_tokens",
    "rejected_prediction_tokens",
    "text_tokens",
)


def put_in_place(value: dict[str, Any]) -> None:
    """A chunk's own fields, in place."""
    if not _OF_A_CHUNK.keys().isdisjoint(value):
        _sort(value, _OF_A_CHUNK)


def put_choice_in_place(choice: dict[str, Any], delta: dict[str, Any]) -> None:
    """Those of a choice and of its delta, in place. Roles, finish reasons, calls and annotations have files of their own."""
    if choice.get("logprobs") is not None:
        _sort(choice, _OF_A_CHOICE)
    if (content := delta.get("content")) is not None and content.__class__ is not str:
        _spell_content(delta)
    if not _OF_A_DELTA.keys().isdisjoint(delta):
        _sort(delta, _OF_A_DELTA)


def put_usage_in_place(usage: dict[str, Any]) -> None:
    """Those of a usage object, in place."""
    if not _OF_USAGE.keys().isdisjoint(usage):
        _sort(usage, _OF_USAGE)


def add_foreign(holder: dict[str, Any], name: str, value: Any) -> None:
    """Puts a value where those of other vendors stand."""
    told = holder.get(FOREIGN)
    holder[FOREIGN] = {**(told if isinstance(told, dict) else {}), name: value}


def with_fields(fields: dict[str, Any], chunk: dict[str, Any]) -> dict[str, Any]:
    """A chunk with fields of chunks before it, of which its own are newer."""
    if FOREIGN in fields and FOREIGN in chunk:
        chunk[FOREIGN] = {**fields[FOREIGN], **chunk[FOREIGN]}
    return {**fields, **chunk}


def pop_about_the_end(choice: dict[str, Any]) -> dict[str, Any]:
    """Takes out of a choice, which says something and is the last, what is not about what it says."""
    about = {name: choice.pop(name) for name in list(choice) if name not in WITH_THE_WORDS}
    foreign = about.get(FOREIGN)
    if isinstance(foreign, dict) and "logprobs" in foreign:
        about[FOREIGN] = {name: value for name, value in foreign.items() if name != "logprobs"}
        choice[FOREIGN] = {"logprobs": foreign["logprobs"]}
        if not about[FOREIGN]:
            del about[FOREIGN]
    return about


class Places:
    """How many items each list in the deltas of a choice has had: those that have no `index` get one by that.

    OpenAI's SDK for Python adds lists up by it, takes it for the place, and fails where a second list has none. The first one
    stays as it came where the fold (`shared.chat.chunks`) would not take the index off again.
    """

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[tuple[str, bool], int] = {}

    def number(self, delta: dict[str, Any]) -> None:
        """In place, after all that moves lists around."""
        self._number(delta, foreign=False)
        if (found := delta.get(FOREIGN)).__class__ is dict:
            self._number(found, foreign=True)

    def _number(self, holder: dict[str, Any], *, foreign: bool) -> None:
        for name, items in holder.items():
            if items.__class__ is not list or not items:
                continue
            begun = self._counts.get((name, foreign))
            if all(map(_is_placed, items)):
                known = [item["index"] + 1 for item in items if isinstance(item, dict)]
                if known:
                    self._counts[name, foreign] = max(begun or 0, *known)
                continue
            self._counts[name, foreign] = (begun or 0) + len(items)
            if (begun is not None or foreign or name in PLACED) and all(isinstance(item, dict) for item in items):
                holder[name] = [{**item, "index": at} for at, item in enumerate(items, begun or 0)]


def _is_placed(item: Any) -> bool:
    """Whether it can be added up as it is: text and numbers are only strung together."""
    return type(item.get("index")) is int if isinstance(item, dict) else isinstance(item, str | int | float)


def _sort(holder: dict[str, Any], places: dict[str, Callable[[Any], Any]]) -> None:
    """`places` give a value in OpenAI's form, None where it has none."""
    for name in holder.keys() & places.keys():
        given = holder[name]
        if given is None:
            continue
        if (fit := places[name](given)) is not None:
            holder[name] = fit
            continue
        del holder[name]
        if given or type(given) in (int, float):
            add_foreign(holder, name, given)


def _spell_content(delta: dict[str, Any]) -> None:
    """Content is text. Some have parts: of text, of thinking (Mistral), and others."""
    content = delta.pop("content")
    texts, thoughts, others = [], [], []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str) or _is_number(part):
            texts.append(str(part))
        elif kind == "thinking":
            thoughts.append(visible_text({"content": [part]}).reasoning)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
            more = {name: field for name, field in part.items() if name not in ("type", "text", "index") and field}
            others += [{"type": kind, **more}] if more else []
        elif part:
            own = part if isinstance(part, dict) else {"value": part}
            others.append({name: field for name, field in own.items() if name != "index"})
    if texts:
        delta["content"] = "".join(texts)
    if thoughts and not delta.get("reasoning_content"):
        delta["reasoning_content"] = "".join(thoughts)
    if others:
        add_foreign(delta, "content", others)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _tier(value: Any) -> str | None:
    return value if isinstance(value, str) and value in _TIERS else None


def _nothing(_: Any) -> None:
    """`metadata` of an answer are those that its client gave."""


def _moderation(value: Any) -> dict[str, Any] | None:
    """Of OpenAI's alone, in full."""
    if not isinstance(value, dict):
        return None
    return value if all(_is_side(value.get(side)) for side in ("input", "output")) else None


def _is_side(side: Any) -> bool:
    kind = side.get("type") if isinstance(side, dict) else None
    texts = _MODERATED.get(kind) if isinstance(kind, str) else None
    if texts is None or not all(isinstance(side.get(name), str) for name in texts):
        return False
    results = side.get("results", [] if kind == "error" else None)
    return isinstance(results, list) and all(map(_is_moderated, results))


def _is_moderated(result: Any) -> bool:
    return (
        isinstance(result, dict)
        and isinstance(result.get("flagged"), bool)
        and isinstance(result.get("model"), str)
        and result.get("type") == "moderation_result"
        and all(isinstance(result.get(name), dict) for name in ("categories", "category_scores"))
        and all(isinstance(found, bool) for found in result["categories"].values())
        and all(isinstance(score, int | float) for score in result["category_scores"].values())
        and isinstance(types := result.get("category_applied_input_types"), dict)
        and all(isinstance(one, list) and {"text", "image"}.issuperset(one) for one in types.values())
    )


def _logprobs(value: Any) -> dict[str, Any] | None:
    """Entries need `top_logprobs`, be it empty; without a number there is no entry. Together has one number for a chunk."""
    if not isinstance(value, dict) or value.keys().isdisjoint(("content", "refusal")):
        return None
    fit = dict(value)
    for field in ("content", "refusal"):
        if (entries := value.get(field)) is None:
            continue
        if not isinstance(entries, list) or not all(map(_is_entry, entries)):
            return None
        fit[field] = [{**_entry(one), "top_logprobs": _tops(one.get("top_logprobs"))} for one in entries]
    return fit


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("token"), str) and _is_number(entry.get("logprob"))


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    told = entry.get("bytes")
    fits = told is None or (isinstance(told, list) and all(type(byte) is int for byte in told))
    return entry if fits else {**entry, "bytes": list(entry["token"].encode("utf-8", "replace"))}


def _tops(told: Any) -> list[dict[str, Any]]:
    """vLLM and others also tell them as an object by token."""
    if isinstance(told, dict):
        told = [{"token": token, "logprob": number} for token, number in told.items()]
    return [_entry(one) for one in told if _is_entry(one)] if isinstance(told, list) else []


def _audio(value: Any) -> dict[str, Any] | None:
    fits = isinstance(value, dict) and all(
        value.get(name) is None or (isinstance(value[name], kind) and not isinstance(value[name], bool))
        for name, kind in _AUDIO.items()
    )
    return value if fits else None


def _legacy_call(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) and isinstance(value.get("name"), str | None) else None


def _details(names: tuple[str, ...]) -> Callable[[Any], dict[str, Any] | None]:
    def fit(value: Any) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            return None
        found = dict(value)
        for name in names:
            figure = value.get(name)
            if figure is not None and (not _is_number(figure) or figure != int(figure)):
                del found[name]
                add_foreign(found, name, figure)
        return found

    return fit


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_OF_A_CHUNK: dict[str, Callable[[Any], Any]] = {
    "metadata": _nothing,
    "moderation": _moderation,
    "obfuscation": _text,
    "service_tier": _tier,
    "system_fingerprint": _text,
}
_OF_A_CHOICE: dict[str, Callable[[Any], Any]] = {"logprobs": _logprobs}
_OF_A_DELTA: dict[str, Callable[[Any], Any]] = {"audio": _audio, "function_call": _legacy_call, "refusal": _text}
_OF_USAGE: dict[str, Callable[[Any], Any]] = {
    "completion_tokens_details": _details(_COMPLETION_DETAILS),
    "prompt_tokens_details": _details(_PROMPT_DETAILS),
}
