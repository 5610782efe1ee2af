"""Blobs: what is too large for Redis (pictures, sounds, files, and long texts), in the file storage, once for each tenant.

Hidden here: who needs which blob, and that none is left when nobody does. A *holder* is a log or a session. Before anything
is stored, its name is on the list of what is to be removed (the files' own, `files-end`), and is taken off it only in the
transaction that notes its holder; so what a killed process left goes in a quarter of an hour. When a holder is gone, be it
deleted or expired, its blobs are let go of, and those that no other one holds are put on that list again, in one
transaction; the reaper does both. What is held already is not stored again, whoever of the tenant sends it.

What is taken out of a payload, and how an entry names it, is `shared.log.blobs`. Methods raise RedisError or OSError where
Redis is away, FileStorageFailed where the storage is.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

from shared.config.settings import Settings
from shared.errors import FileStorageFailed, RequestLost, StorageQuotaExceeded, StreamspoolError
from shared.features.storage import PIECE_BYTES, Missing, Storage
from shared.lib import json
from shared.lib.clock import now_ms
from shared.lib.telemetry import get_logger
from shared.log.blobs import INLINE_BYTES, Cut, Mark, Marks, Name, Stored, fill, new_copy, parse
from shared.log.entry import BLOBS_SINCE, Chunk
from shared.log.records import Header
from shared.store.redis import ArqRedis
from shared.store.transaction import Command, transact

logger = get_logger(__name__)

GRACE_MS = 15 * 60_000
"""How long what was stored may be without its log."""
_STORE_S = 300.0
"""How long it may take to store what one payload has: well within the grace."""
_AT_ONCE = 4
_PIECE_BYTES = 256 * 1024
"""What is copied in one go, on the event loop."""
_MULTIPART_BYTES = 8 * 1024 * 1024
_KEPT_MS = 400 * 86_400_000
"""Keys of blobs that were held last so long ago belong to nothing."""
DUE_MS = 60_000
"""What the reaper of files allows for other processes' clocks."""
_PAGE = 100
_LATER_MS = 1000
COPY = b"="
"""The field of a blob's hash that says which copy is stored, `COPY:SIZE`; the others are its holders."""
_TENANT = "tenant"
_SESSION = "session:"
_SAFE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
FOLDER = "blobs"


def object_name(tenant: str, name: Name) -> str:
    """Where it is in the storage."""
    assert _SAFE.fullmatch(tenant)
    return f"{FOLDER}/of-{tenant}/{name}"


def session_holder(tenant: str, session_id: str) -> str:
    """What a session is called as a holder; a log is called by its id."""
    return f"{_SESSION}{tenant}:{session_id}"


class Blobs:
    """All blobs of one Redis and its storage. Also the `Filler` of its logs."""

    def __init__(self, redis: ArqRedis, settings: Settings, storage: Callable[[], Storage]) -> None:
        """`storage` is made when it is first needed: most processes never see a blob."""
        self._redis, self._most, self._storage = redis, settings.max_blob_bytes, storage
        self._key = redis.key
        self.limit: Callable[[str], int | None] = lambda tenant: None
        """Of a tenant's, what it may store here, if that is less than the others may."""
        self.marks = Marks()
        self._turns = asyncio.Lock()

    # ---- taking out

    async def cut(self, payload: bytes | bytearray, of: Cut | None = None) -> Cut:
        """A payload apart, nothing stored; `of`: the cut from whose text it was made. What is large is looked at in a
        thread, one after the other: the event loop waits for one thread then, and not for each of several in turn."""
        if len(payload) <= INLINE_BYTES:
            return self.marks.cut(payload, of)
        async with self._turns:
            return await asyncio.to_thread(self.marks.cut, payload, of)

    async def digest(self, cut: Cut, text: bytes) -> str:
        """SHA-256, in hexadecimal, of a text that was made of the cut, as it is without marks."""
        if not cut.holes:
            return hashlib.sha256(text).hexdigest()
        return await asyncio.to_thread(cut.digest, text, self.marks)

    async def keep(self, holder: str, tenant: str, cut: Cut, *, accepted: bool = False) -> Stored:
        """Stores what was taken out, as far as the tenant has not stored it already, and returns the entry's data.

        To be called before the entry is written. It is kept as long as the holder is there, which may come within GRACE_MS.
        What follows from something that was `accepted` is stored whatever the tenant's quota says. Raises
        StorageQuotaExceeded, FileStorageFailed; then nothing is left of it, or not for longer.
        """
        if not cut.blobs:
            return cut.stored({})
        try:
            async with asyncio.timeout(_STORE_S):
                return cut.stored(await self._keep(holder, tenant, cut, 0 if accepted else self._quota(tenant)))
        except TimeoutError:
            raise FileStorageFailed from None

    def _quota(self, tenant: str) -> int:
        """0: none."""
        return min((most for most in (self._most, self.limit(tenant)) if most), default=0)

    async def store(
        self, holder: str, tenant: str, payload: bytes, *, accepted: bool = False, of: Cut | None = None
    ) -> Stored:
        """`cut` and `keep`."""
        if len(payload) <= INLINE_BYTES and not self.marks.are_in(payload):
            return Stored(payload)
        return await self.keep(holder, tenant, await self.cut(payload, of), accepted=accepted)

    async def chunks(self, header: Header, chunks: list[Chunk]) -> list[Chunk]:
        """Chunks of a log as they are stored: what of them is large is kept, unless an older version may read them."""
        if header.get("v", 1) < BLOBS_SINCE:
            return chunks
        for at, chunk in enumerate(chunks):
            if len(chunk.payload) > INLINE_BYTES:
                data, blobs = await self.store(header["id"], header["owner"], chunk.payload)
                chunks[at] = chunk._replace(payload=data, blobs=blobs)
        return chunks

    async def _keep(self, holder: str, tenant: str, cut: Cut, quota: int) -> dict[str, str]:
        new = {hole.name.digest: hole for hole in cut.blobs if hole.content is not None}
        held = [hole.name.digest for hole in cut.blobs if hole.content is None]
        copies = await self._hold(holder, tenant, [*new, *held])
        wanted = {
            digest: hole.content for digest, hole in new.items() if digest not in copies and hole.content is not None
        }
        if wanted:
            used = int(await self._redis.get(self._key.blob_bytes(tenant)) or 0)
            _check_quota(used + sum(map(len, wanted.values())), quota)
            mine = {digest: new_copy() for digest in wanted}
            names = [object_name(tenant, Name(digest, copy)) for digest, copy in mine.items()]
            await self._redis.zadd(self._key.files_end, dict.fromkeys(names, now_ms() + GRACE_MS))
            try:
                await self._put_all(dict(zip(names, wanted.values(), strict=True)))
                sizes = {digest: len(content) for digest, content in wanted.items()}
                copies |= await self._note(holder, tenant, mine, sizes, quota)
            except StreamspoolError:  # what was stored of it goes at once
                await self._redis.zadd(self._key.files_end, dict.fromkeys(names, now_ms() - DUE_MS))
                raise
        return copies

    async def _hold(self, holder: str, tenant: str, digests: Sequence[str]) -> dict[str, str]:
        """Holds those that are stored, and returns their copies."""
        found: dict[str, str] = {}
        keys = {digest: self._key.blob(tenant, digest) for digest in digests}

        def queue(pipe: Any, seen: list[Any]) -> None:
            found.clear()
            for (digest, key), copy in zip(keys.items(), seen, strict=True):
                if copy is not None:
                    found[digest] = copy.decode().partition(":")[0]
                    pipe.hset(key, holder, b"1")
                    pipe.pexpire(key, _KEPT_MS)
            if found:
                self._note_holder(pipe, holder, tenant, found)

        await transact(self._redis, list(keys.values()), [("HGET", key, COPY) for key in keys.values()], queue)
        return found

    def _note_holder(self, pipe: Any, holder: str, tenant: str, copies: dict[str, str]) -> None:
        """What it holds, and when it is looked whether it is still there."""
        key = self._key.blobs_of(holder)
        pipe.hset(key, mapping={_TENANT: tenant, **copies})
        pipe.pexpire(key, _KEPT_MS)
        pipe.zadd(self._key.blob_holders, {holder: now_ms() + GRACE_MS})

    async def _put_all(self, contents: dict[str, memoryview]) -> None:
        turns = asyncio.Semaphore(_AT_ONCE)

        async def put(name: str, content: memoryview) -> None:
            async with turns:
                await self._put(name, content)

        for result in await asyncio.gather(*(put(*one) for one in contents.items()), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _put(self, name: str, content: memoryview) -> None:
        if len(content) <= _MULTIPART_BYTES:
            await self._storage().put(name, content)
            return
        async with self._storage().create(name) as sink:
            for at in range(0, len(content), _PIECE_BYTES):
                await sink.write(content[at : at + _PIECE_BYTES])

    async def _note(
        self, holder: str, tenant: str, mine: dict[str, str], sizes: dict[str, int], quota: int
    ) -> dict[str, str]:
        """Says that these are stored, each as this copy or as one that another process has said meanwhile. What it finds to be
        its own copy was said before, by a transaction whose answer was lost: that stays as it is."""
        noted: dict[str, str] = {}
        keys = {digest: self._key.blob(tenant, digest) for digest in mine}
        used = self._key.blob_bytes(tenant)

        def queue(pipe: Any, seen: list[Any]) -> None:
            noted.clear()
            added = 0
            for (digest, key), copy in zip(keys.items(), seen[1:], strict=True):
                name = object_name(tenant, Name(digest, mine[digest]))
                if copy is None:
                    noted[digest] = mine[digest]
                    added += sizes[digest]
                    pipe.hset(key, COPY, f"{mine[digest]}:{sizes[digest]}")
                    pipe.zrem(self._key.files_end, name)
                else:
                    noted[digest] = copy.decode().partition(":")[0]
                    if noted[digest] != mine[digest]:
                        pipe.zadd(self._key.files_end, {name: now_ms() - DUE_MS})
                pipe.hset(key, holder, b"1")
                pipe.pexpire(key, _KEPT_MS)
            if added:
                _check_quota(int(seen[0] or 0) + added, quota)
                pipe.incrby(used, added)
                pipe.pexpire(used, _KEPT_MS)
            self._note_holder(pipe, holder, tenant, noted)

        looks: list[Command] = [("GET", used), *(("HGET", key, COPY) for key in keys.values())]
        await transact(self._redis, [used, *keys.values()], looks, queue)
        return noted

    # ---- putting back

    async def marked(self, tenant: str, stored: Stored) -> bytes:
        """An entry's data with marks for what was taken out; only a rest is read."""
        if stored.blobs is None:
            return stored.data
        holes, rest = parse(stored)
        data = stored.data if rest is None else await self._read(tenant, rest)
        return self.marks.marked(data, holes)

    async def parsed(self, tenant: str, stored: Stored) -> dict[str, Any]:
        """`marked` as JSON. Large texts are parsed in a thread."""
        text = await self.marked(tenant, stored)
        found: dict[str, Any] = (
            json.loads(text) if len(text) <= INLINE_BYTES else await asyncio.to_thread(json.loads, text)
        )
        return found

    async def whole(self, tenant: str, stored: Stored) -> bytes:
        """An entry's data as it was."""
        if stored.blobs is None:
            return stored.data
        holes, rest = parse(stored)
        data = stored.data if rest is None else await self._read(tenant, rest)
        names = {hole.name: hole.size for hole in holes}
        contents = {name: await self._read(tenant, Mark(name, size)) for name, size in names.items()}
        return fill(data, holes, contents)

    async def filled(self, tenant: str, text: bytes) -> bytes:
        """A text that may have marks, with what they stand for."""
        if not self.marks.are_in(text):
            return text
        return b"".join([piece async for piece in self.stream(tenant, text)])

    def length(self, text: bytes) -> int:
        """How many bytes `stream` gives."""
        return sum(piece.size if isinstance(piece, Mark) else len(piece) for piece in self.marks.split(text))

    async def stream(self, tenant: str, text: bytes) -> AsyncIterator[bytes]:
        """The same in pieces, of which one is held at a time."""
        for piece in self.marks.split(text):
            if isinstance(piece, Mark):
                async for some in self._pieces(tenant, piece):
                    yield some
            elif piece:
                yield piece

    async def _read(self, tenant: str, blob: Mark) -> bytes:
        return b"".join([piece async for piece in self._pieces(tenant, blob)])

    async def _pieces(self, tenant: str, blob: Mark) -> AsyncIterator[bytes]:
        """Raises RequestLost where it is not there, or not whole."""
        size = 0
        try:
            name = object_name(tenant, blob.name)
            async for piece in self._storage().read(name, 0, blob.size, at_once=PIECE_BYTES, piece=_PIECE_BYTES):
                size += len(piece)
                yield piece
        except Missing:
            pass
        if size != blob.size:
            logger.error("blob missing", tenant=tenant, found=size, bytes=blob.size)
            raise RequestLost

    # ---- letting go

    async def release_ended(self) -> None:
        """For the reaper: looks whether holders are still there, and lets go of what those held that are not."""
        while True:
            due = await self._redis.zrangebyscore(self._key.blob_holders, "-inf", now_ms(), start=0, num=_PAGE)
            for member in due:
                await self.release(member.decode())
            if len(due) < _PAGE:
                return

    async def release(self, holder: str) -> None:
        """Lets go of what it holds, unless it is there: then it is looked at again when it will have expired."""
        name, held = self._log_of(holder), self._key.blobs_of(holder)
        raw = await self._redis.hgetall(held)  # type: ignore[misc]
        tenant = raw.pop(_TENANT.encode(), b"").decode()
        copies = {digest.decode(): copy.decode() for digest, copy in raw.items()}
        keys = [self._key.blob(tenant, digest) for digest in copies]
        released: list[str] = []

        def queue(pipe: Any, seen: list[Any]) -> None:
            released.clear()
            left_ms, fields, *told = seen
            if left_ms != -2 or fields != len(raw) + bool(tenant):  # it is there, or has just got more
                pipe.zadd(self._key.blob_holders, {holder: now_ms() + max(0, left_ms) + _LATER_MS})
                return
            size = 0
            for at, (digest, key) in enumerate(zip(copies, keys, strict=True)):
                copy, mine, holders = told[3 * at : 3 * at + 3]
                pipe.hdel(key, holder)
                if copy is not None and holders == 1 + bool(mine):
                    stored, _, length = copy.decode().partition(":")
                    pipe.delete(key)
                    pipe.zadd(self._key.files_end, {object_name(tenant, Name(digest, stored)): now_ms() - DUE_MS})
                    released.append(digest)
                    size += int(length)
            if size:
                pipe.decrby(self._key.blob_bytes(tenant), size)
            pipe.delete(held)
            pipe.zrem(self._key.blob_holders, holder)

        looks: list[Command] = [("HLEN", held)]
        for key in keys:
            looks += [("HGET", key, COPY), ("HEXISTS", key, holder), ("HLEN", key)]
        if self._key.cells.apart:  # it is looked at before: what holds blobs is made within the grace time, or never
            left_ms = await self._redis.pttl(name)
            await transact(self._redis, [held, *keys], looks, lambda pipe, seen: queue(pipe, [left_ms, *seen]))
        else:
            await transact(self._redis, [name, held, *keys], [("PTTL", name), *looks], queue)
        if released:
            logger.info("blobs released", tenant=tenant, count=len(released))

    def _log_of(self, holder: str) -> str:
        """The key with which the holder is gone."""
        if holder.startswith(_SESSION):
            tenant, _, session_id = holder.removeprefix(_SESSION).partition(":")
            return self._key.session(tenant, session_id).turns
        return self._key.log(holder)


def _check_quota(size: int, quota: int) -> None:
    if 0 < quota < size:
        raise StorageQuotaExceeded(
            f"What is kept of this key's requests and answers may take {quota} bytes in the file storage "
            "(STREAMSPOOL_MAX_BLOB_BYTES). Delete some of them, or wait until older ones have expired."
        )


class OfTenant(NamedTuple):
    """What one tenant's texts are filled from."""

    blobs: Blobs
    tenant: str

    def are_in(self, text: bytes) -> bool:
        return self.blobs.marks.are_in(text)

    def length(self, text: bytes) -> int:
        return self.blobs.length(text)

    def stream(self, text: bytes) -> AsyncIterator[bytes]:
        return self.blobs.stream(self.tenant, text)

    async def filled(self, text: bytes) -> bytes:
        return await self.blobs.filled(self.tenant, text)
