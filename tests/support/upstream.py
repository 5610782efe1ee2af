"""A provider that plays what a test wrote: raw bytes with pauses, over real HTTP/1.1 on loopback.

A test registers a script under a name and asks for the model `scripted/NAME`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.support.loopback import ModelServer, Played


class Pause:
    """Holds the stream until the test says `go`; then, and ever after, it passes."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def go(self) -> None:
        self._event.set()

    async def passed(self) -> None:
        while not self._event.is_set():  # noqa: ASYNC110 - set from another thread
            await asyncio.sleep(0.005)


Part = bytes | float | Pause


@dataclass
class Script(Played):
    """What one model answers. `parts`: bytes are sent as one write, a number is a pause in seconds, a Pause a barrier."""

    parts: Iterable[Part] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})
    cut: bool = False


def chunk(delta: dict[str, Any], finish: str | None = None, *, index: int = 0, **fields: Any) -> bytes:
    """One upstream event as OpenAI sends it."""
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    body = {"id": "up", "object": "chat.completion.chunk", "created": 1, "model": "up", "choices": [choice], **fields}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def words(count: int) -> list[bytes]:
    """A role chunk and `count` chunks `w0 `, `w1 `, …"""
    return [chunk({"role": "assistant", "content": ""}), *(chunk({"content": f"w{i} "}) for i in range(count))]


def whole(count: int) -> str:
    """What `words` says."""
    return "".join(f"w{i} " for i in range(count))


USAGE = (
    b'data: {"id":"up","object":"chat.completion.chunk","created":1,"model":"up","choices":[],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def ending(*, usage: bool = True) -> list[bytes]:
    return [chunk({}, "stop"), *([USAGE] if usage else []), DONE]


class ScriptedUpstream(ModelServer[Script]):
    """The server, in a thread of its own. `script(name, …)` registers; the Script counts what happened to it."""

    def script(self, name: str, parts: Iterable[Part] = (), **options: Any) -> Script:
        self.models[name] = Script(parts, **options)
        return self.models[name]

    def unknown(self) -> Script:
        return Script(status=404)

    async def play(self, played: Script, call: int, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {played.status} X", *(f"{k}: {v}" for k, v in played.headers.items())]
        writer.write(("\r\n".join([*lines, "transfer-encoding: chunked", "connection: close"]) + "\r\n\r\n").encode())
        for part in played.parts:
            await writer.drain()
            if isinstance(part, bytes):
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            elif isinstance(part, Pause):
                await part.passed()
            else:
                await asyncio.sleep(part)
        if not played.cut:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
