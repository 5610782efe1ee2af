"""Which node of a cluster has which slot, and connections to each.

Hidden here: the map of slots, which is read from any node that answers, again after an error that tells that it is old, and now
and then; that one reads it at a time; what the nodes' redirections mean (valkey.io/topics/cluster-spec, "Redirection and
resharding"); and that redis-py's own cluster client is not used (it loses connections, and sends ASKING over another one than
the command).

    MOVED     the slot is at another node: the map has it from now on, and the command is sent there
    ASK       the slot is on its way, and what is asked for is there already, or is not made yet: ASKING, and the command, there
    TRYAGAIN  some of the keys are at either end: a little later
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError

from shared.config.redis_url import Address
from shared.lib.telemetry import get_logger
from shared.store.cluster.routing import over
from shared.store.cluster.slots import SLOTS, slot_of
from shared.store.commands import MOVING_S, converse, pack
from shared.store.connections import Place, Pool, open_pool
from shared.store.outage import Redirected, WrongServer, cause

logger = get_logger(__name__)

ASKING, _SLOTS = pack(b"ASKING"), pack(b"CLUSTER", b"SLOTS")
_READ_S = 30.0
_APART_S = 0.1
"""Between two readings of the map, however many errors want one."""
_ANSWER_S = 1.0
_PATIENCE_S = 1.5
"""How long a command is tried elsewhere: a caller of the broker is told within 2 s."""
_NAMELESS = "?"
"""In the place of a node's name, where nodes are called by names and this one was given none."""

Name = tuple[str, int]
"""A node's host and port."""


class NodePlace(Place):
    """Where the clients of a process for one node are connected to."""

    def __init__(self, address: Address, topology: Topology) -> None:
        super().__init__(replace(address, tls=None))
        self._name, self._topology = (address.host, address.port), topology
        self.tls = topology.tls

    def redirected(self, told: Redirected) -> None:
        """A command was redirected by this node."""
        self._topology.learn(told, self._name)


class Topology:
    """The nodes of one cluster, and a pool of connections to each: for one client."""

    def __init__(self, address: Address, *, most: int, timeout_s: float, wait_s: float) -> None:
        self._address = address
        self.tls = Place(address).tls
        self._options: dict[str, Any] = {"most": most, "timeout_s": timeout_s, "wait_s": wait_s}
        self._pools: dict[Name, Pool] = {}
        self._owners: list[Name | None] = [None] * SLOTS
        self._read_at = float("-inf")
        self._is_old = True
        self._reading: asyncio.Task[None] | None = None

    # ---- who has what

    def place(self, name: bytes) -> int:
        """The slot of a key."""
        return slot_of(name)

    async def pool_of(self, slot: int) -> Pool:
        """Of the node that has the slot, as far as is known. Raises ConnectionError where nobody knows."""
        if self._is_old or time.monotonic() - self._read_at > _READ_S:
            await self._read_once()
        owner = self._owners[slot]
        if owner is None:
            self._is_old = True
            raise ConnectionError("No node of the cluster has this slot.")
        return self.pool(owner)

    def pool(self, name: Name) -> Pool:
        found = self._pools.get(name)
        if found is None:
            address = replace(self._address, nodes=(), host=name[0], port=name[1])
            found = self._pools[name] = open_pool(address, NodePlace(address, self), **self._options)
        return found

    def learn(self, told: Redirected, by: Name) -> None:
        """What a node said of a slot that it has not got."""
        if told.word == "MOVED":
            self._owners[told.slot] = self.named(told, by)
            self._is_old = True

    def named(self, told: Redirected, by: Name) -> Name:
        """The node that was named by this one. Without a host, and without a name that it was to have, it is one that is known
        by its port, or on the same host."""
        host, _, port = told.to.rpartition(":")
        if host == _NAMELESS:
            host = next((known for known, at in filter(None, self._owners) if at == int(port)), "")
        return host or by[0], int(port)

    def doubt(self, slot: int = 0) -> None:
        """A node did not answer, or said that it is none: another one may have its slots."""
        self._is_old = True

    async def _read_once(self) -> None:
        """One reads, and the others wait for that."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="slots")
        try:
            await asyncio.shield(self._reading)
        except (RedisError, OSError):
            if not any(self._owners):
                raise

    async def _read(self) -> None:
        await asyncio.sleep(max(0.0, self._read_at + _APART_S - time.monotonic()))
        failure: Exception = ConnectionError("No node of the cluster answers.")
        for name in self._known():
            try:
                self._take(await self._ask(name), name)
                return
            except (RedisError, OSError) as error:
                failure = error
        self._read_at = time.monotonic()
        logger.warning("no node of the cluster answers", **cause(failure))
        raise failure

    def _known(self) -> Iterable[Name]:
        """Nodes to be asked, each once: those that have slots, in any order, and those of the URL."""
        known = [*{owner for owner in self._owners if owner is not None}]
        random.shuffle(known)
        return dict.fromkeys([*known, *self._address.nodes])

    async def _ask(self, name: Name) -> Any:
        connection = self.pool(name).make_connection()  # type: ignore[no-untyped-call]
        connection.socket_timeout = connection.socket_connect_timeout = _ANSWER_S
        try:
            await connection.connect()
            (told,) = await converse(connection, _SLOTS, 1)
        finally:
            await connection.disconnect(nowait=True)
        if isinstance(told, ResponseError):
            raise told
        return told

    def _take(self, told: Any, by: Name) -> None:
        owners: list[Name | None] = [None] * SLOTS
        for first, last, master, *_ in told:
            owners[first : last + 1] = [(_host(master) or by[0], master[1])] * (last + 1 - first)
        self._owners, self._is_old, self._read_at = owners, False, time.monotonic()

    # ---- what is asked

    async def ask(self, slot: int, packed: bytes, replies: int) -> list[Any]:
        """Sends a unit, a command or all of a transaction, to the node that has the slot, wherever that goes meanwhile. Errors
        other than those that say so are values among the replies. Raises ConnectionError, TimeoutError, WrongServer."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            name: Name | None = None
            try:
                pool = await self.pool_of(slot)
                name = pool.connection_kwargs["host"], pool.connection_kwargs["port"]
                return await over(pool, packed, replies)
            except Redirected as told:
                if told.word == "ASK" and name is not None:
                    try:
                        return (await over(self.pool(self.named(told, name)), ASKING + packed, replies + 1))[1:]
                    except Redirected as again:
                        told = again
                if time.monotonic() > until:
                    raise
                if told.word != "MOVED":
                    await asyncio.sleep(MOVING_S)
            except (ConnectionError, TimeoutError, WrongServer):
                self.doubt()
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(_APART_S)

    async def ask_each(self, slot: int, packed: Sequence[bytes]) -> list[Any]:
        """The same for commands that need not be done together."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                replies = await over(await self.pool_of(slot), b"".join(packed), len(packed), redirects=True)
                break
            except (ConnectionError, TimeoutError, WrongServer):
                self.doubt()
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(_APART_S)
        for place, reply in enumerate(replies):
            if isinstance(reply, Redirected):
                (replies[place],) = await self.ask(slot, packed[place], 1)
        return replies

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        for pool in self._pools.values():
            await pool.disconnect()


def _host(node: Sequence[Any]) -> str:
    """What a node is to be called, of `[HOST, PORT, ID, [NAME, VALUE, …]]` (valkey.io/commands/cluster-slots). Empty where that
    is what the node is called that was asked: null, or an address it has not learned. Where it prefers to be called by a name
    and has none, the address beside that."""
    host: bytes | None = node[0]
    if host == _NAMELESS.encode():
        beside = node[3]
        host = dict(zip(beside[::2], beside[1::2], strict=True)).get(b"ip")
    return (host or b"").decode()
