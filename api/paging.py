"""Lists, a page at a time, as OpenAI has them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query

from shared.errors import NotFound

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(description="id of the last one of the page before")]
Order = Annotated[Literal["asc", "desc"], Query(description="by the time it was made")]


def page(found: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """OpenAI's list object of the first `limit` of what was found, which tells whether there is more."""
    shown = found[:limit]
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
