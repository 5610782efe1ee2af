"""What a writer has appended that its server may still forget, so that it can be written again: same ids, same bytes.

Hidden here: what is kept and for how long. An entry is let go once the server is known to have it for good: it was
confirmed (confirm.py), and that is 10 s ago, because a failover goes to a replica that may be seconds behind, and a power
cut takes what was not fsynced. What would be too much is let go before, the oldest first; then a log that ends below it
cannot be mended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from shared.log.entry import SEAL

AGE_S = 10.0
"""How old a confirmed entry must be."""
ATTEMPT_BYTES = 8 * 1024 * 1024
LINE_BYTES = 64 * 1024
"""Of a line of a batch, many of which run at once: what is lost of it is asked again."""
WORKER_BYTES = 256 * 1024 * 1024
_WRITTEN_AT_ONCE, _WRITTEN_BYTES = 500, 1024 * 1024
_GROUP_BYTES, _COMMAND_BYTES = 280, 48
"""What a group and a command take beside the bytes to send, in CPython: for small chunks that is more than they are."""


_Group = tuple[list[bytes], int, float, int]
"""Entries that were acknowledged together: packed commands, the last one's number, when that was, and the memory for
it all. Plain, because there is one for each append."""


class Budget:
    """Bytes of memory that all attempts of a process keep, and may keep."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int = WORKER_BYTES) -> None:
        self.limit, self.used = limit, 0


class Head(NamedTuple):
    """What a log begins with, up to its attempt: what makes the commands for it, as words, the attempt's the last one, and how
    many bytes that needs. They are made when they are to be sent, which almost none ever is."""

    commands: Callable[[], list[tuple[bytes, ...]]]
    size: int


class Retained:
    """Of one attempt. Numbers are those of its chunks, times those of the loop's clock, in seconds.

    `head` is there as long as that is kept, too.
    `floor` is the number of the last chunk that was let go, 0 if none was.
    """

    __slots__ = ("_budget", "_groups", "_limit", "_size", "floor", "head", "since")

    def __init__(self, budget: Budget, head: Head, since: float, *, limit: int = ATTEMPT_BYTES) -> None:
        self._budget, self._limit = budget, limit
        self._groups: deque[_Group] = deque()
        self._size = head.size
        self.floor = 0
        self.head: Head | None = head
        self.since = since
        budget.used += head.size
        if head.size > limit or budget.used > budget.limit:
            self._shrink()

    def __bool__(self) -> bool:
        return bool(self._groups) or self.head is not None

    def add(self, commands: list[bytes], last: int, now: float) -> None:
        """Takes in what was acknowledged just now: the chunks up to number `last`."""
        count = len(commands)
        size = len(commands[0]) if count == 1 else sum(map(len, commands))
        size += _GROUP_BYTES + count * _COMMAND_BYTES
        self._groups.append((commands, last, now, size))
        budget = self._budget
        self._size += size
        budget.used += size
        if self._size > self._limit or budget.used > budget.limit:
            self._shrink()

    def release(self, until: float) -> None:
        """Lets go of what was acknowledged up to this time."""
        if self.head is not None and self.since <= until:
            self._drop_head()
        while self._groups and self._groups[0][2] <= until:
            self._drop_oldest()

    def clear(self) -> None:
        """Lets go of all of it."""
        self.release(float("inf"))

    def after(self, number: int) -> Iterator[bytes]:
        """The commands of the chunks above this number. All of them are there if that is not below `floor`."""
        for commands, last, _, _ in self._groups:
            if last > number:
                yield from commands[max(0, len(commands) - (last - number)) :]

    def _shrink(self) -> None:
        while self._size > self._limit or self._budget.used > self._budget.limit:
            if self.head is not None:
                self._drop_head()
            elif self._groups:
                self._drop_oldest()
            else:
                return

    def _drop_head(self) -> None:
        assert self.head is not None
        self._count(-self.head.size)
        self.head = None

    def _drop_oldest(self) -> None:
        _, self.floor, _, size = self._groups.popleft()
        self._count(-size)

    def _count(self, size: int) -> None:
        self._size += size
        self._budget.used += size


def portions(commands: Sequence[bytes]) -> Iterator[list[bytes]]:
    """So many at a time that a transaction that writes them stays short."""
    some: list[bytes] = []
    size = 0
    for command in commands:
        if some and (len(some) >= _WRITTEN_AT_ONCE or size + len(command) > _WRITTEN_BYTES):
            yield some
            some, size = [], 0
        some.append(command)
        size += len(command)
    if some:
        yield some


def is_unsealed(told: Sequence[Any]) -> bool:
    """Whether a log that was looked at (appender.py) has no outcome."""
    last = told[0]
    return not (isinstance(last, list) and last and last[0][0] == str(SEAL).encode())
