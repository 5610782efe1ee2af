"""The load: C tools, compiled on first use, as Python objects; and what they count, as `Load`.

Each tool's own first lines say what it does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.request import ProxyHandler, Request, build_opener

from tests.bench.machine import CannotMeasure, on_core

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".bench"
"""Compiled tools and installed peers; ignored by git, removed by `make clean`."""
SOURCES = Path(__file__).parent / "tools"
COMPILERS = ("cc", "gcc", "clang")


def find_compiler() -> str | None:
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def tool(name: str) -> Path:
    """The compiled tool, newer than its sources. Raises CannotMeasure."""
    built, sources = WORK / "bin" / name, [SOURCES / f"{name}.c", SOURCES / "common.h"]
    if built.exists() and built.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return built
    compiler = find_compiler()
    if not compiler or not sys.platform.startswith("linux"):
        raise CannotMeasure(
            "The load tools are C and need Linux (epoll) and a C compiler called cc, gcc or clang: apt install gcc libc6-dev."
        )
    built.parent.mkdir(parents=True, exist_ok=True)
    fresh = built.with_name(f"{name}.{os.getpid()}")
    done = subprocess.run(
        [compiler, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", str(fresh), str(sources[0])],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise CannotMeasure(f"{compiler} cannot compile {sources[0]}:\n{done.stderr[-2000:]}")
    fresh.replace(built)
    return built


@dataclass(frozen=True)
class Load:
    """What `viewers` has seen; times in ms as `{"p50": …}`, empty where there was nothing to time."""

    viewers: int
    complete: int
    gaps: int
    repeated: int
    endless: int
    broken: int
    refused: int
    unfinished: int
    chunks: int
    bytes: int
    window_s: float
    cpu_s: float
    headers_ms: Mapping[str, float]
    ttft_ms: Mapping[str, float]
    delivery_ms: Mapping[str, float]
    total_ms: Mapping[str, float]

    @classmethod
    def parse(cls, line: str) -> Self:
        return cls(**{name: {} if value is None else value for name, value in json.loads(line).items()})

    @property
    def missing_ends(self) -> int:
        """Viewers that were let in and did not get to an end, or not to all chunks."""
        return max(self.viewers - self.complete, self.endless, self.unfinished, self.broken) - self.refused

    @property
    def faults(self) -> int:
        """0: every viewer was let in, and has got everything once, in order, and an end."""
        return self.gaps + self.repeated + self.missing_ends + self.refused


class Viewers:
    """One run of `viewers`, started at once. `ready()` returns when all have their first chunk, `result()` at the end."""

    def __init__(
        self,
        core: int,
        url: str,
        *,
        chunks: int,
        viewers: int = 1,
        body: str = "",
        headers: Sequence[str] = (),
        ids: Sequence[str] = (),
        end: str = "whole",
        ramp_s: float = 0,
        spacing_ms: float = 0,
        timeout_s: float = 90,
        word: str = "",
    ) -> None:
        command = [tool("viewers"), "-u", url, "-c", viewers, "-n", chunks, "-e", end, "-T", timeout_s]
        command += ["-R", ramp_s, "-S", spacing_ms, *(word for line in headers for word in ("-H", line))]
        command += ["-d", body] if body else []
        command += ["-w", word] if word else []
        command += ["-i", ",".join(ids)] if ids else []
        with on_core(core):
            self._process = subprocess.Popen(
                [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )

    def ready(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "ready\n":
            rest, errors = self._process.communicate()
            raise CannotMeasure(f"viewers did not all get a first chunk: {line}{rest}{errors}"[:1500])

    def result(self) -> Load:
        out, errors = self._process.communicate()
        lines = [line for line in out.splitlines() if line.startswith("{")]
        if not lines:
            raise CannotMeasure(f"viewers ended with {self._process.returncode}: {out[-500:]}{errors[-500:]}")
        return Load.parse(lines[-1])

    def stop(self) -> None:
        """Hangs up on all of them."""
        self._process.terminate()
        self._process.communicate()


class Upstream:
    """The fake provider on its core; a context manager. `model()` names what it is to say."""

    def __init__(self, core: int) -> None:
        self._core = core

    def __enter__(self) -> Self:
        self._process, self.port = start_server("upstream", self._core)
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    @staticmethod
    def model(chunks: int, rate: int, *, gated: bool = False, pad: int = 8) -> str:
        """`rate` is chunks a second, 0 as fast as the socket takes. A gated one waits after its first chunk for `go`."""
        return f"bench-n{chunks}-r{rate}-p{pad}-g{int(gated)}"

    def go(self) -> None:
        post(f"http://127.0.0.1:{self.port}/go")


class Publisher:
    """Sends chunks to a broker's publish URL; with `gated`, the first one at once and the rest after `go`."""

    def __init__(
        self,
        core: int,
        url: str,
        *,
        chunks: int,
        rate: int,
        final: str,
        gated: bool = False,
        headers: Sequence[str] = (),
    ) -> None:
        command = [tool("publish"), "-u", url, "-n", chunks, "-r", rate, "-f", final, *(["-g"] if gated else [])]
        command += [word for line in headers for word in ("-H", line)]
        with on_core(core):
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdout is not None
        if gated and self._process.stdout.readline() != "waiting\n":
            raise CannotMeasure(f"cannot publish to {url}: {self._process.communicate()[1][-500:]}")

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        out, errors = self._process.communicate()
        if self._process.returncode:
            raise CannotMeasure(f"publish ended with {self._process.returncode}: {errors[-500:]}")
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found


def start_server(name: str, core: int) -> tuple[subprocess.Popen[str], int]:
    """`upstream` or `ceiling`, on any free port."""
    with on_core(core):
        process = subprocess.Popen([str(tool(name))], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline().split()[1])


_direct = build_opener(ProxyHandler({}))


def post(
    url: str, body: bytes = b"", headers: Mapping[str, str] | None = None, *, method: str = "POST"
) -> Mapping[str, str]:
    """One request; returns the response's headers as soon as they are there, lower case, and hangs up."""
    request = Request(url, data=body if method == "POST" else None, headers=dict(headers or {}), method=method)
    with _direct.open(request, timeout=60) as response:
        return {name.lower(): value for name, value in response.headers.items()}
