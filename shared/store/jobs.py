"""A job: its payload, its lease, what the doorbell says of it; and arq's client.

Hidden here: that jobs are JSON (arq's default is pickle, which would run whatever can be written into Redis), laid out as arq
lays a job out, with whose it is beside that. Of arq nothing else is used but its worker (worker/arq_worker.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from arq.connections import ArqRedis as _ArqRedis
from redis.asyncio import ConnectionPool

from shared.lib import json
from shared.store.cluster.pipelines import CellPipeline
from shared.store.keys import Keys, Lane


def serialize_job(job: dict[str, Any]) -> bytes:
    return json.dumps(job)


def deserialize_job(payload: bytes) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(payload)
    return job


_SAID = {"line:": Lane.LINE, "background:": Lane.BACKGROUND}
"""What stands before an id on the doorbell, where the id does not say it: a worker starts it only where such may run."""
_SAYS = {lane: said for said, lane in _SAID.items()}
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
    return json.dumps({"t": None, "f": function, "a": (job_id,), "k": {}, "et": at_ms, "tenant": tenant})


def unpack_job(payload: bytes) -> Called | None:
    """None for a payload that is none of ours. Versions before this one did not say whose a job is."""
    try:
        job = json.loads(payload)
        function, arguments, at_ms, tenant = job["f"], job["a"], job["et"], job.get("tenant", UNKNOWN)
    except (ValueError, TypeError, LookupError):
        return None
    good = isinstance(function, str) and isinstance(arguments, list) and isinstance(at_ms, int)
    return Called(function, arguments, at_ms, tenant) if good and isinstance(tenant, str) else None


@dataclass(frozen=True, slots=True)
class Lease:
    """What a worker takes and renews: its name, for how long, and when that ends by Redis's clock."""

    holder: str
    ms: int
    end_ms: int


class Job(NamedTuple):
    """One that was taken: its lease is the taker's."""

    id: str
    lane: Lane
    called: Called | None
    """None for a payload that is none of ours."""
    begun: bool
    """Whether another worker had it before."""
    tenant: str = UNKNOWN


def plain_lane(job_id: str) -> Lane:
    """The lane of what was rung for without a word about it."""
    return Lane.BATCH if job_id.startswith(_BATCH) else Lane.GENERATION


def heard(payload: str) -> tuple[str, Lane]:
    """The id that a message of the doorbell is about, and its lane."""
    for said, lane in _SAID.items():
        if payload.startswith(said):
            return payload.removeprefix(said), lane
    return payload, plain_lane(payload)


def ringing(doorbell: str, job_id: str, lane: Lane) -> tuple[Any, ...]:
    """The command that wakes the workers for this job."""
    return b"PUBLISH", doorbell, f"{_SAYS.get(lane, '')}{job_id}"


def queue(pipe: Any, *commands: tuple[Any, ...]) -> None:
    """Adds commands, as their words, to a pipeline that watches nothing, or is in MULTI. Nothing is made of the replies to
    those whose name is bytes. Redis-py's own methods make five function calls for each."""
    pipe.queued += [(words, {}) for words in commands]


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
