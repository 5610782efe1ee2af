"""What stands between the product and an S3, and does on demand what S3s do on bad days, to requests for archived logs.

Hidden here: how each of them looks on the wire.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Literal, Self
from urllib.parse import urlsplit

from tests.harness.loopback import LoopThread, stop_listening
from tests.support.s3 import S3

How = Literal["500", "503", "403", "refuse", "cut", "slow", "hang"]
_CODES = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}
_SLOW_S = 0.02


class BadS3(LoopThread):
    """A context manager. `environment` and `url` are as those of the S3 behind it."""

    def __init__(self, s3: S3) -> None:
        super().__init__()
        self._target = urlsplit(s3.environment["AWS_ENDPOINT_URL"])
        self.url, self._of_target = s3.url, s3.environment
        self._how: How | None = None
        self._methods: frozenset[str] = frozenset()
        self._every, self._turns = 1, count(1)
        self._healed = asyncio.Event()
        self.done: Counter[str] = Counter()
        """How often it did what."""

    def __enter__(self) -> Self:
        super().__enter__()
        self.call(self._open())
        return self

    @property
    def environment(self) -> dict[str, str]:
        return {**self._of_target, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}"}

    @contextmanager
    def doing(self, how: How, methods: str = "GET PUT", *, every: int = 1) -> Iterator[None]:
        """Does this to each such request, or to every so manieth."""
        self.call(self._set(how, methods, every))
        try:
            yield
        finally:
            self.call(self._set(None, "", 1))

    async def _set(self, how: How | None, methods: str, every: int) -> None:
        self._how, self._methods, self._every = how, frozenset(methods.split()), every
        self._healed.clear() if how else self._healed.set()

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        await stop_listening(self._server)
        await super()._close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await self._answer(reader, writer)
        writer.transport.abort() if writer.is_closing() else writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if line and not line.lower().startswith(b"connection:")]
        sizes = [line.partition(b":")[2] for line in lines if line.lower().startswith(b"content-length:")]
        body = await reader.readexactly(int(sizes[0])) if sizes else b""
        how = self._turn(*lines[0].split()[:2])
        if how == "hang":  # and what was sent meanwhile never comes
            await self._healed.wait()
        if how in ("hang", "refuse"):
            writer.transport.abort()
            return
        if how in _CODES:
            text = b"<Error><Code>%b</Code><Message>no</Message></Error>" % _CODES[how].encode()
            writer.write(b"HTTP/1.1 %b no\r\nconnection: close\r\n" % how.encode())
            writer.write(b"content-type: application/xml\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))
            await writer.drain()
            return
        answer = await self._ask(b"\r\n".join([*lines, b"connection: close", b"", b""]) + body)
        begun = answer.index(b"\r\n\r\n") + 4
        if how == "cut":
            rest = len(answer) - begun
            writer.write(answer[: begun + rest // 2 if rest else begun // 2])
            await writer.drain()
            await asyncio.sleep(_SLOW_S)  # so that it is on its way
            writer.transport.abort()
        elif how == "slow":
            for at in range(0, len(answer), 1 + len(answer) // 10):
                writer.write(answer[at : at + 1 + len(answer) // 10])
                await asyncio.sleep(_SLOW_S)
        else:
            writer.write(answer)
        if how != "cut":
            await writer.drain()

    def _turn(self, method: bytes, path: bytes) -> How | None:
        if b"/logs/" not in path or self._how is None or method.decode() not in self._methods:
            return None
        if next(self._turns) % self._every:
            return None
        self.done[self._how] += 1
        return self._how

    async def _ask(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        try:
            writer.write(request)
            return await reader.read()
        finally:
            writer.close()
