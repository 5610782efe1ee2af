"""A job: its payload, its lease, what the doorbell says of it; and arq's client.

Hidden here: that jobs are JSON (arq's default is pickle, which would run whatever can be written into Redis), and how arq
lays a job out. Of arq nothing else is used but its worker (worker/arq_worker.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from arq.connections import ArqRedis as _ArqRedis
from arq.jobs import DeserializationError, deserialize_job_raw
from arq.jobs import serialize_job as arq_serialize
from redis.asyncio import ConnectionPool

from shared.store.cluster.pipelines import CellPipeline
from shared.store.keys import Keys, Lane


def serialize_job(job: dict[str, Any]) -> bytes:
    return json.dumps(job, separators=(",", ":")).encode()


def deserialize_job(payload: bytes) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(payload)
    return job


_SAID = {"line:": Lane.LINE, "background:": Lane.BACKGROUND}
"""What stands before an id on the doorbell, where the id does not say it: a worker starts it only where such may run."""
_BATCH = "batch_"
UNKNOWN = ""
"""The tenant of a job that does not say whose it is."""


class Called(NamedTuple):
    """What a job's payload says: a function's name and its arguments, when it was enqueued, in ms, and whose it is."""

    function: str
    arguments: Sequence[Any]
    at_ms: int
    tenant: str


def pack_job(function: str, job_id: str, at_ms: int, tenant: str) -> bytes:
    """The payload of a job whose function is called with its id."""

    def serialize(job: dict[str, Any]) -> bytes:
        return serialize_job({**job, "tenant": tenant})

    payload: bytes = arq_serialize(function, (job_id,), {}, None, at_ms, serializer=serialize)
    return payload


def unpack_job(payload: bytes) -> Called | None:
    """None for a payload that is none of ours. Versions before this one did not say whose a job is."""
    tenant: Any = UNKNOWN

    def deserialize(raw: bytes) -> dict[str, Any]:
        nonlocal tenant
        job = deserialize_job(raw)
        tenant = job.get("tenant", UNKNOWN)
        return job

    try:
        function, arguments, _, _, at_ms = deserialize_job_raw(payload, deserializer=deserialize)
    except DeserializationError:
        return None
    good = isinstance(function, str) and isinstance(arguments, list) and isinstance(at_ms, int)
    return Called(function, arguments, at_ms, tenant) if good and isinstance(tenant, str) else None


@dataclass(frozen=True, slots=True)
class Lease:
    """What a worker takes and renews: its name, for how long, and when that ends by Redis's clock."""

    holder: str
    ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class Job:
    """One that was taken: its lease is the taker's."""

    id: str
    lane: Lane
    payload: bytes
    begun: bool
    """Whether another worker had it before."""
    tenant: str = UNKNOWN

    def called(self) -> Called | None:
        """None for a payload that is none of ours."""
        return unpack_job(self.payload)


def plain_lane(job_id: str) -> Lane:
    """The lane of what was rung for without a word about it."""
    return Lane.BATCH if job_id.startswith(_BATCH) else Lane.GENERATION


def heard(payload: str) -> tuple[str, Lane]:
    """The id that a message of the doorbell is about, and its lane."""
    for said, lane in _SAID.items():
        if payload.startswith(said):
            return payload.removeprefix(said), lane
    return payload, plain_lane(payload)


def ring(pipe: Any, doorbell: str, job_id: str, lane: Lane) -> None:
    """Wakes the workers for this job."""
    before = next((said for said, one in _SAID.items() if one is lane), "")
    pipe.publish(doorbell, f"{before}{job_id}")


class ArqRedis(_ArqRedis):
    """arq's client, whose jobs are JSON, and which knows as `key` what the keys of this installation are called."""

    def __init__(self, pool: ConnectionPool, keys: Keys) -> None:
        super().__init__(pool, job_serializer=serialize_job, job_deserializer=deserialize_job)
        self.key = keys

    def at(self, cell: int) -> ArqRedis:
        """A client whose own connections lead to where that cell is: on one server, this one."""
        return self

    async def spread(self) -> list[int]:
        """A cell of each server that has any, as far as is known: on one server, the first."""
        return [0]

    @property
    def lasting(self) -> Any:
        """Where to take a connection from that is kept: the pool, or what shares those of a cluster's nodes."""
        return self.connection_pool

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> CellPipeline:
        apart = self.key.cells.apart
        return CellPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint, apart=apart)
