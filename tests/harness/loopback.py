"""What lives beside a test, in a thread with an event loop of its own, and goes on while the test is busy breaking things."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Self, TypeVar

_PATIENCE_S = 60.0
_ACCEPTING_TURNS = 5
"""Of the loop, from a listener that is ready to the first step of what serves the connection; measured: 4."""

T = TypeVar("T")


async def stop_listening(server: asyncio.Server) -> None:
    """Nobody can connect any more, and whoever was being accepted is connected.

    `close` alone forgets one accepted in the same turn of the loop: asyncio asserts in the middle of making its transport,
    and leaves the socket to the garbage collector, which warns in whatever test is next (CPython 3.11, `Server._attach`).
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener.fileno())
    for _ in range(_ACCEPTING_TURNS):
        await asyncio.sleep(0)
    server.close()


class LoopThread:
    """`start` runs a coroutine there, `call` waits for it. A context manager; what still runs at its end is cancelled."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.start(coroutine).result(_PATIENCE_S)

    async def _close(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
