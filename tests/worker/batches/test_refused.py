"""A line that is refused before it begins fails alone: it does not break its batch, and no outage becomes its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError

from shared.cli.embedded import EmbeddedValkey
from shared.errors import (
    BadRequest,
    BudgetHeld,
    Forbidden,
    Internal,
    NotFound,
    RateLimited,
    RequestLost,
    SessionBusy,
    StorageQuotaExceeded,
    TooLarge,
    Unavailable,
)
from shared.generations.broker import Broker
from tests.harness.upstream import ScriptedUpstream
from tests.support.batch import line
from tests.support.batch_lab import Lab, few, open_lab
from tests.worker.batches.test_retries import codes, good
from worker.batches import batcher, run
from worker.batches import queue as batch_queue
from worker.batches.endpoints import Answers
from worker.batches.lines import line_id


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_PAUSE_S", "_LONGEST_PAUSE_S"):
        monkeypatch.setattr(batcher, name, 0.02)
    monkeypatch.setattr(batcher, "_HAND_OVER_S", 60.0)
    for module in (run, batcher):
        monkeypatch.setattr(module, "TICK_S", 0.05)
    monkeypatch.setattr(run, "_BLOCK_MS", 20)
    monkeypatch.setattr(run, "_REFUSED_S", 0.01)
    monkeypatch.setattr(batch_queue, "_LONGEST_PAUSE_S", 0.05)


@pytest.fixture
async def lab(valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[Lab]:
    async with open_lab(valkey, upstream, tmp_path) as running:
        yield running


@contextmanager
def raising(what: Any, name: str, error: Exception, times: int, **only: str) -> Iterator[list[str]]:
    """So often, then it does what it does. Of `only` one generation."""
    does, raised = getattr(what, name), list[str]()

    async def broken(self: Any, *given: Any, **named: Any) -> Any:
        generation_id = next(one for one in given if isinstance(one, str) and one.startswith("chatcmpl-"))
        if len(raised) < times and generation_id in only.values():
            raised.append(generation_id)
            raise error
        return await does(self, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(what, name, broken)
        yield raised


async def test_a_line_whose_price_nobody_knows_fails_alone(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    good(upstream, "dear")
    prices = {"fake/echo": {"input": 0, "output": 0}}
    terms: dict[str, Any] = {"budgets": "ann:day_usd=1", "budget_unknown": "refuse", "prices": prices}
    async with open_lab(valkey, upstream, tmp_path, **terms) as lab:
        batch_id = await lab.start([*few(2), line("dear", "scripted/dear"), *few(2, name="more")])
        assert await lab.run(batch_id)
        head = await lab.head(batch_id)
        assert (head["status"], head["completed"], head["failed"]) == ("completed", 4, 1)
        assert await codes(lab, head) == {"price_unknown": 1}
        assert list(await lab.results(head["error_file_id"])) == ["dear"]
        assert await lab.logs() == []


@pytest.mark.parametrize(
    "error",
    [
        BadRequest("No."),
        Forbidden("No."),
        NotFound("No."),
        TooLarge("No."),
        StorageQuotaExceeded("No."),
        SessionBusy("No."),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_is_refused_for_good_is_that_lines_error(lab: Lab, error: Any) -> None:
    batch_id = await lab.start(few(3))
    with raising(Broker, "submit_line", error, 100, second=line_id(batch_id, 2, 0)) as raised:
        assert await lab.run(batch_id)
    head = await lab.head(batch_id)
    assert (head["status"], head["completed"], head["failed"], len(raised)) == ("completed", 2, 1, 1)
    (found,) = (await lab.results(head["error_file_id"])).values()
    assert found["error"] == {"code": error.code, "message": "No."}


@pytest.mark.parametrize(
    "error",
    [Unavailable("Away."), ConnectionError("away"), OSError("away"), RateLimited("Later."), BudgetHeld("Later.")],
    ids=lambda error: type(error).__name__,
)
async def test_what_may_pass_is_no_lines_error(lab: Lab, error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error, "retry_after_s", None, raising=False)
    batch_id = await lab.start(few(3))
    with raising(Broker, "submit_line", error, 20, second=line_id(batch_id, 2, 0)) as raised:
        assert await lab.run(batch_id)
    head = await lab.head(batch_id)
    assert (head["status"], head["completed"], head["failed"], len(raised)) == ("completed", 3, 0, 20)


@pytest.mark.parametrize("times", [2, 100])
@pytest.mark.parametrize("error", [KeyError("bug"), Internal("bug")], ids=lambda error: type(error).__name__)
async def test_a_line_that_shows_a_bug_is_begun_three_times(lab: Lab, error: Exception, times: int) -> None:
    batch_id = await lab.start(few(3))
    with raising(Broker, "submit_line", error, times, second=line_id(batch_id, 2, 0)) as raised:
        assert await lab.run(batch_id)
    head, fails = await lab.head(batch_id), int(times > 2)
    assert (head["status"], head["completed"], head["failed"]) == ("completed", 3 - fails, fails)
    assert len(raised) == min(times, 3)
    assert await codes(lab, head) == ({"internal_error": 1} if fails else {})


@pytest.mark.parametrize(
    "error", [Unavailable("Away."), ConnectionError("away")], ids=lambda error: type(error).__name__
)
async def test_an_answer_that_cannot_be_read_now_is_read_later(lab: Lab, error: Exception) -> None:
    batch_id = await lab.start(few(3))
    with raising(Answers, "body", error, 10, second=line_id(batch_id, 2, 0)) as raised:
        assert await lab.run(batch_id)
    head = await lab.head(batch_id)
    assert (head["status"], head["completed"], head["failed"], len(raised)) == ("completed", 3, 0, 10)


@pytest.mark.parametrize("error", [RequestLost(), KeyError("bug")], ids=lambda error: type(error).__name__)
async def test_a_cancel_comes_past_an_answer_that_cannot_be_read(lab: Lab, error: Exception) -> None:
    lab.answering.clear()
    batch_id = await lab.start(few(3))
    async with lab.running(batch_id):
        await lab.until_open(3)
    lab.answering.set()
    await lab.until_open(0)
    await lab.cancel(batch_id)
    with raising(Answers, "body", error, 100, second=line_id(batch_id, 2, 0)):
        assert await lab.run(batch_id)
    head = await lab.head(batch_id)
    assert (head["status"], head["completed"], head["failed"]) == ("cancelled", 2, 1)
    assert await codes(lab, head) == {"batch_cancelled": 1}
