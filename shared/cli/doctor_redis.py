"""What the doctor finds at Redis or Valkey: all that a start would find out, and what only shows later.

Hidden here: what a server tells about itself, and which of it is a risk; and that there may be two.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from shared.cli.doctor_rights import Part, examine_contact, examine_rights
from shared.cli.embedded import MINIMUM_VERSION
from shared.cli.findings import Finding
from shared.config.redis_url import parse, without_password
from shared.config.settings import Settings
from shared.errors import Unusable
from shared.store.cluster.cells import Cells
from shared.store.contact import tls_mismatch
from shared.store.outage import reason, why_hopeless
from shared.store.redis import CELLS, QUEUE_URL, ArqRedis, NoPermissionError, RedisError, connect

_FULL = 0.95
_SKEW_S = 5.0
"""Clocks further apart than this make batches end too early or too late, and times in lists wrong."""


async def examine_redis(settings: Settings) -> list[Finding]:
    """Asks the server that `settings.redis_url` names, and that of the queue, if it is another one."""
    assert settings.redis_url is not None
    url = settings.redis_url.get_secret_value()
    if settings.control_url is None:
        return await _examine(url, settings, Part())
    found = await _examine(url, settings, Part(control=False))
    queue = await _examine(settings.control_url, settings, Part(logs=False))
    return [*found, *(_of_queue(one) for one in queue)]


def _of_queue(one: Finding) -> Finding:
    what = one.what.replace("Redis", "queue") if "Redis" in one.what else f"queue {one.what}"
    return one._replace(what=what, found=one.found.replace("REDIS_URL", QUEUE_URL))


async def _examine(url: str, settings: Settings, part: Part) -> list[Finding]:
    where = without_password(url)
    try:
        async with _connected(url, settings.prefix, part) as redis:
            if found := await examine_contact(redis, url):
                return found
            found = [*await _server(redis, url, where), *await examine_rights(redis, url, part), await _clock(redis)]
    except Unusable as error:
        return [Finding(False, "Redis", f"{where}: {error.message}")]
    except (RedisError, OSError) as error:
        if why := why_hopeless(error) or await tls_mismatch(parse(url)):
            return [Finding(False, "Redis", f"{where} {why}. Correct REDIS_URL.")]
        text = reason(error) or type(error).__name__
        return [Finding(False, "Redis", f"{where}: {text}. Start it, or correct REDIS_URL.")]
    return found


@asynccontextmanager
async def _connected(url: str, prefix: str, part: Part) -> AsyncIterator[ArqRedis]:
    """With one connection, so that WATCH and MULTI are told to the same."""
    cells = Cells(CELLS if part.logs and parse(url).nodes else 1, apart=part != Part())
    redis = connect(url, prefix=prefix, cells=cells, max_connections=1)
    try:
        yield redis
    finally:
        await redis.aclose(close_connection_pool=True)


async def _server(redis: ArqRedis, url: str, where: str) -> list[Finding]:
    try:
        about: dict[str, Any] = await redis.info()
    except NoPermissionError:
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
