"""What a cluster costs and what viewers see of its faults: one JSON line for each.

    python -m tests.chaos.figures_cluster cost [SECONDS [STREAMS [CHUNKS_A_SECOND]]]
    python -m tests.chaos.figures_cluster answers [COUNT]
    python -m tests.chaos.figures_cluster gaps [RUNS]

`cost` stores chunks through one appender and reads them through one follower, each a process, on one server and on a cluster of
three masters, in turns: microseconds of CPU for each chunk, of the servers, the writer and the reader. All servers keep an
append-only file. `answers` asks a whole system for short answers, whose queue has a server of its own: microseconds of CPU for
each answer, of that server and of the logs'. `gaps` are the faults of F90 to F92, with the longest silence that a viewer had.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from shared.lib.busy import BusyPauses
from shared.lib.tasks import cancel
from shared.log.appender import Appender
from shared.log.entry import BEGIN, VERSION, Chunk
from shared.log.envelope import Envelopes
from shared.log.following import Following
from shared.log.followings import Followings
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from shared.store.confirm import Confirmer
from shared.store.redis import cells_of, connect
from tests.chaos.figures_redis import cpu_s
from tests.harness.cluster import Cluster
from tests.harness.processes import Stack
from tests.harness.records import attempt_with, header_with
from tests.harness.upstream import ScriptedUpstream
from tests.support.cluster_faults import (
    a_master_is_killed,
    all_slots_move_at_once,
    all_slots_move_key_by_key,
    most_masters_are_away,
)
from tests.support.rig import Rig, Viewer
from tests.support.server import Server

DELTA = (
    b'{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"%d word"},"finish_reason":null}]}'
)
TURNS = 3


# ---- what it costs


class Followed:
    """A log, and how much of it was read."""

    def __init__(self, generation_id: str) -> None:
        self.id, self.position, self.shapes, self.page = generation_id, BEGIN, Envelopes(), 100


async def open_log(stack: AsyncExitStack, url: str) -> tuple[Any, StreamLog]:
    redis = connect(url, max_connections=10, cells=await cells_of(url, "streamspool"), timeout_s=5.0)
    stack.push_async_callback(redis.aclose, close_connection_pool=True)
    return redis, StreamLog(redis, retention_s=60, safety_s=600)


async def write(url: str, ids: Sequence[str], rate: float, seconds: float) -> None:
    """Says `ready`, begins at the next line, and says how many chunks it stored and what CPU that took it."""
    async with AsyncExitStack() as stack:
        redis, log = await open_log(stack, url)
        confirmer = await stack.enter_async_context(Confirmer(redis, name="w"))
        appender = await stack.enter_async_context(Appender(redis, confirmer))
        writers = []
        for one in ids:
            header = {"v": VERSION, "id": one, "owner": "a", "created_at_ms": 1, "model": "m"}
            await log.create(header_with(header), b"{}")
            fields = {"worker": "w", "at_ms": 1, "token": "t", "reason": "queued", "number": 1}
            writers.append((await log.claim(appender, one, 1, attempt_with(fields)))[0])
        await begin()
        before, until = time.thread_time(), time.monotonic() + seconds

        async def say(writer: Writer, number: int) -> int:
            at, said = time.monotonic() + number / len(ids) / rate, 0
            while at < until:
                await asyncio.sleep(max(0.0, at - time.monotonic()))
                await writer.append([Chunk(DELTA % said)])
                said, at = said + 1, at + 1 / rate
            return said

        said = await asyncio.gather(*(say(writer, number) for number, writer in enumerate(writers)))
        print(json.dumps([sum(said), time.thread_time() - before]), flush=True)


async def read(url: str, ids: Sequence[str]) -> None:
    """The same of what it read, as a hub does it, until it has as many as the next line says."""
    async with AsyncExitStack() as stack:
        redis, log = await open_log(stack, url)
        reading, _ = await open_log(stack, url)
        kind: Any = Following if redis.key.cells.count == 1 else Followings
        following = await stack.enter_async_context(kind(log, reading))
        logs = [Followed(one) for one in ids]
        for followed in logs:
            await following.add(followed)
        await begin()
        before, following_on = time.thread_time(), asyncio.create_task(follow(following))
        wanted = int(await asyncio.to_thread(sys.stdin.readline))
        while (found := sum(one.position.seq for one in logs)) < wanted:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)
        print(json.dumps([found, time.thread_time() - before]), flush=True)
        await cancel(following_on)


async def follow(following: Any) -> None:
    pauses = BusyPauses(0.012)
    while True:
        found = await following.news()
        for followed, entries in found:
            followed.position = entries[-1].position
        if found and (pause_s := pauses.next_s()):
            await asyncio.sleep(pause_s)


async def begin() -> None:
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)


def measured(url: str, pids: Sequence[int], streams: int, rate: float, seconds: float) -> dict[str, float]:
    ids = [f"chatcmpl-{uuid.uuid4().hex}" for _ in range(streams)]
    ends = []
    for end in ("write", "read"):
        words = [
            sys.executable,
            "-m",
            "tests.chaos.figures_cluster",
            end,
            url,
            json.dumps(ids),
            str(rate),
            str(seconds),
        ]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        ends.append(process)
    before = [cpu_s(pid) for pid in pids]
    for process in ends:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    writer, reader = ends
    stored, writer_s = json.loads(writer.communicate()[0])
    found, reader_s = json.loads(reader.communicate(f"{stored}\n")[0])
    used = sum(cpu_s(pid) for pid in pids) - sum(before)
    assert found == stored
    return {
        "chunks_a_second": round(stored / seconds),
        "server_us": round(1e6 * used / stored, 2),
        "stored_per_core_second": round(stored / used),
        "writer_us": round(1e6 * writer_s / stored, 1),
        "reader_us": round(1e6 * reader_s / stored, 1),
    }


@contextmanager
def one(directory: Path) -> Iterator[tuple[str, list[int]]]:
    with Server(directory, "--appendonly", "yes") as server, server.client() as client:
        yield server.url, [client.info("server")["process_id"]]


@contextmanager
def three(directory: Path) -> Iterator[tuple[str, list[int]]]:
    directory.mkdir()
    with Cluster(directory, masters=3) as cluster:
        yield cluster.url, [node.process.pid for node in cluster.nodes if node.process is not None]


def cost(seconds: float = 8, streams: int = 200, rate: float = 50) -> None:
    found: dict[str, list[float]] = {"one": [], "three": []}
    for turn in range(TURNS):
        for name, servers in (("one", one), ("three", three)):
            with tempfile.TemporaryDirectory() as directory, servers(Path(directory) / "servers") as (url, pids):
                told = measured(url, pids, streams, rate, seconds)
            found[name].append(told["stored_per_core_second"])
            print(json.dumps({"row": f"cost {name}", "turn": turn, "streams": streams, **told}), flush=True)
    ratios = sorted(three / one for one, three in zip(found["one"], found["three"], strict=True))
    print(
        json.dumps({"row": "cost ratio", "median": round(ratios[TURNS // 2], 3), "all": [round(r, 3) for r in ratios]})
    )


def answers(count: int = 1000) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        Server(Path(directory) / "logs", "--appendonly", "yes") as logs,
        Server(Path(directory) / "queue", "--appendonly", "yes") as queue,
        Stack(logs.url, "http://127.0.0.1:1", Path(directory), STREAMSPOOL_QUEUE_URL=queue.url) as stack,
        httpx.Client(base_url=stack.url, trust_env=False, timeout=60) as http,
        ThreadPoolExecutor(8) as pool,
    ):
        pids = [int(server.client().info("server")["process_id"]) for server in (logs, queue)]
        body = {"model": "fake/echo", "messages": [{"role": "user", "content": "one two three"}]}

        def ask(_: int) -> int:
            return http.post("/v1/chat/completions", json=body).status_code

        assert set(pool.map(ask, range(50))) == {200}
        before, began = [cpu_s(pid) for pid in pids], time.monotonic()
        assert set(pool.map(ask, range(count))) == {200}
        seconds = time.monotonic() - began
        logs_us, queue_us = (1e6 * (cpu_s(pid) - was) / count for pid, was in zip(pids, before, strict=True))
        told = {"answers": count, "answers_a_second": round(count / seconds), "queue_us": round(queue_us)}
        print(json.dumps({"row": "answers", **told, "logs_us": round(logs_us)}), flush=True)


# ---- what viewers see


FAULTS: dict[str, Callable[[Cluster, Rig], list[Viewer]]] = {
    "F90 key by key": all_slots_move_key_by_key,
    "F90 at once": all_slots_move_at_once,
    "F91": a_master_is_killed,
    "F92": most_masters_are_away,
}


def gaps(runs: int = 3) -> None:
    for name, fault in FAULTS.items():
        for _ in range(runs):
            with tempfile.TemporaryDirectory() as directory, ScriptedUpstream() as upstream:
                place = Path(directory)
                with (
                    Cluster(place, masters=3, replicas=3, timeout_ms=2000) as cluster,
                    Rig(upstream, place, redis_url=cluster.url) as rig,
                ):
                    viewers = [viewer.end(180) for viewer in fault(cluster, rig)]
                    told = {
                        "row": name,
                        "streams": len(viewers),
                        "worst_gap_s": round(max(viewer.max_gap_s for viewer in viewers), 2),
                        "whole": sum(not viewer.judge() for viewer in viewers),
                        "explicit": sum(viewer.error is not None for viewer in viewers),
                        "silent": sum(bool(viewer.judge()) and viewer.error is None for viewer in viewers),
                        "repeated": sum(viewer.repeated for viewer in viewers),
                    }
                    print(json.dumps(told), flush=True)


def main(what: str, *words: str) -> None:
    if what in ("write", "read"):
        url, ids, rate, seconds = words
        some = json.loads(ids)
        asyncio.run(write(url, some, float(rate), float(seconds)) if what == "write" else read(url, some))
    elif what == "answers":
        answers(*map(int, words))
    elif what == "cost":
        cost(*(float(word) if number != 1 else int(word) for number, word in enumerate(words)))  # type: ignore[arg-type]
    else:
        gaps(*map(int, words))


if __name__ == "__main__":
    main(*sys.argv[1:])
