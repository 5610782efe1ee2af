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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.rig import Rig, Viewer
from tests.support.sentinels import Sentinels
from tests.support.stack import wait_until
from tests.support.upstream import ScriptedUpstream

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
    states = [rig.state(viewer.generation_id) for viewer in viewers]
    return {
        "streams": len(viewers),
        "worst_gap_s": round(max(viewer.worst_gap_s for viewer in viewers), 2),
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
