"""A connection that the provider has closed while it was kept costs nobody a try, and no request is made twice."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from shared.config.settings import Settings
from shared.lib import http
from tests.harness.upstream import DONE, END, chunk
from worker.normalizer import Normalizer
from worker.providers.registry import Provider
from worker.upstream.attempts import Served, Target
from worker.upstream.client import Upstream


def whole(text: str) -> bytes:
    """A response that says this."""
    events = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in (chunk(text), chunk(None, "stop"), DONE))
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + events + END


ANSWER = whole("a")
EVENTS = chunk("a") + chunk(None, "stop") + DONE

Next = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers the first request on each connection; then `next_one` has its way with it."""

    def __init__(self, next_one: Next, *, first: bytes = ANSWER) -> None:
        self._next, self._first = next_one, first
        self.calls: list[str] = []
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.read(reader)
            writer.write(self._first)
            await writer.drain()
            if self._first:
                await self._next(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def read(self, reader: asyncio.StreamReader) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0))
        self.calls.append(head)


@asynccontextmanager
async def serving(next_one: Next, **options: bytes) -> AsyncIterator[Server]:
    server = Server(next_one, **options)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=1024)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    async with listener:
        yield server


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def at_once(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    """It closes after each answer, and does not say so."""


async def as_it_is_asked(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Its idle time is over in the moment in which the next request goes out; nothing of that is read."""
    await reader.read(1)


async def with_a_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    reset(writer)


async def asked(upstream: Upstream, url: str) -> Served:
    """One answer, which has to be whole."""
    normalizer, served = Normalizer(id="c", created=1, model="acme/m", show_usage=False), Served()
    target = Target(Provider("acme", "openai", url, "k"), "m")
    body = {"model": "acme/m", "messages": [{"role": "user", "content": "hi"}]}
    async for _ in upstream.stream([target], body, normalizer, served):
        pass
    assert normalizer.finish_reasons == ["stop"]
    return served


@pytest.mark.parametrize("next_one", [at_once, as_it_is_asked, with_a_reset])
@pytest.mark.parametrize("at_a_time", [1, 50])
async def test_every_answer_comes_at_the_first_try_and_nobody_is_asked_twice(next_one: Next, at_a_time: int) -> None:
    rounds = 300 // at_a_time
    async with serving(next_one) as server, Upstream(Settings(upstream_connect_s=60)) as upstream:
        retries = 0
        for _ in range(rounds):
            served = await asyncio.gather(*(asked(upstream, server.url) for _ in range(at_a_time)))
            retries += sum(one.retries for one in served)
    assert retries == 0
    assert len(server.calls) == 300


async def post(client: http.Client, url: str) -> bytes:
    response = await client.request("POST", url, headers={}, content=json.dumps({"x": 1}).encode())
    try:
        return b"".join([data async for data in response.pieces()])
    finally:
        response.close()


@pytest.mark.parametrize(
    "said", [b"H", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nx: y\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"]
)
@pytest.mark.parametrize("end", ["closed", "reset"])
async def test_a_response_that_has_begun_is_never_asked_for_again(said: bytes, end: str) -> None:
    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(reader)
        writer.write(said)
        await writer.drain()
        if end == "reset":
            await asyncio.sleep(0.05)  # a reset would overtake what is on its way
            reset(writer)

    async with serving(begin) as server, http.open_client(60) as client:
        await post(client, server.url)
        with pytest.raises(http.TransportError):
            await post(client, server.url)
    assert (len(server.calls), server.connections) == (2, 1)


async def test_on_a_new_connection_nothing_is_repeated() -> None:
    async with serving(at_once, first=b"") as server, http.open_client(60) as client:
        with pytest.raises(http.TransportError):
            await post(client, server.url)
    assert len(server.calls) == 1


async def test_it_is_repeated_once_and_on_a_new_connection_although_others_are_kept() -> None:
    """Ten dead connections wait to be used; the request does not go through them one by one."""
    async with serving(as_it_is_asked) as server, http.open_client(60) as client:
        await asyncio.gather(*(post(client, server.url) for _ in range(10)))
        assert server.connections == 10
        assert await post(client, server.url)
        assert (server.connections, len(server.calls)) == (11, 11)

        server._first = b""  # now a new one is closed as well
        with pytest.raises(http.TransportError):
            await post(client, server.url)
    assert (server.connections, len(server.calls)) == (12, 12)


async def test_what_is_read_late_of_an_answer_is_no_word_of_the_next_one() -> None:
    """The connection is another request's as soon as all of the answer is here, however much of it is yet to be read."""
    asked, late = asyncio.Event(), asyncio.Event()

    async def once_it_was_read(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await server.read(reader)
        asked.set()
        await late.wait()

    async with serving(once_it_was_read) as server, http.open_client(60) as client, asyncio.timeout(60):
        first = await client.request("POST", server.url, headers={}, content=b"{}")
        while not client._keeping.connector._conns:  # type: ignore[union-attr]  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        next_one = asyncio.create_task(post(client, server.url))
        await asked.wait()
        assert server.connections == 1, "they have it together"
        assert b"".join([data async for data in first.pieces()]) == EVENTS
        late.set()
        assert await next_one == EVENTS
    assert (server.connections, len(server.calls)) == (2, 3)


async def test_a_body_in_pieces_has_a_connection_of_its_own() -> None:
    """A kept one may have been closed, and what was sent of it could not be sent again."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"{}"

    async with serving(as_it_is_asked) as server, http.open_client(60) as client:
        await post(client, server.url)
        response = await client.request("POST", server.url, headers={"content-length": "2"}, content=pieces())
        response.close()
    assert (response.status_code, server.connections) == (200, 2)


UNASKED = {
    "408": b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    "another answer": whole("somebody else's"),
    "100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "half a head": b"HTTP/1.1 2",
    "too much": b"\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("what", UNASKED)
async def test_what_comes_unasked_on_a_kept_connection_closes_it(what: str) -> None:
    read, closed = asyncio.Event(), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read.wait()
        writer.write(UNASKED[what])
        assert await reader.read(1) == b""
        closed.set()

    async with serving(talk) as server, http.open_client(60) as client:
        for call in range(1, 4):
            assert await post(client, server.url) == EVENTS
            assert (server.connections, len(server.calls)) == (call, call)
            read.set()
            async with asyncio.timeout(60):
                await closed.wait()
            read.clear()
            closed.clear()


@pytest.mark.parametrize("what", ["408", "another answer", "100"])
async def test_what_comes_right_behind_an_answer_is_nobodys(what: str) -> None:
    async def stay(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with serving(stay, first=ANSWER + UNASKED[what]) as server, http.open_client(60) as client:
        for call in range(1, 4):
            assert await post(client, server.url) == EVENTS
            assert (server.connections, len(server.calls)) == (call, call)


async def test_a_kept_connection_is_used_again_as_long_as_it_lives() -> None:
    async def another(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await server.read(reader)
            writer.write(ANSWER)

    async with serving(another) as server, http.open_client(60) as client:
        for _ in range(5):
            assert await post(client, server.url)
    assert (server.connections, len(server.calls)) == (1, 5)
