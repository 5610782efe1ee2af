"""The ledger on both kinds of server: by hour and by day, within its bounds, and nothing lost between the two."""

from __future__ import annotations

import asyncio
import csv
import io
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from shared.errors import BadRequest
from shared.features.effect import Commands, Ended
from shared.features.spend import ledger as module
from shared.features.spend.ledger import Ledger, Row, bounded, entry, folded
from shared.features.spend.report import as_csv, check_groups, report, total
from shared.lib import json
from shared.store.redis import ArqRedis
from shared.store.transaction import commit_if
from tests.harness.broker import client_of
from tests.harness.records import header_with, outcome_with
from tests.support.names import keys

NOW = datetime.now(UTC).replace(minute=30, second=0, microsecond=0)
TODAY = NOW.date()


async def added(ledger: Ledger, at: datetime = NOW, **fields: Any) -> Commands:
    """What a generation that ended at a time adds."""
    cost = fields.pop("picodollars", 250_000_000_000)
    ms = int(at.timestamp() * 1000)
    header = {"id": "chatcmpl-1", "owner": "ann", "model": "fake/a", "created_at_ms": ms - 2000, **fields}
    outcome = {
        "status": "completed",
        "ended_at_ms": ms,
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
        "usage_source": "provider",
        "cost": {"picodollars": cost, "source": "unknown" if cost is None else "provider"},
        "spoke_at_ms": ms - 1000,
    }

    async def read(*_: Any) -> Any:
        raise AssertionError("the text is not looked at")

    commands = await ledger.effect(Ended(header_with(header), outcome_with(outcome), 1, 60, read))
    assert commands
    return commands


async def end(ledger: Ledger, at: datetime = NOW, **fields: Any) -> None:
    """The same, settled by this ledger's process."""
    commands = await added(ledger, at, **fields)
    async with ledger._redis.pipeline(transaction=True) as pipe:
        commands(pipe)
        await pipe.execute()


async def rows(ledger: Ledger, first: date = TODAY, last: date = TODAY, **options: Any) -> list[Row]:
    return await ledger.rows("ann", first, last, **options)


async def test_there_may_be_more_rows(redis: ArqRedis) -> None:
    there: list[module.Dims] = [("model", "", f"fake/{n}") for n in range(150)]
    assert bounded(there, [("model", "k", "fake/5")], 151) == [("model", "k", "fake/5")]
    assert bounded(there, [("model", "k", "fake/5")], 150) == [("model", "other", "other")]
    many = [(("model", "", f"fake/{n}"), Counter(n=1)) for n in range(5)]
    assert len(folded(many, 3)) == 4


async def test_by_the_hour_and_by_the_day(redis: ArqRedis) -> None:
    ledger, start = Ledger(redis), NOW.replace(hour=5)
    for hours in (0, 0, 1):
        await end(ledger, start + timedelta(hours=hours))
    by_hour = report(await rows(ledger, width="hour"), ["model"], "hour")
    assert [(row["hour"][-2:], row["requests"], row["cost_usd"]) for row in by_hour] == [
        ("05", 2, 0.5),
        ("06", 1, 0.25),
    ]
    (by_day,) = report(await rows(ledger), ["model"], "day")
    assert (by_day["date"], by_day["requests"], by_day["total_tokens"]) == (TODAY.isoformat(), 3, 36)
    assert by_day["first_token_ms"]["p50"] == pytest.approx(1000, rel=0.1)
    assert by_day["duration_ms"]["p99"] == pytest.approx(2000, rel=0.1)


async def test_by_key_model_provider_and_metadata(redis: ArqRedis) -> None:
    ledger = Ledger(redis)
    await end(ledger, key_id="k1", metadata={"team": "red", "user": "=1+1"})
    await end(ledger, key_id="k1", model="lab/b", metadata={"team": "blue"}, picodollars=None)
    await end(ledger, key_id="k2", model="lab/c")
    found = await rows(ledger)

    def told(*groups: str) -> list[tuple[Any, ...]]:
        return [
            (*(row[name] for name in groups), row["requests"], row["cost_usd"]) for row in report(found, groups, "day")
        ]

    assert told("key") == [("k1", 2, 0.25), ("k2", 1, 0.25)]
    assert told("provider") == [("fake", 1, 0.25), ("lab", 2, 0.25)]
    assert told("key", "model") == [("k1", "fake/a", 1, 0.25), ("k1", "lab/b", 1, None), ("k2", "lab/c", 1, 0.25)]
    assert told("metadata.team") == [(None, 1, 0.25), ("blue", 1, None), ("red", 1, 0.25)]
    assert told("tenant", "metadata.user") == [("ann", None, 2, 0.25), ("ann", "=1+1", 1, 0.25)]
    assert told("metadata.nothing") == [(None, 3, 0.5)]
    assert told() == [(3, 0.5)]
    summed = total(found)
    assert (summed["requests"], summed["unknown_costs"], summed["cost_usd"]) == (3, 1, 0.5)
    assert total(found, "lab/b")["cost_usd"] is None
    by_user = report(found, ["metadata.user"], "day")
    table = list(csv.DictReader(io.StringIO(as_csv(by_user, ["metadata.user"], "day"))))
    assert [(row["metadata.user"], row["cost_usd"]) for row in table] == [("", "0.25"), ("'=1+1", "0.25")]
    (unknown,) = csv.DictReader(io.StringIO(as_csv(report(found, ["model"], "day", "lab/b"), ["model"], "day")))
    assert (unknown["cost_usd"], unknown["unknown_costs"], unknown["duration_ms_p50"]) == ("unknown", "1", "1878")


@pytest.mark.parametrize("wrong", ["nothing", "metadata.", "metadata.a,metadata.b", "model,metadata.a"])
def test_groups_that_are_none(wrong: str) -> None:
    with pytest.raises(BadRequest):
        check_groups([wrong])


def test_metadata_cannot_be_told_by_model() -> None:
    with pytest.raises(BadRequest):
        report([], ["metadata.team"], "day", "fake/a")


# ---- hours become days


async def test_a_row_that_is_there_is_only_added_to(request: pytest.FixtureRequest) -> None:
    """Each key has its end since the row came; an hour that was folded meanwhile is made again with all of it."""
    async with client_of("valkey", request) as redis:
        ledger, red = Ledger(redis), {"metadata": {"team": "red"}}

        async def left_out(**fields: Any) -> int:
            add = await added(ledger, **fields)
            async with redis.pipeline(transaction=True) as pipe:
                add(pipe)
                replies = await commit_if(pipe, [(("EXISTS", keys.probe), "0")])
            assert replies is not None
            assert all([await redis.ttl(name) > 86_400 async for name in redis.scan_iter()])
            return sum(reply is None or reply is False for reply in replies)

        assert [await left_out() for _ in range(2)] == [0, 6]
        assert [await left_out(**red) for _ in range(2)] == [6, 7]
        assert await left_out(model="fake/b", **red) == 1
        await ledger.fold_before(int((NOW + timedelta(hours=2)).timestamp() * 1000))
        assert await left_out(**red) == 0
        assert [row.counts["n"] for row in await rows(ledger) if row.dims == ("model", "", "fake/a")] == [5]


async def test_hours_are_folded_into_their_day_and_nothing_is_lost(redis: ArqRedis) -> None:
    ledger, old = Ledger(redis), NOW - timedelta(days=9)
    for hours in (0, 0, 1):
        await end(ledger, old.replace(hour=3) + timedelta(hours=hours), metadata={"team": "red"})
    await end(ledger)
    before = [row._asdict() for row in await rows(ledger, old.date())]
    await ledger.fold()
    assert [row._asdict() for row in await rows(ledger, old.date())] == before
    assert await rows(ledger, old.date(), old.date(), width="hour") == []
    assert len(await rows(ledger, width="hour")) == 1, "what is young stays"
    left = [key async for key in redis.scan_iter(match="*usage-row*")]
    assert len(left) == 1
    # one that was settled late, a process that remembers the hour's index among them
    for late in (ledger, Ledger(redis)):
        await end(late, old.replace(hour=3))
    assert sum(row.counts["n"] for row in await rows(ledger, old.date(), old.date()) if row.dims[0] == "model") == 5
    await redis.delete(keys.usage_folding)
    await ledger.fold()
    folded_day = await rows(ledger, old.date(), old.date())
    assert {row.dims: row.counts["n"] for row in folded_day} == {
        ("model", "", "fake/a"): 5,
        ("metadata", "team", "red"): 3,
    }
    assert (await redis.zcard(keys.usage_hours("ann"))) == 1


async def test_it_is_folded_by_one_process_at_a_time(redis: ArqRedis) -> None:
    ledger = Ledger(redis)
    await end(ledger, NOW - timedelta(days=9))
    await redis.set(keys.usage_folding, b"1", ex=60)
    await ledger.fold()
    assert await redis.zcard(keys.usage_hours("ann")) == 1


async def test_many_fold_and_settle_at_once(redis: ArqRedis) -> None:
    old, ledgers = NOW - timedelta(days=9), [Ledger(redis) for _ in range(4)]
    for _ in range(5):
        await asyncio.gather(
            *(end(one, old, model=f"fake/{n}") for n, one in enumerate(ledgers)),
            *(one.fold_before(int(NOW.timestamp() * 1000)) for one in ledgers),
        )
    await ledgers[0].fold_before(int(NOW.timestamp() * 1000))
    found = await rows(ledgers[0], old.date(), old.date())
    assert {row.dims[2]: row.counts["n"] for row in found} == {f"fake/{n}": 5 for n in range(4)}


async def test_the_ledger_of_older_versions_is_read_with_the_new_one(redis: ArqRedis) -> None:
    ledger = Ledger(redis)
    await redis.hset(  # type: ignore[misc]
        keys.usage("ann", TODAY.isoformat()), mapping={"fake/a\x1frequests": 2, "fake/a\x1fprompt_tokens": 9}
    )
    await redis.expire(keys.usage("ann", TODAY.isoformat()), 60)
    await end(ledger)
    (row,) = await ledger.read("ann", TODAY, TODAY)
    assert (row["requests"], row["prompt_tokens"], row["cost_usd"], row["unknown_costs"]) == (3, 16, 0.25, 2)


# ---- bounds


def test_too_many_rows_are_others() -> None:
    there: list[module.Dims] = [("model", "", f"fake/{n}") for n in range(module.MOST_ROWS)]
    assert bounded(there, [("model", "", "fake/5")]) == [("model", "", "fake/5")]
    assert bounded(there, [("model", "k", "fake/5")]) == [("model", "other", "other")]
    values: list[module.Dims] = [("metadata", "a", str(n)) for n in range(module.MOST_VALUES)]
    assert bounded(values, [("metadata", "a", "3"), ("metadata", "a", "x"), ("metadata", "b", "x")]) == [
        ("metadata", "a", "3"),
        ("metadata", "a", "other"),
        ("metadata", "b", "x"),
    ]
    names: list[module.Dims] = [("metadata", str(n), "v") for n in range(module.MOST_NAMES)]
    assert bounded(names, [("metadata", "new", "v"), ("metadata", "0", "w")]) == [("metadata", "0", "w")]


async def test_a_tenant_cannot_fill_the_memory(redis: ArqRedis) -> None:
    """As many models, names and values as requests."""
    ledger = Ledger(redis)
    for n in range(300):
        await end(ledger, model=f"fake/{n}", metadata={f"k{n % 20}": "v" * 500 + str(n), "user": str(n)})
    found = await rows(ledger)
    by_kind = Counter(row.dims[0] for row in found)
    assert by_kind["model"] == module.MOST_ROWS + 1
    assert by_kind["metadata"] <= module.MOST_NAMES * (module.MOST_VALUES + 1)
    assert total(found)["requests"] == 300
    assert sum(row["requests"] for row in report(found, ["metadata.user"], "day")) == 300
    kept = folded([(row.dims, row.counts) for row in found])
    assert len(kept) <= len(found)


def test_the_largest_rows_of_a_day_are_kept_apart() -> None:
    many = [(("model", "", f"fake/{n}"), Counter(n=n + 1)) for n in range(module.MOST_ROWS + 50)]
    kept = [json.loads(text) for text in folded(many).values()]
    counts = {tuple(dims): found["n"] for dims, found in kept}
    assert len(kept) == module.MOST_ROWS + 1
    assert counts[("model", "other", "other")] == sum(range(1, 51))
    assert sum(counts.values()) == sum(range(1, module.MOST_ROWS + 51))


def test_an_entry() -> None:
    header = header_with({"owner": "ann", "model": "smart", "key_id": "k1", "metadata": {"b": "x" * 99, "a": "1"}})
    outcome = outcome_with({"ended_at_ms": 1_795_340_527_304, "served": {"model": "openai/gpt-4o"}})
    assert entry(header, outcome) == (
        "ann",
        "2026-11-22T09",
        [("model", "k1", "openai/gpt-4o"), ("metadata", "a", "1"), ("metadata", "b", "x" * 64)],
    )
