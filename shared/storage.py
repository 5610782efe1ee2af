"""Objects by name, in a directory or in a bucket: what files are kept in.

Hidden here: obstore, which speaks to S3 and what is like it, to Google's and Azure's storage, and to a plain directory,
with one set of calls. An object appears whole or not at all, and reading one holds a piece of it in memory, never all.

Chosen over fsspec because it is one wheel without dependencies (s3fs brings aiobotocore, botocore and aiohttp), streams
both ways, and was two to three times as quick here with small objects, which a batch writes many of. MIT, released
monthly by Development Seed over Apache's object_store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from shared.config import environment
from shared.errors import Unavailable
from shared.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

logger = get_logger(__name__)

PIECE_BYTES = 1024 * 1024
_PART_BYTES = 5 * 1024 * 1024
"""S3 takes no smaller parts of an upload but the last."""
_UPLOADS = 2
_RETRIES = 3
_GIVE_UP_S = 20
_TIMEOUT_S = 15


class Missing(Exception):
    """There is no object of this name."""


class Sink(Protocol):
    """Takes the bytes of an object that is being written."""

    async def write(self, data: bytes, /) -> int: ...


class Storage:
    """All objects under one URL. Raises Unavailable where the storage does not answer or refuses us."""

    def __init__(self, url: str) -> None:
        import obstore  # here, because it is 4 MB in each process, of which most never see a file
        from obstore.store import LocalStore, from_url

        self._obstore: Any = obstore
        self._directory: Path | None = None
        if url.startswith("file://"):
            self._directory = Path(unquote(urlsplit(url).path))
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._store: Any = LocalStore(self._directory)
        else:
            self._store = from_url(
                url,
                client_options={"allow_http": _is_plain(environment()), "timeout": timedelta(seconds=_TIMEOUT_S)},
                retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_GIVE_UP_S)},
                **_credentials(url, environment()),
            )

    def create(self, name: str) -> AbstractAsyncContextManager[Sink]:
        """Writes an object, in the place of an older one. It is there once the context has ended well, and only then."""
        return self._create(name)

    @asynccontextmanager
    async def _create(self, name: str) -> AsyncIterator[Sink]:
        # Left with an error, obstore's writer calls the upload off; without having been closed it could not.
        writer = self._obstore.open_writer_async(self._store, name, buffer_size=_PART_BYTES, max_concurrency=_UPLOADS)
        with _reachable(writing=True):
            async with writer:
                yield writer

    async def put(self, name: str, data: bytes) -> None:
        """Writes a small object in one go."""
        with _reachable(writing=True):
            await self._obstore.put_async(self._store, name, data, use_multipart=False)

    async def read(self, name: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Its bytes from `start` up to, without, `end`, in pieces of about a megabyte. Raises Missing."""
        if end is not None and end <= start:
            return
        wanted: Any = {"offset": start} if end is None else (start, end)
        with _reachable():
            found = await self._obstore.get_async(
                self._store, name, options={"range": wanted} if start or end else None
            )
            async for piece in found.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)

    async def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of several `(start, length)`, in few requests. Raises Missing."""
        if not ranges:
            return []
        with _reachable():
            found = await self._obstore.get_ranges_async(
                self._store, name, starts=[start for start, _ in ranges], lengths=[length for _, length in ranges]
            )
        return [bytes(one) for one in found]

    async def delete(self, name: str) -> None:
        """Removes it, and in a directory what an upload of it left that was killed. Nothing to remove is no error."""
        if self._directory:
            path = self._directory / name
            for left in path.parent.glob(f"{path.name}#*"):
                left.unlink(missing_ok=True)
        try:
            with _reachable():
                await self._obstore.delete_async(self._store, name)
        except Missing:
            pass

    async def delete_all(self, prefix: str) -> None:
        """Removes all objects below `prefix/`."""
        with _reachable():
            async for page in self._obstore.list(self._store, prefix=prefix):
                for found in page:
                    await self.delete(found["path"])
        if self._directory and (self._directory / prefix).is_dir():
            (self._directory / prefix).rmdir()


def _is_plain(variables: Mapping[str, str]) -> bool:
    """Whether the S3 that was named is reached without TLS: one on this machine or in this network."""
    return variables.get("AWS_ENDPOINT_URL_S3", variables.get("AWS_ENDPOINT_URL", "")).startswith("http://")


def _credentials(url: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """S3's variables as everyone names them, also from `.env`, which obstore would not read."""
    if not url.startswith("s3://"):
        return {}
    names = {
        "AWS_ACCESS_KEY_ID": "access_key_id",
        "AWS_SECRET_ACCESS_KEY": "secret_access_key",
        "AWS_SESSION_TOKEN": "session_token",
        "AWS_DEFAULT_REGION": "region",
        "AWS_REGION": "region",
        "AWS_ENDPOINT_URL": "endpoint",
        "AWS_ENDPOINT_URL_S3": "endpoint",
    }
    return {"config": {option: variables[name] for name, option in names.items() if variables.get(name)}}


@contextmanager
def _reachable(*, writing: bool = False) -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError) as error:
        if isinstance(error, FileNotFoundError) and not writing:  # to a writer it is the bucket that is not there
            raise Missing from None
        logger.warning("file storage failed", error=type(error).__name__)
        raise Unavailable("The file storage does not answer. Try again.", code="storage_unavailable") from None
