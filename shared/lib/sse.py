"""Server-Sent Events as bytes, both ways, without I/O.

Hidden here: every way an event stream may be cut and spelled (WHATWG HTML §9.2.6, "Interpreting an event stream"):
CR, LF and CRLF in any mix and split at any byte, a byte order mark, comments, `data` over many lines, fields without a
colon. Nothing but CR and LF ends a line: U+2028 and its kin are text, which is why `str.splitlines` and httpx's
`aiter_lines` must never see a stream.

Five choices of ours:

- A line `error: …` is no field of the standard, but GPUStack reports a failure that way under HTTP 200. Ignoring it
  would make the failure look like a clean end, so such a line becomes an event of its own, named `error`.
- A line that begins with `{` or `<` is no field either: it is an error that a proxy or a server has written into the stream
  as it would have written it alone, and is an event with that line as its data, for the reader to refuse.
- The last event counts without the blank line after it where the reader says that it is whole: some servers and proxies
  leave the last line ends out.
- An event over the size limit is refused before it is buffered, whether or not it ever ends.
- `retry` is ignored: how long to wait is the reader's business.

On the way out there is one spelling: `id`, `event`, `retry`, `data`, in this order, with LF.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

DONE = b"[DONE]"
"""The data that ends a chat stream of OpenAI's."""

KEEPALIVE = b": ka\n"
"""A comment that keeps idle hops open. One newline, not two: the OpenAI SDKs for Python keep the last `id` and take any
blank line after it for an event with empty data, on which they die."""

_BOM = b"\xef\xbb\xbf"


class EventTooLarge(ValueError):
    """One event, comments and field names included, is over the decoder's limit. The stream cannot be read further."""


class Event(NamedTuple):
    """One dispatched event: `data` as sent, lines joined by LF; `event` is empty for the default type; `id` sticks."""

    data: bytes
    event: str = ""
    id: str = ""


class Decoder:
    """Bytes in, events out. Linear in its input, however thin the slices; holds at most one unfinished event.

    `max_event_bytes` limits what stands between two blank lines. One instance reads one stream.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._limit = max_event_bytes
        self._head: bytes | None = b""  # the first bytes, while they may still be a byte order mark
        self._tail = bytearray()  # the unfinished event, line ends already LF
        self._after_cr = False
        self._is_between = False
        """What comes next begins an event: nothing of one is kept, nor of a mark or a line end."""
        self.refused = False
        """An event over the limit has come: there will be no more."""
        self._id = ""
        self.joined = False
        """An event whose data is of several lines has come."""

    @property
    def pending(self) -> bool:
        """Whether an event has begun that is not finished. True at the end of a stream means it was cut inside one."""
        return bool(self._head) or bool(self._tail.strip(b"\n"))

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes, in order.

        Raises EventTooLarge; events before the oversized one are returned first, and the next call raises.
        """
        if self._is_between and (line := self.one(data)) is not None:
            return [tuple.__new__(Event, (line, "", self._id))]
        if self.refused:
            raise EventTooLarge(f"an event is over {self._limit} bytes")
        text = data if self._head is None else self._unmarked(data)
        if self._after_cr or b"\r" in text:
            text = self._lines(text)
        if b"\n\n" not in text and not (text[:1] == b"\n" and self._tail[-1:] == b"\n"):
            # Only the new bytes were searched: a giant event in tiny slices stays linear.
            return self._keep(text, [])
        if self._tail:
            text = bytes(self._tail) + text
            self._tail.clear()
        events: list[Event] = []
        blocks = text.split(b"\n\n")
        tail = blocks.pop()
        small = len(text) <= self._limit
        if small and text.count(b"\n") == 2 * len(blocks) + tail.count(b"\n"):
            # As almost always: one line each.
            new, sticks = tuple.__new__, self._id
            events = [new(Event, (block[6:], "", sticks)) for block in blocks if block[:6] == b"data: "]
            if len(events) == len(blocks):
                return self._keep(tail, events)
            events = []
        for block in blocks:
            if small or len(block) <= self._limit:
                if block.startswith(b"data: ") and b"\n" not in block:
                    events.append(Event(block[6:], "", self._id))
                else:
                    self._dispatch(block, events)
            else:
                return self._refuse(events)
        return self._keep(tail, events)

    def one(self, data: bytes) -> bytes | None:
        """What `data` says if it is one event in one line, as most pieces of a body are, and nothing else. It is not fed then:
        nothing changes by it. Else None."""
        if (
            self._is_between
            and data[-2:] == b"\n\n"
            and data[:6] == b"data: "
            and data.find(b"\n") == len(data) - 2 <= self._limit
            and b"\r" not in data
        ):
            return data[6:-2]
        return None

    def close(self, is_whole: Callable[[bytes], bool] = lambda data: False) -> list[Event]:
        """The stream has ended. An unfinished event is dropped, as the standard says, but not an `error:` line, nor one
        whose data `is_whole`, as can be told of JSON.

        Raises EventTooLarge if that is still due.
        """
        events = self.feed(b"")
        self._dispatch(bytes(self._tail), events)
        self._tail.clear()
        return [event for event in events if event.event == "error" or is_whole(event.data)]

    def _unmarked(self, data: bytes) -> bytes:
        if self._head is None:
            return data
        head = self._head + data
        if len(head) < len(_BOM) and _BOM.startswith(head):
            self._head = head
            return b""
        self._head = None
        return head.removeprefix(_BOM)

    def _lines(self, data: bytes) -> bytes:
        """All line ends as LF. A CR counts at once; the LF that may follow in the next slice is swallowed then."""
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data

    def _keep(self, text: bytes, events: list[Event]) -> list[Event]:
        # A line end that is the first half of a blank line is not the event's: the verdict must not depend on the split.
        if len(self._tail) + len(text) - (text or self._tail).endswith(b"\n") > self._limit:
            return self._refuse(events)
        self._tail += text
        self._is_between = self._head is None and not (self._tail or self._after_cr)
        return events

    def _refuse(self, events: list[Event]) -> list[Event]:
        self._tail.clear()
        self.refused, self._is_between = True, False
        return events or self.feed(b"")

    def _dispatch(self, block: bytes, events: list[Event]) -> None:
        """Reads the lines between two blank ones (or before the first: leading LFs are harmless)."""
        data: list[bytes] = []
        errors: list[bytes] = []
        strays: list[bytes] = []
        name = ""
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                data.append(value)
            elif field == b"event":
                name = value.decode("utf-8", "replace")
            elif field == b"id" and b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
            elif field == b"error":
                errors.append(value)
            elif line.startswith((b"{", b"<")):
                strays.append(line)
        if data:
            self.joined = self.joined or len(data) > 1
            events.append(Event(b"\n".join(data), name, self._id))
        events.extend(Event(line, "", self._id) for line in strays)
        events.extend(Event(value, "error", self._id) for value in errors)


_NOT_ONE_LINE = "CR, LF and NUL cannot be part of an event's field"
FRAME = b"data: %b\n\n"
"""Of a payload in one line: of one that nobody has looked at (`check_lines`), `data_frame` makes it."""
NUMBERED_FRAME = b"id: %d-%d\n" + FRAME
"""The same with an id: `numbered_frame`."""
_LAST_DIGITS = [b"%03d" % number for number in range(1000)]


def data_frame(payload: bytes) -> bytes:
    """`data: PAYLOAD` and the blank line. Raises ValueError if the payload has a CR, LF or NUL."""
    return FRAME % _one_line(payload)


def frame(payload: bytes, *, id: bytes | None = None, event: bytes | None = None, retry_ms: int | None = None) -> bytes:
    """One event with `id`, `event` and `retry` where given. Raises ValueError if any part has a CR, LF or NUL."""
    parts = []
    if id is not None:
        parts.append(b"id: %b\n" % _one_line(id))
    if event is not None:
        parts.append(b"event: %b\n" % _one_line(event))
    if retry_ms is not None:
        parts.append(b"retry: %d\n" % retry_ms)
    return b"".join((*parts, data_frame(payload)))


def numbered_frame(payload: bytes, number: tuple[int, int]) -> bytes:
    """`frame` with the id `N-M`, in one step."""
    return NUMBERED_FRAME % (*number, _one_line(payload))


def numbered_frames(pieces: Sequence[bytes], around: tuple[bytes, bytes], first: tuple[int, int]) -> bytes:
    """The same for many, without what all of them begin and end with. They are numbered `N-M`, `N-M+1`, … Raises ValueError as
    `numbered_frame`.

    One join makes all of them: of a number the last three digits are at hand, and what is before these is the same for a
    thousand of them.
    """
    begin, end = around
    check_line(begin + end)
    check_lines(pieces)
    epoch, number = first
    middle, between, words = b"\ndata: " + begin, end + b"\n\nid: %d-" % epoch, []
    for at in range(-(number % 1000), len(pieces), 1000):
        some = pieces[max(0, at) : at + 1000]
        until = number + len(some)
        if number < 1000:
            thousands, last = b"", [b"%d" % one for one in range(number, until)]
        else:
            thousands, last = b"%d" % (number // 1000), _LAST_DIGITS[number % 1000 :]
        part = [between + thousands, b"", middle, b""] * len(some)
        part[1::4], part[3::4] = last[: len(some)], some
        words += part
        number = until
    words[0] = words[0].removeprefix(end + b"\n\n")  # nothing is before the first
    return b"".join((*words, end, b"\n\n"))


def is_one_line(value: bytes) -> bool:
    """Whether it can be the data of an event as it is."""
    return not (b"\n" in value or b"\r" in value or b"\0" in value)


def check_lines(payloads: Iterable[bytes]) -> None:
    """Raises ValueError if any of them has a CR, LF or NUL. To look at many together costs a fraction of looking at each; what
    was looked at may be put behind `data: ` as it is."""
    check_line(b"".join(payloads))


def check_line(payload: bytes) -> None:
    """The same of one."""
    if b"\n" in payload or b"\r" in payload or b"\0" in payload:  # not called: this is done for every chunk
        raise ValueError(_NOT_ONE_LINE)


def _one_line(value: bytes) -> bytes:
    if b"\n" in value or b"\r" in value or b"\0" in value:  # not called: this is done for every chunk
        raise ValueError(_NOT_ONE_LINE)
    return value
