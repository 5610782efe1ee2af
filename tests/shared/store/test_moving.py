"""From one server to two: which keys move, what a kill in between leaves, and when it is refused."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog

from shared.cli.embedded import EmbeddedValkey
from shared.config.settings import Settings
from shared.errors import Unusable
from shared.generations.reaper import TICK_S
from shared.store.cluster.cells import Cells
from shared.store.cluster.moving import LOOK_S, Moving
from shared.store.cluster.placing import Moved, moved
from shared.store.contact import check_servers
from shared.store.keys import Keys, Lane
from tests.harness.cluster import Node
from tests.harness.store import Store, open_store
from tests.support.server import Server

ONE, PARTED = Keys(), Keys(cells=Cells(1, apart=True))
RECORD = PARTED.number_of_cells
LONG_MS = 10_000_000


class Pair(NamedTuple):
    """The server that has all, and the one that its control moves to; and hands of the test's own on both."""

    logs: str
    queue: str
    source: Store
    target: Store

    def moving(self) -> Moving:
        return Moving(self.logs, self.queue, "streamspool")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    directory = tmp_path_factory.mktemp("two")
    with EmbeddedValkey(directory / "logs") as logs, EmbeddedValkey(directory / "queue") as queue:
        yield logs.url, queue.url


@pytest.fixture
def pair(servers: tuple[str, str]) -> Iterator[Pair]:
    with open_store(servers[0]) as source, open_store(servers[1]) as target:
        for store in (source, target):
            store.flushall()
        yield Pair(*servers, source, target)


def fill(source: Store, key: Keys = ONE) -> None:
    """A key of each type, of the control and of a log, with an end and without."""
    source.hset(key.keys, mapping={"id": "{}", "other": "x" * 1000})
    source.zadd(key.tenants(Lane.GENERATION), {"ann": 1.5, "bob": 10**9 + 0.25})
    source.sadd(key.workers, "w1", "w2")
    source.xadd(key.events, {"e": "1"}, id="5-1")
    source.xadd(key.events, {"e": "2"}, id="7-0")
    source.set(key.job("one"), b"\x00\xff job", px=LONG_MS)
    source.set(key.secret, bytes(range(64)))
    source.xadd(key.log("one"), {"r": "{}"}, id="0-1")
    source.zadd(key.index("ann", 0), {"one": 1})
    source.set(key.settled("one"), "17", px=LONG_MS)


def names(store: Store) -> set[str]:
    return {name.decode() for name in store.keys("*")}


def has_moved(pair: Pair) -> None:
    with_logs = {ONE.log("one"), ONE.index("ann", 0), ONE.settled("one"), RECORD}
    control = {PARTED.keys, PARTED.tenants(Lane.GENERATION), PARTED.workers, PARTED.events, PARTED.job("one")}
    assert names(pair.source) == with_logs
    assert names(pair.target) == {*control, PARTED.secret, PARTED.charged("one")}
    assert pair.source.get(RECORD) == b"1 apart"
    assert pair.target.hgetall(PARTED.keys) == {b"id": b"{}", b"other": b"x" * 1000}
    assert pair.target.zrange(PARTED.tenants(Lane.GENERATION), 0, -1, withscores=True) == [
        (b"ann", 1.5),
        (b"bob", 10**9 + 0.25),
    ]
    assert pair.target.smembers(PARTED.workers) == {b"w1", b"w2"}
    assert pair.target.xrange(PARTED.events) == [(b"5-1", {b"e": b"1"}), (b"7-0", {b"e": b"2"})]
    assert pair.target.get(PARTED.job("one")) == b"\x00\xff job"
    assert pair.target.get(PARTED.charged("one")) == b"17"
    assert pair.target.get(PARTED.secret) == bytes(range(64))
    for name in (PARTED.job("one"), PARTED.charged("one")):
        assert LONG_MS - 600_000 < pair.target.pttl(name) <= LONG_MS
    assert pair.target.pttl(PARTED.secret) == -1


async def check(pair: Pair, *, two: bool) -> None:
    """As at a start."""
    values = {"redis_url": pair.logs, "queue_url": pair.queue if two else None}
    with structlog.testing.capture_logs():
        await check_servers(Settings.model_validate(values))


# ---- which they are

SAMPLES: dict[str, Any] = {
    "cell": 0,
    "lane": Lane.LINE,
    "day": "2026-11-22",
    "month": "2026-11",
    "hour": "2026-11-22T05",
}


def every(keys: Keys) -> dict[str, str]:
    """All names that there are, by what makes them."""
    found = {name: value for name, value in vars(keys).items() if isinstance(value, str) and not name.startswith("_")}
    for name, method in inspect.getmembers(keys, inspect.ismethod):
        if not name.startswith("_") and inspect.signature(method).return_annotation != "bool":
            made = method(*(SAMPLES.get(part, part) for part in inspect.signature(method).parameters))
            found |= {name: made} if isinstance(made, str) else {f"{name} {at}": one for at, one in enumerate(made)}
    passing = ("prefix", "doorbell", "number_of_cells", "marker")  # no key, not on one server, everybody's own
    return {name: value for name, value in found.items() if name not in passing}


def test_every_key_is_known_to_stay_or_to_move() -> None:
    before, after = every(ONE), every(PARTED)
    assert len(before) > 60
    for name, key in before.items():
        new = moved("streamspool", key)
        if name == "settled":
            assert new == Moved(after["charged"], stays=True)
        else:
            assert new == (None if after[name] == key else Moved(after[name], stays=False)), name


def test_of_a_cluster_what_is_the_controls_keeps_its_name() -> None:
    many = Keys(cells=Cells(64))
    for name, key in every(many).items():
        assert moved("streamspool", key) == (Moved(key, stays=False) if "{control}" in key else None), name
    assert moved("streamspool", many.number_of_cells) is None


@pytest.mark.parametrize("name", ["streamspool2:keys", "other:streamspool:keys", "arq:queue", "streamspool"])
def test_what_is_others_is_not_touched(name: str) -> None:
    assert moved("streamspool", name) is None


# ---- the move


async def test_all_that_is_the_controls_is_on_the_other_server_and_nowhere_else(pair: Pair) -> None:
    fill(pair.source)
    async with pair.moving() as moving:
        assert await moving.move(0) == 6
        has_moved(pair)
        assert await moving.move(0) == 0
    has_moved(pair)
    await check(pair, two=True)
    with pytest.raises(Unusable, match="Name it: STREAMSPOOL_QUEUE_URL"):
        await check(pair, two=False)


async def test_a_clusters_control_moves_as_it_is(pair: Pair, cluster_node: Node) -> None:
    key = Keys(cells=Cells(64))
    with cluster_node.client() as source:
        source.flushall()
        fill(source, key)
        source.set(RECORD, 64)
        async with Moving(f"redis+cluster://127.0.0.1:{cluster_node.port}", pair.queue, "streamspool") as moving:
            assert await moving.move(0) == 6
        assert source.get(RECORD) == b"64 apart"
        assert names(source) == {key.log("one"), key.index("ann", 0), key.settled("one"), RECORD}
        assert names(pair.target) >= {key.keys, key.events, key.job("one"), key.secret}
        source.flushall()


@pytest.mark.parametrize("step", ["_copy", "_remove"])
async def test_who_was_killed_goes_on_where_it_was(pair: Pair, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When all is copied, and when the record says so already."""
    fill(pair.source)

    async def killed(*_: Any) -> None:
        if step == "_copy":
            pair.target.set(PARTED.secret, b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Moving, step, killed)
        with pytest.raises(KeyboardInterrupt):
            async with pair.moving() as moving:
                await moving.move(0)
    if step == "_copy":
        for two in (False, True):
            with pytest.raises(Unusable, match="are being moved"):
                await check(pair, two=two)
    async with pair.moving() as moving:
        await moving.move(0)
    has_moved(pair)


async def test_who_thinks_better_of_it_has_all_as_it_was(pair: Pair) -> None:
    fill(pair.source)
    before = {name: pair.source.dump(name) for name in names(pair.source)}
    pair.source.set(RECORD, "1 moving")
    async with pair.moving() as moving:
        await moving.go_back()
        assert {name: pair.source.dump(name) for name in names(pair.source)} == before
        await check(pair, two=False)
        await moving.move(0)
        with pytest.raises(Unusable, match="is not moved back"):
            await moving.go_back()
    has_moved(pair)


# ---- what is refused


def test_it_is_looked_for_two_turns_of_the_reaper() -> None:
    assert LOOK_S == 2 * TICK_S


@pytest.mark.parametrize("sign", ["a reaper's turn", "a worker's heart"])
async def test_nothing_moves_while_a_process_runs(pair: Pair, sign: str) -> None:
    fill(pair.source)
    pair.source.set(ONE.reaping if sign == "a reaper's turn" else ONE.worker("w2"), "1", px=LONG_MS)
    async with pair.moving() as moving:
        with pytest.raises(Unusable, match="Stop all of them"):
            await moving.move(1)
    assert pair.source.get(RECORD) is None
    assert names(pair.target) == set()


async def test_nothing_moves_over_another_installation(pair: Pair) -> None:
    fill(pair.source)
    pair.target.set(PARTED.secret, "another's")
    async with pair.moving() as moving:
        with pytest.raises(Unusable, match="^STREAMSPOOL_QUEUE_URL: that server has an installation"):
            await moving.move(0)
    assert pair.source.get(RECORD) is None
    assert pair.target.get(PARTED.secret) == b"another's"


async def test_a_server_that_cannot_read_what_the_other_one_stores_says_so(pair: Pair, tmp_path: Path) -> None:
    """Redis 7 does not take what Valkey 9 has dumped. Nothing is removed."""
    fill(pair.source)
    with Server(tmp_path / "server", kind="redis") as server:
        async with Moving(pair.logs, server.url, "streamspool") as moving:
            with pytest.raises(Unusable, match="does not take what the other one has stored"):
                await moving.move(0)
            await moving.go_back()
    await check(pair, two=False)
    assert ONE.secret in names(pair.source)
