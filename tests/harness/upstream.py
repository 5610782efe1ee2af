"""A provider that plays what a test wrote, over real HTTP/1.1 on loopback: the one stand-in for all of them.

Hidden here: HTTP on the provider's side, one answer after the other on a connection, and every way in which one can end.

A test says what is answered in one of two ways. An `Answer` is data: writes, pauses, and how it ends. A function has the
`Wire` to itself and may do anything, in the order it likes. `ScriptedUpstream` runs beside the test and plays the `Script`
of the model that is asked for, `scripted/NAME` to Streamspool; `serving` plays one function to everybody, in the test's
own event loop.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self
from weakref import WeakSet

from tests.harness.loopback import LoopThread, stop_listening
from tests.harness.processes import free_port

# ---- what is said


def chunk(said: dict[str, Any] | str | None, finish: str | None = None, *, index: int = 0, **fields: Any) -> bytes:
    """One event as OpenAI sends it; `said` is a delta, or the text of one."""
    delta = {"content": said} if isinstance(said, str) else said or {}
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return _event(choices=[choice], **fields)


def usage(**figures: int) -> bytes:
    """The event after the last choice's."""
    return _event(choices=[], usage=figures)


def _event(**fields: Any) -> bytes:
    body = {"id": "up", "object": "chat.completion.chunk", "created": 1, "model": "up", **fields}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def words(count: int) -> list[bytes]:
    """A role chunk and `count` chunks `w0 `, `w1 `, …"""
    return [chunk({"role": "assistant", "content": ""}), *(chunk(f"w{i} ") for i in range(count))]


def whole(count: int) -> str:
    """What `words` says."""
    return "".join(f"w{i} " for i in range(count))


USAGE = usage(prompt_tokens=7, completion_tokens=5, total_tokens=12)
DONE = b"data: [DONE]\n\n"


def ending(*, usage: bool = True) -> list[bytes]:
    return [chunk({}, "stop"), *([USAGE] if usage else []), DONE]


# ---- one request, and what may be done to its connection


class Call(dict[str, Any]):
    """The JSON of one request, and how it came. `at` is of the monotonic clock; `closed` is set once it was played."""

    def __init__(self, body: dict[str, Any], head: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(body)
        self.head, self.headers = head, headers or {}
        self.at = time.monotonic()
        self.closed = asyncio.Event()

    @property
    def model(self) -> str:
        """Gemini's requests name it in their path: `/models/NAME:streamGenerateContent`."""
        in_path = re.match(r"POST \S*/models/([^/:?\s]+):", self.head)
        return self.get("model") or (in_path[1] if in_path else "")


END = b"0\r\n\r\n"
"""The last chunk of a body, which has none."""


class Wire:
    """The provider's side of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def call(self) -> Call:
        """The next request."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip("\r\n")
        lines = [line.partition(":") for line in head.split("\r\n")[1:]]
        headers = {name.lower(): value.strip() for name, _, value in lines}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Call(json.loads(body or b"{}"), head, headers)

    async def head(self, status: int = 200, **headers: str) -> None:
        """Status line and headers; `content_type` and `transfer_encoding` unless given, empty ones left out."""
        headers = {"content_type": "text/event-stream", "transfer_encoding": "chunked", **headers}
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value]
        await self.raw("\r\n".join([f"HTTP/1.1 {status} x", *lines, "", ""]).encode("latin-1"))

    async def send(self, *pieces: bytes) -> None:
        """Each piece as one HTTP chunk, all in one write."""
        await self.raw(b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces))

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def hung_up(self) -> None:
        """Waits until the client closes its side."""
        try:
            while await self.reader.read(1024):
                pass
        except ConnectionError:
            pass

    def reset(self) -> None:
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Play = Callable[[Wire], Awaitable[object]]
"""Answers one request. The connection is closed after it, unless it returns "keep"."""


# ---- answers as data


class Pause:
    """Holds the stream until the test says `go`; then, and ever after, it passes."""

    _made: ClassVar[WeakSet[Pause]] = WeakSet()

    def __init__(self) -> None:
        self._event = threading.Event()
        self._made.add(self)

    @classmethod
    def all_go(cls) -> None:
        """Nothing that any test holds is held any longer."""
        for pause in list(cls._made):
            pause.go()

    def go(self) -> None:
        self._event.set()

    async def passed(self) -> None:
        while not self._event.is_set():  # noqa: ASYNC110 - set from another thread
            await asyncio.sleep(0.005)


Part = bytes | float | Pause
End = Literal["clean", "silent", "cut", "eof", "rst", "hang"]
"""clean: as HTTP wants it. silent: whole, and the connection is closed although nothing said that it would be. cut: chunked,
without its last chunk. eof: no length at all. hang: open until the client hangs up."""


@dataclass
class Answer:
    """One response. Of `parts`, bytes are one write each, a number is a pause in seconds, a Pause a barrier."""

    parts: Iterable[Part] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})
    end: End = "clean"

    async def __call__(self, wire: Wire) -> None:
        send = wire.raw if self.end == "eof" else wire.send
        headers = {} if self.end == "eof" else {"transfer_encoding": "chunked"}
        headers |= {} if self.end == "silent" else {"connection": "close"}
        if self.status:
            await wire.head(self.status, **{"content_type": "", "transfer_encoding": "", **self.headers, **headers})
        for part in self.parts:
            if isinstance(part, bytes):
                await send(part)
            elif isinstance(part, Pause):
                await part.passed()
            else:
                await asyncio.sleep(part)
        if self.end == "hang":
            await asyncio.Event().wait()
        elif self.end in ("clean", "silent"):
            await wire.raw(END)
        elif self.end == "rst":
            await asyncio.sleep(0.05)  # a reset would overtake what is on its way
            wire.reset()


def refusal(status: int, code: str = "broken", **headers: str) -> Answer:
    """An error as OpenAI sends it."""
    body = json.dumps({"error": {"message": f"refused with {status}", "type": code, "param": None, "code": code}})
    return Answer([body.encode()], status, {"content-type": "application/json", **headers})


RESET = Answer(end="rst", status=0)
"""The connection is reset before a byte of a response."""


class Script:
    """What one model answers to call 1, 2, …, what it was asked, and how many hear it now or have left before its end."""

    def __init__(self, answer: Callable[[int], Answer]) -> None:
        self._answer = answer
        self.calls: list[Call] = []
        self.live = self.hung_up = 0

    async def play(self, wire: Wire) -> None:
        """Plays the answer to the last call until it is over or the client hangs up."""
        self.live += 1
        playing = asyncio.ensure_future(self._answer(len(self.calls))(wire))
        leaving = asyncio.ensure_future(wire.hung_up())
        try:
            await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            self.hung_up += not playing.done()
        finally:
            playing.cancel()
            leaving.cancel()
            await asyncio.gather(playing, leaving, return_exceptions=True)
            self.live -= 1


# ---- the server


class Server:
    """`calls` are the requests so far; `connections` counts accepted ones."""

    def __init__(self, play: Callable[[Call, Wire], Awaitable[object]], address: str = "127.0.0.1") -> None:
        self._play, self._address = play, address
        self._open: set[Wire] = set()
        self.calls: list[Call] = []
        self.connections = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://{self._address}:{self.port}/v1"

    async def listen(self) -> None:
        """At the same address as before, if there was one."""
        self._listener = await asyncio.start_server(self._serve, self._address, self.port, backlog=1024)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Nobody can connect any more."""
        await stop_listening(self._listener)

    async def leave(self) -> None:
        """It is gone: who is connected is cut off, too."""
        await self.close()
        for wire in list(self._open):
            wire.writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        self.connections += 1
        self._open.add(wire)
        try:
            said: object = "keep"
            while said == "keep":
                call = await wire.call()
                self.calls.append(call)
                try:
                    said = await self._play(call, wire)
                finally:
                    call.closed.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(wire)
            writer.close()


@asynccontextmanager
async def serving(play: Play) -> AsyncIterator[Server]:
    """Plays this to every request."""
    server = Server(lambda _, wire: play(wire))
    await server.listen()
    try:
        yield server
    finally:
        await server.close()


class ScriptedUpstream(LoopThread):
    """The server of scripts, in a thread of its own: a context manager. A model without one is answered 404."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__()
        self._scripts: dict[str, Script] = {}
        self._server = Server(self._play, address)
        self._server.port = free_port()  # which nobody takes while it is gone

    def script(self, name: str, parts: Iterable[Part] = (), **options: Any) -> Script:
        """From now on the model of this name answers so, with the options of an Answer."""
        return self.plan(name, Answer(parts, **options))

    def plan(self, name: str, *answers: Answer, by: Callable[[int], Answer] | None = None) -> Script:
        """The first, second, … call gets its own answer, and the last one is repeated; `by` makes them, where a list will
        not do."""
        self._scripts[name] = Script(by or (lambda call: answers[min(call, len(answers)) - 1]))
        return self._scripts[name]

    def forget(self, name: str) -> None:
        del self._scripts[name]

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def base_url(self) -> str:
        return self._server.url

    @property
    def live(self) -> int:
        return sum(script.live for script in list(self._scripts.values()))

    def __enter__(self) -> Self:
        super().__enter__()
        self.come_back()
        return self

    def leave(self) -> None:
        """It is gone: who is connected is cut off, and nobody can connect."""
        self.call(self._server.leave())

    def come_back(self) -> None:
        """At the same address."""
        self.call(self._server.listen())

    async def _close(self) -> None:
        await self._server.close()
        await super()._close()

    async def _play(self, call: Call, wire: Wire) -> None:
        script = self._scripts.get(call.model) or Script(lambda _: refusal(404, "model_not_found"))
        script.calls.append(call)
        await script.play(wire)
