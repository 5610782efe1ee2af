"""Whose turn it is among the tenants whose jobs wait: start-time fair queuing, of every worker and without a leader.

Hidden here: the tags that decide it. A tenant's tag is the time its jobs had of the workers' places, in seconds, divided by
its weight, on one scale for all tenants of a lane. The tenant with the lowest tag is next; what it takes is charged at once,
by an estimate, and put right when the job has ended, so that a tenant whose answers take five times as long gets a fifth of
the places, and not five times as many. Who had nothing waiting joins at the lane's own clock, which is the tag of what was
begun last: idle time earns nothing and costs nothing, and a tenant that is alone has every place.

(P. Goyal, H. M. Vin, H. Cheng, "Start-time Fair Queuing", 1996: with the tag set when a job leaves, not when it comes, so
that what was used can be charged to what waits already, and what is cancelled leaves no gap.)

Tags only order. They are no truth about any job: where they are lost, or two workers change one at a time, the order is less
fair for a moment, and nothing else. Two sorted sets a lane:

| key | members |
| --- | --- |
| `tenants` | those that have jobs waiting, and for a moment those that had; below SCALE, a tag counts from when it joined |
| `tags` | those that have none any more and are ahead of the clock, with the tag they left with; and the clock, `:` |
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shared.store.commands import Words
from shared.store.keys import Keys, Lane
from shared.store.redis import ArqRedis
from shared.store.transaction import transact

SCALE = 1e9
"""Where the scale of tags begins, in seconds; what is below counts from when its tenant joined."""
CLOCK = ":"
"""The lane's clock among the tags; no tenant has a colon in its name."""
_REMEMBERED_MS = 86_400_000


class Waiting(NamedTuple):
    """A job that waits, and what is known of it before it is taken. `tag` is None where it was not its tenant's turn."""

    id: str
    lane: Lane
    tenant: str | None = None
    tag: float | None = None


Charges = Mapping[tuple[Lane, str], float]
"""Seconds by weight, by lane and tenant."""
Cost = Callable[[Lane, str], float]
"""What a job of this lane and tenant is charged when it is taken."""


@dataclass(slots=True)
class Line:
    """The tenants of a lane that seem to have jobs waiting, and the first jobs of each."""

    lane: Lane
    scores: dict[str, float]
    jobs: dict[str, list[str]]
    tags: dict[str, float] = field(default_factory=dict)
    clock: float = SCALE

    def read(self, left: Sequence[float | None]) -> None:
        """`left` is the clock, and what each tenant left with, in the order of `scores`; None where there is nothing."""
        clock, *before = left
        self.clock = max(SCALE, clock or 0.0)
        for (tenant, score), tag in zip(self.scores.items(), before, strict=True):
            self.tags[tenant] = score if score >= SCALE else max(self.clock, tag or 0.0) + max(0.0, score)

    def order(self, count: int, cost: Cost) -> list[Waiting]:
        """The first so many jobs."""
        heap = [(tag, tenant, 0) for tenant, tag in self.tags.items() if self.jobs[tenant]]
        heapq.heapify(heap)
        found: list[Waiting] = []
        while heap and len(found) < count:
            tag, tenant, place = heap[0]
            found.append(Waiting(self.jobs[tenant][place], self.lane, tenant, tag))
            if place + 1 < len(self.jobs[tenant]):
                heapq.heapreplace(heap, (tag + cost(self.lane, tenant), tenant, place + 1))
            else:
                heapq.heappop(heap)
        return found

    def joined(self) -> dict[str, float]:
        """The tags of those that count from when they joined, and have jobs."""
        return {
            tenant: self.tags[tenant] for tenant, score in self.scores.items() if score < SCALE and self.jobs[tenant]
        }

    def empty(self) -> list[str]:
        return [tenant for tenant, jobs in self.jobs.items() if not jobs]


def joining(key: Keys, lane: Lane, tenant: str) -> Words:
    """The command that says that the tenant has a job waiting; nothing changes if it had before."""
    return b"ZADD", key.tenants(lane), b"NX", 0, tenant


def charging(key: Keys, charges: Charges) -> list[Words]:
    """What adds to the tags of tenants whose jobs begin: they were waiting a moment ago."""
    return [
        (b"ZADD", key.tenants(lane), b"XX", b"INCR", seconds, tenant) for (lane, tenant), seconds in charges.items()
    ]


def settling(key: Keys, charges: Charges) -> list[Words]:
    """What adds to the tags of tenants whose jobs have ended, wherever these are; one that has none is not ahead, and goes
    free."""
    return [
        (b"ZADD", name(lane), b"XX", b"INCR", seconds, tenant)
        for name in (key.tenants, key.tags)
        for (lane, tenant), seconds in charges.items()
    ]


def advancing(key: Keys, begun: Iterable[Waiting]) -> list[Words]:
    """What sets the clocks of lanes on to what was just begun in its turn."""
    clocks: dict[Lane, float] = {}
    for one in begun:
        if one.tag is not None:
            clocks[one.lane] = max(clocks.get(one.lane, SCALE), one.tag)
    commands: list[Words] = []
    for lane, clock in clocks.items():
        commands += (
            (b"ZADD", key.tags(lane), b"GT", clock, CLOCK),
            (b"PEXPIRE", key.tags(lane), _REMEMBERED_MS),
        )
    return commands


async def let_go(redis: ArqRedis, line: Line, cost: Cost) -> bool:
    """Takes those away that have nothing waiting any more, unless a job was put meanwhile. True if there was one to take.

    All they put was begun, the last of it at what they leave with less its cost: the clock is not behind that.
    """
    empty = line.empty()
    if not empty:
        return False
    key = redis.key
    names = [key.waiting(line.lane, tenant) for tenant in empty]
    tags, tenants = key.tags(line.lane), key.tenants(line.lane)

    def queue(pipe: Any, seen: list[Any]) -> None:
        gone = [tenant for tenant, waits in zip(empty, seen, strict=True) if not waits]
        if gone:
            clock = max(line.clock, *(line.tags[tenant] - cost(line.lane, tenant) for tenant in gone))
            pipe.zrem(tenants, *gone)
            pipe.zadd(tags, {**{tenant: line.tags[tenant] for tenant in gone}, CLOCK: clock}, gt=True)
            pipe.zremrangebyscore(tags, "-inf", f"({clock!r}")
            pipe.pexpire(tags, _REMEMBERED_MS)

    await transact(redis, names, [("EXISTS", name) for name in names], queue)
    return True
