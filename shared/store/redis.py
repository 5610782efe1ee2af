"""Clients of Redis or Valkey: made here, with one set of time-outs, from one URL.

Hidden here: how a URL (redis_url.py takes it apart) becomes a client over a pool (connections.py), or two become one over
several (cluster/), and that every pool is bounded and waits instead of growing.

A command whose connection broke, or led to the wrong server (outage.py has the list of what says so), is sent once more.
That is safe for everything we send: explicit stream ids, job ids and sets make each repetition a no-op (PROTOCOL.md,
"Repetition"). A connection that led to the wrong server is closed, and so are the idle ones of all clients of this process
for that server; those in use are closed when they come back, and send nothing more before that.
"""

from __future__ import annotations

from typing import Any

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
from shared.store.cluster.cells import CONTROL, Cells
from shared.store.cluster.client import RoutedRedis
from shared.store.cluster.routing import OneServer, Routing, TwoServers
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
_KEPT = 4
"""Connections to a node that are kept: its appenders', its confirmers', its followers' two. And where the bell is refused, one
for each cell."""


QUEUE_URL = "STREAMSPOOL_QUEUE_URL"
APART, MOVING = "apart", "moving"
"""Behind the number of cells: the control is on another server than they are; it is being moved there (cluster/moving.py)."""


def connect(
    url: str,
    *,
    prefix: str = PREFIX,
    max_connections: int,
    timeout_s: float = 5.0,
    wait_s: float = 2.0,
    beside: ArqRedis | None = None,
    cells: Cells = ONE,
    queue_url: str | None = None,
) -> ArqRedis:
    """A client over its own bounded pool; nothing is sent before the first command.

    All our keys begin with `prefix`: pass the setting wherever there is one; `cells` say how they lie, and `queue_url` is the
    server of the control's, if that is another one. `beside` is another client of this process for the same servers: what one
    learns about one of them, the other one knows.
    `timeout_s` bounds each answer (pass more than the BLOCK time of blocking reads); `wait_s` is how long a caller
    queues for a free connection before it gets a ConnectionError. Close with `aclose(close_connection_pool=True)`.
    Raises Unusable for a URL, or certificates it names, that cannot be used.
    """
    address, keys = _address(url), Keys(prefix, cells)
    if queue_url is None and not address.nodes:
        place: Place = Place(address) if beside is None else beside.connection_pool.place  # type: ignore[attr-defined]
        pool = open_pool(address, place, most=max_connections, timeout_s=timeout_s, wait_s=wait_s)
        return _with_raw_entries(ArqRedis(pool, keys))
    options = {"most": max_connections + _KEPT + cells.count, "timeout_s": timeout_s, "wait_s": wait_s}
    before = beside.routing if isinstance(beside, RoutedRedis) else None
    apart = before if isinstance(before, TwoServers) else None
    routing = _routing(address, before if apart is None else apart.logs, **options)
    if queue_url is not None:
        control = _routing(_address(queue_url, QUEUE_URL), apart and apart.control, **options)
        routing = TwoServers(routing, control, f"{prefix}{CONTROL}")
    return _with_raw_entries(RoutedRedis(routing, keys))


def _routing(address: Address, beside: Routing | None, **options: Any) -> Routing:
    if address.nodes:  # of each node so many connections, and one may have all cells
        return Topology(address, **options)
    place = beside.pool.place if isinstance(beside, OneServer) else Place(address)
    return OneServer(open_pool(address, place, **options))


def _address(url: str, setting: str = "REDIS_URL") -> Address:
    try:
        return parse(url)
    except ValueError as error:
        raise Unusable(f"{setting} cannot be used. {error}") from None


def _with_raw_entries(redis: ArqRedis) -> ArqRedis:
    for command in ("XRANGE", "XREVRANGE"):  # entries stay as they came: to make dicts of them took as long as the rest
        del redis.response_callbacks[command]
    return redis


async def cells_of(url: str, prefix: str, queue_url: str | None = None) -> Cells:
    """How the keys of an installation lie: in one cell on one node; on a cluster, in as many as it was begun with, as the first
    process says. With a `queue_url` the control is apart, for good. Raises Unusable where that is not as it was begun;
    RedisError, OSError where a cluster, or the logs' server of two, does not answer."""
    if _address(url).nodes or queue_url is not None:
        return await check_cells(url, prefix, queue_url)
    return ONE


async def check_cells(url: str, prefix: str, queue_url: str | None) -> Cells:
    """The same, also of one node, which has nothing to say of that but where it is not as the URLs say."""
    nodes, apart = _address(url).nodes, queue_url is not None
    cells = Cells(CELLS if nodes else 1, apart=apart)
    redis = connect(url, prefix=prefix, max_connections=1, cells=Cells(cells.count, apart=True))
    try:
        name = redis.key.number_of_cells
        known = await redis.get(name)
        if known is None and apart and not nodes and await redis.exists(*_control_of(Keys(prefix))):
            raise Unusable(_JOINED)
        if known is None and (nodes or apart):
            await redis.set(name, f"{cells.count} {APART}" if apart else cells.count, nx=True)
            known = await redis.get(name)
    finally:
        await redis.aclose(close_connection_pool=True)
    count, _, how = (known or b"").decode().partition(" ")
    if how == MOVING:
        raise Unusable(_UNDER_WAY)
    if known is not None and (how == APART) != apart:
        raise Unusable(_JOINED if apart else _PARTED)
    return Cells(int(count or cells.count), apart=apart)


def _control_of(key: Keys) -> list[str]:
    """What an installation has on its server as soon as a worker or a client came, of what would be the other one's."""
    return [key.workers, key.events, key.keys, key.secret, key.limits, key.usage_tenants, key.batches_open]


_JOINED = (
    f"{QUEUE_URL}: the queue, keys, limits and usage of this installation are where its logs are. Leave it out, or move them: "
    "`streamspool move-queue`."
)
_UNDER_WAY = (
    "REDIS_URL: the queue, keys, limits and usage of this installation are being moved. `streamspool move-queue` goes on where "
    "it was; `streamspool move-queue --back` leaves them where they were."
)
_PARTED = (
    "REDIS_URL: this installation was begun with its queue, keys, limits and usage on another server. Name it: "
    f"{QUEUE_URL}."
)
