"""Which worker asks for a list of models, when, and what stays of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.cli.embedded import EmbeddedValkey
from shared.config.settings import Settings
from shared.errors import UpstreamError, UpstreamRefused
from shared.generations.catalogue import Catalogue
from shared.store.redis import ArqRedis, connect
from worker.models.announcer import KEPT_S, ModelAnnouncer
from worker.providers.registry import FAKE, Provider
from worker.upstream.health import Health
from worker.upstream.model_lists import ModelLists


class Lists(ModelLists):
    """Says what the test wrote down, and notes who was asked."""

    def __init__(self) -> None:
        self.said: dict[str, list[str] | UpstreamError] = {}
        self.asked: list[str] = []

    async def ask(self, provider: Provider) -> list[dict[str, Any]]:
        self.asked.append(provider.name)
        await asyncio.sleep(0)
        said = self.said[provider.name]
        if isinstance(said, UpstreamError):
            raise said
        return [{"id": name, "object": "model", "created": 1, "owned_by": ""} for name in said]


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[ArqRedis]:
    client = connect(valkey.url.replace("db=0", "db=1"), max_connections=10, timeout_s=60.0, wait_s=60.0)
    await client.flushdb()
    yield client
    await client.flushdb()
    await client.aclose(close_connection_pool=True)


def provider(name: str, base_url: str = "http://h/v1") -> Provider:
    return Provider(name=name, kind="openai", base_url=base_url, api_key="sk-secret")


def announcer(redis: ArqRedis, lists: Lists, *providers: Provider, **settings: Any) -> ModelAnnouncer:
    found = {one.name: one for one in (*providers, FAKE)}
    return ModelAnnouncer(redis, lists, found, Settings(**settings), Health())


async def look(*workers: ModelAnnouncer) -> None:
    """Each of them as if it had just come to look, once."""
    await asyncio.gather(*(worker.look() for worker in workers))


async def listed(redis: ArqRedis, name: str) -> list[str] | None:
    raw = await redis.get(redis.key.model_list(name))
    return None if raw is None else [model["id"] for model in json.loads(raw)["models"]]


async def test_one_worker_of_several_asks_each_provider_once(redis: ArqRedis) -> None:
    lists = Lists()
    lists.said = {"a": ["m"], "b": ["n"]}
    workers = [announcer(redis, lists, provider("a"), provider("b")) for _ in range(5)]
    for _ in range(3):
        await look(*workers)
    assert sorted(lists.asked) == ["a", "b"]
    assert (await listed(redis, "a"), await listed(redis, "b")) == (["m"], ["n"])
    assert KEPT_S - 60 < await redis.ttl(redis.key.model_list("a")) <= KEPT_S
    assert 0 < await redis.pttl(redis.key.model_turn("a")) <= 300_000


async def test_it_is_asked_again_when_it_is_time(redis: ArqRedis) -> None:
    lists = Lists()
    lists.said = {"a": ["m"]}
    worker = announcer(redis, lists, provider("a"))
    await look(worker)
    lists.said = {"a": ["m", "n"]}
    await redis.delete(redis.key.model_turn("a"))  # as when it has lapsed
    await look(worker)
    assert await listed(redis, "a") == ["m", "n"]


@pytest.mark.parametrize(("status", "pause_ms"), [(None, 60_000), (503, 60_000), (401, 300_000)])
async def test_what_it_said_last_stands_while_it_is_away(redis: ArqRedis, status: int | None, pause_ms: int) -> None:
    lists = Lists()
    lists.said = {"a": ["m"], "b": ["n"]}
    worker = announcer(redis, lists, provider("a"), provider("b"))
    await look(worker)
    await redis.delete(redis.key.model_turn("a"), redis.key.model_turn("b"))
    lists.said = {
        "a": UpstreamError("a: no connection.", code="upstream_connect_error")
        if status is None
        else UpstreamRefused("a: no.", status=502, provider_status=status),
        "b": ["o"],
    }
    await look(worker)
    assert (await listed(redis, "a"), await listed(redis, "b")) == (["m"], ["o"])
    left = await redis.pttl(redis.key.model_turn("a"))
    assert pause_ms - 10_000 < left <= pause_ms


async def test_patterns_choose_and_spare_the_asking(redis: ArqRedis) -> None:
    lists = Lists()
    lists.said = {"a": ["gpt", "gpt-mini", "o"], "b": ["n"]}
    both = (provider("a"), provider("b"))
    await look(announcer(redis, lists, *both, models_only=["a/gpt*"], models_without="b/*, a/*-mini"))
    assert lists.asked == ["a"]
    assert (await listed(redis, "a"), await listed(redis, "b")) == (["gpt"], None)


async def test_other_patterns_and_another_address_are_asked_for_at_once(redis: ArqRedis) -> None:
    lists = Lists()
    lists.said = {"a": ["gpt", "o"]}
    await look(announcer(redis, lists, provider("a")))
    await look(announcer(redis, lists, provider("a")))
    assert len(lists.asked) == 1
    await look(announcer(redis, lists, provider("a"), models_only=["a/o"]))
    assert await listed(redis, "a") == ["o"]
    await look(announcer(redis, lists, provider("a", "http://elsewhere/v1"), models_only=["a/o"]))
    assert len(lists.asked) == 3
    assert b"sk-secret" not in b"".join([await redis.get(key) for key in await redis.keys("*")])


async def test_none_is_asked_where_that_is_off(redis: ArqRedis) -> None:
    lists = Lists()
    for settings in ({"models_refresh_s": 0}, {"models_without": ["*"]}, {"models_without": ["*/*"]}):
        worker = announcer(redis, lists, provider("a"), **settings)
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0)
        assert not running.done(), "a loop that ends would end the worker"
        running.cancel()
    assert lists.asked == []


async def test_the_catalogue_puts_the_three_together(redis: ArqRedis) -> None:
    lists = Lists()
    lists.said = {"a": ["m", "declared"]}
    await look(announcer(redis, lists, provider("a")))
    catalogue = {
        "aliases": {"smart": ["a/m"], "either": ["a/m", "fake/echo"]},
        "providers": {
            "a": {"models": ["declared", "only-here"], "open": True},
            "fake": {"models": ["echo"], "open": False},
        },
    }
    await redis.set(redis.key.catalogue, json.dumps(catalogue))
    found = Catalogue(redis)
    models = {model["id"]: model for model in await found.models()}
    assert list(models) == ["smart", "either", "a/declared", "a/only-here", "a/m", "fake/echo"]
    assert models["a/m"] == {"id": "a/m", "object": "model", "created": 1, "owned_by": "a"}
    assert [models[name]["owned_by"] for name in ("smart", "fake/echo")] == ["streamspool", "fake"]
    assert await found.model("a/m") == models["a/m"]
    assert (await found.model("a/not/listed:x"))["id"] == "a/not/listed:x"
    await redis.delete(redis.key.catalogue)
