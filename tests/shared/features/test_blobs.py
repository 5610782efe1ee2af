"""What of large payloads is stored, for how long, and that nothing of it is left over."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError

from shared.chat.request import ChatRequest
from shared.config.settings import Settings
from shared.errors import FileStorageFailed, RequestLost, StorageQuotaExceeded
from shared.features.blobs import COPY, GRACE_MS, Blobs, session_holder
from shared.features.storage import Storage
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.log.blobs import Stored
from shared.log.streamlog import StreamLog
from shared.store.cluster.pipelines import Pipeline
from shared.store.redis import ArqRedis

ANN, BEN = "ann", "ben"


def picture(size: int, seed: int = 1) -> str:
    return base64.b64encode(random.Random(seed).randbytes(size)).decode()


def asked(*data: str, text: str = "What is it?") -> bytes:
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{one}"}} for one in data]
    content = [{"type": "text", "text": text}, *parts]
    return json.dumps({"model": "fake/echo", "messages": [{"role": "user", "content": content}]}).encode()


class Bench:
    def __init__(self, redis: ArqRedis, directory: Path, **options: Any) -> None:
        self.redis, self.directory = redis, directory
        settings = Settings(data_dir=directory, retention_s=60, **options)
        self.log = StreamLog(redis, retention_s=60, safety_s=600)
        self.core = Core(redis, self.log, settings, name="test")
        self.blobs: Blobs = self.core.blobs

    def objects(self) -> list[Path]:
        return [path for path in self.directory.rglob("*") if path.is_file() and "blobs" in path.parts]

    async def reap(self) -> None:
        await self.blobs.release_ended()
        await self.core.files.remove_expired()

    async def later(self) -> None:
        """As if all that is to be looked at some time were due."""
        key = self.redis.key
        for name in (key.blob_holders, key.files_end):
            for member in await self.redis.zrange(name, 0, -1):
                await self.redis.zadd(name, {member: 0})
        await self.reap()

    async def submit(self, body: bytes, tenant: str = ANN, **more: Any) -> str:
        value = json.loads(body) | more
        header = (
            await self.core.broker.submit(json.dumps(value).encode(), ChatRequest.check(value), Caller(tenant))
        ).header
        generation_id: str = header["id"]
        return generation_id

    async def delete(self, generation_id: str, tenant: str = ANN) -> None:
        await self.core.broker.delete(generation_id, Caller(tenant))
        await self.reap()

    async def ours(self) -> set[str]:
        """The keys that are about blobs."""
        return {name.decode() for name in await self.redis.keys("*blob*")}


async def opened(redis: ArqRedis, directory: Path, **options: Any) -> Bench:
    found = Bench(redis, directory, **options)
    await redis.set(redis.key.catalogue, json.dumps({"providers": {"fake": {"models": ["echo"], "open": True}}}), ex=60)
    return found


@pytest.fixture
async def bench(redis: ArqRedis, tmp_path: Path) -> Bench:
    return await opened(redis, tmp_path)


async def stored(bench: Bench, generation_id: str) -> Stored:
    return (await bench.log.request(generation_id))[1]


async def test_redis_keeps_the_place_and_the_storage_the_picture(bench: Bench) -> None:
    body = asked(picture(3_000_000), text="x" * 1000)
    generation_id = await bench.submit(body)
    entry = await stored(bench, generation_id)
    assert len(entry.data) < 2000
    assert json.loads(await bench.blobs.whole(ANN, entry)) == json.loads(body)
    assert [path.stat().st_size for path in bench.objects()] == [4_000_000]
    assert int(await bench.redis.get(bench.redis.key.blob_bytes(ANN)) or 0) == 4_000_000


async def test_large_payloads_are_looked_at_one_after_the_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread that looks at one holds the interpreter now and then, and the event loop would wait for all of them."""
    cut, looking = bench.blobs.marks.cut, 0

    def watched(payload: bytes, of: Any = None) -> Any:
        nonlocal looking
        looking += 1
        assert looking == 1
        found = cut(payload, of)
        looking -= 1
        return found

    monkeypatch.setattr(bench.blobs.marks, "cut", watched)
    bodies = [asked(picture(300_000, seed)) for seed in range(6)]
    cuts = await asyncio.gather(*map(bench.blobs.cut, bodies))
    assert [cut(body).essence for body in bodies] == [one.essence for one in cuts]


async def test_a_long_text_is_stored_as_well(bench: Bench) -> None:
    body = asked(text="long " * 100_000)
    entry = await stored(bench, await bench.submit(body))
    assert entry.data == b""
    assert json.loads(await bench.blobs.whole(ANN, entry)) == json.loads(body)


async def test_it_is_stored_once_for_a_tenant_and_goes_with_the_last_log(bench: Bench) -> None:
    body = asked(picture(300_000))
    first, second = await bench.submit(body), await bench.submit(body)
    other = await bench.submit(body, BEN)
    assert len(bench.objects()) == 2  # one for each tenant
    await bench.delete(first)
    assert len(bench.objects()) == 2
    assert json.loads(await bench.blobs.whole(ANN, await stored(bench, second))) == json.loads(body)
    await bench.delete(second)
    assert len(bench.objects()) == 1
    await bench.delete(other, BEN)
    assert not bench.objects()
    assert {name for name in await bench.ours() if "blob-bytes" not in name} == set()
    assert [int(await bench.redis.get(bench.redis.key.blob_bytes(one)) or 0) for one in (ANN, BEN)] == [0, 0]


async def test_it_goes_when_the_log_has_expired(bench: Bench) -> None:
    generation_id = await bench.submit(asked(picture(300_000)))
    await bench.later()
    assert bench.objects()
    (due,) = [score for _, score in await bench.redis.zrange(bench.redis.key.blob_holders, 0, -1, withscores=True)]
    left = await bench.redis.pttl(bench.log._key.log(generation_id))
    assert due - left > 0  # looked at again when it will have expired
    await bench.redis.delete(bench.log._key.log(generation_id))
    await bench.later()
    assert not bench.objects()


async def test_a_seal_says_when_it_goes(bench: Bench) -> None:
    generation_id = await bench.submit(asked(picture(300_000)))
    await bench.core.broker.cancel(generation_id, Caller(ANN))
    (due,) = [score for _, score in await bench.redis.zrange(bench.redis.key.blob_holders, 0, -1, withscores=True)]
    seconds, micros = await bench.redis.time()
    assert 20_000 < due - (seconds * 1000 + micros / 1000) < 70_000


async def test_what_is_being_removed_is_not_taken_for_what_is_stored_anew(bench: Bench) -> None:
    """It is let go of, and before the reaper has removed it, it is sent again."""
    body = asked(picture(300_000))
    first = await bench.submit(body)
    await bench.core.broker.delete(first, Caller(ANN))
    await bench.blobs.release_ended()
    second = await bench.submit(body)
    assert len(bench.objects()) == 2
    await bench.reap()
    assert len(bench.objects()) == 1
    assert json.loads(await bench.blobs.whole(ANN, await stored(bench, second))) == json.loads(body)


async def test_two_that_store_the_same_at_once_keep_one(bench: Bench) -> None:
    body = asked(picture(300_000))
    ids = await asyncio.gather(*(bench.submit(body) for _ in range(5)))
    await bench.reap()
    assert len(bench.objects()) == 1
    for generation_id in ids:
        assert json.loads(await bench.blobs.whole(ANN, await stored(bench, generation_id))) == json.loads(body)
        await bench.delete(generation_id)
    assert not bench.objects()


@pytest.mark.parametrize("meanwhile", [0, 1_000_000], ids=["alone", "others use up the quota"])
async def test_what_is_noted_and_not_answered_stays(
    redis: ArqRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: int
) -> None:
    """The connection breaks between EXEC and its answer, and the client takes that for a key that another one wrote."""
    bench, body = await opened(redis, tmp_path, max_blob_bytes=1_000_000), asked(picture(300_000))
    execute, lost = Pipeline._execute_transaction, 0

    async def cut(pipe: Pipeline, connection: Any, commands: Any, raise_on_error: bool) -> Any:
        nonlocal lost
        replies = await execute(pipe, connection, commands, raise_on_error)
        if not lost and any(COPY in words for words, _ in commands):
            lost += 1
            await redis.incrby(redis.key.blob_bytes(ANN), meanwhile)
            pipe.watching = True  # redis-py has not seen that it is over
            raise ConnectionError
        return replies

    monkeypatch.setattr(Pipeline, "_execute_transaction", cut)
    generation_id = await bench.submit(body)
    await bench.reap()
    assert (lost, len(bench.objects())) == (1, 1)
    assert json.loads(await bench.blobs.whole(ANN, await stored(bench, generation_id))) == json.loads(body)
    assert int(await redis.get(redis.key.blob_bytes(ANN)) or 0) == 400_000 + meanwhile
    assert not await redis.exists(redis.key.files_end)
    await bench.delete(generation_id)
    assert not bench.objects()


async def test_what_a_killed_process_stored_and_did_not_append_goes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of its steps: stored and not noted, noted and without a log."""

    class Killed(BaseException):
        pass

    async def killed(*_: Any, **__: Any) -> None:
        raise Killed

    for part, name in ((bench.blobs, "_note"), (bench.log, "create")):
        with monkeypatch.context() as patch:
            patch.setattr(part, name, killed)
            patch.setattr(bench.blobs, "release", killed)
            with pytest.raises(Killed):
                await bench.submit(asked(picture(300_000)))
        assert bench.objects()
        await bench.reap()
        assert bench.objects()  # it may be a slow one that is alive
        await bench.later()
        assert not bench.objects()
    assert GRACE_MS > 300_000


async def test_over_its_quota_a_tenant_is_refused_and_nothing_is_left(redis: ArqRedis, tmp_path: Path) -> None:
    bench = await opened(redis, tmp_path, max_blob_bytes=1_000_000)
    await bench.submit(asked(picture(600_000)))
    before = await redis.keys("*")
    with pytest.raises(StorageQuotaExceeded) as refused:
        await bench.submit(asked(picture(300_000, seed=2)))
    assert refused.value.status == 413
    assert sorted(await redis.keys("*")) == sorted(before)
    await bench.submit(asked(picture(600_000)))  # the same costs nothing
    await bench.submit(asked(picture(300_000, seed=2)), BEN)  # nor is it another's business
    for generation_id in [summary.header["id"] async for summary in bench.core.broker.listed(Caller(ANN))]:
        await bench.delete(generation_id)
    await bench.submit(asked(picture(300_000, seed=2)))


async def test_a_refusal_after_it_was_stored_leaves_nothing(bench: Bench) -> None:
    await bench.submit(asked(), session_id="s")
    with pytest.raises(Exception, match="busy"):
        await bench.submit(asked(picture(300_000)), session_id="s")
    await bench.reap()
    assert not bench.objects()


async def test_without_the_storage_nothing_is_accepted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await bench.redis.keys("*")

    async def away(*_: Any) -> None:
        raise FileStorageFailed

    monkeypatch.setattr(bench.core.files.storage, "put", away)
    with pytest.raises(FileStorageFailed) as refused:
        await bench.submit(asked(picture(300_000)))
    assert (refused.value.status, refused.value.code) == (503, "storage_unavailable")
    await bench.reap()
    assert sorted(await bench.redis.keys("*")) == sorted(before)


async def test_a_part_that_is_missing_is_said(bench: Bench) -> None:
    entry = await stored(bench, await bench.submit(asked(picture(300_000))))
    (path,) = bench.objects()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RequestLost):
        await bench.blobs.whole(ANN, entry)
    path.unlink()
    with pytest.raises(RequestLost):
        await bench.blobs.whole(ANN, entry)


async def test_a_session_keeps_what_its_turns_name(bench: Bench) -> None:
    """Also when the logs of its turns are gone; and not after it was deleted."""
    body = asked(picture(300_000))
    generation_id = await bench.submit(body)
    text = await bench.blobs.marked(ANN, await stored(bench, generation_id))
    holder = session_holder(ANN, "s")
    turn = await bench.blobs.store(holder, ANN, b"[%b]" % text, accepted=True)
    await bench.redis.xadd(bench.redis.key.session(ANN, "s").turns, {"t": turn.data})
    await bench.delete(generation_id)
    await bench.later()
    assert json.loads(await bench.blobs.whole(ANN, turn)) == [json.loads(body)]
    await bench.core.blobs.release(holder)
    assert bench.objects()
    await bench.redis.delete(bench.redis.key.session(ANN, "s").turns)
    await bench.later()
    assert not bench.objects()


async def test_the_same_request_made_twice_is_one(bench: Bench) -> None:
    body = asked(picture(300_000))
    value = ChatRequest.check(json.loads(body))
    submit: Callable[..., Awaitable[Any]] = bench.core.broker.submit
    first = await submit(await bench.blobs.cut(body), value, Caller(ANN), idempotency_key="k")
    cut = await bench.blobs.cut(body)
    second = await submit(cut, ChatRequest.check(json.loads(cut.text)), Caller(ANN), idempotency_key="k")
    assert second.replayed
    assert first.header["id"] == second.header["id"]
    assert len(bench.objects()) == 1


async def test_what_a_redis_has_forgotten_goes_when_nothing_can_name_it_any_more(
    bench: Bench,
) -> None:
    """A server that was emptied knows neither logs nor blobs; what is stored since is another's."""
    await bench.submit(asked(picture(400_000)))
    (old,) = bench.objects()
    await bench.redis.flushdb()
    kept = await bench.submit(asked(picture(400_000, 2)))
    (new,) = set(bench.objects()) - {old}
    longest_s = bench.core.forgotten.age_s
    os.utime(new, (time.time() - longest_s - 60,) * 2)
    os.utime(old, (time.time() - longest_s + 60,) * 2)

    async def search() -> None:
        await bench.redis.delete(bench.redis.key.blobs_searched)
        await bench.core.forgotten.search()
        await bench.core.files.remove_expired()

    await search()
    assert set(bench.objects()) == {old, new}, "the one is not old enough, the other is known"
    os.utime(old, (time.time() - longest_s - 60,) * 2)
    await bench.core.forgotten.search()
    await bench.core.files.remove_expired()
    assert set(bench.objects()) == {old, new}, "once a day is enough"
    other = bench.directory / "files/blobs-users/another"
    other.touch()
    await search()
    assert set(bench.objects()) == {old, new}, "they may be the other installation's"
    os.utime(other, (time.time() - 50 * 86_400,) * 2)
    await search()
    assert bench.objects() == [new]
    assert not other.exists()
    await bench.delete(kept)
    assert bench.objects() == []


async def test_a_storage_that_does_not_answer_is_searched_another_day(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Storage, prefix: str, age_s: float) -> Any:
        raise FileStorageFailed

    monkeypatch.setattr(Storage, "older", away)
    await bench.core.forgotten.search()
