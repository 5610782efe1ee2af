"""The house's own form of an answer: every provider's events in, OpenAI's chunks out. Pure.

Hidden here: every dialect of OpenAI's chunks seen in 111 recordings of 24 providers. Out comes the one form that all
official clients can read: the provider's own JSON objects with `id`, `object`, `created` and `model` set to ours and all
other fields as they were, choices in order, one finish reason for each, last, and usage once and after that. For example,
llama.cpp begins with choice 1, so choice 0 is opened first. What a single choice looks like is providers/choice.py's. A wire
format that is not OpenAI's has a translator (providers/dialect.py), whose objects are put into this form, too.

Nothing is handed out before the answer says something: a role alone is held, so that another provider may still be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from shared.errors import UpstreamError, UpstreamIncomplete, UpstreamInvalid
from shared.features.usage import is_half
from shared.lib import json, sse
from shared.log.entry import Chunk
from worker.providers import finish, framing, usage
from worker.providers.choice import Choice
from worker.providers.chunk_shapes import put_in_place, put_usage_in_place, with_fields
from worker.providers.dialect import Dialect, Translator
from worker.providers.errors import MAY_TELL, error_in, malformed, names_failure, refusal
from worker.providers.formats.openai import DIALECT
from worker.providers.formats.template import Template
from worker.providers.tool_calls import CallIds, whole_number

_MAX_CHOICES = 128  # the `n` OpenAI allows; an index beyond it would only make us allocate
_MAX_SILENT, _MAX_SILENT_BYTES = 64, 256 * 1024  # chunks held that say nothing; some send one a second while they think
_HELD_BYTES = 32 * 1024 * 1024
_HELD_RATIO = 8
"""How much may come in other formats' events that amounts to little or nothing yet, such as the input of a hosted tool, whose
pieces are put together first; and by how much larger than its chunks an event is to be one of them."""
# Fields that are about the chunk, not in it: one without choices and with nothing but these says nothing.
_ENVELOPE = frozenset(
    "id object created model choices usage system_fingerprint service_tier provider obfuscation type".split()
)


class Normalizer:
    """Events of one answer in, chunks out. One instance reads one answer, from its first event to `end()`.

    As long as it has handed out no chunk, `begin` makes it forget what it read: another try, or another provider.

    `id`, `created` (Unix seconds) and `model` are what every chunk will carry. With `show_usage` ordinary chunks carry
    `"usage": null`, as OpenAI sends them to those who asked for usage. `choices` is the request's `n`; with `forced` it
    names the function to be called.
    """

    def __init__(
        self, *, id: str, created: int, model: str, show_usage: bool, choices: int = 1, forced: bool = False
    ) -> None:
        self._id, self._created, self._model = id, created, model
        self._show_usage, self._expected = show_usage, choices
        self.forced, self.verbatim, self._ended = forced, False, False
        self.whole: dict[str, Any] | None = None
        """What a request that is passed on as it came has beside a chat."""
        self.call_ids: Iterable[str] = ()
        """The ids of calls in the request, to be set before `begin`: no call of the answer gets one of them."""
        self.tools: Iterable[str] = ()
        """What its tools are called, to be set before `begin`: names that come in pieces are known by them."""
        self.begin(DIALECT)
        self.content_chars = 0
        """Characters of content so far, over all choices."""
        self.reasoning_chars = 0
        """Characters of reasoning so far, whichever field it came in."""
        self.chunks = 0
        """Chunks handed out so far."""

    def begin(self, dialect: Dialect) -> None:
        """From now on the events are an answer's in this dialect, from its first on."""
        self._wire_format = dialect.wire_format
        translator = (self.verbatim and dialect.verbatim) or dialect.translator
        self._translator: Translator | None = translator() if translator else None
        self._ids = CallIds(self._id, self.call_ids, self.tools)
        self._choices: list[Choice] = []
        self._template = Template()
        self._plain: Choice | None = None
        """The choice to which the last event added text, if it did nothing else."""
        self._usage_chunk: dict[str, Any] | None = None
        self._said, self._held, self._foreign = False, 0, False
        self._silent: list[Chunk] = []
        self._tops: dict[int, dict[str, Any]] = {}
        self._riding: dict[str, Any] = {}
        self._broken: UpstreamError | None = None
        self._failure: UpstreamError | None = None
        self.settled = False
        """Every choice has its finish reason, and what stands behind that in a stream, usage alone, came: nothing but
        [DONE] is to follow."""
        self.done = False
        """[DONE] came, or what stands for it; whatever follows it is ignored."""
        self.usage: dict[str, Any] | None = None
        """The provider's figures so far, in OpenAI's form."""
        self.tier: str | None = None
        """The service tier in which it says that it answers, one of OpenAI's."""

    @property
    def begun(self) -> bool:
        """Whether a choice has come, be it its role alone."""
        return bool(self._choices)

    @property
    def finish_reasons(self) -> list[str | None]:
        """By choice index; None where none has come yet, or more of the choice came after it."""
        known = [choice.held["finish_reason"] if choice.held else None for choice in self._choices]
        return known + [None] * (self._expected - len(known))

    @property
    def tagged(self) -> bool:
        """Whether an answer begins as reasoning does that stands in the text."""
        return any(choice.head == "<think>" for choice in self._choices)

    @property
    def finished(self) -> bool:
        """Every choice that was asked for, and every one that came, has a finish reason, and nothing follows it so far."""
        return len(self._choices) >= self._expected and None not in [choice.held for choice in self._choices]

    def feed(self, event: sse.Event) -> list[Chunk]:
        """The chunks this event amounts to; none for pings, for usage alone, and for anything after [DONE]. Raises
        UpstreamRefused for an error the provider reports, and UpstreamInvalid for what is no JSON object in UTF-8 or not shaped
        like a chunk: to skip it would damage the text unseen. An error beside a part of the answer is raised by `end()`."""
        data = event.data
        if self._plain is not None and not event.event and (same := self._template.fill(data, self._plain)) is not None:
            self._count_plain(self._plain, same[1])
            return [Chunk(same[0])]
        self._plain = None
        if self.done or event.event in framing.PINGS or not data:
            return []
        if len(data) <= framing.LONGEST_END and ((end := framing.is_end(data)) or (self.finished and b"{" not in data)):
            self.done = end and (self._translator is None or self.finished)
            return []
        value = framing.value_of(data)
        if event.event and names_failure(event.event):
            raise refusal(value if value is not None else data.decode("utf-8", "replace"), status=502)
        if not isinstance(value, dict):
            raise UpstreamInvalid("The provider sent an event that is not a JSON object in UTF-8.")
        if (not value.get("choices") or not MAY_TELL.isdisjoint(value)) and (error := error_in(value)) is not None:
            value.pop("error", None)
            return self._fail(error, self._chunks(value) if self._translator is None and value.get("choices") else [])
        if self._translator is not None:
            meanings = self._translator.feed(event.event, value)
            self.done = self._translator.done
            chunks = [chunk for meaning in meanings for chunk in self._chunks(meaning)]
            if len(data) > _HELD_RATIO * sum([len(chunk.payload) for chunk in chunks]):
                self._hold(len(data))
        else:
            chunks = self._chunks(value)
            if self._plain is not None:
                self._template.learn(data, chunks[0].payload, self._plain.text, self._plain)
        if self._broken is not None:
            return self._fail(self._broken, chunks)
        self.chunks += len(chunks)
        return chunks

    def pass_on(self, data: bytes, take: Callable[[bytes], bool]) -> bool:
        """Whether an event is one that `feed` would make a chunk of without reading it, and `take` took that chunk."""
        plain = self._plain
        if plain is None or (same := self._template.fill(data, plain)) is None or not take(same[0]):
            return False
        self._count_plain(plain, same[1])
        return True

    def _count_plain(self, choice: Choice, count: int) -> None:
        choice.grow(count)
        self.content_chars += count
        self.chunks += 1

    def _fail(self, failure: UpstreamError, chunks: list[Chunk]) -> list[Chunk]:
        if not chunks:
            raise failure
        self._failure, self.done, self._plain = failure, True, None
        self.chunks += len(chunks)
        return chunks

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > _HELD_BYTES:
            message = f"The provider sent more than {_HELD_BYTES} bytes that amount to nothing yet."
            raise UpstreamInvalid(message, code="upstream_chunk_too_large")

    # ---- the end

    def end(self) -> list[Chunk]:
        """To be called once nothing more comes: a finish reason for each choice, then the usage chunk, if usage was seen.
        Raises UpstreamIncomplete if the answer had neither a finish reason for every choice nor [DONE]: an end of file is no
        proof of an end. So it does if nothing was said, without an end of OpenAI's or a figure that says otherwise."""
        if self._failure is not None:
            raise self._failure
        if not (self.done or self.finished):
            raise UpstreamIncomplete("The provider's stream ended before the answer did.")
        if self._ended:
            return []
        chunks = [chunk for index, choice in enumerate(self._choices) for chunk in self._unsaid(index, choice)]
        if not self._said:
            spent = any(choice.held for choice in self._choices) or (not self._foreign and usage.of_output(self.usage))
            finish.check_silence(((choice.unknown, choice.word) for choice in self._choices), spent=spent)
        self._ended = True
        if not self._choices:
            self._add_choice(opened=False)
        chunks += self._loosened()
        for index, choice in enumerate(self._choices):
            if delta := choice.missing():
                chunks.append(self._serialize(self._shown([{"index": index, "delta": delta, "finish_reason": None}])))
        for index, choice in enumerate(self._choices):
            top = self._tops.pop(index, None) or self._shown([])
            chunks.append(self._serialize(self._carry({**top, "choices": [choice.close(index)]})))
        if self.usage is not None and not self.lacks_usage:
            last = {**(self._usage_chunk or {}), "choices": [], "usage": self.usage}
            chunks.append(self._serialize(last, is_usage=True))
        self.chunks += len(chunks)
        return chunks

    def cut_off(self) -> list[Chunk]:
        """Ends the answer where it is: the choices that go on get the finish reason `length`, as if the provider had a limit
        here. Then the usage chunk, if usage was seen."""
        while len(self._choices) < self._expected:
            self._add_choice(opened=False)
        for index, choice in enumerate(self._choices):
            if choice.finish_reason is None:
                choice.close(index, "length")
        return self.end()

    @property
    def lacks_usage(self) -> bool:
        """Whether usage was asked for and none came, or half of it."""
        return self._show_usage and (self.usage is None or self.half_told)

    @property
    def half_told(self) -> bool:
        """Whether the provider's figures leave out the prompt, or the answer where there is one."""
        return self.whole is None and self._said and is_half(self.usage)

    def measured(self, figures: dict[str, Any], source: str) -> list[Chunk]:
        """After the end: a usage chunk with our own figures, and where they are from."""
        self.chunks += 1
        whose = {} if source == "provider" else {"usage_source": source}
        last = {**(self._usage_chunk or {}), "choices": [], "usage": figures, **whose}
        return [self._serialize(last, is_usage=True)]

    def remark(self, delta: dict[str, Any], **fields: Any) -> Chunk:
        """A chunk of ours that adds this to the first choice, with these fields beside."""
        self.chunks += 1
        return self._serialize({**fields, **self._shown([{"index": 0, "delta": delta, "finish_reason": None}])})

    def _unsaid(self, index: int, choice: Choice) -> list[Chunk]:
        message = choice.unsaid()
        if message is None or not any(value for key, value in message.items() if key != "role"):
            return []
        held, word, top = choice.held, choice.word, self._tops.pop(index, None)
        chunks = self._chunks(self._shown([{"index": index, "delta": message}]))
        if held is not None:
            choice.put_back(held, word)
            self._tops[index] = top or self._shown([])
        return chunks

    # ---- a chunk

    def _chunks(self, value: dict[str, Any]) -> list[Chunk]:
        choices = value.get("choices")
        if not choices:
            self._without_choices(value)
            return []
        if not isinstance(choices, list):
            raise malformed()
        if (word := value.pop("finish_reason", None)) and isinstance(choices[0], dict) and len(choices) == 1:
            choices[0]["finish_reason"] = choices[0].get("finish_reason") or word
        counted = bool(value.get("usage")) or not usage.PLACES.isdisjoint(value)
        if counted:
            self._count(usage.given(value))
        put_in_place(value)
        if self._show_usage:
            value["usage"] = None
        else:
            value.pop("usage", None)
        opened = self._read(choices)
        if self._tops or self._silent or not self._said:
            return self._sorted_out(value, choices, opened)
        if self._riding:
            value = self._carry(value)
        elif len(choices) == 1 and not (opened or counted) and (choice := self._choices[choices[0]["index"]]).is_plain:
            self._plain = choice
        return [*opened, self._serialize(value)]

    def _count(self, told: Iterable[dict[str, Any]]) -> bool:
        """Notes usage; whether there was any."""
        found = None
        for found in told:
            figures = usage.in_openais_form(found)
            put_usage_in_place(figures)
            if self.usage is not None or usage.counted(figures):  # zeros alone say that nothing was counted
                self.usage = usage.later(self.usage, figures)
        return found is not None

    def _without_choices(self, value: dict[str, Any]) -> None:
        """A client that did not ask for usage never meets a chunk without choices: OpenAI sends none, and many clients read
        `choices[0]` unseen. Usage is for the end; what else there is (Azure's `prompt_filter_results`) rides on the next
        chunk that has some."""
        found = self._count(usage.given(value))
        self._foreign |= "choices" not in value and not framing.WORDS.isdisjoint(value)
        value.pop("usage", None)
        put_in_place(value)
        if found:
            # Its other fields (llama.cpp's timings) travel with the usage they belong to, not before it.
            self._usage_chunk = value
            self.settled = bool(self._choices) and self.finished
        elif any(value[key] for key in value.keys() - _ENVELOPE) and ("choices" in value or self._translator):
            self._hold(len(str(value)))
            self._ride({key: field for key, field in value.items() if key not in _ENVELOPE})

    def _ride(self, fields: dict[str, Any]) -> None:
        for key, field in fields.items():
            old = self._riding.get(key)
            self._riding[key] = old + field if isinstance(old, list) and isinstance(field, list) else field

    def _carry(self, value: dict[str, Any]) -> dict[str, Any]:
        riding, self._riding = self._riding, {}
        return with_fields(riding, value)

    def _sorted_out(self, value: dict[str, Any], choices: list[Any], opened: list[Chunk]) -> list[Chunk]:
        """The chunk less what is held: an end, until nothing follows; a beginning, until something does."""
        ends, rest = list[Any](), list[Any]()
        for choice in choices:
            held = self._choices[choice["index"]].held
            (ends if held is choice else rest).append(choice)
            if held is None and (top := self._tops.pop(choice["index"], None)):
                self._ride({key: field for key, field in top.items() if key not in _ENVELOPE})
        for choice in ends:
            top = self._shown([]) if rest else {**value, "choices": []}
            if before := self._tops.get(choice["index"]):
                top = {**before, **top}
            self._tops[choice["index"]] = top
        if rest:
            opened.append(self._serialize(self._carry({**value, "choices": rest})))
        if self._said:
            return [*self._loosened(), *opened]
        self._silent += opened
        if len(self._silent) <= _MAX_SILENT and sum(len(chunk.payload) for chunk in self._silent) <= _MAX_SILENT_BYTES:
            return []
        self._said = True  # it may go on like this for ever: what is handed out is counted, and has a limit
        return self._loosened()

    def _loosened(self) -> list[Chunk]:
        silent, self._silent = self._silent, []
        return silent

    def _read(self, choices: list[Any]) -> list[Chunk]:
        """Brings the choices into our form, in place. Returns chunks that must come first.

        Those open the choices below one that comes early (llama.cpp starts with index 1): OpenAI's Python helper
        places a choice by counting, and fails on a gap.
        """
        opened: list[Chunk] = []
        for at, choice in enumerate(choices):
            if not isinstance(choice, dict):
                raise malformed()
            index = choice["index"] = whole_number(choice.get("index", at if at < self._expected else 0)) or 0
            if not 0 <= index < _MAX_CHOICES:
                raise malformed()
            while len(self._choices) <= index:
                if len(self._choices) < index:
                    delta = {"role": "assistant", "content": ""}
                    opening = {"index": len(self._choices), "delta": delta, "finish_reason": None}
                    opened.append(self._serialize(self._shown([opening])))
                self._add_choice(opened=len(self._choices) < index)
            known = self._choices[index]
            content, reasoning = known.read(choice)
            self.content_chars += content
            self.reasoning_chars += reasoning
            if known.held is not None:
                self._tops.setdefault(index, {})
            elif known.failure is not None:
                self._broken = known.failure
            if known.usage:
                self._count(known.usage)
                known.usage = []
            self._said = self._said or known.said
        if self.settled:
            self.settled = self.finished
        return opened

    def _add_choice(self, *, opened: bool) -> None:
        self._choices.append(Choice(self._ids, wire_format=self._wire_format, forced=self.forced, opened=opened))

    def _shown(self, choices: list[Any]) -> dict[str, Any]:
        """A chunk of ours."""
        return {"choices": choices, "usage": None} if self._show_usage else {"choices": choices}

    def _serialize(self, value: dict[str, Any], *, is_usage: bool = False) -> Chunk:
        value.update(id=self._id, object="chat.completion.chunk", created=self._created, model=self._model)
        self.tier = value.get("service_tier") or self.tier
        try:
            payload = json.dumps(value)
        except (ValueError, RecursionError):
            payload = b""
        if not payload:
            raise UpstreamInvalid("The provider sent a number or a nesting that JSON cannot carry on.")
        return Chunk(payload, is_usage)
