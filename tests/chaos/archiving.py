"""Processes that make objects of ended logs, and are killed while they do (F85).

Hidden here: where in its steps a process kills itself, and what must be true when all is over: every answer is as it was, each
is in one home, and no object is there that no log names.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.store import Store, open_store
from tests.harness.upstream import ScriptedUpstream
from tests.support.wire import Client, chunks, frames, position, text

QUICK = """
import os, random, signal
from shared.features import files
from shared.features.archive import archiver
from shared.features.storage import Storage
from shared.generations import reaper

reaper.TICK_S = 0.2
archiver.LEASE_MS = 1500
archiver.GRACE_MS = 2500
archiver.DUE_MS = files._SLACK_MS = 0
step, nth = os.environ.get("DIES_AT"), [random.randrange(1, 6)]

async def nothing(self):
    pass

if step is None:
    archiver.Archiver.archive_due = nothing

def die():
    nth[0] -= 1
    if not nth[0]:
        os.kill(os.getpid(), signal.SIGKILL)

def dies(owner, name, after):
    original = getattr(owner, name)

    async def call(*arguments, **named):
        if not after:
            die()
        found = await original(*arguments, **named)
        if after:
            die()
        return found

    setattr(owner, name, call)

for one, owner, name, after in (
    ("lease", archiver.Archiver, "_read", False),
    ("read", archiver.Archiver, "_read", True),
    ("name", archiver.Archiver, "_store", False),
    ("bytes", Storage, "put", True),
    ("flush", Storage, "flush", True),
    ("look", archiver.Archiver, "_replace", False),
    ("exchange", archiver, "transact", True),
    ("end", archiver.Archiver, "_archive", True),
):
    if one == step:
        dies(owner, name, after)
"""
"""The times of orphans are short. Only a process that has DIES_AT makes objects, and kills itself at that step of one of the
first five logs, if it is one."""
STEPS = ("lease", "read", "name", "bytes", "flush", "look", "exchange", "end")
ON = {"STREAMSPOOL_ARCHIVE_AFTER_S": "0.01", "STREAMSPOOL_ARCHIVE_LEAST_BYTES": "0"}
MODEL = "fake/lorem?tokens=40"
ARCHIVER = "api-2"


def archive_and_die(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, directory: Path, *, kills: int, logs: int
) -> dict[str, Any]:
    """Has so many archivers die, each with `logs` answers to move: two in three at one of the steps, in turn, the others at
    any moment. Returns what was counted."""
    url = valkey.url.replace("db=0", "db=3")
    with open_store(url) as store:
        store.flushdb()
        with Stack(url, upstream.base_url, directory, fault=QUICK, processes="worker api", **ON) as stack:
            died = _kill(stack, kills, logs)
            return {"kills": kills, "died": died, **_judge(stack, store, directory)}


def _kill(stack: Stack, kills: int, logs: int) -> dict[str, int]:
    died = dict.fromkeys((*STEPS, "any"), 0)
    with Client(stack.url) as client:
        for number in range(kills):
            step = "any" if number % 3 == 2 else STEPS[(number - number // 3) % len(STEPS)]
            _ask(client, logs)
            process = stack.start(ARCHIVER, DIES_AT=step)
            wait_until(lambda: stack.answers(ARCHIVER) or not stack.alive(ARCHIVER), 120)
            moment = time.monotonic() + random.uniform(0, 0.4)
            while process.poll() is None:
                _ask(client, 1)
                if step == "any" and time.monotonic() > moment:
                    stack.kill(ARCHIVER)
            assert process.wait() == -signal.SIGKILL, stack.log(ARCHIVER)[-2000:]
            died[step] += 1
    return died


def _ask(client: Client, logs: int) -> None:
    for _ in range(logs):
        client.stream(MODEL)


def _judge(stack: Stack, store: Store, directory: Path) -> dict[str, Any]:
    stack.start(ARCHIVER, DIES_AT="never")
    wait_until(lambda: not store.exists("streamspool:unsettled", "streamspool:to-archive"), 120, "all are objects")
    wait_until(lambda: not store.exists("streamspool:files-end"), 120, "what was left over is removed")
    named = {name.decode() for name in store.zrange("streamspool:archived", 0, -1)}
    there = {str(path.relative_to(directory / "files")) for path in (directory / "files" / "logs").glob("*/*")}
    ids = [key.decode().split("{")[1].split("}")[0] for key in store.scan_iter(match="streamspool:{*}:log")]
    with Client(stack.url) as client, Client(stack.at(ARCHIVER)) as other:
        expected = text(chunks(client.stream(MODEL).content))
        wait_until(lambda: stack.answers(ARCHIVER), 120)
        bodies = {name: (client.whole(name), other.whole(name)) for name in ids}
    return {
        "answers": len(ids),
        "objects": len(there),
        "not_whole": [name for name, both in bodies.items() if not all(is_whole(body, expected) for body in both)],
        "twice": len(named) - len({name.rpartition("/")[2].partition(".")[0] for name in named}),
        "left_over": sorted(there - named),
        "missing": sorted(named - there),
    }


def is_whole(body: bytes, expected: str) -> bool:
    """Whether it is that answer, each chunk once and in its order, with one end."""
    positions = [position(frame) for frame in frames(body) if frame.startswith(b"id:")]
    return text(chunks(body)) == expected and _in_order(positions) and body.count(b"[DONE]") == 1


def _in_order(positions: Iterable[str]) -> bool:
    """Whether nothing is missing between the first and the outcome."""
    *said, _ = [int(one.partition("-")[2]) for one in positions]
    return said == list(range(1, len(said) + 1))
