"""Large bodies have so many bytes in a process, wait for them in line, and give them back with their memory."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable

import pytest

from api import bodies as module
from api.bodies import Bodies
from shared.errors import Unavailable


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            gc.collect()
            await asyncio.sleep(0)


async def started(waits: Awaitable[object]) -> asyncio.Task[object]:
    task = asyncio.ensure_future(waits)
    await asyncio.sleep(0)
    return task


async def test_room_is_given_back_when_the_last_view_of_a_body_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAIT_S", 600)
    room = Bodies(100)
    body = await room.hold(80)
    body += b"x" * 80
    view = memoryview(body)
    waiting = await started(room.hold(30))
    del body
    gc.collect()
    await asyncio.sleep(0)
    assert (room.used, waiting.done()) == (80, False)
    view.release()
    del view
    await until(lambda: room.used == 30)
    assert await waiting == b""


async def test_it_may_be_let_go_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAIT_S", 600)
    room = Bodies(100)
    held = [await room.hold(80)]
    waiting = await started(room.hold(30))
    thread = threading.Thread(target=held.clear)
    thread.start()
    await until(waiting.done)
    thread.join()


async def test_the_first_is_first_and_who_gives_up_holds_nobody_up() -> None:
    room = Bodies(100)
    held = [await room.hold(60)]
    large, small = await started(room.hold(70)), await started(room.hold(30))
    assert not small.done(), "it came later, though there is room for it"
    large.cancel()
    await until(small.done)
    assert room.used == 90
    held.clear()
    del small
    await until(lambda: room.used == 0)


async def test_who_waits_too_long_is_told_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAIT_S", 0.01)
    room = Bodies(100)
    held = [await room.hold(60)]
    with pytest.raises(Unavailable) as refused:
        await room.hold(60)
    assert (refused.value.status, refused.value.code) == (503, "too_many_large_requests")
    assert refused.value.retry_after_s == 5
    assert room.used == 60
    held.clear()
    await until(lambda: room.used == 0)
    assert await room.hold(100) == b""


async def test_one_that_is_larger_than_all_has_all_for_itself() -> None:
    room = Bodies(100)
    held = [await room.hold(1000)]
    waiting = await started(room.hold(1))
    assert not waiting.done()
    held.clear()
    await until(waiting.done)


async def test_without_a_limit_nothing_waits() -> None:
    room = Bodies(0)
    held = [await room.hold(1 << 40) for _ in range(3)]
    assert len(held) == 3


async def test_large_texts_are_parsed_one_after_the_other() -> None:
    bodies, go, said = Bodies(0), threading.Event(), list[str]()

    def first() -> None:
        said.append("begun")
        go.wait(60)
        said.append("ended")

    parsing = [await started(bodies.parse(first)), await started(bodies.parse(lambda: said.append("second")))]
    await until(lambda: said == ["begun"])
    for _ in range(3):
        await asyncio.to_thread(lambda: None)  # whatever was handed to a thread before it has begun by now
    assert said == ["begun"]
    go.set()
    await asyncio.gather(*parsing)
    assert said == ["begun", "ended", "second"]
