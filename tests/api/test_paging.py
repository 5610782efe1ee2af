"""A page costs a bounded amount of work, however few match, and nothing is left out where pages are followed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.paging import MOST_IN_VAIN, MOST_LOOKED_AT, first_matching, page


class Listed:
    """So many objects, `o0` first; counts what is looked at."""

    def __init__(self, size: int, after: int = 0) -> None:
        self.looked_at, self._range = 0, range(after, size)

    async def each(self) -> AsyncIterator[dict[str, Any]]:
        for number in self._range:
            self.looked_at += 1
            yield {"id": f"o{number}", "number": number}


async def followed(size: int, wanted: set[int], limit: int, in_vain: int) -> tuple[list[int], int]:
    """What a client gets that follows all pages, and the most that one of them looked at."""
    got, most, after = [], 0, 0
    while True:
        listed = Listed(size, after)
        found, last = await first_matching(listed.each(), lambda one: one["number"] in wanted, limit, in_vain=in_vain)
        shown = page(found, limit, last["id"] if last else None)
        got += [one["number"] for one in shown["data"]]
        most = max(most, listed.looked_at)
        if not shown["has_more"]:
            return got, most
        after = int(shown["last_id"][1:]) + 1


@pytest.mark.parametrize("in_vain", [MOST_LOOKED_AT, MOST_IN_VAIN])
@pytest.mark.parametrize(
    "wanted",
    [set(), {0}, {24_999}, {0, 999, 1000, 1001, 24_999}, set(range(0, 25_000, 700)), set(range(30))],
    ids=["none", "first", "last", "at the edges", "few", "many"],
)
async def test_pages_that_are_followed_leave_nothing_out(wanted: set[int], in_vain: int) -> None:
    got, most = await followed(25_000, wanted, 20, in_vain)
    assert got == sorted(wanted)
    assert most <= in_vain


async def test_a_list_that_ends_has_no_more() -> None:
    for size in (0, 1, MOST_LOOKED_AT - 1):
        assert await followed(size, set(), 20, MOST_LOOKED_AT) == ([], size)


async def test_a_long_page_looks_at_more() -> None:
    """Files have pages of up to 10,000."""
    found, last = await first_matching(Listed(25_000).each(), lambda one: True, 10_000, most=20_000)
    assert (len(found), last) == (10_001, None)
    for wanted in (set(), {0}):
        listed = Listed(25_000)
        found, last = await first_matching(listed.each(), lambda one, w=wanted: one["number"] in w, 10_000, most=20_000)  # type: ignore[misc]
        assert (len(found), listed.looked_at, last and last["number"]) == (len(wanted), 20_000, 19_999)


def test_a_page_says_where_the_next_one_goes_on() -> None:
    ones = [{"id": name} for name in "abc"]
    assert page(ones, 2) == {"object": "list", "data": ones[:2], "first_id": "a", "last_id": "b", "has_more": True}
    assert page(ones, 2, "z") == page(ones, 2)
    assert page(ones, 5, "z") == {"object": "list", "data": ones, "first_id": "a", "last_id": "z", "has_more": True}
    assert page([], 5, "z") == {"object": "list", "data": [], "first_id": None, "last_id": "z", "has_more": True}
    assert page([], 5)["has_more"] is False
