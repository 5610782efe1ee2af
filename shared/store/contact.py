"""The first contact with the server, at the start: can this ever work, and what may be lost there?

Hidden here: how a server that is not there yet, which is waited for, is told from one that will never do: a wrong password,
a certificate that does not fit, TLS on one side only. The latter looks like a server that does not answer, or hangs up.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import TypedDict

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from shared.config.redis_url import Address, parse, without_password
from shared.config.settings import Settings
from shared.errors import Unusable
from shared.lib.telemetry import get_logger
from shared.store.cluster.cells import Cells
from shared.store.outage import Pauses, cause, is_withheld, log_redis_error, why_hopeless
from shared.store.redis import QUEUE_URL, ArqRedis, cells_of, check_cells, connect

logger = get_logger(__name__)

_PROBE_S = 1.0
_LONGEST_PAUSE_S = 3.0


async def check_servers(settings: Settings) -> None:
    """`check_server` of each that the settings name, of which `redis_url` must be there; and whether the installation was begun
    with as many as these."""
    assert settings.redis_url is not None
    url, queue_url = settings.redis_url.get_secret_value(), settings.control_url
    answered = await check_server(url)
    if queue_url is not None:
        try:
            await check_server(queue_url, setting=QUEUE_URL)
        except Unusable as refusal:
            raise Unusable(refusal.message.replace("REDIS_URL", QUEUE_URL)) from None
    if answered:
        with suppress(RedisError, OSError):
            await check_cells(url, settings.prefix, queue_url)


async def check_server(url: str, **about: str) -> bool:
    """Looks at the server once: logs what in its settings can lose or refuse streams, with what it is `about`. Returns whether
    it answered.

    A server that is away, loading, full or has no room on its disk is waited for where it is used, so nothing happens
    here but a line in the log that says why: containers start in any order. Raises Unusable where waiting cannot help.
    """
    redis = connect(url, max_connections=1)
    try:
        with suppress(NoPermissionError):  # it may not be asked even this, but by the right user
            await redis.ping()
        await _refuse_nodes(redis, url)
        await _warn_of_silence(redis, **about)
        await _warn_of_risks(redis, parse(url), **about)
        return True
    except (RedisError, OSError) as error:
        if why := why_hopeless(error) or await tls_mismatch(parse(url)):
            raise Unusable(
                f"REDIS_URL: {without_password(url)} {why if why.endswith(('.', '?')) else f'{why}.'}"
            ) from None
        logger.warning("waiting for redis", url=without_password(url), **about, **cause(error))
        return False
    finally:
        with suppress(RedisError, OSError):
            await redis.aclose(close_connection_pool=True)


async def _refuse_nodes(redis: ArqRedis, url: str) -> None:
    """One of a cluster has not got all keys."""
    with suppress(RedisError):
        if not parse(url).nodes and (await redis.info("cluster")).get("cluster_enabled"):
            raise Unusable(
                f"REDIS_URL: {without_password(url)} is a node of a cluster. Name the cluster: redis+cluster://HOST:PORT,HOST:PORT."
            )


class Layout(TypedDict):
    """What `connect` has to know of an installation."""

    prefix: str
    cells: Cells
    queue_url: str | None


async def wait_for_layout(settings: Settings) -> Layout:
    """Where the keys of this installation lie; where that has to be asked and the server is away, once it is back. Raises
    Unusable."""
    assert settings.redis_url is not None
    url, queue_url = settings.redis_url.get_secret_value(), settings.control_url
    pauses = Pauses(most_s=_LONGEST_PAUSE_S)
    while True:
        try:
            cells = await cells_of(url, settings.prefix, queue_url)
            return {"prefix": settings.prefix, "cells": cells, "queue_url": queue_url}
        except (RedisError, OSError) as error:
            log_redis_error("start", error)
            await asyncio.sleep(pauses.next_s())


async def _warn_of_silence(redis: ArqRedis, **about: str) -> None:
    """A user who may not ask cannot tell what the server has forgotten, and takes for granted what it may forget."""
    denied = []
    for command in (("INFO", "server"), ("WAITAOF", 0, 0, 0), ("WAIT", 0, 0)):
        try:
            await redis.execute_command(*command)  # type: ignore[no-untyped-call]
        except ResponseError as error:  # a replica; or older than WAITAOF, for which INFO tells it
            if isinstance(error, NoPermissionError) or (is_withheld(error) and command[0] != "WAITAOF"):
                denied.append(str(command[0]))
    if denied:
        logger.warning("redis does not tell this user what it may forget: allow the commands", denied=denied, **about)


async def _warn_of_risks(redis: ArqRedis, address: Address, **about: str) -> None:
    """Says nothing where it may not look."""
    if address.tls is not None and not address.tls.check_certificate:
        logger.warning("redis may be anybody: its certificate is not checked (ssl_cert_reqs)", **about)
    with suppress(RedisError, OSError):
        if (await redis.info("replication")).get("role") == "slave":
            logger.warning(
                "redis is a replica and takes no writes: waiting until it is a master, or leads to one", **about
            )
        persistence, memory = await redis.info("persistence"), await redis.info("memory")
        saves = await _saves(redis)
        if persistence.get("aof_enabled"):
            pass
        elif saves is None:
            logger.warning(
                "redis has no append-only file, and CONFIG, which tells whether it saves, is withheld", **about
            )
        elif not saves:
            logger.warning("redis keeps nothing on disk: a restart loses every stream; set appendonly yes", **about)
        else:
            logger.warning(
                "redis has no append-only file: a crash loses the newest part of streams; set appendonly yes", **about
            )
        if (policy := memory.get("maxmemory_policy", "noeviction")) != "noeviction":
            logger.warning("redis may evict running streams; set maxmemory-policy noeviction", policy=policy, **about)


async def _saves(redis: ArqRedis) -> str | None:
    """When it writes all of its memory to its disk; empty for never, None where that is not told."""
    try:
        return str((await redis.config_get("save")).get("save", ""))
    except ResponseError as error:
        if not is_withheld(error):
            raise
    return None


async def tls_mismatch(address: Address) -> str:
    """What the two ends disagree about, if that is TLS; empty if not, or if nothing answers.

    A Redis without TLS waits for the end of the line that begins with a handshake; one with TLS hangs up on a command. And
    one that wants a certificate of ours says so after the handshake, which is lost if we have sent something by then.
    """
    if address.path is not None or address.sentinels or address.nodes:
        return ""
    if address.tls is None:
        anyone = ssl.create_default_context()
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE  # nothing is sent but the handshake
        return "speaks TLS on that port: begin with rediss://" if await _ask(address, anyone) else ""
    if (await _ask(address, None, b"PING\r\n"))[:1] in (b"+", b"-"):
        return "does not speak TLS on that port: begin with redis://"
    try:
        await _ask(address, address.tls.context(), read=True)
    except ssl.SSLError as error:
        return why_hopeless(error)
    return ""


async def _ask(address: Address, context: ssl.SSLContext | None, question: bytes = b"", *, read: bool = False) -> bytes:
    """What a server says, after a question or unasked; a word, if it need not say anything; nothing, if it does not.

    Raises SSLError where it is to be read.
    """
    try:
        async with asyncio.timeout(_PROBE_S):
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
            try:
                writer.write(question)
                return await reader.read(64) if question or read else b"connected"
            finally:
                writer.transport.abort()
    except ssl.SSLError:
        if read:
            raise
    except (OSError, TimeoutError, UnicodeError):
        pass
    return b""
