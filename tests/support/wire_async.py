"""Many viewers from one process: a small HTTP/1.1 client that hides nothing of how a response ended.

`Stream.frames` tells a body that was ended (`[DONE]` or not) from one that was cut.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any, Self

from tests.harness.shown import Shown

JSON = {"content-type": "application/json"}


class Cut(ConnectionError):
    """The connection ended in mid-response: the reader knows that it does not have everything."""


class Stream:
    """One response, from its head on. A context manager that closes the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.status = 0
        self.headers: dict[str, str] = {}

    @classmethod
    async def open(
        cls,
        port: int,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        receive_bytes: int | None = None,
    ) -> Self:
        """Raises OSError where nobody listens, Cut when the connection ends before the head of the response."""
        made = socket.socket()
        try:
            if receive_bytes:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            made.setblocking(False)
            await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
        except BaseException:
            made.close()
            raise
        stream = cls(*await asyncio.open_connection(sock=made, limit=receive_bytes or 2**16))
        fields = {"host": "127.0.0.1", "content-length": str(len(body)), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        try:
            stream._writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
            raw = (await stream._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            stream.close()
            raise Cut from error
        except BaseException:
            stream.close()
            raise
        status, *lines = raw.split("\r\n")
        stream.status = int(status.split(" ")[1])
        stream.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return stream

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        """As a phone that loses its network, only faster."""
        made = self._writer.get_extra_info("socket")
        if made is not None and made.fileno() >= 0:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Cut where it was not ended as HTTP wants it."""
        try:
            if "content-length" in self.headers:
                yield await self._reader.readexactly(int(self.headers["content-length"]))
            elif "transfer-encoding" in self.headers:
                while size := int(await self._reader.readuntil(b"\r\n"), 16):
                    yield (await self._reader.readexactly(size + 2))[:-2]
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Cut from error

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    async def frames(self) -> AsyncIterator[bytes]:
        """Frames without their blank line, keep-alives left out."""
        unread = b""
        async for piece in self.pieces():
            *whole, unread = (unread + piece).split(b"\n\n")
            for frame in whole:
                while frame.startswith(b": ka\n"):
                    frame = frame[5:]
                yield frame
        if unread.replace(b": ka\n", b""):
            raise AssertionError(f"the stream ends inside a frame: {unread[:80]!r}")


async def call(
    port: int, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """A whole response: its status, and its JSON."""
    raw = b"" if body is None else json.dumps(body).encode()
    async with await Stream.open(port, method, path, headers={**JSON, **(headers or {})}, body=raw) as stream:
        return stream.status, json.loads(await stream.body() or b"null")


async def follow(shown: Shown, stream: Stream) -> None:
    """Reads a stream to its end. Raises Cut; an end that says nothing is noted as damage, for it looks whole."""
    async for frame in stream.frames():
        shown.feed(frame)
    if not shown.ended:
        shown.wrong.append("a clean end without [DONE]")
