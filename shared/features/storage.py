"""Objects by name, in a directory or in a bucket: what files are kept in.

Hidden here: obstore, which speaks to S3 and what is like it, to Google's and Azure's storage, and to a plain directory,
with one set of calls. An object appears whole or not at all, and reading one holds a piece of it in memory, never all.
What went wrong is told apart here and nowhere else: an object that is not there is Missing, anything else
FileStorageFailed, or one of its kinds, which say what would help; the log has the cause in a word or two, never a body, a
name or a key.

Chosen over fsspec because it is one wheel without dependencies (s3fs brings aiobotocore, botocore and aiohttp), streams
both ways, and was two to three times as quick here with small objects, which a batch writes many of. MIT, released
monthly by Development Seed over Apache's object_store.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from shared.config.environ import bucket_options, environment
from shared.errors import FileStorageFailed, FileStorageFull, FileStorageInvalid, FileStorageRefused
from shared.lib import private
from shared.lib.telemetry import STORAGE_ERRORS, get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

logger = get_logger(__name__)

PIECE_BYTES = 1024 * 1024
_RANGE_BYTES = 4 * PIECE_BYTES
"""What one request reads: a reader may take hours over an object, a request to a bucket may not."""
_PART_BYTES = 5 * 1024 * 1024
"""S3 takes no smaller parts of an upload but the last."""
_UPLOADS = 2
_LEFT = 16
"""A directory's uploads of one name, as far as they are looked for: each takes the first number that is free, from 1 on."""
_RETRIES = 3
_GIVE_UP_S = 20
_TIMEOUT_S = 15


class Missing(Exception):
    """There is no object of this name, or not any more as long as it was said to be."""


class _PastEnd(Exception):
    """The range that was asked for lies behind the end of the object (RFC 9110 §14.1.2)."""


class Sink(Protocol):
    """Takes the bytes of an object that is being written."""

    async def write(self, data: bytes | memoryview, /) -> int: ...


class Storage:
    """All objects under one URL. Raises FileStorageFailed where the storage does not do what it is asked for."""

    def __init__(self, url: str) -> None:
        import obstore  # here, because it is 4 MB in each process, of which most never see a file
        from obstore.exceptions import BaseError
        from obstore.store import LocalStore, from_url

        self._obstore: Any = obstore
        self._directory: Path | None = None
        if url.startswith("file://"):
            with _told(writing=True):
                self._directory = Path(unquote(urlsplit(url).path))
                private.make_directory(self._directory)
                self._store: Any = LocalStore(self._directory)
            return
        try:
            options: Any = bucket_options(url)
            self._store = from_url(
                url,
                client_options={"allow_http": _is_plain(environment()), "timeout": timedelta(seconds=_TIMEOUT_S)},
                retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_GIVE_UP_S)},
                config=options,
            )
        except (BaseError, ValueError) as error:  # nothing was asked yet: what it was given is wrong
            raise _failed(FileStorageInvalid, error) from None

    @staticmethod
    def load() -> None:
        """Does what the first one takes 10 ms for, in a thread if need be."""
        import obstore.exceptions
        import obstore.store  # noqa: F401 - to have it

    def create(self, name: str) -> AbstractAsyncContextManager[Sink]:
        """Writes an object, in the place of an older one. It is there once the context has ended well, and only then."""
        return self._create(name)

    @asynccontextmanager
    async def _create(self, name: str) -> AsyncIterator[Sink]:
        # Left with an error, obstore's writer calls the upload off; without having been closed it could not.
        writer = self._obstore.open_writer_async(self._store, name, buffer_size=_PART_BYTES, max_concurrency=_UPLOADS)
        with _told(writing=True):
            async with writer:
                yield writer

    async def put(self, name: str, data: bytes | memoryview) -> None:
        """Writes a small object in one go."""
        with _told(writing=True):
            await self._obstore.put_async(self._store, name, data, use_multipart=False)

    async def flush(self, name: str) -> None:
        """Returns once what was written under this name survives a power cut. A bucket has said so by taking it."""
        if self._directory:
            with _told(writing=True):
                await asyncio.to_thread(_flush, self._directory / name)

    async def read(
        self,
        name: str,
        start: int = 0,
        end: int | None = None,
        *,
        at_once: int = _RANGE_BYTES,
        piece: int = PIECE_BYTES,
    ) -> AsyncIterator[bytes]:
        """Its bytes from `start` up to, without, `end`, in pieces of `piece` bytes at most. Raises Missing.

        Nothing is a part of it as well: from its end on there is nothing to read, which is no failure. `at_once` bytes are
        held while the reader takes its time.
        """
        while end is None or start < end:
            stop = start + at_once if end is None else min(start + at_once, end)
            try:
                with _told():
                    found = await self._obstore.get_async(self._store, name, options={"range": (start, stop)})
                    data = memoryview(await found.bytes_async())
            except _PastEnd:
                return
            if not data:
                return
            for at in range(0, len(data), piece):
                yield bytes(data[at : at + piece])
            start += len(data)
            size = found.meta["size"]
            end = size if end is None else min(end, size)

    async def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of several `(start, length)`, in few requests. Raises Missing, also where the object ends before."""
        wanted = [(start, length) for start, length in ranges if length > 0]  # there is no range of no bytes
        found: list[bytes] = []
        if wanted:
            starts, lengths = zip(*wanted, strict=True)
            try:
                with _told():
                    some = await self._obstore.get_ranges_async(self._store, name, starts=starts, lengths=lengths)
                    found = [bytes(one) for one in some]
            except _PastEnd:
                raise Missing from None
            except Exception as error:
                if type(error).__name__ != "RustPanic":  # as which it tells that one of several begins behind the end
                    raise
                raise Missing from None
            if [len(one) for one in found] != list(lengths):
                raise Missing
        rest = iter(found)
        return [next(rest) if length > 0 else b"" for _, length in ranges]

    async def older(self, prefix: str, age_s: float) -> AsyncIterator[list[str]]:
        """The names below `prefix/` that were written longer ago, a page of them at a time."""
        before = datetime.now(UTC) - timedelta(seconds=age_s)
        if self._directory and not (self._directory / prefix).is_dir():
            return
        with _told():
            async for page in self._obstore.list(self._store, prefix=prefix):
                if names := [found["path"] for found in page if found["last_modified"] < before]:
                    yield names

    async def delete(self, name: str) -> None:
        """Removes it, and in a directory what an upload of it left that was killed. Nothing to remove is no error."""
        try:
            with _told():
                if self._directory:
                    path = self._directory / name
                    for number in range(1, _LEFT + 1):  # not looked for: a folder may have a million names
                        path.with_name(f"{path.name}#{number}").unlink(missing_ok=True)
                await self._obstore.delete_async(self._store, name)
        except Missing:
            pass

    async def delete_all(self, prefix: str) -> None:
        """Removes all objects below `prefix/`, and in a directory what killed uploads of them left."""
        try:
            with _told():
                if self._directory:
                    await asyncio.to_thread(shutil.rmtree, self._directory / prefix)
                else:
                    async for page in self._obstore.list(self._store, prefix=prefix):
                        await self._obstore.delete_async(self._store, [found["path"] for found in page])
        except Missing:
            pass


def _flush(path: Path) -> None:
    """The file, and its name in each directory above: that may be new as well."""
    for one in (path, path.parent, path.parent.parent):
        descriptor = os.open(one, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_plain(variables: Mapping[str, str]) -> bool:
    """Whether the S3 that was named is reached without TLS: one on this machine or in this network."""
    return variables.get("AWS_ENDPOINT_URL_S3", variables.get("AWS_ENDPOINT_URL", "")).startswith("http://")


# ---- what went wrong

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_INVALID = frozenset({errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP})
_FULL_CODE = re.compile(r"Quota|StorageFull|InsufficientStorage|InsufficientCapacity|EntityTooLarge")
_PASSING_CODES = frozenset({"RequestTimeout", "OperationAborted"})
"""With which S3 answers 400 and 409 to what it would take a moment later."""
_TOKEN_CODES = frozenset({"ExpiredToken", "InvalidToken"})
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})


class _Cause(NamedTuple):
    """What is known of a failure: the system's number or the status and code that a bucket answered with."""

    errno: int | None
    status: int | None
    code: str
    kind: str
    """The library's word: Connect, Timeout, MissingEtag, …"""

    def __str__(self) -> str:
        named = errno.errorcode.get(self.errno, str(self.errno)) if self.errno else ""
        return " ".join(filter(None, (named, str(self.status or ""), self.code, self.kind)))


def _cause(error: BaseException) -> _Cause:
    """The library tells all of it in one text, with the body of the answer and the address, which go no further."""
    text = str(error)

    def found(pattern: str) -> str:
        match = re.search(pattern, text)
        return match[1] if match else ""

    number = getattr(error, "errno", None) or int(found(r"\(os error (\d{1,5})\)") or 0) or None
    kind = found(r"HttpError \{\s*kind: (\w{1,40})") or found(r"source: (?!RetryError|Os\b)(\w{1,40})")
    if "/latest/api/token" in text:
        kind = "NoCredentials"  # none were given, and the machine has none of its own to hand out
    elif "BadScheme" in text:
        kind = "PlainHttp"
    status = int(found(r"status code: (\d{3})") or 0) or None
    return _Cause(number, status, found(r"<Code>(\w{1,60})</Code>"), kind)


def _kind(error: BaseException, cause: _Cause) -> type[FileStorageFailed]:
    """What is not known is taken for an outage: that is waited for."""
    name = type(error).__name__
    if cause.errno in _FULL or cause.status == 507 or _FULL_CODE.search(cause.code):
        return FileStorageFull
    if (
        cause.errno in _REFUSED
        or cause.status in (401, 403)
        or cause.code in _TOKEN_CODES
        or cause.kind == "NoCredentials"
        or name in ("PermissionDeniedError", "UnauthenticatedError")
    ):
        return FileStorageRefused
    if cause.code in _PASSING_CODES or cause.status in (408, 409, 425, 429):
        return FileStorageFailed
    if (
        cause.errno in _INVALID
        or cause.kind == "PlainHttp"
        or 300 <= (cause.status or 0) < 500
        or name in ("InvalidPathError", "NotSupportedError", "UnknownConfigurationKeyError")
    ):
        return FileStorageInvalid
    return FileStorageFailed


@contextmanager
def _told(*, writing: bool = False) -> Iterator[None]:
    """Around the library's calls: raises Missing, _PastEnd or FileStorageFailed for whatever they raise."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError) as error:
        cause = _cause(error)
        if cause.status == 416 or "InvalidRange" in str(error):
            raise _PastEnd from None
        there_is_none = isinstance(error, FileNotFoundError) and cause.code not in _NO_BUCKET
        if there_is_none and not writing:  # to a writer it is the bucket that is not there
            raise Missing from None
        raise _failed(
            FileStorageInvalid if isinstance(error, FileNotFoundError) else _kind(error, cause), error
        ) from None


def _failed(kind: type[FileStorageFailed], error: BaseException) -> FileStorageFailed:
    STORAGE_ERRORS.labels(kind.why).inc()
    logger.warning("file storage failed", why=kind.why, error=type(error).__name__, cause=str(_cause(error)) or None)
    return kind()
