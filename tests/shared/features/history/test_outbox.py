"""What waits for the history, and what the sink makes of it, on fakeredis and on a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.config.settings import Settings
from shared.features.effect import Ended
from shared.features.history import outbox as outbox_module
from shared.features.history.history import History
from shared.features.history.outbox import Outbox
from shared.features.history.record import UNKEPT, record, summary
from shared.features.history.sink import Sink
from shared.features.listing.filters import Filters
from shared.features.listing.row import row
from shared.lib import json
from shared.log.entry import Position, Status
from shared.log.records import Summary
from shared.log.streamlog import StreamLog
from shared.store.redis import ArqRedis

ID = "chatcmpl-" + "1" * 32
HEADER: Any = {
    "id": ID,
    "owner": "alice",
    "key_id": "key_1",
    "model": "fast",
    "created_at_ms": 1000,
    "n": 1,
    "include_usage": False,
    "metadata": {"task": "title"},
    "session_id": "s-1",
    "batch": {"id": "batch_1", "line": 3},
    "retried_from": "chatcmpl-0",
    "background": True,
    "store": True,
}
ATTEMPTS: Any = (
    {"worker": "w", "at_ms": 1010, "token": "x", "reason": "queued", "number": 1},
    {"worker": "w", "at_ms": 1500, "token": "y", "reason": "worker_lost", "number": 2, "spoke_at_ms": 1600},
)
OUTCOME: Any = {
    "status": "failed",
    "ended_at_ms": 2000,
    "by": "w",
    "error": {"message": "canary", "type": "x", "param": "canary", "code": "bad", "status": 502},
    "finish_reasons": [None],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    "usage_source": "estimate",
    "characters": {"content": 5, "reasoning": 0},
    "served": {"model": "openai/gpt", "refused": [{"model": "a/b", "status": 429, "code": None}], "retries": 1},
    "cost": {"picodollars": 7, "source": "settings", "price": {"input": "1"}},
    "spoke_at_ms": 1600,
}
ENDED = Summary(HEADER, ATTEMPTS, Position(2, 4), OUTCOME)


def test_a_row_becomes_what_the_log_said_but_for_words() -> None:
    kept = record(ENDED)
    assert "canary" not in str(kept)
    again = summary(json.loads(json.dumps(kept)))
    assert row(again) == row(ENDED)
    assert again.position == ENDED.position
    assert [one["at_ms"] for one in again.attempts] == [1010, 1500]
    assert again.attempts[-1]["spoke_at_ms"] == 1600
    assert again.outcome is not None
    expected = {**OUTCOME, "error": {**OUTCOME["error"], "message": UNKEPT, "param": None}}
    expected["cost"] = {"picodollars": 7, "source": "settings"}
    assert again.outcome == expected
    for name in ("retried_from", "background", "store", "batch", "metadata", "key_id"):
        assert again.header[name] == HEADER[name]
    assert len(json.dumps(kept)) < 900


@pytest.mark.parametrize(
    "fields",
    [
        {"usage_source": "provider"},
        {"usage_source": None},
        {"usage": None, "usage_source": None},
        {"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 9}},
        {"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "prompt_tokens_details": {"x": 1}}},
        {"usage": {"prompt_tokens": None, "completion_tokens": 2, "total_tokens": 2}},
        {"usage": {"prompt_tokens": 1.5, "completion_tokens": 2, "total_tokens": 3.5}},
        {"characters": None},
        {"spoke_at_ms": 1400},
    ],
    ids=str,
)
def test_what_is_written_short_is_read_as_it_was(fields: dict[str, Any]) -> None:
    outcome: Any = {**OUTCOME, **fields}
    again = summary(json.loads(json.dumps(record(Summary(HEADER, ATTEMPTS, Position(2, 4), outcome)))))
    assert again.outcome is not None
    assert {name: again.outcome[name] for name in ("usage", *fields)} == {  # type: ignore[literal-required]
        name: outcome[name] for name in ("usage", *fields)
    }
    assert [{**one, "worker": "", "token": ""} for one in ATTEMPTS] == list(again.attempts)


def test_a_usual_row_is_small() -> None:
    header = {**HEADER, "batch": None, "retried_from": None, "background": False, "store": False, "session_id": None}
    outcome: Any = {
        **OUTCOME,
        "error": None,
        "finish_reasons": ["stop"],
        "usage_source": "provider",
        "served": {"model": "fast"},
    }
    kept = record(Summary(header, ATTEMPTS[:1], Position(1, 240), outcome))  # type: ignore[arg-type]
    assert sum(len(str(value)) for value in kept.values() if value is not None) < 300


def test_one_without_anything_is_kept_too_and_metadata_that_are_large_are_not() -> None:
    bare: Any = {"id": ID, "owner": "a", "model": "m", "created_at_ms": 5, "n": 1, "include_usage": True}
    outcome: Any = {
        "status": "cancelled",
        "ended_at_ms": 9,
        "by": "api",
        "error": None,
        "finish_reasons": [],
        "usage": None,
    }
    one = Summary(bare, (), Position(0, 2), outcome)
    kept = record(one)
    assert row(summary(kept)) == row(one)
    bare["metadata"] = {"a": "x" * 512, "b": "y" * 512}
    large = Summary(bare, (), Position(0, 2), outcome)
    assert record(large)["metadata"] == {}
    assert len(json.dumps(kept)) < 500


class Logs:
    """Describes what it was given."""

    def __init__(self) -> None:
        self.summaries: dict[str, Summary] = {}

    async def describe(self, ids: list[str]) -> list[Summary | None]:
        return [self.summaries.get(one) for one in ids]


def numbered(number: int) -> Summary:
    header: Any = {**HEADER, "id": f"chatcmpl-{number:032x}"}
    return Summary(header, ATTEMPTS, Position(2, 4), OUTCOME)


@pytest.fixture
def logs() -> Logs:
    return Logs()


@pytest.fixture
def outbox(redis: ArqRedis, logs: Logs) -> Outbox:
    return Outbox(redis, logs, most=1000)  # type: ignore[arg-type]


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    opened = History(f"sqlite:///{tmp_path}/history.sqlite3")
    yield opened
    await opened.close()


async def settle(redis: ArqRedis, outbox: Outbox, logs: Logs, one: Summary) -> None:
    logs.summaries[one.header["id"]] = one
    assert one.outcome is not None

    async def nothing(*_: object) -> Any:
        raise AssertionError("no text is read")

    add = await outbox.effect(Ended(one.header, one.outcome, 2, 60, nothing))
    assert add is not None
    async with redis.pipeline(transaction=True) as pipe:
        add(pipe)
        await pipe.execute()


async def test_what_waits_is_taken_and_then_it_is_not_there_any_more(
    redis: ArqRedis, outbox: Outbox, logs: Logs, history: History
) -> None:
    for number in range(3):
        await settle(redis, outbox, logs, numbered(number))
    assert await outbox.count() == (3, 0, 3, 0)
    sink = Sink(outbox, history, name="one", kept_s=10**9)
    assert await outbox.lead("one")
    assert await sink.take() == 3
    assert await sink.take() == 0
    assert await outbox.count() == (3, 3, 0, 0)
    assert {one["id"] for one in await history.page(None, Filters())} == {numbered(n).header["id"] for n in range(3)}
    await outbox.forget(numbered(1).header["id"])
    assert await sink.take() == 1
    assert await history.size() == 2
    assert await outbox.count() == (4, 4, 0, 0)


async def test_one_takes_at_a_time_and_who_lost_its_lease_removes_nothing(
    redis: ArqRedis, outbox: Outbox, logs: Logs, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "LEASE_S", 600)  # a database may take long to be opened
    await settle(redis, outbox, logs, numbered(1))
    assert await outbox.lead("one")
    assert await outbox.lead("one")
    assert not await outbox.lead("other")
    waiting = await outbox.waiting(10)
    await outbox.leave("other")
    assert not await outbox.lead("other")
    await outbox.leave("one")
    assert await outbox.lead("other")
    assert not await outbox.taken("one", waiting)
    assert await Sink(outbox, history, name="one", kept_s=1).take() == 0, "it is written, and stays for the other"
    assert await history.size() == 1
    assert await outbox.count() == (1, 0, 1, 0)
    assert await Sink(outbox, history, name="other", kept_s=1).take() == 1
    assert await history.size() == 1


async def test_what_has_no_room_is_counted(redis: ArqRedis, logs: Logs) -> None:
    small = Outbox(redis, logs, most=10)  # type: ignore[arg-type]
    for number in range(500):
        await settle(redis, small, logs, numbered(number))
    found = await small.count()
    assert found.added == 500
    assert found.waiting + found.lost == 500
    assert found.lost > 0
    assert (await small.figures()) == found


async def test_a_database_that_is_away_makes_rows_late_not_lost(
    redis: ArqRedis, outbox: Outbox, logs: Logs, tmp_path: Path
) -> None:
    await settle(redis, outbox, logs, numbered(1))
    path = tmp_path / "there" / "history.sqlite3"
    path.parent.write_text("")
    history = History(f"sqlite:///{path}")
    sink = Sink(outbox, history, name="one", kept_s=10**9)
    assert await outbox.lead("one")
    assert await sink.take() == 0
    assert (await outbox.count()).waiting == 1
    path.parent.unlink()
    history._tried_at -= 10
    assert await sink.take() == 1
    assert await history.size() == 1
    await history.close()


async def test_it_runs_until_it_is_ended_and_lets_another_one_take_over(
    redis: ArqRedis, outbox: Outbox, logs: Logs, history: History
) -> None:
    await settle(redis, outbox, logs, numbered(1))
    running = asyncio.create_task(Sink(outbox, history, name="one", kept_s=3600).run())
    while True:
        if (await outbox.count()).taken and not await history.size():  # it was created long ago
            break
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await outbox.lead("other")


async def test_an_end_whose_log_is_gone_leaves_nothing(outbox: Outbox, log: StreamLog, settings: Settings) -> None:
    assert await outbox.effect(Ended(HEADER, OUTCOME, 2, 60, lambda *_: asyncio.sleep(0))) is None  # type: ignore[arg-type]
    assert Status(OUTCOME["status"]) is Status.FAILED
