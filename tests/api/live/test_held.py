"""The head of a response, which goes with the first of its body in one write where both are there."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from api.connection import Protocol
from api.live.client import Client
from api.live.drain import Drain
from api.live.event_stream import EventStream
from api.live.folding import Start
from api.live.livelog import LiveLog
from api.spans import Sent
from api.surfaces.chat.projection import chat_events
from shared.log.entry import Entry, Kind, Position
from tests.harness.records import header_with

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"
HEADERS = {"content-type": "text/event-stream"}
SIZED = {"content-length": "9"}

Begin = Callable[[Client, dict[str, str]], Awaitable[None]]


async def together(client: Client, headers: dict[str, str]) -> None:
    await client.start(200, headers, b"first")


async def apart(client: Client, headers: dict[str, str]) -> None:
    await client.start(200, headers)
    await client.send(b"first")


async def told(begin: Begin, asked: bytes, headers: dict[str, str], *, sent: Sent | None = None) -> list[bytes]:
    """What a server writes, write by write, that begins each response so and ends it with `rest`."""
    writes = list[bytes]()

    class Noted(Protocol):
        __slots__ = ()

        def connection_made(self, transport: Any) -> None:
            write = transport.write

            def noted(data: bytes) -> None:
                writes.append(bytes(data))
                write(data)

            transport.write = noted
            super().connection_made(transport)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        client = Client(scope, receive, send, 60.0, sent=sent)
        await begin(client, headers)
        await client.send(b"rest", more=False)
        await client.close()

    app.services = SimpleNamespace(drain=Drain())  # type: ignore[attr-defined]
    how: dict[str, Any] = {"http": Noted, "lifespan": "off", "ws": "none", "log_config": None, "loop": "asyncio"}
    server = uvicorn.Server(uvicorn.Config(app, date_header=False, server_header=False, **how))
    listening = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server._serve([listening]))
    try:
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        try:
            writer.write(asked)
            async with asyncio.timeout(60):
                for _ in range(asked.count(b"\r\n\r\n")):
                    await reader.readuntil(b"rest")
        finally:
            writer.close()
            await writer.wait_closed()
    finally:
        server.should_exit = True
        await serving
    return writes


@pytest.mark.parametrize("headers", [HEADERS, SIZED], ids=["chunks", "sized"])
@pytest.mark.parametrize("asked", [GET, LAST, OLD, GET * 3], ids=["kept", "closed", "1.0", "pipelined"])
async def test_the_bytes_are_the_same(asked: bytes, headers: dict[str, str]) -> None:
    mine, theirs = [b"".join(await told(begin, asked, headers)) for begin in (together, apart)]
    assert mine == theirs
    assert mine.count(b"first") == asked.count(b"\r\n\r\n")


async def test_the_head_goes_with_what_is_there() -> None:
    head, *rest = await told(together, GET, HEADERS)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.endswith(b"\r\n\r\n5\r\nfirst\r\n")
    assert b"".join(rest) == b"4\r\nrest\r\n0\r\n\r\n"
    assert (await told(apart, GET, HEADERS))[0].endswith(b"\r\n\r\n")


async def test_what_goes_with_it_is_counted() -> None:
    sent = Sent()
    await told(together, GET, HEADERS, sent=sent)
    assert sent.bytes == len(b"firstrest")


@pytest.mark.parametrize("begin", [together, apart])
async def test_of_a_head_that_cannot_be_nothing_is_sent(begin: Begin) -> None:
    with pytest.raises(asyncio.IncompleteReadError) as ended:
        await told(begin, GET, {"x-name": "a\r\nb: c"})
    assert ended.value.partial == b""


# ---- what is there


EVENTS = chat_events(ids=False, include_usage=True)
A, B = b"data: a\n\n", b"data: b\n\n"


def said(*attempts: list[bytes]) -> LiveLog:
    live = LiveLog("chatcmpl-1")
    for epoch, chunks in enumerate(attempts, 1):
        live.feed([Entry(Position(epoch, 0), Kind.ATTEMPT, b"{}")])
        for seq, chunk in enumerate(chunks, 1):
            live.feed([Entry(Position(epoch, seq), Kind.CHUNK, chunk)])
    return live


@pytest.mark.parametrize(
    ("attempts", "start", "body", "then"),
    [
        ([[b"a", b"b"]], Start(0, 0), A + B, Start(1, 2)),
        ([[b"a", b"b"]], Start(1, 1, 1), B, Start(1, 2, 1)),
        ([[b"a", b"b"]], Start(1, 2), b"", Start(1, 2)),
        ([[b"a"]], Start(1, 7), b"", Start(1, 7)),
        ([[b"a"]], Start(2, 17), b"", Start(2, 17)),
        ([[]], Start(0, 0), b"", Start(0, 0)),
        ([[b"a"], [b"b"]], Start(1, 0), b"", Start(1, 0)),
        ([[b"a"], [b"b"]], Start(2, 0), B, Start(2, 1)),
        ([[b"a" * 9000]], Start(1, 0), b"", Start(1, 0)),
        ([[b"a"]], Start(1, 0, 0, b"data: opening\n\n"), b"data: opening\n\n", Start(1, 0)),
    ],
)
async def test_what_goes_with_the_head(attempts: list[list[bytes]], start: Start, body: bytes, then: Start) -> None:
    """What would be sent next without a wait, and no more of it than everybody may be sent at once."""
    process: Any = SimpleNamespace(drain=Drain(), settings=SimpleNamespace(drain_s=1.0))
    stream, live = EventStream(process, header_with({"id": "chatcmpl-1"}), EVENTS, headers={}), said(*attempts)
    assert stream._first(live, live.shown(EVENTS, stream.header), start) == (body, then)
