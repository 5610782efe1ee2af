"""The log of changes: with the change or not at all, paged from the newest on, and never longer than it may be."""

from __future__ import annotations

import pytest

from shared.errors import BadRequest, NotFound
from shared.features.access import audit as audit_module
from shared.features.access.audit import Actor, Audit
from shared.features.access.keys import KeyChange, KeyRequest, KeyStore
from shared.store.redis import ArqRedis

BOSS = Actor("key_boss", "ops")


async def test_each_change_leaves_an_entry_and_a_refused_one_none(redis: ArqRedis) -> None:
    store, audit = KeyStore(redis), Audit(redis)
    record, secret = await store.create(KeyRequest(tenant="t", models=["openai/*"]), BOSS)
    await store.change(record["id"], KeyChange.check({"limits": {"running": 3}}), BOSS)
    _, second = await store.rotate(record["id"], 60, BOSS)
    await store.revoke(record["id"], Actor(None, "local"))
    with pytest.raises(BadRequest):
        await store.change(record["id"], KeyChange(name="n"), BOSS)
    found = await audit.page(10)
    entries = [entry for _, entry in found]
    assert [entry["action"] for entry in entries] == ["key.revoked", "key.rotated", "key.changed", "key.created"]
    assert {(entry["subject"], entry["tenant"]) for entry in entries} == {(record["id"], "t")}
    assert entries[2]["details"] == {"limits": {"running": 3}}
    assert entries[3]["details"] == {"role": "tenant", "models": ["openai/*"]}
    assert [entry["key_id"] for entry in entries] == [None, "key_boss", "key_boss", "key_boss"]
    assert secret not in str(found)
    assert second not in str(found)


async def test_pages_lie_side_by_side_whatever_is_added_meanwhile(
    redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "_PAGE", 3)
    audit = Audit(redis)

    async def add(number: int) -> None:
        async with redis.pipeline(transaction=True) as pipe:
            audit.note(pipe, BOSS, "key.changed", f"key_{number}", "even" if number % 2 == 0 else "odd")
            await pipe.execute()

    for number in range(10):
        await add(number)
    first = await audit.page(4)
    await add(10)
    second = await audit.page(4, first[-1][0])
    assert [entry["subject"] for _, entry in first + second] == [f"key_{number}" for number in range(9, 1, -1)]
    even = await audit.page(4, first[-1][0], lambda entry: entry["tenant"] == "even")
    assert [entry["subject"] for _, entry in even] == ["key_4", "key_2", "key_0"]


@pytest.mark.parametrize("after", ["soon", "", "0-0", f"{2**64}-0", f"1-{2**64}", "1", "1-1-1", "-1-1", "١-١", "1-1\n"])
async def test_what_is_no_id_of_an_entry_is_no_outage(redis: ArqRedis, after: str) -> None:
    """Redis refuses some of what looks like one, and a refusal of Redis was told as `storage_unavailable`."""
    audit = Audit(redis)
    with pytest.raises(NotFound):
        await audit.page(4, after)
    assert await audit.page(4, f"{2**64 - 1}-{2**64 - 1}") == []


async def test_it_does_not_grow_without_end(redis: ArqRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "MOST", 100)
    audit = Audit(redis)
    async with redis.pipeline(transaction=True) as pipe:
        for number in range(1000):
            audit.note(pipe, BOSS, "key.changed", f"key_{number}", "t")
        await pipe.execute()
    assert 100 <= await redis.xlen(redis.key.audit) <= 300
    assert (await audit.page(1))[0][1]["subject"] == "key_999"
