"""What the doctor finds at Redis or Valkey: all that a start would find out, and what only shows later.

Hidden here: how a user's rights are tried. Each command is given once, on keys of the doctor's own that are gone afterwards:
ACL DRYRUN would say it without a trace, but needs a right that no such user has.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from shared.cli.embedded import MINIMUM_VERSION
from shared.cli.findings import Finding
from shared.config.redis_url import parse, without_password
from shared.config.settings import Settings
from shared.errors import Unusable
from shared.store.contact import tls_mismatch
from shared.store.outage import is_passing, is_withheld, reason, why_hopeless
from shared.store.redis import QUEUE_URL, ArqRedis, NoPermissionError, RedisError, ResponseError, connect

_LIFE_MS = 60_000
_FULL = 0.95
_SKEW_S = 5.0
"""Clocks further apart than this make batches end too early or too late, and times in lists wrong."""


async def examine_redis(settings: Settings) -> list[Finding]:
    """Asks the server that `settings.redis_url` names, and that of the queue, if it is another one."""
    assert settings.redis_url is not None
    found = await _examine(settings.redis_url.get_secret_value(), settings)
    if settings.control_url is None:
        return found
    queue = await _examine(settings.control_url, settings)
    return [*found, *(_of_queue(one) for one in queue)]


def _of_queue(one: Finding) -> Finding:
    what = one.what.replace("Redis", "queue") if "Redis" in one.what else f"queue {one.what}"
    return one._replace(what=what, found=one.found.replace("REDIS_URL", QUEUE_URL))


async def _examine(url: str, settings: Settings) -> list[Finding]:
    where = without_password(url)
    try:
        async with _connected(url) as redis:
            found = [*await _server(redis, url, where), *await _rights(redis, settings.prefix), await _clock(redis)]
    except Unusable as error:
        return [Finding(False, "Redis", f"{where}: {error.message}")]
    except (RedisError, OSError) as error:
        if why := why_hopeless(error) or await tls_mismatch(parse(url)):
            return [Finding(False, "Redis", f"{where} {why}. Correct REDIS_URL.")]
        text = reason(error) or type(error).__name__
        return [Finding(False, "Redis", f"{where}: {text}. Start it, or correct REDIS_URL.")]
    return found


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[ArqRedis]:
    redis = connect(url, max_connections=1)  # one, so that WATCH and MULTI are told to the same
    try:
        yield redis
    finally:
        await redis.aclose(close_connection_pool=True)


async def _server(redis: ArqRedis, url: str, where: str) -> list[Finding]:
    try:
        about: dict[str, Any] = await redis.info()
    except NoPermissionError:
        await redis.ping()
        return [Finding(None, "Redis", f"{where} answers, and does not tell this user about itself: allow INFO")]
    version = str(about.get("valkey_version") or about.get("redis_version"))
    enough = tuple(int(part) for part in version.split(".")[:2]) >= MINIMUM_VERSION
    findings = [
        Finding(enough, "Redis", f"{where}, version {version}" + ("" if enough else ": 6.2 or newer is needed"))
    ]
    if about.get("cluster_enabled"):
        named = bool(parse(url).nodes)
        advice = "a cluster" if named else "a node of a cluster. Name the cluster: redis+cluster://HOST:PORT,HOST:PORT"
        findings.append(Finding(named, "Redis", f"{where} is {advice}"))
    if about.get("role") == "slave":
        findings.append(Finding(False, "Redis", f"{where} is a replica and takes no writes. Name its master"))
    return [*findings, _eviction(about), _memory(about), _persistence(about)]


def _eviction(about: dict[str, Any]) -> Finding:
    policy = str(about.get("maxmemory_policy"))
    kept = policy == "noeviction"
    advice = f"{policy} may drop streams. CONFIG SET maxmemory-policy noeviction"
    return Finding(kept, "Redis eviction", policy if kept else advice)


def _memory(about: dict[str, Any]) -> Finding:
    used, most = int(about.get("used_memory", 0)), int(about.get("maxmemory", 0))
    if not most:
        whole = int(about.get("total_system_memory", 0))
        of = f" of the machine's {_mb(whole)}" if whole else ""
        return Finding(
            None, "Redis memory", f"{_mb(used)}{of}, without a limit: full, the system ends it. CONFIG SET maxmemory"
        )
    text = f"{_mb(used)} of {_mb(most)}"
    if used < _FULL * most:
        return Finding(True, "Redis memory", text)
    return Finding(
        False, "Redis memory", f"{text}: full, requests get 503. Raise maxmemory, or lower STREAMSPOOL_RETENTION_S"
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _persistence(about: dict[str, Any]) -> Finding:
    what = "Redis persistence"
    broken = [name for name in ("rdb_last_bgsave_status", "aof_last_write_status") if about.get(name, "ok") != "ok"]
    if broken:
        return Finding(False, what, f"{', '.join(broken)}: it cannot write to its disk, and soon takes no writes")
    if about.get("aof_enabled"):
        return Finding(True, what, "append-only file")
    return Finding(None, what, "no append-only file: answers are lost when Redis restarts (CONFIG SET appendonly yes)")


async def _clock(redis: ArqRedis) -> Finding:
    before = time.time()
    try:
        seconds, micros = await redis.time()
    except NoPermissionError:
        return Finding(False, "clock", "this user may not ask Redis for the time: allow TIME")
    skew = (before + time.time()) / 2 - (seconds + micros / 1e6)
    text = f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} Redis's"
    if abs(skew) <= _SKEW_S:
        return Finding(True, "clock", text)
    return Finding(None, "clock", f"{text}: times in lists are wrong and batches end early or late. Set both by NTP")


# ---- rights


def _needed(key: str) -> Iterable[tuple[Any, ...]]:
    """Each command that is needed, once (PROTOCOL.md, "Commands"); `key` begins the names of the keys."""
    text, stream, ranks, table, names = (f"{key}:{kind}" for kind in ("string", "stream", "zset", "hash", "set"))
    yield from (("SET", text, "1", "PX", _LIFE_MS), ("GET", text), ("MGET", text), ("EXISTS", text), ("PTTL", text))
    yield from (("PEXPIRE", text, _LIFE_MS), ("EXPIRE", text, _LIFE_MS // 1000))
    yield from (("XADD", stream, "1-1", "f", "1"), ("XRANGE", stream, "-", "+"), ("XREVRANGE", stream, "+", "-"))
    yield from (("XLEN", stream), ("XREAD", "STREAMS", stream, "0"), ("PEXPIRE", stream, _LIFE_MS))
    yield from (("ZADD", ranks, 1, "m"), ("ZRANGE", ranks, 0, -1), ("ZREVRANGE", ranks, 0, -1), ("ZRANK", ranks, "m"))
    yield from (("ZREVRANK", ranks, "m"), ("ZSCORE", ranks, "m"), ("ZMSCORE", ranks, "m"), ("ZSCAN", ranks, 0))
    yield from (("ZRANGEBYSCORE", ranks, 0, 0), ("ZREMRANGEBYSCORE", ranks, 2, 3), ("ZREM", ranks, "m"))
    yield from (("HSET", table, "f", 1), ("HGET", table, "f"), ("HMGET", table, "f"), ("HGETALL", table))
    yield from (("HSETNX", table, "g", 1), ("HINCRBY", table, "f", 1), ("PEXPIRE", table, _LIFE_MS))
    yield from (("HEXISTS", table, "f"), ("HLEN", table), ("HDEL", table, "f"))
    yield from (("SADD", names, "m"), ("SMEMBERS", names), ("SREM", names, "m"))
    yield from (("INCRBY", text, 1), ("DECRBY", text, 1), ("TTL", text), ("COPY", text, f"{key}:copy"), ("PING",))
    yield from (("PUBLISH", key, "1"), ("DEL", text, f"{key}:copy", stream, ranks, table, names))
    yield from (("WATCH", text), ("UNWATCH",), ("MULTI",), ("EXEC",))


_WISHED: Mapping[str, Sequence[tuple[Any, ...]]] = {
    "what the server may forget is not known": (("INFO", "server"), ("WAIT", 0, 0), ("WAITAOF", 0, 0, 0)),
    "how it is set is not known": (("CONFIG", "GET", "save"),),
    "limits and budgets refuse every request, and a full server keeps answers from their end": (
        ("EVAL", "return 1", 0),
        ("EVALSHA", "0" * 40, 0),
    ),
    "news of logs cost more": (("CLIENT", "TRACKING", "OFF"),),
}
"""What it goes on without, and what is missing then."""


async def _rights(redis: ArqRedis, prefix: str) -> list[Finding]:
    denied: list[str] = []
    places = False
    for words in _needed(f"{prefix}:doctor:{{{secrets.token_hex(8)}}}"):  # one slot, where it is a cluster
        try:
            await redis.execute_command(*words)  # type: ignore[no-untyped-call]
        except NoPermissionError as error:
            said = str(error)
            places = places or "key" in said or "channel" in said
            denied.append(words[0])
        except ResponseError as error:
            if is_passing(error):
                return [Finding(False, "Redis writes", f"refused just now: {reason(error) or 'it is full'}")]
    if not await _may_subscribe(redis, prefix):
        denied.append("SUBSCRIBE")
    missed = {
        why: names
        for why, wished in _WISHED.items()
        if (names := [str(words[0]) for words in wished if not await _may(redis, words)])
    }
    findings = []
    if denied:
        where = f", on keys and channels `{prefix}:*`" if places else ""
        findings.append(
            Finding(False, "Redis rights", f"this user lacks {' '.join(denied)}. Allow them (ACL SETUSER){where}")
        )
    if missed:
        text = "; ".join(f"without {' '.join(names)} {why}" for why, names in missed.items())
        findings.append(Finding(None, "Redis rights", f"{text}. Allow them, if you can"))
    return findings or [Finding(True, "Redis rights", "all commands that are needed")]


async def _may(redis: ArqRedis, words: tuple[Any, ...]) -> bool:
    try:
        await redis.execute_command(*words)  # type: ignore[no-untyped-call]
    except ResponseError as error:
        older = words[0] == "WAITAOF" and not isinstance(error, NoPermissionError)  # a server that has no such thing
        return older or not is_withheld(error)
    return True


async def _may_subscribe(redis: ArqRedis, prefix: str) -> bool:
    channel = f"{prefix}:doctor"
    async with redis.pubsub() as subscription:
        try:
            await subscription.subscribe(channel)
            await subscription.get_message(timeout=1)
            with suppress(RedisError):
                await subscription.unsubscribe(channel)
        except NoPermissionError:
            return False
    return True
