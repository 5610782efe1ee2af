"""Making an object of one answer, as a worker's reaper does, when a test wants it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shared.config.settings import Settings
from shared.features.archive.archiver import Result
from shared.generations.core import Core
from shared.log.streamlog import StreamLog
from shared.store.redis import connect
from tests.harness.processes import wait_until


def archive(redis_url: str, data_dir: Path, generation_id: str) -> None:
    """Returns when it is one: it may be being settled."""
    wait_until(lambda: asyncio.run(_archive(redis_url, data_dir, generation_id)) is Result.MADE, what="it is an object")


async def _archive(redis_url: str, data_dir: Path, generation_id: str) -> Result:
    redis = connect(redis_url, max_connections=5)
    settings = Settings(data_dir=data_dir, archive_after_s=1, archive_least_bytes=0)
    log = StreamLog(redis, retention_s=settings.retention_s, safety_s=settings.retention_s)
    try:
        return await Core(redis, log, settings, name="test").archiver.archive(generation_id)
    finally:
        await redis.aclose(close_connection_pool=True)
