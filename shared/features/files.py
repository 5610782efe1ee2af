"""Files: what is uploaded for batches, and what batches leave. OpenAI's file object to the field.

Hidden here: what a file is made of, an object in the storage and a few facts in Redis, and that neither is left without
the other: before anything is stored, the file's name is on a list with the time when it goes, and is moved to the end of
its life only with its facts. The reaper removes what is due, be it old or the rest of an upload whose server was killed.
Ownership is checked here and nowhere else: another tenant's file is NotFound.

Source: platform.openai.com/docs/api-reference/files. Unlike there, every file expires.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from typing import Any

from shared.config.settings import Settings
from shared.errors import BadRequest, FileStorageFailed, NotFound, StorageQuotaExceeded
from shared.features.idempotency import Idempotency, fingerprint, key_digest
from shared.features.storage import Missing, Sink, Storage
from shared.lib import json
from shared.lib.clock import now_ms
from shared.lib.tasks import work_off
from shared.lib.telemetry import get_logger
from shared.store.availability import deadline, translate_errors
from shared.store.conditional import Amount, Found, under
from shared.store.confirm import Confirmer
from shared.store.merged import merged, paged
from shared.store.redis import ArqRedis
from shared.store.transaction import commit, raise_first

logger = get_logger(__name__)

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
OUTPUT = "batch_output"
UPLOAD_S = 3600.0
"""How long an upload may take in all."""

_LEAST_LIFE_S, _LONGEST_LIFE_S = 3600, 2_592_000
_ID = re.compile(r"file-[0-9a-f]{32}")
_SECONDS = re.compile(r"[0-9]{1,9}")
_PAGE = 500
_SLACK_MS = 60_000
_REMOVED_AT_ONCE = 16
_FORM_BYTES = 2048
"""Of a form, more than what is around its file, if its names are not longer than others'."""
_BYTES_LIFE_S = _LONGEST_LIFE_S + 86400
_FORGET_AT = 100
"""So many more sizes than files are noted: some are of files that are gone."""
_NOT_FOUND = "There is no file with this id. It may have expired, or belong to another tenant."


def check_life(seconds: object, anchor: object, param: str) -> int:
    """`{anchor, seconds}` as OpenAI takes it: how long a file is kept once it is there. Raises BadRequest."""
    if anchor != "created_at":
        raise BadRequest(f"{param}[anchor] must be `created_at`.", param=f"{param}[anchor]")
    text = str(seconds)
    if (
        isinstance(seconds, bool)
        or not (text.isascii() and text.isdigit())
        or not _LEAST_LIFE_S <= int(text) <= _LONGEST_LIFE_S
    ):
        raise BadRequest(
            f"{param}[seconds] must be a whole number from {_LEAST_LIFE_S} to {_LONGEST_LIFE_S}.",
            param=f"{param}[seconds]",
        )
    return int(text)


def object_name(file_id: str) -> str:
    """Where its bytes are in the storage."""
    return file_id


class Files:
    """Create, find, list, read, delete. Raises Unavailable where Redis is away, FileStorageFailed where the storage is."""

    def __init__(self, redis: ArqRedis, settings: Settings, confirmer: Confirmer | None = None) -> None:
        self._redis, self._settings, self._confirmer = redis, settings, confirmer
        self._key = redis.key
        self.limit: Callable[[str], int | None] = lambda tenant: None
        """How many bytes a tenant's files may take."""
        self.is_needed: Callable[[str], Awaitable[bool]] | None = None
        """Whether something is not to be removed, although it is on the list of what is."""

    @cached_property
    def storage(self) -> Storage:
        return Storage(self._settings.files_location)

    @asynccontextmanager
    async def create(
        self, tenant: str, file_id: str | None = None, *, length: int | None = None
    ) -> AsyncIterator[NewFile]:
        """A file to be written; it is there once `finish` was called and the context has ended well.

        Given an id, it is made again in the place of what an earlier try left. `length` is that of the form it comes in, if it
        is known: there is room for it from the beginning, or StorageQuotaExceeded is raised.
        """
        new = NewFile(file_id or f"file-{uuid.uuid4().hex}", tenant)
        new.accepted, new.grow = file_id is not None, lambda size: self._grow(new, size)
        end_ms = now_ms() + int(2 * UPLOAD_S * 1000)
        with translate_errors():
            await self._note(
                new, max(0, (length or 0) - _FORM_BYTES), lambda pipe: pipe.zadd(self._key.files_end, {new.id: end_ms})
            )
        try:
            async with self.storage.create(object_name(new.id)) as sink:
                new.sink = sink
                yield new
            await self._register(new)
            if file_id is None and self._confirmer:  # an upload, which its owner is told about
                async with deadline():
                    with translate_errors():
                        await self._confirmer.promise(background=True)
        except BaseException:
            if file_id is None:
                await self._remove(new)
            raise

    async def _note(self, new: NewFile, size: int, queue: Callable[[Any], object]) -> None:
        """Does what is queued, and says how much the file takes, in one step with the look whether it may. What a batch leaves
        was accepted long ago: it is written also where memory is full, and whatever the limit. Raises StorageQuotaExceeded."""
        name, most = self._key.file_bytes(new.tenant), None if new.accepted else self.limit(new.tenant)
        if most is None:
            async with self._redis.pipeline(transaction=True) as pipe:
                queue(pipe)
                pipe.hset(name, new.id, str(size))
                pipe.expire(name, _BYTES_LIFE_S)
                await (commit(pipe) if new.accepted else pipe.execute())
            return
        await self._learn_sizes(new.tenant)
        execute = under([_Quota(new, Amount(name, most, size, new.id, _BYTES_LIFE_S))])
        for is_last in (False, True):
            async with self._redis.pipeline(transaction=True) as pipe:
                queue(pipe)
                try:
                    raise_first(await execute(pipe) if execute else [])
                    return
                except StorageQuotaExceeded:
                    if is_last or not await self._forget_sizes(new.tenant):
                        raise

    async def _grow(self, new: NewFile, size: int) -> None:
        with translate_errors():
            await self._note(new, size, lambda pipe: None)

    async def _learn_sizes(self, tenant: str) -> None:
        """Of files that an older version made, which noted none."""
        name = self._key.file_bytes(tenant)
        if not await self._redis.exists(name):
            sizes = {facts["id"]: facts["bytes"] async for facts in self.listed(tenant)}
            async with self._redis.pipeline(transaction=True) as pipe:
                for file_id, size in sizes.items():
                    pipe.hsetnx(name, file_id, str(size))
                pipe.expire(name, _BYTES_LIFE_S)
                await pipe.execute()

    async def _forget_sizes(self, tenant: str) -> bool:
        """Of files that have expired, and of uploads that were never finished: what is not to be removed any more is gone.
        Returns whether there were any."""
        name = self._key.file_bytes(tenant)
        ids: list[bytes] = await self._redis.hkeys(name)  # type: ignore[misc]
        async with self._redis.pipeline(transaction=False) as pipe:
            for file_id in ids:
                pipe.zscore(self._key.files_end, file_id)
            ends = await pipe.execute() if ids else []
        gone = [file_id for file_id, end in zip(ids, ends, strict=True) if end is None]
        if gone:
            await self._redis.hdel(name, *(file_id.decode() for file_id in gone))  # type: ignore[misc]
        return bool(gone)

    async def _register(self, new: NewFile) -> None:
        created = now_ms()
        life_ms = int((new.life_s or self._settings.files_retention_s) * 1000)
        facts = {
            "id": new.id,
            "object": "file",
            "bytes": new.size,
            "created_at": created // 1000,
            "expires_at": (created + life_ms) // 1000,
            "filename": new.filename,
            "purpose": new.purpose,
            "status": "processed",
            "status_details": None,
        }
        index = self._key.files(new.tenant)
        with translate_errors():
            left_ms = await self._redis.pttl(index)

            def queue(pipe: Any) -> None:
                pipe.set(self._key.file(new.id), json.dumps({"owner": new.tenant, "file": facts}), px=life_ms)
                pipe.zadd(self._key.files_end, {new.id: created + life_ms})
                pipe.zadd(index, {new.id: created})
                pipe.zremrangebyscore(index, "-inf", created - _LONGEST_LIFE_S * 1000 - life_ms)
                pipe.pexpire(index, max(left_ms, life_ms))

            await self._note(new, new.size, queue)
            if await self._redis.hlen(self._key.file_bytes(new.tenant)) > await self._redis.zcard(index) + _FORGET_AT:  # type: ignore[misc]
                await self._forget_sizes(new.tenant)
        new.facts = facts
        logger.info("file stored", file_id=new.id, bytes=new.size, purpose=new.purpose, tenant=new.tenant)

    async def made_before(self, key: str, new: NewFile, content: str) -> dict[str, Any] | None:
        """The file object that this idempotency key stands for already, None if it is the new one, of which all is known but
        that it is whole. `content` is the SHA-256 of its bytes. Raises KeyReused for another file."""
        asked = fingerprint([content, new.filename, new.purpose, new.life_s])
        life_ms = int((new.life_s or self._settings.files_retention_s) * 1000)
        digest, keys = key_digest(key, "file"), Idempotency(self._redis)
        with translate_errors():
            first = await keys.claim(new.tenant, digest, new.id, asked, life_ms)
            if first != new.id:
                with suppress(NotFound):
                    return await self.find(first, new.tenant)
                await keys.replace(new.tenant, digest, new.id, asked, life_ms)
        return None

    async def _remove(self, new: NewFile) -> None:
        """After a failure, so it may fail as well: then the reaper does it."""
        try:
            await self._forget(new.id, new.tenant)
        except Exception as error:
            logger.warning("file left for the reaper", file_id=new.id, error=type(error).__name__)

    async def _forget(self, file_id: str, tenant: str | None = None) -> None:
        with translate_errors():
            await self._redis.delete(self._key.file(file_id))
        await self.storage.delete(object_name(file_id))
        with translate_errors():
            await self._redis.zrem(self._key.files_end, file_id)
            if tenant is not None:
                await self._redis.zrem(self._key.files(tenant), file_id)
                await self._redis.hdel(self._key.file_bytes(tenant), file_id)  # type: ignore[misc]

    async def find(self, file_id: str, tenant: str, *, param: str = "id") -> dict[str, Any]:
        """The file object. Raises NotFound if there is none, or it is another tenant's."""
        if _ID.fullmatch(file_id):
            with translate_errors():
                raw = await self._redis.get(self._key.file(file_id))
            found = json.loads(raw) if raw else {}
            if found.get("owner") == tenant:
                facts: dict[str, Any] = found["file"]
                return facts
        raise NotFound(_NOT_FOUND, param=param)

    async def listed(
        self, tenant: str, after: str | None = None, *, newest_first: bool = True
    ) -> AsyncIterator[dict[str, Any]]:
        """The tenant's files by their age. Raises NotFound if `after` is not one of them."""
        index, start = self._key.files(tenant), 0
        rank, page = (
            (self._redis.zrevrank, self._redis.zrevrange) if newest_first else (self._redis.zrank, self._redis.zrange)
        )
        with translate_errors():
            if after is not None:
                place = await rank(index, after)
                if place is None:
                    raise NotFound("`after` must be the id of a file in this list.", param="after")
                start = place + 1
            while members := await page(index, start, start + _PAGE - 1):
                for raw in await self._redis.mget([self._key.file(member.decode()) for member in members]):
                    if raw:
                        yield json.loads(raw)["file"]
                start += len(members)

    async def listed_of(
        self, tenants: Iterable[str], after: str | None = None, *, newest_first: bool = True
    ) -> AsyncIterator[dict[str, Any]]:
        """The files of these tenants as one list, each with its `tenant`. Raises NotFound if `after` is not one of them."""
        indexes = {tenant: [self._key.files(tenant)] for tenant in tenants}
        with translate_errors():
            try:
                async for places in paged(merged(self._redis, indexes, after, newest_first=newest_first)):
                    found = await self._redis.mget([self._key.file(place.member) for place in places])
                    for place, raw in zip(places, found, strict=True):
                        if raw:
                            yield {**json.loads(raw)["file"], "tenant": place.owner}
            except LookupError:
                raise NotFound("`after` must be the id of a file in this list.", param="after") from None

    async def read(self, facts: dict[str, Any], start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes of a file object. Raises NotFound if it was just deleted."""
        try:
            async for piece in self.storage.read(object_name(facts["id"]), start, end):
                yield piece
        except Missing:
            raise NotFound(_NOT_FOUND, param="id") from None

    async def delete(self, file_id: str, tenant: str) -> None:
        """Raises NotFound."""
        await self.find(file_id, tenant)
        await self._forget(file_id, tenant)
        logger.info("file deleted", file_id=file_id, tenant=tenant)

    async def keep_until(self, file_id: str, at_ms: int) -> None:
        """What is stored of it stays until then at least, even if the file itself is over before."""
        with translate_errors():
            await self._redis.zadd(self._key.files_end, {file_id: at_ms}, gt=True)

    async def remove_all_at(self, prefix: str, at_ms: int) -> None:
        """All objects below `prefix/` go then. It can be said where memory is full as well."""
        with translate_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.zadd(self._key.files_end, {f"{prefix}/": at_ms})
                await commit(pipe)

    async def remove_expired(self) -> None:
        """For the reaper: what is due goes, and what an upload left that was never finished.

        A storage that fails is asked again later: the reaper has more to do.
        """

        async def due() -> list[bytes]:
            found: list[bytes] = await self._redis.zrangebyscore(
                self._key.files_end, "-inf", now_ms() - _SLACK_MS, start=0, num=_PAGE
            )
            return found

        with suppress(FileStorageFailed):
            await work_off(due, self._remove_due, at_once=_REMOVED_AT_ONCE)

    async def _remove_due(self, name: str) -> bool:
        """What is on the list of ends under this name: a file, all that is below a prefix, or another feature's object."""
        if name.endswith("/"):
            await self.storage.delete_all(name.rstrip("/"))
            await self._redis.zrem(self._key.files_end, name)
        elif self.is_needed is not None and await self.is_needed(name):
            await self._redis.zrem(self._key.files_end, name)
            return True
        else:
            await self._forget(name)
        logger.info("file removed", file_id=name)
        return True


class NewFile:
    """A file that is being written. `sink` takes its bytes; `facts` is the file object, once it is there."""

    sink: Sink
    facts: dict[str, Any]

    def __init__(self, file_id: str, tenant: str) -> None:
        self.id, self.tenant = file_id, tenant
        self.size = 0
        self.filename, self.purpose = "", ""
        self.life_s: int | None = None
        self.accepted = False
        """It is what a batch leaves, which was accepted long ago: its facts are written also where memory is full."""
        self.room: int | None = None
        """How large it may become without being asked for; None: as large as it is."""
        self.grow: Callable[[int], Awaitable[None]]
        """Asks whether it may become so large. Raises StorageQuotaExceeded."""

    async def write(self, data: bytes) -> None:
        """Raises StorageQuotaExceeded, FileStorageFailed."""
        self.size += len(data)
        if self.room is not None and self.size > self.room:
            await self.grow(self.size)
        await self.sink.write(data)

    def finish(self, *, filename: str, purpose: str, life_s: int | None = None) -> None:
        """Says what it is. Raises BadRequest."""
        if purpose not in (*PURPOSES, OUTPUT):
            raise BadRequest(f"purpose must be one of {', '.join(PURPOSES)}.", param="purpose")
        self.filename, self.purpose, self.life_s = filename, purpose, life_s


class _Quota:
    """That a tenant's files take no more than they may, with this one."""

    def __init__(self, new: NewFile, amount: Amount) -> None:
        self._new, self._amount = new, amount
        self.counts = [amount]

    async def refusal(self, refused: int, found: Sequence[Found]) -> StorageQuotaExceeded:
        return StorageQuotaExceeded(f"The files of this tenant may take {self._amount.most} bytes. Delete some.")

    def passed(self, found: Sequence[Found]) -> None:
        self._new.room = (self._amount.most or 0) - found[0].used
