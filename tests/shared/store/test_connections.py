"""How a URL becomes connections, and what is said about servers that can lose streams."""

from __future__ import annotations

import asyncio
import json as standard_json
import ssl
from collections.abc import Iterator
from contextlib import suppress

import hiredis
import pytest
import structlog
import uvloop
from redis.exceptions import ConnectionError, TimeoutError

from shared.cli.embedded import EmbeddedValkey
from shared.config.redis_url import Address
from shared.errors import Unusable
from shared.store import contact
from shared.store.commands import exchange_all, pack, watch
from shared.store.jobs import deserialize_job, serialize_job
from shared.store.outage import Pauses
from shared.store.redis import ArqRedis, RedisError, ResponseError, WatchError, connect, run_while_redis_is_away
from tests.harness.store import configured


def test_jobs_are_json() -> None:
    assert standard_json.loads(serialize_job({"a": [1]})) == {"a": [1]} == deserialize_job(b'{"a":[1]}')


def test_pools_are_bounded_and_a_url_cannot_change_that() -> None:
    pool = connect("redis://:secret@example.org:6380/2", max_connections=3).connection_pool
    assert (pool.connection_kwargs["db"], pool.connection_kwargs["password"], pool.max_connections) == (2, "secret", 3)
    assert pool.connection_kwargs["socket_timeout"] == 5.0
    with pytest.raises(Unusable, match="max_connections"):
        connect("redis://example.org?max_connections=1", max_connections=3)


def test_all_connections_of_a_process_share_one_tls_context() -> None:
    first = connect("rediss://example.org", max_connections=3)
    second = connect("rediss://example.org", max_connections=3, beside=first)
    made = [client.connection_pool.make_connection() for client in (first, first, second)]
    contexts = {id(connection._connection_arguments()["ssl"]) for connection in made}
    assert len(contexts) == 1
    context = made[0]._connection_arguments()["ssl"]
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)


@pytest.mark.parametrize("option", ["ssl_ca_certs=/nowhere", "ssl_certfile=/nowhere", "ssl_ca_data=x", "ssl_ciphers=x"])
def test_certificates_that_cannot_be_read_are_told(option: str) -> None:
    with pytest.raises(Unusable, match="REDIS_URL names certificates"):
        connect(f"rediss://:canary@example.org?{option}", max_connections=1)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """To be set otherwise: the processes of other tests go on with that which all share."""
    with EmbeddedValkey(tmp_path_factory.mktemp("own")) as running:
        yield running


@pytest.fixture
async def server(own: EmbeddedValkey) -> ArqRedis:
    return connect(own.url, max_connections=2)


async def test_a_watch_that_is_refused_is_no_watch(server: ArqRedis) -> None:
    """Nothing would be compared, and everything set."""
    async with server.pipeline(transaction=True) as pipe:
        with pytest.raises(ResponseError, match="wrong number"):
            await watch(pipe, [], pack(b"GET", b"any"))
    async with server.pipeline(transaction=True) as pipe:  # the connection is as good as before
        assert await watch(pipe, ["any"], pack(b"GET", b"any")) == [None]
        pipe.set("any", b"1", px=1000)
        await server.set("any", b"2", px=1000)
        with pytest.raises(WatchError):
            await pipe.execute()
    await server.delete("any")
    await server.aclose(close_connection_pool=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"maxmemory_policy": "allkeys-lru"}, ["redis may evict running streams"]),
        ({"appendonly": "no"}, ["redis keeps nothing on disk"]),
        ({"appendonly": "no", "save": "3600 1"}, ["redis has no append-only file"]),
    ],
)
async def test_a_server_that_can_lose_streams_is_warned_of(
    server: ArqRedis, changes: dict[str, str], said: list[str]
) -> None:
    try:
        async with configured(server, **changes):
            with structlog.testing.capture_logs() as logs:
                await contact._warn_of_risks(server, Address())
        assert len(logs) == len(said)
        assert all(log["event"].startswith(start) for log, start in zip(logs, said, strict=True))
    finally:
        while (await server.info("persistence"))["aof_rewrite_in_progress"]:  # noqa: ASYNC110 -- it would not stop before
            await asyncio.sleep(0.01)
        await server.aclose(close_connection_pool=True)


async def test_a_server_that_may_not_be_asked_is_not_warned_of() -> None:
    away = connect("redis://127.0.0.1:1", max_connections=1)
    await contact._warn_of_risks(away, Address())
    await away.aclose(close_connection_pool=True)


async def test_a_loop_outlives_outages_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pauses, "next_s", lambda self: 0)
    failures = iter([ConnectionError(), RedisError(), None])
    turns = 0

    async def loop() -> None:
        nonlocal turns
        turns += 1
        if failure := next(failures):
            raise failure

    await asyncio.wait_for(run_while_redis_is_away("test", loop), 60)
    assert turns == 3

    async def bug() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        await run_while_redis_is_away("test", bug)


def test_a_connection_is_never_taken_while_it_is_closed_for_its_sibling(valkey: EmbeddedValkey) -> None:
    """Where one does not answer in time, the idle ones are closed, too. Whoever wants one meanwhile gets a whole one."""

    async def try_them() -> None:
        client = connect(valkey.url.replace("db=0", "db=1"), max_connections=20, timeout_s=0.05)
        over = asyncio.Event()

        async def wait_in_vain() -> None:
            for _ in range(40):
                with suppress(RedisError):
                    await client.blpop(["nothing"], timeout=1)  # type: ignore[misc]

        async def ask() -> None:
            while not over.is_set():
                for _ in range(40):
                    with suppress(RedisError):
                        await client.ping()
                    await asyncio.sleep(0)
                await asyncio.sleep(0.02)

        asking = [asyncio.create_task(ask()) for _ in range(12)]
        await asyncio.gather(*(wait_in_vain() for _ in range(3)))
        over.set()
        await asyncio.gather(*asking)
        await client.aclose(close_connection_pool=True)

    uvloop.run(try_them())


@pytest.mark.parametrize("ends", [True, False], ids=["and closes", "and hangs"])
async def test_a_server_that_stops_within_its_replies_costs_the_connection_and_mixes_none_up(ends: bool) -> None:
    """A pipeline's replies are read in one go; those of the next one must not begin with what came too late."""
    said, stops = 0, True

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal said
        commands = hiredis.Reader()
        while data := await reader.read(65536):
            commands.feed(data)
            for command in iter(commands.gets, False):
                if not command[0].startswith(b"INCR"):
                    writer.write(b"+OK\r\n")  # a connection's first words
                    continue
                said += 1
                writer.write(b":%d\r\n" % said)
                if stops and said % 3 == 0:
                    break
            if stops and said and said % 3 == 0 and ends:
                break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        client = connect(f"redis://127.0.0.1:{port}/0", max_connections=1, timeout_s=60.0 if ends else 0.3)
        for expected in ("pipeline", "exchange"):
            with pytest.raises(ConnectionError if ends else TimeoutError):
                if expected == "pipeline":
                    await counted(client, 4)
                else:
                    await exchange_all(client, [pack(b"INCR", b"k")] * 4)
        stops, said = False, 0
        (connection,) = client.connection_pool._available_connections
        connection.socket_timeout = 60.0
        assert await counted(client, 2) == [1, 2]
        assert await exchange_all(client, [pack(b"INCR", b"k")] * 2) == [3, 4]
        await client.aclose(close_connection_pool=True)


async def counted(client: ArqRedis, times: int) -> list[int]:
    async with client.pipeline(transaction=False) as pipe:
        for _ in range(times):
            pipe.incr("k")
        found: list[int] = await pipe.execute()
    return found
