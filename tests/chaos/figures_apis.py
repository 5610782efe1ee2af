"""What `up --apis N` costs and how it spreads its viewers: the figures of docs/SCALE.md.

    python -m tests.chaos.figures_apis [--apis 1,2,4] [--rounds 3] [--viewers 200] [--answers 10] [--seconds 10]

In each round every number of processes has its turn, with a Valkey and a worker of its own: so many viewers of some answers of
20 chunks a second come to the shared port, and it is counted what the APIs and Valkey use for each chunk that a viewer gets;
then short answers are asked for, eight at once. CPU is by the processes' own clocks, so that a busy machine makes it larger by
some per cent, and never smaller. A JSON line for each turn, with how busy others kept the machine meanwhile, and at the end
each figure as a ratio to the first number of the same round: the median, and the range.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.bench.machine import cpu_s
from tests.chaos.rolling import WORDS, Audience, several, soon, viewers_of_each
from tests.support.up import Up
from tests.support.wire_async import JSON, Stream

RATE = 20
ASKED, AT_ONCE = 200, 8
QUIET = {"LOG_LEVEL": "warning"}
COMPARED = ("api_us_a_chunk", "valkey_us_a_chunk", "api_ms_an_answer", "largest_share")


def machine_s() -> float:
    """CPU seconds that everything on this machine has used."""
    user, nice, system, _, _, interrupts, soft, *_ = map(
        int, Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    )
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


class Turn:
    """One number of processes, for as long as it runs."""

    def __init__(self, one: Up, own: int, apis: int) -> None:
        self.one, self._own, self._apis = one, own, apis
        self.port = int(one.url.rpartition(":")[2])

    async def used(self, run: Callable[[], Awaitable[None]]) -> dict[str, float]:
        """CPU seconds of the parts, of all of ours, and of others, meanwhile."""
        parts = {part: self.one.all(part) for part in ("api", "worker", "valkey")}

        def look() -> dict[str, float]:
            found = {part: cpu_s(pids) for part, pids in parts.items()}
            return {**found, "ours": sum(found.values()) + cpu_s([os.getpid()]), "machine": machine_s()}

        before, loop = look(), asyncio.get_running_loop()
        began = loop.time()
        await run()
        took_s, after = loop.time() - began, look()
        found = {part: after[part] - value for part, value in before.items()}
        cores = took_s * (os.cpu_count() or 1)
        return {**found, "others": max(0.0, found["machine"] - found["ours"]) / cores}

    async def watched(self, viewers: int, answers: int, seconds: float) -> dict[str, Any]:
        audience = Audience(self.port)
        ids = [await audience.ask(int(RATE * (seconds + 120)), RATE) for _ in range(answers)]
        watching = [asyncio.create_task(audience.watch(ids[number % answers])) for number in range(viewers)]
        spread = await soon(lambda: sum(found := viewers_of_each(self._own, self._apis)) == viewers and found)
        before = sum(shown.count for _, shown in audience.shown)
        used = await self.used(lambda: asyncio.sleep(seconds))
        chunks = sum(shown.count for _, shown in audience.shown) - before
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        wrong = [one for _, shown in audience.shown for one in shown.wrong]
        assert not wrong, wrong[:3]
        assert not audience.refused, audience.refused
        return {
            "viewers_of_each": spread,
            "largest_share": round(max(spread) * self._apis / viewers, 2),
            "chunks": chunks,
            "api_us_a_chunk": round(used["api"] / chunks * 1e6, 1),
            "valkey_us_a_chunk": round(used["valkey"] / chunks * 1e6, 1),
            "longest_gap_s": round(max(shown.max_gap_s for _, shown in audience.shown), 2),
            "others": round(used["others"], 2),
        }

    async def asked(self) -> dict[str, Any]:
        """Short answers, each on a connection of its own: whoever is idle takes it."""
        content, left = json.dumps({**WORDS, "stream": True}).encode(), iter(range(ASKED))

        async def client() -> None:
            for _ in left:
                async with await Stream.open(
                    self.port, "POST", "/v1/chat/completions", headers=JSON, body=content
                ) as stream:
                    assert (await stream.body()).endswith(b"data: [DONE]\n\n"), stream.status

        async def all_of_them() -> None:
            await asyncio.gather(*(client() for _ in range(AT_ONCE)))

        used = await self.used(all_of_them)
        return {
            "api_ms_an_answer": round(used["api"] / ASKED * 1e3, 2),
            "worker_ms_an_answer": round(used["worker"] / ASKED * 1e3, 2),
            "others_then": round(used["others"], 2),
        }


async def measure(turn: Turn, viewers: int, answers: int, seconds: float) -> dict[str, Any]:
    asked = await turn.asked()  # what is loaded late is loaded now
    return {**await turn.watched(viewers, answers, seconds), **asked, **await turn.asked()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--apis", type=lambda text: [int(one) for one in text.split(",")], default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--viewers", type=int, default=200)
    parser.add_argument("--answers", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    ratios: dict[tuple[int, str], list[float]] = {}
    for _ in range(options.rounds):
        first: dict[str, Any] = {}
        for apis in options.apis:
            with tempfile.TemporaryDirectory() as place, several(Path(place), apis, **QUIET) as (one, own):
                turn = Turn(one, own, apis)
                found = asyncio.run(measure(turn, options.viewers, options.answers, options.seconds))
            print(json.dumps({"apis": apis, **found}), flush=True)
            first = first or found
            for name in COMPARED:
                ratios.setdefault((apis, name), []).append(found[name] / first[name])
    for (apis, name), found_ratios in ratios.items():
        middle, least, most = statistics.median(found_ratios), min(found_ratios), max(found_ratios)
        print(f"{apis} APIs, {name}: {middle:.2f} × ({least:.2f} to {most:.2f})")


if __name__ == "__main__":
    main()
