"""Which connections of a server follow logs by a bell: their ids, as `CLIENT KILL` wants them."""

from __future__ import annotations

import asyncio

from tests.harness.processes import wait_until
from tests.harness.store import Store


def readers(client: Store) -> list[str]:
    """Those whose keys are tracked."""
    return [one["id"] for one in client.client_list() if "t" in one["flags"]]


def bells(client: Store) -> list[str]:
    """Those that are told."""
    return [one["redir"] for one in client.client_list() if "t" in one["flags"]]


def reader_of(client: Store) -> str:
    """Where there is one."""
    (found,) = readers(client)
    return found


def bell_of(client: Store) -> str:
    (found,) = bells(client)
    return found


def until_alone(client: Store) -> None:
    """Until there is no other connection: the server learns a little later of those that tests before have closed."""
    wait_until(lambda: len(client.client_list()) == 1, what="the others are gone")


async def until_tracked_by(client: Store, count: int) -> None:
    """Until so many readers are left: the server learns of a closed one a little later."""
    async with asyncio.timeout(60):
        while len(readers(client)) != count:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.01)
