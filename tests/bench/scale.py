"""How cost grows: with streams, viewers, chunks, API processes and workers. `python -m tests.bench.scale [--apart]`.

Everything of ours stays on one core, so that what grows is what has to be done, and not what waits for another core; on
a larger machine the same work is spread. With `--apart`, parts have cores of their own, as many as there are. Each row
starts a fresh stack.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.bench import machine, measures
from tests.bench.load import Load, Upstream, Viewers
from tests.bench.machine import CannotMeasure, Cores, cpu_s
from tests.bench.measures import ATTACHED_PER_S, Figures
from tests.bench.report import markdown, number, plain
from tests.bench.run import say
from tests.bench.targets import Ours

Rows = list[list[str]]
COST = ("cpu_api_us", "cpu_worker_us", "cpu_valkey_us")


class Scaling:
    """Collects one table for each thing that grows: `tables`, by name, and `figures`, by table and level."""

    def __init__(self, cores: Cores, *, quick: bool) -> None:
        self.cores, self.quick = cores, quick
        self.figures: dict[str, dict[int, Figures]] = {}

    def run(self) -> None:
        quick = self.quick
        chunks = 20 if quick else 100
        self._each("streams", (1, 4) if quick else (1, 10, 50, 100, 200), lambda t, n: _streams(t, n, chunks))
        self._each("viewers", (1, 10) if quick else (1, 10, 100, 1000, 5000), lambda t, n: _viewers(t, n, chunks))
        self._each("chunks", (10, 100) if quick else (100, 1000, 10_000), _chunks)
        processes, level = ((1, 2), 4) if quick else ((1, 2, 4), 50)
        self._each("apis", processes, lambda t, _: _everywhere(t, level, chunks), apis=True)
        self._each("workers", processes, lambda t, _: _streams(t, level, chunks), workers=True)

    def _each(
        self,
        name: str,
        levels: Sequence[int],
        measure: Callable[[Ours, int], Figures],
        *,
        apis: bool = False,
        workers: bool = False,
    ) -> None:
        for level in levels:
            with tempfile.TemporaryDirectory(prefix="bench-") as directory, Upstream(self.cores.load) as upstream:
                counts = {"apis": level if apis else 1, "workers": level if workers else 1}
                with Ours(self.cores, upstream, Path(directory), **counts) as target:
                    measures.warm(target)
                    found = self.figures.setdefault(name, {})[level] = measure(target, level)
            say(f"  {name} {level}: {found['faults']:g} faults")


def by_part(target: Ours, run: Callable[[], Sequence[Load]]) -> Figures:
    """Several loads at once, as one; CPU summed over processes of the same kind, for each chunk that arrived."""
    before = {name: cpu_s([pid]) for name, pid in target.parts.items()}
    loads = run()
    arrived = max(1, sum(load.chunks for load in loads))
    figures: Figures = dict.fromkeys(COST, 0.0)
    for name, pid in target.parts.items():
        figures[f"cpu_{name.partition('-')[0]}_us"] += (cpu_s([pid]) - before[name]) / arrived * 1e6
    figures["delivery_p50_ms"] = max(load.delivery_ms.get("p50", 0.0) for load in loads)
    figures["delivery_p99_ms"] = max(load.delivery_ms.get("p99", 0.0) for load in loads)
    return figures | measures.added(*map(measures.of_load, loads))


def _streams(target: Ours, level: int, chunks: int) -> Figures:
    return by_part(target, lambda: [target.ask(chunks, 50, level, ramp_s=level / 100)])


def _viewers(target: Ours, viewers: int, chunks: int) -> Figures:
    """One stream of 10 chunks a second, watched by so many."""
    running = target.publish(chunks, 10, gated=True)
    before = target.processes.memory_kb()
    watching = target.watch(running, chunks, viewers, ramp_s=viewers / ATTACHED_PER_S)
    watching.ready()
    memory = (target.processes.memory_kb() - before) / viewers

    def speak() -> list[Load]:
        running.go()
        return [watching.result()]

    return by_part(target, speak) | {"memory_kb_per_viewer": memory}


def _everywhere(target: Ours, streams: int, chunks: int) -> Figures:
    """So many streams of 20 chunks a second, each watched once through each API process."""
    ids = [target.new_stream(chunks, 20, gated=True) for _ in range(streams)]
    watching = [
        Viewers(
            target.cores.load, f"http://127.0.0.1:{port}/v1/streams/{{id}}", chunks=chunks, viewers=streams, ids=ids
        )
        for port in target.ports
    ]
    for run in watching:
        run.ready()

    def speak() -> list[Load]:
        target.upstream.go()
        return [run.result() for run in watching]

    figures = by_part(target, speak)
    return figures | {"valkey_us_per_stored_chunk": figures["cpu_valkey_us"] * len(target.ports)}


def _chunks(target: Ours, chunks: int) -> Figures:
    """One stream as fast as it goes, and then its replay."""
    figures = by_part(target, lambda: [target.ask(chunks, 0)])
    running = target.publish(chunks, 0, gated=False)
    running.finish()
    replay = target.watch(running, chunks, 1).result()
    return figures | {"replay_ms": replay.total_ms["p50"]}


HEADINGS: Mapping[str, tuple[str, Sequence[tuple[str, str]]]] = {
    "streams": ("streams of 50 chunks/s, one viewer each", ()),
    "viewers": ("viewers of one stream of 10 chunks/s", (("memory a viewer, kB", "memory_kb_per_viewer"),)),
    "chunks": ("chunks of one stream, unthrottled", (("replay, ms", "replay_ms"),)),
    "apis": (
        "API processes, 50 streams of 20 chunks/s, each watched through all of them",
        (("Valkey, µs a stored chunk", "valkey_us_per_stored_chunk"),),
    ),
    "workers": ("workers, 50 streams of 50 chunks/s", ()),
}


def tables(figures: Mapping[str, Mapping[int, Figures]]) -> dict[str, Rows]:
    """A table for each thing that grows. CPU is for each chunk that arrived at a viewer."""
    result: dict[str, Rows] = {}
    for name, levels in figures.items():
        title, more = HEADINGS[name]
        columns = [
            ("API, µs", "cpu_api_us"),
            ("worker, µs", "cpu_worker_us"),
            ("Valkey, µs", "cpu_valkey_us"),
            ("delivery p50, ms", "delivery_p50_ms"),
            ("p99, ms", "delivery_p99_ms"),
            *more,
        ]
        rows = [[title, *(heading for heading, _ in columns), "lost, repeated, endless"]]
        for level, found in levels.items():
            rows.append([f"{level:,}", *(number(found.get(key)) for _, key in columns), number(found["faults"])])
        result[name] = rows
    return result


def apart(figures: Mapping[str, Mapping[int, Figures]], beside: Mapping[str, Mapping[int, Figures]]) -> Rows:
    """All of them in one table, `figures` of parts that have cores of their own, with the delays where they shared one."""
    columns = (*COST, "delivery_p50_ms", "delivery_p99_ms")
    headings = ["API, µs", "worker, µs", "Valkey, µs", "delivery p50, ms", "p99, ms", "p50 on one core", "p99"]
    rows = [["", "", *headings, "lost, repeated, endless"]]
    for name, levels in figures.items():
        title = HEADINGS[name][0]
        for level, found in levels.items():
            one = beside.get(name, {}).get(level, {})
            cells = [*map(found.get, columns), *map(one.get, columns[-2:])]
            rows.append([title, f"{level:,}", *map(number, cells), number(found["faults"])])
            title = ""
    return rows


STREAMS, RATE, VIEWERS, BUSY = 10_000, 50, 100_000, 0.7


def arithmetic(figures: Mapping[str, Mapping[int, Figures]]) -> Rows:
    """What 10,000 live streams of 50 chunks/s with 100,000 viewers in all would take, on cores that are 70 % busy.

    Workers and Valkey: by the cost of a chunk at the largest number of streams. API: a chunk is read once by each process
    that serves it, and written once for each viewer.
    """
    busiest = figures["streams"][max(figures["streams"])]
    viewers = figures["viewers"]
    wide = viewers[min(1000, max(viewers))]
    chunks, deliveries = STREAMS * RATE, STREAMS * RATE * (VIEWERS // STREAMS)
    apis = figures["apis"]
    few, many = min(apis), max(apis)
    read_us = (apis[many]["valkey_us_per_stored_chunk"] - apis[few]["valkey_us_per_stored_chunk"]) / max(1, many - few)
    memory_kb = viewers[max(viewers)]["memory_kb_per_viewer"]
    rows = [["part", "work a second", "cost each, µs", f"cores at {BUSY:.0%}"]]
    for part, count, cost in (
        ("workers", chunks, busiest["cpu_worker_us"]),
        ("API, writing to viewers", deliveries, wide["cpu_api_us"]),
        ("API, reading each chunk once", chunks, max(0.0, busiest["cpu_api_us"] - wide["cpu_api_us"])),
        ("Valkey, storing and one reader", chunks, busiest["cpu_valkey_us"]),
        ("Valkey, each further API process that serves the stream", chunks, max(0.0, read_us)),
    ):
        rows.append([part, f"{count:,}", number(cost), number(count * cost / 1e6 / BUSY)])
    rows.append([f"memory of {VIEWERS:,} viewers", "", "", f"{number(VIEWERS * memory_kb / 2**20)} GiB"])
    one = 1e6 * BUSY / busiest["cpu_valkey_us"]
    rows.append(
        ["one Valkey (one core for commands) carries", f"{number(one)} chunks", "", f"{number(one / RATE)} streams"]
    )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description="Measures how cost grows.")
    parser.add_argument("--quick", action="store_true", help="seconds, tiny loads: figures without meaning")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--apart", action="store_true", help="give the parts cores of their own, and say no arithmetic")
    parser.add_argument("--boost", action="store_true", help="go before everything else on this machine (root)")
    options = parser.parse_args()
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        machine.prepare(boost=options.boost)
        cores = Cores.choose_apart() if options.apart else Cores.choose()
        scaling = Scaling(cores, quick=options.quick)
        os.sched_setaffinity(0, {cores.load})
        scaling.run()
    except CannotMeasure as error:
        print(error, file=sys.stderr)
        return 2
    form = markdown if options.markdown else plain
    if options.apart:
        print(f"{cores.told()}\n\n{form(apart(scaling.figures, {}))}")
        return 0
    for rows in (*tables(scaling.figures).values(), arithmetic(scaling.figures)):
        print(f"{form(rows)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
