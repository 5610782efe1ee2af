"""Batches in Redis: accepted, found, changed by two sides at once, cancelled, and rung for."""

from __future__ import annotations

import asyncio
import base64
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shared.chat.request import BatchRequest
from shared.config.settings import Settings
from shared.errors import BadRequest, Fenced, Gone, NotFound, Unavailable
from shared.features.batch_head import BatchHead, BatchStatus, enter
from shared.features.batches import Batches
from shared.features.files import Files
from shared.features.webhooks import Webhooks
from shared.lib.clock import now_ms
from shared.store.cluster.pipelines import Pipeline
from shared.store.confirm import Confirmer
from shared.store.keys import Lane
from shared.store.redis import ArqRedis
from tests.support.deadlines import Deadlines
from tests.support.names import keys

BODY: dict[str, Any] = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, webhook_secret=f"ann:whsec_{base64.b64encode(bytes(32)).decode()}")


@pytest.fixture
def files(redis: ArqRedis, settings: Settings) -> Files:
    return Files(redis, settings)


@pytest.fixture
def batches(redis: ArqRedis, files: Files, settings: Settings) -> Batches:
    return Batches(redis, files, Webhooks(redis, settings), settings)


async def upload(files: Files, *, purpose: str = "batch", tenant: str = "ann") -> str:
    async with files.create(tenant) as new:
        await new.write(b"{}\n")
        new.finish(filename="in.jsonl", purpose=purpose, life_s=3600)
    return new.id


async def create(batches: Batches, files: Files, **fields: Any) -> BatchHead:
    body = {**BODY, "input_file_id": await upload(files), **fields}
    head, _ = await batches.create(BatchRequest.check(body), "ann")
    return head


async def test_a_batch_is_found_by_its_owner_only(batches: Batches, files: Files, redis: ArqRedis) -> None:
    head = await create(batches, files, metadata={"a": "b"})
    assert await batches.find(head["id"], "ann") == head
    assert (head["status"], head["metadata"], head["epoch"]) == ("validating", {"a": "b"}, 0)
    assert head["expires_at_ms"] - head["at"]["created"] == 86_400_000
    for stranger in (batches.find(head["id"], "bob"), batches.cancel(head["id"], "bob"), batches.find("b", "ann")):
        with pytest.raises(NotFound):
            await stranger
    assert await redis.zscore(keys.waiting(Lane.BATCH, "ann"), head["id"]) is not None
    assert await redis.zscore(keys.files_end, head["input_file_id"]) > head["expires_at_ms"]


async def test_what_is_no_input_is_refused_and_leaves_nothing(batches: Batches, files: Files, redis: ArqRedis) -> None:
    vision, foreign = await upload(files, purpose="vision"), await upload(files, tenant="bob")
    for file_id, error in ((vision, BadRequest), (foreign, NotFound), ("file-1", NotFound)):
        with pytest.raises(error) as caught:
            await batches.create(BatchRequest.check({**BODY, "input_file_id": file_id}), "ann")
        assert caught.value.param == "input_file_id"
    assert await redis.exists(keys.batches_open, keys.batches("ann"), keys.waiting(Lane.BATCH, "ann")) == 0


async def test_what_was_refused_for_want_of_an_answer_is_withdrawn(
    batches: Batches, files: Files, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis hears the create; its answer does not arrive in time."""
    input_file_id = await upload(files)
    execute, deadlines = Pipeline.execute, Deadlines(monkeypatch)

    async def slow(pipe: Pipeline, *arguments: Any, **keywords: Any) -> Any:
        creates = any("batches-open" in str(command) for command in pipe.command_stack)
        replies = await execute(pipe, *arguments, **keywords)
        if creates:
            await deadlines.expire()
        return replies

    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "execute", slow)
        with pytest.raises(Unavailable) as refused:
            await batches.create(BatchRequest.check({**BODY, "input_file_id": input_file_id}), "ann")
    assert refused.value.code == "storage_unavailable"
    (head,) = [head async for head in batches.listed(["ann"])]
    assert head["status"] == "validating"
    for _ in range(2):
        await batches.revoke_doubtful()
        assert (await batches.find(head["id"], "ann"))["status"] == "cancelling"
    assert await redis.zscore(keys.waiting(Lane.BATCH, "ann"), head["id"]) is not None, "a worker is told to end it"


async def test_what_was_refused_and_comes_late_is_withdrawn_then(
    batches: Batches, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    input_file_id = await upload(files)
    execute, late, deadlines = Pipeline.execute, [], Deadlines(monkeypatch)

    async def held(pipe: Pipeline, *arguments: Any, **keywords: Any) -> Any:
        if any("batches-open" in str(command) for command in pipe.command_stack):
            late.append([command[0] for command in pipe.command_stack])
            await deadlines.expire()
        return await execute(pipe, *arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "execute", held)
        with pytest.raises(Unavailable):
            await batches.create(BatchRequest.check({**BODY, "input_file_id": input_file_id}), "ann")
    await batches.revoke_doubtful()
    assert [head async for head in batches.listed(["ann"])] == []
    async with batches._redis.pipeline(transaction=True) as pipe:
        for command in late[0]:
            pipe.execute_command(*command)
        await pipe.execute()
    await batches.revoke_doubtful()
    assert [head["status"] async for head in batches.listed(["ann"])] == ["cancelling"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/audio/speech"}, "endpoint"),
        ({"completion_window": "24"}, "completion_window"),
        ({"completion_window": "8d"}, "completion_window"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "output_expires_after.anchor"),
        ({"input_file_id": None}, "input_file_id"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        BatchRequest.check({**BODY, "input_file_id": "file-1", **fields})
    assert caught.value.param == param


@pytest.mark.parametrize(("window", "seconds"), [("24h", 86400), ("90s", 90), ("5m", 300), ("7d", 604800)])
def test_a_window_is_a_number_and_a_unit(window: str, seconds: int) -> None:
    assert BatchRequest.check({**BODY, "input_file_id": "f", "completion_window": window}).window_s == seconds


async def test_a_claim_that_the_server_forgot_is_not_given_to_another(
    batches: Batches, files: Files, redis: ArqRedis
) -> None:
    """Else both would write, each over what the other did."""
    batch_id = (await create(batches, files))["id"]
    before = await redis.get(keys.batch(batch_id))
    assert before
    forgotten = (await batches.claim(batch_id))["epoch"]
    await redis.set(keys.batch(batch_id), before, ex=60)
    await _later(forgotten)
    newer = (await batches.claim(batch_id))["epoch"]
    with pytest.raises(Fenced):
        await batches.save(batch_id, forgotten, lambda head: head.update({"total": 1}))
    assert (await batches.save(batch_id, newer, lambda head: head.update({"total": 2})))["total"] == 2


async def _later(epoch: int) -> None:
    """A server is not started again within a millisecond."""
    while now_ms() <= epoch:  # noqa: ASYNC110 - the clock makes it true
        await asyncio.sleep(0)


async def test_only_the_newest_claim_may_write(batches: Batches, files: Files) -> None:
    batch_id = (await create(batches, files))["id"]
    first, second = (await batches.claim(batch_id))["epoch"], (await batches.claim(batch_id))["epoch"]
    assert first < second
    with pytest.raises(Fenced):
        await batches.save(batch_id, first, lambda head: head.update({"total": 1}))
    assert (await batches.save(batch_id, second, lambda head: head.update({"total": 2})))["total"] == 2
    assert (await batches.find(batch_id, "ann"))["total"] == 2
    with pytest.raises(Gone):
        await batches.claim("batch_" + "0" * 32)


async def test_a_cancel_and_the_workers_news_do_not_undo_each_other(batches: Batches, files: Files) -> None:
    batch_id = (await create(batches, files))["id"]
    epoch = (await batches.claim(batch_id))["epoch"]
    await batches.save(batch_id, epoch, lambda head: enter(head, "in_progress", 1))
    before = (await batches.find(batch_id, "ann"))["version"]

    def count(number: int) -> Any:
        return batches.save(batch_id, epoch, lambda head: head.update({"completed": max(head["completed"], number)}))

    await asyncio.gather(*map(count, range(1, 9)), *(batches.cancel(batch_id, "ann") for _ in range(3)))
    head = await batches.find(batch_id, "ann")
    assert (head["status"], head["completed"], head["version"]) == ("cancelling", 8, before + 9)
    assert set(head["at"]) == {"created", "in_progress", "cancelling"}


@pytest.mark.parametrize("status", ["finalizing", "completed", "failed", "expired"])
async def test_what_is_over_cannot_be_cancelled(batches: Batches, files: Files, status: BatchStatus) -> None:
    batch_id = (await create(batches, files))["id"]
    epoch = (await batches.claim(batch_id))["epoch"]
    await batches.save(batch_id, epoch, lambda head: enter(head, status, 1))
    with pytest.raises(BadRequest, match=status):
        await batches.cancel(batch_id, "ann")


@pytest.mark.parametrize("status", ["completed", "failed", "expired", "cancelled"])
async def test_the_end_is_told_in_the_transaction_that_writes_it(
    batches: Batches, files: Files, redis: ArqRedis, status: BatchStatus
) -> None:
    head = await create(batches, files, webhook={"url": "https://hooks.example.com/x"})
    (delivery,) = await batches.deliveries([head])
    assert delivery
    assert delivery["status"] == "waiting"
    epoch = (await batches.claim(head["id"]))["epoch"]
    assert not await redis.exists(keys.webhooks)
    for _ in range(2):
        head = await batches.save(head["id"], epoch, lambda head: enter(head, status, 1))
    event = json.loads(await redis.hget(keys.webhook(head["id"]), "event"))  # type: ignore[misc]
    assert (event["type"], event["data"]) == (f"batch.{status}", {"id": head["id"]})
    assert event["created_at"] == head["at"][status] // 1000
    assert await redis.zrange(keys.webhooks, 0, -1) == [head["id"].encode()]
    (delivery,) = await batches.deliveries([head])
    assert delivery
    assert delivery["status"] == "pending"


async def test_batches_are_listed_newest_first(batches: Batches, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1_800_000_000_000, 1_800_000_100_000))

    async def tick(_: Batches) -> int:
        return next(clock)

    monkeypatch.setattr(Batches, "clock_ms", tick)
    monkeypatch.setattr("shared.store.merged._PAGE", 2)
    made = [(await create(batches, files))["id"] for _ in range(5)]
    assert [head["id"] async for head in batches.listed(["ann"])] == made[::-1]
    assert [head["id"] async for head in batches.listed(["ann"], made[2])] == [made[1], made[0]]
    with pytest.raises(NotFound, match="after"):
        _ = [head async for head in batches.listed(["bob"], made[0])]


async def later(batches: Batches) -> int:
    """Redis's time when all that was created by now is settled."""
    return await Batches.clock_ms(batches) + 20_000


async def test_the_reaper_rings_for_open_ones_only(
    batches: Batches, files: Files, redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, ended, lost = [(await create(batches, files))["id"] for _ in range(3)]
    await redis.delete(keys.waiting(Lane.BATCH, "ann"), keys.batch(lost))
    await batches.close(ended)
    monkeypatch.setattr(batches, "clock_ms", partial(later, batches))
    await batches.remind()
    assert await redis.zrange(keys.waiting(Lane.BATCH, "ann"), 0, -1) == [waiting.encode()]
    assert await redis.zrange(keys.batches_open, 0, -1) == [waiting.encode()]


async def test_the_reaper_does_not_ring_before_a_batch_is_accepted_or_withdrawn(
    redis: ArqRedis, files: Files, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was run, and paid for, although the client had been told 503."""
    confirmer = Confirmer(redis, name="never")
    batches = Batches(redis, files, Webhooks(redis, settings), settings, confirmer)
    deadlines = Deadlines(monkeypatch)
    monkeypatch.setattr(confirmer, "promise", lambda **_: deadlines.expire())
    with pytest.raises(Unavailable):
        await create(batches, files)
    (batch_id,) = await redis.zrange(keys.batches_open, 0, -1)
    await batches.remind()
    assert await redis.zcard(keys.waiting(Lane.BATCH, "ann")) == 0
    await batches.revoke_doubtful()
    assert (await batches.find(batch_id.decode(), "ann"))["status"] == "cancelling"
    assert await redis.zrange(keys.waiting(Lane.BATCH, "ann"), 0, -1) == [batch_id], "a worker ends it"


async def test_batches_hear_of_each_others_needs(batches: Batches, files: Files, redis: ArqRedis) -> None:
    one, other = [(await create(batches, files))["id"] for _ in range(2)]
    mine = {"tenant": "ann", "providers": {"fake": 5}}
    assert await batches.demands(one, mine) == {one: mine}
    theirs = {"tenant": "bob", "providers": {}}
    assert await batches.demands(other, theirs) == {one: mine, other: theirs}
    await batches.close(one)
    assert await batches.demands(other, theirs) == {other: theirs}
    assert 0 < await redis.pttl(keys.batch_demand(other)) <= 5000
