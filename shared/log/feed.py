"""What happens to generations, as one short stream of events for all of them: for pages that show what is going on.

Hidden here: that each event is written in the transaction that makes it true, or by its worker a moment later, or with the
outcome (`Telling`), so it costs no round trip; and that the stream is cut to its newest entries, whatever is going on. An
event tells ids, names and figures, and no text of a request or an answer. It may be there twice, where a reply of Redis was
lost. It is specified in PROTOCOL.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from shared.lib import json, money
from shared.lib.clock import now_ms
from shared.log.appender import Appender
from shared.log.decoding import by_name
from shared.log.records import Attempt, Header, Outcome, Refusal, Served, Summary, source_of
from shared.store.commands import Words, exchange_all, pack
from shared.store.redis import ArqRedis, ResponseError

TYPES = ("accepted", "claimed", "retried", "first_chunk", "sealed", "settled", "deleted")

_TYPE, _OWNER, _EVENT = b"t", b"o", b"e"
_PAGE = 500
TOLD_S = 0.02
"""How long what a worker tells waits for the end. A provider may take a minute before it says anything."""
_FIGURES = ("prompt_tokens", "completion_tokens", "total_tokens")

Place = tuple[int, int]
"""Where an event stands in the stream: Redis's own id, two numbers."""
START: Place = (0, 0)


class Event(NamedTuple):
    """Whose it is, and its JSON."""

    type: str
    owner: str
    data: bytes


class Told(NamedTuple):
    """An event that stands in the stream."""

    place: Place
    type: str
    owner: str
    data: bytes


class Feed:
    """The stream's writing side: one for each client of Redis, without a state."""

    def __init__(self, name: str, kept: int) -> None:
        """`name` is the stream's key; about `kept` events are in it at most."""
        self.name, self.kept = name, kept
        self._begin = b"XADD", name.encode(), b"MAXLEN", b"~", b"%d" % kept, b"*"

    def add(self, pipe: Any, event: Event) -> None:
        """Adds it to a pipeline: all of it as bytes, which the client neither checks nor encodes."""
        pipe.execute_command(*self.command(event))

    def command(self, event: Event) -> tuple[bytes, ...]:
        """What writes it."""
        return *self._begin, _TYPE, event.type.encode(), _OWNER, event.owner.encode(), _EVENT, event.data


# ---- the events


def is_made_again(header: Header) -> bool:
    """Whether its id follows from what was asked, so that its log may be there before it is created: to say then that it was
    accepted would be wrong."""
    return header.get("idempotency") is not None or header.get("batch") is not None


def accepted(header: Header) -> Event:
    return _event("accepted", header, now_ms(), **_asked(header))


def claimed(header: Header, attempt: Attempt, at_ms: int) -> Event:
    return _event(
        "claimed",
        header,
        at_ms,
        attempt=attempt.get("number", 1),
        reason=attempt.get("reason"),
        worker=attempt.get("worker"),
        queued_ms=_since(header, attempt.get("at_ms")),
    )


def first_chunk(header: Header, attempt: int, served: Served, spoke_at_ms: int, at_ms: int) -> Event:
    return _event(
        "first_chunk",
        header,
        at_ms,
        attempt=attempt,
        served_by=served.get("model"),
        retries=served.get("retries", 0),
        refused=served.get("refused", []),
        ttft_ms=_since(header, spoke_at_ms),
    )


def retried(header: Header, attempt: int, asked: Refusal, at_ms: int) -> Event:
    """`asked` is who is asked once more, and why."""
    return _event(
        "retried",
        header,
        at_ms,
        attempt=attempt,
        asked=asked["model"],
        error_code=asked["code"],
        error_status=asked["status"],
    )


def ended(kind: str, header: Header, outcome: Outcome) -> Event:
    """`kind` is `sealed` or `settled`. Whatever an outcome lacks is null: nothing here may keep it from being written."""
    served, error = outcome.get("served") or Served(), outcome.get("error")
    used, cost = outcome.get("usage") or {}, outcome.get("cost")
    amount = cost["picodollars"] if cost else None
    usage: dict[str, int | None] = {}
    for name in _FIGURES:  # a provider may have said anything
        value = used.get(name)
        usage[name] = value if isinstance(value, int) and 0 <= value < 2**53 else None
    return _event(
        kind,
        header,
        now_ms(),
        status=outcome.get("status"),
        served_by=served.get("model"),
        refused=served.get("refused", []),
        retries=served.get("retries", 0),
        error_code=error.get("code") if error else None,
        error_status=error.get("status") if error else None,
        usage=usage,
        cost_usd=None if amount is None else money.to_dollars(amount),
        ttft_ms=_since(header, outcome.get("spoke_at_ms")),
        duration_ms=_since(header, outcome.get("ended_at_ms")),
        by=outcome.get("by"),
    )


def deleted(generation_id: str, tenant: str) -> Event:
    return Event(
        "deleted",
        tenant,
        json.dumps({"type": "deleted", "at_ms": now_ms(), "id": generation_id, "tenant": tenant}),
    )


def shown(summary: Summary) -> dict[str, Any]:
    """One that has no outcome yet, in a snapshot: what its events so far have told."""
    header, last = summary.header, summary.attempts[-1] if summary.attempts else None
    served = (last.get("served") if last else None) or Served()
    first = summary.attempts[0] if summary.attempts else None
    return {
        **_named(header),
        "status": summary.status,
        **_asked(header),
        "attempt": last.get("number", 1) if last else 0,
        "worker": last.get("worker") if last else None,
        "served_by": served.get("model"),
        "queued_ms": _since(header, first.get("at_ms") if first else None),
        "ttft_ms": _since(header, last.get("spoke_at_ms") if last else None),
    }


def _event(kind: str, header: Header, at_ms: int, **fields: Any) -> Event:
    data = {"type": kind, "at_ms": at_ms, **_named(header), **fields}
    return Event(kind, header["owner"], json.dumps(data))


def _named(header: Header) -> dict[str, Any]:
    return {
        "id": header["id"],
        "tenant": header["owner"],
        "key_id": header.get("key_id"),
        "model": header.get("model"),
    }


def _asked(header: Header) -> dict[str, Any]:
    batch = header.get("batch")
    return {
        "created_at_ms": header["created_at_ms"],
        "source": source_of(header),
        "session_id": header.get("session_id"),
        "batch_id": batch["id"] if batch else None,
        "retried_from": header.get("retried_from"),
    }


def _since(header: Header, at_ms: int | None) -> int | None:
    """From the request; never below 0, which clocks of two machines might make it."""
    return None if at_ms is None else max(0, at_ms - header["created_at_ms"])


# ---- what a worker tells


class Telling:
    """What one attempt tells: with its outcome, or a moment later, so that no first chunk waits for it. Events are put into
    words when they are sent."""

    __slots__ = ("_appender", "_due", "_taken", "_timer", "_told")

    def __init__(self, appender: Appender) -> None:
        """Through `appender` they are sent before the end."""
        self._appender = appender
        self._due: list[tuple[Feed, Callable[..., Event], tuple[Any, ...]]] = []
        self._told: list[Words] = []
        self._taken: list[Words] = []
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, feed: Feed, event: Callable[..., Event], *about: Any) -> None:
        """Tells `event(*about)`, which is asked for it later: it must be the same then."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TOLD_S, self._send)
        self._due.append((feed, event, about))

    def take(self) -> list[Words]:
        """The commands of what is not sent yet: who seals sends them, however often."""
        self._taken += self._appender.take_back(self._told)
        self._told.clear()
        self._taken += self._commands()
        return self._taken

    def drop(self) -> None:
        """What is not sent yet is not."""
        if self._told:
            self._appender.take_back(self._told)
        if self._timer is not None:
            self._timer.cancel()
        self._due.clear()

    def _send(self) -> None:
        for command in self._commands():
            self._told.append(command)
            self._appender.tell(command)

    def _commands(self) -> list[Words]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due, self._due = self._due, []
        found: list[Words] = []
        for feed, event, about in due:
            found.append(feed.command(event(*about)))
        return found


# ---- reading


class FeedReader:
    """Reads the stream. Every method raises RedisError or OSError when the server is away."""

    def __init__(self, redis: ArqRedis, name: str) -> None:
        self._redis, self._name = redis, name.encode()

    async def newest(self) -> Place:
        """Where the newest event stands; `START` if there is none."""
        (raw,) = await self._ask(pack(b"XREVRANGE", self._name, b"+", b"-", b"COUNT", b"1"))
        return _place(raw[0][0]) if raw else START

    async def page(self, after: Place) -> list[Told] | None:
        """Some of the events after that one, at once; None if it is not there any more, so that others may be missing, too."""
        first = pack(b"XRANGE", self._name, _spelled(after), b"+", b"COUNT", b"%d" % (_PAGE + 1))
        (raw,) = await self._ask(first)
        found = _told(raw)
        return found[1:] if found and found[0].place == after else None

    async def pages(self, after: Place) -> AsyncIterator[list[Told] | None]:
        """All of them that there are now, page by page; None, and no more, where some are missing."""
        while True:
            page = await self.page(after)
            if page != []:
                yield page
            if not page:
                return
            after = page[-1].place

    async def wait(self, after: Place, *, block_ms: int, count: int) -> list[Told] | None:
        """New events after that one, `[]` when the time is over; None if it is not there any more. `START` always is."""
        read = pack(
            b"XREAD",
            b"COUNT",
            b"%d" % count,
            b"BLOCK",
            b"%d" % block_ms,
            b"STREAMS",
            self._name,
            _spelled(after),
        )
        # Looked at after the read: what was cut off meanwhile was not in it.
        found, there = await self._ask(read, pack(b"XRANGE", self._name, _spelled(after), _spelled(after)))
        if after != START and not there:
            return None
        return _told(found[0][1]) if found else []

    async def _ask(self, *commands: bytes) -> list[Any]:
        replies = await exchange_all(self._redis, commands)
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise reply
        return replies


def parse(text: str) -> Place:
    """An event's id as it was sent. Raises ValueError."""
    milliseconds, _, number = text.partition("-")
    if not all(part.isascii() and part.isdigit() and len(part) <= 19 for part in (milliseconds, number)):
        raise ValueError("no id of an event")
    return int(milliseconds), int(number)


def _told(raw: Any) -> list[Told]:
    found = []
    for entry_id, fields in raw:
        named = by_name(fields)
        found.append(Told(_place(entry_id), named[_TYPE].decode(), named[_OWNER].decode(), named[_EVENT]))
    return found


def _place(entry_id: bytes) -> Place:
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)


def _spelled(place: Place) -> bytes:
    return b"%d-%d" % place
