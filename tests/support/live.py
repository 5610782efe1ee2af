"""The live part of an API process without a server: a hub and responses on a real Valkey, and ASGI clients of them."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from api.live.cursor import Cursor
from api.live.drain import Drain
from api.live.event_stream import EventStream
from api.live.hub import Hub
from api.live.projection import Projection
from api.services import Services
from api.surfaces.streams.projection import native_events
from shared.config.settings import Settings
from shared.log.appender import Appender
from shared.log.entry import VERSION, Chunk
from shared.log.following import BLOCK_MS
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from shared.store.redis import ArqRedis, connect
from tests.harness.records import attempt_with, header_with, outcome_with

COMPLETED = outcome_with({"status": "completed", "ended_at_ms": 2, "by": "w", "error": None})
NATIVE = native_events(include_usage=False)


class Viewer:
    """An ASGI client: what it was sent, a way to make it slow, and a way to hang up. It is its own connection, too."""

    chunked = False

    def __init__(self, response: Callable[..., Awaitable[None]]) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.over = False
        self.aborted = False
        self.reading = asyncio.Event()
        self.reading.set()
        self._gone = asyncio.Event()
        self.transport = self
        self.on_lost: Callable[[], None] | None = None
        self.lost = False
        self.written = 0
        self._unread = b""
        scope = {"type": "http", "method": "GET", "extensions": {"streamspool.connection": self}}
        self.task = asyncio.ensure_future(response(scope, self._receive, self._send))

    def asked(self) -> None:
        """It keeps nothing for those who would ask."""

    begun = hold_head = asked

    async def _receive(self) -> dict[str, str]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    def write(self, data: bytes) -> None:
        """One chunk of an HTTP response, whole."""
        if self.lost:
            raise RuntimeError("unable to perform operation: the handler is closed")  # as uvloop does
        size, _, rest = data.partition(b"\r\n")
        assert int(size, 16) == len(rest) - 2
        assert rest.endswith(b"\r\n")
        self.written += 1
        self._unread += rest[:-2]
        if self.reading.is_set():
            self._read()

    def is_closing(self) -> bool:
        return self.lost

    def get_write_buffer_size(self) -> int:
        return max(len(self._unread), not self.reading.is_set())

    def _read(self) -> None:
        self.body, self._unread = self.body + self._unread, b""

    async def _send(self, message: dict[str, Any]) -> None:
        await self.reading.wait()
        self._read()
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.body += message["body"]
            self.over = not message.get("more_body", False)

    def hang_up(self) -> None:
        self.lost = True
        self._gone.set()
        if self.on_lost:
            self.on_lost()

    def abort(self) -> None:
        self.aborted = True
        self.hang_up()

    close = abort

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(60):
            while text not in self.body:  # noqa: ASYNC110 -- filled by the response under test
                await asyncio.sleep(0.002)

    @property
    def words(self) -> list[str]:
        """What `Bench.say` says, as it was seen."""
        return re.findall(r'"(w\d+)"', self.body.decode())


class Bench:
    """A process without a server, and the writer's side of its logs."""

    def __init__(self, parts: Services, appender: Appender, redis: ArqRedis) -> None:
        self.parts, self.log, self.appender, self.redis = parts, parts.broker.log, appender, redis

    async def log_of(self, *words: int, epoch: int = 1) -> Writer:
        generation_id = f"chatcmpl-{uuid.uuid4().hex}"
        header = header_with({"v": VERSION, "id": generation_id, "owner": "a", "created_at_ms": 1, "model": "m"})
        await self.log.create(header, b"{}")
        writer, _, _ = await self.log.claim(self.appender, generation_id, epoch, attempt_with({"at_ms": 1}))
        await self.say(writer, *words)
        return writer

    async def say(self, writer: Writer, *words: int) -> None:
        await writer.append([Chunk(b'{"x":"w%d"}' % word) for word in words])

    def watch(
        self,
        writer: Writer,
        events: Projection = NATIVE,
        cursor: Cursor | None = None,
        rate: float | None = None,
        made: int = 1,
    ) -> Viewer:
        header = header_with(
            {"id": writer.generation_id, "owner": "a", "created_at_ms": made, "max_tokens_per_s": rate}
        )
        return Viewer(EventStream(self.parts, header, events, cursor=cursor, headers={}))

    async def end(self, *viewers: Viewer) -> None:
        async with asyncio.timeout(200):  # many of long logs are work, and the machine may be others' as well
            await asyncio.gather(*(viewer.task for viewer in viewers))


@asynccontextmanager
async def open_bench(server_url: str) -> AsyncIterator[Bench]:
    """On a database of the server that is its own while it is open."""
    settings = Settings(keepalive_s=30, send_timeout_s=0.2)
    async with AsyncExitStack() as stack:
        url = server_url.replace("db=0", "db=1")
        redis = connect(url, max_connections=10, timeout_s=60.0, wait_s=60.0)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        reading = connect(url, max_connections=2, timeout_s=5 + BLOCK_MS / 1000)
        stack.push_async_callback(reading.aclose, close_connection_pool=True)
        await redis.flushdb()
        appender = await stack.enter_async_context(Appender(redis))
        log = StreamLog(redis, retention_s=60, safety_s=600)
        hub = await stack.enter_async_context(
            Hub(log, reading, grace_s=settings.disconnect_grace_s, keepalive_s=settings.keepalive_s)
        )
        yield Bench(Services(redis, log, settings, hub, Drain(), name="t"), appender, redis)
        await redis.flushdb()
