"""The house's own form of an answer: every provider's events in, OpenAI's chunks out. Pure.

Hidden here: every dialect of OpenAI's chunks seen in 111 recordings of 24 providers. Out comes the one form that all
official clients can read: the provider's own JSON objects with `id`, `object`, `created` and `model` set to ours and all
other fields as they were, the role once per choice, choices in order, usage once and last. For example, llama.cpp begins
with choice 1, so choice 0 is opened first. A wire format that is not OpenAI's has a translator (providers/dialect.py),
whose objects are put into this form, too.
"""

from __future__ import annotations

from typing import Any

from shared.chat.messages import visible_text
from shared.errors import UpstreamIncomplete, UpstreamInvalid
from shared.lib import json, sse
from shared.log.entry import Chunk
from worker.providers.dialect import Dialect, Translator
from worker.providers.errors import malformed, parse, refusal
from worker.providers.formats.openai import DIALECT

_MAX_CHOICES = 128  # the `n` OpenAI allows; an index beyond it would only make us allocate

_HELD_BYTES = 32 * 1024 * 1024
_HELD_RATIO = 8
"""How much may come in other formats' events that amounts to little or nothing yet, such as the input of a hosted tool, whose
pieces are put together first; and by how much larger than its chunks an event is to be one of them."""
_HEAD = len("<think>")
# Fields that are about the chunk, not in it: one without choices and with nothing but these says nothing.
_ENVELOPE = frozenset(
    "id object created model choices usage system_fingerprint service_tier provider obfuscation".split()
)


class Normalizer:
    """Events of one answer in, chunks out. One instance reads one answer, from its first event to `end()`.

    As long as it has handed out no chunk, `begin` makes it forget what it read: another try, or another provider.

    `id`, `created` (Unix seconds) and `model` are what every chunk will carry. With `show_usage` ordinary chunks carry
    `"usage": null`, as OpenAI sends them to those who asked for usage. `choices` is the request's `n`.
    """

    def __init__(self, *, id: str, created: int, model: str, show_usage: bool, choices: int = 1) -> None:
        self._id = id
        self._created = created
        self._model = model
        self._show_usage = show_usage
        self._expected = choices
        self._ended = False
        self.begin(DIALECT)
        self.content_chars = 0
        """Characters of content so far, over all choices."""
        self.reasoning_chars = 0
        """Characters of reasoning so far, whichever field it came in."""
        self.chunks = 0
        """Chunks handed out so far."""

    def begin(self, dialect: Dialect) -> None:
        """From now on the events are an answer's in this dialect, from its first on."""
        self._translator: Translator | None = dialect.translator() if dialect.translator else None
        self._choices: list[_Choice] = []
        self._usage_chunk: dict[str, Any] | None = None
        self._held = 0
        self.done = False
        """[DONE] came, or what stands for it; whatever follows it is ignored."""
        self.usage: dict[str, Any] | None = None
        """The last usage the provider gave, as it was."""

    @property
    def finish_reasons(self) -> list[str | None]:
        """By choice index; None where none has come yet."""
        known = [choice.finish_reason for choice in self._choices]
        return known + [None] * (self._expected - len(known))

    @property
    def tagged(self) -> bool:
        """Whether an answer begins as reasoning does that stands in the text."""
        return any(choice.head == "<think>" for choice in self._choices)

    @property
    def finished(self) -> bool:
        """Every choice that was asked for, and every one that came, has a finish reason."""
        return None not in self.finish_reasons

    def feed(self, event: sse.Event) -> list[Chunk]:
        """The chunks this event amounts to; none for pings, for usage alone, and for anything after [DONE].

        Raises UpstreamRefused for an error the provider reports, and UpstreamInvalid for what is not a JSON object in
        UTF-8 or not shaped like a chunk: to skip it would damage the text unseen.
        """
        data = event.data
        if self.done or event.event == "ping" or not data:
            return []
        if data.strip() == sse.DONE:
            self.done = True
            return []
        value = parse(data)
        if event.event == "error":
            raise refusal(value if value is not None else data.decode("utf-8", "replace"), status=502)
        if not isinstance(value, dict):
            raise UpstreamInvalid("The provider sent an event that is not a JSON object in UTF-8.")
        if value.get("error"):
            raise refusal(value, status=502)
        if self._translator is not None:
            meanings = self._translator.feed(event.event, value)
            self.done = self._translator.done
            chunks = [chunk for meaning in meanings for chunk in self._chunks(meaning)]
            if len(data) > _HELD_RATIO * sum([len(chunk.payload) for chunk in chunks]):
                self._hold(len(data))
            return chunks
        if not ("choices" in value or "usage" in value or "x_groq" in value):
            return []
        return self._chunks(value)

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > _HELD_BYTES:
            message = f"The provider sent more than {_HELD_BYTES} bytes that amount to nothing yet."
            raise UpstreamInvalid(message, code="upstream_chunk_too_large")

    def end(self) -> list[Chunk]:
        """To be called once nothing more comes: the usage chunk, if usage was seen.

        Raises UpstreamIncomplete if the answer had neither a finish reason for every choice nor [DONE]: an end of file
        is no proof of an end.
        """
        if not (self.done or self.finished):
            raise UpstreamIncomplete("The provider's stream ended before the answer did.")
        if self.usage is None or self._ended:
            return []
        self._ended = True
        return [self._serialize({**(self._usage_chunk or {}), "choices": [], "usage": self.usage}, is_usage=True)]

    def cut_off(self) -> list[Chunk]:
        """Ends the answer where it is: the choices that go on get the finish reason `length`, as if the provider had a limit
        here. Then the usage chunk, if usage was seen."""
        chunks = [
            chunk
            for index, reason in enumerate(self.finish_reasons)
            if reason is None
            for chunk in self._chunks({"choices": [{"index": index, "delta": {}, "finish_reason": "length"}]})
        ]
        return chunks + self.end()

    def _chunks(self, value: dict[str, Any]) -> list[Chunk]:
        choices = value.get("choices") or []
        if not isinstance(choices, list):
            raise malformed()
        usage = value.get("usage") or _groq_usage(value)
        if self._show_usage:
            value["usage"] = None
        else:
            value.pop("usage", None)
        if usage and isinstance(usage, dict):
            self.usage = usage
            if not choices:
                # Its other fields (llama.cpp's timings) travel with the usage they belong to, not before it: a client
                # that did not ask for usage never meets a chunk without choices where OpenAI sends none.
                self._usage_chunk = value
                return []
        if not choices and not any(value[key] for key in value.keys() - _ENVELOPE):
            return []
        opened = self._read(choices)
        value["choices"] = choices
        return [*opened, self._serialize(value)]

    def _read(self, choices: list[Any]) -> list[Chunk]:
        """Brings the choices into our form, in place. Returns chunks that must come first.

        Those open the choices below one that comes early (llama.cpp starts with index 1): OpenAI's Python helper
        places a choice by counting, and fails on a gap.
        """
        opened: list[Chunk] = []
        for choice in choices:
            if not isinstance(choice, dict):
                raise malformed()
            index = choice.get("index")
            if index is None:
                index = choice["index"] = 0
            if type(index) is not int or not 0 <= index < _MAX_CHOICES:
                raise malformed()
            while len(self._choices) <= index:
                if len(self._choices) < index:
                    opened.append(self._opening(len(self._choices)))
                self._choices.append(_Choice(opened=len(self._choices) < index))
            content, reasoning = self._choices[index].read(choice)
            self.content_chars += content
            self.reasoning_chars += reasoning
        return opened

    def _opening(self, index: int) -> Chunk:
        delta = {"role": "assistant", "content": ""}
        chunk: dict[str, Any] = {"choices": [{"index": index, "delta": delta, "finish_reason": None}]}
        if self._show_usage:
            chunk["usage"] = None
        return self._serialize(chunk)

    def _serialize(self, value: dict[str, Any], *, is_usage: bool = False) -> Chunk:
        value["id"] = self._id
        value["object"] = "chat.completion.chunk"
        value["created"] = self._created
        value["model"] = self._model
        try:
            payload = json.dumps(value)
        except (ValueError, RecursionError):
            payload = b""
        if not payload:
            raise UpstreamInvalid("The provider sent a number or a nesting that JSON cannot carry on.")
        self.chunks += 1
        return Chunk(payload, is_usage)


class _Choice:
    """What one choice has shown so far, and the corrections that follow from it."""

    __slots__ = ("_opened", "_spoken", "_tools", "finish_reason", "head")

    def __init__(self, *, opened: bool) -> None:
        self._opened = opened
        self._spoken = False
        self._tools: dict[int, dict[str, Any]] = {}
        self.finish_reason: str | None = None
        self.head = ""
        """How its content begins."""

    def read(self, choice: dict[str, Any]) -> tuple[int, int]:
        """Corrects one choice of one chunk in place. Returns the characters of content and of reasoning in it."""
        delta = choice.get("delta")
        if delta is None:
            delta = choice["delta"] = {}
        elif not isinstance(delta, dict):
            raise malformed()
        if (
            len(delta) == 1
            and self._spoken
            and isinstance(text := delta.get("content"), str)
            and not choice.get("finish_reason")
        ):
            return len(text), 0  # almost every chunk: a little more text, and nothing to correct
        if self._opened:
            delta.pop("role", None)
        else:
            self._opened = True
            if not delta.get("role"):
                delta["role"] = "assistant"
        if reason := choice.get("finish_reason"):
            self.finish_reason = str(reason)
        if not self._spoken and isinstance(content := delta.get("content"), str):
            self.head = (self.head + content).lstrip()[:_HEAD]
            self._spoken = len(self.head) == _HEAD
        if calls := delta.get("tool_calls"):
            self._read_calls(calls)
        content, reasoning = visible_text(delta)
        return len(content), len(reasoning)

    def _read_calls(self, calls: Any) -> None:
        """`id`, `type` and `function.name` once per call, and an index always: clients join deltas by it."""
        if not isinstance(calls, list):
            raise malformed()
        for call in calls:
            if not isinstance(call, dict):
                raise malformed()
            index = call.get("index")
            if index is None:
                index = call["index"] = self._place(call)
            elif type(index) is not int:
                raise malformed()
            function = call.get("function")
            known = self._tools.get(index)
            if known is None:
                known = self._tools[index] = {}
            else:
                _drop_repeats(call, known, ("id", "type"))
                if isinstance(function, dict):
                    _drop_repeats(function, known, ("name",))
            for source, key in ((call, "id"), (call, "type"), (function, "name")):
                if isinstance(source, dict) and source.get(key):
                    known.setdefault(key, source[key])

    def _place(self, call: dict[str, Any]) -> int:
        """The index of a call that has none (Gemini): a new id, or a name without an id, begins a call."""
        if call_id := call.get("id"):
            return next((at for at, known in self._tools.items() if known.get("id") == call_id), len(self._tools))
        function = call.get("function")
        begins = isinstance(function, dict) and bool(function.get("name"))
        return len(self._tools) if begins else max(len(self._tools) - 1, 0)


def _drop_repeats(part: dict[str, Any], known: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        if key in part and (not part[key] or part[key] == known.get(key)):
            del part[key]


def _groq_usage(value: dict[str, Any]) -> Any:
    groq = value.get("x_groq")
    return groq.get("usage") if isinstance(groq, dict) else None
