"""Clients of Redis or Valkey: made here, with one set of time-outs, from one URL.

Hidden here: how a URL (redis_url.py takes it apart) becomes a client over a pool (connections.py), and that every pool is
bounded and waits instead of growing.

A command whose connection broke, or led to the wrong server (outage.py has the list of what says so), is sent once more.
That is safe for everything we send: explicit stream ids, job ids and sets make each repetition a no-op (PROTOCOL.md,
"Repetition"). A connection that led to the wrong server is closed, and so are the idle ones of all clients of this process
for that server; those in use are closed when they come back, and send nothing more before that.
"""

from __future__ import annotations

from redis.exceptions import (
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
    TimeoutError,
    WatchError,
)

from shared.config.redis_url import Address, parse
from shared.config.settings import PREFIX
from shared.errors import Unusable
from shared.store.cluster.cells import Cells
from shared.store.cluster.client import ClusterRedis
from shared.store.cluster.topology import Topology
from shared.store.connections import Place, open_pool
from shared.store.jobs import ArqRedis
from shared.store.keys import ONE, Keys
from shared.store.outage import UNREACHABLE, WrongServer, is_wrong_server, log_redis_error, run_while_redis_is_away

__all__ = [
    "UNREACHABLE",
    "ArqRedis",
    "NoPermissionError",
    "NoScriptError",
    "OutOfMemoryError",
    "RedisError",
    "ResponseError",
    "TimeoutError",
    "WatchError",
    "WrongServer",
    "connect",
    "log_redis_error",
    "run_while_redis_is_away",
    "is_wrong_server",
]


CELLS = 64
"""On a cluster. With 3, 5 or 8 nodes the fullest has 3 % more of them than the mean."""
_OF_A_CELL = 3
"""Connections that are kept for each cell: its appender's and its confirmer's, or its follower's two and its confirmer's."""


def connect(
    url: str,
    *,
    prefix: str = PREFIX,
    max_connections: int,
    timeout_s: float = 5.0,
    wait_s: float = 2.0,
    beside: ArqRedis | None = None,
    cells: Cells = ONE,
) -> ArqRedis:
    """A client over its own bounded pool; nothing is sent before the first command.

    All our keys begin with `prefix`: pass the setting wherever there is one; `cells` say how they lie. `beside` is another
    client of this process for the same server: what one learns about it, the other one knows.
    `timeout_s` bounds each answer (pass more than the BLOCK time of blocking reads); `wait_s` is how long a caller
    queues for a free connection before it gets a ConnectionError. Close with `aclose(close_connection_pool=True)`.
    Raises Unusable for a URL, or certificates it names, that cannot be used.
    """
    address = _address(url)
    if address.nodes:
        most = max_connections + _OF_A_CELL * cells.count  # of each node, and one may have all cells
        topology = Topology(address, most=most, timeout_s=timeout_s, wait_s=wait_s)
        return _with_raw_entries(ClusterRedis(topology, Keys(prefix, cells)))
    place: Place = Place(address) if beside is None else beside.connection_pool.place  # type: ignore[attr-defined]
    pool = open_pool(address, place, most=max_connections, timeout_s=timeout_s, wait_s=wait_s)
    return _with_raw_entries(ArqRedis(pool, Keys(prefix, cells)))


def _address(url: str) -> Address:
    try:
        return parse(url)
    except ValueError as error:
        raise Unusable(f"REDIS_URL cannot be used. {error}") from None


def _with_raw_entries(redis: ArqRedis) -> ArqRedis:
    for command in ("XRANGE", "XREVRANGE"):  # entries stay as they came: to make dicts of them took as long as the rest
        del redis.response_callbacks[command]
    return redis


async def cells_of(url: str, prefix: str) -> Cells:
    """How the keys of an installation lie: in one cell on one node. On a cluster, in as many as it was begun with; the first
    process says how many. Raises Unusable; RedisError, OSError on a cluster that does not answer."""
    if not _address(url).nodes:
        return ONE
    cells = Cells(CELLS)
    redis = connect(url, prefix=prefix, max_connections=1, cells=cells)
    try:
        await redis.set(redis.key.number_of_cells, CELLS, nx=True)
        return Cells(int(await redis.get(redis.key.number_of_cells) or CELLS))
    finally:
        await redis.aclose(close_connection_pool=True)
