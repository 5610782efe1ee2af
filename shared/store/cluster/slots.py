"""Which keys a command touches, and in which slots they are.

Hidden here: the hash of a cluster (valkey.io/topics/cluster-spec, "Key distribution model"), and where the keys stand among a
command's words: of the commands that we send, not of all that there are.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from typing import Any

SLOTS = 16384

_KEYLESS = frozenset(
    b"ACL ASKING AUTH BGREWRITEAOF CLIENT CLUSTER COMMAND CONFIG DBSIZE DEBUG DISCARD ECHO EXEC FLUSHALL FLUSHDB HELLO INFO "
    b"LASTSAVE MULTI PING PSUBSCRIBE PUBLISH QUIT READONLY ROLE SCAN SCRIPT SELECT SUBSCRIBE TIME UNSUBSCRIBE UNWATCH WAIT "
    b"WAITAOF".split()
)
"""PUBLISH among them: a channel is no key."""
_ALL = frozenset((b"DEL", b"EXISTS", b"MGET", b"TOUCH", b"UNLINK", b"WATCH"))
_SCRIPTS = frozenset((b"EVAL", b"EVALSHA"))


def slot_of(name: bytes) -> int:
    """The slot of a key: 0 to 16383."""
    start = name.find(b"{")
    if start >= 0:
        end = name.find(b"}", start + 1)
        if end > start + 1:
            name = name[start + 1 : end]
    return crc_hqx(name, 0) % SLOTS


def keys_of(words: Sequence[Any]) -> list[bytes]:
    """The keys among a command's words; of a script those that it declares."""
    name = as_bytes(words[0]).upper()
    if name in _KEYLESS or b" " in name:  # redis-py writes CONFIG GET as one word
        return []
    if name in _ALL:
        found: Iterable[Any] = words[1:]
    elif name in _SCRIPTS:
        found = words[3 : 3 + int(words[2])]
    elif name == b"XREAD":
        (at,) = (place for place, word in enumerate(words) if as_bytes(word).upper() == b"STREAMS")
        found = words[at + 1 : at + 1 + (len(words) - at - 1) // 2]
    else:
        found = words[1:2]
    return [as_bytes(key) for key in found]


def declared(commands: Iterable[Sequence[Any]]) -> list[bytes]:
    """The keys of commands that a script does, each once."""
    return list(dict.fromkeys(key for words in commands for key in keys_of(words)))


def as_bytes(word: Any) -> bytes:
    """A word as it is sent."""
    return word if isinstance(word, bytes) else str(word).encode()
