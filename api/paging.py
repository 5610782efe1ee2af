"""Lists, a page at a time, as OpenAI has them.

Hidden here: that a page costs a bounded amount of work. Where few match what is asked for, it ends before it is full, and says
where the next one goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Query

from shared.errors import NotFound

T = TypeVar("T")

MOST_LOOKED_AT = 1000
"""What one page looks at: of generations, some 0.1 s."""
MOST_IN_VAIN = 20_000
"""The same as long as nothing has matched, in lists of OpenAI's own: its SDKs take an empty page for the last one."""

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(description="id of the last one of the page before")]
Order = Annotated[Literal["asc", "desc"], Query(description="by the time it was made")]


async def first_matching(
    listed: AsyncIterator[T],
    matches: Callable[[T], bool],
    limit: int,
    *,
    in_vain: int = MOST_IN_VAIN,
    most: int = MOST_LOOKED_AT,
) -> tuple[list[T], T | None]:
    """Up to one more than `limit` of those that match; and, if the page ended before the list did because enough was looked
    at, the last one that was: `most`, or `in_vain` as long as nothing has matched."""
    found: list[T] = []
    looked_at = 0
    async for one in listed:
        looked_at += 1
        if matches(one):
            found.append(one)
            if len(found) > limit:
                return found, None
        if looked_at >= (most if found else in_vain):
            return found, one
    return found, None


def page(found: list[dict[str, Any]], limit: int, stopped_at: str | None = None) -> dict[str, Any]:
    """OpenAI's list object of the first `limit` of what was found, which tells whether there is more; `stopped_at` is the id of
    the last one that was looked at, where the list was not gone through to its end."""
    shown = found[:limit]
    if stopped_at is not None and len(found) <= limit:
        return {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": stopped_at,
            "has_more": True,
        }
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(found) > limit,
    }


def following(found: list[dict[str, Any]], after: str | None, unknown: NotFound) -> list[dict[str, Any]]:
    """What comes after the one with the id `after`, everything without it. Raises `unknown` if it is not there."""
    if after is None:
        return found
    ids = [one["id"] for one in found]
    if after not in ids:
        raise unknown
    return found[ids.index(after) + 1 :]
