"""What waits to be sent: who is told which replies, what goes first, and what becomes of it where the connection breaks."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError

from shared.lib.busy import BusyPauses
from shared.store.commands import pack
from shared.store.lasting import outbox as module
from shared.store.lasting.outbox import Asked, Awaited, Outbox
from tests.support.held import Held

FOREVER = float("inf")


class Busy(BusyPauses):
    """As long as a test says."""

    def __init__(self, pause_s: float = 0.0) -> None:
        super().__init__(0.0)
        self.pause_s = pause_s

    def next_s(self) -> float:
        return self.pause_s


class Bench:
    """An outbox, and the connection that it may send over. A command is a word, and its reply the same."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.busy = Busy(pause_s)
        self.outbox = Outbox(self.busy)
        self.outbox.begin()
        self.connect()

    def connect(self) -> None:
        """The next one."""
        self.held = Held(on_failure=self.outbox.wake.set)
        self.outbox.allow(self.held.wire, FOREVER)

    def ask(self, *words: bytes) -> asyncio.Future[Asked]:
        answer: asyncio.Future[Asked] = asyncio.get_running_loop().create_future()
        self.outbox.put(Awaited(b"".join(pack(word) for word in words), len(words), answer, None))
        return answer

    def answers(self, words: list[bytes]) -> None:
        self.held.says(b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))

    async def heard(self) -> list[bytes]:
        """What has been written, once something is."""
        async with asyncio.timeout(60):
            while not self.held.transport.written:  # noqa: ASYNC110 -- a transport tells nobody
                await asyncio.sleep(0)
        return [command[0] for command in self.held.heard()]


async def test_what_comes_while_something_is_under_way_goes_next_and_at_once() -> None:
    bench = Bench()
    first = bench.ask(b"a")
    assert await bench.heard() == [b"a"]
    others = [bench.ask(b"b", b"c"), bench.ask(b"d")]
    await asyncio.sleep(0)
    assert bench.held.transport.written == []
    bench.answers([b"a"])
    assert (await first)[0] == [b"a"]
    assert await bench.heard() == [b"b", b"c", b"d"]
    bench.answers([b"b", b"c", b"d"])
    assert [(await one)[0] for one in others] == [[b"b", b"c"], [b"d"]]
    assert not bench.outbox.wake.is_set()


async def test_who_does_not_want_it_any_more_has_nothing_sent_and_shifts_nobodys_replies() -> None:
    bench = Bench()
    first, under_way, last = bench.ask(b"a"), bench.ask(b"b"), bench.ask(b"c")
    unsent = bench.ask(b"d")
    unsent.cancel()
    assert await bench.heard() == [b"a", b"b", b"c"]
    under_way.cancel()
    bench.answers([b"a", b"b", b"c"])
    assert [(await one)[0] for one in (first, last)] == [[b"a"], [b"c"]]


# ---- what is only told


async def test_what_is_told_goes_before_whatever_is_sent_next() -> None:
    bench = Bench()
    bench.outbox.tell([("t1",)])
    bench.outbox.tell([("t2",), ("t3",)])
    asked = bench.ask(b"a")
    assert await bench.heard() == [b"t1", b"MULTI", b"t2", b"t3", b"EXEC", b"a"]
    assert bench.outbox.tells
    bench.answers([b"t1", b"OK", b"Q", b"Q"])
    bench.held.says(b"*2\r\n:1\r\n:2\r\n")
    bench.answers([b"a"])
    assert (await asked)[0] == [b"a"]
    assert not bench.outbox.tells
    await asyncio.sleep(module._TOLD_S)
    assert bench.held.transport.written == []  # not once more


@pytest.mark.parametrize("under_way", [True, False])
async def test_what_is_told_goes_by_itself_where_nothing_else_is_sent(
    under_way: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time may come while something is under way, after which nobody sends anything."""
    monkeypatch.setattr(module, "_TOLD_S", 0.001)
    bench = Bench()
    if under_way:
        bench.ask(b"a")
        assert await bench.heard() == [b"a"]
    bench.outbox.tell([("t",)])
    if under_way:
        async with asyncio.timeout(60):
            while bench.outbox._telling is not None:  # noqa: ASYNC110 -- until its time has come
                await asyncio.sleep(0.001)
        bench.answers([b"a"])
    assert await bench.heard() == [b"t"]
    bench.answers([b"t"])
    assert not bench.outbox.tells


async def test_what_was_told_can_be_taken_back_until_it_is_sent() -> None:
    bench = Bench()
    bench.outbox.tell([("t1",)])
    bench.outbox.tell([("t2",)])
    assert bench.outbox.take_back([]) == []
    assert bench.outbox.take_back([("t2",), ("t3",)]) == [("t2",)]
    bench.ask(b"a")
    assert await bench.heard() == [b"t1", b"a"]
    assert bench.outbox.take_back([("t1",)]) == []
    bench.held.hangs_up()
    assert bench.outbox.take_back([("t1",)]) == [("t1",)]  # it may have been done, and is not done again
    bench.outbox.wake.clear()  # as the task does, before it sees that the connection broke
    bench.connect()
    assert await bench.heard() == [b"a"]


# ---- where the connection breaks


@pytest.mark.parametrize("how", ["lost", "stale", "within a reply", "by the task"])
async def test_what_was_not_answered_is_first_in_line_on_the_next_connection(how: str) -> None:
    bench = Bench()
    bench.outbox.tell([("t",)])
    asked = [bench.ask(b"a", b"b"), bench.ask(b"c")]
    if how == "by the task":
        bench.outbox.block()
        sending = asyncio.ensure_future(bench.outbox.send(bench.held.wire))
    if how == "stale":
        await bench.held.connection.place.move()
        await asyncio.wait_for(bench.outbox.wake.wait(), 60)
    else:
        assert await bench.heard() == [b"t", b"a", b"b", b"c"]
        asked += [bench.ask(b"d"), bench.ask(b"e")]
        asked[3].cancel()
        if how == "within a reply":
            bench.answers([b"t", b"a"])
            bench.held.says(b"$1\r\nb")
        bench.held.hangs_up()
    if how == "by the task":
        with pytest.raises(ConnectionError):
            await sending
    assert bench.outbox.wake.is_set()
    assert bench.outbox.tells
    bench.outbox.wake.clear()  # as the task does, before it sees that
    await bench.outbox.landed()
    bench.connect()
    words = await bench.heard()
    assert words == [b"t", b"a", b"b", b"c", *([] if how == "stale" else [b"d"])]
    bench.answers(words)
    told = [(await one)[0] for one in asked if not one.cancelled()]
    assert [word for words in told for word in words] == [*words[1:]]


async def test_until_its_time_is_over_it_may_be_sent_without_the_task() -> None:
    bench = Bench()
    bench.outbox.allow(bench.held.wire, asyncio.get_running_loop().time())
    asked = bench.ask(b"a")
    await asyncio.wait_for(bench.outbox.wake.wait(), 60)
    assert bench.held.transport.written == []
    sending = asyncio.ensure_future(bench.outbox.send(bench.held.wire))
    assert await bench.heard() == [b"a"]
    bench.answers([b"a"])
    await sending
    assert (await asked)[0] == [b"a"]


async def test_the_task_waits_for_what_is_under_way() -> None:
    bench = Bench()
    first = bench.ask(b"a")
    await bench.heard()
    bench.outbox.block()
    landing = asyncio.ensure_future(bench.outbox.landed())
    second = bench.ask(b"b")
    await asyncio.sleep(0)
    assert not landing.done()
    bench.answers([b"a"])
    await asyncio.wait_for(landing, 60)
    await first
    assert bench.held.transport.written == []  # that is the task's now
    sending = asyncio.ensure_future(bench.outbox.send(bench.held.wire))
    assert await bench.heard() == [b"b"]
    bench.answers([b"b"])
    await sending
    assert (await second)[0] == [b"b"]


async def test_who_closes_it_cancels_all_that_waits_and_what_is_said_then_is_nothing() -> None:
    bench = Bench()
    bench.outbox.tell([("t",)])
    asked = [bench.ask(b"a")]
    assert await bench.heard() == [b"t", b"a"]
    asked.append(bench.ask(b"b"))
    bench.outbox.tell([("u",)])
    bench.outbox.close()
    bench.answers([b"t", b"a"])
    assert all(one.cancelled() for one in asked)
    await asyncio.sleep(module._TOLD_S)
    assert bench.held.transport.written == []


# ---- where the process is busy


async def test_in_a_pause_is_gathered_what_comes() -> None:
    bench = Bench(600.0)
    first = bench.ask(b"a")
    assert await bench.heard() == [b"a"]
    bench.answers([b"a"])
    await first
    others = [bench.ask(b"b"), bench.ask(b"c")]
    for _ in range(3):
        await asyncio.sleep(0)
    assert bench.held.transport.written == []
    bench.busy.pause_s = 0.0
    assert bench.outbox._rest is not None
    bench.outbox._rest.cancel()
    bench.outbox._send()  # its time is over
    assert await bench.heard() == [b"b", b"c"]
    bench.answers([b"b", b"c"])
    assert [(await one)[0] for one in others] == [[b"b"], [b"c"]]


class Eager:
    """Whoever asks for the next as soon as it is told."""

    owner = None
    replies = 1

    def __init__(self, outbox: Outbox, number: int, told: list[Any], most: int) -> None:
        self.packed = pack(b"%d" % number)
        self._outbox, self._number, self._told, self._most = outbox, number, told, most

    def done(self) -> bool:
        return False

    def set_result(self, asked: Asked, /) -> None:
        self._told.append((self._number, asked[0]))
        if self._number < self._most:
            self._outbox.put(Eager(self._outbox, self._number + 1, self._told, self._most))

    def set_exception(self, error: Exception, /) -> None:
        raise error

    def cancel(self) -> None:
        raise AssertionError


async def test_who_asks_again_as_it_is_told_is_told_its_own_be_there_a_pause_or_not() -> None:
    """A timer that was forgotten would send while replies are under way, and they would be others'."""
    bench = Bench(0.0005)
    told: list[tuple[int, list[Any]]] = []
    bench.outbox.put(Eager(bench.outbox, 0, told, 50))
    beside: list[tuple[bytes, asyncio.Future[Asked]]] = []
    async with asyncio.timeout(60):
        while len(told) < 51 or bench.outbox._sent is not None or bench.outbox.pending:
            if written := bench.held.heard():
                if len(beside) < 50:
                    beside.append((b"x%d" % len(beside), bench.ask(b"x%d" % len(beside))))
                await asyncio.sleep(0.001)  # longer than the pause
                bench.answers([command[0] for command in written])
            await asyncio.sleep(0)
    assert told == [(number, [b"%d" % number]) for number in range(51)]
    assert [(await one)[0] for _, one in beside] == [[word] for word, _ in beside]


# ---- whatever happens

STEPS = ("ask", "ask", "ask", "tell", "cancel", "answer", "answer", "answer", "turn", "break", "by the task", "pause")


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5)), max_size=60))
def test_whatever_happens_each_is_told_its_own_replies_once_and_in_order(steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        bench = Bench()
        asked: list[tuple[list[bytes], asyncio.Future[Asked]]] = []
        told: list[bytes] = []
        done: Counter[bytes] = Counter()
        order: list[bytes] = []
        unsaid = b""
        sending: asyncio.Future[None] | None = None

        def hear() -> None:
            nonlocal unsaid
            for (word,) in bench.held.heard():
                done[word] += 1
                order.append(word)
                unsaid += b"$%d\r\n%b\r\n" % (len(word), word)

        async def turn() -> None:
            nonlocal sending, unsaid
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if sending is not None and sending.done():
                sending.exception()
                sending = None
            hear()
            if sending is None and bench.outbox.wake.is_set():  # as the task does
                bench.outbox.wake.clear()
                if bench.held.wire.failure is not None:
                    unsaid = b""
                    bench.connect()
                elif bench.outbox._sent is None:
                    bench.outbox.block()
                    sending = asyncio.ensure_future(bench.outbox.send(bench.held.wire))
                else:
                    bench.outbox.wake.set()
            elif sending is None:
                bench.outbox.allow(bench.held.wire, FOREVER)

        async def step(what: str, count: int) -> None:
            nonlocal unsaid
            if what == "ask":
                words = [b"a%d.%d" % (len(asked), number) for number in range(1 + count % 3)]
                asked.append((words, bench.ask(*words)))
            elif what == "tell":
                told.append(b"t%d" % len(told))
                bench.outbox.tell([(told[-1],)])
            elif what == "cancel" and asked:
                asked[-1 - count % len(asked)][1].cancel()
            elif what == "answer":
                hear()
                some, unsaid = unsaid[: 7 * count], unsaid[7 * count :]
                bench.held.says(some)
            elif what == "break":
                hear()
                bench.held.hangs_up()
            elif what == "by the task":
                bench.outbox.wake.set()
            elif what == "pause":
                bench.busy.pause_s = 0.0005 if count == 1 else 0.0
            await turn()

        for what, count in steps:
            await step(what, count)
        bench.busy.pause_s = 0.0
        async with asyncio.timeout(60):
            while bench.outbox.tells or bench.outbox.pending or bench.outbox._sent is not None or sending is not None:
                await step("answer", 100)
                await asyncio.sleep(0.0002)
        for words, answer in asked:
            assert answer.done()
            if not answer.cancelled():
                assert (await answer)[0] == words
        assert all(done[word] for word in told)
        first_time = [word for number, word in enumerate(order) if word not in order[:number]]
        for kind in (b"a", b"t"):
            mine = [[int(part) for part in word[1:].split(b".")] for word in first_time if word[:1] == kind]
            assert mine == sorted(mine)

    asyncio.run(run())
