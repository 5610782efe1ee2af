"""Batches always end: whoever is killed, wherever; whatever is cancelled, expires, is away, refused, full or broken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from redis.exceptions import ConnectionError

from shared.chat.chunks import completion
from shared.cli.embedded import EmbeddedValkey
from shared.errors import FileStorageFailed, FileStorageInvalid, FileStorageRefused
from shared.features.batch_head import BatchHead, Checkpoint
from shared.features.batches import Batches
from shared.features.files import Files
from shared.features.storage import Storage
from shared.lib import clock
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.support.batch import jsonl, line
from tests.support.batch_lab import OWNER, Killed, Lab, few, open_lab
from tests.support.names import keys
from worker.batches import batcher, endpoints
from worker.batches import end as batch_end
from worker.batches import input as batch_input
from worker.batches import run as batch
from worker.batches.end import MOST_CLAIMS
from worker.batches.input import Input
from worker.batches.lines import LineWrong, Raw, check_line
from worker.batches.results import Results, make_file


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(batcher, "_HAND_OVER_S", 60.0)  # a busy machine's second is no loss of the batch's
    for module in (batch, batcher):
        monkeypatch.setattr(module, "TICK_S", 0.05)
    monkeypatch.setattr(batch, "_BLOCK_MS", 50)
    monkeypatch.setattr(batch_end, "PATIENCE_MS", 300)


@pytest.fixture
async def lab(valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[Lab]:
    async with open_lab(valkey, upstream, tmp_path) as running:
        yield running


def killer(monkeypatch: pytest.MonkeyPatch, tenant: Any, name: str, *, after: int = 0, times: int = 1) -> None:
    """The worker is killed when it calls this the next time but `after`, so many times."""
    real: Callable[..., Any] = getattr(tenant, name)
    calls = 0

    def kills(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if after < calls <= after + times:
            raise Killed
        return real(*arguments, **keywords)

    monkeypatch.setattr(tenant, name, kills)


def failing(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> Callable[[], None]:
    """From now on the storage does this, until what is returned is called."""
    real = getattr(Storage, name)

    async def fails(*_: Any, **__: Any) -> Any:
        raise error

    async def fails_to_read(*_: Any, **__: Any) -> AsyncIterator[bytes]:
        raise error
        yield b""

    def fails_at_once(*_: Any, **__: Any) -> Any:
        raise error

    replacement = {"read": fails_to_read, "create": fails_at_once}.get(name, fails)
    monkeypatch.setattr(Storage, name, replacement)
    return lambda: monkeypatch.setattr(Storage, name, real)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 -- another task makes it true
            await asyncio.sleep(0.005)


async def check(lab: Lab, batch_id: str, lines: int) -> BatchHead:
    """It has completed: every line is in the output, once, and nothing is left."""
    head = await lab.ended(batch_id)
    assert head["status"] == "completed", head["errors"]
    output = await lab.results(head["output_file_id"])
    assert output.keys() == {f"line-{n}" for n in range(lines)}
    assert (head["total"], head["completed"], head["failed"]) == (lines, lines, 0)
    assert head["usage"]["total_tokens"] == sum(
        one["response"]["body"]["usage"]["total_tokens"] for one in output.values()
    )
    for name, found in output.items():
        assert found["response"]["body"]["choices"][0]["message"]["content"] == name.replace("-", " ")
    return head


async def nothing_left(lab: Lab, batch_id: str) -> None:
    assert await lab.redis.zscore(lab.redis.key.batches_open, batch_id) is None
    assert await lab.logs() == []
    await reaper_removes_parts(lab, batch_id)


async def reaper_removes_parts(lab: Lab, batch_id: str) -> None:
    """They are only waiting for it."""
    ((member, _),) = [
        one
        for one in await lab.redis.zrange(lab.redis.key.files_end, 0, -1, withscores=True)
        if one[0].startswith(b"parts/")
    ]
    await lab.redis.zadd(lab.redis.key.files_end, {member: 1})
    await lab.files.remove_expired()
    assert lab.parts(batch_id) == []


# ---- at the end of the input


@pytest.mark.parametrize("last", [b"\n", b""], ids=["with a last line break", "without"])
@pytest.mark.parametrize("count", [1, 20])
async def test_a_worker_lost_after_the_last_line_was_handed_out_is_followed_by_another(
    lab: Lab, last: bytes, count: int
) -> None:
    """The checkpoint stands at the end of the file, or one byte behind it."""
    lab.answering.clear()
    content = jsonl(few(count)).rstrip(b"\n") + last
    batch_id = await lab.start(content)
    worker = asyncio.create_task(lab.run(batch_id))
    await lab.until_open(count)
    # What it would have written down at the next checkpoint; and then it is killed without a word.
    await worker_dies(worker)
    await write_checkpoint_at_end(lab, batch_id, content, count)
    lab.answering.set()
    assert await lab.run(batch_id)
    await check(lab, batch_id, count)
    await nothing_left(lab, batch_id)


async def worker_dies(worker: asyncio.Task[Any]) -> None:
    worker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await worker


async def write_checkpoint_at_end(lab: Lab, batch_id: str, content: bytes, count: int) -> None:
    head = await lab.head(batch_id)
    spots, offset = [], 0
    for number, text in enumerate(content.splitlines(), 1):
        spots.append([number, offset, len(text), 0])
        offset += len(text) + 1
    checkpoint: Checkpoint = {
        "next": count + 1,
        "offset": offset,
        "open": spots,
        "parts": [],
        "stored": [],
        "completed": 0,
        "failed": 0,
        "usage": {},
    }
    await lab.batches.save(batch_id, head["epoch"], lambda head: head.update({"checkpoint": checkpoint}))


@pytest.mark.parametrize("how", ["cancel", "expiry"])
async def test_a_cancel_and_the_end_of_the_window_end_it_there_as_well(
    lab: Lab, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.answering.clear()
    content = jsonl(few(20))
    batch_id = await lab.start(content)
    worker = asyncio.create_task(lab.run(batch_id))
    await lab.until_open(20)
    await worker_dies(worker)
    await write_checkpoint_at_end(lab, batch_id, content, 20)
    await (lab.cancel if how == "cancel" else lab.expire)(batch_id)
    assert await lab.run(batch_id)
    head = await lab.head(batch_id)
    assert head["status"] == ("cancelled" if how == "cancel" else "expired")
    errors = await lab.results(head["error_file_id"])
    assert errors.keys() == {f"line-{n}" for n in range(20)}
    assert {one["error"]["code"] for one in errors.values()} == {f"batch_{head['status']}"}
    assert (head["completed"], head["failed"]) == (0, 20)
    await nothing_left(lab, batch_id)


async def test_an_older_batch_does_not_know_how_long_its_input_is(lab: Lab) -> None:
    batch_id = await lab.start(jsonl(few(3)))
    head = await lab.head(batch_id)

    def older(head: BatchHead) -> None:
        del head["input_bytes"], head["claims"], head["late"]

    await lab.batches.save(batch_id, head["epoch"], older)
    assert await lab.run(batch_id)
    await check(lab, batch_id, 3)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (Input, "check"),
        (Input, "next"),
        (Input, "fetch"),
        (Results, "store"),
        (Results, "write_counts"),
        (Batches, "demands"),
        (batch.Run, "_forget"),
        (batch_end, "make_file"),
        (Files, "remove_all_at"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("after", [0, 1])
async def test_a_worker_killed_anywhere_is_followed_by_another(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, target: Any, name: str, after: int
) -> None:
    batch_id = await lab.start(few(30))
    killer(monkeypatch, target, name, after=after)
    for _ in range(3):
        await lab.run(batch_id)
    await check(lab, batch_id, 30)
    await nothing_left(lab, batch_id)


async def test_what_a_killed_upload_of_a_part_left_keeps_nothing_open(lab: Lab) -> None:
    batch_id = await lab.start(few(2))
    place = Path(lab.settings.data_dir) / "files" / "parts" / batch_id
    place.mkdir(parents=True)
    (place / "1-7-0#1").write_bytes(b"half a part")
    assert await lab.run(batch_id)
    await check(lab, batch_id, 2)
    await nothing_left(lab, batch_id)


# ---- claims that come to nothing


@pytest.mark.parametrize("last_words", [True, False], ids=["its lines can be read", "they cannot"])
async def test_a_batch_that_breaks_its_workers_is_given_up_with_what_is_done(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, upstream: ScriptedUpstream, last_words: bool
) -> None:
    pause = Pause()
    upstream.script("held", [*words(1), pause, *ending()])
    hook = {"url": "https://hooks.example.com/x"}
    batch_id = await lab.start([*few(5), *few(200, "scripted/held", "held")], webhook=hook)
    async with lab.running(batch_id):
        await lab.until(batch_id, lambda head: head["completed"] == 5)
    if last_words:
        killer(monkeypatch, batch.Run, "_hand_out", times=1000)
    else:
        killer(monkeypatch, Input, "again", times=1000)
    with structlog.testing.capture_logs() as logs:
        for _ in range(MOST_CLAIMS):
            await lab.run(batch_id)
        assert (await lab.head(batch_id))["status"] == "in_progress"
        for _ in range(2):
            await lab.run(batch_id)
    head = await lab.head(batch_id)
    assert (head["status"], head["total"], head["completed"], head["failed"]) == ("failed", 205, 5, 200)
    assert head["errors"][0]["code"] == "batch_given_up"
    assert (await lab.results(head["output_file_id"])).keys() == {f"line-{n}" for n in range(5)}
    errors = await lab.results(head["error_file_id"])
    if last_words:
        assert errors.keys() == {f"held-{n}" for n in range(200)}
        assert {one["error"]["code"] for one in errors.values()} == {"batch_given_up"}
    else:
        assert errors == {}
        assert "200 lines" in head["errors"][0]["message"]
        assert any(line["log_level"] == "error" for line in logs)
    assert await lab.redis.zscore(lab.redis.key.batches_open, batch_id) is None
    assert await lab.log.open_ids() == [], "nothing runs any more"
    event = json.loads(await lab.redis.hget(lab.redis.key.webhook(batch_id), "event"))  # type: ignore[misc]
    assert event["type"] == "batch.failed"
    pause.go()


async def test_a_bug_is_tried_again_with_pauses_and_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a worker that dies: it says what is wrong with itself."""
    batch_id = await lab.start(few(3))

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(batch.Run, "_hand_out", broken)
    monkeypatch.setattr(batcher, "_LONGEST_PAUSE_S", 0.05)
    with structlog.testing.capture_logs() as logs:
        assert await lab.run(batch_id)
    head = await lab.head(batch_id)
    assert (head["status"], head["failed"]) == ("failed", 3)
    assert (await lab.results(head["error_file_id"])).keys() == {f"line-{n}" for n in range(3)}
    assert sum(line["event"] == "batch broke" for line in logs) == MOST_CLAIMS + 1, "the first one had validated it"


async def test_a_validation_that_breaks_its_workers_is_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = await lab.start(few(3))
    killer(monkeypatch, Input, "check", times=1000)
    for _ in range(MOST_CLAIMS + 1):
        await lab.run(batch_id)
    head = await lab.head(batch_id)
    assert (head["status"], head["errors"][0]["code"], head["total"]) == ("failed", "batch_given_up", 0)
    await nothing_left(lab, batch_id)


async def test_files_that_break_their_workers_are_given_up_and_the_results_can_be_read(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = await lab.start(few(3))
    killer(monkeypatch, batch_end, "make_file", times=1000)
    for _ in range(MOST_CLAIMS + 4):
        await lab.run(batch_id)
    head = await lab.head(batch_id)
    assert (head["status"], head["completed"], head["output_file_id"], head["late"]) == ("failed", 3, None, False)
    assert await lab.redis.zscore(lab.redis.key.batches_open, batch_id) is None
    found = b"".join([piece async for piece in lab.batches.results(batch_id, OWNER, 1)])
    assert {json.loads(one)["custom_id"] for one in found.splitlines()} == {f"line-{n}" for n in range(3)}
    await reaper_removes_parts(lab, batch_id)


async def test_claims_that_come_further_are_not_counted(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = await lab.start(few(30))
    monkeypatch.setattr("worker.batches.results.PART_LINES", 1)
    killer(monkeypatch, batch.Run, "_forget", after=1, times=0)
    lives = 0
    real = batch.Run.flush

    async def flush_and_die(run: batch.Run) -> None:
        nonlocal lives
        await real(run)
        lives += 1
        if lives <= 2 * MOST_CLAIMS and not run.source.over:
            raise Killed

    monkeypatch.setattr(batch.Run, "flush", flush_and_die)
    monkeypatch.setattr(lab.settings, "batch_lines", 1)
    for _ in range(2 * MOST_CLAIMS + 1):
        await lab.run(batch_id)
    await check(lab, batch_id, 30)


async def test_workers_that_hand_over_are_not_counted(lab: Lab) -> None:
    """Rolling updates, while every line waits."""
    lab.answering.clear()
    batch_id = await lab.start(few(3))
    async with lab.running(batch_id):
        await lab.until(batch_id, lambda head: head["status"] == "in_progress")
    for _ in range(2 * MOST_CLAIMS):
        async with lab.running(batch_id):
            await lab.until(batch_id, lambda head: head["claims"] == 1)
        assert (await lab.head(batch_id))["claims"] == 0
    lab.answering.set()
    assert await lab.run(batch_id)
    await check(lab, batch_id, 3)


async def test_a_worker_that_stops_while_it_claims_hands_over_as_well(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = await lab.start(few(3))
    batcher = lab.batcher()
    claim, claimed = batcher.batches.claim, asyncio.Event()

    async def claiming(*given: Any, **named: Any) -> Any:
        head = await claim(*given, **named)
        claimed.set()
        await asyncio.sleep(0)  # the stop comes before the answer does
        return head

    monkeypatch.setattr(batcher.batches, "claim", claiming)
    async with lab.running(batch_id, batcher):
        await claimed.wait()
    assert (await lab.head(batch_id))["claims"] == 0
    monkeypatch.undo()
    assert await lab.run(batch_id)
    await check(lab, batch_id, 3)


async def test_a_claim_that_lasts_is_none_that_came_to_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "HEALTHY_S", 0.2)
    lab.answering.clear()
    batch_id = await lab.start(few(3))
    async with lab.running(batch_id):
        await lab.until(batch_id, lambda head: head["status"] == "in_progress" and head["claims"] == 0)


# ---- what is away


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (FileStorageFailed(), "file storage failed"),
        (FileStorageRefused(), "file storage failed"),
        (ConnectionError("gone"), "redis failed"),
    ],
    ids=["away", "refused", "redis"],
)
@pytest.mark.parametrize("name", ["read", "read_ranges", "put", "create"])
async def test_what_is_away_is_waited_for_and_called_by_its_name(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, upstream: ScriptedUpstream, name: str, error: BaseException, event: str
) -> None:
    pause = Pause()
    upstream.script("waits", [*words(1), pause, *ending()])
    batch_id = await lab.start([*few(5), *few(5, "scripted/waits", "held")])
    if name == "read_ranges":  # lines that were open are read again by whoever takes it over
        async with lab.running(batch_id):
            await lab.until(batch_id, lambda head: head["completed"] == 5)
    monkeypatch.setattr(batcher, "_LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr("shared.store.outage._LOG_EVERY_S", 0)
    heal = failing(monkeypatch, name, error)
    pause.go()
    with structlog.testing.capture_logs() as logs:
        async with lab.running(batch_id) as running:
            await until(lambda: sum(one["event"] == event for one in logs) > MOST_CLAIMS)
            head = await lab.head(batch_id)
            assert head["status"] in ("validating", "in_progress", "finalizing")
            assert head["claims"] <= 1
            heal()
            assert await running
    assert {one["event"] for one in logs} & {"file storage failed", "redis failed"} == {event}
    head = await lab.head(batch_id)
    assert (head["status"], head["completed"], head["failed"]) == ("completed", 10, 0)
    assert head["errors"] == [], "it did not end without what was away"
    await nothing_left(lab, batch_id)


async def test_a_storage_that_cannot_do_what_is_asked_is_not_waited_for_until_the_window_ends(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = await lab.start(few(3))
    monkeypatch.setattr(batcher, "_LONGEST_PAUSE_S", 0.05)
    failing(monkeypatch, "put", FileStorageInvalid())
    assert await lab.run(batch_id)
    head = await lab.head(batch_id)
    assert (head["status"], head["completed"], head["failed"]) == ("failed", 0, 3)
    assert head["errors"][0]["code"] == "batch_given_up"


@pytest.mark.parametrize("name", ["read", "put", "create"])
@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_a_cancel_and_the_end_of_the_window_do_not_wait_for_a_storage_that_is_away(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, how: str, name: str
) -> None:
    """What is done comes when it is back."""
    lab.answering.clear()
    batch_id = await lab.start([*few(2), *few(300, name="late")])
    monkeypatch.setattr(batcher, "_LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(lab.settings, "batch_lines", 2)
    async with lab.running(batch_id) as running:
        lab.answering.set()
        await lab.until(batch_id, lambda head: head["completed"] >= 2)
        heal = failing(monkeypatch, name, FileStorageFailed())
        lab.answering.clear()
        await (lab.cancel if how == "cancelled" else lab.expire)(batch_id)
        head = await lab.ended(batch_id)
        assert head["status"] == how
        assert head["completed"] + head["failed"] == head["total"] == 302
        if name != "put":  # files are not made with that
            assert head["output_file_id"] is None
            assert head["errors"][-1]["code"] == "files_late"
            assert not running.done(), "the files are still to come"
        heal()
        assert await running
    head = await lab.head(batch_id)
    output = await lab.results(head["output_file_id"])
    assert len(output) == head["completed"] >= 2
    assert (head["status"], head["late"]) == (how, False)
    assert "files_late" not in str(head["errors"])
    assert await lab.redis.zscore(lab.redis.key.batches_open, batch_id) is None
    await reaper_removes_parts(lab, batch_id)
    assert await lab.log.open_ids() == [], "what ran was ended"


async def test_files_that_do_not_come_for_a_day_are_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = await lab.start(few(2))
    monkeypatch.setattr(batcher, "_LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(batch_end, "_LATE_MS", 500)
    failing(monkeypatch, "create", FileStorageRefused())
    async with lab.running(batch_id) as running:
        await lab.until(batch_id, lambda head: head["status"] == "finalizing")
        await lab.expire(batch_id)
        head = await lab.ended(batch_id)
        assert (head["status"], head["errors"][0]["code"]) == ("failed", "file_storage_refused")
        assert await running
    found = b"".join([piece async for piece in lab.batches.results(batch_id, OWNER, 1)])
    assert found.count(b"\n") == 2


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_an_input_that_is_gone_does_not_keep_a_cancel_or_the_end_waiting(lab: Lab, how: str) -> None:
    lab.answering.clear()
    batch_id = await lab.start(few(500))
    async with lab.running(batch_id):
        await lab.until_open(100)
    await lab.files.delete((await lab.head(batch_id))["input_file_id"], OWNER)
    await (lab.cancel if how == "cancelled" else lab.expire)(batch_id)
    assert await lab.run(batch_id)
    head = await lab.head(batch_id)
    assert (head["status"], head["total"], head["completed"], head["failed"]) == (how, 500, 0, 500)
    assert head["errors"][0]["code"] == "input_file_gone"
    assert await lab.log.open_ids() == [], "what ran was ended, though nobody could read which lines they are"


@pytest.mark.parametrize("content", [b"", b"x" * 100], ids=["shorter", "another"])
async def test_an_input_that_is_not_what_it_was_does_not_loop(lab: Lab, content: bytes) -> None:
    lab.answering.clear()
    batch_id = await lab.start(few(200))
    async with lab.running(batch_id):
        await lab.until_open(100)
    await lab.files.storage.put((await lab.head(batch_id))["input_file_id"], content)
    lab.answering.set()
    assert await lab.run(batch_id)
    head = await lab.head(batch_id)
    assert (head["status"], head["errors"][0]["code"]) == ("failed", "input_file_gone")
    assert head["completed"] + head["failed"] == 200


async def test_results_that_the_storage_lost_are_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.batches.results.PART_LINES", 5)
    monkeypatch.setattr(lab.settings, "batch_lines", 5)
    batch_id = await lab.start(few(20))
    lost: list[Any] = []
    real = make_file

    async def lose(*arguments: Any) -> Any:
        if not lost:
            lost.append(lab.parts(batch_id)[1])
            lost[0].unlink()
        return await real(*arguments)

    monkeypatch.setattr(batch_end, "make_file", lose)
    assert await lab.run(batch_id)
    head = await lab.head(batch_id)
    output = await lab.results(head["output_file_id"])
    assert (head["status"], head["errors"][0]["code"]) == ("failed", "results_lost")
    assert 0 < len(output) == head["completed"] < 20
    assert head["completed"] + head["failed"] == 20


@pytest.mark.parametrize("forgotten", ["the files", "the last part"])
async def test_a_server_that_forgets_the_end_does_not_cost_the_results(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """It is an older value again, whose parts have become files meanwhile; the logs behind its checkpoint are back, too."""
    monkeypatch.setattr("worker.batches.results.PART_LINES", 5)
    monkeypatch.setattr(lab.settings, "batch_lines", 5)
    batch_id = await lab.start(few(20))
    owner, name = {"the files": (batch_end, "make_file"), "the last part": (batch.Run, "_forget")}[forgotten]
    real = getattr(owner, name)
    known: dict[str, Any] = {}

    async def remember(*arguments: Any) -> Any:
        if not known and (forgotten == "the files" or arguments[0].results.count >= 10):
            found = {key: await lab.redis.dump(key) async for key in lab.redis.scan_iter("*")}
            known.update({key: value for key, value in found.items() if value})  # some end between the two commands
        return await real(*arguments)

    monkeypatch.setattr(owner, name, remember)
    assert await lab.run(batch_id)
    await check(lab, batch_id, 20)
    await lab.redis.flushdb()
    for key, value in known.items():
        await lab.redis.restore(key, 0, value)
    assert await lab.run(batch_id)
    await check(lab, batch_id, 20)
    await nothing_left(lab, batch_id)


async def test_one_that_wakes_up_begins_nothing_of_a_batch_that_is_another_workers(lab: Lab) -> None:
    """The other one has written answers down and deleted their logs: they would be asked and paid once more."""
    batch_id = await lab.start(few(20))
    await lab.redis.set(keys.lease(batch_id), b"another", px=60_000)
    assert not await lab.run(batch_id)
    assert await lab.log.open_ids() == []
    await lab.redis.set(keys.lease(batch_id), b"lab", px=60_000)
    assert await lab.run(batch_id)
    await check(lab, batch_id, 20)


# ---- counts


async def test_counts_never_go_back(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told is what is stored: workers are killed between taking answers in and writing that down."""
    monkeypatch.setattr("worker.batches.results._SHORTEST_S", 0.1)
    batch_id = await lab.start(few(300))
    told: list[tuple[int, int, int]] = []

    async def watch() -> None:
        while True:
            head = await lab.head(batch_id)
            told.append((head["version"], head["completed"], head["usage"]["total_tokens"]))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    for after in (1, 2, 3, 1, 2):
        with monkeypatch.context() as patched:
            killer(patched, Results, "store", after=after)
            await lab.run(batch_id)
    assert await lab.run(batch_id)
    watching.cancel()
    assert told == sorted(told)
    for _, before, _ in told:
        assert before <= 300
    await check(lab, batch_id, 300)


# ---- lines


async def test_a_line_that_is_not_understood_any_more_is_an_error_and_no_loop(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was checked by another version of this program."""
    odd = line("odd", "fake/echo", seed=7)
    broken = line("broken", "fake/echo", seed=8)
    batch_id = await lab.start([*few(3), odd, broken, *few(3, name="more")])

    def breaks(raw: Raw, endpoint: str) -> Any:
        if raw.data and b'"seed": 7' in raw.data:
            raise LineWrong("invalid_request", "seed must not be 7.", "body.seed")
        return check_line(raw, endpoint)

    monkeypatch.setattr(batch_input, "check_line", breaks)
    assert await lab.run(batch_id)
    head = await lab.ended(batch_id)
    assert (head["status"], head["completed"], head["failed"]) == ("completed", 7, 1)
    (failed,) = (await lab.results(head["error_file_id"])).values()
    assert (failed["custom_id"], failed["response"], failed["error"]["code"]) == ("odd", None, "invalid_request")


async def test_a_line_whose_answer_breaks_us_fails_alone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = await lab.start(few(5))
    real = completion

    def broken(header: Any, fold: Any) -> Any:
        if "line 3" in fold.result()["choices"][0]["message"]["content"]:
            raise KeyError("surprise")
        return real(header, fold)

    monkeypatch.setattr(endpoints, "completion", broken)
    monkeypatch.setattr("worker.batches.queue._LONGEST_PAUSE_S", 0.05)
    assert await lab.run(batch_id)
    head = await lab.ended(batch_id)
    assert (head["status"], head["completed"], head["failed"]) == ("completed", 4, 1)
    (failed,) = (await lab.results(head["error_file_id"])).values()
    assert failed["response"]["body"]["error"]["code"] == "internal_error"
    await nothing_left(lab, batch_id)


# ---- the clock


@pytest.mark.parametrize("ahead_s", [600, -600])
async def test_the_window_goes_by_redis_clock(lab: Lab, monkeypatch: pytest.MonkeyPatch, ahead_s: int) -> None:
    """Those of the API and of the worker are minutes off."""
    real = clock.now_ms
    for place in ("shared.features.batches", "worker.batches.batcher", "worker.batches.run", "worker.batches.end"):
        monkeypatch.setattr(f"{place}.now_ms", lambda: real() + ahead_s * 1000, raising=False)
    lab.answering.clear()
    batch_id = await lab.start(few(3), "5m")
    async with lab.running(batch_id) as running:
        await lab.until(batch_id, lambda head: head["status"] == "in_progress")
        assert abs((await lab.head(batch_id))["expires_at_ms"] - real() - 300_000) < 30_000
        lab.answering.set()
        assert await running
    head = await check(lab, batch_id, 3)
    times = [head["at"][name] for name in ("created", "in_progress", "finalizing", "completed")]
    assert times == sorted(times)


# ---- results before the end


@pytest.mark.parametrize("sent", ["nothing", "a part"])
async def test_results_are_read_on_from_the_file_when_it_ends_meanwhile(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, sent: str
) -> None:
    monkeypatch.setattr("worker.batches.results.PART_LINES", 5)
    monkeypatch.setattr(lab.settings, "batch_lines", 5)
    gate = asyncio.Event()
    real = make_file

    async def wait(*arguments: Any) -> Any:
        await gate.wait()
        return await real(*arguments)

    monkeypatch.setattr(batch_end, "make_file", wait)
    batch_id = await lab.start(few(30))
    async with lab.running(batch_id) as running:
        await lab.until(batch_id, lambda head: head["status"] == "finalizing")
        reading = lab.batches.results(batch_id, OWNER, 1)
        found = b"" if sent == "nothing" else await anext(reading)
        gate.set()
        assert await running
        found += b"".join([piece async for piece in reading])
    ids = [json.loads(one)["custom_id"] for one in found.splitlines()]
    assert sorted(ids) == sorted(f"line-{n}" for n in range(30))


async def test_a_part_that_is_missing_is_said_and_not_looked_for_for_ever(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.batches.results.PART_LINES", 5)
    monkeypatch.setattr(lab.settings, "batch_lines", 5)
    lab.answering.clear()
    batch_id = await lab.start(
        [*few(3), *few(1000, name="more")]
    )  # far more than are answered until the first part is seen
    async with lab.running(batch_id):
        lab.answering.set()
        await lab.until(batch_id, lambda head: head["completed"])
        lab.answering.clear()
    for part in lab.parts(batch_id):
        part.unlink()
    with pytest.raises(FileStorageFailed):
        _ = [piece async for piece in lab.batches.results(batch_id, OWNER, 1)]
