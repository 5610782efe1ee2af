"""What is recent, which Redis has, and what is not any more, which the history has, in one list with one cursor.

Hidden here: that the two overlap, since what has ended stands in both as long as its log is kept: the log's word counts.
They are gone through side by side, by the time a generation was created and its id, so that any id that either has is a
cursor into both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

from shared.errors import NotFound
from shared.features.history.history import History
from shared.features.history.record import summary as summary_of
from shared.features.listing.filters import Filters
from shared.generations.broker import Broker
from shared.generations.caller import Caller
from shared.log.listing import Span
from shared.log.records import Summary
from shared.store.availability import translate_errors

_PAGE = 100
_UNKNOWN = "`after` must be the id of a stream in this list."

Recent = Callable[[Span], AsyncIterator[Summary]]
"""What Redis has, created within a span, in the order of the list."""


class Remembered:
    """Methods raise Unavailable where Redis is away; where the history is, they have what Redis has."""

    def __init__(self, broker: Broker, history: History) -> None:
        self._broker, self._history = broker, history

    async def listed(
        self, tenants: Sequence[str] | None, wanted: Filters, recent: Recent, after: str | None = None
    ) -> AsyncIterator[Summary]:
        """All of these tenants' (None: of all): of what is recent whatever `recent` gives, of the rest what matches. Raises
        NotFound if `after` is in neither."""
        newest_first, span = wanted.order != "asc", (wanted.since_ms, wanted.until_ms)
        last = None
        if after is not None:
            last = await self._place(after, tenants)
            since_ms, until_ms = span
            if newest_first:
                span = since_ms, last[0] + 1 if until_ms is None else min(until_ms, last[0] + 1)
            else:
                span = last[0] if since_ms is None else max(since_ms, last[0]), until_ms
        of_redis = _beyond(recent(span), last, newest_first)
        of_history = self._older(tenants, replace(wanted, since_ms=span[0], until_ms=span[1]), last)
        async for one in _merged(of_redis, of_history, newest_first):
            yield one

    async def find(self, generation_id: str, caller: Caller) -> Summary | None:
        """What is still known of one whose log is gone."""
        found = await self._history.find(generation_id, caller.tenant)
        return None if found is None else summary_of(found)

    async def _place(self, generation_id: str, tenants: Sequence[str] | None) -> tuple[int, str]:
        with translate_errors():
            (found,) = await self._broker.log.describe([generation_id]) if _is_id(generation_id) else (None,)
        if found is None and _is_id(generation_id) and (kept := await self._history.find(generation_id, None)):
            found = summary_of(kept)
        if found is None or (tenants is not None and found.header["owner"] not in tenants):
            raise NotFound(_UNKNOWN)
        return _place(found)

    async def _older(
        self, tenants: Sequence[str] | None, wanted: Filters, after: tuple[int, str] | None
    ) -> AsyncIterator[Summary]:
        while True:
            page = await self._history.page(tenants, wanted, after, limit=_PAGE)
            for one in page:
                yield summary_of(one)
            if len(page) < _PAGE:
                return
            after = page[-1]["created_at_ms"], page[-1]["id"]


def _is_id(text: str) -> bool:
    return text.startswith("chatcmpl-") and len(text) == 41


def _place(one: Summary) -> tuple[int, str]:
    return one.header["created_at_ms"], one.header["id"]


async def _beyond(
    listed: AsyncIterator[Summary], last: tuple[int, str] | None, newest_first: bool
) -> AsyncIterator[Summary]:
    async for one in listed:
        if last is None or (_place(one) < last if newest_first else _place(one) > last):
            yield one


async def _merged(
    first: AsyncIterator[Summary], second: AsyncIterator[Summary], newest_first: bool
) -> AsyncIterator[Summary]:
    """Of two that have the same place, the first one's."""
    one, other = await _next(first), await _next(second)
    while one is not None or other is not None:
        if one is not None and other is not None and _place(one) == _place(other):
            other = await _next(second)
        elif other is None or (one is not None and (_place(one) > _place(other)) == newest_first):
            assert one is not None
            yield one
            one = await _next(first)
        else:
            yield other
            other = await _next(second)


async def _next(listed: AsyncIterator[Any]) -> Summary | None:
    found: Summary | None = await anext(listed, None)
    return found
