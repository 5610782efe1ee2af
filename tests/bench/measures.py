"""The measurements. Each takes a running target and returns figures by name; what could not be measured is not there.

Figures: `…_ms`, `…_us` (CPU), `…_kb`; `faults` are gaps, repetitions and missing ends, of `streams` looked at.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from redis import Redis

from shared.log.entry import BEGIN
from tests.bench.load import Load, Upstream, Viewers
from tests.bench.machine import CannotMeasure, cpu_s, memory_kb
from tests.bench.targets import Ours, Target
from tests.support.names import keys

Figures = dict[str, float]
COUNTS = ("faults", "gaps", "repeated", "missing_ends", "refused")
"""Added up over all runs. A refused viewer is one that got no 200."""
ATTACHED_PER_S = 700
"""How fast viewers come where it is not their coming that is measured."""
DELTA = '{{"content":"~{seq}:{stamp}~ {pad}"}}'


@dataclass(frozen=True)
class Scale:
    """How much of everything. `reps`: of each measurement, whose median is the figure."""

    reps: int = 1
    rounds: int = 40
    chunks: int = 100
    levels: tuple[int, ...] = (50, 200)
    steps: tuple[int, ...] = (100, 200, 300, 400, 500, 600, 800)
    flood: int = 4000
    viewers: tuple[tuple[int, int, int], ...] = ((5000, 10, 40), (1000, 50, 100))
    """Viewers, chunks a second, chunks."""
    replayed: int = 10_000
    replayers: int = 100
    storm: int = 1000
    cold: int = 3
    jobs: int = 100
    idle_s: float = 5
    silent: int = 5000
    silent_s: float = 16


QUICK = Scale(
    rounds=5, chunks=20, levels=(5, 10), steps=(5, 10), flood=200, viewers=((50, 10, 5), (20, 50, 10)), replayed=300,
    replayers=5, storm=10, cold=1, jobs=5, idle_s=0.5, silent=50, silent_s=1,
)  # fmt: skip
"""Seconds instead of minutes: to see that everything works. Its figures mean nothing."""


def of_load(load: Load) -> Figures:
    """What every run of viewers tells."""
    figures = {name: float(getattr(load, name)) for name in COUNTS}
    figures["streams"] = load.viewers
    for name in ("ttft_ms", "delivery_ms", "total_ms"):
        found: Mapping[str, float] = getattr(load, name)
        figures |= {f"{name.removesuffix('_ms')}_{q}_ms": found[q] for q in ("p50", "p99", "max") if q in found}
    return figures


def counted(target: Target, run: Callable[..., Load]) -> tuple[Load, Figures]:
    """A run and what it cost the target: CPU for each chunk that arrived, and for our own stack which part used it."""
    parts = target.parts if isinstance(target, Ours) else {}
    before = {name: cpu_s([pid]) for name, pid in parts.items()}
    start, at = target.processes.cpu_s(), time.monotonic()
    load = run()
    took, used = time.monotonic() - at, target.processes.cpu_s() - start
    chunks = max(1, load.chunks)
    figures = of_load(load) | {
        "cpu_us": used / chunks * 1e6,
        "cores": used / took,
        "per_core_second": load.chunks / used if used else 0.0,
        "chunks_per_s": load.chunks / load.window_s if load.window_s else 0.0,
        "load_cores": load.cpu_s / took,
    }
    return load, figures | {
        f"cpu_{name}_us": (cpu_s([pid]) - before[name]) / chunks * 1e6 for name, pid in parts.items()
    }


def median(runs: Iterable[Figures]) -> Figures:
    """The median of each figure over the runs; faults and streams are added up, the largest of each `max` is kept."""
    listed = list(runs)
    result: Figures = {}
    for name in listed[0]:
        values = [run[name] for run in listed if name in run]
        fold = sum if name in (*COUNTS, "streams") else max if name.endswith("_max_ms") else statistics.median
        result[name] = float(fold(values))
    return result


def added(*figures: Figures) -> Figures:
    """The sums of what was counted."""
    return {name: sum(found.get(name, 0) for found in figures) for name in (*COUNTS, "streams")}


def warm(target: Target) -> None:
    target.ask(20, 50, target.warm_up)


# ---- one request, one viewer


def first(target: Target, scale: Scale) -> Figures:
    """One stream at a time, started at odd moments."""
    return median(
        counted(target, lambda: target.ask(4, 50, scale.rounds, spacing_ms=150))[1] for _ in range(scale.reps)
    )


def streams(target: Target, scale: Scale, level: int) -> Figures:
    """So many streams at once, 50 chunks a second each; requests come 100 a second."""

    def run() -> Load:
        return target.ask(scale.chunks, 50, level, ramp_s=min(level / 100, 4))

    return median(counted(target, run)[1] for _ in range(scale.reps))


def flood(target: Target, scale: Scale) -> Figures:
    """Eight streams as fast as they go."""
    return median(counted(target, lambda: target.ask(scale.flood, 0, 8))[1] for _ in range(scale.reps))


def steps(target: Target, scale: Scale) -> Figures:
    """The largest step at which nothing is lost and half of the chunks arrive within 20 ms."""
    result: Figures = {"streams_at_50": 0, **added()}
    for level in scale.steps:
        load = target.ask(scale.chunks, 50, level, ramp_s=level / 100)
        result |= added(result, of_load(load))
        result[f"delivery_p50_ms_at_{level}"] = load.delivery_ms.get("p50", float("nan"))
        if load.faults or not load.delivery_ms or load.delivery_ms["p50"] >= 20:
            break
        result["streams_at_50"] = level
    return result


def idle(target: Ours, scale: Scale) -> Figures:
    """Pss of API and worker that have just started, and have answered a few requests."""
    ends = [pid for name, pid in target.parts.items() if name != "valkey"]
    return {"ends_mb": memory_kb(ends) / 1024, **added()}


def memory(target: Target, scale: Scale) -> Figures:
    """Pss of all processes while 200 streams are live."""
    level = max(scale.levels)
    before = target.processes.memory_kb()
    body = target.body(target.upstream.model(scale.chunks, 50))
    run = Viewers(
        target.cores.load, target.chat_url, chunks=scale.chunks, viewers=level, body=body, headers=target.headers,
        ramp_s=min(level / 200, 1),
    )  # fmt: skip
    run.ready()
    during = target.processes.memory_kb()
    return {"memory_before_mb": before / 1024, "memory_mb": during / 1024, **of_load(run.result())}


# ---- many viewers of one stream


def fan(target: Target, scale: Scale, viewers: int, rate: int, chunks: int) -> Figures:
    """One stream, many viewers, all attached before it goes on. Memory is right in a target that was just started."""

    def once() -> Figures:
        running = target.publish(chunks, rate, gated=True)
        before = target.processes.memory_kb()
        watching = target.watch(running, chunks, viewers, ramp_s=viewers / ATTACHED_PER_S)
        watching.ready()
        kb = (target.processes.memory_kb() - before) / viewers

        def run() -> Load:
            running.go()
            return watching.result()

        figures = counted(target, run)[1]
        running.finish()
        return figures | {"memory_kb_per_viewer": kb}

    runs = [once() for _ in range(scale.reps)]
    return median(runs) | {"memory_kb_per_viewer": runs[0]["memory_kb_per_viewer"]}


def silent(target: Ours, scale: Scale) -> Figures:
    """What viewers cost that are attached and get nothing but keep-alives, every 15 s."""
    ids = [target.new_stream(2, 50, gated=True) for _ in range(min(50, scale.silent))]
    url = f"{target.url}/v1/streams/{{id}}"
    watching = Viewers(
        target.cores.load, url, chunks=2, viewers=scale.silent, ids=ids, ramp_s=scale.silent / ATTACHED_PER_S
    )
    watching.ready()
    before = target.processes.cpu_s()
    time.sleep(scale.silent_s)
    used = target.processes.cpu_s() - before
    target.upstream.go()
    return {"idle_percent": used / scale.silent_s * 100, **of_load(watching.result())}


# ---- replay


def replay(target: Target, scale: Scale) -> Figures:
    """A finished stream, again and again: to one viewer, and to a hundred at once."""
    running = target.publish(scale.replayed, 0, gated=False)
    running.finish()
    target.watch(running, scale.replayed, 1).result()
    result: Figures = added()
    for name, viewers, reps in (("one", 1, 5 * scale.reps), ("many", scale.replayers, scale.reps)):
        loads = [
            counted(target, lambda v=viewers: target.watch(running, scale.replayed, v).result()) for _ in range(reps)
        ]
        figures = median(figures for _, figures in loads)
        result |= {f"{name}_{key}": figures[key] for key in ("total_p50_ms", "total_max_ms", "cpu_us")}
        result |= added(result, figures)
        result["bytes"] = loads[0][0].bytes / loads[0][0].viewers
    return result


def cold(target: Ours, scale: Scale) -> Figures:
    """The first viewer of a finished stream at an API process that has just started; `archived_…`: once it is an object."""
    running = target.publish(scale.replayed, 0, gated=False)
    running.finish()

    def first_viewers(**settings: str) -> Figures:
        loads = []
        for _ in range(scale.cold):
            target.restart_api(**settings)
            loads.append(target.watch(running, scale.replayed, 1).result())
        return median(of_load(load) for load in loads)

    figures = first_viewers()
    if target.archives:
        target.archive(running)
        archived = first_viewers(
            STREAMSPOOL_ARCHIVE_AFTER_S="3600"
        )  # a process of such an installation is ready to read them
        figures |= added(figures, archived) | {"archived_total_p50_ms": archived["total_p50_ms"]}
    return figures


def storm(target: Ours, scale: Scale) -> Figures:
    """Time to the first token of others, calm and while a thousand viewers replay at once."""
    running = target.publish(scale.replayed, 0, gated=False)
    running.finish()
    calm = target.ask(4, 50, scale.rounds // 2, spacing_ms=100)
    storming = target.watch(running, scale.replayed, scale.storm)
    during = target.ask(4, 50, scale.rounds // 2, spacing_ms=100)
    replayed = storming.result()
    return {
        "calm_ttft_p50_ms": calm.ttft_ms["p50"],
        "storm_ttft_p50_ms": during.ttft_ms["p50"],
        "storm_total_max_ms": replayed.total_ms["max"],
        **added(of_load(calm), of_load(during), of_load(replayed)),
    }


# ---- jobs and storage


def pickup(target: Ours, scale: Scale) -> Figures:
    """From the doorbell to the worker's claim, read from the log; and what a worker without work uses."""
    idle = target.parts["worker"]
    before = cpu_s([idle])
    time.sleep(scale.idle_s)
    used = cpu_s([idle]) - before
    times = _pick_ups(target, scale.jobs)
    return {
        "pickup_p50_ms": statistics.median(times),
        "pickup_p99_ms": sorted(times)[int(0.99 * (len(times) - 1))],
        "idle_percent": used / scale.idle_s * 100,
    }


def _pick_ups(target: Ours, jobs: int) -> list[float]:
    """Both ends of each wait are seen the same way, by a reader of Valkey, so that what reading costs cancels out."""
    times: list[float] = []
    with Redis.from_url(target.redis_url) as redis, redis.pubsub() as bell:
        bell.subscribe(keys.doorbell)
        bell.get_message(timeout=30)  # the confirmation
        body = target.body(Upstream.model(1, 50))
        asking = Viewers(target.cores.load, target.chat_url, chunks=1, viewers=jobs, body=body, spacing_ms=40)
        while len(times) < jobs:
            rung = bell.get_message(timeout=30)
            at = time.monotonic()
            if rung is None:
                raise CannotMeasure("no doorbell within 30 s")
            claimed = redis.xread({keys.log(rung["data"].decode()): str(BEGIN)}, count=1, block=30_000)
            if not claimed:
                raise CannotMeasure("a job was not picked up within 30 s")
            times.append((time.monotonic() - at) * 1000)
        asking.result()
    return times


def stored(target: Ours, scale: Scale) -> Figures:
    """What one more chunk needs in Valkey, against the JSON of its delta; from two logs, so that constants cancel."""
    redis = Redis.from_url(target.redis_url)
    sizes: dict[int, Any] = {}
    for chunks in (scale.replayed // 10, scale.replayed // 2):
        running = target.publish(chunks, 0, gated=False)
        running.finish()
        sizes[chunks] = redis.memory_usage(keys.log(running.url.rpartition("/")[2]), samples=0)
    redis.close()
    (few, small), (many, large) = sorted(sizes.items())
    delta = len(DELTA.format(seq=many // 2, stamp=time.monotonic_ns(), pad="x" * 8))
    each = (large - small) / (many - few)
    return {"valkey_bytes_per_chunk": each, "delta_bytes": delta, "valkey_bytes_per_delta_byte": each / delta}
