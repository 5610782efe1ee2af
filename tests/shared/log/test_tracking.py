"""Two connections of which one is told what has changed: on real servers of both kinds, with what ends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.log.tracking import Bell, Tracker, Trackers, Untracked
from shared.store.cluster.cells import Cells
from shared.store.commands import pack
from shared.store.keys import Keys
from shared.store.redis import RedisError, connect
from tests.harness.fake_store import fake_client
from tests.harness.store import Store
from tests.support.pair import Pair
from tests.support.proxy import Proxy
from tests.support.server import KINDS, Server
from tests.support.tracked import bell_of, reader_of, readers, until_alone, until_tracked_by


@pytest.fixture
def client(server: Server) -> Iterator[Store]:
    with server.client() as client:
        client.flushall()
        until_alone(client)
        yield client


class Ear:
    """A tracker, and a way to wait for what it is told."""

    def __init__(self) -> None:
        self.tracker: Bell
        self.again: Callable[[int], Awaitable[None]]
        self._rang = asyncio.Event()

    def ring(self) -> None:
        self._rang.set()

    async def next(self) -> set[bytes] | None:
        async with asyncio.timeout(20):
            while (changed := self.tracker.changed()) == set():
                await self._rang.wait()
                self._rang.clear()
        return changed

    async def get(self, *names: bytes) -> list[Any]:
        return await self.tracker.ask(b"".join(pack(b"GET", name) for name in names), len(names))


@asynccontextmanager
async def tracking(url: str) -> AsyncIterator[Ear]:
    redis, ear = connect(url, max_connections=2), Ear()
    try:
        ear.tracker = await Tracker.open(redis.connection_pool, ear.ring)
        yield ear
        await ear.tracker.close()
    finally:
        await redis.aclose(close_connection_pool=True)


CHANGES: dict[str, Callable[[Store], object]] = {
    "written": lambda client: client.set("k", "2"),
    "appended to": lambda client: client.append("k", "2"),
    "deleted": lambda client: client.delete("k"),
    "expires": lambda client: client.pexpire("k", 60_000),
    "renamed over": lambda client: client.rename("other", "k"),
    "in a transaction": lambda client: client.pipeline().set("k", "2").execute(),
    "in a script": lambda client: client.eval("redis.call('SET', KEYS[1], '2')", 1, "k"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_key_that_was_read_rings_when_it_changes(server: Server, client: Store, change: str) -> None:
    client.mset({"k": "1", "other": "1"})
    async with tracking(server.url) as ear:
        assert await ear.get(b"k") == [b"1"]
        CHANGES[change](client)
        assert await ear.next() == {b"k"}


async def test_a_key_rings_when_its_time_is_over(server: Server, client: Store) -> None:
    async with tracking(server.url) as ear:
        for number in range(
            100
        ):  # on a busy machine it may be over before it was read: then it is tried with another one
            name = b"k%d" % number
            client.set(name, "1", px=300)
            if await ear.get(name) == [b"1"]:
                break
        assert await ear.next() == {name}
        assert await ear.get(name) == [None]


async def test_a_key_that_was_not_there_rings_when_it_is_made(server: Server, client: Store) -> None:
    async with tracking(server.url) as ear:
        assert await ear.get(b"k") == [None]
        client.set("k", "1")
        assert await ear.next() == {b"k"}


async def test_it_rings_once_until_it_is_read_again(server: Server, client: Store) -> None:
    async with tracking(server.url) as ear:
        await ear.get(b"k", b"other")
        client.set("k", "1")
        assert await ear.next() == {b"k"}
        client.set("k", "2")
        await ear.tracker.hear()
        assert ear.tracker.changed() == set()
        assert await ear.get(b"k") == [b"2"]
        client.set("k", "3")
        client.set("other", "3")
        await ear.tracker.hear()
        assert ear.tracker.rings(b"k")
        assert ear.tracker.changed() == {b"k", b"other"}


async def test_where_all_is_gone_any_key_may_have_changed(server: Server, client: Store) -> None:
    async with tracking(server.url) as ear:
        await ear.get(b"k")
        client.flushall()
        assert await ear.next() is None
        await ear.get(b"k")
        client.set("k", "1")
        assert await ear.next() == {b"k"}


async def test_what_was_written_has_been_heard_when_the_bell_was_asked(server: Server, client: Store) -> None:
    async with tracking(server.url) as ear:
        for number in range(50):
            name = b"k%d" % number
            await ear.get(name)
            client.set(name, "1")
            await ear.tracker.hear()
            assert ear.tracker.changed() == {name}


async def test_a_bell_that_was_killed_ends_both(server: Server, client: Store) -> None:
    async with tracking(server.url) as ear:
        client.client_kill_filter(_id=bell_of(client))
        with pytest.raises((RedisError, OSError)):
            await ear.next()
        with pytest.raises((RedisError, OSError)):
            await ear.tracker.hear()
    async with tracking(server.url) as ear:
        await ear.get(b"k")
        client.set("k", "1")
        assert await ear.next() == {b"k"}


async def test_a_reader_that_was_killed_is_noticed(server: Server, client: Store) -> None:
    async with tracking(server.url) as ear:
        await ear.tracker.check()
        client.client_kill_filter(_id=reader_of(client))
        with pytest.raises((RedisError, OSError)):
            async with asyncio.timeout(20):
                while True:
                    await ear.tracker.check()
                    await asyncio.sleep(0.01)


async def test_connections_go_back_as_closed_ones(server: Server, client: Store) -> None:
    """A pool of two: the next one would wait for them."""
    redis, before = connect(server.url, max_connections=2), len(client.client_list())
    for _ in range(3):
        tracker = await Tracker.open(redis.connection_pool, lambda: None)
        assert len(client.client_list()) == before + 2
        await tracker.close()
        async with asyncio.timeout(20):
            while len(client.client_list()) > before:  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.01)
    await redis.aclose(close_connection_pool=True)


@pytest.mark.parametrize("rule", ["-client|tracking", "-client", "-subscribe", "resetchannels"])
async def test_what_a_user_may_not_do_is_told(server: Server, client: Store, rule: str) -> None:
    rules = ("on", ">pw", "~*", "&*", "+@all", *rule.split())
    client.execute_command("ACL", "SETUSER", "some", "reset", *rules)
    with pytest.raises(Untracked) as refused:
        async with tracking(server.url.replace("//", "//some:pw@")):
            pass
    assert "NOPERM" in str(refused.value.__cause__) or "permission" in str(refused.value.__cause__)


async def test_what_hangs_up_on_it_refuses_it(server: Server) -> None:
    with Proxy(("127.0.0.1", server.port)) as proxy:
        proxy.lose_replies(b"TRACKING", 1)
        with pytest.raises(Untracked):
            async with tracking(f"redis://127.0.0.1:{proxy.port}/0"):
                pass


async def test_what_does_not_know_it_refuses_it() -> None:
    redis = fake_client()
    with pytest.raises(Untracked):
        await Tracker.open(redis.connection_pool, lambda: None)
    await redis.aclose(close_connection_pool=True)


async def test_a_server_that_is_away_refuses_nothing(server: Server) -> None:
    with Proxy(("127.0.0.1", server.port)) as proxy:
        proxy.refuse()
        with pytest.raises((RedisError, OSError)):
            async with tracking(f"redis://127.0.0.1:{proxy.port}/0"):
                pass


@pytest.mark.parametrize("kind", KINDS)
async def test_a_master_that_follows_another_now_is_another_server(kind: str, tmp_path: Path) -> None:
    """Its connections stay, and its replies look as before."""
    with Pair(tmp_path, kind) as pair:
        async with tracking(pair.url) as ear:
            await ear.tracker.hear()
            pair.fail_over()
            with pytest.raises((RedisError, OSError)):
                async with asyncio.timeout(20):
                    while True:
                        await ear.tracker.hear()
                        await asyncio.sleep(0.01)


# ---- cells of one node share one


CELLS = Cells(4)


@asynccontextmanager
async def parts(url: str) -> AsyncIterator[list[Ear]]:
    """An ear for each cell of a node that has all of them."""
    redis, ears = connect(url, max_connections=4, cells=CELLS), [Ear() for _ in CELLS.all]
    trackers = Trackers(redis)

    async def open_part(cell: int) -> None:
        ears[cell].tracker = await trackers.open(cell, ears[cell].ring)

    for ear in ears:
        ear.again = open_part
    try:
        await asyncio.gather(*map(open_part, CELLS.all))
        yield ears
        for ear in ears:
            await ear.tracker.close()
    finally:
        await redis.aclose(close_connection_pool=True)


def key_of(cell: int) -> bytes:
    return Keys(cells=CELLS).open(cell).encode()


async def test_cells_of_a_node_that_is_away_hear_of_it_together(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would wait for it by itself, one after the other."""
    redis, tried, may_fail = connect(server.url, max_connections=4, cells=CELLS), [0], asyncio.Event()

    async def fail(*_: Any, **__: Any) -> Any:
        tried[0] += 1
        await may_fail.wait()
        raise RedisConnectionError("The node is away.")

    trackers = Trackers(redis)
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "open", fail)
        waiting = [asyncio.create_task(trackers.open(cell, lambda: None)) for cell in CELLS.all]
        for _ in range(10):
            await asyncio.sleep(0)
        may_fail.set()
        async with asyncio.timeout(60):
            found = await asyncio.gather(*waiting, return_exceptions=True)
    assert ([str(one) for one in found], tried) == (["The node is away."] * len(waiting), [1])
    part = await trackers.open(0, lambda: None)
    await part.close()
    await redis.aclose(close_connection_pool=True)


async def test_each_cell_hears_of_its_own_keys(server: Server, client: Store) -> None:
    async with parts(server.url) as ears:
        assert len(readers(client)) == 1
        await asyncio.gather(*(ear.get(key_of(cell)) for cell, ear in enumerate(ears)))
        client.set(key_of(2), "1")
        assert await ears[2].next() == {key_of(2)}
        await asyncio.gather(*(ear.tracker.hear() for ear in ears))
        assert [ear.tracker.changed() for ear in ears] == [set()] * 4
        client.set(key_of(1), "1")
        client.set(key_of(3), "1")
        await ears[0].tracker.hear()
        assert [ear.tracker.changed() for ear in ears] == [set(), {key_of(1)}, set(), {key_of(3)}]
        client.flushall()
        assert [await ear.next() for ear in ears] == [None] * 4
    await until_tracked_by(client, 0)


@pytest.mark.parametrize("which", ["the bell", "the reader"])
async def test_what_breaks_for_one_cell_breaks_for_all_and_is_opened_once(
    server: Server, client: Store, which: str
) -> None:
    async with parts(server.url) as ears:
        await asyncio.gather(*(ear.get(key_of(cell)) for cell, ear in enumerate(ears)))
        client.client_kill_filter(_id=bell_of(client) if which == "the bell" else reader_of(client))
        if which == "the reader":
            with pytest.raises((RedisError, OSError)):
                await ears[1].get(key_of(1))
        for ear in ears:
            with pytest.raises((RedisError, OSError)):
                await ear.next()
            assert ear.tracker.failed
        for cell, ear in enumerate(ears):
            await ear.tracker.close()
            await ear.again(cell)
        await until_tracked_by(client, 1)
        await ears[3].get(key_of(3))
        client.set(key_of(3), "1")
        assert await ears[3].next() == {key_of(3)}
