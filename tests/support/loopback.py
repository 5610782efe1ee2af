"""What lives beside a test, in a thread with an event loop of its own, and goes on while the test is busy breaking things.

`LoopThread` is that thread. `ModelServer` is an HTTP/1.1 server in it that plays a provider: it reads a request, finds
what its model is to do, and plays that until it is over or the client hangs up.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from abc import abstractmethod
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

_PATIENCE_S = 10.0

T = TypeVar("T")


class LoopThread:
    """`start` runs a coroutine there, `call` waits for it. A context manager; what still runs at its end is cancelled."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.start(coroutine).result(_PATIENCE_S)

    async def _close(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(kw_only=True)
class Played:
    """What a model was asked, and how many hear it now. Times are of the monotonic clock."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    called_at: list[float] = field(default_factory=list)
    request_headers: list[dict[str, str]] = field(default_factory=list)
    hung_up: int = 0
    live: int = 0


P = TypeVar("P", bound=Played)


def _model_in(request_line: str) -> str:
    """Gemini's requests name the model in their path: `/models/NAME:streamGenerateContent`."""
    found = re.match(r"POST \S*/models/([^/:?\s]+):", request_line)
    return found[1] if found else ""


class ModelServer(LoopThread, Generic[P]):
    """Subclasses say what a model does: `unknown` makes what one does that is not in `models`, `play` does it."""

    def __init__(self) -> None:
        super().__init__()
        self.models: dict[str, P] = {}
        self.port = 0
        self._connections: set[asyncio.StreamWriter] = set()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def live(self) -> int:
        return sum(played.live for played in list(self.models.values()))

    @abstractmethod
    def unknown(self) -> P: ...

    @abstractmethod
    async def play(self, played: P, call: int, writer: asyncio.StreamWriter) -> None:
        """Writes the response to call 1, 2, …"""

    def __enter__(self) -> Self:
        super().__enter__()
        self.come_back()
        return self

    def leave(self) -> None:
        """It is gone: who is connected is cut off, and nobody can connect."""
        self.call(self._leave())

    async def _leave(self) -> None:
        self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()

    def come_back(self) -> None:
        """At the same address."""
        self._server = self.call(asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024))
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        await super()._close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            asked, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name
            }
            body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
            played = self.models.get(body.get("model") or _model_in(asked)) or self.unknown()
            played.calls.append(body)
            played.called_at.append(time.monotonic())
            played.request_headers.append(headers)
            played.live += 1
            playing = asyncio.ensure_future(self.play(played, len(played.calls), writer))
            leaving = asyncio.ensure_future(reader.read(1))
            try:
                await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
                played.hung_up += not playing.done()
            finally:
                playing.cancel()
                leaving.cancel()
                await asyncio.gather(playing, leaving, return_exceptions=True)
                played.live -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()
