"""A provider on loopback that does exactly what a test scripts, byte by byte; HTTP/1.1, chunked unless told otherwise."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

END = b"0\r\n\r\n"


def chunk(text: str | None = None, finish: str | None = None, **fields: Any) -> bytes:
    """One event of OpenAI's form."""
    delta = {} if text is None else {"content": text}
    value = {"id": "up", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **fields}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def usage(total: int) -> bytes:
    return b"data: " + json.dumps({"choices": [], "usage": {"total_tokens": total}}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


@dataclass
class Call:
    """One request as it came, and what became of its connection."""

    head: str
    body: dict[str, Any]
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


class Wire:
    """What a script may do to the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def head(self, status: int = 200, **headers: str) -> None:
        """Status line and headers; `content_type` and `transfer_encoding` unless given, empty ones left out."""
        headers = {"content_type": "text/event-stream", "transfer_encoding": "chunked", **headers}
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value]
        await self.raw("\r\n".join([f"HTTP/1.1 {status} x", *lines, "", ""]).encode())

    async def send(self, *pieces: bytes) -> None:
        """Each piece as one HTTP chunk, all in one write."""
        await self.raw(b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces))

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def hung_up(self) -> None:
        """Waits until the client closes its side."""
        try:
            while await self._reader.read(1024):
                pass
        except ConnectionError:
            pass

    def reset(self) -> None:
        self._writer.transport.abort()


Script = Callable[[Wire], Any]


class Server:
    """`url` is the base URL; `calls` are the requests so far; `connections` counts accepted ones."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.calls: list[Call] = []
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                text = head.decode().rstrip("\r\n")
                length = int(text.lower().partition("content-length: ")[2].partition("\r\n")[0] or 0)
                call = Call(text, json.loads(await reader.readexactly(length)))
                self.calls.append(call)
                wire = Wire(reader, writer)
                try:
                    if await self._script(wire) != "keep":
                        return
                finally:
                    call.closed.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Server]:
    """Runs `script` for every request. The connection is closed after it, unless it returns "keep"."""
    server = Server(script)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listener.close()
