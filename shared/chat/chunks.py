"""The chat wire format, OpenAI's, as it comes back: chunks, and the fold that makes an answer out of them.

Hidden here: which fields of a request never reach a provider, and how deltas add up. Unknown fields
are let through. What a request may look like is in `request.py`.
"""

from __future__ import annotations

from typing import Any, TypedDict

from shared.config.formats import WIRE_FORMATS

EXTENSION_FIELDS = frozenset(
    "on_interruption on_disconnect session_id session_policy session_trim session_max_tokens session_keep_partial "
    "store_reasoning reasoning_summary background max_tokens_per_s webhook responses whole "
    # OpenAI's own, but they are for the keeper of the answer, and that is us. To pass `store` on would leave a second
    # copy of the prompt with the provider; and without it OpenAI refuses `metadata`.
    "store metadata".split()
)
"""Request fields that are for the broker: never forwarded in OpenAI's format."""

_ASSIGNED = frozenset(
    "id index name object role type format signature thought_signature finish_reason native_finish_reason stop_reason "
    "stop_sequence channel severity status".split()
)
"""Fields that are sent whole, not in pieces: joining two of them would make neither."""

PLACED = (
    "tool_calls",
    "annotations",
    "other_annotations",
    "images",
    *(name for row in WIRE_FORMATS.values() for name in row.lists),
)
"""Lists whose items have an `index` only so that deltas can be added up: in a message they are in order, without it."""

_NOT_KEPT = frozenset({"choices", "object", "usage", "obfuscation", "responses_events", "whole_answer"})
"""Fields of a chunk that are no field of the answer, or one of another kind; `obfuscation` pads OpenAI's chunks, and
`responses_events` and `whole_answer` are for other APIs."""

FOREIGN = "provider_specific_fields"
"""Holds what a vendor has under a name of OpenAI's that is something else there."""

_BY_TOKEN = "top_logprobs"
"""In /completions a list of objects whose keys are tokens, and `index` is a token like any other."""

_PARTS = ("content", "thinking")
"""Where text may be a string or a list of parts, one after the other in one answer: Mistral's `content` is both."""


class _Text:
    """Text that comes in pieces. To join them one by one would copy what there is once for each."""

    __slots__ = ("_pieces",)

    def __init__(self, *pieces: str) -> None:
        self._pieces = list(pieces)

    def __bool__(self) -> bool:
        return any(self._pieces)

    def __str__(self) -> str:
        self._pieces[:] = ["".join(self._pieces)]
        return self._pieces[0]

    def add(self, piece: str) -> None:
        self._pieces.append(piece)


class _Items(list[Any]):
    """A list that knows where the items with an `index` are."""

    __slots__ = ("_places",)

    def __init__(self, items: list[Any]) -> None:
        super().__init__()
        self._places: dict[Any, list[int]] = {}
        for item in items:
            self.append(_own(item))

    def append(self, item: Any) -> None:
        index = item.get("index") if isinstance(item, dict) else None
        if isinstance(index, int | float | str):
            self._places.setdefault(index, []).append(len(self))
        super().append(item)

    def place(self, item: dict[str, Any]) -> int | None:
        """Which of the items this one goes on with: same `index`, and no other `type` (OpenRouter's reasoning_details
        have text and what is encrypted under one index). What is encrypted is one by its `id`: two joined are
        none."""
        index = item["index"]
        for at in self._places.get(index, ()) if isinstance(index, int | float | str) else ():
            one = self[at]
            if "data" in item and item.get("id") and one.get("id") and one["id"] != item["id"]:
                continue
            if len({one.get("type"), item.get("type")} - {None}) < 2:
                return at
        return None


def _own(value: Any) -> Any:
    """A value of a chunk as one that may grow; the chunk stays as it is."""
    if isinstance(value, list):
        return _Items(value)
    if isinstance(value, dict):
        own = {}
        for key, inner in value.items():
            own[key] = _own(inner)
        return own
    return value


def _grown(value: Any) -> Any:
    """What it has become, for others to keep."""
    if isinstance(value, _Text):
        return str(value)
    if isinstance(value, dict):
        plain = {}
        for key, inner in value.items():
            plain[key] = _grown(inner)
        return plain
    if isinstance(value, list):
        items = []
        for item in value:
            items.append(_grown(item))
        return items
    return value


def _merge(old: Any, new: Any, field: str = "") -> Any:
    """Adds a delta's value to what there is, which may change: text is joined, lists grow or merge by `index`, objects
    merge."""
    if old is None or new is None:
        return _own(new) if old is None else old
    if field in _PARTS and _are_text_and_parts(old, new):
        old, new = _parts(old), _parts(new)
    if isinstance(new, str) and isinstance(old, str | _Text):
        if field in _ASSIGNED:
            return new or old
        if isinstance(old, str):
            return _Text(old, new)
        old.add(new)
        return old
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in new.items():
            old[key] = _merge(old.get(key), value, key)
        return old
    if isinstance(old, _Items) and isinstance(new, list):
        if field == _BY_TOKEN:
            old += map(_own, new)
            return old
        return _merge_lists(old, new, joined=field in _PARTS)
    return _own(new)


def _are_text_and_parts(old: Any, new: Any) -> bool:
    if isinstance(old, list):
        return isinstance(new, str)
    return isinstance(new, list) and isinstance(old, str | _Text)


def _parts(content: list[Any] | str | _Text) -> _Items:
    """Content as a list of parts, the form that can take up the other one."""
    if isinstance(content, _Items):
        return content
    if isinstance(content, list):
        return _Items(content)
    items = _Items([])
    if content:
        items.append({"type": "text", "text": content})
    return items


def _merge_lists(old: _Items, new: list[Any], *, joined: bool = False) -> _Items:
    """`joined`: parts of a text, of which one that goes on with the last one's type is its continuation."""
    for item in new:
        index = item.get("index") if isinstance(item, dict) else None
        if index is not None and (place := old.place(item)) is not None:
            old[place] = _merge(old[place], item)
        elif joined and index is None and old and _continues(old[-1], item):
            old[-1] = _merge(old[-1], item)
        else:
            old.append(_own(item))
    return old


def _continues(last: Any, part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return kind in ("text", "thinking") and isinstance(last, dict) and last.get("type") == kind


class Accumulator:
    """A pure fold: `feed` chunks in order, `result` is the `chat.completion` they amount to at that point.

    A chunk costs the same however many were before it: answers have hundreds of thousands of them.
    """

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self.usage: dict[str, Any] | None = None

    @property
    def usage_source(self) -> str | None:
        """Where the usage is from, if it is not the provider's own."""
        return self._top.get("usage_source")

    @property
    def tier(self) -> str | None:
        """The service tier in which the provider says that it answered, one of OpenAI's."""
        return self._top.get("service_tier")

    def feed(self, chunk: dict[str, Any]) -> None:
        for field, value in chunk.items():
            # An empty list after one with items says that there are no more (Perplexity's `citations`).
            if field not in _NOT_KEPT and (value or field not in self._top or isinstance(value, int | float)):
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
        return [_message(_grown(choice["message"])) for _, choice in sorted(self._choices.items())]

    def result(self) -> dict[str, Any]:
        """`{id, object: "chat.completion", created, model, choices, usage, …}` with every field a chunk brought."""
        choices = []
        for _, grown in sorted(self._choices.items()):
            choice = _grown(grown)
            message = {"role": "assistant", "content": None, "refusal": None, **_message(choice["message"])}
            if isinstance(message.get("audio"), dict):  # OpenAI's clients require all four; others tell two of them
                message["audio"] = {"id": "", "data": "", "expires_at": 0, "transcript": "", **message["audio"]}
            for field in ("tool_calls", "function_call"):
                if message.get(field):
                    message["content"] = message["content"] or None
                else:
                    message.pop(field, None)  # OpenAI leaves them out; some providers send null, or an empty list
            choices.append({"finish_reason": None, "logprobs": None, **choice, "message": message})
        return {**self._top, "object": "chat.completion", "choices": choices, "usage": self.usage}


class Asked(TypedDict):
    """What an answer repeats of the header of its log."""

    id: str
    created_at_ms: int
    model: str


def completion(header: Asked, fold: Accumulator) -> dict[str, Any]:
    """The `chat.completion` of a generation, by the header of its log and the fold of its chunks."""
    return {
        "id": header["id"],
        "object": "chat.completion",
        "created": header["created_at_ms"] // 1000,
        "model": header["model"],
        **fold.result(),
    }


def _message(deltas: dict[str, Any]) -> dict[str, Any]:
    message = {field: _in_order(items, placed=field in PLACED) for field, items in deltas.items()}
    if isinstance(foreign := message.get(FOREIGN), dict):
        message[FOREIGN] = {field: _in_order(items, from_first=True) for field, items in foreign.items()}
    return message


def _in_order(items: Any, *, placed: bool = False, from_first: bool = False) -> Any:
    """A list without the `index` that its items have only so that deltas can be added up. Of other lists than those, the worker
    gives it to items that have none: `from_first`, or from those of the second delta on."""
    if not isinstance(items, list) or not items:
        return items
    if not placed:
        known = [item.get("index") if isinstance(item, dict) else None for item in items]
        first = next((at for at, index in enumerate(known) if index is not None), len(known))
        if (first == 0 and not from_first) or known[first:] != list(range(first, len(known))):
            return items
    return [_unplaced(item) for item in items]


def _unplaced(item: Any) -> Any:
    return {key: value for key, value in item.items() if key != "index"} if isinstance(item, dict) else item
