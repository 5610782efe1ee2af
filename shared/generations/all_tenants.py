"""What belongs to many tenants, in one list: for admins.

Hidden here: that each tenant has a list of its own, and how these become one: the next of each is looked at, and the one that
comes first is taken.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from typing import Any

from shared.errors import NotFound
from shared.generations.broker import Broker
from shared.generations.caller import Caller
from shared.log.listing import Span
from shared.log.records import Summary
from shared.store.availability import translate_errors

_ID = re.compile(r"chatcmpl-[0-9a-f]{32}")
_UNKNOWN = "`after` must be the id of a stream in this list."


async def listed_of(
    broker: Broker,
    tenants: Iterable[str],
    after: str | None = None,
    *,
    newest_first: bool = True,
    stored: bool = False,
    span_ms: Span = (None, None),
) -> AsyncIterator[Summary]:
    """The generations of these tenants by their age, all or only the stored, created within the span. Raises NotFound if
    `after` is none of theirs."""
    known, last = set(tenants), None
    since_ms, until_ms = span_ms
    if after is not None:
        last = await _find(broker, after)
        if last is None or last.header["owner"] not in known:
            raise NotFound(_UNKNOWN)
        at = last.header["created_at_ms"]
        since_ms, until_ms = (since_ms, at + 1) if newest_first else (at, until_ms)
    how: dict[str, Any] = {"newest_first": newest_first, "span_ms": (since_ms, until_ms)}
    listed = broker.stored if stored else broker.listed
    lists = [listed(Caller(tenant), **how) for tenant in sorted(known)]
    first = max if newest_first else min
    heads = [(head, one) for one in lists if (head := await anext(one, None)) is not None]
    while heads:
        chosen = first(heads, key=lambda pair: _place(pair[0]))
        heads.remove(chosen)
        head, one = chosen
        if last is None or (_place(head) < _place(last) if newest_first else _place(head) > _place(last)):
            yield head
        if (following := await anext(one, None)) is not None:
            heads.append((following, one))


def _place(summary: Summary) -> tuple[int, str]:
    """As the lists have them: of one millisecond, by their ids."""
    return summary.header["created_at_ms"], summary.header["id"]


async def _find(broker: Broker, generation_id: str) -> Summary | None:
    if not _ID.fullmatch(generation_id):
        return None
    with translate_errors():
        return (await broker.log.describe([generation_id]))[0]
