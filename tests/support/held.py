"""A connection's two ends in one hand: a `Wire` whose other end says what a test has it say, to the byte."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import hiredis

from shared.store.connections import Mended
from shared.store.lasting.wire import Wire
from shared.store.redis import connect


class Transport(asyncio.Transport):
    """Keeps what is written; what the other end says is handed to its protocol by the test."""

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self.protocol: Any = protocol
        self.written: list[bytes] = []
        self.is_closed = False
        self.refuses = False
        """As uvloop does, once it is closed."""

    def write(self, data: Any) -> None:
        if self.refuses:
            raise RuntimeError("unable to perform operation: the handler is closed")
        self.written.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self.protocol
        return protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol


class Held:
    """A connection as redis-py leaves one that it has just opened, without a server. `wire` is made when it is first wanted."""

    def __init__(
        self,
        told: Callable[[list[Any]], object] | None = None,
        on_failure: Callable[[], object] = lambda: None,
        *,
        redirects: bool = False,
        timeout_s: float = 600.0,
    ) -> None:
        self.pool = connect("redis://127.0.0.1:1/0", max_connections=2, timeout_s=timeout_s).connection_pool
        connection: Any = self.pool.make_connection()
        self.stream = asyncio.StreamReader()
        streams = asyncio.StreamReaderProtocol(self.stream)
        self.transport = Transport(streams)
        streams.connection_made(self.transport)
        connection._reader = self.stream
        connection._writer = SimpleNamespace(transport=self.transport)
        connection._parser.on_connect(connection)
        self.connection: Mended = connection
        self._options: Any = {"told": told, "on_failure": on_failure, "redirects": redirects}
        self._wire: Wire | None = None
        self._commands = hiredis.Reader()

    @property
    def wire(self) -> Wire:
        if self._wire is None:
            self._wire = Wire(self.connection, **self._options)
            connection: Any = self.connection
            connection._reader = connection._writer = None  # nobody will close it
        return self._wire

    def says(self, data: bytes) -> None:
        self.transport.protocol.data_received(data)

    def hangs_up(self, error: Exception | None = None) -> None:
        self.transport.protocol.connection_lost(error)

    def heard(self) -> list[list[bytes]]:
        """The commands that came since this was asked the last time."""
        written, self.transport.written = self.transport.written, []
        for data in written:
            self._commands.feed(data)
        return list(iter(self._commands.gets, False))


def soon(wire: Wire) -> None:
    """From now on it waits for 0.3 s only: what came before had time."""
    if wire._timer is not None:
        wire._timer.cancel()
        wire._timer = None
    wire._timeout_s = 0.3
