"""What `streamspool doctor` looks at: this machine, the database, the API, the providers' keys.

Hidden here: how each thing is found out. Only what would stop Streamspool from working is a failure, and each failure
says what to do. Keys are masked to their last four characters.
"""

from __future__ import annotations

import platform
import re
import socket
from typing import Any, NamedTuple

from shared.cli.client import Client
from shared.cli.embedded import MINIMUM_VERSION, CannotStart, find_binary
from shared.cli.local_model import find_model
from shared.config.environ import FILE, SettingsInvalid, environment
from shared.config.providers import NAME
from shared.config.redis_url import parse, without_password
from shared.config.settings import Settings
from shared.errors import StreamspoolError, Unusable
from shared.store.contact import tls_mismatch
from shared.store.outage import reason, why_hopeless
from shared.store.redis import RedisError, connect

_PROVIDER_KEY = re.compile(r"\w+_API_KEY|HF_TOKEN")
_SHOWN_OF_A_KEY = 4


class Finding(NamedTuple):
    """One line of the report."""

    ok: bool
    what: str
    found: str


async def examine(settings: Settings, client: Client) -> list[Finding]:
    """Everything there is to say, in the order of the start."""
    database = await _database(settings) if settings.redis_url else [_binary()]
    return [
        Finding(True, "Python", platform.python_version()),
        *database,
        *await _api(settings, client),
        _local_model(settings),
        _providers(),
    ]


async def _database(settings: Settings) -> list[Finding]:
    assert settings.redis_url is not None
    url = settings.redis_url.get_secret_value()
    where = without_password(url)
    try:
        redis = connect(url, max_connections=1)
        try:
            server: dict[str, Any] = await redis.info("server")
            memory: dict[str, Any] = await redis.info("memory")
            persistence: dict[str, Any] = await redis.info("persistence")
        finally:
            await redis.aclose(close_connection_pool=True)
    except Unusable as error:
        return [Finding(False, "Redis", f"{where}: {error.message}")]
    except (RedisError, OSError) as error:
        if why := why_hopeless(error) or await tls_mismatch(parse(url)):
            return [Finding(False, "Redis", f"{where} {why}. Correct REDIS_URL.")]
        return [
            Finding(
                False, "Redis", f"{where}: {reason(error) or type(error).__name__}. Start it, or correct REDIS_URL."
            )
        ]
    version = str(server.get("valkey_version") or server.get("redis_version"))
    enough = tuple(int(part) for part in version.split(".")[:2]) >= MINIMUM_VERSION
    policy = str(memory.get("maxmemory_policy"))
    return [
        Finding(enough, "Redis", f"{where}, version {version}" + ("" if enough else ": 6.2 or newer is needed")),
        Finding(
            policy == "noeviction",
            "Redis eviction",
            policy if policy == "noeviction" else f"{policy} may drop streams. CONFIG SET maxmemory-policy noeviction",
        ),
        Finding(
            True,
            "Redis persistence",
            "append-only file"
            if persistence.get("aof_enabled")
            else "no append-only file: answers are lost when Redis restarts (CONFIG SET appendonly yes)",
        ),
    ]


def _binary() -> Finding:
    try:
        return Finding(True, "embedded Valkey", str(find_binary()))
    except CannotStart as error:
        return Finding(False, "embedded Valkey", error.message)


async def _api(settings: Settings, client: Client) -> list[Finding]:
    try:
        readiness = await client.ready()
    except StreamspoolError as error:
        if error.code != "unreachable":
            return [Finding(False, "API", f"{error.message} Choose another port with PORT.")]
        return [_port(settings)]
    checks = readiness.get("checks") or {}
    ready = readiness.get("status") == "ok"
    found = ", ".join(f"{name}: {result}" for name, result in checks.items())
    advice = "" if ready else ". Workers: start `streamspool worker` with the API's REDIS_URL"
    findings = [Finding(ready, f"API {client.base_url}", found + advice)]
    try:
        listed = (await client.models())["data"]
        owners = sorted({str(model["owned_by"]) for model in listed})
        findings.append(Finding(True, "models", f"{len(listed)} from {', '.join(owners)}"))
    except StreamspoolError as error:
        findings.append(Finding(False, "models", f"{error.message} (STREAMSPOOL_API_KEY is the key used here)"))
    return findings


def _port(settings: Settings) -> Finding:
    where = f"{settings.host}:{settings.port}"
    try:
        with socket.create_server((settings.host, settings.port)):
            return Finding(True, "API", f"not running; port {where} is free for `streamspool up`")
    except OSError as error:
        return Finding(False, "API", f"{where}: {error.strerror}. Choose another with HOST and PORT.")


def _local_model(settings: Settings) -> Finding:
    try:
        find_model()
    except CannotStart as error:
        return Finding(not settings.local_model, "local model", error.message)
    switch = "on" if settings.local_model else "off unless asked for: `streamspool up --local`"
    return Finding(True, "local model", f"{NAME}, {switch}")


def _providers() -> Finding:
    """Which keys this shell would hand to a worker."""
    variables = environment()
    names = sorted({name.removesuffix(FILE) for name in variables})
    try:
        keys = {
            name: f"…{value[-_SHOWN_OF_A_KEY:]}" if len(value) > 4 * _SHOWN_OF_A_KEY else "set"
            for name in names
            if _PROVIDER_KEY.fullmatch(name) and not name.startswith("STREAMSPOOL_") and (value := variables.get(name))
        }
    except SettingsInvalid as error:
        return Finding(False, "provider keys", str(error))
    found = ", ".join(f"{name} {masked}" for name, masked in keys.items())
    return Finding(True, "provider keys", found or "none; the fake/… models need none")
