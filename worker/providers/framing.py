"""The body of an answer as events, whatever it turns out to be. Pure, without I/O.

Hidden here: that a provider may ignore `stream` and answer with one JSON object, pretty-printed or not, that Gemini may send
a list of them, and that the content type tells neither; that gateways put an answer into an object of their own, and an event
into a string. For example, a body that begins with `{` is one event and the end; one that begins with `data:` is an event
stream, also where it is called application/json.
"""

from __future__ import annotations

from typing import Any

from shared.lib import json, sse
from worker.providers.errors import parse

_BOM = b"\xef\xbb\xbf"
_JSON_STARTS = (b"{", b"[")
_ANSWERS = ("choices", "candidates", "content", "output", "message", "promptFeedback")
"""What a whole answer has in one of the formats; `message` is an error's, too, where it is text."""
_WRAPPERS = ("data", "response", "result", "output", "body")
"""Under which a gateway has the answer: DashScope's own format `output`, Google's Code Assist `response`."""
LONGEST_END = 32
WORDS = frozenset("response text content output output_text generated_text message".split())
"""What an event has, other than choices, whose format is another than its provider is said to have."""
PINGS = frozenset("ping keepalive keep-alive keep_alive heartbeat".split())
"""Names of events that say no more than a comment does: Anthropic's, OpenAI's, and gateways'. Their data may be anything."""


def is_end(data: bytes) -> bool:
    """Whether an event's data is [DONE], however it is spelled: as a JSON string, in lower case, with `data:` said twice. It
    proves the end of OpenAI's format alone."""
    return data.strip().removeprefix(b"data:").strip(b" '\"[]").upper() == b"DONE"


def value_of(data: bytes) -> Any:
    """What an event's data is as JSON, out of what it is packed in; None where it is none."""
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if value.__class__ is dict and "choices" in value:
        return value
    if value is None and data.startswith(b"data:"):
        value = parse(data.removeprefix(b"data:"))
    if isinstance(value, str):
        value = parse(value.encode("utf-8", "replace"))
    if isinstance(value, list) and len(value) == 1:  # as Google has it in a body
        value = value[0]
    return _unwrapped(value)


def _unwrapped(value: Any) -> Any:
    """An answer, or a piece of one, out of an object that has it under a name of its own; figures may stand beside it."""
    if not isinstance(value, dict) or "type" in value or value.get("error"):
        return value
    for name in _WRAPPERS:
        inner = value.get(name)
        if isinstance(inner, dict) and any(isinstance(inner.get(key), list) for key in _ANSWERS[:3]):
            return {**({"usage": value["usage"]} if value.get("usage") else {}), **inner}
    return value


class Decoder:
    """Bytes in, events out, with the interface of `sse.Decoder`. One instance reads one body.

    A JSON body counts once it has its end: one that was cut is no event. `max_event_bytes` limits it as it does an event.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._limit = max_event_bytes
        self._head: bytearray | None = bytearray()
        self._body: bytearray | None = None
        self._events = sse.Decoder(max_event_bytes)

    @property
    def refused(self) -> bool:
        """An event over the limit has come: there will be no more."""
        return self._events.refused

    def feed(self, data: bytes) -> list[sse.Event]:
        """The events that `data` completes. Raises sse.EventTooLarge."""
        if self._head is None and self._body is None:
            return self._fed(data)
        if self._head is not None:
            self._head += data
            start = bytes(self._head).lstrip()
            if start != _BOM and _BOM.startswith(start):
                self._head[:] = start  # white space keeps a connection open while a whole answer is made
                return []
            start = start.removeprefix(_BOM).lstrip()
            if not start:
                self._head[:] = _BOM
                return []
            data, self._head = start, None
            if start.startswith(_JSON_STARTS):
                self._body = bytearray()
        if self._body is None:
            return self._fed(data)
        self._body += data
        if len(self._body) > self._limit:
            raise sse.EventTooLarge(f"a body is over {self._limit} bytes")
        return []

    def _fed(self, data: bytes) -> list[sse.Event]:
        events = self._events.feed(data)
        return self._apart(events) if self._events.joined else events

    def one(self, data: bytes) -> bytes | None:
        """As `sse.Decoder.one`."""
        return self._events.one(data) if self._head is None and self._body is None else None

    def _apart(self, events: list[sse.Event]) -> list[sse.Event]:
        """Events, also where a server leaves out the blank lines between them: each line has one, then."""
        return [one for event in events for one in _lines(event)] if self._events.joined else events

    @property
    def other(self) -> bytes | None:
        """The body, once it has ended, if it is JSON and no answer."""
        value: Any = None if self._body is None else parse(bytes(self._body))
        first = _unwrapped(value[0] if isinstance(value, list) and value else value)
        if self._body is None or value is None:
            return None
        is_answer = isinstance(first, dict) and (
            any(isinstance(first.get(key), dict | list) for key in _ANSWERS) or first.get("type") == "message"
        )
        return bytes(self._body) if not is_answer or first.get("error") else None

    def close(self) -> list[sse.Event]:
        """A single object is the whole answer. The last of several, in a list or in lines, says itself whether it is the
        end."""
        if self._body is None:
            return [
                event
                for event in self._apart(self._events.close(bool))
                if _is_whole(event.data) or event.event == "error"
            ]
        body = bytes(self._body)
        value = parse(body)
        if isinstance(value, dict):
            answer = _unwrapped(value)
            end = [sse.Event(sse.DONE)] if "choices" in answer and not _is_piece(answer) else []
            return [sse.Event(body), *end]
        if isinstance(value, list):
            return [sse.Event(json.dumps(one)) for one in value if isinstance(one, dict)]
        lines = [line.strip().removeprefix(b"data:").strip() for line in body.splitlines()]
        return [sse.Event(line) for line in lines if _is_whole(line)]


def _lines(event: sse.Event) -> list[sse.Event]:
    data = event.data.split(b"\n")
    return [event._replace(data=line) for line in data] if len(data) > 1 and _is_whole(data[0]) else [event]


def _is_whole(data: bytes) -> bool:
    """Whether an event is there to its end: of an object that was cut, no part is one."""
    return data.strip() == sse.DONE or isinstance(parse(data), dict)


def _is_piece(value: dict[str, Any]) -> bool:
    """Whether an object is a chunk: the first line of a stream of lines may be all that has come."""
    choices = value.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("delta") and not choice.get("message") for choice in choices
    )
