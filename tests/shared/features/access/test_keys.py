"""The copy of the keys that a process has: what it knows, and what it says when it cannot know."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.errors import BadRequest, Unavailable
from shared.features.access import keys as keys_module
from shared.features.access.audit import Actor
from shared.features.access.key_ring import KeyRing
from shared.features.access.keys import KeyChange, KeyRequest, KeyStore
from shared.lib.clock import now_ms
from shared.store.redis import ArqRedis

T = KeyRequest(tenant="t")
BOSS = Actor("key_boss", "ops")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The process's clock, which is moved by hand."""
    now = [1000.0]
    monkeypatch.setattr("shared.features.access.key_ring.time.monotonic", lambda: now[0])
    return now


async def test_a_known_key_is_good_for_a_minute_without_redis_and_an_unknown_one_is_not_told_wrong(
    redis: ArqRedis, clock: list[float]
) -> None:
    store = KeyStore(redis)
    ring = KeyRing(store)
    record, key = await store.create(T, BOSS)
    with pytest.raises(Unavailable):
        ring.find(key)  # it was never looked
    assert ring.find("of-the-environment") is None
    await ring.look()
    assert ring.find(key) == record
    assert ring.find(key + "x") is None
    clock[0] += 10
    assert ring.find(key) == record
    with pytest.raises(Unavailable):
        ring.find(key + "x")
    assert ring.find("of-the-environment") is None
    clock[0] += 51
    with pytest.raises(Unavailable):
        ring.find(key)
    await ring.look()
    assert ring.find(key) == record


async def test_one_looks_at_a_time_so_that_no_older_news_replaces_newer(
    redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was under way while a key was made may be answered last."""
    store = KeyStore(redis)
    ring = KeyRing(store)
    record, key = await store.create(T, BOSS)
    changed, looking = KeyStore.changed, list[int]()
    inside = 0

    async def counted(asked: KeyStore, since: bytes | None) -> Any:
        nonlocal inside
        inside += 1
        looking.append(inside)
        found = await changed(asked, since)
        inside -= 1
        return found

    monkeypatch.setattr(KeyStore, "changed", counted)
    await asyncio.gather(ring.look(), ring.learn(), ring.look())
    assert looking == [1, 1, 1]
    assert ring.find(key) == record


async def test_each_change_is_seen_and_nothing_else_is_read(redis: ArqRedis) -> None:
    store = KeyStore(redis)
    ring = KeyRing(store)
    gone: list[str] = []
    ring.on_ended = gone.append
    record, key = await store.create(T, BOSS)
    await ring.look()
    version = await store.changed(None)
    assert version is not None
    assert await store.changed(version.version) is None
    await store.change(record["id"], KeyChange(name="n"), BOSS)
    await ring.look()
    found = ring.find(key)
    assert found is not None
    assert found["name"] == "n"
    await store.revoke(record["id"], BOSS)
    await ring.look()
    assert ring.find(key) is None
    assert ring.has_ended(record["id"])
    assert gone == [record["id"]]
    await redis.delete(redis.key.keys, redis.key.keys_version)  # a server that lost everything
    await ring.look()
    assert not ring.tenants


async def test_those_who_use_what_has_ended_are_told(redis: ArqRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that expires; one that replaced another, at once and at the end of their overlap."""
    store, at_ms = KeyStore(redis), [now_ms()]
    ring, gone = KeyRing(store), list[str]()
    ring.on_ended = gone.append
    for module in ("keys", "key_ring"):
        monkeypatch.setattr(f"shared.features.access.{module}.now_ms", lambda: at_ms[0])
    short_id = (await store.create(T, BOSS))[0]["id"]
    await store.change(short_id, KeyChange(expires_at=at_ms[0] // 1000 + 50), BOSS)
    turned, _ = await store.create(T, BOSS)
    await ring.look()
    await store.rotate(turned["id"], 100, BOSS)
    await ring.look()
    assert gone == [], "both hold"
    at_ms[0] += 51_000
    await ring.look()
    assert gone == [short_id]
    assert ring.has_ended(short_id)
    assert not ring.has_ended(turned["id"])
    at_ms[0] += 51_000
    await ring.look()
    assert gone == [short_id, turned["id"]], "the one before holds no more"
    await store.rotate(turned["id"], 0, BOSS)
    await ring.look()
    assert gone == [short_id, turned["id"], turned["id"]]
    await ring.look()
    assert len(gone) == 3


async def test_a_key_may_not_be_rotated_without_end(redis: ArqRedis) -> None:
    store = KeyStore(redis)
    record, _ = await store.create(T, BOSS)
    for _ in range(keys_module.MOST_SECRETS - 1):
        await store.rotate(record["id"], 3600, BOSS)
    with pytest.raises(BadRequest, match="at once"):
        await store.rotate(record["id"], 3600, BOSS)
    turned, _ = await store.rotate(record["id"], 0, BOSS)
    assert len(turned["secrets"]) == 1


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "null\0", "\u202egnp.exe"])
def test_a_name_is_one_line_of_text(name: str) -> None:
    with pytest.raises(BadRequest, match="name"):
        KeyRequest.check({"tenant": "t", "name": name})


async def test_the_last_use_is_written_once_a_minute(redis: ArqRedis, clock: list[float]) -> None:
    store = KeyStore(redis)
    ring = KeyRing(store)
    ring.note_used("key_a")
    await ring._write_used()
    first = await store.used()
    assert set(first) == {"key_a"}
    await redis.delete(redis.key.keys_used)
    ring.note_used("key_a")
    await ring._write_used()
    assert await store.used() == {}, "not twice in a minute"
    clock[0] += 60
    await ring._write_used()
    assert set(await store.used()) == {"key_a"}
    assert await redis.ttl(redis.key.keys_used) > 0


async def test_what_ended_long_ago_makes_room(redis: ArqRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "MOST", 2)
    store = KeyStore(redis)
    old, _ = await store.create(T, BOSS)
    await store.create(T, BOSS)
    with pytest.raises(BadRequest, match="2 keys"):
        await store.create(T, BOSS)
    await store.revoke(old["id"], BOSS)
    with pytest.raises(BadRequest):
        await store.create(T, BOSS)  # it is listed for a while yet
    monkeypatch.setattr(keys_module, "KEPT_S", -1)
    await store.create(T, BOSS)
    assert old["id"] not in {record["id"] for record in await store.listed()}
