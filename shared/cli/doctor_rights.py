"""Which rights a user lacks at Redis or Valkey, and the rule that gives exactly those.

Hidden here: how rights are tried. Each command is given once, on keys of the doctor's own that are gone afterwards: ACL DRYRUN
would say it without a trace, but needs a right that no such user has. And which keys and channels there are on what is looked
at: one server, the nodes of a cluster, of which each has its own users, or one of two servers.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from shared.cli.findings import Finding
from shared.config.redis_url import parse
from shared.store.cluster.placing import patterns
from shared.store.outage import is_passing, is_withheld, reason
from shared.store.redis import ArqRedis, NoPermissionError, ResponseError

_LIFE_MS = 60_000
_ANSWER_S = 10.0
"""How long a busy server may take to refuse a channel: what says nothing by then is taken for a yes."""
_RIGHTS = "Redis rights"
_INVALIDATE = "__redis__:invalidate"
"""The channel of CLIENT TRACKING: redis.io/docs/latest/develop/reference/client-side-caching, "Two connections mode"."""
_COMMAND = re.compile(r"permissions to run the '([\w|]+)'")
_PLACE = re.compile(r"permissions to access .*(key|channel)")
"""How servers say what a user may not (NOPERM), from Redis 6.2 to Valkey 9."""
_BOTH = {"subscribe": ("subscribe", "unsubscribe")}
"""Who may not do the one cannot try the other."""


class Part(NamedTuple):
    """What of an installation is on a server."""

    logs: bool = True
    control: bool = True


def _needed(key: str) -> Iterable[tuple[Any, ...]]:
    """Each command that is needed, once (PROTOCOL.md, "Commands"); `key` begins the names of the keys."""
    text, stream, ranks, table, names = (f"{key}:{kind}" for kind in ("string", "stream", "zset", "hash", "set"))
    yield from (("SET", text, "1", "PX", _LIFE_MS), ("GET", text), ("MGET", text), ("EXISTS", text), ("PTTL", text))
    yield from (("PEXPIRE", text, _LIFE_MS), ("EXPIRE", text, _LIFE_MS // 1000))
    yield from (("XADD", stream, "1-1", "f", "1"), ("XRANGE", stream, "-", "+"), ("XREVRANGE", stream, "+", "-"))
    yield from (("GETEX", text), ("EXPIREAT", text, int(time.time() + _LIFE_MS / 1000)), ("XDEL", stream, "1-2"))
    yield from (("XLEN", stream), ("XREAD", "STREAMS", stream, "0"), ("PEXPIRE", stream, _LIFE_MS))
    yield from (("ZADD", ranks, 1, "m"), ("ZRANGE", ranks, 0, -1), ("ZREVRANGE", ranks, 0, -1), ("ZRANK", ranks, "m"))
    yield from (("ZREVRANK", ranks, "m"), ("ZSCORE", ranks, "m"), ("ZMSCORE", ranks, "m"), ("ZSCAN", ranks, 0))
    yield from (
        ("ZCARD", ranks),
        ("ZRANGEBYSCORE", ranks, 0, 0),
        ("ZREMRANGEBYSCORE", ranks, 2, 3),
        ("ZREM", ranks, "m"),
    )
    yield from (("HSET", table, "f", 1), ("HGET", table, "f"), ("HMGET", table, "f"), ("HGETALL", table))
    yield from (("HSETNX", table, "g", 1), ("HINCRBY", table, "f", 1), ("PEXPIRE", table, _LIFE_MS))
    yield from (("HEXISTS", table, "f"), ("HLEN", table), ("HKEYS", table), ("HVALS", table), ("HDEL", table, "f"))
    yield from (("SADD", names, "m"), ("SMEMBERS", names), ("SREM", names, "m"))
    yield from (("INCRBY", text, 1), ("DECRBY", text, 1), ("TTL", text), ("COPY", text, f"{key}:copy"), ("PING",))
    yield from (("DEL", text, f"{key}:copy", stream, ranks, table, names), ("TIME",))
    yield from (("WATCH", text), ("UNWATCH",), ("MULTI",), ("EXEC",))


_FOLLOWED = "news of logs cost more"
_WISHED: Mapping[str, Sequence[tuple[Any, ...]]] = {
    "what the server may forget is not known": (("INFO", "server"), ("WAIT", 0, 0), ("WAITAOF", 0, 0, 0)),
    "how it is set is not known": (("CONFIG", "GET", "save"),),
    "limits and budgets refuse every request, and a full server keeps answers from their end": (
        ("EVAL", "return 1", 0),
        ("EVALSHA", "0" * 40, 0),
    ),
    _FOLLOWED: (("CLIENT", "ID"), ("CLIENT", "TRACKING", "OFF"), ("SUBSCRIBE", _INVALIDATE)),
}
"""What it goes on without, and what is missing then."""


class _Denied:
    """What a user was refused, and the rules that allow it, each once."""

    def __init__(self, keys: Sequence[str], channels: Sequence[str]) -> None:
        self._patterns = {"key": keys, "channel": channels}
        self._commands: dict[str, None] = {}
        self._places: dict[str, None] = {}
        self._rules: dict[str, None] = {}

    def note(self, name: str, error: ResponseError) -> None:
        """`name` was refused."""
        if place := _PLACE.search(str(error)):
            sign, patterns = "~" if place[1] == "key" else "&", self._patterns[place[1]]
            self._places[f"{place[1]}s {' '.join(f'`{one}`' for one in patterns)}"] = None
            self._rules |= dict.fromkeys(f"{sign}{one}" for one in patterns)
            return
        if command := _COMMAND.search(str(error)):
            name = command[1].replace("|", " ").upper()
            self._rules |= dict.fromkeys(f"+{one}" for one in _BOTH.get(command[1].lower(), (command[1].lower(),)))
        self._commands[name] = None

    def __bool__(self) -> bool:
        return bool(self._commands or self._places)

    def __str__(self) -> str:
        return ", ".join(filter(None, (" ".join(self._commands), *self._places)))

    def rule(self, url: str) -> str:
        """As an operator gives it to the server; empty where there is nothing that could be allowed."""
        if not self._rules:
            return ""
        address = parse(url)
        each = " (on each node)" if address.nodes else ""
        return f" ACL SETUSER {address.username or 'default'} {' '.join(self._rules)}{each}"


async def examine_contact(redis: ArqRedis, url: str) -> list[Finding]:
    """What there is no connection without: CLUSTER SLOTS for one, or SELECT. Raises RedisError, OSError."""
    try:
        await redis.ping()
    except NoPermissionError as error:
        command = _COMMAND.search(str(error))
        if command is not None and command[1].lower() != "ping":
            denied = _Denied((), ())
            denied.note("PING", error)
            return [Finding(False, _RIGHTS, f"this user lacks {denied}.{denied.rule(url)}")]
    return []


async def examine_rights(redis: ArqRedis, url: str, part: Part) -> list[Finding]:
    """All that a user has to be allowed where this part of an installation is, and what it may be allowed. `redis` is a client
    of that server alone, whose keys are called as they are there."""
    keys, channels = patterns(redis.key, logs=part.logs, control=part.control)
    denied, missed = _Denied(keys, channels), _Denied((), [_INVALIDATE])
    without: dict[str, _Denied] = {}
    for client, tried in await _trials(redis, part):
        for words in tried:
            error = await _refusal(client, words)
            if isinstance(error, NoPermissionError):
                denied.note(_name(words), error)
            elif error is not None and is_passing(error):
                return [Finding(False, "Redis writes", f"refused just now: {reason(error) or 'it is full'}")]
        for why, wished in _WISHED.items():
            for words in wished if part.logs or why != _FOLLOWED else ():
                error = await _refusal(client, words)
                older = words[0] == "WAITAOF" and not isinstance(error, NoPermissionError)  # there is no such command
                if error is not None and is_withheld(error) and not older:
                    for one in (missed, without.setdefault(why, _Denied((), [_INVALIDATE]))):
                        one.note(_name(words), error)
    findings = []
    if denied:
        findings.append(Finding(False, _RIGHTS, f"this user lacks {denied}.{denied.rule(url)}"))
    if missed:
        text = "; ".join(f"without {names} {why}" for why, names in without.items())
        findings.append(Finding(None, _RIGHTS, f"{text}.{missed.rule(url)}"))
    return findings or [Finding(True, _RIGHTS, "all commands that are needed")]


async def _trials(redis: ArqRedis, part: Part) -> list[tuple[ArqRedis, list[tuple[Any, ...]]]]:
    """What is tried, and where: of logs once on each node, since each has its own list of users."""
    key, mark = redis.key, f"doctor:{{{secrets.token_hex(8)}}}"
    bell = [("PUBLISH", f"{key.doorbell}:doctor", "1"), ("SUBSCRIBE", f"{key.doorbell}:doctor")] if part.control else []
    trials: list[tuple[ArqRedis, list[tuple[Any, ...]]]] = []
    of_nodes = [("CLUSTER", "SLOTS"), ("ASKING",)] if key.cells.count > 1 else []
    for cell in await redis.spread() if part.logs else ():
        trials.append((redis.at(cell), [*of_nodes, *bell, *_needed(f"{key.open(cell)}:{mark}")]))
    if part.control and (key.cells.apart or not part.logs):
        trials.append((redis, [*bell, *_needed(f"{key.catalogue}:{mark}")]))
    elif key.cells.apart:
        trials.append((redis, [("GET", key.number_of_cells)]))
    return trials


def _name(words: tuple[Any, ...]) -> str:
    return " ".join(words[:2] if words[0] in ("CLIENT", "CLUSTER") else words[:1])


async def _refusal(redis: ArqRedis, words: tuple[Any, ...]) -> ResponseError | None:
    try:
        if words[0] == "SUBSCRIBE":
            await _subscribe(redis, words[1])
        else:
            await redis.execute_command(*words)  # type: ignore[no-untyped-call]
    except ResponseError as error:
        return error
    return None


async def _subscribe(redis: ArqRedis, channel: str) -> None:
    async with redis.pubsub() as subscription:
        for ask in (subscription.subscribe, subscription.unsubscribe):
            await ask(channel)
            await subscription.get_message(timeout=_ANSWER_S)
