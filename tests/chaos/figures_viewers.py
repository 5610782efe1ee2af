"""How bad it gets for viewers: `python -m tests.chaos.figures_viewers [--runs N]`. One JSON line for each row.

The tests beside this file ask whether; this asks how much: a storm of 1,000 viewers, viewers that do not read, cuts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from shared.cli.embedded import EmbeddedValkey
from tests.chaos.test_viewers import SETTINGS, VIEWERS, watch
from tests.harness.processes import Stack, memory_mb, wait_until
from tests.harness.shown import Shown
from tests.harness.store import open_store
from tests.harness.upstream import Answer, Pause, ScriptedUpstream, chunk, ending, whole, words
from tests.support.wire import Client
from tests.support.wire_async import Stream

Figures = dict[str, Any]


class Bench:
    """A stack with two APIs, and a provider."""

    def __init__(self, stack: Stack, ports: tuple[int, int], provider: ScriptedUpstream) -> None:
        self.stack, self.ports, self.provider = stack, ports, provider

    async def storm(self, count: int = 1000) -> Figures:
        """All were hung up on in mid-stream; all come back at once with their cursors, half of them to each API."""
        pause = Pause()
        self.provider.plan("storm", Answer([*words(40), pause, *words(40), *ending()]))
        with Client(self.stack.url) as client, Client(f"http://127.0.0.1:{self.ports[1]}") as other:
            with client.streaming("scripted/storm") as first:
                first.take(41)
            readings = [Shown() for _ in range(count)]
            ports = [self.ports[i % 2] for i in range(count)]
            pairs = list(zip(readings, ports, strict=True))
            for begin in range(0, count, 100):
                await asyncio.gather(*(watch(r, p, first.id, frames=20) for r, p in pairs[begin : begin + 100]))
            with open_store(self.stack.redis_url) as store:
                before = len(store.client_list())
                started = time.monotonic()
                returning = [asyncio.create_task(watch(r, p, first.id)) for r, p in pairs]
                attached = lambda: client.metric(VIEWERS) + other.metric(VIEWERS) == count  # noqa: E731
                await asyncio.to_thread(wait_until, attached, 60)
                attached_s = time.monotonic() - started
                more = len(store.client_list()) - before
            pause.go()
            await asyncio.gather(*returning)
            whole = sum(r.ended and not r.wrong and r.text == readings[0].text for r in readings)
        return {"lost": count - whole, "attached_s": attached_s, "redis_connections_more": max(0, more)}

    async def slow(self, count: int = 20) -> Figures:
        """They read nothing of 24 MB, beside three that do; the API's peak with them, over its peak without."""
        alone = await self._peak(0)
        found = await self._peak(count)
        each = (found.pop("peak_mb") - alone.pop("peak_mb")) / count
        return {**found, "fast_s_without": alone["fast_s"], "rss_mb_each": each}

    async def _peak(self, count: int) -> Figures:
        pause = Pause()
        parts = [chunk({"content": f"{i:05d}" * 20_000}) for i in range(240)]
        self.provider.plan("slow", Answer([*words(1), pause, *parts, *ending()]))
        with Client(self.stack.url) as client, client.streaming("scripted/slow") as first:
            first.take(2)
        path = f"/v1/streams/{first.id}"
        lazy = [await Stream.open(self.ports[0], "GET", path, receive_bytes=4096) for _ in range(count)]
        fast = [Shown() for _ in range(3)]
        reading = [asyncio.create_task(watch(r, self.ports[0], first.id)) for r in fast]
        peak = 0.0
        pause.go()
        started = time.monotonic()
        while not all(task.done() for task in reading):
            peak = max(peak, memory_mb(self.stack, "VmRSS"))
            await asyncio.sleep(0.02)
        fast_s = time.monotonic() - started
        for stream in lazy:
            stream.reset()
        resumed = Shown()
        await watch(resumed, self.ports[0], first.id)
        lost = sum(r.text != resumed.text or bool(r.wrong) for r in fast)
        return {"lost": lost, "peak_mb": peak, "fast_s": fast_s}

    async def cuts(self, every: int) -> Figures:
        """Hung up on after so many frames, again and again, on one API and the other."""
        self.provider.plan("cuts", Answer([*(part for one in words(200) for part in (one, 0.002)), *ending()]))
        with Client(self.stack.url) as client, client.streaming("scripted/cuts") as first:
            generation_id = first.id
        reading, turn, longest = Shown(), 0, 0.0
        while not reading.ended:
            started = time.monotonic()
            await watch(reading, self.ports[turn % 2], generation_id, frames=every)
            longest = max(longest, time.monotonic() - started)
            turn += 1
        lost = int(reading.text != whole(200) or bool(reading.wrong))
        return {"lost": lost, "resumes": turn, "longest_leg_s": longest}


async def row(name: str, runs: int, run: Callable[[], Awaitable[Figures]]) -> None:
    """Prints the worst of each figure."""
    found = [await run() for _ in range(runs)]
    worst = {figure: round(max(one[figure] for one in found), 3) for figure in found[0]}
    print(json.dumps({"row": name, "runs": runs, **worst}), flush=True)


async def measure(bench: Bench, runs: int) -> None:
    await row("F33 1000 viewers return at once", runs, bench.storm)
    await row("F32 20 viewers that do not read, 24 MB", runs, bench.slow)
    for every in (1, 2, 3, 7, 50):
        await row(f"F34 cut after every {every} frames", runs, lambda every=every: bench.cuts(every))  # type: ignore[misc]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=int, default=3)
    runs = arguments.parse_args().runs
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most))
    with tempfile.TemporaryDirectory() as name, ScriptedUpstream() as provider:
        directory = Path(name)
        with EmbeddedValkey(directory / "valkey") as valkey:
            settings = {**SETTINGS, "STREAMSPOOL_SEND_TIMEOUT_S": "30"}
            with Stack(valkey.url, provider.base_url, directory, **settings) as stack:
                stack.start("api-2")
                wait_until(lambda: stack.answers("api-2"))
                asyncio.run(measure(Bench(stack, (stack.port, stack.port_of("api-2")), provider), runs))


if __name__ == "__main__":
    main()
