"""A channel that is listened to, on a real server: what is taken wakes nobody, the rest is in order, and silence is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
from redis.exceptions import ConnectionError, NoPermissionError

from shared.lib.tasks import cancel
from shared.store.lasting.subscription import _Listening, listen
from shared.store.redis import ArqRedis, connect
from tests.harness.fake_store import fake_client
from tests.harness.store import Store
from tests.support.held import Held
from tests.support.server import Server, hung
from tests.support.until import until

CHANNEL = "tests:channel"


class Ear:
    """Takes what begins with `t`, and keeps what is yielded."""

    def __init__(self, redis: ArqRedis, *, beat_s: float = 600) -> None:
        self.taken: list[bytes] = []
        self.left: list[bytes] = []
        self.task = asyncio.create_task(self._run(redis, beat_s))

    def _take(self, message: bytes) -> bool:
        if message.startswith(b"t"):
            self.taken.append(message)
            return True
        return False

    async def _run(self, redis: ArqRedis, beat_s: float) -> None:
        async with aclosing(listen(redis, CHANNEL, self._take, beat_s=beat_s)) as messages:
            async for message in messages:
                self.left.append(message)


@pytest.fixture
async def listening(server: Server) -> AsyncIterator[Callable[..., Ear]]:
    async with AsyncExitStack() as stack:
        client = connect(server.url, max_connections=2, timeout_s=60.0)
        stack.push_async_callback(client.aclose, close_connection_pool=True)

        def begin(**options: float) -> Ear:
            ear = Ear(client, **options)
            stack.push_async_callback(cancel, ear.task)
            return ear

        yield begin


def heard_by(control: Store) -> int:
    count: int = control.pubsub_numsub(CHANNEL)[0][1]
    return count


async def test_what_is_taken_is_not_yielded_and_the_rest_is_in_order(
    listening: Callable[..., Ear], control: Store
) -> None:
    ear = listening()
    await until(lambda: heard_by(control) == 1)
    for number in range(50):
        control.publish(CHANNEL, f"t{number}")
        control.publish(CHANNEL, f"x{number}")
    await until(lambda: len(ear.left) == 50)
    assert ear.left == [b"x%d" % number for number in range(50)]
    assert ear.taken == [b"t%d" % number for number in range(50)]
    await cancel(ear.task)
    await until(lambda: heard_by(control) == 0)


async def test_a_connection_that_ends_is_an_error(listening: Callable[..., Ear], control: Store) -> None:
    ear = listening()
    await until(lambda: heard_by(control) == 1)
    control.client_kill_filter(_type="pubsub")
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(ear.task, 60)
    again = listening()
    await until(lambda: heard_by(control) == 1)
    control.publish(CHANNEL, "t")
    await until(lambda: again.taken)


async def test_a_user_who_may_not_listen_is_told(server: Server, control: Store) -> None:
    """A server that refuses answers PING all the same: who listens would be deaf for ever, and nobody told."""
    control.execute_command("ACL", "SETUSER", "poor", "on", ">word", "~*", "&*", "+@all", "-subscribe")
    client = connect(server.url.replace("//", "//poor:word@"), max_connections=2, timeout_s=60.0)
    ear = Ear(client)
    with pytest.raises(NoPermissionError):
        await asyncio.wait_for(ear.task, 60)
    await client.aclose(close_connection_pool=True)


async def test_what_is_no_message_costs_nobody_the_next_one() -> None:
    taken: list[bytes] = []

    def take(message: bytes) -> bool:
        taken.append(message)
        return True

    held = Held()
    connection: Any = held.connection
    listening = _Listening(connection, CHANNEL, take)
    connection._reader = connection._writer = None  # nobody will close it
    for said in (b"*-1\r\n", b"$-1\r\n", b":1\r\n", b"*0\r\n", b"+PONG\r\n"):
        held.says(said)
    held.says(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nt\r\n")
    assert taken == [b"t"]
    assert listening._wire.failure is None


async def test_a_server_that_says_nothing_is_noticed_and_one_that_answers_is_not(
    listening: Callable[..., Ear], control: Store
) -> None:
    ear = listening(beat_s=0.05)
    await until(lambda: heard_by(control) == 1)
    asked = control.info("commandstats")
    await until(lambda: control.info("commandstats").get("cmdstat_ping", {"calls": 0})["calls"] > 3)
    assert not ear.task.done(), asked
    with hung(control), pytest.raises(ConnectionError, match="Nothing is heard"):
        await asyncio.wait_for(ear.task, 60)


async def test_a_message_after_an_answer_leaves_nobody_deaf(listening: Callable[..., Ear], control: Store) -> None:
    """It had been asked whether it is there, and was; then a message comes; then there is silence again."""
    ear = listening(beat_s=0.2)
    await until(lambda: heard_by(control) == 1)

    def asked() -> int:
        count: int = control.info("commandstats").get("cmdstat_ping", {"calls": 0})["calls"]
        return count

    async def until_asked(times: int) -> None:
        before = asked()
        await until(lambda: asked() >= before + times)

    for number in range(4):
        await until_asked(1)
        control.publish(CHANNEL, f"x{number}")
    await until_asked(2)
    assert not ear.task.done()
    assert ear.left == [b"x%d" % number for number in range(4)]


async def test_a_tests_own_server_is_listened_to_as_well() -> None:
    client = fake_client()
    ear = Ear(client, beat_s=0.05)
    async with asyncio.timeout(60):
        while not await client.publish(CHANNEL, "x"):  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.005)
    await until(lambda: ear.left)
    await cancel(ear.task)
    await client.aclose()
