"""Small things that stand where uvicorn has large ones, or none: each connection holds them (connection.py)."""

from __future__ import annotations

import asyncio
import sys
from functools import lru_cache
from typing import Any, Self

import httptools


class Writable:
    """asyncio.Event for the one response that waits; the Event's deque of waiters takes 600 bytes for each connection."""

    __slots__ = ("_set", "_waiter")

    def __init__(self) -> None:
        self._set = True
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        self._set = False

    async def wait(self) -> None:
        while not self._set:
            if self._waiter is None or self._waiter.done():
                self._waiter = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._waiter)
        self._waiter = None


class Pipeline(list[Any]):
    """Requests that came before their time: none, almost always. uvicorn's own deque takes 700 bytes to say so."""

    __slots__ = ()

    def appendleft(self, waiting: Any) -> None:
        self.insert(0, waiting)


class AnyLength(int):
    """The length that is left of a response which ends with its connection: never too little, and never wanting."""

    def __lt__(self, other: object) -> bool:
        return False

    def __isub__(self, sent: int) -> Self:
        return self

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


class Lingering:
    """The transport of a response after which the connection is closed: gently, if the request is still coming."""

    __slots__ = ("_connection", "is_closing", "write")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.write, self.is_closing = connection.transport.write, connection.transport.is_closing

    def close(self) -> None:
        if self._connection.mid_request:
            self._connection.linger()
        else:
            self._connection.transport.close()


class Held:
    """The transport of a response while its head is made, which is to go with the first of its body: each write of its own is a
    system call."""

    __slots__ = ("_connection", "_parts", "write")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._parts: list[bytes] = []
        self.write = self._parts.append
        connection.cycle.transport = self

    def send(self, body: bytes) -> bool:
        """Sends what was held, and this piece of the body with it: whether that went, as it does if the response is in chunks
        and its client there."""
        connection, parts = self._connection, self._parts
        connection.cycle.transport = connection.transport
        if goes := bool(parts) and connection.chunked:
            parts.append(b"%x\r\n%b\r\n" % (len(body), body))  # RFC 9112 §7.1
        if parts:
            connection.transport.write(b"".join(parts))
        return goes


@lru_cache(16)
def server_address(address: tuple[str, int | None] | None) -> tuple[str, int | None] | None:
    """The same for all connections to it."""
    return address


@lru_cache(16)
def leftover(method: str) -> dict[str, Any]:
    """What is left of a scope once its response has begun: one for all."""
    return {"method": method}


def client_address(address: tuple[str, int] | None) -> tuple[str, int] | None:
    """With a host that all its connections share: viewers are many, and hosts behind a proxy are few."""
    return address and (sys.intern(address[0]), address[1])


def new_parser(protocol: Any) -> httptools.HttpRequestParser:
    """As uvicorn's own. It takes a kilobyte, and a connection needs none until the next request begins."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser
