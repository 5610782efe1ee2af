"""The chat wire format, OpenAI's, as it comes back: chunks, and the fold that makes an answer out of them.

Hidden here: which fields of a request never reach a provider, and how deltas add up. Fields nobody here has heard of
are let through. What a request may look like is in `request.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

EXTENSION_FIELDS = frozenset(
    "on_interruption on_disconnect session_id session_policy session_trim session_max_tokens session_keep_partial "
    "store_reasoning background max_tokens_per_s webhook "
    # OpenAI's own, but they are for whoever keeps the answer, and that is us. To pass `store` on would leave a second
    # copy of the prompt with the provider; and without it OpenAI refuses `metadata`.
    "store metadata".split()
)
"""Request fields that are for the broker: never forwarded in OpenAI's format."""

_ASSIGNED = frozenset(
    "id index name object role type format signature thought_signature finish_reason native_finish_reason stop_reason "
    "stop_sequence channel severity status".split()
)
"""Fields that are sent whole, not in pieces: joining two of them would make neither."""

_PLACED = ("tool_calls", "annotations", "images", "thinking_blocks", "anthropic_blocks", "gemini_parts") + (
    "reasoning_items",
    "responses_items",
    "cohere_citations",
)
"""Lists whose items have an `index` only so that deltas can be added up: in a message they are in order, without it."""

_NOT_KEPT = frozenset({"choices", "object", "usage", "obfuscation"})
"""Fields of a chunk that are no field of the answer, or one of another kind; `obfuscation` pads OpenAI's chunks."""

_PARTS = ("content", "thinking")
"""Where text may be a string or a list of parts, one after the other in one answer: Mistral's `content` is both."""


class Chunk(NamedTuple):
    """One normalized `chat.completion.chunk`, serialized once by the worker and never parsed again on the way out.

    `payload` is compact JSON without line breaks. `is_usage` marks the chunk that carries nothing but usage: it is
    always the last one, and shown only to requests with `stream_options.include_usage`.
    """

    payload: bytes
    is_usage: bool = False


def _merge(old: Any, new: Any, field: str = "") -> Any:
    """Adds a delta's value to what there is: text is joined, lists grow or merge by `index`, objects merge."""
    if old is None or new is None:
        return new if old is None else old
    if field in _PARTS and isinstance(old, list | str) and isinstance(new, list | str) and type(old) is not type(new):
        old, new = _parts(old), _parts(new)
    if isinstance(old, str) and isinstance(new, str):
        return new if field in _ASSIGNED else old + new
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merge(old.get(key), value, key) for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list):
        return _merge_lists(old, new, joined=field in _PARTS)
    return new


def _parts(content: list[Any] | str) -> list[Any]:
    """Content as a list of parts, the form that can take up the other one."""
    return content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []


def _merge_lists(old: list[Any], new: list[Any], *, joined: bool = False) -> list[Any]:
    """`joined`: parts of a text, of which one that goes on with the last one's type is its continuation."""
    merged = list(old)
    for item in new:
        index = item.get("index") if isinstance(item, dict) else None
        if index is not None and (place := _place(merged, item)) is not None:
            merged[place] = _merge(merged[place], item)
        elif joined and index is None and merged and _continues(merged[-1], item):
            merged[-1] = _merge(merged[-1], item)
        else:
            merged.append(item)
    return merged


def _place(items: list[Any], item: dict[str, Any]) -> int | None:
    """Which of the items this one goes on with: same `index`, and no other `type` (OpenRouter's reasoning_details have
    text and what is encrypted under one index)."""
    for at, other in enumerate(items):
        if isinstance(other, dict) and other.get("index") == item["index"]:
            kinds = {other.get("type"), item.get("type")} - {None}
            if len(kinds) < 2:
                return at
    return None


def _continues(last: Any, part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return kind in ("text", "thinking") and isinstance(last, dict) and last.get("type") == kind


class Accumulator:
    """A pure fold: `feed` chunks in order, `result` is the `chat.completion` they amount to at that point."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self.usage: dict[str, Any] | None = None

    def feed(self, chunk: dict[str, Any]) -> None:
        for field, value in chunk.items():
            if field not in _NOT_KEPT and (value is not None or field not in self._top):
                self._top[field] = value
        if chunk.get("usage"):
            self.usage = chunk["usage"]
        for part in chunk.get("choices") or ():
            # Writer repeats each delta as `message`: to add that up too would say everything twice.
            index = part.get("index", 0)
            choice = self._choices.setdefault(index, {"index": index, "message": {}})
            choice["message"] = _merge(choice["message"], part.get("delta") or {})
            for field, value in part.items():
                if field not in ("delta", "index", "message"):
                    choice[field] = _merge(choice.get(field), value, field)

    @property
    def finish_reasons(self) -> list[str | None]:
        return [choice.get("finish_reason") for _, choice in sorted(self._choices.items())]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The message of each choice so far, by index."""
        return [_message(choice["message"]) for _, choice in sorted(self._choices.items())]

    def result(self) -> dict[str, Any]:
        """`{id, object: "chat.completion", created, model, choices, usage, …}` with every field a chunk brought."""
        choices = []
        for _, choice in sorted(self._choices.items()):
            message = {"role": "assistant", "content": None, "refusal": None, **_message(choice["message"])}
            for field in ("tool_calls", "function_call"):
                if message.get(field):
                    message["content"] = message["content"] or None
                else:
                    message.pop(field, None)  # OpenAI leaves them out; some providers send null, or an empty list
            choices.append({"finish_reason": None, "logprobs": None, **choice, "message": message})
        return {**self._top, "object": "chat.completion", "choices": choices, "usage": self.usage}


def completion(header: dict[str, Any], fold: Accumulator) -> dict[str, Any]:
    """The `chat.completion` of a generation, by the header of its log and the fold of its chunks."""
    return {
        "id": header["id"],
        "object": "chat.completion",
        "created": header["created_at_ms"] // 1000,
        "model": header["model"],
        **fold.result(),
    }


def _message(deltas: dict[str, Any]) -> dict[str, Any]:
    lists = {field: deltas[field] for field in _PLACED if isinstance(deltas.get(field), list)}
    return {**deltas, **{field: [_unplaced(item) for item in items] for field, items in lists.items()}}


def _unplaced(item: Any) -> Any:
    return {key: value for key, value in item.items() if key != "index"} if isinstance(item, dict) else item
