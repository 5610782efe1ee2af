"""Lists that stand in several indexes as one: those of many tenants, for admins, and those of all cells.

Hidden here: that each tenant has an index of its own in each cell, a sorted set, and how these become one list: the next of
each is looked at, and the one that comes first is taken. A cursor is a member, of whichever of them; where it stands is looked
up, so a page costs no more for being the hundredth.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from shared.store.redis import ArqRedis

_PAGE = 100
_ASKED_AT_ONCE = 200


class Place(NamedTuple):
    """Where something stands; of one score, by the member, as Redis has it, and then by whose it is."""

    score: float
    member: str
    owner: str


async def merged(
    redis: ArqRedis,
    indexes: Mapping[str, Sequence[str]],
    after: str | None = None,
    *,
    of: str | None = None,
    newest_first: bool = True,
    edge: float | None = None,
) -> AsyncIterator[Place]:
    """The members of `indexes`, `{owner: keys}`, by their score. `after` is one of them, of the owner `of` where several may
    have it; without one, `edge` is a score from which it begins, or the newest first, before which. Raises LookupError if
    `after` is not there; RedisError, OSError."""
    last = None if edge is None else Place(edge, "", "")  # no member is before this one
    if after is not None:
        last = await _find(redis, indexes, after, of)
    lists = [
        _List(redis, owner, name, last, newest_first) for owner, names in sorted(indexes.items()) for name in names
    ]
    for start in range(0, len(lists), _ASKED_AT_ONCE):
        part = lists[start : start + _ASKED_AT_ONCE]
        async with redis.pipeline(transaction=False) as pipe:
            for one in part:
                one.ask(pipe)
            for one, found in zip(part, await pipe.execute(), strict=True):
                one.take(found)
    first = max if newest_first else min
    heads = [(head, one) for one in lists if (head := await one.next()) is not None]
    while heads:
        chosen = first(heads, key=lambda pair: pair[0])
        heads.remove(chosen)
        yield chosen[0]
        if (following := await chosen[1].next()) is not None:
            heads.append((following, chosen[1]))


async def paged(places: AsyncIterator[Place], most: int = _PAGE) -> AsyncIterator[list[Place]]:
    """The same, some at a time, for those who look each up."""
    page: list[Place] = []
    async for place in places:
        page.append(place)
        if len(page) == most:
            yield page
            page = []
    if page:
        yield page


async def _find(redis: ArqRedis, indexes: Mapping[str, Sequence[str]], member: str, of: str | None) -> Place:
    places = [(owner, name) for owner in sorted(indexes) if of in (None, owner) for name in indexes[owner]]
    async with redis.pipeline(transaction=False) as pipe:
        for _, name in places:
            pipe.zscore(name, member)
        scores = await pipe.execute() if places else []
    for (owner, _), score in zip(places, scores, strict=True):
        if score is not None:
            return Place(score, member, owner)
    raise LookupError(member)


class _List:
    """One index, read a page at a time from just after `last`."""

    def __init__(self, redis: ArqRedis, owner: str, name: str, last: Place | None, newest_first: bool) -> None:
        self._redis, self._owner, self._name, self._last, self._newest_first = redis, owner, name, last, newest_first
        self._page: list[Place] = []
        self._skipped = 0
        self._is_over = False

    def ask(self, commands: Any) -> Any:
        """Queues, or sends, the read of the next page: from the score of the last one on, which others may share."""
        edge = (self._last.score if self._last else None, "-inf" if self._newest_first else "+inf")
        start = edge[0] if edge[0] is not None else ("+inf" if self._newest_first else "-inf")
        how = {"desc": self._newest_first, "byscore": True, "offset": self._skipped, "num": _PAGE, "withscores": True}
        return commands.zrange(self._name, start, edge[1], **how)

    def take(self, found: list[tuple[bytes, float]]) -> None:
        places = [Place(score, member.decode(), self._owner) for member, score in found]
        self._page = [place for place in places if self._last is None or self._is_after(place, self._last)]
        self._is_over = len(found) < _PAGE
        self._skipped = 0 if self._page else self._skipped + len(found)

    async def next(self) -> Place | None:
        while not self._page:
            if self._is_over:
                return None
            self.take(await self.ask(self._redis))
        self._last = self._page.pop(0)
        return self._last

    def _is_after(self, place: Place, last: Place) -> bool:
        return place < last if self._newest_first else place > last
