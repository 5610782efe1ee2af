"""OpenAI's chat format as spoken by OpenAI and everybody who is compatible with it, more or less. Pure functions.

Hidden here: what a request must ask for, and every dialect of the answer seen in 111 recordings of 24 providers. Out
comes one form, the one that all official clients can read: the provider's own JSON
objects with `id`, `object`, `created` and `model` set to ours and all other fields as they were, the role once per
choice, choices in order, usage once and last. Dialects that need more than this get a file of their own beside it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from shared import json, sse
from shared.chat import EXTENSION_FIELDS, Chunk
from shared.errors import UpstreamError, UpstreamIncomplete, UpstreamInvalid, UpstreamRefused
from worker.providers.registry import Provider

_MAX_CHOICES = 128  # the `n` OpenAI allows; an index beyond it would only make us allocate
_MAX_MESSAGE = 500
_MAX_CODE = 100
_SECRET = re.compile(r"(?i)\bbearer\s+[^\s\"',]+|\b(?:sk|pk|rk|gsk|xai|hf|pplx|csk|fw)[-_][\w*.-]{4,}|\bAIza[\w-]{10,}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")

# Fields that are about the chunk, not in it: one without choices and with nothing but these says nothing.
_ENVELOPE = frozenset(
    "id object created model choices usage system_fingerprint service_tier provider obfuscation".split()
)


def build_request(body: dict[str, Any], model: str) -> dict[str, Any]:
    """The body to send: the client's own, unknown fields included, less ours, streamed, always asking for usage.

    `body` is not changed. `stream_options` keeps its other keys.
    """
    request = {key: value for key, value in body.items() if key not in EXTENSION_FIELDS}
    options = request.get("stream_options")
    request["model"] = model
    request["stream"] = True
    request["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return request


class Normalizer:
    """Events of one answer in, chunks out. One instance reads one stream, from its first event to `end()`.

    `id`, `created` (Unix seconds) and `model` are what every chunk will carry. With `show_usage` ordinary chunks carry
    `"usage": null`, as OpenAI sends them to those who asked for usage. `choices` is the request's `n`.
    """

    def __init__(self, *, id: str, created: int, model: str, show_usage: bool, choices: int = 1) -> None:
        self._id = id
        self._created = created
        self._model = model
        self._show_usage = show_usage
        self._expected = choices
        self._choices: list[_Choice] = []
        self._usage_chunk: dict[str, Any] | None = None
        self._ended = False
        self.done = False
        """[DONE] came; whatever follows it is ignored."""
        self.usage: dict[str, Any] | None = None
        """The last usage the provider gave, as it was."""
        self.content_chars = 0
        """Characters of content so far, over all choices."""
        self.reasoning_chars = 0
        """Characters of reasoning so far, whichever field it came in."""
        self.chunks = 0
        """Chunks handed out so far."""

    @property
    def finish_reasons(self) -> list[str | None]:
        """By choice index; None where none has come yet."""
        known = [choice.finish_reason for choice in self._choices]
        return known + [None] * (self._expected - len(known))

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
        value = _parse(data)
        if event.event == "error":
            raise _refusal(value if value is not None else data.decode("utf-8", "replace"), status=502)
        if not isinstance(value, dict):
            raise UpstreamInvalid("The provider sent an event that is not a JSON object in UTF-8.")
        if value.get("error"):
            raise _refusal(value, status=502)
        if not ("choices" in value or "usage" in value or "x_groq" in value):
            return []
        return self._chunks(value)

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

    def _chunks(self, value: dict[str, Any]) -> list[Chunk]:
        choices = value.get("choices") or []
        if not isinstance(choices, list):
            raise _malformed()
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
                raise _malformed()
            index = choice.get("index")
            if index is None:
                index = choice["index"] = 0
            if type(index) is not int or not 0 <= index < _MAX_CHOICES:
                raise _malformed()
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

    __slots__ = ("_opened", "_tools", "finish_reason")

    def __init__(self, *, opened: bool) -> None:
        self._opened = opened
        self._tools: dict[int, dict[str, Any]] = {}
        self.finish_reason: str | None = None

    def read(self, choice: dict[str, Any]) -> tuple[int, int]:
        """Corrects one choice of one chunk in place. Returns the characters of content and of reasoning in it."""
        delta = choice.get("delta")
        if delta is None:
            delta = choice["delta"] = {}
        elif not isinstance(delta, dict):
            raise _malformed()
        if self._opened:
            delta.pop("role", None)
        else:
            self._opened = True
            if not delta.get("role"):
                delta["role"] = "assistant"
        if reason := choice.get("finish_reason"):
            self.finish_reason = str(reason)
        if calls := delta.get("tool_calls"):
            self._read_calls(calls)
        return _lengths(delta)

    def _read_calls(self, calls: Any) -> None:
        """`id`, `type` and `function.name` once per call, and an index always: clients join deltas by it."""
        if not isinstance(calls, list):
            raise _malformed()
        for call in calls:
            if not isinstance(call, dict):
                raise _malformed()
            index = call.get("index")
            if index is None:
                index = call["index"] = self._place(call)
            elif type(index) is not int:
                raise _malformed()
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


def _lengths(delta: dict[str, Any]) -> tuple[int, int]:
    content = delta.get("content")
    reasoning = delta.get("reasoning_content") or delta.get("reasoning") or delta.get("thinking")
    characters = len(reasoning) if isinstance(reasoning, str) else 0
    if isinstance(content, str):
        return len(content), characters
    if not isinstance(content, list):
        return 0, characters
    # Mistral: a list of parts, each `text` or `thinking`.
    parts = [part for part in content if isinstance(part, dict)]
    thoughts = [thought for part in parts for thought in _list(part.get("thinking"))]
    return sum(map(_text_length, parts)), characters + sum(map(_text_length, thoughts))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text_length(part: Any) -> int:
    text = part.get("text") if isinstance(part, dict) else part
    return len(text) if isinstance(text, str) else 0


def _groq_usage(value: dict[str, Any]) -> Any:
    groq = value.get("x_groq")
    return groq.get("usage") if isinstance(groq, dict) else None


def _parse(data: bytes) -> Any:
    """JSON, or None. The parser's error is not chained: it carries the text it failed on."""
    try:
        return json.loads(data)
    except ValueError:
        return None


def _malformed() -> UpstreamInvalid:
    return UpstreamInvalid("The provider sent a chunk whose choices are not shaped like OpenAI's.")


def error_from_response(provider: Provider, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """What a response that is not a stream means, as the error to raise. `headers` are looked up in lower case.

    4xx stays what it was, 408 and 504 become 504, other 5xx 502, a redirect 502 `upstream_redirect`: a provider's base
    URL is the operator's word, and a key is never sent elsewhere. The provider's message, type and code are kept,
    shortened and without anything that looks like a key; a web page is not quoted. `Retry-After` (RFC 9110 §10.2.3)
    and OpenAI's `retry-after-ms` become `retry_after_s`. A status below 300 is for an error object sent as a success.
    """
    if 300 <= status < 400:
        return UpstreamError(
            f"{provider.name}: answered with a redirect, which is never followed.", code="upstream_redirect"
        )
    value = _parse(body)
    if isinstance(value, list) and value:  # Gemini wraps its error in a list
        value = value[0]
    if status < 300 and not (isinstance(value, dict) and value.get("error")):
        return UpstreamInvalid(f"{provider.name}: answered with something that is not an event stream.")
    if value is None:
        text = body.decode("utf-8", "replace").strip()
        # A web page, or JSON that was cut: neither is a sentence.
        value = "" if "html" in headers.get("content-type", "") or text.startswith(("<", "{", "[")) else text
    return _refusal(
        value,
        status=status if status >= 400 else 502,
        retry_after_s=_retry_after(headers),
        provider=provider,
    )


def _refusal(
    value: Any, *, status: int, retry_after_s: float | None = None, provider: Provider | None = None
) -> UpstreamRefused:
    """`value` is OpenAI's envelope, the object inside it, one like it without envelope (Mistral, FastAPI), or text."""
    error = (value.get("error") or value) if isinstance(value, dict) else value
    detail = error if isinstance(error, dict) else {}
    code, kind = detail.get("code"), detail.get("type")
    if status == 502:  # no word of its own from HTTP: some say it inside (Groq, OpenRouter)
        status = next((s for s in (detail.get("status_code"), code) if type(s) is int and 400 <= s < 600), status)
    message = next(
        (text for text in (error, detail.get("message"), detail.get("detail")) if isinstance(text, str) and text), ""
    )
    secret = provider.api_key if provider else None
    text = _clean(message, secret, _MAX_MESSAGE) or "the provider reported an error and did not say which."
    return UpstreamRefused(
        f"{provider.name}: {text}" if provider else text,
        code=_clean(str(code), secret, _MAX_CODE) if code else None,
        kind=_clean(str(kind), secret, _MAX_CODE) if kind else None,
        status=status if status < 500 and status != 408 else 504 if status in (408, 504) else 502,
        retry_after_s=retry_after_s,
    )


def _clean(text: str, secret: str | None, limit: int) -> str:
    """Without keys (before it is cut: half a key is still one), without control characters, not too long."""
    if secret:
        text = text.replace(secret, "[redacted]")
    text = _CONTROL.sub(" ", _SECRET.sub("[redacted]", text))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from now on; None where the provider did not say, or not in a form anyone knows."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            seconds = float(milliseconds) / 1000
        else:
            seconds = float(headers.get("retry-after", "nan"))
    except ValueError:
        try:
            seconds = parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if abs(seconds) < float("inf") else None
