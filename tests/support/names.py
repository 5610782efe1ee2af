"""What the keys of an installation with the default prefix are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from shared.store.keys import Keys, Lane

keys = Keys()

WAITING = keys.waiting(Lane.GENERATION, "local")
"""Where those wait that were asked for without a key."""


@contextmanager
def called(others: Keys) -> Iterator[None]:
    """`keys` are those of another installation for a while."""
    before = dict(vars(keys))
    vars(keys).update(vars(others))
    try:
        yield
    finally:
        vars(keys).update(before)


async def counted(redis: Any, name: Callable[[int], str]) -> int:
    """How many members a sorted set has, in all cells; `name` gives that of one."""
    numbers = [await redis.zcard(name(cell)) for cell in keys.cells.all]
    return sum(numbers)


def wait(client: Any, jobs: dict[str, int], tenant: str = "local") -> None:
    """Puts jobs, with when they were enqueued, where a tenant's wait; by default those asked for without a key."""
    client.zadd(keys.waiting(Lane.GENERATION, tenant), jobs)
    client.zadd(keys.tenants(Lane.GENERATION), {tenant: 0}, nx=True)


def jobs_left(client: Any) -> list[str]:
    """The keys that jobs have, seen through a client that blocks: of those that wait, or run, or left something behind."""
    return [
        key.decode()
        for kind in ("queue", "running", "job", "lease")
        for key in client.scan_iter(f"{keys.prefix}:{kind}:*", count=1000)
    ]
