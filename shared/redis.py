"""Connections to Redis or Valkey: made here, with one set of time-outs, from one URL.

Hidden here: how a URL becomes a pool (redis://, rediss:// with host name check, unix://), that every pool is bounded
and waits instead of growing, that a half-open server is noticed, and that job payloads are JSON (arq's default is
pickle, which would run whatever somebody can write into Redis).

A command whose connection broke is sent once more. That is safe for everything we send: explicit stream ids, job ids
and sets make each repetition a no-op (PROTOCOL.md, "Repetition").
"""

from __future__ import annotations

import json
from typing import Any

from arq.connections import ArqRedis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    WatchError,
)

from shared import keys

__all__ = [
    "UNREACHABLE",
    "ArqRedis",
    "RedisError",
    "ResponseError",
    "WatchError",
    "connect",
    "deserialize_job",
    "serialize_job",
    "without_password",
]

UNREACHABLE = (ConnectionError, TimeoutError, BusyLoadingError, ReadOnlyError, OSError)
"""What a server that is away, loading, failing over or half-open looks like; worth another try later."""

CONNECT_TIMEOUT_S = 2.0


def serialize_job(job: dict[str, Any]) -> bytes:
    return json.dumps(job, separators=(",", ":")).encode()


def deserialize_job(payload: bytes) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(payload)
    return job


def connect(url: str, *, max_connections: int, timeout_s: float = 5.0, wait_s: float = 2.0) -> ArqRedis:
    """A client over its own bounded pool; nothing is sent before the first command.

    `timeout_s` bounds each answer (pass more than the BLOCK time of blocking reads); `wait_s` is how long a caller
    queues for a free connection before it gets a ConnectionError. Close with `aclose(close_connection_pool=True)`.
    """
    options: dict[str, Any] = {}
    if url.startswith("rediss://"):
        options["ssl_check_hostname"] = True
    if not url.startswith("unix://"):
        options["socket_keepalive"] = True
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=wait_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
        **options,
    )
    return ArqRedis(
        pool,
        job_serializer=serialize_job,
        job_deserializer=deserialize_job,
        default_queue_name=keys.QUEUE,
    )


def without_password(url: str) -> str:
    """The URL for people to read: user info and query left out."""
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.rpartition("@")[2].partition("?")[0]
