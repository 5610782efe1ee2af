"""The rows of the fault matrix about Redis that take minutes, again and again: one JSON line for each.

    python -m tests.chaos.figures_redis [ROW …]

`lost` and `duplicated` count chunks that viewers missed or saw twice; `explicit` counts streams that ended with an
error, which only a fail-over that loses data may cause; `worst_gap_s` is the longest silence any viewer had. The rows of
f40 need LIBFAKETIME, the path of `libfaketime.so.1` (package faketime of Debian and Ubuntu), and are left out without.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.harness.processes import Stack, free_port, wait_until
from tests.harness.upstream import Pause, ScriptedUpstream, words
from tests.support.pair import Pair
from tests.support.rig import Rig, Viewer
from tests.support.sentinels import Sentinels
from tests.support.server import Server

LEASE = {"STREAMSPOOL_LEASE_S": "10", "STREAMSPOOL_HOLD_HEADERS_S": "5"}
STREAMS = 20


@contextmanager
def rigged(directory: Path, redis_url: str = "") -> Iterator[Rig]:
    """A stack with the lease that people run with, whose processes survive."""
    with ScriptedUpstream() as upstream, Rig(upstream, directory, redis_url=redis_url, **LEASE) as rig:
        before = rig.pids()
        yield rig
        assert rig.pids() == before


def figures(rig: Rig, viewers: Sequence[Viewer], **more: Any) -> dict[str, Any]:
    for viewer in viewers:
        viewer.end(180)
    unexplained = [problem for viewer in viewers if (problem := viewer.judge()) and not viewer.error]
    states = [rig.state(viewer.id) for viewer in viewers]
    return {
        "streams": len(viewers),
        "worst_gap_s": round(max(viewer.max_gap_s for viewer in viewers), 2),
        "lost": sum(viewer.missing for viewer in viewers) + len(unexplained),
        "duplicated": sum(viewer.repeated for viewer in viewers),
        "explicit": sum(viewer.error is not None for viewer in viewers),
        "attempts": max(state["attempts"] for state in states),
        "calls": max(len(viewer.script.calls) for viewer in viewers),
        **more,
    }


def away(directory: Path, seconds: float) -> dict[str, Any]:
    with rigged(directory) as rig:
        before = rig.log_lines()
        viewers = rig.streams(STREAMS, chunks=int(10 * seconds) + 50, pause_s=0.1)
        rig.proxy.refuse()
        asked = time.monotonic()
        status = rig.post().status_code
        refused_s = time.monotonic() - asked
        time.sleep(max(0, seconds - refused_s))
        rig.proxy.heal()
        found = figures(rig, viewers, outage_s=seconds, post=status, post_s=round(refused_s, 2))
        lines = max(count - before[name] for name, count in rig.log_lines().items())
        return {**found, "most_log_lines": lines}


def killed(directory: Path) -> dict[str, Any]:
    with rigged(directory) as rig:
        viewers = rig.streams(STREAMS, chunks=60)
        rig.kill_valkey()
        rig.start_valkey()
        return figures(rig, viewers)


def replies_lost(directory: Path) -> dict[str, Any]:
    with rigged(directory) as rig:
        viewers = rig.streams(5, chunks=1200, pause_s=0.03)
        rig.proxy.lose_replies(b"XADD", 100)
        return {**figures(rig, viewers), "replies_lost": rig.proxy.lost}


def failed_over(directory: Path) -> dict[str, Any]:
    with Sentinels(directory) as sentinels, rigged(directory, sentinels.url) as rig:
        viewers = rig.streams(STREAMS, chunks=200, pause_s=0.05)
        sentinels.kill_master()
        return figures(rig, viewers)


WARM = 60
"""Requests at once that warm the API's pool."""


def managed(rig: Rig, pair: Pair) -> dict[str, Any]:
    """A failover behind an address, while streams run and every connection of the pool leads to the old master: how
    many requests are refused before the first that is answered, and how long that takes, from the promotion on."""
    viewers = rig.streams(4, chunks=150, pause_s=0.03)
    with ThreadPoolExecutor(WARM) as pool:
        assert any(response.status_code == 200 for response in pool.map(lambda _: rig.post(), range(WARM)))
    pair.fail_over()
    promoted, refused = time.monotonic(), 0
    while (response := rig.post()).status_code != 200:
        assert time.monotonic() - promoted < 60, response.text
        refused += 1
        time.sleep(0.02)
    good_ms = round((time.monotonic() - promoted) * 1000)
    ready = httpx.get(f"{rig.stack.url}/readyz", timeout=10, trust_env=False).status_code
    rig.whole(viewers)
    return {
        "refused": refused,
        "first_good_ms": good_ms,
        "ready": ready,
        "worst_gap_s": max(v.max_gap_s for v in viewers),
    }


def managed_alone(directory: Path, kind: str) -> dict[str, Any]:
    with (
        Pair(directory / "pair", kind) as pair,
        ScriptedUpstream() as upstream,
        Rig(upstream, directory, redis_url=pair.url, **LEASE) as rig,
    ):
        return managed(rig, pair)


def tls_away(directory: Path, seconds: float) -> dict[str, Any]:
    """CPU of a worker whose TLS server is away, in percent of a core: never there, and with certificates that are not
    checked, which could not even be tried."""
    found: dict[str, Any] = {"seconds": seconds}
    for name, query in (("cpu", ""), ("cpu_unchecked", "?ssl_cert_reqs=none")):
        place = directory / name
        place.mkdir()
        stack = Stack(f"rediss://127.0.0.1:{free_port()}/0{query}", "http://127.0.0.1:1", place)
        try:
            process = stack.start("worker")
            wait_until(lambda stack=stack: "worker started" in stack.log("worker"), 30)
            time.sleep(2)
            before = cpu_s(process.pid)
            time.sleep(seconds)
            found[name] = round(100 * (cpu_s(process.pid) - before) / seconds, 2)
        finally:
            stack.__exit__()
    return found


def cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def full(directory: Path, kind: str) -> dict[str, Any]:
    """Eight whole answers at a server whose memory is full, and nobody makes room: after how long each client is told."""
    role, *said = words(50)
    with (
        Server(directory / "server", "--appendonly", "yes", kind=kind) as server,
        ScriptedUpstream() as upstream,
        Stack(server.url, upstream.base_url, directory) as stack,
    ):
        barrier = Pause()
        script = upstream.script("full", [role, *said[:10], barrier, *said[10:], Pause()])
        body = {"model": "scripted/full", "messages": [{"role": "user", "content": "x"}]}
        url = f"{stack.url}/v1/chat/completions"
        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(httpx.post, url, json=body, timeout=120, trust_env=False) for _ in range(8)]
            wait_until(lambda: script.live == 8, 30, "all are asked")
            time.sleep(2)  # what was said is stored
            server.client().config_set("maxmemory", 1)
            filled = time.monotonic()
            barrier.go()
            responses = [future.result() for future in waiting]
            told_s = time.monotonic() - filled
        wait_until(lambda: not script.live, 10, "the provider is hung up on")
        return {
            "answers": len(responses),
            "status": max(response.status_code for response in responses),
            "codes": str(sorted({response.json()["error"]["code"] for response in responses})),
            "told_after_s": round(told_s, 1),
            "calls": len(script.calls),
        }


@contextmanager
def faked_clock(rig: Rig, directory: Path) -> Iterator[Callable[[int], None]]:
    """Restarts the server with a clock that can be set off by so many seconds, at any time."""
    offset = directory / "clock"
    offset.write_text("+0")
    faked = {
        "LD_PRELOAD": os.environ["LIBFAKETIME"],
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    rig.kill_valkey()
    os.environ.update(faked)
    try:
        rig.start_valkey()
    finally:
        for name in faked:
            del os.environ[name]
    rig.answers_again()

    def set_off(seconds: int) -> None:
        offset.write_text(f"{seconds:+d}")
        wait_until(lambda: abs(rig.redis.time()[0] - time.time() - seconds) < 2, what="the clock is off")

    yield set_off


def clock_off(directory: Path, *, before: int, during: int) -> dict[str, Any]:
    """A server whose clock is off by `before` seconds when streams begin, and by `during` while they go on."""
    with rigged(directory) as rig, faked_clock(rig, directory) as set_off:
        set_off(before)
        wait_until(lambda: len(rig.redis.keys("streamspool:worker:*")) == 2, what="both workers have reported")
        time.sleep(float(LEASE["STREAMSPOOL_LEASE_S"]))  # workers that have just started take nothing over
        asked = time.monotonic()
        viewers = rig.streams(STREAMS, chunks=100)
        begun_s = time.monotonic() - asked
        set_off(during)
        return figures(rig, viewers, all_begun_s=round(begun_s, 2))


ROWS: dict[str, tuple[int, Callable[[Path], dict[str, Any]]]] = {
    "f14 killed": (5, killed),
    "f15 away 5 s": (5, lambda directory: away(directory, 5)),
    "f16 away 60 s": (1, lambda directory: away(directory, 60)),
    "f18 replies lost": (1, replies_lost),
    "f21 fail-over": (5, failed_over),
    "f45 TLS server away": (1, lambda directory: tls_away(directory, 60)),
    "f52 full, Valkey 9": (1, lambda directory: full(directory, "valkey")),
    "f52 full, Redis 7": (1, lambda directory: full(directory, "redis")),
    "f55 managed failover, Valkey 9": (10, lambda directory: managed_alone(directory, "valkey")),
    "f55 managed failover, Redis 7": (10, lambda directory: managed_alone(directory, "redis")),
    "f40 clock off by -90 s": (1, lambda directory: clock_off(directory, before=-90, during=-90)),
    "f40 clock off by 90 s": (1, lambda directory: clock_off(directory, before=90, during=90)),
    "f40 clock steps back by 90 s": (3, lambda directory: clock_off(directory, before=0, during=-90)),
    "f40 clock steps on by 90 s": (3, lambda directory: clock_off(directory, before=0, during=90)),
}


def main() -> None:
    wanted = sys.argv[1:]
    for row, (runs, run) in ROWS.items():
        if wanted and not any(row.startswith(word) for word in wanted):
            continue
        if row.startswith("f40") and "LIBFAKETIME" not in os.environ:
            print(f"{row}: left out, LIBFAKETIME is not set", file=sys.stderr)
            continue
        all_runs = []
        for _ in range(runs):
            with tempfile.TemporaryDirectory(prefix="rig-") as directory:
                all_runs.append(run(Path(directory)))
        worst = {name: max(found[name] for found in all_runs) for name in all_runs[0]}
        print(json.dumps({"row": row, "runs": runs, **worst}), flush=True)


if __name__ == "__main__":
    main()
