"""What a surface gives so that its streams are served here: followed once, fanned out, paced and resumed.

Hidden here: nothing; this is the seam. A surface (api/surfaces/NAME) turns the entries of a log into events of its own
API, and the rest of this package serves them without knowing which API that is. There are two kinds:

- A *frame per chunk*: each chunk becomes one event, whatever came before it. The surface gives `encode`, and that is all
  that is called while a log is live.
- A *fold*: events have numbers, items are opened and closed, the last event has the whole text. The surface gives no
  `encode`; folding.py feeds its fold with each chunk, once for all viewers of a log.

Both are pure: they do no I/O, and the same log gives the same bytes, in any process and from any point on. So bytes are
made once and shared, and a client that resumes misses nothing and gets nothing twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from shared.errors import LogError
from shared.lib import sse
from shared.log.entry import Entry
from shared.log.records import Header, Outcome, Summary

Encode = Callable[[Entry], bytes]
"""A chunk's event, framed; `b""` for a chunk that is not shown. Only the last chunk of an answer may be hidden. To be called
through `framed`."""

Whole = Callable[[Summary, Any], dict[str, Any]]
"""A generation as one object: its summary, and what the chunks of its newest attempt add up to."""


def framed(encode: Encode, entries: Sequence[Entry]) -> list[bytes]:
    """The events of these chunks. A chunk is JSON without line breaks, as json.dumps of the worker's writes it; that is looked
    at here, for all of them together, before anything is put behind `data: `. Raises ValueError where it is not so."""
    if len(entries) == 1:
        sse.check_line(entries[0].data)
        return [encode(entries[0])]
    sse.check_lines(map(_data, entries))
    return list(map(encode, entries))


_data = attrgetter("data")

AddUp = Callable[[Iterable[bytes]], Awaitable[Any]]
"""What chunks add up to, for `Whole`. Of some hundred thousand, which takes seconds, others have their turns meanwhile."""


class Step(NamedTuple):
    """What a fold answers: the events that come now, each framed, and the fold as it is after them."""

    frames: Sequence[bytes]
    fold: Fold


class Fold(Protocol):
    """What has been shown of one attempt so far. Immutable: `feed` returns its successor.

    Any fold may be kept as a checkpoint and gone on from several times, so a successor should share what has been said
    with the one before it (a linked list of pieces, joined when an item is closed) rather than copy it.
    """

    @property
    def events(self) -> int:
        """How many events there have been, those of `start` included. A client's count of events is its cursor."""

    def feed(self, entry: Entry) -> Step:
        """The next chunk, or the usage chunk."""

    def end(self, outcome: Outcome) -> Sequence[bytes]:
        """What ends the stream. A viewer that has everything but this resumes within it."""

    def problem(self, problem: LogError) -> Sequence[bytes]:
        """What ends the stream of a log that is gone or damaged."""


class Projection(Hashable, Protocol):
    """One variant of a surface's stream (with ids, with usage, …). There is one instance of each, shared by all viewers:
    make it with `functools.cache`."""

    @property
    def native(self) -> bool:
        """Whether its viewers know attempts, and come again by themselves where a stream breaks off."""

    @property
    def resumes(self) -> bool:
        """Whether its viewers have ids by which they come again, and know an end when they see one: where a server stops, the
        others are told before they are cut."""

    @property
    def keepalive(self) -> bytes:
        """What is sent where nothing else was for a while: a comment, or an event that clients are known to pass over."""

    @property
    def encode(self) -> Encode | None:
        """Of the first kind: always the same function. None: of the second kind."""

    def start(self, header: Header) -> Step:
        """Before the first chunk of an attempt: the events that a stream begins with, by the request's header."""

    def attempt(self, epoch: int, replaced: Fold) -> Sequence[bytes]:
        """A newer attempt has replaced the one that was shown, which ended as `replaced`. Native viewers start over after
        these events; the stream of others ends with them."""
