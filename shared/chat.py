"""The chat wire format, OpenAI's: requests, chunks, and the fold that makes an answer out of chunks.

Hidden here: which fields are ours, which types OpenAI's reference gives the others, how deltas add up. Fields nobody
here has heard of are let through, in requests and in chunks alike.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from shared.config import MAX_TOKENS_PER_S
from shared.errors import BadRequest

EXTENSION_FIELDS = frozenset(
    "on_interruption on_disconnect session_id session_policy session_trim session_max_tokens session_keep_partial "
    "store_reasoning background max_tokens_per_s webhook".split()
)
"""Request fields of our own: never forwarded to a provider."""

_ASSIGNED = frozenset(
    {"id", "index", "name", "object", "role", "type", "format", "signature", "thought_signature"}
    | {"finish_reason", "native_finish_reason", "stop_sequence"}
)
"""Fields that are sent whole, not in pieces: joining two of them would make neither."""

_PLACED = ("tool_calls", "annotations", "images", "thinking_blocks", "anthropic_blocks", "gemini_parts") + (
    "reasoning_items",
    "responses_items",
    "cohere_citations",
)
"""Lists whose items have an `index` only so that deltas can be added up: in a message they are in order, without it."""

_PARTS = ("content", "thinking")
"""Where text may be a string or a list of parts, one after the other in one answer: Mistral's `content` is both."""


class Chunk(NamedTuple):
    """One normalized `chat.completion.chunk`, serialized once by the worker and never parsed again on the way out.

    `payload` is compact JSON without line breaks. `is_usage` marks the chunk that carries nothing but usage: it is
    always the last one, and shown only to requests with `stream_options.include_usage`.
    """

    payload: bytes
    is_usage: bool = False


class _Lenient(BaseModel):
    """Known fields have their type, exactly; unknown ones are left alone."""

    model_config = ConfigDict(extra="allow", strict=True)


class Message(_Lenient):
    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None


class StreamOptions(_Lenient):
    include_usage: bool | None = None


class ChatRequest(_Lenient):
    """Body of POST /v1/chat/completions (platform.openai.com/docs/api-reference/chat/create).

    Only types and what the broker itself relies on are checked; ranges are the provider's business.
    """

    model: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    user: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(max_length=64)],
                Annotated[str, StringConstraints(max_length=512)],
            ],
            Field(max_length=16),
        ]
        | None
    ) = None
    on_interruption: Literal["fail", "restart"] | None = None
    on_disconnect: Literal["continue", "cancel"] | None = None
    session_id: str | None = None
    session_policy: Literal["reject", "enqueue", "interrupt"] | None = None
    session_trim: Literal["none", "oldest"] | None = None
    session_max_tokens: Annotated[int, Field(ge=1)] | None = None
    session_keep_partial: bool | None = None
    store_reasoning: bool | None = None
    max_tokens_per_s: Annotated[float, Field(gt=0, le=MAX_TOKENS_PER_S)] | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @classmethod
    def check(cls, body: object) -> ChatRequest:
        """Raises BadRequest naming the first wrong field the way OpenAI does: `messages[0].role`."""
        if not isinstance(body, dict):
            raise BadRequest("The request body must be a JSON object.")
        try:
            request = cls.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            param = _param(first["loc"])
            text = first["msg"].removeprefix("Value error, ")
            raise BadRequest(f"{param}: {text}." if param else f"{text}.", param=param or None) from None
        if request.stream_options is not None and not request.stream:
            raise BadRequest("stream_options: only allowed when stream is true.", param="stream_options")
        return request


def _param(location: tuple[int | str, ...]) -> str:
    """`('messages', 0, 'content', 'str')` → `messages[0].content`: union branches are not part of the path."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif re.fullmatch(r"[a-z_]+", part) and part not in ("str", "int", "float", "bool", "dict", "list"):
            path += f".{part}" if path else part
        else:
            break
    return path


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
    places = {item["index"]: i for i, item in enumerate(merged) if isinstance(item, dict) and "index" in item}
    for item in new:
        index = item.get("index") if isinstance(item, dict) else None
        if index is not None and index in places:
            merged[places[index]] = _merge(merged[places[index]], item)
        elif joined and index is None and merged and _continues(merged[-1], item):
            merged[-1] = _merge(merged[-1], item)
        else:
            if index is not None:
                places[index] = len(merged)
            merged.append(item)
    return merged


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
            if field not in ("choices", "object", "usage"):
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
            if message.get("tool_calls"):
                message["content"] = message["content"] or None
            choices.append({"finish_reason": None, "logprobs": None, **choice, "message": message})
        return {**self._top, "object": "chat.completion", "choices": choices, "usage": self.usage}


def _message(deltas: dict[str, Any]) -> dict[str, Any]:
    lists = {field: deltas[field] for field in _PLACED if isinstance(deltas.get(field), list)}
    return {**deltas, **{field: [_unplaced(item) for item in items] for field, items in lists.items()}}


def _unplaced(item: Any) -> Any:
    return {key: value for key, value in item.items() if key != "index"} if isinstance(item, dict) else item
