"""What `streamspool doctor` looks at: this machine, the settings, Redis, files, the API and the way to it, the providers.

Hidden here: in which order, and how each thing is found out that has no file of its own. Only what would stop Streamspool
from working is a failure, and each failure says what to do. Keys are never shown.
"""

from __future__ import annotations

import os
import platform
import secrets
import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

from shared.cli.client import Client
from shared.cli.doctor_front import examine_front
from shared.cli.doctor_redis import examine_redis
from shared.cli.embedded import CannotStart, find_binary
from shared.cli.findings import Finding, ask_worker
from shared.cli.local_model import find_model
from shared.config.notices import notices
from shared.config.providers import NAME
from shared.config.settings import Settings
from shared.errors import FileStorageFailed, StreamspoolError


async def examine(settings: Settings, client: Client, *, named: bool = False) -> list[Finding]:
    """Everything there is to say, in the order of the start. With `named`, the operator gave the client's address: it is
    also looked at what stands in front of the API there."""
    database = await examine_redis(settings) if settings.redis_url else [_binary()]
    api = await _api(settings, client, named=named)
    if named and api[0].ok:
        api += await examine_front(settings, client)
    return [
        Finding(True, "Python", platform.python_version()),
        *(Finding(None, "settings", line) for line in notices(settings)),
        *database,
        await _files(settings),
        *api,
        _local_model(settings),
        *await _providers(),
    ]


def _binary() -> Finding:
    try:
        return Finding(True, "embedded Valkey", str(find_binary()))
    except CannotStart as error:
        return Finding(False, "embedded Valkey", error.message)


async def _files(settings: Settings) -> Finding:
    """Writes, reads and removes a small object; of a directory that is not there yet only whether it can be made."""
    where = settings.files_location
    parts = urlsplit(where)
    shown = unquote(parts.path) if parts.scheme == "file" else f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
    if parts.scheme == "file" and not (directory := Path(unquote(parts.path))).exists():
        nearest = next(above for above in directory.parents if above.exists())
        able = os.access(nearest, os.W_OK | os.X_OK)
        return Finding(
            able, "files", f"{shown} " + ("is made with the first file" if able else f"cannot be made in {nearest}")
        )
    from shared.features.storage import Missing, Storage  # not quick, and most commands never need it

    name, content = f"doctor/{secrets.token_hex(8)}", b"doctor"
    try:
        storage = Storage(where)
        await storage.put(name, content)
        read = b"".join([piece async for piece in storage.read(name)])
        await storage.delete(name)
    except Missing:
        return Finding(False, "files", f"{shown}: what is written there is not there afterwards")
    except FileStorageFailed as error:
        return Finding(False, "files", f"{shown}: {error.message} ({error.why})")
    return Finding(read == content, "files", f"{shown}, can be written and read")


async def _api(settings: Settings, client: Client, *, named: bool = False) -> list[Finding]:
    try:
        readiness = await client.ready()
    except StreamspoolError as error:
        if named or error.code != "unreachable":
            advice = "" if named else " Choose another port with PORT."
            return [Finding(False, "API", f"{error.message}{advice}")]
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
        if settings.local_model:
            return Finding(False, "local model", error.message)
        return Finding(True, "local model", f"not asked for. {error.message}")
    switch = "on" if settings.local_model else "off unless asked for: `streamspool up --local`"
    return Finding(True, "local model", f"{NAME}, {switch}")


async def _providers() -> list[Finding]:
    """Which ones a worker of this shell and directory would ask, and how they answer."""
    report = await ask_worker(ask=True)
    if report["error"]:
        return [Finding(False, "providers", report["error"].replace("\n", "; "))]
    findings = [Finding(None, "providers", line) for line in report["notices"]]
    for row in report["providers"]:
        key = f" (key {row['key']})" if row["key"] else ""
        proxy = f" through {row['proxy']}" if row["proxy"] else ""
        findings.append(Finding(row["ok"], f"provider {row['name']}", f"{row['url']}{key}{proxy} {row['found']}"))
    return findings or [Finding(True, "providers", "none; the fake/… models need none")]
