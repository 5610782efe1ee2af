"""One choice of an answer in the house's own form: role once, one finish reason, which is last, calls that add up. Pure.

Hidden here: that a finish reason may stand in the middle, in every chunk or nowhere; that an answer may come whole, as a
`message` in place of a `delta`; where annotations and calls differ from OpenAI's. A finish reason is held back until nothing
follows it: one that is followed by more of the answer was none.
"""

from __future__ import annotations

from typing import Any

from shared.chat.messages import REASONING_FIELDS, visible_text
from shared.errors import UpstreamError
from worker.providers import finish
from worker.providers.chunk_shapes import WITH_THE_WORDS, Places, pop_about_the_end, put_choice_in_place
from worker.providers.errors import malformed, refusal
from worker.providers.tool_calls import CallIds, ToolCalls, text_of

_HEAD = len("<think>")
_LISTS = frozenset(("tool_calls", "annotations"))
_ROLE_AND_TEXT, _AROUND = frozenset(("role", "content")), frozenset(("index", "delta", "finish_reason", "logprobs"))
_REASONING = frozenset(REASONING_FIELDS)
_ABOUT_AN_END = WITH_THE_WORDS | {"native_finish_reason", "stop_reason"}


class Choice:
    """What one choice has shown so far, and the corrections that follow from it.

    `wire_format` says whose words its finish reasons are. With `forced`, one function had to be called: OpenAI ends such an
    answer with `stop`, and so it stays.
    """

    __slots__ = (
        "_annotations",
        "_begun",
        "_cut",
        "_forced",
        "_ids",
        "_length",
        "_legacy",
        "_opened",
        "_places",
        "_spoken",
        "_unsaid",
        "_whole",
        "_wire_format",
        "calls",
        "failure",
        "head",
        "held",
        "is_plain",
        "said",
        "text",
        "unknown",
        "usage",
        "word",
    )

    def __init__(self, ids: CallIds, *, wire_format: str, forced: bool, opened: bool) -> None:
        self._wire_format, self._forced, self._opened = wire_format, forced, opened
        self._spoken = False
        self.is_plain, self.text = False, ""
        """Whether the last chunk was `text` and nothing else, in a choice that goes on."""
        self.word: str | None = None
        """The provider's own of the finish reason that is held."""
        self.usage: list[dict[str, Any]] = []
        """Figures that stood in the choice (Moonshot), for the normalizer to take."""
        self._cut: tuple[str, str | None, int] | None = None
        """The finish reason and the word of an end that was one for want of room, or by a filter, where nothing was said after
        it but white space, annotations and their like: so long was the content then."""
        self._unsaid: dict[str, Any] | None = None
        self._whole: dict[str, str] | None = None
        """What messages without deltas have said so far, by field."""
        self._annotations: dict[str, int] = {}
        self._length, self._places = 0, Places()
        self._legacy: str | None = None
        self._begun = ""
        """The name of such a call, as long as it may go on."""
        self._ids = ids
        self.calls = ToolCalls(ids)
        self.held: dict[str, Any] | None = None
        """The choice as it will stand in the last chunk, if nothing follows."""
        self.failure: UpstreamError | None = None
        """What the end of this choice amounts to, where it is an error."""
        self.unknown: str | None = None
        """The word it ended with, where no format has it."""
        self.said = False
        """Anything beyond its role has come."""
        self.head = ""
        """How its content begins."""

    @property
    def finish_reason(self) -> str | None:
        """None as long as it goes on."""
        return None if self.held is None else self.held["finish_reason"]

    def read(self, choice: dict[str, Any]) -> tuple[int, int]:
        """Corrects one choice of one chunk in place. Returns the characters of content and of reasoning in it.

        If it is nothing but an end, it is `held`, and must not be handed out.
        """
        delta = choice.get("delta")
        self.is_plain = False
        if (
            self.held is None
            and self._cut is None
            and delta.__class__ is dict
            and (text := delta.get("content")).__class__ is str
            and choice.get("finish_reason", "") is None
            and choice.get("logprobs") is None
            and "error" not in choice
            and "usage" not in choice
        ):
            if self._spoken and len(delta) == 1:
                self._length += len(text)
                self.is_plain, self.text = True, text
                return len(text), 0  # almost every chunk: a little more text, and nothing to correct
            if _ROLE_AND_TEXT.issuperset(delta) and _AROUND.issuperset(choice):  # how almost every answer begins
                self._put_role(delta)
                self._length += len(text)
                if not self._spoken:
                    self._begin(text)
                self.said = self.said or bool(text)
                return len(text), 0
        return self._read(choice)

    def grow(self, count: int) -> None:
        """Text came, and so many characters of it, which `read` would have met with nothing to correct either."""
        self._length += count

    def _read(self, choice: dict[str, Any]) -> tuple[int, int]:
        message = choice.get("message")
        error = message.pop("error", None) if isinstance(message, dict) else None
        delta = self._delta(choice)
        for holder in (choice.get("message"), delta, choice):
            if isinstance(holder, dict) and isinstance(figures := holder.pop("usage", None), dict) and figures:
                self.usage.append(figures)
        word, error = _word(choice, delta), choice.pop("error", None) or delta.pop("error", None) or error
        choice["finish_reason"] = None
        for field in _LISTS.intersection(delta):
            if not delta[field]:  # null, an empty list, or whatever else says that there is none
                del delta[field]
        put_choice_in_place(choice, delta)
        if delta.get("tool_calls"):
            delta["tool_calls"] = self.calls.read(delta["tool_calls"])
            if not delta["tool_calls"]:
                del delta["tool_calls"]
        if delta.get("annotations"):
            self._annotate(delta)
        if delta.get("function_call"):
            self._read_legacy(delta)
        self._places.number(delta)
        says = False
        for key, value in delta.items():  # not any(), which costs as much again
            if value and key != "role":
                says = True
                break
        worse = None if says or self.held is None else self._worse(word)
        word = worse or word
        if self.held is not None and (says or word):
            self._take_back(self.held, choice)
        self._put_role(delta)
        content, reasoning = delta.get("content", ""), ""
        if content.__class__ is not str or not _REASONING.isdisjoint(delta):
            content, reasoning = visible_text(delta)
        self._length += len(content)
        if self._cut is not None:
            goes_on = content.strip() or reasoning or delta.get("tool_calls") or delta.get("function_call")
            self._cut = None if goes_on else (*self._cut[:2], self._length)
        if not self._spoken and isinstance(begun := delta.get("content"), str):
            self._begin(begun)
        self.said = self.said or says
        if error:
            self.failure = refusal({"error": error}, status=502)
        elif word:
            self._end(word, choice, says=says)
        return len(content), len(reasoning)

    def _begin(self, text: str) -> None:
        self.head = (self.head + text).lstrip()[:_HEAD]
        self._spoken = len(self.head) == _HEAD

    def _delta(self, choice: dict[str, Any]) -> dict[str, Any]:
        """What is new in a chunk. A `message` without a delta is the answer, or all of it so far, or what comes next; after
        deltas it repeats them. Of one beside deltas (Writer, Perplexity), or after them, what none of them says is told at the
        end. `text` is the delta of the older completions."""
        delta = choice.get("delta")
        if isinstance(delta, str):
            delta = {"content": delta}
        if not isinstance(delta, dict | None):
            raise malformed()
        message = choice.get("message")
        if isinstance(message, str):
            message = choice["message"] = {"content": message}
        if message is None and isinstance(told := choice.get("messages"), list) and len(told) == 1:
            message = choice["message"] = choice.pop("messages")[0]  # MiniMax's older API
        if delta and ("message" in delta or "text" in delta):
            delta = _unpacked(delta)
        if not delta and message is None and isinstance(choice.get("text"), str):
            delta = {"content": choice.pop("text")}
        elif not delta and message is None and isinstance(choice.get("content"), str):
            delta = {"content": choice.pop("content")}
        elif isinstance(message, dict) and (not self.said or self._whole is not None):
            if not delta:
                delta = {**(delta or {}), **self._news(message)}
                del choice["message"]
            elif not any(value for key, value in delta.items() if key != "role"):
                self._unsaid = message
        elif isinstance(message, dict) and not any(value for key, value in (delta or {}).items() if key != "role"):
            self._unsaid = message
            if delta is None:
                del choice["message"]
        if delta is None:
            delta = {}
        choice["delta"] = delta
        return delta

    def _news(self, message: dict[str, Any]) -> dict[str, Any]:
        """What a message says beyond those before it."""
        before, self._whole = self._whole or {}, {**(self._whole or {})}
        delta = dict(message)
        for key, text in message.items():
            if not isinstance(text, str) or key == "role":
                continue
            old = before.get(key, "")
            if old and text.startswith(old):
                delta[key], self._whole[key] = text[len(old) :], text
            else:
                self._whole[key] = old + text
        return delta

    def _put_role(self, delta: dict[str, Any]) -> None:
        if self._opened:
            delta.pop("role", None)
        else:
            self._opened = True
            delta["role"] = "assistant"  # some say `model`, which clients refuse

    def _read_legacy(self, delta: dict[str, Any]) -> None:
        """`function_call`, what calls were before `tool_calls`: in pieces, too, but there is only one. It is told when its
        name is whole."""
        call = delta["function_call"]
        if not isinstance(call, dict):
            raise malformed()
        if "arguments" in call:
            call["arguments"] = text_of(call["arguments"])
        self._legacy = (self._legacy or "") + call.get("arguments", "")
        if self._begun or not self._legacy:
            self._begun += call.get("name") or ""
            if not self._legacy and self._ids.begins_a_name(self._begun):
                del delta["function_call"]
            elif self._begun:
                call["name"], self._begun = self._begun, ""

    def _annotate(self, delta: dict[str, Any]) -> None:
        """Chat Completions knows `url_citation` alone, in an object of that name with four required fields; the others
        stand in `other_annotations` (platform.openai.com/docs/api-reference/chat/object)."""
        items = delta.pop("annotations")
        items = [items] if isinstance(items, dict) else items
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise malformed()
        for item in items:
            kind = item.get("type") or ("url_citation" if isinstance(item.get("url_citation"), dict) else None)
            field = "annotations" if kind == "url_citation" else "other_annotations"
            if kind == "url_citation":
                inner = item.get(kind)
                if not isinstance(inner, dict):
                    inner = {key: value for key, value in item.items() if key not in ("type", "index", kind)}
                    item = {}
                place = {"start_index": 0, "end_index": self._length}
                told = {key: value for key, value in inner.items() if value is not None and _fits(key, value)}
                item["type"], item[kind] = kind, {"url": "", "title": "", **place, **told}
            index = self._annotations.get(field, 0)
            self._annotations[field] = index + 1
            delta.setdefault(field, []).append({**item, "index": index})

    # ---- the end

    def _worse(self, word: str | None) -> str | None:
        """The word that is held, where nothing but `stop` follows it: some gateways end an answer that was cut once more."""
        if word is None or self.held is None or self.held["finish_reason"] not in ("length", "content_filter"):
            return None
        return self.word if finish.ending(self._wire_format, word).reason in ("stop", "tool_calls") else None

    def _take_back(self, held: dict[str, Any], choice: dict[str, Any]) -> None:
        """Something follows what looked like the end."""
        if "role" in held["delta"]:
            self._opened = False
        if self._wire_format == "openai":  # the others say again with the next end what they say about one
            about = {key: value for key, value in held.items() if key not in _ABOUT_AN_END and value is not None}
            for key, value in about.items():
                choice.setdefault(key, value)
        if (reason := held["finish_reason"]) in ("length", "content_filter"):
            self._cut = reason, self.word, 0
        self.held = self.word = self.unknown = None

    def _end(self, word: str, choice: dict[str, Any], *, says: bool) -> None:
        meaning = finish.ending(self._wire_format, word)
        if meaning.reason is None:
            message = f"The provider ended the answer with `{word[:100]}`."
            error = {"message": message, "code": word.lower()}
            self.failure = refusal(error, status=meaning.http_status)
            return
        self.word = word
        self.unknown = None if meaning.known else word
        if says:
            about = pop_about_the_end(choice)
            nothing = {"logprobs": None} if "logprobs" in choice else {}
            choice = {"index": choice["index"], "delta": {}, **nothing, **about}
        choice["finish_reason"] = meaning.reason
        if self._wire_format != "openai":
            choice.setdefault("native_finish_reason", word)
        self.held = choice

    def unsaid(self) -> dict[str, Any] | None:
        """What no delta said of a message that stood beside some, or came after them: the text behind reasoning that was
        streamed, say."""
        message, self._unsaid = self._unsaid, None
        if message is None or not self.said:
            return message
        left: dict[str, Any] = {
            "content": "" if self._length else visible_text({"content": message.get("content")}).content
        }
        # What is none, as gateways write that fill all fields, must not spoil an answer that was told.
        if not self.calls and self._legacy is None:
            calls, legacy = message.get("tool_calls"), message.get("function_call")
            left["tool_calls"] = calls if _are_dicts(calls) else None
            left["function_call"] = legacy if isinstance(legacy, dict) and legacy.get("name") else None
        if not self._annotations and _are_dicts(message.get("annotations")):
            left["annotations"] = message["annotations"]
        return {name: value for name, value in left.items() if value}

    def put_back(self, held: dict[str, Any], word: str | None) -> None:
        """What looked like the end is it, though something was told behind it, with which went what it says besides."""
        if self._wire_format == "openai":
            held = {key: value for key, value in held.items() if key in _ABOUT_AN_END or value is None}
        self.held, self.word = {**held, "delta": {}}, word

    def missing(self) -> dict[str, Any]:
        """What is to be said before the end, as a delta: arguments of calls that have none. Not where the answer was cut
        short, perhaps before them."""
        delta: dict[str, Any] = {}
        if self.finish_reason in ("length", "content_filter"):
            return delta
        if calls := self.calls.close():
            delta["tool_calls"] = calls
        if self._legacy is not None and not self._legacy.strip():
            self._legacy = "{}"
            delta["function_call"] = {"arguments": "{}", **({"name": self._begun} if self._begun else {})}
        return delta

    def close(self, index: int, reason: str | None = None) -> dict[str, Any]:
        """The choice of the last chunk. `reason` is for one that has none: by default what it did."""
        last = self.held
        if last is None and reason is None and self._cut is not None and self._cut[2] == self._length:
            reason, self.word, _ = self._cut
        if last is None:
            last = {"index": index, "delta": {}, "finish_reason": reason or "stop"}
            self._put_role(last["delta"])
        found = last["finish_reason"]
        if found == "stop" and not (self._forced and self._wire_format == "openai" and self.word):
            found = "tool_calls" if self.calls else "function_call" if self._legacy is not None else found
        elif found == "function_call" and self.calls and self._legacy is None:
            found = "tool_calls"
        last["finish_reason"] = found
        if self.word is not None and self.word != found:
            last.setdefault("native_finish_reason", self.word)
        self.held = last
        return last


def _unpacked(delta: dict[str, Any]) -> dict[str, Any]:
    """A delta whose text stands in a `message` of its own, or is called `text`."""
    if isinstance(inner := delta.get("message"), dict) and not delta.get("content"):
        delta = {**{key: item for key, item in delta.items() if key != "message"}, **inner}
    if isinstance(delta.get("text"), str) and not delta.get("content"):
        delta = {**{key: item for key, item in delta.items() if key != "text"}, "content": delta["text"]}
    return delta


def _fits(field: str, value: Any) -> bool:
    """A place that is no number is none, and a name that is no text."""
    kind = {"start_index": int, "end_index": int, "title": str, "url": str}.get(field)
    return kind is None or type(value) is kind


def _word(choice: dict[str, Any], delta: dict[str, Any]) -> str | None:
    """The finish reason, also where it stands in the delta or under another name; a `stop_reason` beside `finish_reason` may
    be the text that was stopped at (vLLM), so that it counts only alone and where it is known."""
    if (told := choice.get("finish_reason")) is not None and (word := finish.word_in(told)):
        return word
    for holder, name in ((delta, "finish_reason"), (choice, "finishReason"), (delta, "finishReason")):
        if name in holder and (word := finish.word_in(holder.pop(name))):
            return word
    word = None if "finish_reason" in choice else finish.word_in(choice.get("stop_reason"))
    return word if word and finish.ending("openai", word).known else None


def _are_dicts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)
