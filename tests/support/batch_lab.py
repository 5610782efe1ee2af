"""Batches in process, on a real Valkey and a directory: the worker that hands out and the one that answers, as tasks.

A worker that hands out can be killed, which is to stop where it is without another word, at any place of its code.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from shared.chat.request import BatchRequest
from shared.cli.embedded import EmbeddedValkey
from shared.config.settings import Settings
from shared.errors import Fenced, Unavailable
from shared.features.batch_head import BatchHead
from shared.generations.core import Core
from shared.lib.tasks import cancel
from shared.log.appender import Appender
from shared.log.streamlog import StreamLog
from shared.store.cluster.cells import Cells
from shared.store.keys import ONE
from shared.store.redis import ArqRedis, connect
from tests.harness.upstream import ScriptedUpstream
from tests.support.batch import ENDED, jsonl, line
from worker.batches.batcher import Batcher
from worker.generate import Generator
from worker.providers.registry import FAKE, Provider
from worker.summaries import Summaries
from worker.upstream.client import Upstream

OWNER = "ann"


class Killed(BaseException):
    """What nothing catches: from here on this worker does nothing more."""


class Lab:
    def __init__(self, redis: ArqRedis, settings: Settings, generator: Generator, core: Core, log: StreamLog) -> None:
        self.redis, self.settings, self.core, self.log = redis, settings, core, log
        self.broker, self.batches, self.files = core.broker, core.batches, core.files
        self.answering = asyncio.Event()
        self.answering.set()
        self._generator = generator
        self._tasks: dict[str, asyncio.Task[bool]] = {}

    # ---- who answers lines

    async def answer(self) -> None:
        """Runs every line that is there, while `answering` is set."""
        while True:
            await self.answering.wait()
            for generation_id, _ in await self.log.open_ids():
                if generation_id not in self._tasks:
                    self._tasks[generation_id] = asyncio.create_task(self._generator.run(generation_id, 1))
            for generation_id, task in list(self._tasks.items()):
                if task.done():
                    del self._tasks[generation_id]
            await asyncio.sleep(0.01)

    async def stop_ended(self) -> None:
        """What a worker does every few seconds: who is answered in vain is left."""
        await self._generator.running.stop_ended()

    async def stop(self) -> None:
        await cancel(*self._tasks.values())

    # ---- who hands them out

    def batcher(self) -> Batcher:
        """Another worker: what it learns of providers is its own."""
        return Batcher(self.redis, self.log, self.core, self.settings, worker_id="lab")

    async def run(self, batch_id: str, batcher: Batcher | None = None) -> bool:
        """Returns what `Batcher.run` does; None if it was killed."""
        with suppress(Killed):
            return await (batcher or self.batcher()).run(batch_id)
        return False

    @asynccontextmanager
    async def running(self, batch_id: str, batcher: Batcher | None = None) -> AsyncIterator[asyncio.Task[bool]]:
        """With a worker on it, which is asked to hand over in the end."""
        task = asyncio.create_task(self.run(batch_id, batcher))
        try:
            yield task
        finally:
            await cancel(task)

    # ---- batches

    async def start(self, content: bytes | list[dict[str, Any]], window: str = "24h", **fields: Any) -> str:
        data = content if isinstance(content, bytes) else jsonl(content)
        async with self.files.create(OWNER) as new:
            await new.write(data)
            new.finish(filename="in.jsonl", purpose="batch")
        body = {"input_file_id": new.id, "endpoint": "/v1/chat/completions", "completion_window": window, **fields}
        head, _ = await self.batches.create(BatchRequest.check(body), OWNER)
        batch_id: str = head["id"]
        return batch_id

    async def head(self, batch_id: str) -> BatchHead:
        return await self.batches.find(batch_id, OWNER)

    async def until(self, batch_id: str, condition: Callable[..., Any], what: str = "") -> BatchHead:
        async with asyncio.timeout(60):
            while True:
                with suppress(Unavailable):
                    if condition(head := await self.head(batch_id)):
                        return head
                await asyncio.sleep(0.01)

    async def until_open(self, count: int) -> None:
        """Until so many lines were begun and have no end."""
        async with asyncio.timeout(60):
            while len(await self.log.open_ids()) != count:  # noqa: ASYNC110 -- another task begins them
                await asyncio.sleep(0.01)

    async def expire(self, batch_id: str) -> None:
        """Its window is over, whoever may have it now."""
        while True:
            with suppress(Fenced):
                head = await self.head(batch_id)
                await self.batches.save(batch_id, head["epoch"], lambda head: head.update({"expires_at_ms": 1}))
                return

    async def ended(self, batch_id: str) -> BatchHead:
        return await self.until(batch_id, lambda head: head["status"] in ENDED)

    async def results(self, file_id: str | None) -> dict[str, dict[str, Any]]:
        """The lines of a file by `custom_id`, each of which is there once."""
        if file_id is None:
            return {}
        facts = await self.files.find(file_id, OWNER)
        text = b"".join([piece async for piece in self.files.read(facts)])
        found = [json.loads(one) for one in text.splitlines()]
        by_id = {one["custom_id"]: one for one in found}
        assert len(by_id) == len(found), "a custom_id is there twice"
        return by_id

    async def logs(self) -> list[str]:
        return sorted([key.decode() async for key in self.redis.scan_iter("*:log")])

    async def cancel(self, batch_id: str) -> None:
        await self.batches.cancel(batch_id, OWNER)

    def parts(self, batch_id: str) -> list[Path]:
        return sorted((Path(self.settings.data_dir) / "files" / "parts" / batch_id).glob("*"))


def few(count: int, model: str = "fake/echo", name: str = "line") -> list[dict[str, Any]]:
    return [line(f"{name}-{n}", model, prompt=f"{name} {n}") for n in range(count)]


@asynccontextmanager
async def open_lab(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, directory: Path, *, cells: Cells = ONE, **fields: Any
) -> AsyncIterator[Lab]:
    secret = f"{OWNER}:whsec_{base64.b64encode(bytes(32)).decode()}"
    settings = Settings(data_dir=directory, webhook_secret=secret, **fields)
    async with AsyncExitStack() as stack:
        url = valkey.url.replace("db=0", "db=2")
        redis: ArqRedis = connect(url, max_connections=50, timeout_s=60.0, wait_s=60.0, cells=cells)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        await redis.flushdb()
        log = StreamLog(redis, retention_s=600, safety_s=600)
        appender = await stack.enter_async_context(Appender(redis))
        client = await stack.enter_async_context(Upstream(settings))
        core = Core(redis, log, settings, name="w1")
        providers = {
            "scripted": Provider("scripted", "openai", upstream.base_url, None, ()),
            "fake": FAKE,
        }
        catalogue = {"aliases": {}, "providers": {name: {"models": [], "open": True} for name in providers}}
        await redis.set(redis.key.catalogue, json.dumps(catalogue), ex=600)
        generator = Generator(
            log,
            appender,
            client,
            providers,
            core.outcomes,
            core.settlement,
            settings,
            worker_id="w1",
            summaries=Summaries(core.broker, settings),
        )
        lab = Lab(redis, settings, generator, core, log)
        answering = asyncio.create_task(lab.answer())
        yield lab
        await cancel(answering)
        await lab.stop()
        await redis.flushdb()
