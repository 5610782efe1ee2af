"""A line is asked again for as long as what it failed of may pass, and fails for what is its own."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from shared.cli.embedded import EmbeddedValkey
from shared.features.batch_head import BatchHead, reached
from shared.log.entry import Status
from tests.harness.records import error_with
from tests.harness.upstream import Pause, Script, ScriptedUpstream, ending, whole, words
from tests.support.batch import line
from tests.support.batch_lab import Lab, few, open_lab
from worker.batches import batcher, circuit
from worker.batches import queue as batch_queue
from worker.batches import run as batch
from worker.batches.lines import line_id

JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(batcher, "_HAND_OVER_S", 60.0)  # a busy machine's second is no loss of the batch's
    for module in (batch, batcher):
        monkeypatch.setattr(module, "TICK_S", 0.05)
    monkeypatch.setattr(batch, "_BLOCK_MS", 20)
    monkeypatch.setattr(batch_queue, "_LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(circuit, "_LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(circuit, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr("worker.upstream.attempts._FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("worker.upstream.attempts._TRIES", 1)


@pytest.fixture
async def lab(valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[Lab]:
    async with open_lab(valkey, upstream, tmp_path) as running:
        yield running


def refusing(upstream: ScriptedUpstream, name: str, status: int, code: str = "c", **headers: str) -> Script:
    body = json.dumps({"error": {"message": "No.", "type": "t", "code": code}}).encode()
    return upstream.script(name, [body], status=status, headers={**JSON, **headers})


def good(upstream: ScriptedUpstream, name: str) -> Script:
    return upstream.script(name, [*words(2), *ending()])


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 -- another task makes it true
            await asyncio.sleep(0.005)


async def codes(lab: Lab, head: BatchHead) -> Counter[str]:
    errors = await lab.results(head["error_file_id"])
    return Counter((one["error"] or one["response"]["body"]["error"])["code"] for one in errors.values())


@pytest.mark.parametrize("how", ["500", "503", "cut", "cut in the middle", "no connection"])
async def test_a_provider_that_is_away_fails_no_line(lab: Lab, upstream: ScriptedUpstream, how: str) -> None:
    if how == "no connection":
        upstream.leave()
    elif how.startswith("cut"):
        upstream.script("away", words(3) if "middle" in how else [], end="cut")
    else:
        refusing(upstream, "away", int(how))
    batch_id = await lab.start([*few(20, "scripted/away", "away"), *few(20)])
    with structlog.testing.capture_logs() as logs:
        async with lab.running(batch_id) as running:
            await until(lambda: any(one["event"] == "provider away" for one in logs))
            await lab.until(batch_id, lambda head: head["completed"] == 20)
            assert (await lab.head(batch_id))["failed"] == 0
            good(upstream, "away")
            if how == "no connection":
                upstream.come_back()
            assert await running
    head = await lab.head(batch_id)
    assert (head["status"], head["completed"], head["failed"]) == ("completed", 40, 0)
    output = await lab.results(head["output_file_id"])
    assert output["away-3"]["response"]["body"]["choices"][0]["message"]["content"] == whole(2)
    assert await lab.logs() == []


async def test_the_circuit_opens_for_all_batches_of_a_worker_and_other_models_go_on(
    lab: Lab, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of the same provider."""
    monkeypatch.setattr(circuit, "_LONGEST_PAUSE_S", 60.0)  # it doubles: a dozen looks in all, however long this takes
    script = refusing(upstream, "down", 503)
    other = good(upstream, "up")
    batcher = lab.batcher()
    first = await lab.start(few(50, "scripted/down"))
    async with lab.running(first, batcher):
        await until(lambda: batcher.circuits.of("scripted/down").opened_at is not None)
        await until(lambda: len(script.calls) >= 50)  # what of the first was on its way
        second = await lab.start([*few(50, "scripted/down"), *few(50, "scripted/up", "other")])
        before = len(script.calls)
        async with lab.running(second, batcher):
            await lab.until(second, lambda head: head["completed"] == 50)
        assert len(other.calls) == 50
        # Only to see whether it is back; else each of the second's would have asked.
        assert len(script.calls) - before < 40


async def test_other_workers_hear_that_a_provider_is_away_and_that_it_is_back(
    lab: Lab, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit, "_LONGEST_PAUSE_S", 60.0)
    monkeypatch.setattr(circuit, "_FIRST_PAUSE_S", 20.0)
    monkeypatch.setattr(circuit, "jittered", lambda pause_s: pause_s)
    one, other = lab.batcher(), lab.batcher()
    refusing(upstream, "far", 503)
    first, second = await lab.start(few(10, "scripted/far")), await lab.start(few(10, "scripted/far"))
    async with lab.running(first, one):
        await until(lambda: one.circuits.of("scripted/far").opened_at is not None)
        lab.answering.clear()
        async with lab.running(second, other) as running:
            await until(lambda: other.circuits.of("scripted/far").opened_at is not None)
            until_one, until_other = (each.circuits.of("scripted/far").until for each in (one, other))
            assert abs(until_one - until_other) < 5
            good(upstream, "far")
            one.circuits.answered("scripted/far", asyncio.get_running_loop().time())
            lab.answering.set()
            assert await running, "it did not wait for its own 20 s"
    assert (await lab.head(second))["completed"] == 10


async def test_a_line_that_always_fails_where_others_are_answered_fails_in_the_end(
    lab: Lab, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_queue, "_LONGEST_PAUSE_S", 0.01)
    script = refusing(upstream, "poison", 500, "its_own")
    pause = Pause()
    upstream.script("poisoned", [*words(1), pause, *ending()])
    batch_id = await lab.start([line("poison", "scripted/poison"), *few(3)])
    batcher = lab.batcher()
    answered = batcher.circuits.of("scripted/poison")
    async with lab.running(batch_id, batcher) as running:

        async def others() -> None:
            while True:
                answered.answered(asyncio.get_running_loop().time())
                await asyncio.sleep(0.001)

        task = asyncio.create_task(others())
        assert await running
        task.cancel()
    head = await lab.head(batch_id)
    assert (head["status"], head["completed"], head["failed"]) == ("completed", 3, 1)
    assert await codes(lab, head) == {"its_own": 1}
    assert len(script.calls) == batch._STRIKES
    assert await lab.logs() == []


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "bad"),
        (401, "key"),
        (402, "pay"),
        (403, "policy"),
        (404, "none"),
        (422, "odd"),
        (429, "insufficient_quota"),
    ],
)
async def test_a_refusal_that_is_the_lines_own_fails_it_at_once(
    lab: Lab, upstream: ScriptedUpstream, status: int, code: str
) -> None:
    script = refusing(upstream, "own", status, code)
    batch_id = await lab.start(few(2, "scripted/own"))
    assert await lab.run(batch_id)
    head = await lab.head(batch_id)
    assert (head["failed"], await codes(lab, head), len(script.calls)) == (2, {code: 2}, 2)
    errors = await lab.results(head["error_file_id"])
    assert {one["response"]["status_code"] for one in errors.values()} == {502 if status in (401, 403) else status}


async def test_lines_that_still_wait_when_the_window_ends_expire(lab: Lab, upstream: ScriptedUpstream) -> None:
    refusing(upstream, "never", 503)
    batch_id = await lab.start([*few(3), *few(300, "scripted/never", "never")])
    async with lab.running(batch_id) as running:
        await lab.until(batch_id, lambda head: head["completed"] == 3)
        await lab.expire(batch_id)
        assert await running
    head = await lab.head(batch_id)
    assert (head["status"], head["completed"], head["failed"]) == ("expired", 3, 300)
    assert await codes(lab, head) == {"batch_expired": 300}
    assert await lab.logs() == []


async def test_logs_of_tries_are_removed_as_they_are_replaced(
    lab: Lab, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.batches.results._SHORTEST_S", 0.05)
    monkeypatch.setattr(circuit, "_FAILURES", 10_000)
    script = refusing(upstream, "often", 503)
    batch_id = await lab.start(few(3, "scripted/often"))
    most = 0
    async with lab.running(batch_id) as running:
        while len(script.calls) < 150:
            most = max(most, len(await lab.logs()))
            await asyncio.sleep(0.01)
        good(upstream, "often")
        assert await running
    assert most < 40
    assert (await lab.head(batch_id))["completed"] == 3
    assert await lab.logs() == []
    (_, tries), *_ = Counter(json.dumps(call["messages"]) for call in script.calls).most_common()
    assert tries >= 40


async def test_whoever_takes_over_goes_on_with_the_newest_try(lab: Lab, upstream: ScriptedUpstream) -> None:
    """Killed between putting a line back and writing that down, and after it: none is asked twice as the same try."""
    script = refusing(upstream, "again", 503)
    batch_id = await lab.start(few(4, "scripted/again"))
    for calls in (6, 12, 18):
        async with lab.running(batch_id):
            await until(lambda calls=calls: len(script.calls) >= calls)
    good(upstream, "again")
    assert await lab.run(batch_id)
    head = await lab.head(batch_id)
    assert (head["completed"], head["failed"]) == (4, 0)
    assert await lab.logs() == []


# ---- holes


async def test_a_line_with_a_hole_is_asked_again(lab: Lab, upstream: ScriptedUpstream) -> None:
    upstream.script("holed", [*words(4), *ending()])
    batch_id = await lab.start(few(1, "scripted/holed"))
    first = line_id(batch_id, 1, 0)
    lab.answering.clear()
    async with lab.running(batch_id):
        await lab.until_open(1)
    lab.answering.set()
    await lab.until_open(0)
    await lab.redis.xdel(lab.redis.key.log(first), "1-2")
    assert await lab.run(batch_id)
    head = await lab.head(batch_id)
    (found,) = (await lab.results(head["output_file_id"])).values()
    assert found["response"]["body"]["choices"][0]["message"]["content"] == whole(4)
    assert found["response"]["request_id"] == line_id(batch_id, 1, 1)
    assert await lab.logs() == []


async def until_begun(lab: Lab, generation_id: str) -> None:
    async with asyncio.timeout(60):
        while not await lab.redis.exists(lab.redis.key.log(generation_id)):  # noqa: ASYNC110 -- another task begins it
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("code", ["stream_lost", "worker_lost", "internal_error"])
async def test_what_is_lost_again_and_again_fails_with_its_cause(
    lab: Lab, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """Whoever ends a generation as lost says so; the batch asks three times."""
    lab.answering.clear()
    error = error_with({"message": "m", "type": "server_error", "param": None, "code": code, "status": 500})
    batch_id = await lab.start(few(1))
    async with lab.running(batch_id) as running:
        for tries in range(3):
            generation_id = line_id(batch_id, 1, tries)
            await until_begun(lab, generation_id)
            await lab.core.outcomes.conclude(generation_id, 0, Status.FAILED, error=error)
        assert await running
    head = await lab.head(batch_id)
    assert (head["status"], head["failed"], await codes(lab, head)) == ("completed", 1, {code: 1})


@pytest.mark.parametrize("code", ["no_worker", "storage_full", "unsupported_version"])
async def test_what_is_held_up_on_our_side_is_asked_as_long_as_the_window_lasts(lab: Lab, code: str) -> None:
    lab.answering.clear()
    error = error_with({"message": "m", "type": "server_error", "param": None, "code": code, "status": 503})
    batch_id = await lab.start(few(1))
    batcher = lab.batcher()
    async with lab.running(batch_id, batcher) as running:
        for tries in range(30):
            generation_id = line_id(batch_id, 1, tries)
            await until_begun(lab, generation_id)
            await lab.core.outcomes.conclude(generation_id, 0, Status.FAILED, error=error)
        assert batcher.circuits.of("fake/echo").opened_at is None, "it is not the provider's fault"
        lab.answering.set()
        assert await running
    assert (await lab.head(batch_id))["completed"] == 1


async def test_what_is_held_against_a_line_outlives_its_worker(lab: Lab) -> None:
    lab.answering.clear()
    error = error_with({"message": "m", "type": "server_error", "param": None, "code": "worker_lost", "status": 502})
    batch_id = await lab.start(few(1))
    for tries in range(3):
        async with lab.running(batch_id):
            generation_id = line_id(batch_id, 1, tries)
            await until_begun(lab, generation_id)
            await lab.core.outcomes.conclude(generation_id, 0, Status.FAILED, error=error)
            if tries < 2:
                await lab.until(batch_id, lambda head, n=tries: _spot(head)[3:] == [n + 1, 0, n + 1])
            else:
                head = await lab.ended(batch_id)
    assert await codes(lab, head) == {"worker_lost": 1}


def _spot(head: BatchHead) -> list[int]:
    spots = reached(head)["open"]
    return spots[0] if spots else []


async def test_a_log_that_is_gone_is_begun_again(lab: Lab, upstream: ScriptedUpstream) -> None:
    pause = Pause()
    script = upstream.script("deleted", [*words(1), pause, *ending()])
    batch_id = await lab.start(few(1, "scripted/deleted"))
    async with lab.running(batch_id) as running:
        await until(lambda: script.live == 1)
        await lab.redis.delete(lab.redis.key.log(line_id(batch_id, 1, 0)))
        await lab.stop_ended()
        await until(lambda: len(script.calls) == 2)
        pause.go()
        assert await running
    assert (await lab.head(batch_id))["completed"] == 1


async def test_a_batch_of_very_many_models_looks_after_their_providers(lab: Lab, upstream: ScriptedUpstream) -> None:
    """A lane for each would take the worker's time."""
    for number in range(150):
        good(upstream, f"many-{number}")
    batch_id = await lab.start([line(f"{number}", f"scripted/many-{number}") for number in range(150)])
    batcher = lab.batcher()
    assert await lab.run(batch_id, batcher)
    assert (await lab.head(batch_id))["completed"] == 150
    assert batcher.circuits.known == {"scripted"}
