"""A provider that plays what a test wrote: raw bytes with pauses, over real HTTP/1.1 on loopback.

A test registers a script under a name and asks for the model `scripted/NAME`.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self


class Pause:
    """Holds the stream until the test says `go`; then, and ever after, it passes."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def go(self) -> None:
        self._event.set()

    async def passed(self) -> None:
        while not self._event.is_set():  # noqa: ASYNC110 - set from another thread
            await asyncio.sleep(0.005)


@dataclass
class Script:
    """What one model answers. `parts`: bytes are sent as one write, a number is a pause in seconds, a Pause a barrier."""

    parts: Sequence[bytes | float | Pause] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})
    cut: bool = False
    calls: list[dict[str, Any]] = field(default_factory=list)
    request_headers: list[dict[str, str]] = field(default_factory=list)
    hung_up: int = 0
    live: int = 0


def chunk(delta: dict[str, Any], finish: str | None = None, *, index: int = 0, **fields: Any) -> bytes:
    """One upstream event as OpenAI sends it."""
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    body = {"id": "up", "object": "chat.completion.chunk", "created": 1, "model": "up", "choices": [choice], **fields}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def words(count: int) -> list[bytes]:
    """A role chunk and `count` chunks `w0 `, `w1 `, …"""
    return [chunk({"role": "assistant", "content": ""}), *(chunk({"content": f"w{i} "}) for i in range(count))]


USAGE = (
    b'data: {"id":"up","object":"chat.completion.chunk","created":1,"model":"up","choices":[],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def ending(*, usage: bool = True) -> list[bytes]:
    return [chunk({}, "stop"), *([USAGE] if usage else []), DONE]


def _model_in(head: str) -> str:
    """Gemini's requests name the model in their path: `/models/NAME:streamGenerateContent`."""
    found = re.match(r"POST \S*/models/([^/:?\s]+):", head)
    return found[1] if found else ""


class ScriptedUpstream:
    """The server, in a thread of its own. `script(name, …)` registers; the Script counts what happened to it."""

    def __init__(self) -> None:
        self._scripts: dict[str, Script] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", self.port), self._loop
        ).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        async def stop() -> None:
            self._server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def script(self, name: str, parts: Sequence[bytes | float | Pause] = (), **options: Any) -> Script:
        self._scripts[name] = Script(parts, **options)
        return self._scripts[name]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            headers = {
                k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head.split("\r\n")[1:]) if k
            }
            length = re.search(r"content-length:\s*(\d+)", head, re.I)
            body = json.loads(await reader.readexactly(int(length[1])) if length else b"{}")
            script = self._scripts.get(body.get("model") or _model_in(head), Script(status=404))
            script.calls.append(body)
            script.request_headers.append(headers)
            script.live += 1
            playing = asyncio.ensure_future(self._play(script, writer))
            hang_up = asyncio.ensure_future(reader.read(1))
            try:
                await asyncio.wait({playing, hang_up}, return_when=asyncio.FIRST_COMPLETED)
                if not playing.done():
                    script.hung_up += 1
            finally:
                playing.cancel()
                hang_up.cancel()
                await asyncio.gather(playing, hang_up, return_exceptions=True)
                script.live -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _play(self, script: Script, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {script.status} X", *(f"{k}: {v}" for k, v in script.headers.items())]
        writer.write(("\r\n".join([*lines, "transfer-encoding: chunked", "connection: close"]) + "\r\n\r\n").encode())
        for part in script.parts:
            await writer.drain()
            if isinstance(part, bytes):
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            elif isinstance(part, Pause):
                await part.passed()
            else:
                await asyncio.sleep(part)
        if not script.cut:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
