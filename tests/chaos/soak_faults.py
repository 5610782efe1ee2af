"""What the soak breaks, and what it measures of the processes that live on."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import redis

from shared.cli.embedded import CannotStart, EmbeddedValkey
from tests.chaos.soak_load import CANARY
from tests.harness.store import open_store
from tests.support.wire_async import Stream

if TYPE_CHECKING:
    from tests.chaos.soak import Soak

PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
SAMPLE_S = 5.0
WARM_S = 180.0
"""Until then a process still gets larger: modules, pools, and the most that it ever has to do at once."""
JUDGED_MIN = 11
"""Of so many warm minutes, at least, it can be told whether they grow."""
RISE_MB = 5.0
"""What the floor may rise by, in all: half of what a leak of 1 MB a minute does to a process that was spared.

Without one it rose by 3 MB at most in any 12 minutes of an hour; in 8 minutes by up to 5.
"""
PEAK_MB, KEPT_MB = 256.0, 160.0
"""No process of this load takes so much, however young, nor keeps it: an API at most 144 MiB of logs (api/live), and 16 of
objects."""
KEPT = ("streamspool_log_bytes", "streamspool_replay_bytes", "streamspool_retained_bytes", "streamspool_object_bytes")
LONG_S, SPARED_S = 30 * 60.0, 16 * 60.0
LAST_MIN = 20
FDS = 200
FAULT_S, GONE_S, START_S = 120.0, 30.0, 60.0
"""Longer takes no fault, none of which may hold the soak up; no Valkey to end; and no process to get as far as to hear
SIGTERM, on a machine that is busy with other things."""
WORKERS, APIS = ("worker", "worker-2"), ("api", "api-2")


class Sample(NamedTuple):
    """`kept_mb` is what of the resident memory it keeps, by its own account: bounded, and it comes and goes. An API keeps
    logs for viewers, a worker what the server might forget."""

    age_s: float
    resident_mb: float
    kept_mb: float
    files: int


@dataclass
class Life:
    """One process from its start on."""

    name: str
    pid: int
    born: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)

    def measure(self, kept_mb: float) -> None:
        """Nothing in the first seconds, while modules are still being loaded; nothing once it is gone."""
        age = time.monotonic() - self.born
        if age < SAMPLE_S:
            return
        with contextlib.suppress(OSError):
            resident = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE_KB / 1024
            self.samples.append(Sample(age, resident, kept_mb, len(os.listdir(f"/proc/{self.pid}/fd"))))

    @property
    def peak(self) -> float:
        return max(sample.resident_mb for sample in self.samples)

    def floor(self) -> list[float]:
        """The least it took beside what it keeps in each whole minute since it was warm.

        What comes and goes is above it, a leak is below.
        """
        minutes: dict[int, list[float]] = {}
        for age, resident, kept, _ in self.samples:
            if age >= WARM_S:
                minutes.setdefault(int((age - WARM_S) / 60), []).append(resident - kept)
        return [min(found) for _, found in sorted(minutes.items())][:-1]

    def grows(self) -> float | None:
        """MB a minute, if its floor has risen by more than RISE_MB, and goes on to; None if not, or if it was too young to
        tell. What a heap needs for the most that it ever held at once comes with the first large answers, and stays."""
        floor = self.floor()
        if len(floor) < JUDGED_MIN:
            return None
        slope = min(trend(floor), trend(floor[-JUDGED_MIN:]))
        return slope if slope * (len(floor) - 1) > RISE_MB else None

    def figures(self) -> dict[str, Any]:
        floor = self.floor()
        last = floor[-LAST_MIN:]
        first, now = self.samples[0], self.samples[-1]
        return {
            "age_s": round(now.age_s),
            "rss_mb": [round(first.resident_mb), round(now.resident_mb)],
            "peak_mb": round(self.peak),
            "kept_mb": round(now.kept_mb),
            "judged_min": len(floor) if len(floor) >= JUDGED_MIN else 0,
            "mb_per_min": round(trend(floor), 2) if len(floor) >= JUDGED_MIN else None,
            f"last_{LAST_MIN}_min": [round(trend(last), 2), [round(mb) for mb in last]] if len(last) > 1 else None,
            "files": [first.files, now.files],
        }


def trend(values: list[float]) -> float:
    """The slope, for each step, that half of all pairs exceed (Theil and Sen): a few peaks do not bend it."""
    pairs = combinations(enumerate(values), 2)
    return median([(after - before) / (j - i) for (i, before), (j, after) in pairs])


async def gauges(port: int) -> dict[str, float]:
    """What a process says of itself, without labels. Raises OSError where none answers."""
    async with await Stream.open(port, "GET", "/metrics") as stream:
        lines = (await stream.body()).decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.partition(" ") for line in lines if line.startswith("stream"))
    }


def _catches_term(pid: int) -> bool:
    """Whether a process is far enough to be told to stop: before, there is nothing to drain, and SIGTERM just ends it."""
    with contextlib.suppress(OSError):
        caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
        return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
    return False


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """It does nothing meanwhile, and goes on whatever becomes of us."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class Faults:
    """`run` breaks something after each pause of at most `every_s`, until `calm` ends it with everything mended.

    Nothing is broken if `every_s` is None. In the last SPARED_S of a run of LONG_S or more, the first of each pair is
    only stopped and cut off, no more ended: a leak shows in a process that lives.
    """

    def __init__(self, soak: Soak, every_s: float | None, lasts_s: float) -> None:
        self._soak = soak
        self._every_s = every_s
        self._stack = soak.stack
        self._random = soak.random
        self._lives: dict[int, Life] = {}
        self._wanted_dead: set[str] = set()
        self._over = asyncio.Event()
        self._long = lasts_s >= LONG_S
        self._spare_at = time.monotonic() + (lasts_s - SPARED_S if self._long else math.inf)
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        if self._every_s is None:
            await self._over.wait()
            return
        kinds = [self._kill, self._kill, self._stop, self._term, self._term, self._valkey, self._viewers]
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._random.uniform(self._every_s / 4, self._every_s)):
                    await self._over.wait()
                    return
            kind = self._random.choice(kinds)
            try:
                async with asyncio.timeout(FAULT_S):
                    await kind()
            except TimeoutError:
                self._soak.blame(f"{kind.__name__} took more than {FAULT_S} s", counts=dict(self.counts))
                return

    async def calm(self, running: asyncio.Task[None]) -> None:
        """No more faults. One that is under way goes on to its end: each mends what it broke."""
        self._over.set()
        await asyncio.wait({running})
        self.mend()
        try:
            await asyncio.to_thread(self._soak.valkey.wait_ready)
        except CannotStart as error:
            self._soak.blame(f"Valkey is not back: {error}")

    def mend(self) -> None:
        """Whatever was broken, and by whichever way a fault was left: nothing stays stopped or away."""
        if pid := self._soak.valkey.pid:
            os.kill(pid, signal.SIGCONT)
        else:
            self._soak.valkey.launch()
        for name in (*WORKERS, *APIS):
            process = self._stack.process(name)
            process.send_signal(signal.SIGCONT)
            if process.poll() is not None:
                self._start(name)

    def _start(self, name: str) -> None:
        self._wanted_dead.discard(name)
        port = "PORT" if name in APIS else "STREAMSPOOL_WORKER_METRICS_PORT"
        self._stack.start(name, **{port: str(self._soak.metrics[name])})

    def _victim(self) -> str:
        """The second of each pair more often, so that the first lives long enough to show a leak."""
        kind = self._random.choice((WORKERS, APIS))
        return kind[self._random.random() < 0.75]

    def _doomed(self) -> str:
        """One to be ended."""
        name = self._victim()
        return {WORKERS[0]: WORKERS[1], APIS[0]: APIS[1]}.get(name, name) if self._sparing else name

    @property
    def _sparing(self) -> bool:
        return time.monotonic() > self._spare_at

    async def _kill(self) -> None:
        """Sometimes both of a kind: then for a while there is none."""
        name = self._doomed()
        pair = WORKERS if name in WORKERS else APIS
        victims = pair if self._random.random() < 0.2 and not self._sparing else (name,)
        self.counts[f"kill {len(victims)} {pair[0]}"] += 1
        for victim in victims:
            self._wanted_dead.add(victim)
            self._stack.kill(victim)
        await asyncio.sleep(self._random.uniform(0.1, 4))
        for victim in victims:
            self._start(victim)

    async def _stop(self) -> None:
        name = self._victim()
        self.counts[f"stop {name}"] += 1
        with _stopped(self._stack.process(name).pid):
            await asyncio.sleep(self._random.choice([0.5, 2, 6]))

    async def _term(self) -> None:
        name = self._doomed()
        self.counts[f"term {name}"] += 1
        self._wanted_dead.add(name)
        process = self._stack.process(name)
        started = time.monotonic()
        while not (hears := _catches_term(process.pid)) and time.monotonic() - started < START_S:  # noqa: ASYNC110 - a child process
            await asyncio.sleep(0.05)
        process.terminate()
        started = time.monotonic()
        while process.poll() is None and time.monotonic() - started < 20:  # noqa: ASYNC110 - a child process
            await asyncio.sleep(0.05)
        if process.poll() != 0 and hears:
            self._soak.blame(f"{name} did not end in 20 s, or not well", code=process.poll())
        if process.poll() is None:
            process.kill()
            process.wait()
        self._start(name)

    async def _valkey(self) -> None:
        valkey = self._soak.valkey
        how = self._random.choice(["restart", "kill", "stop", "pause"])
        self.counts[f"valkey {how}"] += 1
        if how == "pause":
            await asyncio.to_thread(self._pause, self._random.choice([500, 3000, 6000]))
        elif how == "stop":
            assert valkey.pid
            with _stopped(valkey.pid):
                await asyncio.sleep(self._random.choice([0.5, 3, 6]))
        else:
            assert valkey.pid
            os.kill(valkey.pid, signal.SIGKILL if how == "kill" else signal.SIGTERM)
            await self._until_gone(valkey)
            await asyncio.sleep(self._random.choice([0, 1, 5]))
            valkey.launch()

    def _pause(self, milliseconds: int) -> None:
        """Off the loop, and not for ever: a server that was paused just now answers nobody."""
        options = {"socket_timeout": 10, "socket_connect_timeout": 10}
        with contextlib.suppress(redis.RedisError), open_store(self._soak.valkey.url, **options) as client:
            client.execute_command("CLIENT", "PAUSE", str(milliseconds))

    async def _until_gone(self, valkey: EmbeddedValkey) -> None:
        deadline = time.monotonic() + GONE_S
        while valkey.is_running():
            if time.monotonic() > deadline and valkey.pid:
                self._soak.blame(f"Valkey did not end in {GONE_S} s", pid=valkey.pid)
                os.kill(valkey.pid, signal.SIGKILL)
                deadline = math.inf
            await asyncio.sleep(0.02)

    async def _viewers(self) -> None:
        """Half of all connections are reset at once."""
        self.counts["viewers dropped"] += 1
        for stream in list(self._soak.streams):
            if self._random.random() < 0.5:
                stream.reset()

    # ---- measuring

    async def sample(self) -> None:
        while True:
            measuring = []
            for name in (*WORKERS, *APIS):
                process = self._stack.process(name)
                code = process.poll()
                if code is not None and name not in self._wanted_dead:
                    self._soak.blame(f"{name} ended by itself", code=code, log=self._stack.log(name)[-2000:])
                    self._start(name)
                elif code is None:
                    life = self._lives.setdefault(process.pid, Life(name, process.pid))
                    measuring.append(self._measure(name, life))
            await asyncio.gather(*measuring, asyncio.sleep(SAMPLE_S))

    async def _measure(self, name: str, life: Life) -> None:
        """Not while it does not answer."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(SAMPLE_S):
                found = await gauges(self._soak.metrics[name])
            life.measure(sum(found[kept] for kept in KEPT) / 2**20)

    def problems(self) -> list[dict[str, Any]]:
        wrong: list[dict[str, Any]] = []
        lives = [life for life in self._lives.values() if life.samples]
        for life in lives:
            if slope := life.grows():
                wrong.append({"what": "memory grows", "process": life.name, "mb_per_min": slope, "mb": life.floor()})
            if life.peak > PEAK_MB:
                wrong.append({"what": "much memory", "process": life.name, "mb": life.peak})
            if (kept := max(sample.kept_mb for sample in life.samples)) > KEPT_MB:
                wrong.append({"what": "much is kept", "process": life.name, "mb": kept})
            if max(files := [sample.files for sample in life.samples]) > FDS:
                wrong.append({"what": "open files", "process": life.name, "files": files})
        for pair in (WORKERS, APIS) if self._long else ():
            if not any(len(life.floor()) >= JUDGED_MIN for life in lives if life.name in pair):
                wrong.append({"what": "nobody lived long enough for its memory to be judged", "processes": pair})
        for name in (*WORKERS, *APIS):
            log = self._stack.log(name)
            if CANARY in log:
                wrong.append({"what": "a prompt is in the log", "process": name})
            if at := log.find("Traceback") + 1:
                wrong.append({"what": "a traceback", "process": name, "log": log[max(0, at - 500) : at + 3000]})
        return wrong

    def figures(self) -> dict[str, Any]:
        """The longest life of each process."""
        found = {}
        for name in (*WORKERS, *APIS):
            lives = [life for life in self._lives.values() if life.name == name and life.samples]
            if lives:
                longest = max(lives, key=lambda life: life.samples[-1][0])
                found[name] = {"lives": len(lives), **longest.figures()}
        return found
