"""The parts of redis-py, aiohttp, arq and prometheus-client that are used although they are not documented, each by its name.

A new version of either may change them without a word: this says which, before anything else breaks. The files that use
redis-py's are shared/store/connections.py, lasting/wire.py and cluster/pipelines.py; arq's worker is worker/arq_worker.py's,
its jobs are shared/store/jobs.py's; aiohttp's are shared/lib/http.py's, prometheus-client's shared/lib/metrics.py's.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any

import aiohttp
import hiredis
import prometheus_client
import pytest
from aiohttp.client_proto import ResponseHandler
from arq import jobs
from arq.connections import ArqRedis
from arq.worker import Function, Retry, Worker, func
from prometheus_client import values
from redis import _parsers
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio import BlockingConnectionPool, Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedConnection

import shared.store.connections as ours
from shared.lib import metrics
from shared.lib.http import _Body, _Handler
from shared.store.connections import open_pool
from shared.store.jobs import pack_job, unpack_job


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


# ---- redis-py


@pytest.mark.parametrize(
    ("owner", "name", "wanted"),
    [
        (_parsers._AsyncHiredisParser, "on_connect", ["self", "connection"]),
        (_parsers._AsyncHiredisParser, "parse_error", ["response"]),
        (_parsers._AsyncHiredisParser, "can_read_destructive", ["self"]),
        (_parsers._AsyncHiredisParser, "read_from_socket", ["self"]),
        (AbstractConnection, "connect", ["self"]),
        (AbstractConnection, "pack_command", ["self", "args"]),
        (AbstractConnection, "disconnect", ["self", "nowait"]),
        (AbstractConnection, "send_packed_command", ["self", "command", "check_health"]),
        (Connection, "_connection_arguments", ["self"]),
        (SentinelManagedConnection, "_connection_arguments", ["self"]),
        (BlockingConnectionPool, "release", ["self", "connection"]),
        (BlockingConnectionPool, "get_connection", None),
        (SentinelConnectionPool, "get_master_address", ["self"]),
        (SentinelConnectionPool, "disconnect", ["self", "inuse_connections"]),
        (Pipeline, "_disconnect_raise_reset", ["self", "conn", "error"]),
        (Pipeline, "_disconnect_reset_raise", ["self", "conn", "error"]),
        (Pipeline, "multi", ["self"]),
        (Pipeline, "_execute_transaction", ["self", "connection", "commands", "raise_on_error"]),
        (Pipeline, "_execute_pipeline", ["self", "connection", "commands", "raise_on_error"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_overridden_or_called_of_redis_py(owner: type, name: str, wanted: list[str] | None) -> None:
    found = parameters(getattr(owner, name))
    assert wanted is None or found == wanted


def test_what_is_read_and_set_of_redis_py() -> None:
    pool: ConnectionPool = BlockingConnectionPool()
    assert list(pool._available_connections) == []
    connection = pool.make_connection()
    assert isinstance(connection._parser, _parsers._AsyncHiredisParser)
    assert connection.is_connected is False
    assert connection.socket_timeout is None
    assert connection._connection_arguments().keys() == {"host", "port"}
    assert "ssl" in SSLConnection()._connection_arguments()
    pipe = Redis(connection_pool=pool).pipeline()
    pipe.set("k", "v")
    assert pipe.command_stack == [(("SET", "k", "v"), {})]
    assert (pipe.watching, pipe.connection, pipe.connection_pool) == (False, None, pool)
    assert "SET" in pipe.response_callbacks


async def test_what_of_a_stream_is_read_to_see_whether_a_connection_is_fit_for_use() -> None:
    parser: Any = ours._Parser(1024)
    parser._reader, parser._stream = hiredis.Reader(notEnoughData=NOT_ENOUGH_DATA), (stream := asyncio.StreamReader())
    parser._connected = True
    assert await parser.can_read_destructive() is False
    stream.feed_data(b":1")
    assert await parser.can_read_destructive() is True
    await stream.readexactly(2)
    assert await parser.can_read_destructive() is False
    stream.feed_eof()
    assert await parser.can_read_destructive() is True
    parser._stream = stream = asyncio.StreamReader()
    stream.set_exception(ConnectionResetError())
    assert await parser.can_read_destructive() is True


def test_our_connections_override_what_is_there() -> None:
    """A method that redis-py has no more would be called by nothing."""
    for mine, theirs in ((ours.Mended, AbstractConnection), (ours._Parser, _parsers._AsyncHiredisParser)):
        methods = {name for name, value in vars(mine).items() if inspect.isfunction(value)}
        assert methods <= set(dir(theirs)), mine
    assert callable(open_pool)


# ---- aiohttp


@pytest.mark.parametrize(
    ("owner", "name", "wanted"),
    [
        (ResponseHandler, "data_received", ["self", "data"]),
        (ResponseHandler, "feed_data", ["self", "data", "size"]),
        (ResponseHandler, "resume_reading", ["self", "resume_parser"]),
        (ResponseHandler, "set_exception", ["self", "exc", "exc_cause"]),
        (ResponseHandler, "set_response_params", None),
        (aiohttp.StreamReader, "feed_data", ["self", "data", "size"]),
        (aiohttp.StreamReader, "_read_nowait", ["self", "n"]),
        (aiohttp.ClientResponse, "start", ["self", "connection"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_overridden_or_called_of_aiohttp(owner: type, name: str, wanted: list[str] | None) -> None:
    found = parameters(getattr(owner, name))
    assert wanted is None or found == wanted


async def test_what_is_read_and_set_of_aiohttp() -> None:
    connector = aiohttp.TCPConnector()
    assert callable(connector._factory)
    await connector.close()
    handler = _Handler(loop=asyncio.get_running_loop())
    assert handler._reading_paused is False
    assert handler._payload is None
    body = aiohttp.StreamReader(handler, 64)
    assert body._protocol is handler
    assert (body._waiter, list(body._buffer)) == (None, [])


class Open(asyncio.Transport):
    def is_closing(self) -> bool:
        return False


async def test_a_body_of_aiohttps_becomes_one_with_a_tap_which_is_offered_what_is_waited_for() -> None:
    handler, offered = _Handler(loop=asyncio.get_running_loop()), list[bytes]()
    handler.connection_made(Open())
    body = aiohttp.StreamReader(handler, 64)
    body.__class__ = _Body

    def tap(data: bytes) -> bool:
        offered.append(data)
        return data == b"taken"

    body.feed_data(b"before anybody waits")
    assert await body.readany() == b"before anybody waits"
    handler.tap = tap
    body.feed_data(b"nobody waits")
    assert await body.readany() == b"nobody waits"
    waiting = asyncio.create_task(body.readany())
    await asyncio.sleep(0)
    for piece in (b"taken", b"taken", b"left", b"behind it"):
        body.feed_data(piece)
    assert await waiting == b"leftbehind it"
    assert offered == [b"taken", b"taken", b"left"]


# ---- arq


def test_what_of_arqs_worker_is_used() -> None:
    wanted = {"functions", "redis_pool", "queue_name", "handle_signals", "max_jobs", "job_timeout"}
    assert wanted | {"job_serializer", "job_deserializer"} <= set(parameters(Worker.__init__))
    assert Retry(1.5).defer_score == 1500


async def test_what_of_arqs_worker_is_read() -> None:
    async def work(ctx: dict[str, Any], job_id: str) -> None: ...

    worker = Worker(
        [func(work, name="work", timeout=7)], redis_pool=ArqRedis(), handle_signals=False, max_jobs=3, job_timeout=9
    )
    assert worker.allow_pick_jobs is True
    assert (worker.max_jobs, worker.job_timeout_s) == (3, 9)
    assert worker.loop is not None
    function = worker.functions["work"]
    assert isinstance(function, Function)
    assert (function.coroutine, function.timeout_s) == (work, 7)


def test_how_arq_lays_a_job_out() -> None:
    """A worker of the version before may read what this one queued, which it does as arq does, and the other way round."""
    packed = jobs.serialize_job(
        "f", ("id",), {}, None, 5, serializer=lambda job: json.dumps({**job, "tenant": "ann"}).encode()
    )
    assert unpack_job(packed) == ("f", ["id"], 5, "ann")
    ours = pack_job("f", "id", 5, "ann")
    assert json.loads(ours) == json.loads(packed)
    unpacked: tuple[Any, ...] = jobs.deserialize_job_raw(ours, deserializer=json.loads)
    assert unpacked == ("f", ["id"], {}, None, 5)


# ---- prometheus-client


@pytest.mark.skipif(values.ValueClass is not values.MutexValue, reason="values lie in files here")
def test_what_is_read_and_set_of_prometheus_client() -> None:
    histogram = prometheus_client.Histogram("seen_s", "Help", registry=None, buckets=(1, 2))
    assert histogram._upper_bounds == [1, 2, float("inf")]
    assert len(histogram._buckets) == 3
    counter = prometheus_client.Counter("seen", "Help", registry=None)
    gauge = prometheus_client.Gauge("seen", "Help", registry=None)
    assert gauge._is_most_recent is False
    for value in (histogram._sum, *histogram._buckets, counter._value, gauge._value):
        assert vars(value).keys() >= {"_value", "_lock"}
        with value._lock:
            value._value += 2
        assert value.get() == 2


@pytest.mark.skipif(values.ValueClass is not values.MutexValue, reason="values lie in files here")
@pytest.mark.parametrize("kind", [metrics.Counter, metrics.Gauge, metrics.Histogram])
def test_where_prometheus_client_has_the_children_of_a_metric(kind: Any) -> None:
    metric = kind("seen", "Help", ("first", "second"), registry=None)
    child = metric.labels("a", 1)
    assert metric._metrics == {("a", "1"): child}
    assert metric._labelnames == ("first", "second")
    assert "_metrics" not in vars(child)
    assert {"_value", "_sum"}.isdisjoint(vars(metric))
