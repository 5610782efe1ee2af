"""Many logs followed at once, by the bell and by a blocking read: nothing is missed and nothing comes twice, whatever ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from shared.errors import Damaged, Gone
from shared.lib.tasks import cancel
from shared.log import following as module
from shared.log.appender import Appender
from shared.log.decoding import Archived, decode
from shared.log.entry import BEGIN, VERSION, Chunk, Entry, follows
from shared.log.envelope import Envelopes
from shared.log.following import Following
from shared.log.streamlog import StreamLog
from shared.log.tracking import Bell, Tracker
from shared.log.writer import Writer
from shared.store.lasting.wire import Answered
from shared.store.redis import ArqRedis, RedisError, connect
from tests.harness.records import attempt_with, header_with
from tests.harness.store import Store
from tests.support.held import soon
from tests.support.names import keys
from tests.support.pair import Pair
from tests.support.server import KINDS, Server, hung
from tests.support.tracked import bells, readers, until_alone, until_tracked_by
from tests.support.until import until

UNTRACKED = "redis://plain:pw@"


class Log:
    """One that is followed, and its writer."""

    def __init__(self, writer: Writer) -> None:
        self.id, self.writer = writer.generation_id, writer
        self.position, self.shapes, self.page = BEGIN, Envelopes(), 100
        self.words: list[int] = []
        self.problem: Damaged | None = None
        self.said = 0

    def take(self, entries: list[Entry]) -> None:
        for entry in entries:
            assert follows(self.position, entry.position)
            self.position = entry.position
            self.words += [int(word) for word in re.findall(rb"w(\d+)", entry.data)]

    @property
    def whole(self) -> bool:
        return self.words == list(range(self.said))


class Lab:
    def __init__(self, redis: ArqRedis, appender: Appender, following: Following[Log]) -> None:
        self.redis, self.appender, self.following = redis, appender, following
        self.log = StreamLog(redis, retention_s=60, safety_s=600)
        self.failures = 0
        self.told: list[Log] = []
        """Those whose news came by the task, in turn."""

    async def new(self, *, words: int = 0, page: int = 100) -> Log:
        generation_id = f"chatcmpl-{uuid.uuid4().hex}"
        header = {"v": VERSION, "id": generation_id, "owner": "a", "created_at_ms": 1, "model": "m"}
        await self.log.create(header_with(header), b"{}")
        writer, _, _ = await self.log.claim(self.appender, generation_id, 1, attempt_with({"at_ms": 1}))
        log = Log(writer)
        log.page = page
        if words:
            await self.say(log, words)
        return log

    async def say(self, log: Log, count: int = 1) -> None:
        await log.writer.append([Chunk(b'{"x":"w%d"}' % (log.said + i)) for i in range(count)])
        log.said += count

    async def read(self) -> None:
        try:
            found = await self.following.news()
        except (RedisError, OSError):
            self.failures += 1
            await asyncio.sleep(0.02)
            return
        for log, entries in found:
            self.told.append(log)
            if isinstance(entries, Damaged):
                log.problem = entries
            else:
                log.take(entries)

    async def until(self, ready: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not ready():
                await self.read()

    async def whole(self, *logs: Log) -> None:
        await self.until(lambda: all(log.whole for log in logs))


@asynccontextmanager
async def open_lab(url: str, reading_url: str = "", *, timeout_s: float = 5.0, **options: Any) -> AsyncIterator[Lab]:
    async with AsyncExitStack() as stack:
        redis = connect(url, max_connections=10)
        reading = connect(reading_url or url, max_connections=4, timeout_s=timeout_s)
        for client in (redis, reading):
            stack.push_async_callback(client.aclose, close_connection_pool=True)
        appender = await stack.enter_async_context(Appender(redis))
        following: Following[Log] = Following(StreamLog(redis, retention_s=60, safety_s=600), reading, **options)
        yield Lab(redis, appender, await stack.enter_async_context(following))


@pytest.fixture
def client(server: Server) -> Iterator[Store]:
    with server.client() as client:
        client.flushall()
        until_alone(client)
        client.execute_command("ACL", "SETUSER", "plain", "reset", "on", ">pw", "~*", "&*", "+@all", "-client|tracking")
        yield client


def taken(log: Log, entries: list[Entry]) -> bool:
    log.take(entries)
    return True


WAYS: dict[str, dict[str, Any]] = {
    "the bell": {},
    "the bell, at once": {"take": taken},
}


@pytest.fixture(params=[*WAYS, "a blocking read"])
async def lab(request: pytest.FixtureRequest, server: Server, client: Store) -> AsyncIterator[Lab]:
    plain = server.url.replace("redis://", UNTRACKED) if request.param == "a blocking read" else ""
    async with open_lab(server.url, plain, **WAYS.get(request.param, {})) as lab:
        yield lab


@pytest.fixture(params=["the bell", "the bell, at once"])
async def by_bell(request: pytest.FixtureRequest, server: Server, client: Store) -> AsyncIterator[Lab]:
    async with open_lab(server.url, **WAYS[request.param]) as lab:
        yield lab


async def test_a_rest_ends_where_somebody_waits_for_the_first_word(by_bell: Lab) -> None:
    speaking, silent = await by_bell.new(words=1), await by_bell.new()
    for log in (speaking, silent):
        await by_bell.following.add(log)
    await by_bell.until(lambda: speaking.whole and silent.position > BEGIN)
    resting = asyncio.create_task(by_bell.following.rest(600, [silent]))
    await by_bell.say(speaking)
    await bell_of(by_bell).hear()
    assert not resting.done()
    await by_bell.say(silent)
    await asyncio.wait_for(resting, 30)
    await by_bell.whole(speaking, silent)
    await asyncio.wait_for(by_bell.following.rest(0.001, [silent]), 30)
    await by_bell.say(silent)
    await by_bell.whole(silent)


def bell_of(lab: Lab) -> Bell:
    assert lab.following._tracker is not None
    return lab.following._tracker


async def test_where_no_bell_tells_of_the_first_word_it_is_looked_for_at_once(server: Server, client: Store) -> None:
    async with open_lab(server.url, server.url.replace("redis://", UNTRACKED)) as lab:
        log = await lab.new()
        await lab.following.add(log)
        await lab.until(lambda: log.position > BEGIN)
        await asyncio.wait_for(lab.following.rest(600, [log]), 30)


async def test_every_log_is_told_whole(lab: Lab) -> None:
    logs = [await lab.new() for _ in range(40)]
    for log in logs:
        await lab.following.add(log)
    for _ in range(5):
        for number, log in enumerate(logs):
            await lab.say(log, 1 + number % 3)
        await lab.read()
    await lab.whole(*logs)
    assert lab.failures == 0


async def test_few_logs_many_and_none_in_turn(lab: Lab) -> None:
    logs = [await lab.new() for _ in range(6)]
    for count in (1, 2, 3, 6, 2, 1, 5, 0, 1, 4):
        for log in logs:
            lab.following.drop(log)
        for log in logs[:count]:
            await lab.say(log)
            await lab.following.add(log)
        await lab.whole(*logs[:count])
        for log in logs[:count]:
            await lab.say(log, 2)
        await lab.whole(*logs[:count])
        assert await lab.following.look(logs[:count]) == {}
    assert lab.failures == 0


async def test_a_log_that_joins_is_told_without_a_task(server: Server, client: Store) -> None:
    """Also where nothing was followed for a while: its first read goes out as it joins, and it rings from then on."""
    async with open_lab(server.url, **WAYS["the bell, at once"]) as lab:
        first, second = await lab.new(words=1), await lab.new(words=1)
        assert lab.following.join(first)
        await lab.whole(first)
        lab.following.drop(first)
        lab.told.clear()
        waiting = asyncio.ensure_future(lab.following.news())
        await until(lambda: lab.following._is_idle)
        assert lab.following.join(second)
        await until(lambda: second.whole)
        await lab.say(second)
        await until(lambda: second.whole)
        assert not waiting.done()
        await cancel(waiting)


async def test_a_bell_that_went_while_nobody_listened_is_no_failure(server: Server, client: Store) -> None:
    async with open_lab(server.url) as lab:
        first, second = await lab.new(words=1), await lab.new(words=1)
        await lab.following.add(first)
        await lab.whole(first)
        lab.following.drop(first)
        KILLS["both"](client)
        tracker = lab.following._tracker
        await lab.until(lambda: tracker is not None and tracker.failed)
        await lab.say(second)
        await lab.following.add(second)
        await lab.whole(second)
        assert lab.failures == 0


async def test_a_reader_that_is_closed_while_nobody_listens_costs_nobody_an_error(
    server: Server, client: Store
) -> None:
    """As a server's `timeout` closes what is idle, but for what is subscribed."""
    async with open_lab(server.url) as lab:
        first, second = await lab.new(words=1), await lab.new(words=1)
        await lab.following.add(first)
        await lab.whole(first)
        lab.following.drop(first)
        waiting = asyncio.ensure_future(lab.following.news())
        await until(lambda: lab.following._is_idle)
        for number in readers(client):
            client.client_kill_filter(_id=number)
        assert await asyncio.wait_for(waiting, 60) == []
        assert lab.following.join(second)
        await lab.whole(second)
        assert lab.failures == 0


async def test_what_comes_is_told_while_it_is_waited_for(lab: Lab) -> None:
    log, added = await lab.new(), await lab.new(words=3)
    await lab.following.add(log)
    reading = asyncio.ensure_future(lab.whole(log, added))
    for _ in range(20):
        await lab.say(log)
        await asyncio.sleep(0)
    await lab.following.add(added)
    await lab.say(added)
    await reading


async def test_more_than_a_page_is_told_although_nothing_is_written_any_more(lab: Lab) -> None:
    logs = [await lab.new(words=95, page=10), await lab.new(words=20, page=10), await lab.new(words=1)]
    for log in logs:
        await lab.following.add(log)
    await lab.whole(*logs)


async def test_what_is_dropped_is_not_told_and_goes_on_when_it_is_added_again(lab: Lab) -> None:
    dropped, other = await lab.new(words=1), await lab.new(words=1)
    for log in (dropped, other):
        await lab.following.add(log)
    await lab.whole(dropped, other)
    lab.following.drop(dropped)
    assert lab.following.logs == [other]
    await lab.say(dropped)
    await lab.say(other)
    await lab.whole(other)
    assert not dropped.whole
    await lab.following.add(dropped)
    await lab.whole(dropped)


async def test_a_log_of_the_same_name_is_told_from_its_own_place(lab: Lab) -> None:
    """A viewer left, and another one came while the log was being read."""
    first = await lab.new(words=5)
    await lab.following.add(first)
    reading = asyncio.ensure_future(lab.following.news())
    await asyncio.sleep(0)
    lab.following.drop(first)
    second = Log(first.writer)
    second.said = 5
    await lab.following.add(second)
    for log, entries in await reading:
        assert log is second
        assert not isinstance(entries, Damaged)
        log.take(entries)
    await lab.whole(second)
    assert first.words == []


async def test_a_missing_entry_is_damage(lab: Lab, client: Store) -> None:
    log = await lab.new(words=1)
    await lab.following.add(log)
    await lab.whole(log)
    client.xadd(keys.log(log.id), {"c": b'"w9"'}, id="1-5")
    await lab.until(lambda: log.problem)
    assert log.whole


async def test_what_is_wrong_with_quiet_logs_is_found(lab: Lab, client: Store) -> None:
    well, gone, deleted, behind = [await lab.new(words=3) for _ in range(4)]
    logs = (well, gone, deleted, behind)
    for log in logs:
        await lab.following.add(log)
    await lab.whole(*logs)
    client.delete(keys.log(gone.id))
    await lab.log.delete(deleted.id, "a")
    client.xdel(keys.log(behind.id), "1-3")
    problems = await lab.following.look(logs)
    assert {log for log in logs if log.id in problems} == {gone, deleted, behind}
    assert isinstance(problems[gone.id], Gone)
    assert isinstance(found := problems[deleted.id], Gone)
    assert found.deleted
    assert isinstance(problems[behind.id], Damaged)
    assert problems.keys() == (await lab.log.check({log.id: log.position for log in logs})).keys()


async def test_without_logs_nothing_is_wrong(lab: Lab) -> None:
    assert await lab.following.look([]) == {}
    log = await lab.new(words=1)
    await lab.following.add(log)
    await lab.whole(log)
    lab.following.drop(log)
    assert await lab.following.look([]) == {}


# ---- by the bell


def kill(client: Store, numbers: list[str]) -> None:
    for number in numbers:
        client.client_kill_filter(_id=number)


KILLS: dict[str, Callable[[Store], None]] = {
    "the bell": lambda client: kill(client, bells(client)),
    "the reader": lambda client: kill(client, readers(client)),
    "both": lambda client: kill(client, bells(client) + readers(client)),
}


@pytest.mark.parametrize("killed", KILLS)
async def test_a_connection_that_was_killed_costs_nothing(by_bell: Lab, client: Store, killed: str) -> None:
    logs = [await by_bell.new(words=1) for _ in range(5)]
    for log in logs:
        await by_bell.following.add(log)
    await by_bell.whole(*logs)
    for round_ in range(3):
        KILLS[killed](client)
        await by_bell.say(logs[0])
        async with asyncio.timeout(60):
            while by_bell.failures <= round_:
                await by_bell.read()
        for log in logs:
            await by_bell.say(log)
        await by_bell.whole(*logs)
    await until_tracked_by(client, 1)
    assert len(bells(client)) == 1


async def test_while_connections_are_killed_all_the_time_nothing_is_missed(by_bell: Lab, client: Store) -> None:
    logs = [await by_bell.new() for _ in range(10)]
    for log in logs:
        await by_bell.following.add(log)

    async def write() -> None:
        for number in range(40):
            for log in logs:
                await by_bell.say(log, 2)
            if number % 4 == 0:
                await asyncio.to_thread(KILLS[list(KILLS)[number // 4 % 3]], client)

    writing = asyncio.ensure_future(write())
    await by_bell.until(lambda: writing.done() and all(log.whole for log in logs))
    assert all(log.said == 80 for log in logs)


async def test_after_a_flush_what_is_made_anew_is_told(by_bell: Lab, client: Store) -> None:
    gone = await by_bell.new(words=2)
    await by_bell.following.add(gone)
    await by_bell.whole(gone)
    client.flushall()
    anew = await by_bell.new(words=2)
    await by_bell.following.add(anew)
    await by_bell.whole(anew)
    await by_bell.say(anew)
    await by_bell.whole(anew)
    assert isinstance((await by_bell.following.look([gone, anew]))[gone.id], Gone)


async def test_a_log_that_expires_is_found_gone(by_bell: Lab, client: Store) -> None:
    log = await by_bell.new(words=2)
    await by_bell.following.add(log)
    await by_bell.whole(log)
    client.pexpire(keys.log(log.id), 50)
    problems: dict[str, Any] = {}
    async with asyncio.timeout(20):
        while not problems:
            problems = await by_bell.following.look([log])
    assert isinstance(problems[log.id], Gone)


async def test_a_bell_that_does_not_ring_is_found_out(by_bell: Lab, client: Store) -> None:
    """What stands in front of a server may take every command and pass no message on."""
    log = await by_bell.new(words=1)
    await by_bell.following.add(log)
    await by_bell.whole(log)
    tracker: Any = bell_of(by_bell)
    tracker._bell._told = lambda replies: tracker._take_all([told for told in replies if told[0] != b"message"])
    await by_bell.say(log, 2)
    with structlog.testing.capture_logs() as lines:
        assert await by_bell.following.look([log]) == {}
        await by_bell.whole(log)
        await by_bell.say(log)
        await by_bell.whole(log)
    assert ["blocking read" in line["event"] for line in lines] == [True]
    await until_tracked_by(client, 0)


async def test_a_bell_that_is_late_is_not_taken_for_one_that_does_not_ring(by_bell: Lab, client: Store) -> None:
    log = await by_bell.new(words=1)
    await by_bell.following.add(log)
    await by_bell.whole(log)
    for _ in range(50):
        client.xadd(keys.log(log.id), {"c": b'"w%d"' % log.said}, id=f"1-{log.said + 1}")
        log.said += 1
        assert await by_bell.following.look([log]) == {}
        await by_bell.whole(log)
    assert len(readers(client)) == 1


async def test_a_server_that_stopped_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANSWER_S", 0.2)
    with Server(tmp_path) as server, server.client() as client:
        async with open_lab(server.url) as lab:
            log = await lab.new(words=1)
            await lab.following.add(log)
            await lab.whole(log)
            with hung(client), pytest.raises((RedisError, OSError)):
                await lab.following.look([log])
            await lab.say(log, 3)
            await lab.whole(log)


@pytest.mark.parametrize("kind", KINDS)
async def test_where_the_master_is_another_one_it_is_followed_there(kind: str, tmp_path: Path) -> None:
    """The old one stays, and connections to it. What is written at the new one comes from there."""
    with Pair(tmp_path, kind) as pair:
        async with open_lab(pair.url) as lab:
            log = await lab.new(words=2)
            await lab.following.add(log)
            await lab.whole(log)
            pair.fail_over()
            async with asyncio.timeout(60):
                while readers(pair.a) or not readers(pair.b):
                    await lab.read()
                    if lab.following._tracker is not None:
                        try:
                            await lab.following.look([log])
                        except (RedisError, OSError):
                            await asyncio.sleep(0.02)
            pair.b.xadd(keys.log(log.id), {"c": b'"w2"'}, id="1-3")
            log.said += 1
            await lab.whole(log)


async def test_what_may_be_tracked_again_is(server: Server, client: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0.0)
    with structlog.testing.capture_logs() as lines:
        async with open_lab(server.url, server.url.replace("redis://", UNTRACKED)) as lab:
            log = await lab.new(words=1)
            await lab.following.add(log)
            await lab.whole(log)
            assert not readers(client)
            client.execute_command("ACL", "SETUSER", "plain", "+client|tracking")
            await lab.say(log)
            await lab.until(lambda: readers(client))
            await lab.say(log)
            await lab.whole(log)
    assert [line["event"] for line in lines if "track" in line["event"]] == [
        "redis does not track keys for this user: one blocking read is used"
    ]


# ---- at once: as the bell rings, without the task that follows


class AtOnce:
    """A lab whose task is woken by nothing but what it is for; what is read without it can be held up on its way."""

    def __init__(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lab, self.asked, self.refusing = lab, 0, False
        self.holding = False
        self.held: list[Callable[[], object]] = []
        ask = Tracker.ask_at_once

        def ask_at_once(tracker: Tracker, packed: bytes, answered: Answered) -> bool:
            def told(replies: list[Any] | Exception) -> None:
                if self.holding:
                    self.held.append(lambda: answered(replies))
                else:
                    answered(replies)

            self.asked += 1
            return ask(tracker, packed, told)

        monkeypatch.setattr(Tracker, "ask_at_once", ask_at_once)
        lab.following._take = self._take

    def _take(self, log: Log, entries: list[Entry]) -> bool:
        if not self.refusing:
            log.take(entries)
        return not self.refusing

    async def idle(self) -> None:
        """Until the task waits for the bell alone."""
        async with asyncio.timeout(60):
            while not self.lab.following._is_idle or self.lab.following._woken:  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0)

    async def until(self, ready: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not ready():  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.001)

    async def hold(self, log: Log) -> Callable[[], object]:
        """Something is said in this log, and read at once, and the answer does not come before the result is called."""
        await self.idle()
        self.holding = True
        while not self.held:  # the task may be about to look around by itself, and has it then
            await self.lab.say(log)
            await self.until(lambda: self.held or log.whole)
        self.holding = False
        return self.held.pop()


@pytest.fixture
async def at_once(server: Server, client: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AtOnce]:
    monkeypatch.setattr(module, "_TICK_S", 3600.0)
    async with open_lab(server.url) as lab:
        bench = AtOnce(lab, monkeypatch)

        async def follow() -> None:
            while True:
                await lab.read()

        following = asyncio.create_task(follow())
        yield bench
        await cancel(following)
        assert lab.failures == 0


async def followed(bench: AtOnce, *logs: Log) -> None:
    for log in logs:
        await bench.lab.following.add(log)
    await bench.until(lambda: all(log.whole and log.position > BEGIN for log in logs))
    await bench.idle()
    bench.lab.told.clear()


async def test_what_the_bell_rings_for_is_told_without_the_task(at_once: AtOnce) -> None:
    logs = [await at_once.lab.new() for _ in range(6)]
    await followed(at_once, *logs)
    for number in range(30):
        await at_once.lab.say(logs[number % 6], 1 + number % 3)
        await at_once.until(lambda: all(log.whole for log in logs))
    assert at_once.lab.told == []
    assert at_once.asked >= 30


async def test_more_than_a_page_is_read_on_by_the_task(at_once: AtOnce) -> None:
    log, other = await at_once.lab.new(page=10), await at_once.lab.new()
    await followed(at_once, log, other)
    await at_once.lab.say(log, 95)
    await at_once.until(lambda: log.whole)
    assert at_once.asked == 1
    assert at_once.lab.told == [log] * 9
    await at_once.idle()
    await at_once.lab.say(log, 2)
    await at_once.until(lambda: log.whole)
    assert at_once.asked == 2


async def test_what_is_not_taken_is_told_by_the_task_once(at_once: AtOnce) -> None:
    log, other = await at_once.lab.new(), await at_once.lab.new()
    await followed(at_once, log, other)
    at_once.refusing = True
    for _ in range(5):
        await at_once.lab.say(log, 2)
        await at_once.until(lambda: log.whole)
        await at_once.idle()
    assert at_once.lab.told == [log] * 5


async def test_what_comes_while_something_is_read_is_read_after_it(at_once: AtOnce) -> None:
    log, other, added = await at_once.lab.new(), await at_once.lab.new(), await at_once.lab.new(words=3)
    await followed(at_once, log, other)
    answer = await at_once.hold(log)
    await at_once.lab.say(log)
    await at_once.lab.say(other)
    await at_once.lab.following.add(added)
    await bell_of(at_once.lab).hear()
    assert not any(one.whole for one in (other, added))
    answer()
    await at_once.until(lambda: log.whole and other.whole and added.whole)


@pytest.mark.parametrize("taking", [True, False])
async def test_what_was_dropped_while_it_was_read_is_not_told(at_once: AtOnce, taking: bool) -> None:
    at_once.refusing = not taking
    gone, other = await at_once.lab.new(), await at_once.lab.new()
    await followed(at_once, gone, other)
    answer = await at_once.hold(gone)
    if taking:
        at_once.lab.following.drop(gone)
        answer()
    else:
        answer()  # and the task is about to have it
        at_once.lab.following.drop(gone)
    await at_once.lab.say(other)
    await at_once.until(lambda: other.whole)
    assert gone.words == []
    assert gone not in at_once.lab.told


async def test_a_log_of_the_same_name_has_nothing_of_what_was_read_for_the_one_before(at_once: AtOnce) -> None:
    first, other = await at_once.lab.new(), await at_once.lab.new()
    await followed(at_once, first, other)
    answer = await at_once.hold(first)
    at_once.lab.following.drop(first)
    second = Log(first.writer)
    second.said = first.said
    await at_once.lab.following.add(second)
    answer()
    await at_once.until(lambda: second.whole)
    assert first.words == []


async def test_a_missing_entry_that_is_read_at_once_is_damage_and_no_others(at_once: AtOnce, client: Store) -> None:
    log, other = await at_once.lab.new(words=1), await at_once.lab.new(words=1)
    await followed(at_once, log, other)
    client.xadd(keys.log(log.id), {"c": b'"w9"'}, id="1-5")
    await at_once.until(lambda: log.problem)
    assert log.whole
    at_once.lab.following.drop(log)
    await at_once.idle()
    await at_once.lab.say(other)
    await at_once.until(lambda: other.whole)


async def test_what_is_in_an_object_is_read_by_the_task(at_once: AtOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    log, other = await at_once.lab.new(), await at_once.lab.new()
    await followed(at_once, log, other)

    def archived(*told: Any) -> list[Entry]:
        monkeypatch.setattr(module, "decode", decode)
        raise Archived

    monkeypatch.setattr(module, "decode", archived)
    await at_once.lab.say(log, 2)
    await at_once.until(lambda: log.whole)
    assert at_once.lab.told == [log]


@pytest.mark.parametrize("killed", KILLS)
async def test_a_connection_that_goes_while_something_is_read_at_once_costs_nothing(
    server: Server, client: Store, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    async with open_lab(server.url) as lab:
        bench = AtOnce(lab, monkeypatch)
        log, other = await lab.new(), await lab.new()
        for one in (log, other):
            await lab.following.add(one)
        reading = asyncio.ensure_future(lab.until(lambda: lab.failures and log.whole and other.whole))
        await bench.until(lambda: log.position > BEGIN and other.position > BEGIN)
        answer = await bench.hold(log)
        await asyncio.to_thread(KILLS[killed], client)
        await lab.say(other, 2)
        answer()
        await reading
        await until_tracked_by(client, 1)


async def test_a_server_that_stops_while_something_is_read_at_once_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TICK_S", 3600.0)
    with Server(tmp_path) as server, server.client() as client:
        async with open_lab(server.url, timeout_s=60.0) as lab:
            bench = AtOnce(lab, monkeypatch)
            log, other = await lab.new(), await lab.new()
            for one in (log, other):
                await lab.following.add(one)
            pid, ask = client.info("server")["process_id"], Tracker.ask_at_once
            stopped: list[int] = []

            def ask_at_once(tracker: Tracker, packed: bytes, answered: Answered) -> bool:
                if not stopped:
                    os.kill(pid, signal.SIGSTOP)
                    stopped.append(pid)
                return ask(tracker, packed, answered)

            monkeypatch.setattr(Tracker, "ask_at_once", ask_at_once)
            reading = asyncio.ensure_future(lab.until(lambda: lab.failures and log.whole))
            await bench.until(lambda: log.position > BEGIN and other.position > BEGIN)
            await bench.idle()
            tracker = lab.following._tracker
            assert isinstance(tracker, Tracker)
            soon(tracker._reader)
            saying = asyncio.ensure_future(lab.say(log))  # the server may stop before it has said that this is stored
            try:
                await bench.until(lambda: lab.failures)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert stopped
            await saying
            await reading


async def test_a_bug_that_meets_one_log_ends_no_other(by_bell: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, other = await by_bell.new(words=1), await by_bell.new(words=1)
    for log in (broken, other):
        await by_bell.following.add(log)
    await by_bell.whole(broken, other)

    def odd(raw: Any, after: Any = None, *given: Any) -> list[Entry]:
        if b"w1" in raw[0][1][1] and given[0] is broken.shapes:
            raise KeyError(b"z")
        return decode(raw, after, *given)

    monkeypatch.setattr(module, "decode", odd)
    await by_bell.say(broken)
    await by_bell.say(other)
    await by_bell.until(lambda: broken.problem and other.whole)
    assert by_bell.failures == 0
