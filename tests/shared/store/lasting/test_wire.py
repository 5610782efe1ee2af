"""A connection that is spoken to without a task: whose replies are whose, however they come, and what ends it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import AuthenticationError, ConnectionError, InvalidResponse, ResponseError, TimeoutError

from shared.store.commands import converse, pack
from shared.store.lasting.wire import Wire
from shared.store.outage import Redirected, WrongServer
from shared.store.redis import RedisError, connect
from tests.support.held import Held, soon
from tests.support.server import Certificates, Server

PING = pack(b"PING")
LOOPS: dict[str, Callable[[Coroutine[Any, Any, None]], None]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}


class Asker:
    """One who is told replies, once."""

    def __init__(self) -> None:
        self.told: list[list[Any] | Exception] = []
        self.was_told = asyncio.Event()

    def __call__(self, replies: list[Any] | Exception) -> None:
        self.told.append(replies)
        self.was_told.set()


# ---- whose replies are whose

REPLIES: Any = st.recursive(
    st.one_of(st.binary(max_size=40), st.integers(-(2**40), 2**40), st.none(), st.just(ResponseError("ERR no"))),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


def said(reply: Any) -> bytes:
    """A reply in Redis's protocol."""
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, Exception):
        return b"-ERR no\r\n"
    return b"*%d\r\n" % len(reply) + b"".join(map(said, reply))


def plain(reply: Any) -> Any:
    """The same, to be compared."""
    if isinstance(reply, Exception):
        return type(reply), "no"
    return [plain(one) for one in reply] if isinstance(reply, list) else reply


@given(data=st.data())
def test_replies_go_to_whom_they_belong_wherever_they_are_split(data: st.DataObject) -> None:
    """Several ask at once or one after the other, some give up meanwhile, and what is said comes in pieces of any size."""
    asked: list[list[Any]] = data.draw(st.lists(st.lists(REPLIES, min_size=1, max_size=4), min_size=1, max_size=6))
    bodies = [b"".join(map(said, replies)) for replies in asked]
    gives_up = data.draw(st.lists(st.booleans(), min_size=len(asked), max_size=len(asked)))

    async def talk() -> None:
        held, waiting, sent, come = Held(), [], 0, 0
        ends = [sum(map(len, bodies[: number + 1])) for number in range(len(bodies))]
        while come < ends[-1]:
            if sent < len(asked) and (come == (ends[sent - 1] if sent else 0) or data.draw(st.booleans())):
                waiting.append(asyncio.ensure_future(held.wire.converse(b"%d" % sent, len(asked[sent]))))
                await asyncio.sleep(0)
                if gives_up[sent]:
                    waiting[-1].cancel()
                    await asyncio.sleep(0)
                sent += 1
                continue
            size = data.draw(st.integers(1, ends[sent - 1] - come))
            held.says(b"".join(bodies)[come : come + size])
            come += size
        assert held.transport.written == [b"%d" % number for number in range(len(asked))]
        for replies, gave_up, one in zip(asked, gives_up, waiting, strict=True):
            if gave_up:
                assert one.cancelled()
            else:
                assert plain(await one) == plain(replies)
        assert held.wire.failure is None

    asyncio.run(talk())


async def test_who_is_told_may_ask_again_at_once() -> None:
    """As the hub does: with replies to others behind those that it is told."""
    held, order = Held(), []

    def first(replies: Any) -> None:
        order.append(replies)
        held.wire.send(PING, 1, order.append)

    held.wire.send(PING * 2, 2, first)
    held.wire.send(PING, 1, order.append)
    held.says(b":1\r\n")
    held.says(b":2\r\n:3\r\n")
    held.says(b":4\r\n")
    assert order == [[1, 2], [3], [4]]
    assert held.wire.failure is None


# ---- what comes unasked


async def test_what_comes_unasked_is_told_be_it_behind_a_reply() -> None:
    told: list[Any] = []
    held, asker = Held(told.extend), Asker()
    held.wire.send(PING, 1, asker)
    held.says(b":1\r\n:2\r\n:3")
    held.says(b"\r\n")
    held.wire.send(PING, 1, asker)
    held.says(b":4\r\n")
    assert asker.told == [[1], [4]]
    assert told == [2, 3]


@pytest.mark.parametrize("at_once", [True, False])
async def test_where_nobody_is_told_who_speaks_unasked_is_none_to_talk_to(at_once: bool) -> None:
    """What it said would stand in the place of the next reply."""
    held, first, second = Held(), Asker(), Asker()
    held.wire.send(PING, 1, first)
    if at_once:
        held.says(b":1\r\n:2\r\n")
    else:
        held.says(b":1\r\n")
        held.says(b":2\r\n")
    held.wire.send(PING, 1, second)
    held.says(b":3\r\n")
    assert first.told == [[1]]
    assert len(second.told) == 1
    assert isinstance(second.told[0], ConnectionError)


# ---- what ends it

ENDS: dict[str, tuple[Callable[[Held], None], type[Exception]]] = {
    "closes": (lambda held: held.transport.protocol.eof_received(), ConnectionError),
    "is reset": (lambda held: held.hangs_up(ConnectionResetError()), ConnectionError),
    "was closed here": (lambda held: held.hangs_up(), ConnectionError),
    "speaks another protocol": (lambda held: held.says(b"HTTP/1.1 400 Bad Request\r\n"), InvalidResponse),
    "breaks off": (lambda held: held.says(b"$x\r\n"), InvalidResponse),
    "is a replica": (
        lambda held: held.says(b"-READONLY You can't write against a read only replica.\r\n"),
        WrongServer,
    ),
    "is loading": (lambda held: held.says(b"-LOADING Redis is loading the dataset in memory\r\n"), WrongServer),
    "has not the slot": (lambda held: held.says(b"-MOVED 7 127.0.0.1:7001\r\n"), Redirected),
    "knows us no more": (lambda held: held.says(b"-NOAUTH Authentication required.\r\n"), AuthenticationError),
    "redirects nowhere": (lambda held: held.says(b"-MOVED\r\n"), InvalidResponse),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("before", [b"", b":1\r\n", b":1\r\n*2\r\n:2\r\n"], ids=["before", "between", "within"])
async def test_who_waits_is_told_once_and_who_comes_after_at_once(end: str, before: bytes) -> None:
    ended, kind = ENDS[end]
    if end not in ("closes", "is reset", "was closed here") and before.startswith(b":1\r\n*"):
        before = b":1\r\n$3\r\nab"  # within a string, whatever is said is some of it: so it breaks off here
        ended, kind = ENDS["is reset"]
    failures: list[None] = []
    held, askers = Held(on_failure=lambda: failures.append(None)), [Asker() for _ in range(4)]
    for asker in askers[:3]:
        held.wire.send(PING * 2, 2, asker)
    held.says(before)
    ended(held)
    held.says(b":9\r\n" * 9)
    held.hangs_up()
    held.wire.send(PING, 1, askers[3])
    for asker in askers:
        assert [type(told) for told in asker.told] == [kind]
    assert len(failures) == 1
    assert isinstance(held.wire.failure, kind)
    for ask in (held.wire.converse(PING, 1), held.wire.check()):
        with pytest.raises(kind):
            await ask
    with pytest.raises(kind):
        held.wire.say(PING)


async def test_whose_replies_came_before_the_end_has_them() -> None:
    """In one packet: what was done for them must not be sent again, since somebody else's command was refused."""
    held, first, second, third = Held(), Asker(), Asker(), Asker()
    for asker in (first, second, third):
        held.wire.send(PING * 2, 2, asker)
    held.says(b":1\r\n:2\r\n:3\r\n-READONLY You can't write against a read only replica.\r\n:4\r\n:5\r\n")
    assert first.told == [[1, 2]]
    assert [type(asker.told[0]) for asker in (second, third)] == [WrongServer] * 2


async def test_each_who_waits_has_an_error_of_its_own() -> None:
    """What is raised holds the frames that it went through."""
    held = Held()
    asking = [asyncio.ensure_future(held.wire.converse(PING, 1)) for _ in range(2)]
    await asyncio.sleep(0)
    held.says(b"-MOVED 7 127.0.0.1:7001\r\n")
    first, second = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(first, Redirected)
    assert isinstance(second, Redirected)
    assert first is not second
    assert (second.to, second.slot, str(second)) == ("127.0.0.1:7001", 7, "MOVED 7 127.0.0.1:7001")


async def test_where_redirections_are_wanted_they_are_replies_as_any_other() -> None:
    held, asker = Held(redirects=True), Asker()
    held.wire.send(PING * 3, 3, asker)
    held.says(b":1\r\n-MOVED 7 127.0.0.1:7001\r\n:2\r\n")
    (replies,) = asker.told
    assert isinstance(replies, list)
    assert isinstance(replies[1], Redirected)
    assert replies[::2] == [1, 2]
    assert held.wire.failure is None


async def test_who_was_redirected_says_so_where_that_is_learned() -> None:
    """Else the next connection leads to the same node."""
    learned: list[Redirected] = []
    held = Held()
    held.connection.place.redirected = learned.append  # type: ignore[attr-defined]
    held.wire.send(PING, 1, Asker())
    held.says(b"-MOVED 7 127.0.0.1:7001\r\n")
    with pytest.raises(Redirected):
        await held.wire.check()
    assert [told.to for told in learned] == ["127.0.0.1:7001"]


@pytest.mark.parametrize("within", [True, False], ids=["in a transaction", "as a reply"])
async def test_a_wrong_server_costs_all_connections_that_lead_to_it(within: bool) -> None:
    """In a transaction the others were done: they are replies all the same, and the next who asks is told."""
    held, asker = Held(), Asker()
    moves = held.connection.place.moves
    held.wire.send(PING, 1, asker)
    held.says(b"*2\r\n:1\r\n" * within + b"-READONLY You can't write against a read only replica.\r\n")
    (told,) = asker.told
    if within:
        assert isinstance(told, list)
        assert told[0][0] == 1
    else:
        assert isinstance(told, WrongServer)
    with pytest.raises((ConnectionError, WrongServer)):
        await held.wire.converse(PING, 1)
    assert held.connection.place.moves == moves + 1
    assert held.connection.is_stale
    with pytest.raises((ConnectionError, WrongServer)):
        await held.wire.check()
    assert held.connection.place.moves == moves + 1


async def test_where_another_client_was_told_that_this_is_the_wrong_server_nothing_is_sent() -> None:
    failures: list[None] = []
    held, asker = Held(on_failure=lambda: failures.append(None)), Asker()
    assert held.wire.failure is None
    await held.connection.place.move()
    held.wire.send(PING, 1, asker)
    assert [type(told) for told in asker.told] == [ConnectionError]
    assert held.transport.written == []
    assert len(failures) == 1


async def test_what_uvloop_says_of_a_closed_connection_is_an_end_as_any_other() -> None:
    held, asker = Held(), Asker()
    assert held.wire.failure is None
    held.transport.refuses = True
    held.wire.send(PING, 1, asker)
    assert [type(told) for told in asker.told] == [ConnectionError]


@pytest.mark.parametrize("what", ["it was closed", "it is being closed", "it broke", "something was said"])
async def test_what_had_happened_before_it_was_taken_is_seen(what: str) -> None:
    """Of two that are opened one after the other, the first may end meanwhile, and nobody is told of that again."""
    held, asker = Held(), Asker()
    if what == "it was closed":
        held.stream.feed_eof()
    elif what == "it is being closed":
        held.transport.close()
    elif what == "it broke":
        held.stream.set_exception(ConnectionResetError())
    else:
        held.stream.feed_data(b"+OK")
    held.wire.send(PING, 1, asker)
    assert [type(told) for told in asker.told] == [ConnectionError]
    assert held.transport.written == []


async def test_one_that_says_nothing_is_noticed_and_those_beside_it_are_closed() -> None:
    held, asker = Held(timeout_s=0.02), Asker()
    idle: Any = held.pool.make_connection()
    closed: list[Any] = []

    async def close(nowait: bool = False) -> None:
        closed.append(idle)

    idle.disconnect = close
    held.pool._available_connections.append(idle)
    held.wire.send(PING * 2, 2, asker)
    held.says(b":1\r\n")
    await asyncio.wait_for(asker.was_told.wait(), 60)
    assert [type(told) for told in asker.told] == [TimeoutError]
    with pytest.raises(TimeoutError):
        await held.wire.check()
    assert closed == [idle]


async def test_one_that_is_asked_nothing_may_be_silent() -> None:
    held, first, second = Held(timeout_s=0.01), Asker(), Asker()
    held.wire.send(PING, 1, first)
    held.says(b":1\r\n")
    while held.wire._timer is not None:  # noqa: ASYNC110 -- until it has looked
        await asyncio.sleep(0.002)
    assert held.wire.failure is None
    held.wire.send(PING, 1, second)  # and it is looked again
    await asyncio.wait_for(second.was_told.wait(), 60)
    assert first.told == [[1]]
    assert [type(told) for told in second.told] == [TimeoutError]


# ---- on real servers


def serving(directory: Path, way: str) -> tuple[Server, str]:
    """A server, and the URL that leads to it so."""
    if way == "unix":
        path = directory / "s"
        return Server(directory, "--unixsocket", str(path)), f"unix://{path}"
    if way == "tcp":
        server = Server(directory)
        return server, server.url
    certificates = Certificates(directory / "tls", "127.0.0.1")
    plain, tls = Server(directory), Server(directory)
    return (
        Server(directory, *certificates.options(tls.port), port=plain.port, kind="redis"),
        f"rediss://127.0.0.1:{tls.port}/0?ssl_ca_certs={certificates.ca}",
    )


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("way", ["tcp", "unix", "tls"])
def test_many_ask_at_once_and_some_of_them_give_up(tmp_path: Path, way: str, loop: str) -> None:
    server, url = serving(tmp_path, way)

    async def ask() -> None:
        client = connect(url, max_connections=1, timeout_s=60.0)
        pool = client.connection_pool
        connection: Any = await pool.get_connection()
        wire = Wire(connection)
        words = [b"%d " % number + b"x" * (300_000 if number % 50 == 0 else number) for number in range(400)]
        asking = [asyncio.ensure_future(wire.converse(pack(b"ECHO", word) + PING, 2)) for word in words]
        await asyncio.sleep(0)
        for one in asking[::3]:
            one.cancel()
        found = await asyncio.gather(*asking, return_exceptions=True)
        for number, (word, replies) in enumerate(zip(words, found, strict=True)):
            assert replies == [word, b"PONG"] if number % 3 else isinstance(replies, asyncio.CancelledError)
        assert await wire.converse(PING, 1) == [b"PONG"]
        await connection.disconnect()  # waits until asyncio's streams are told
        with pytest.raises(ConnectionError):
            await wire.converse(PING, 1)
        await pool.release(connection)
        assert await client.echo("again") == b"again"
        await client.aclose(close_connection_pool=True)

    with server:
        LOOPS[loop](ask())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("way", ["tcp", "unix"])
@pytest.mark.parametrize("fault", ["is killed by a client", "dies", "stops", "is closed here"])
def test_a_server_that_goes_while_it_is_asked_is_an_error_for_all_who_wait(
    tmp_path: Path, way: str, loop: str, fault: str
) -> None:
    server, url = serving(tmp_path, way)

    async def ask(control: Any) -> None:
        pid = control.info("server")["process_id"]
        client = connect(url, max_connections=1, timeout_s=60.0)
        connection: Any = await client.connection_pool.get_connection()
        failures: list[None] = []
        wire = Wire(connection, on_failure=lambda: failures.append(None))
        (number,) = await wire.converse(pack(b"CLIENT", b"ID"), 1)
        if fault == "stops":
            soon(wire)
            os.kill(pid, signal.SIGSTOP)
        blocking = pack(b"BLPOP", b"nothing", b"0")
        asking = [asyncio.ensure_future(wire.converse(blocking if one == 1 else PING, 1)) for one in range(4)]
        await asyncio.sleep(0)
        if fault == "stops":
            await asyncio.wait(asking)
            os.kill(pid, signal.SIGCONT)
        else:
            await asyncio.wait_for(asyncio.shield(asking[0]), 60)
        if fault == "is killed by a client":
            await asyncio.to_thread(control.client_kill_filter, _id=str(number))
        elif fault == "dies":
            os.kill(pid, signal.SIGKILL)
        elif fault == "is closed here":
            await connection.disconnect(nowait=True)
        found = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 60)
        kind = TimeoutError if fault == "stops" else ConnectionError
        assert [type(told) for told in found[1:]] == [kind] * 3
        assert failures == [None]
        with pytest.raises(kind):
            await wire.converse(PING, 1)
        await connection.disconnect(nowait=True)
        await client.connection_pool.release(connection)
        with suppress(RedisError, OSError):
            await client.aclose(close_connection_pool=True)

    with server, server.client() as control:
        LOOPS[loop](ask(control))


async def test_whom_a_conversation_fails_for_is_told_what_the_server_said(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        client = connect(server.url, max_connections=1)
        connection: Any = await client.connection_pool.get_connection()
        wire = Wire(connection)
        refused, done = await converse(wire, pack(b"NO", b"SUCH") + PING, 2)
        assert isinstance(refused, ResponseError)
        assert done == b"PONG"
        await connection.disconnect(nowait=True)
        await client.connection_pool.release(connection)
        await client.aclose(close_connection_pool=True)
