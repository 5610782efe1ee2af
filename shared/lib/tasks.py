"""Pieces of asyncio: ending tasks so that they have really ended, waiting until a time, asking for many at once, working off
what is due for a while, and leaving the loop to others."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from time import monotonic
from typing import Any, Generic, TypeVar

T = TypeVar("T")

WORKED_S = 2.0
"""So long at a time is worked off what is due: whoever does that has more to do."""
_AGAIN_S = 1.0
_NO_LIMIT: AbstractAsyncContextManager[None] = nullcontext()


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancels tasks and returns once all are done; what they raise is dropped.

    It asks again and again: `asyncio.wait_for` of Python 3.11, which redis-py sends every command through, swallows a
    cancellation that comes at the moment its own wait is over, and a loop that was asked once would run for ever.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=_AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()


def within(timeout_s: float | None) -> AbstractAsyncContextManager[asyncio.Timeout | None]:
    """asyncio's time limit; without one, nothing of its cost, which is a few microseconds for each."""
    return _NO_LIMIT if timeout_s is None else asyncio.timeout(timeout_s)


class Alarm:
    """What an `asyncio.Event` in an `asyncio.timeout_at` does, for one task that sleeps again and again, in a sixth of the
    calls."""

    def __init__(self) -> None:
        self._sleeper: asyncio.Future[None] | None = None
        self._is_set = False

    def set(self) -> None:
        """Ends the sleep, or the next one before it begins."""
        self._is_set = True
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    async def sleep(self, until: float) -> None:
        """Until it is set, or this time of the loop's."""
        if not self._is_set:
            loop = asyncio.get_running_loop()
            self._sleeper = loop.create_future()
            timer = loop.call_at(until, self.set)
            try:
                await self._sleeper
            finally:
                timer.cancel()
                self._sleeper = None
        self._is_set = False


class MovingTimeout:
    """What `asyncio.timeout_at` does, for one task that waits again and again until a time that is moved on and on.

    Its one timer is only set anew when it has gone off too early, not at every wait. `close` it in the end.
    """

    class Rang(Exception):
        """The wait took until its time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due = self._until = 0.0
        self._waiting: asyncio.Task[Any] | None = None
        self._rang, self._cancelling = False, 0

    def start(self, until: float) -> None:
        """What this task does from here until it calls `stop` is cancelled then, in the loop's time. One wait at a time."""
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._cancelling, self._waiting, self._until = task.cancelling(), task, until
        if self._timer is None or until < self._due:
            self._set()

    def move(self, until: float) -> None:
        """Later than what it waits for now."""
        self._until = until

    def ring(self) -> None:
        """At once, if it is waited. Once: of a second cancellation it would seem that another caller wants it."""
        if self._waiting is not None and not self._rang:
            self._rang = True
            self._waiting.cancel()

    def stop(self, raised: type[BaseException] | None) -> None:
        """Raises Rang if what was `raised` meanwhile is the cancellation of this alone."""
        task, self._waiting = self._waiting, None
        if self._rang and task is not None:
            self._rang = False
            if task.uncancel() <= self._cancelling and raised is asyncio.CancelledError:
                raise MovingTimeout.Rang from None  # else another caller wants the task to end as well

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = self._until
        self._timer = self._loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._waiting is not None and self._loop.time() < self._until:
            self._set()
        else:
            self.ring()


class BatchedLookup(Generic[T]):
    """A look-up by key that asks for many keys at once: all that are wanted while the one before is under way.

    No caller gets an answer that was asked for before it came, so each reads what it has written.
    """

    def __init__(self, ask: Callable[[list[str]], Awaitable[Sequence[T]]], *, most: int) -> None:
        self._ask, self._most = ask, most
        self._wanted: dict[str, asyncio.Future[T]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def get(self, key: str) -> T:
        """Raises whatever asking does."""
        future = self._wanted.get(key)
        if future is None:
            future = self._wanted[key] = asyncio.get_running_loop().create_future()
            future.add_done_callback(_retrieve)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._run(), name="gathered")
        return await asyncio.shield(future)

    async def _run(self) -> None:
        while self._wanted:
            keys = list(self._wanted)[: self._most]
            futures = [self._wanted.pop(key) for key in keys]
            try:
                found: Sequence[Any] = await self._ask(keys)
            except Exception as error:
                for future in futures:
                    future.set_exception(error)
            else:
                for future, value in zip(futures, found, strict=True):
                    future.set_result(value)


def _retrieve(future: asyncio.Future[Any]) -> None:
    """All callers may be gone: the error is for none of them then."""
    if not future.cancelled():
        future.exception()


class Waiters:
    """What others wait for the next change of, each with a future of its own."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def waiter(self) -> asyncio.Future[None]:
        """A future that is done at the next change. Look first, then wait."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        return waiter

    def forget(self, waiter: asyncio.Future[None]) -> None:
        """Nobody waits for it any more."""
        self._waiters.discard(waiter)

    def _notify(self) -> None:
        if not self._waiters:
            return
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class FairTurns:
    """Lets so many go in each round of the event loop, or in each so many rounds, in the order in which they came: what is
    small need not wait until a thousand large things are done."""

    def __init__(self, each: int, *, rounds: int = 1) -> None:
        self._each = self._left = each
        self._rounds = self._to_go = rounds
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._counting = False
        self._held_until = self._free_until = 0.0

    def hold(self, for_s: float) -> None:
        """Of those who wait nobody goes for so long, and for as long after it another call has no effect: half of the time is
        theirs."""
        now = asyncio.get_running_loop().time()
        if now >= self._free_until:
            self._held_until, self._free_until = now + for_s, now + 2 * for_s

    async def turn(self) -> None:
        """Returns at once as long as no caller waits."""
        loop = asyncio.get_running_loop()
        if not self._counting:
            self._counting = True
            self._to_go = self._rounds
            loop.call_soon(self._next, loop)
        if self._left and not self._waiting:
            self._left -= 1
            return
        waiter = loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting and loop.time() < self._held_until:
            loop.call_at(self._held_until, self._next, loop)
            return
        self._to_go -= 1
        if not self._to_go:
            self._to_go, self._left = self._rounds, self._each
            while self._left and self._waiting:
                waiter = self._waiting.popleft()
                if not waiter.done():
                    waiter.set_result(None)
                    self._left -= 1
            self._counting = self._left < self._each
        if self._counting:
            loop.call_soon(self._next, loop)


async def work_off(
    due: Callable[[], Awaitable[Sequence[bytes]]], do: Callable[[str], Awaitable[bool]], *, at_once: int
) -> int:
    """Does one after the other of what is `due`, a page of which it is asked for, until there is none, none of a page could be
    done, or WORKED_S is over; what is begun then is done. `do` says whether it was, and takes it off the list. Returns how many
    were; raises what `do` raises."""
    until, turns, done = monotonic() + WORKED_S, asyncio.Semaphore(at_once), 0

    async def one(member: str) -> bool:
        async with turns:
            return monotonic() < until and await do(member)

    while monotonic() < until:
        members = await due()
        found = await asyncio.gather(*(one(member.decode()) for member in members), return_exceptions=True)
        for result in found:
            if isinstance(result, BaseException):
                raise result
        done += found.count(True)
        if True not in found:
            break
    return done
