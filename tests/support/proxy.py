"""A network that misbehaves on demand: a TCP proxy in a thread, in front of one server.

Hidden here: how each fault looks on the wire. `refuse` ends every connection, living and new, at once; `hold` is the
half-open peer that takes bytes and moves none (what was held goes on when it is over, as a network would do);
`lose_replies` lets a request through, waits until the server has answered, and cuts the connection instead of passing
the answer on; `answer` speaks for a server that says one thing to everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self

import hiredis

from tests.harness.loopback import LoopThread, stop_listening

LOADING = b"-LOADING Valkey is loading the dataset in memory\r\n"
_READ = 65536


class Proxy(LoopThread):
    """From `__enter__` on, `port` of loopback leads to the target: a unix socket's path or (host, port)."""

    def __init__(self, target: str | tuple[str, int]) -> None:
        super().__init__()
        self._target = target
        self._links: set[_Link] = set()
        self.port = 0
        self.refusing = False
        self.latency_s = 0.0
        self.lose: bytes = b""
        self.to_lose = 0
        self.lost = 0
        """Replies that never came, since the start."""
        self.saying: bytes | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        self.call(self._open())
        return self

    @property
    def live(self) -> int:
        """Connections at this moment."""
        return len(self._links)

    def heal(self) -> None:
        """Everything passes again."""

        def bury() -> None:
            for link in list(self._links):
                if link.dead:
                    link.cut()

        self._set(bury)

    def refuse(self) -> None:
        def down() -> None:
            self.refusing = True
            for link in list(self._links):
                link.cut()

        self._set(down)

    def hold(self) -> None:
        self._set(self._passing.clear)

    def forget(self) -> None:
        """The living connections go dead without a word; new ones work. A peer whose machine was replaced."""

        def silence() -> None:
            for link in self._links:
                link.dead = True

        self._set(silence)

    def lead_to(self, target: str | tuple[str, int]) -> None:
        """New connections lead there from now on; those that are open stay where they are."""
        self._set(lambda: setattr(self, "_target", target))

    def delay(self, seconds: float) -> None:
        """Every reply is late by this much."""
        self._set(lambda: setattr(self, "latency_s", seconds))

    def lose_replies(self, to: bytes, times: int) -> None:
        """The replies to requests that hold these bytes are lost, so many times."""

        def arm() -> None:
            self.lose, self.to_lose = to, times

        self._set(arm)

    def answer(self, reply: bytes) -> None:
        """Every command gets this reply, and none reaches the server."""
        self._set(lambda: setattr(self, "saying", reply))

    def _set(self, change: Callable[[], Any]) -> None:
        async def apply() -> None:
            self.refusing, self.latency_s, self.to_lose, self.saying = False, 0.0, 0, None
            self._passing.set()
            change()

        self.call(apply())

    async def _open(self) -> None:
        self._passing = asyncio.Event()
        self._passing.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        await stop_listening(self._server)
        self._passing.set()
        for link in list(self._links):
            link.cut()
        while tasks := [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
            await asyncio.wait(tasks, timeout=5)

    async def passed(self) -> None:
        await self._passing.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        try:
            await self.passed()
            if self.refusing:
                raise ConnectionRefusedError
            if isinstance(self._target, str):
                streams = await asyncio.open_unix_connection(self._target)
            else:
                streams = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), streams)
        if self.refusing:  # since a moment ago: it was no link yet, and not cut with the others
            link.cut()
            return
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)
            link.cut()


class _Link:
    """One client's connection and ours to the server."""

    def __init__(self, proxy: Proxy, client: tuple[Any, Any], server: tuple[Any, Any]) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._armed = False
        self.dead = False
        self._parser = hiredis.Reader()

    async def run(self) -> None:
        pumps = [asyncio.ensure_future(pump()) for pump in (self._up, self._down)]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    def cut(self) -> None:
        for _, writer in (self._client, self._server):
            writer.transport.abort()

    async def _up(self) -> None:
        proxy = self._proxy
        while data := await self._client[0].read(_READ):
            if self.dead:
                continue
            await proxy.passed()
            if proxy.saying is not None:
                self._parser.feed(data)
                while self._parser.gets() is not False:
                    self._client[1].write(proxy.saying)
                continue
            self._armed = self._armed or (proxy.to_lose > 0 and proxy.lose in data)
            self._server[1].write(data)
            await self._server[1].drain()
        self._server[1].close()  # what was written before still goes out
        await self._server[1].wait_closed()

    async def _down(self) -> None:
        proxy = self._proxy
        while data := await self._server[0].read(_READ):
            if self.dead:
                continue
            await proxy.passed()
            if self._armed and proxy.to_lose > 0:
                proxy.to_lose -= 1
                proxy.lost += 1
                return
            if proxy.latency_s:
                await asyncio.sleep(proxy.latency_s)
            self._client[1].write(data)
            await self._client[1].drain()
