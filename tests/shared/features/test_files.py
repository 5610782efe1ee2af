"""Files and what they are kept in: a directory, and a real S3 API."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shared.config.settings import Settings
from shared.errors import BadRequest, FileStorageRefused, NotFound, StorageQuotaExceeded, Unavailable
from shared.features.files import Files, check_life
from shared.features.storage import Missing, Storage
from shared.lib.clock import now_ms
from shared.store.redis import ArqRedis
from tests.support.names import keys
from tests.support.s3 import S3

LARGE = bytes(range(256)) * 50_000  # more than two parts of an upload


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, files_retention_s=7200)


@pytest.fixture
def files(redis: ArqRedis, settings: Settings) -> Files:
    return Files(redis, settings)


def below(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*") if path.is_file()}


def left(settings: Settings) -> set[str]:
    return below(settings.data_dir / "files")


async def upload(files: Files, content: bytes = b"abc", *, tenant: str = "ann", life_s: int | None = None) -> str:
    async with files.create(tenant) as new:
        await new.write(content)
        new.finish(filename="in.jsonl", purpose="batch", life_s=life_s)
    assert new.facts["bytes"] == len(content)
    return new.id


async def all_of(storage: Storage, name: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in storage.read(name, start, end)])


# ---- storage


@pytest.mark.parametrize("content", [b"", b"x", LARGE], ids=["empty", "small", "large"])
async def test_what_is_written_is_read(storage: Storage, content: bytes) -> None:
    async with storage.create("a/object") as sink:
        for start in range(0, len(content), 1_000_000):
            await sink.write(content[start : start + 1_000_000])
    assert await all_of(storage, "a/object") == content
    if content == LARGE:
        assert await all_of(storage, "a/object", 0, 1) == content[:1]
        assert await all_of(storage, "a/object", 7, 3_000_009) == content[7:3_000_009]
        assert await all_of(storage, "a/object", len(content) - 5) == content[-5:]
        assert await storage.read_ranges("a/object", [(5, 3), (9_000_000, 2)]) == [
            content[5:8],
            content[9_000_000:9_000_002],
        ]
    assert await all_of(storage, "a/object", 5, 5) == b""
    await storage.delete("a/object")
    with pytest.raises(Missing):
        await all_of(storage, "a/object")
    await storage.delete("a/object")


async def test_small_objects_are_replaced_and_removed_together(storage: Storage) -> None:
    for number in range(3):
        await storage.put(f"parts/b/{number}", b"old")
        await storage.put(f"parts/b/{number}", b"%d" % number)
    assert [await all_of(storage, f"parts/b/{number}") for number in range(3)] == [b"0", b"1", b"2"]
    await storage.put("parts/other", b"stays")
    await storage.delete_all("parts/b")
    with pytest.raises(Missing):
        await all_of(storage, "parts/b/1")
    assert await all_of(storage, "parts/other") == b"stays"
    await storage.delete_all("parts/b")


async def test_a_writer_that_fails_leaves_nothing(storage: Storage, tmp_path: Path, s3: S3) -> None:
    with pytest.raises(ZeroDivisionError):
        async with storage.create("broken") as sink:
            await sink.write(LARGE)
            raise ZeroDivisionError
    with pytest.raises(Missing):
        await all_of(storage, "broken")
    assert below(tmp_path) & {"broken", "broken#1"} == set()
    assert (s3.unfinished(), s3.names() & {"broken"}) == ([], set())


async def test_a_storage_that_is_away_is_unavailable(monkeypatch: pytest.MonkeyPatch, s3: S3) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable):
        await Storage("s3://nobody-made-this").put("x", b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("shared.features.storage._RETRIES", 0)
    with pytest.raises(Unavailable, match="file storage"):
        await Storage(s3.url).put("x", b"")


# ---- files


async def test_a_file_is_found_by_its_owner_only(files: Files) -> None:
    file_id = await upload(files, b"content")
    facts = await files.find(file_id, "ann")
    assert (facts["filename"], facts["purpose"], facts["status"]) == ("in.jsonl", "batch", "processed")
    assert facts["expires_at"] == facts["created_at"] + 7200
    assert b"".join([piece async for piece in files.read(facts)]) == b"content"
    for stranger in (files.find(file_id, "bob"), files.delete(file_id, "bob"), files.find("file-1", "ann")):
        with pytest.raises(NotFound):
            await stranger
    assert [one async for one in files.listed("bob")] == []


async def test_a_deleted_file_leaves_nothing(files: Files, redis: ArqRedis, settings: Settings) -> None:
    file_id = await upload(files)
    facts = await files.find(file_id, "ann")
    assert left(settings) == {file_id}
    await files.delete(file_id, "ann")
    assert left(settings) == set()
    assert await redis.exists(keys.file(file_id), keys.files_end, keys.files("ann")) == 0
    with pytest.raises(NotFound):
        await anext(files.read(facts))


async def test_an_upload_that_breaks_leaves_nothing(files: Files, redis: ArqRedis, settings: Settings) -> None:
    with pytest.raises(ZeroDivisionError):
        async with files.create("ann") as new:
            await new.write(LARGE)
            raise ZeroDivisionError
    with pytest.raises(BadRequest, match="purpose"):
        async with files.create("ann") as new:
            await new.write(LARGE)
            new.finish(filename="x", purpose="nothing")
    assert left(settings) == set()
    assert await redis.keys("streamspool:*") == []


def in_all(files: Files, most: int) -> Files:
    files.limit = lambda tenant: most if tenant == "ann" else None
    return files


async def test_uploads_at_the_same_time_know_of_each_other(files: Files, settings: Settings) -> None:
    in_all(files, 1000)

    async def one(size: int) -> str:
        return await upload(files, b"x" * size)

    done = await asyncio.gather(*(one(300) for _ in range(12)), return_exceptions=True)
    assert {type(one) for one in done} == {str, StorageQuotaExceeded}
    kept = [one for one in done if isinstance(one, str)]
    assert len(kept) == 3
    assert left(settings) == set(kept), "what was refused left nothing"
    with pytest.raises(StorageQuotaExceeded):
        await one(101)
    await one(100)
    await upload(files, b"x" * 5000, tenant="bob")
    await files.delete(kept[0], "ann")
    await one(300)
    with pytest.raises(StorageQuotaExceeded):
        await one(1)


async def test_there_is_room_for_what_a_form_says_from_the_beginning(files: Files) -> None:
    in_all(files, 10_000)
    async with files.create("ann", length=8000) as new:
        with pytest.raises(StorageQuotaExceeded):
            async with files.create("ann", length=8000):
                pass
        async with files.create("ann") as other:
            await other.write(b"x" * 4000)
            with pytest.raises(StorageQuotaExceeded):
                await other.write(b"x" * 1000)
            other.finish(filename="x", purpose="batch")
            other.size = 4000
        await new.write(b"x" * 6000)
        new.finish(filename="x", purpose="batch")
    assert sorted([facts["bytes"] async for facts in files.listed("ann")]) == [4000, 6000]  # of one millisecond, maybe


async def test_what_was_never_finished_takes_nothing_for_ever(files: Files, redis: ArqRedis) -> None:
    in_all(files, 1000)
    await redis.hset(keys.file_bytes("ann"), "file-of-a-dead-server", "900")  # type: ignore[misc]
    await redis.zadd(keys.files_end, {"file-of-a-dead-server": now_ms() + 60_000})
    await redis.expire(keys.files_end, 600)
    with pytest.raises(StorageQuotaExceeded):
        await upload(files, b"x" * 200)
    await redis.zrem(keys.files_end, "file-of-a-dead-server")  # as the reaper does in the end
    await upload(files, b"x" * 200)
    assert await redis.hvals(keys.file_bytes("ann")) == [b"200"]  # type: ignore[misc]


async def test_what_an_older_version_stored_counts(files: Files, redis: ArqRedis) -> None:
    await upload(files, b"x" * 900)
    await redis.delete(keys.file_bytes("ann"))
    in_all(files, 1000)
    with pytest.raises(StorageQuotaExceeded):
        await upload(files, b"x" * 101)
    await upload(files, b"x" * 100)


async def test_what_a_batch_leaves_counts_and_is_not_refused(files: Files) -> None:
    in_all(files, 100)
    for _ in range(2):
        async with files.create("ann", "file-" + "b" * 32) as new:
            await new.write(b"x" * 200)
            new.finish(filename="x", purpose="batch_output")
    with pytest.raises(StorageQuotaExceeded):
        await upload(files, b"x")


async def test_what_a_killed_server_left_is_removed_later(
    files: Files, redis: ArqRedis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = await upload(files)
    lost = files.create("ann")
    new = await lost.__aenter__()
    await new.write(LARGE)
    await files.storage.put("file-unregistered", b"whole, and nobody was told")
    await redis.zadd(keys.files_end, {"file-unregistered": now_ms()})
    assert len(left(settings)) == 3
    await files.remove_expired()
    assert len(left(settings)) == 3, "it may still be under way"
    later = now_ms() + 7_300_000
    monkeypatch.setattr("shared.features.files.now_ms", lambda: later)
    await redis.zadd(keys.files_end, {kept: later + 1})
    await files.remove_expired()
    assert left(settings) == {kept}
    assert await redis.zrange(keys.files_end, 0, -1) == [kept.encode()]
    with pytest.raises((ZeroDivisionError, Unavailable)):
        await lost.__aexit__(ZeroDivisionError, ZeroDivisionError(), None)


async def test_many_go_in_one_turn(
    files: Files, redis: ArqRedis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.features.files._PAGE", 4)
    made = [await upload(files) for _ in range(25)]
    kept = made.pop()
    await redis.zadd(keys.files_end, dict.fromkeys(made, 1))
    await files.remove_expired()
    assert left(settings) == {kept}
    assert await redis.zrange(keys.files_end, 0, -1) == [kept.encode()]


async def test_an_expired_file_is_gone_and_then_its_content(
    files: Files, redis: ArqRedis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, held = await upload(files, life_s=3600), await upload(files, life_s=3600)
    assert 3_500_000 < await redis.pttl(keys.file(short)) <= 3_600_000
    await files.keep_until(held, now_ms() + 8_000_000)
    await files.keep_until(held, now_ms())
    later = now_ms() + 3_700_000
    monkeypatch.setattr("shared.features.files.now_ms", lambda: later)
    await redis.delete(keys.file(short))
    assert [one["id"] async for one in files.listed("ann")] == [held]
    await files.remove_expired()
    assert left(settings) == {held}


async def test_a_storage_that_fails_keeps_the_reaper_from_nothing_else(
    files: Files, redis: ArqRedis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are rung for after the files."""
    file_id = await upload(files)
    await redis.zadd(keys.files_end, {file_id: 1})

    async def refuse(*_: object) -> None:
        raise FileStorageRefused

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "delete", refuse)
        await files.remove_expired()
    assert left(settings) == {file_id}
    await files.remove_expired()
    assert left(settings) == set()


async def test_the_list_goes_by_age_from_any_place(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(now_ms(), now_ms() + 1000))
    monkeypatch.setattr("shared.features.files.now_ms", lambda: next(clock))
    monkeypatch.setattr("shared.features.files._PAGE", 2)
    made = [await upload(files) for _ in range(5)]
    assert [one["id"] async for one in files.listed("ann")] == made[::-1]
    assert [one["id"] async for one in files.listed("ann", made[1], newest_first=False)] == made[2:]
    assert [one["id"] async for one in files.listed("ann", made[1])] == [made[0]]
    with pytest.raises(NotFound, match="after"):
        _ = [one async for one in files.listed("bob", made[1])]


async def test_a_file_of_a_given_id_can_be_made_again(files: Files, settings: Settings) -> None:
    file_id = "file-" + "a" * 32
    with pytest.raises(ZeroDivisionError):
        async with files.create("ann", file_id) as new:
            raise ZeroDivisionError
    for content in (b"first", b"second, longer"):
        async with files.create("ann", file_id) as new:
            await new.write(content)
            new.finish(filename="out", purpose="batch_output")
    facts = await files.find(file_id, "ann")
    assert (facts["bytes"], [one["id"] async for one in files.listed("ann")]) == (14, [file_id])
    assert left(settings) == {file_id}


@pytest.mark.parametrize("seconds", ["3599", "2592001", "", "1e4", "-3600", None, True, "٣٦٠٠٠", 4000.5])
def test_a_life_that_is_no_number_of_seconds_is_refused(seconds: object) -> None:
    with pytest.raises(BadRequest) as caught:
        check_life(seconds, "created_at", "expires_after")
    assert caught.value.param == "expires_after[seconds]"


def test_a_life_has_one_anchor() -> None:
    assert check_life("3600", "created_at", "p") == check_life(3600, "created_at", "p") == 3600
    with pytest.raises(BadRequest, match="created_at"):
        check_life(3600, "now", "p")
