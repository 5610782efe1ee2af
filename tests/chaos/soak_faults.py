"""What the soak breaks, and what it measures of the processes that live on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from tests.chaos.soak_load import CANARY

if TYPE_CHECKING:
    from tests.chaos.soak import Soak

PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
SAMPLE_S = 5.0
WARM_S = 45.0
JUDGED_S = 180.0
SLOPE_MB_PER_MIN = 2.0
GROWTH_MB = 24.0
FDS = 200
WORKERS, APIS = ("worker", "worker-2"), ("api", "api-2")


@dataclass
class Life:
    """One process from its start on: (age in seconds, resident MB, open files)."""

    name: str
    pid: int
    born: float = field(default_factory=time.monotonic)
    samples: list[tuple[float, float, int]] = field(default_factory=list)

    def measure(self) -> None:
        """Nothing in the first seconds, while modules are still being loaded; nothing once it is gone."""
        age = time.monotonic() - self.born
        if age < SAMPLE_S:
            return
        with contextlib.suppress(OSError):
            resident = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE_KB / 1024
            self.samples.append((age, resident, len(os.listdir(f"/proc/{self.pid}/fd"))))

    def slope(self) -> float | None:
        """MB a minute, once warm; None for a life too short to tell."""
        points = [(age, rss) for age, rss, _ in self.samples if age > WARM_S]
        if len(points) < 3 or points[-1][0] < JUDGED_S:
            return None
        mean_x, mean_y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
        spread = sum((x - mean_x) ** 2 for x, _ in points)
        return 60 * sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def _catches_term(pid: int) -> bool:
    """Whether a process is far enough to be told to stop: before, there is nothing to drain, and SIGTERM just ends it."""
    with contextlib.suppress(OSError):
        caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
        return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
    return False


class Faults:
    """`run` breaks something after each pause of at most `every_s`, until `calm` ends it with everything mended."""

    def __init__(self, soak: Soak, every_s: float) -> None:
        self._soak = soak
        self._every_s = every_s
        self._stack = soak.stack
        self._random = soak.random
        self._lives: dict[int, Life] = {}
        self._wanted_dead: set[str] = set()
        self._over = asyncio.Event()
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        kinds = [self._kill, self._kill, self._stop, self._term, self._term, self._valkey, self._viewers]
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._random.uniform(self._every_s / 4, self._every_s)):
                    await self._over.wait()
                    return
            await self._random.choice(kinds)()

    async def calm(self, running: asyncio.Task[None]) -> None:
        """No more faults. One that is under way goes on to its end: each mends what it broke."""
        self._over.set()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.to_thread(self._soak.valkey.wait_ready)

    def _start(self, name: str) -> None:
        self._wanted_dead.discard(name)
        ports = dict(zip(APIS, self._soak.ports, strict=True))
        self._stack.start(name, **({"PORT": str(ports[name])} if name in ports else {}))

    def _victim(self) -> str:
        """The second of each pair more often, so that the first lives long enough to show a leak."""
        kind = self._random.choice((WORKERS, APIS))
        return kind[self._random.random() < 0.75]

    async def _kill(self) -> None:
        """Sometimes both of a kind: then for a while there is none."""
        name = self._victim()
        pair = WORKERS if name in WORKERS else APIS
        victims = pair if self._random.random() < 0.2 else (name,)
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
        self._stack.kill(name, signal.SIGSTOP)
        await asyncio.sleep(self._random.choice([0.5, 2, 6]))
        self._stack.kill(name, signal.SIGCONT)

    async def _term(self) -> None:
        name = self._victim()
        self.counts[f"term {name}"] += 1
        self._wanted_dead.add(name)
        process = self._stack.process(name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):
                while not _catches_term(process.pid):  # noqa: ASYNC110 - a child process
                    await asyncio.sleep(0.05)
        process.terminate()
        started = time.monotonic()
        while process.poll() is None and time.monotonic() - started < 20:  # noqa: ASYNC110 - a child process
            await asyncio.sleep(0.05)
        if process.poll() != 0:
            self._soak.blame(f"{name} did not end in 20 s, or not well", code=process.poll())
            process.kill()
            process.wait()
        self._start(name)

    async def _valkey(self) -> None:
        valkey = self._soak.valkey
        how = self._random.choice(["restart", "kill", "stop", "pause"])
        self.counts[f"valkey {how}"] += 1
        assert valkey.pid
        if how == "pause":
            with contextlib.suppress(redis.RedisError), redis.Redis.from_url(valkey.url) as client:
                client.execute_command("CLIENT", "PAUSE", str(self._random.choice([500, 3000, 6000])))
        elif how == "stop":
            os.kill(valkey.pid, signal.SIGSTOP)
            await asyncio.sleep(self._random.choice([0.5, 3, 6]))
            os.kill(valkey.pid, signal.SIGCONT)
        else:
            os.kill(valkey.pid, signal.SIGKILL if how == "kill" else signal.SIGTERM)
            while valkey.is_running():  # noqa: ASYNC110 - a child process
                await asyncio.sleep(0.02)
            await asyncio.sleep(self._random.choice([0, 1, 5]))
            valkey.launch()

    async def _viewers(self) -> None:
        """Half of all connections are reset at once."""
        self.counts["viewers dropped"] += 1
        for stream in list(self._soak.streams):
            if self._random.random() < 0.5:
                stream.reset()

    # ---- measuring

    async def sample(self) -> None:
        while True:
            for name in (*WORKERS, *APIS):
                process = self._stack.process(name)
                code = process.poll()
                if code is not None and name not in self._wanted_dead:
                    self._soak.blame(f"{name} ended by itself", code=code, log=self._stack.log(name)[-2000:])
                    self._start(name)
                elif code is None:
                    life = self._lives.setdefault(process.pid, Life(name, process.pid))
                    life.measure()
            await asyncio.sleep(SAMPLE_S)

    def problems(self) -> list[dict[str, Any]]:
        wrong: list[dict[str, Any]] = []
        for life in self._lives.values():
            slope = life.slope()
            warm = [rss for age, rss, _ in life.samples if age > WARM_S]
            if slope and slope > SLOPE_MB_PER_MIN and max(warm) - warm[0] > GROWTH_MB:
                wrong.append({"what": "memory grows", "process": life.name, "mb_per_min": slope, "mb": warm[::6]})
            if life.samples and max(files for *_, files in life.samples) > FDS:
                wrong.append({"what": "open files", "process": life.name, "files": [f for *_, f in life.samples]})
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
                slope = longest.slope()
                found[name] = {
                    "lives": len(lives),
                    "age_s": round(longest.samples[-1][0]),
                    "rss_mb": [round(longest.samples[0][1]), round(longest.samples[-1][1])],
                    "mb_per_min": None if slope is None else round(slope, 2),
                    "files": [longest.samples[0][2], longest.samples[-1][2]],
                }
        return found
