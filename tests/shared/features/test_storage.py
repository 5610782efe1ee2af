"""What the file storage says when it does not do as it is asked: where an object ends, and which failure is which."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from shared.errors import FileStorageFailed, FileStorageFull, FileStorageInvalid, FileStorageRefused
from shared.features.storage import Missing, Storage
from shared.lib.telemetry import STORAGE_ERRORS
from shared.store.outage import log_redis_error
from tests.support.answering import Answering
from tests.support.s3 import S3

TEN = b"0123456789"


def bucket(url: str, monkeypatch: pytest.MonkeyPatch, *, retries: int = 0) -> Storage:
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("shared.features.storage._RETRIES", retries)
    return Storage("s3://spooled/here")


async def all_of(storage: Storage, name: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in storage.read(name, start, end)])


# ---- the end of an object


@pytest.mark.parametrize("start", [10, 11, 5000])
@pytest.mark.parametrize("end", [None, 12, 9_000_000])
async def test_nothing_is_read_from_the_end_on_and_nothing_has_failed(
    storage: Storage, start: int, end: int | None
) -> None:
    await storage.put("ten", TEN)
    assert await all_of(storage, "ten", start, end) == b""


@pytest.mark.parametrize(("start", "end", "there"), [(0, None, TEN), (9, None, b"9"), (4, 30, TEN[4:]), (0, 30, TEN)])
async def test_what_is_there_of_a_range_is_read(storage: Storage, start: int, end: int | None, there: bytes) -> None:
    await storage.put("ten", TEN)
    assert await all_of(storage, "ten", start, end) == there


@pytest.mark.parametrize("start", [0, 1])
async def test_an_empty_object_has_nothing_from_anywhere_on(storage: Storage, start: int) -> None:
    await storage.put("empty", b"")
    assert await all_of(storage, "empty", start) == b""


async def test_objects_are_read_whole_over_the_bounds_of_requests(storage: Storage) -> None:
    for size in (3, 4, 8, 9):
        await storage.put("ten", TEN[:size])
        for start, end in ((0, None), (1, 7)):
            pieces = [piece async for piece in storage.read("ten", start, end, at_once=4, piece=3)]
            assert b"".join(pieces) == TEN[:size][start:end]
            assert max(map(len, pieces)) <= 3


@pytest.mark.parametrize(
    "ranges",
    [[(10, 1)], [(8, 5)], [(0, 5), (50, 2)], [(0, 1), (10, 0), (11, 4)]],
    ids=["at the end", "over it", "one of two behind it", "with an empty one"],
)
async def test_ranges_that_an_object_does_not_have_are_missing(storage: Storage, ranges: list[tuple[int, int]]) -> None:
    """It was said to be as long: what is there now is not what was written."""
    await storage.put("ten", TEN)
    with pytest.raises(Missing):
        await storage.read_ranges("ten", ranges)


async def test_ranges_may_be_empty(storage: Storage) -> None:
    await storage.put("ten", TEN)
    assert await storage.read_ranges("ten", [(3, 0), (4, 2), (10, 0)]) == [b"", b"45", b""]
    assert await storage.read_ranges("ten", [(3, 0)]) == [b""]
    with pytest.raises(Missing):
        await storage.read_ranges("nothing", [(0, 1)])


async def test_reading_slowly_outlasts_the_time_of_a_request(
    s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A reader that takes its time holds no request open: the storage would end it."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    storage = Storage(s3.url)
    await storage.put("slow", bytes(9_000_000))
    reading = storage.read("slow")
    first = await anext(reading)
    await storage.put("slow", b"\1" * 9_000_000)
    assert b"\1" in b"".join([first, *[piece async for piece in reading]]), "the rest is asked for when it is wanted"


# ---- what a killed worker leaves


async def test_what_killed_uploads_left_is_removed_with_the_rest(storage: Storage, tmp_path: Path) -> None:
    await storage.put("parts/b/1-1-0", b"x")
    if (tmp_path / "parts").is_dir():
        (tmp_path / "parts/b/1-1-1#1").write_bytes(b"half")
    await storage.delete_all("parts/b")
    assert not (tmp_path / "parts" / "b").exists()
    with pytest.raises(Missing):
        await all_of(storage, "parts/b/1-1-0")


async def test_what_killed_uploads_of_one_object_left_is_removed_with_it(storage: Storage, tmp_path: Path) -> None:
    """In a folder of any size: nothing is looked for."""
    await storage.put("logs/one.0a", b"x")
    await storage.put("logs/one.0a.b", b"y")
    if (tmp_path / "logs").is_dir():
        for number in (1, 2, 4):
            (tmp_path / f"logs/one.0a#{number}").write_bytes(b"half")
    await storage.delete("logs/one.0a")
    assert await all_of(storage, "logs/one.0a.b") == b"y"
    if (tmp_path / "logs").is_dir():
        assert [path.name for path in (tmp_path / "logs").iterdir()] == ["one.0a.b"]


# ---- which failure is which


def counted(why: str) -> float:
    """How often the storage has failed in this process."""
    value: float = STORAGE_ERRORS.labels(why)._value.get()
    return value


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [
        (403, "AccessDenied", "refused"),
        (403, "InvalidAccessKeyId", "refused"),
        (401, "Unauthorized", "refused"),
        (400, "ExpiredToken", "refused"),
        (403, "QuotaExceeded", "full"),
        (507, "XMinioStorageFull", "full"),
        (507, "InsufficientStorage", "full"),
        (400, "InvalidRequest", "invalid"),
        (400, "AuthorizationHeaderMalformed", "invalid"),
        (404, "NoSuchBucket", "invalid"),
        (405, "MethodNotAllowed", "invalid"),
        (503, "SlowDown", "away"),
        (500, "InternalError", "away"),
        (502, "", "away"),
        (429, "TooManyRequests", "away"),
        (409, "OperationAborted", "away"),
        (400, "RequestTimeout", "away"),
    ],
)
async def test_what_a_bucket_refuses_with_is_told_apart_and_counted(
    status: int, code: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"<Error><Code>{code}</Code><Message>words of somebody</Message></Error>"
    before = counted(why)
    async with Answering(status, body) as answering:
        storage = bucket(answering.url, monkeypatch)
        with structlog.testing.capture_logs() as logs:
            for asking in (all_of(storage, "x"), storage.put("x", b"1"), storage.read_ranges("x", [(0, 1)])):
                with pytest.raises(FileStorageFailed) as failed:
                    await asking
                assert failed.value.why == why
    assert counted(why) - before == len(logs) == 3
    for line in logs:
        assert (line["event"], line["why"]) == ("file storage failed", why)
        assert str(status) in line["cause"]
        assert code in line["cause"]
        assert "words" not in str(line)
        assert "127.0.0.1" not in str(line)


async def test_a_key_that_is_not_there_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Answering(404, "<Error><Code>NoSuchKey</Code></Error>") as answering:
        storage = bucket(answering.url, monkeypatch)
        with pytest.raises(Missing):
            await all_of(storage, "x")
        with pytest.raises(Missing):
            await storage.read_ranges("x", [(0, 1)])
        await storage.delete("x")


async def test_nobody_there_is_away_and_tls_that_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with structlog.testing.capture_logs() as logs:
        for url, cause in (("http://127.0.0.1:9", "Connect"), ("https://127.0.0.1:9", "Connect")):
            with pytest.raises(FileStorageFailed) as failed:
                await all_of(bucket(url, monkeypatch), "x")
            assert failed.value.why == "away"
            assert logs[-1]["cause"] == cause


@pytest.mark.parametrize("kind", [FileStorageFailed, FileStorageFull, FileStorageRefused, FileStorageInvalid])
def test_clients_are_told_whether_to_come_again(kind: type[FileStorageFailed]) -> None:
    headers = {"retry-after": "2"} if kind is FileStorageFailed else {"x-should-retry": "false"}
    assert kind().headers() == headers


@pytest.mark.parametrize("url", ["s3://", "az://container", "gs://"])
def test_an_address_that_is_none_is_invalid_before_anybody_is_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FileStorageFailed) as failed:
        Storage(url)
    assert failed.value.why == "invalid"


def test_a_directory_that_cannot_be_is_invalid(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileStorageFailed) as failed:
        Storage((tmp_path / "file" / "files").as_uri())
    assert failed.value.why == "invalid"


_LIMITED = """
import asyncio, os, resource, signal, sys
from shared.errors import FileStorageFailed, FileStorageFull, FileStorageInvalid, FileStorageRefused
from shared.features.storage import Storage

async def main() -> None:
    storage = Storage(sys.argv[1])
    await storage.put("before", b"x")
    if sys.argv[2] == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    else:
        os.chmod(sys.argv[1].removeprefix("file://"), 0o500)
        if os.geteuid() == 0:
            os.setuid(65534)
    for large in (False, True):
        try:
            if large:
                async with storage.create("large") as sink:
                    for _ in range(12):
                        await sink.write(bytes(1_000_000))
            else:
                await storage.put("small", bytes(5000))
        except FileStorageFailed as failed:
            print(failed.why)

asyncio.run(main())
"""


@pytest.mark.parametrize("why", ["full", "refused"])
def test_a_directory_without_room_or_rights_says_so(tmp_path: Path, why: str) -> None:
    """As a system tells it: more than a file may have, and another user's directory."""
    place = tmp_path / "files"
    command = [sys.executable, "-c", _LIMITED, place.as_uri(), why]
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[3]), "STREAMSPOOL_CONFIG": str(tmp_path / "none")}
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path)
    place.chmod(0o700)
    said = [line for line in run.stdout.splitlines() if " " not in line]
    assert said == [why, why], run.stdout + run.stderr


def test_a_loop_that_the_storage_stopped_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.store.outage._logged_at", {})
    with structlog.testing.capture_logs() as logs:
        log_redis_error("batch", FileStorageRefused(), batch_id="b")
        log_redis_error("batch", ConnectionError(), batch_id="b")
        log_redis_error("reaper", ConnectionError())
    assert [(line["event"], line["part"], line.get("why")) for line in logs] == [
        ("file storage failed", "batch", "refused"),
        ("redis failed", "reaper", None),
    ]
