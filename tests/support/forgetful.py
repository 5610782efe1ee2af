"""Servers that forget what they have acknowledged: one whose disk is slow, and one that another one follows too late.

Hidden here: a library of a few lines that makes fdatasync slow (with one under way, a server that syncs every second
keeps what comes for up to two seconds in its own memory, and a kill takes it); and a replica that hears of everything late.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import wait_until
from tests.harness.store import open_store
from tests.support.proxy import Proxy

_SLOW = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
static int late(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    usleep(%d);
    return real(fd);
}
int fdatasync(int fd) { return late("fdatasync", fd); }
int fsync(int fd) { return late("fsync", fd); }
"""


def compiler() -> str | None:
    """The C compiler, without which no disk can be made slow."""
    return shutil.which("cc")


@contextmanager
def slow_sync(directory: Path, seconds: float) -> Iterator[None]:
    """Servers that are started in here take so long over every fdatasync."""
    source, library = directory / "slow.c", directory / "slow.so"
    source.write_text(_SLOW % int(seconds * 1_000_000))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    before = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = str(library)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LD_PRELOAD"]
        else:
            os.environ["LD_PRELOAD"] = before


class Follower:
    """A replica of a Valkey, of which it hears late; a context manager. `promote` makes it a master."""

    def __init__(self, directory: Path, master: EmbeddedValkey, late_s: float) -> None:
        self._link = Proxy(path_of(master))
        self._late_s = late_s
        self.valkey = EmbeddedValkey(directory, maxmemory="200mb")

    def __enter__(self) -> Self:
        self._link.__enter__()
        self.valkey.__enter__()
        self.redis = open_store(self.valkey.url)
        self.redis.execute_command("REPLICAOF", "127.0.0.1", self._link.port)
        wait_until(lambda: self.redis.info("replication")["master_link_status"] == "up", what="the replica follows")
        self._link.delay(self._late_s)
        return self

    def __exit__(self, *_: object) -> None:
        self.redis.close()
        self.valkey.stop()
        self._link.__exit__()

    def hold(self) -> None:
        """It hears of nothing any more, and its master does not know."""
        self._link.hold()

    def heal(self) -> None:
        self._link.heal()

    def promote(self) -> None:
        self.redis.execute_command("REPLICAOF", "NO", "ONE")


def path_of(valkey: EmbeddedValkey) -> str:
    """Its socket."""
    return unquote(urlsplit(valkey.url).path)
