"""Makes objects of logs that have ended, and removes those of logs that are gone: an effect of each end, and the reaper's part.

Hidden here: that Redis stays the only truth until the object is known to be there. Its name is put on the list of what is to
be removed (the files' own, `files-end`); then it is stored, flushed to disk where that is a directory, and read back, byte for
byte; then one transaction puts in the log's place what stays of it, and takes the name off that list. A process that is killed
before leaves the log as it was and an object that goes in a quarter of an hour, one that is killed after leaves nothing to do.
A process that was stopped for longer than its lease can change nothing any more.

Methods raise RedisError or OSError where Redis is away. A storage that fails is asked again later.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Any

from shared.config.settings import Settings
from shared.errors import Damaged, FileStorageFailed
from shared.features.archive.objects import StoredObjects
from shared.features.blobs import DUE_MS, GRACE_MS
from shared.features.effect import Commands, Ended
from shared.features.storage import Missing, Storage
from shared.lib.clock import now_ms
from shared.lib.tasks import work_off
from shared.lib.telemetry import ARCHIVED, get_logger
from shared.log.archive.form import FOLDER, ArchiveWriter, Name, Whole, pointer_in
from shared.log.decoding import Archived
from shared.log.entry import SEAL
from shared.log.streamlog import StreamLog
from shared.store.commands import exchange, pack
from shared.store.redis import ArqRedis
from shared.store.transaction import Command, commit, transact

logger = get_logger(__name__)

LEASE_MS = 120_000
"""Well within the grace: what a process may still put in a log's place is not removed meanwhile."""
MARKED_MS = 7_200_000
"""So long it stays marked as settled, and no longer: what is an object was."""
_STORE_S = 60.0
_AT_ONCE = 4
_PAGE = 64
_READY_S = 1.0
_POSTPONED_MS = 60_000
_LATER_MS = 1000
_LEFT_MS = 3_600_000
"""What has been due for so long while logs stay where they are will not be done."""
_FIRST_COUNT, _LARGEST_COUNT, _PAGE_BYTES = 100, 2000, 1024 * 1024
_MULTIPART_BYTES, _PIECE_BYTES = 8 * 1024 * 1024, 256 * 1024


class Result(Enum):
    """What came of a log that was due."""

    MADE = "made"
    LEFT = "left"
    """It stays in Redis: it is gone, has not ended, is small, an object already, or lacks an entry."""
    LATER = "later"
    """Another process is on it, or the storage failed."""


class Archiver:
    """One for each process. Its log reads objects from then on, whoever made them."""

    def __init__(self, redis: ArqRedis, log: StreamLog, settings: Settings, storage: Callable[[], Storage]) -> None:
        self._redis, self._key, self._log, self._storage = redis, redis.key, log, storage
        log.objects = StoredObjects(storage)
        self._after_ms, self._least = int(settings.archive_after_s * 1000), settings.archive_least_bytes

    async def effect(self, ended: Ended) -> Commands | None:
        """Says when its log becomes an object. That of a batch's line does not: it goes with its answer into a file."""
        if not self._after_ms or ended.header.get("batch") is not None:
            return None
        due_ms, generation_id = now_ms() + self._after_ms, ended.header["id"]

        def add(pipe: Any) -> None:
            pipe.zadd(self._key.to_archive, {generation_id: due_ms})

        return add

    async def get_ready(self) -> None:
        """Where answers move, the first who reads an old one is not to wait until the storage's library is loaded, has its
        threads and, to a bucket, a connection."""
        if not self._after_ms:
            return
        await asyncio.to_thread(Storage.load)
        with suppress(Missing, FileStorageFailed, TimeoutError):
            async with asyncio.timeout(_READY_S):
                async for _ in self._storage().read(f"{FOLDER}/none", 0, 1):
                    pass

    async def archive_due(self) -> None:
        """For the reaper: makes objects of what is due, for two seconds, a few at a time."""
        if not self._after_ms:
            await self._redis.zremrangebyscore(self._key.to_archive, "-inf", now_ms() - _LEFT_MS)
            return
        made = 0

        async def one(generation_id: str) -> bool:
            nonlocal made
            result = await self.archive(generation_id)
            made += result is Result.MADE
            return result is not Result.LATER

        async def due() -> list[bytes]:
            found: list[bytes] = await self._redis.zrangebyscore(
                self._key.to_archive, "-inf", now_ms(), start=0, num=_PAGE
            )
            return found

        try:
            await work_off(due, one, at_once=_AT_ONCE)
        finally:
            if made:
                logger.info("logs archived", count=made)

    async def archive(self, generation_id: str) -> Result:
        """Makes an object of this log now, unless another process does or it is not to be."""
        lease = secrets.token_hex(8)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self._key.archiving(generation_id), lease, nx=True, px=LEASE_MS)
            (taken,) = await commit(pipe)
        if not taken:
            return Result.LATER
        try:
            async with asyncio.timeout(_STORE_S):
                return await self._archive(generation_id, lease)
        except (FileStorageFailed, TimeoutError) as problem:
            logger.warning("log not archived", generation_id=generation_id, error=type(problem).__name__)
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.zadd(self._key.to_archive, {generation_id: now_ms() + _POSTPONED_MS}, xx=True)
                await commit(pipe)
        return Result.LATER

    async def _archive(self, generation_id: str, lease: str) -> Result:
        found = await self._read(generation_id)
        if found is None:
            await self._redis.zrem(self._key.to_archive, generation_id)
            await self._redis.delete(self._key.archiving(generation_id))
            return Result.LEFT
        name, whole = found
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(self._key.files_end, {str(name): now_ms() + GRACE_MS})
            await commit(pipe)
        await self._store(str(name), whole.data)
        if not await self._replace(name, whole, lease):
            return Result.LATER
        ARCHIVED.inc()
        return Result.MADE

    async def _read(self, generation_id: str) -> tuple[Name, Whole] | None:
        """The object of a log; None where it is not to be one: gone, not ended, small, one already, or not whole."""
        writer, count, key = ArchiveWriter(generation_id), _FIRST_COUNT, self._key.log(generation_id).encode()
        where = self._redis.at(self._key.cells.of(generation_id))
        while writer.position != SEAL:
            start = b"(%d-%d" % writer.position
            raw = await exchange(where, pack(b"XRANGE", key, start, b"+", b"COUNT", b"%d" % count))
            if not raw:
                return None
            before = writer.bytes
            try:
                await asyncio.to_thread(writer.feed, raw)
            except Archived:
                return None
            except Damaged as problem:
                logger.error("log not archived", generation_id=generation_id, why=str(problem))
                return None
            count = max(1, min(_LARGEST_COUNT, _PAGE_BYTES * len(raw) // (writer.bytes - before + 1)))
        if writer.bytes < self._least:
            return None
        name = Name(writer.tenant, generation_id, secrets.token_hex(4))
        return name, writer.finish(name.copy)

    async def _store(self, name: str, data: bytes) -> None:
        """Returns once the object is there for good, byte for byte."""
        storage = self._storage()
        if len(data) <= _MULTIPART_BYTES:
            await storage.put(name, data)
        else:
            async with storage.create(name) as sink:
                for at in range(0, len(data), _PIECE_BYTES):
                    await sink.write(data[at : at + _PIECE_BYTES])
        await storage.flush(name)
        at = 0
        with suppress(Missing):
            async for piece in storage.read(name):
                if piece != data[at : at + len(piece)]:
                    break
                at += len(piece)
        if at != len(data):
            logger.error("object not as it was stored", object=name, bytes=len(data), found=at)
            raise FileStorageFailed

    async def _replace(self, name: Name, whole: Whole, lease: str) -> bool:
        """Puts what stays in the log's place, if that is what was read, and the lease still held. Whether it did."""
        key, mine, object_name = self._key.log(name.generation_id), self._key.archiving(name.generation_id), str(name)
        kept = self._key.kept(name.generation_id)
        done = False

        def queue(pipe: Any, seen: list[Any]) -> None:
            nonlocal done
            left_s, entries, end, holder = seen
            done = (
                left_s >= 0
                and entries == whole.entries
                and bool(end)
                and end[0][1][:2] == [b"o", whole.seal]
                and holder == lease.encode()
            )
            if not done:  # deleted, or another log under this id; or too late
                pipe.control.zadd(self._key.files_end, {object_name: now_ms() - DUE_MS}, xx=True)
                return
            # A copy has no more memory than it needs: a new stream has 4 kB, however short it is (streamDup and
            # STREAM_LISTPACK_MAX_PRE_ALLOCATE in src/t_stream.c).
            for entry_id, fields in whole.kept:
                pipe.xadd(kept, dict(zip(fields[::2], fields[1::2], strict=True)), id=entry_id)
            pipe.copy(kept, key, replace=True)
            pipe.delete(kept)
            pipe.pexpire(key, _ms(left_s))
            pipe.zadd(self._archived(name), {object_name: now_ms() + _ms(left_s) + _LATER_MS})
            pipe.delete(mine)
            if _ms(left_s) > MARKED_MS:
                pipe.pexpire(self._key.settled(name.generation_id), MARKED_MS)
                if self._key.cells.apart:
                    pipe.control.pexpire(self._key.charged(name.generation_id), MARKED_MS)
            pipe.control.zrem(self._key.files_end, object_name)
            pipe.control.zrem(self._key.to_archive, name.generation_id)

        looks: list[Command] = [("TTL", key), ("XLEN", key), ("XREVRANGE", key, "+", "-", "COUNT", 1), ("GET", mine)]
        await transact(self._redis, [key, mine], looks, queue)
        return done

    async def release_ended(self) -> None:
        """For the reaper: removes the objects of logs that are gone."""

        async def due() -> list[bytes]:
            for cell in self._key.cells.all:
                found: list[bytes] = await self._redis.zrangebyscore(
                    self._key.archived(cell), "-inf", now_ms(), start=0, num=_PAGE
                )
                if found:
                    return found
            return []

        await work_off(due, self._release, at_once=_AT_ONCE)

    async def _release(self, text: str) -> bool:
        name = Name.parse(text)
        assert name is not None
        key = self._key.log(name.generation_id)

        def queue(pipe: Any, seen: list[Any]) -> None:
            left_s, end = seen
            if _leads_to(name, end):  # kept for longer than was said
                pipe.zadd(self._archived(name), {text: now_ms() + _ms(left_s) + _LATER_MS})
            else:
                pipe.zrem(self._archived(name), text)
                pipe.control.zadd(self._key.files_end, {text: now_ms() - DUE_MS})

        looks: list[Command] = [("TTL", key), ("XREVRANGE", key, "+", "-", "COUNT", 1)]
        await transact(self._redis, [key], looks, queue, control_first=True)
        return True

    async def is_needed(self, text: str) -> bool:
        """Whether a log leads to this object. Asked before one is removed: where the control is apart, the list of what is to
        go may not have heard of the exchange."""
        if (name := Name.parse(text)) is None:
            return False
        return _leads_to(name, await self._redis.xrevrange(self._key.log(name.generation_id), count=1))

    def _archived(self, name: Name) -> str:
        return self._key.archived(self._key.cells.of(name.generation_id))


def _leads_to(name: Name, end: Any) -> bool:
    """Whether this is the copy that a log's last entry points to."""
    pointer = pointer_in(end)
    return pointer is not None and pointer.copy == name.copy


def _ms(left_s: int) -> int:
    """What TTL rounds, never less. In milliseconds, as PTTL tells it, it would be another one at each look: see `transact`."""
    return (left_s + 1) * 1000
