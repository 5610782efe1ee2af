"""What a failure of Redis means: in words for people, and whether it is worth another try.

Hidden here: where the reason of a failure is (redis-py puts it into a chain of exceptions, and a command's arguments in
front of it), which of the server's error words mean what, how long is waited before the next try, and how often an outage
is told. Nothing here logs what was sent: prompts and answers are in it.

The words are the first ones of error replies, as servers send them (redis.io/docs/latest/develop/reference/protocol-spec,
"Simple errors"; src/server.c of Redis 7.0 and Valkey 9.1). Not all have a class of redis-py's, hence the texts.
"""

from __future__ import annotations

import asyncio
import builtins
import random
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from shared.errors import FileStorageFailed, Unavailable
from shared.lib.telemetry import REDIS_ERRORS, get_logger

logger = get_logger(__name__)

WRONG_SERVER = {
    "READONLY": "a replica: its master was demoted, or the name leads to another server now",
    "MASTERDOWN": "a replica that has lost its master, and may not answer from what it has",
    "LOADING": "a server that has just started and reads its data; another may have taken its place",
    "UNBLOCKED": "a master that was demoted while this connection waited in a blocking command",
    "NOREPLICAS": "a master that is cut off from its replicas, one of which may be the master now",
    "CLUSTERDOWN": "a node that is cut off from its cluster",
    "REDIRECT": "a replica, which names its master",
}
"""Error words that say: this connection leads to the wrong server, or to one that is none yet. They cost the connection and
its idle siblings, and the command is sent once more on a new one, which may lead to the right server by now."""

FULL: dict[str, Literal["memory", "disk"]] = {"OOM": "memory", "MISCONF": "disk"}
"""Error words of a server that takes no writes until there is room, in its memory or on its disk (or its file cannot be
written for another reason)."""

REDIRECTS = frozenset({"MOVED", "ASK", "TRYAGAIN"})
"""Error words of a node that has not got a slot, or not all of what is asked for in it."""

_PASSING = frozenset({*WRONG_SERVER, *FULL, *REDIRECTS, "BUSY"})
"""Error words that are over some time without anything being changed here."""

_WITHHELD = ("unknown command", "ACL failure in script", "The user executing the script can't ")
"""What a server says besides NOPERM of a command that is not to be had. The last two of one in a script, Redis 7.0 the last."""
_SAID_CHARACTERS = 120
_ANNOTATED = re.compile(r"Command # \d+ \(.*\) of pipeline caused error: \(['\"](.*)['\"],?\)", re.DOTALL)
"""redis-py's pipelines put the command in front. The last such words are the server's: a command may hold them, too."""
_CLASSES = {
    ReadOnlyError: "READONLY",
    BusyLoadingError: "LOADING",
    OutOfMemoryError: "OOM",
    NoPermissionError: "NOPERM",
}
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"})
_SPREAD = 0.25
_LOG_EVERY_S = 5.0
_logged_at: dict[str, float] = {}


class WrongServer(ResponseError):
    """This connection leads to the wrong server: see WRONG_SERVER."""


class Redirected(WrongServer):
    """A node of a cluster has not got the slot, any more or yet: nothing was done. `to` is where it is, or is to be,
    `HOST:PORT`; a host that is left out is the same."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.word, _, rest = said.partition(" ")
        slot, _, to = rest.partition(" ")
        self.slot, self.to = (int(slot), to) if self.word != "TRYAGAIN" else (-1, "")


UNREACHABLE = (ConnectionError, TimeoutError, BusyLoadingError, ReadOnlyError, WrongServer, OSError)
"""What a server that is away, loading, failing over or half-open looks like; worth another try later."""


# ---- reasons


def server_message(error: object) -> str:
    """The server's own words in an error reply: its first 120 characters, without the command."""
    text = str(error)
    if found := _ANNOTATED.fullmatch(text):
        text = found[1]
    return text[:_SAID_CHARACTERS]


def error_word(error: object) -> str:
    """The first word of an error reply: `OOM`, `MISCONF`, `ERR`."""
    for kind, name in _CLASSES.items():
        if isinstance(error, kind):
            return name
    return server_message(error).partition(" ")[0] if isinstance(error, ResponseError) else ""


def is_wrong_server(error: object) -> bool:
    """Whether a reply, or what was raised, says that the connection leads to the wrong server."""
    return error_word(error) in WRONG_SERVER


def what_is_full(error: object) -> Literal["memory", "disk"] | None:
    """What of a server is full that refused with this error; None for any other error."""
    return FULL.get(error_word(error))


def is_withheld(error: object) -> bool:
    """Whether a command is not to be had here: this user may not give it, by itself or in a script, or there is none, as where
    a managed server was made without it (CONFIG, DEBUG)."""
    return isinstance(error, NoPermissionError) or (
        isinstance(error, ResponseError) and server_message(error).removeprefix("ERR ").startswith(_WITHHELD)
    )


def is_passing(error: object) -> bool:
    """Whether the same may well be tried again as it is: the server is away, not the right one, full or busy."""
    return isinstance(error, UNREACHABLE) or error_word(error) in _PASSING


def cause(error: object) -> dict[str, str]:
    """What a log line says about a failure: the kind of `error`, and what the server `said` or else the `reason`."""
    found = {"error": type(error).__name__}
    if isinstance(error, ResponseError):
        return {**found, "said": server_message(error)}
    text = reason(error)
    return {**found, "reason": text} if text else found


def reason(error: object) -> str:
    """Why a server could not be asked, in a few words; empty if nothing is known."""
    asked = "sentinels: " if isinstance(error, MasterNotFoundError) else ""
    for link in _chain(error):
        if text := _words(link):
            return asked + text
    return ""


def why_hopeless(error: BaseException) -> str:
    """Why waiting cannot help, as the end of a sentence about REDIS_URL; empty if it can.

    Names that are not known, and sockets that are not there, may come later: containers start in any order.
    """
    asked = "has sentinels, one of which " if isinstance(error, MasterNotFoundError) else ""
    for link in _chain(error):
        if isinstance(link, AuthenticationError):
            which = " (`sentinel_password`)" if asked else ""
            return f"{asked}refuses the password or user{which}: {server_message(link)}"
        if isinstance(link, InvalidResponse):
            return f"{asked}does not speak Redis's protocol; is that the right port?"
        if isinstance(link, UnicodeError):
            return "has no host name that can be looked up"
        if _fails_again(link):
            return f"{asked}cannot be used: {_words(link)}"
        if isinstance(link, ResponseError) and not isinstance(link, NoPermissionError) and not is_passing(link):
            return f"{asked}cannot be used: {server_message(link)}"
    return ""


def _chain(error: object) -> Iterator[BaseException]:
    """What was raised and why, outermost first. redis-py sets no cause, but raises while it handles one."""
    seen = 0
    while isinstance(error, BaseException) and seen < 10:
        yield error
        error, seen = error.__cause__ or error.__context__, seen + 1


def _words(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}".rstrip(".")
    if isinstance(error, ssl.SSLError):
        named = (error.reason or "handshake failed").replace("_", " ").lower()
        return f"TLS: {named}" + (" (it speaks no TLS on that port)" if error.reason in _NOT_TLS else "")
    if isinstance(error, socket.gaierror):
        return "name cannot be looked up just now" if error.errno == socket.EAI_AGAIN else "name not known"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, FileNotFoundError):
        return "no such socket"
    if isinstance(error, TimeoutError | builtins.TimeoutError):
        return "no answer in time"
    if isinstance(error, AuthenticationError | ResponseError):
        return server_message(error)
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    if isinstance(error, ConnectionError) and error.args and not (error.__cause__ or error.__context__):
        return str(error.args[0]).rstrip(".").lower()
    return ""


def _fails_again(error: BaseException) -> bool:
    """A TLS failure that comes again however often it is tried. One that just ends (EOF) may be a server that stops."""
    passing_kinds = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
    return isinstance(error, ssl.SSLError) and not isinstance(error, passing_kinds)


# ---- trying again


class Pauses:
    """How long to wait before the next try: `first_s`, then twice as long each time, up to `most_s`; each up to a quarter
    shorter or longer, so that all who wait for one server do not come at once."""

    def __init__(self, first_s: float = 0.25, most_s: float = 3.0) -> None:
        self._first_s = self._next_s = first_s
        self._most_s = most_s

    def next_s(self) -> float:
        pause_s, self._next_s = min(self._next_s, self._most_s), min(2 * self._next_s, self._most_s)
        return pause_s * random.uniform(1 - _SPREAD, 1 + _SPREAD)

    def reset(self) -> None:
        """It worked: the next failure is the first one."""
        self._next_s = self._first_s


async def run_while_redis_is_away(name: str, loop: Callable[[], Awaitable[None]], *, most_s: float = 3.0) -> None:
    """Runs a loop, again and again while Redis is away, which the broker calls Unavailable.

    `most_s` is the longest pause before it is begun again. Anything else it raises is a bug and leaves.
    """
    pauses = Pauses(most_s=most_s)
    while True:
        began = time.monotonic()
        try:
            await loop()
            return
        except (RedisError, OSError, Unavailable) as error:
            log_redis_error(name, error)
            if time.monotonic() - began > 2 * most_s:  # it had worked
                pauses.reset()
            await asyncio.sleep(pauses.next_s())


def log_redis_error(part: str, error: object, **about: Any) -> None:
    """Counts and logs that a part of this process could not use Redis, and why; one line in 5 s for each part, at most.

    In an outage everything that runs has the same to say, some of it four times a second. Where it was the file storage,
    the line says that.
    """
    failed = error if isinstance(error, FileStorageFailed) else None
    if failed is None:
        REDIS_ERRORS.labels(part).inc()
    now = time.monotonic()
    if now - _logged_at.get(part, -_LOG_EVERY_S) >= _LOG_EVERY_S:
        _logged_at[part] = now
        if failed is not None:
            logger.warning("file storage failed", part=part, why=failed.why, **about)
        else:
            logger.warning("redis failed", part=part, **cause(error), **about)
