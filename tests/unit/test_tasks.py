from __future__ import annotations

import asyncio

from shared.tasks import cancel


async def test_a_task_that_loses_cancellations_is_ended_all_the_same() -> None:
    lost = 0

    async def deaf() -> None:
        nonlocal lost
        while lost < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost += 1

    async def broken() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError("dropped")

    tasks = [asyncio.create_task(task()) for task in (deaf, broken)]
    await asyncio.sleep(0)
    done = asyncio.create_task(asyncio.sleep(0))
    await done
    await asyncio.wait_for(cancel(*tasks, done), 10)
    assert lost == 2
    assert all(task.done() for task in tasks)
    await cancel()
