"""What the events of a Responses answer mean: the other half of `responses.py`, which says what is kept, and where.

All 58 types of event are known by name or by the item they are about; those that only tell progress mean nothing here.
A terminal event ends the answer, an end of the stream does not. What it holds and no event told before is told then, which is
all of a response that comes whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from shared.features.responses.namespaces import with_flat_name
from worker.providers.chunk_shapes import delta_chunk, finish_chunk, logprobs
from worker.providers.errors import readable, refusal, text_in
from worker.providers.finish import ending
from worker.providers.tool_calls import text_of

_Chunks = list[dict[str, Any]]

_ELSEWHERE = 1_000_000
"""Places that no event names."""

_KINDS = {"function_call": ("function", "arguments"), "custom_tool_call": ("custom", "input")}
_USAGE = {
    "input_tokens": "prompt_tokens",
    "output_tokens": "completion_tokens",
    "input_tokens_details": "prompt_tokens_details",
    "output_tokens_details": "completion_tokens_details",
}


class _OpenCall(NamedTuple):
    """A tool call that was opened in the answer, by its index there, and how many characters of its arguments were told."""

    at: int
    kind: str
    field: str
    told: int
    id: Any


class ResponsesTranslator:
    """Items are told apart by `output_index`, or by id where there is none (llama.cpp). Words that come as pieces are
    sent as pieces; the whole that follows is used only where no piece of it came."""

    def __init__(self) -> None:
        self.done = False
        self._items: set[Any] = set()  # seen from their start: only their wholes are known to be unsaid
        self._messages: set[Any] = set()  # that anything was said of, by place; and so, apart from them,
        self._thoughts: set[Any] = set()
        self._starts: dict[tuple[Any, Any], int] = {}  # where in the content each part began
        self._length = 0
        self._over: dict[Any, set[str]] = {}  # the types of items that had their end, by place, and by id
        self._ids: dict[Any, Any] = {}  # of the items, by place
        self._moved: dict[Any, int] = {}  # where items are that came while another was at their place, by id
        self._said: set[str] = set()  # the fields that anything was said in
        self._calls: dict[Any, _OpenCall] = {}
        self._call_ids: set[Any] = set()
        self._summary: tuple[Any, Any] | None = None
        self._lengths = {"annotations": 0, "reasoning_items": 0, "responses_items": 0, "tool_calls": 0}
        self._annotated: dict[Any, int] = {}

    def feed(self, event: str, value: dict[str, Any]) -> _Chunks:
        with readable():
            kind = text_in(value.get("type") or event)
            if not kind and (value.get("object") == "response" or isinstance(value.get("output"), list)):
                return self.ended({"type": "", "response": value})
            value.setdefault("type", kind)
            item = value.get("item")
            of = value.get("item_id") or (item.get("id") if isinstance(item, dict) else None)
            if of in self._moved:
                value = {**value, "output_index": self._moved[of]}
            if field := _PIECES.get(kind):
                return self._say(value, field, value["delta"])
            if whole := _WHOLES.get(kind):
                return self._unsaid(value, *whole)
            handler = _HANDLERS.get(kind)
            return handler(self, value) if handler else []

    def added(self, value: dict[str, Any]) -> _Chunks:
        item, place = value["item"], _place(value)
        goes_on = place in self._items and place not in self._over
        if goes_on and item.get("id") and self._ids.get(place) not in (None, item["id"]):
            place = self._moved[item["id"]] = _ELSEWHERE + len(self._moved)
        self._items.add(place)
        self._ids[place] = item.get("id")
        return self._open(item, place) if item["type"] in _KINDS else []

    def summary(self, value: dict[str, Any]) -> _Chunks:
        """A new part of the summary begins a paragraph."""
        part, words = (_place(value), value.get("summary_index")), text_in(value.get("delta") or "")
        if words:
            words = words if self._summary in (None, part) else f"\n\n{words}"
            self._summary = part
        return self._say(value, "reasoning_content", words)

    def arguments(self, value: dict[str, Any]) -> _Chunks:
        known, words = self._calls.get(_place(value)), text_of(value.get("delta"))
        if known is None or not words:  # began before we came: the finished item tells it whole
            return []
        self._calls[_place(value)] = known._replace(told=known.told + len(words))
        return [delta_chunk(tool_calls=[{"index": known.at, known.kind: {known.field: words}}])]

    def all_arguments(self, value: dict[str, Any]) -> _Chunks:
        known = self._calls.get(_place(value))
        if known is None:
            return []
        return self.arguments({**value, "delta": text_of(value.get(known.field))[known.told :]})

    def part(self, value: dict[str, Any]) -> _Chunks:
        """A part of a message that is whole."""
        whole = _PARTS.get(str((value.get("part") or {}).get("type")))
        return self._unsaid({**value, **value["part"]}, *whole) if whole else []

    def annotation(self, value: dict[str, Any]) -> _Chunks:
        place = _place(value)
        self._annotated[place] = self._annotated.get(place, 0) + 1
        return [self._annotate(value, value["annotation"])]

    def finished(self, value: dict[str, Any]) -> _Chunks:
        item, place = value["item"], _place(value)
        for name in (place, text_in(item.get("id") or "")):
            self._over.setdefault(name, set()).add(item["type"])
        if item["type"] in _KINDS:
            opened = [] if place in self._calls else self._open(item, place)
            return opened + self.all_arguments({**value, **item})
        if item["type"] == "message":
            return self._finished_message(value, item, place)
        if item["type"] == "reasoning":
            return self._finished_reasoning(value, item, place)
        return [self._keep("responses_items", value, item)]

    def failed(self, value: dict[str, Any]) -> _Chunks:
        """The error is nested in a response, or is the event itself, whose type is then no error's."""
        error = ((value["response"] or {}).get("error") or {}) if "response" in value else {**value, "type": None}
        raise refusal(error, status=502)

    def ended(self, value: dict[str, Any]) -> _Chunks:
        """The response is over, whole or not; its `status` counts, whatever the event is called."""
        response = value.get("response") or {}
        cause = (response.get("incomplete_details") or {}).get("reason")
        word = response.get("status") or _ENDS.get(value["type"]) or "completed"
        if word == "failed" or (word == "completed" and response.get("error")):
            return self.failed(value)
        if word == "completed" and (cause or value["type"] == "response.incomplete"):
            word = "incomplete"
        if word == "cancelled":
            raise refusal({"message": "The answer was cancelled at the provider.", "code": word}, status=502)
        chunks = self._untold(response.get("output") or [])
        # SDKs add it, and servers made with one send it.
        if not self._messages and (text := response.get("output_text")):
            chunks.append(delta_chunk(content=text_in(text)))
        last = finish_chunk(word)
        if word == "incomplete" and cause:
            [choice] = last["choices"]
            choice["native_finish_reason"] = cause
            # Whatever cuts an answer, it must not pass for whole.
            choice["finish_reason"] = ending("responses", text_in(cause)).reason or "length"
        self.done = True
        if response.get("id"):
            last["responses"] = {"id": response["id"]}
        if response.get("service_tier"):
            last["service_tier"] = response["service_tier"]
        usage = {
            _USAGE.get(key, key): figure for key, figure in (response.get("usage") or value.get("usage") or {}).items()
        }
        return [*chunks, last, {"choices": [], "usage": usage}] if usage else [*chunks, last]

    def _untold(self, output: list[dict[str, Any]]) -> _Chunks:
        """What of the finished response no event has told. Some servers' items have other ids and places there than in their
        events: text is told only if there was none, a call if its id is new."""
        chunks: _Chunks = []
        told, sealed = len(self._messages), self._lengths["reasoning_items"]
        cited, thought = self._lengths["annotations"] > 0, bool(self._thoughts)
        for place, item in enumerate(output):
            kind = item["type"]
            if item.get("call_id") in self._call_ids:
                chunks += self._late_arguments(item)
                continue
            if kind == "message" and told > 0:  # in their order, whatever they are called
                told -= 1
                chunks += [] if cited else self._citations({"output_index": place}, item, 0)
                continue
            is_sealed = kind == "reasoning" and bool(item.get("encrypted_content"))
            sealed -= is_sealed
            if any(kind in self._over.get(name, ()) for name in (place, text_in(item.get("id") or ""))):
                continue
            if kind == "reasoning" and thought:  # but what it is sealed with may be told nowhere else
                chunks += (
                    [self._keep("reasoning_items", {"output_index": place}, item)] if is_sealed and sealed < 0 else []
                )
                continue
            self._items.add(place)
            chunks += self.finished({"output_index": place, "item": item})
        return chunks

    def _late_arguments(self, item: dict[str, Any]) -> _Chunks:
        """Those of a call that was opened, and of which no event has told more."""
        known = next((one for one in self._calls.values() if one.id == item.get("call_id")), None)
        words = "" if known is None else text_of(item.get(known.field))[known.told :]
        if known is None or not words:
            return []
        return [delta_chunk(tool_calls=[{"index": known.at, known.kind: {known.field: words}}])]

    def _say(self, value: dict[str, Any], field: str, words: Any) -> _Chunks:
        if not words:
            return []
        part = (_place(value), value.get("content_index"))
        self._said.add(field)
        self._starts.setdefault(part, self._length)
        (self._thoughts if field == "reasoning_content" else self._messages).add(part[0])
        if field == "content":
            self._length += len(text_in(words))
        chunk = delta_chunk(**{field: text_in(words)})
        if value.get("logprobs"):
            chunk["choices"][0]["logprobs"] = logprobs(value["logprobs"])
        return [chunk]

    def _unsaid(self, value: dict[str, Any], field: str, key: str) -> _Chunks:
        place = _place(value)
        known = place in self._items or field not in self._said
        if not known or (place, value.get("content_index")) in self._starts:
            return []
        if field != "reasoning_content" and (place, None) in self._starts:
            return []  # its pieces did not say which part they are of
        return self._say(value, field, value.get(key))

    def _finished_message(self, value: dict[str, Any], item: dict[str, Any], place: Any) -> _Chunks:
        if place not in self._items and self._messages:
            return []
        chunks: _Chunks = []
        silent = place not in self._messages
        content = item.get("content") or ()
        for i, part in enumerate([{"text": content}] if isinstance(content, str) else content):
            here = {**value, "content_index": i}
            if silent:
                chunks += self._say(here, "content", part.get("text"))
                chunks += self._say(here, "refusal", part.get("refusal"))
        return chunks + self._citations(value, item, self._annotated.get(place, 0))

    def _citations(self, value: dict[str, Any], item: dict[str, Any], known: int) -> _Chunks:
        """The annotations of a message but for those that events told. What is none is left out: the answer is there."""
        content = item.get("content")
        found = [
            ({**value, "content_index": i}, one)
            for i, part in enumerate(content if isinstance(content, list) else ())
            for one in (part.get("annotations") if isinstance(part, dict) else None) or ()
            if isinstance(one, dict) and isinstance(one.get("type"), str)
        ]
        return [self._annotate(at, one) for at, one in found[known:]]

    def _finished_reasoning(self, value: dict[str, Any], item: dict[str, Any], place: Any) -> _Chunks:
        chunks: _Chunks = []
        if place not in self._thoughts and (place in self._items or "reasoning_content" not in self._said):
            for i, part in enumerate(item.get("summary") or ()):
                chunks += self.summary({**value, "summary_index": i, "delta": part.get("text")})
            for part in item.get("content") or ():
                chunks += self._say(value, "reasoning_content", part.get("text"))
        if item.get("encrypted_content"):
            chunks.append(self._keep("reasoning_items", value, item))
        return chunks

    def _open(self, item: dict[str, Any], place: Any) -> _Chunks:
        kind, field = _KINDS[item["type"]]
        words = text_of(item.get(field))
        self._call_ids.add(item.get("call_id") or None)
        known = self._calls[place] = _OpenCall(self._next("tool_calls"), kind, field, len(words), item.get("call_id"))
        inner = {"name": text_in(with_flat_name(item)["name"]), field: words}
        return [delta_chunk(tool_calls=[{"index": known.at, "id": item.get("call_id"), "type": kind, kind: inner}])]

    def _annotate(self, value: dict[str, Any], annotation: dict[str, Any]) -> dict[str, Any]:
        """As Chat Completions has it, `{type, TYPE: {…}}`, its place counted from the start of the whole content.

        The `index` outside is ours: a file citation has one of its own.
        """
        place = _place(value)
        start = self._starts.get((place, value.get("content_index")), self._starts.get((place, None), 0))
        inner = dict(annotation)
        kind = text_in(inner.pop("type"))
        inner |= {key: inner[key] + start for key in ("start_index", "end_index") if inner.get(key) is not None}
        told: dict[str, Any] = {"index": self._next("annotations"), "type": kind, kind: inner}
        return delta_chunk(annotations=[told])

    def _keep(self, field: str, value: dict[str, Any], item: dict[str, Any]) -> dict[str, Any]:
        place = {"index": self._next(field), "output_index": value.get("output_index")}
        return delta_chunk(**{field: [{**item, **place}]})

    def _next(self, field: str) -> int:
        """Positions without gaps: OpenAI's Python helper places a list's items by counting."""
        self._lengths[field] += 1
        return self._lengths[field] - 1


def _place(value: dict[str, Any]) -> Any:
    """Which item an event is about. Without a place and an id it is a call's id (older llama.cpp: `item_id` is that, too)."""
    place = value.get("output_index")
    if place is not None:
        return place
    return value.get("item_id") or (item := value["item"]).get("id") or item.get("call_id")


_PIECES = {
    "response.output_text.delta": "content",
    "response.reasoning_text.delta": "reasoning_content",
    "response.refusal.delta": "refusal",
}
_WHOLES = {
    "response.output_text.done": ("content", "text"),
    "response.reasoning_text.done": ("reasoning_content", "text"),
    "response.refusal.done": ("refusal", "refusal"),
}
_PARTS = {
    "output_text": ("content", "text"),
    "reasoning_text": ("reasoning_content", "text"),
    "refusal": ("refusal", "refusal"),
}
_ENDS = {"response.incomplete": "incomplete", "response.cancelled": "cancelled"}
"""What an end is, by its event, where the response has no status."""
_HANDLERS: dict[str, Callable[[ResponsesTranslator, dict[str, Any]], _Chunks]] = {
    "error": ResponsesTranslator.failed,
    "response.cancelled": ResponsesTranslator.ended,
    "response.completed": ResponsesTranslator.ended,
    "response.content_part.done": ResponsesTranslator.part,
    "response.custom_tool_call_input.delta": ResponsesTranslator.arguments,
    "response.custom_tool_call_input.done": ResponsesTranslator.all_arguments,
    "response.done": ResponsesTranslator.ended,
    "response.failed": ResponsesTranslator.failed,
    "response.function_call_arguments.delta": ResponsesTranslator.arguments,
    "response.function_call_arguments.done": ResponsesTranslator.all_arguments,
    "response.incomplete": ResponsesTranslator.ended,
    "response.output_item.added": ResponsesTranslator.added,
    "response.output_item.done": ResponsesTranslator.finished,
    "response.output_text.annotation.added": ResponsesTranslator.annotation,
    "response.reasoning_summary_text.delta": ResponsesTranslator.summary,
}
