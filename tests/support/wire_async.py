"""Many viewers from one process: a small HTTP/1.1 client that hides nothing of how a response ended.

`Stream.frames` tells a body that was ended (`[DONE]` or not) from one that was cut; `Reading` folds frames into what a
person would have on the screen, and notes whatever no viewer should ever see.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Self

JSON = {"content-type": "application/json"}
SEAL_ID = (9007199254740991, 0)


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


@dataclass
class Reading:
    """What a viewer has: the text of the newest attempt, its cursor, how it ended, and what was wrong."""

    native: bool = True
    said: list[str] = field(default_factory=list)
    count: int = 0
    last_id: str | None = None
    position: tuple[int, int] = (0, 0)
    attempts: list[int] = field(default_factory=list)
    error: str | None = None
    finish: str | None = None
    done: bool = False
    resumes: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        self.said = ["".join(self.said)]  # added to one by one, a long text would be copied each time
        return self.said[0]

    @property
    def terminal(self) -> str | None:
        """`done`, the code of the error it ended with, or None while it has not."""
        return (self.error or "done") if self.done else None

    def feed(self, frame: bytes) -> None:
        lines = dict(line.split(b": ", 1) for line in frame.split(b"\n") if b": " in line)
        if self.done:
            self.wrong.append(f"after the end: {frame[:60]!r}")
        if b"id" in lines:
            self._move(lines[b"id"].decode())
        data = lines.get(b"data", b"")
        if lines.get(b"event") == b"attempt":
            self.attempts.append(json.loads(data)["attempt"])
            self.said, self.count, self.finish = [], 0, None
        elif data == b"[DONE]":
            self.done = True
        else:
            self._chunk(json.loads(data))

    def _chunk(self, found: dict[str, Any]) -> None:
        if error := found.get("error"):
            self.error = error["code"] or error["type"]
            return
        self.count += 1
        for choice in found["choices"]:
            self.said.append(choice["delta"].get("content") or "")
            self.finish = choice["finish_reason"] or self.finish

    def _move(self, text: str) -> None:
        epoch, _, seq = text.partition("-")
        new, old = (int(epoch), int(seq)), self.position
        # The error and the [DONE] after it are one entry of the log.
        if new <= old and not (new == SEAL_ID and self.error):
            self.wrong.append(f"id {text} after {self.last_id}")
        elif new != SEAL_ID and new[0] == old[0] and new[1] != old[1] + 1:
            self.wrong.append(f"gap: id {text} after {self.last_id}")
        elif new != SEAL_ID and new[0] != old[0] and new[1] not in (0, 1):
            self.wrong.append(f"attempt begins at {text}")
        self.last_id, self.position = text, new


async def follow(reading: Reading, stream: Stream) -> None:
    """Reads a stream to its end. Raises Cut; an end that says nothing is noted as damage, for it looks whole."""
    async for frame in stream.frames():
        reading.feed(frame)
    if not reading.done:
        reading.wrong.append("a clean end without [DONE]")
