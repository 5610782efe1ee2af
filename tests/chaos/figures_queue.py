"""The figures of the queue in docs/RELIABILITY.md: `python -m tests.chaos.figures_queue [ROW …]`.

    Q1   six workers of 20 places, 120 answers at a token a second, 6 short ones in the background, 4 of the long cancelled
    Q1c  the same with four workers and 80 answers: the control
    Q2   5,000 run and 10,000 wait, as in 20 workers of 250 places: from a cancel to the claim of the next in line
    Q3   the same, and the leases of 20 that a lost worker held have lapsed: from the last of 20 cancels to their claim
    Q3f  5,000 run, places are free for all 250 that a lost worker held: from the end of its leases until all are taken,
         that is, have the lease of another one, and until all are claimed, which is for 125 at once in each of two workers

Of Q2 and Q3 two workers are real processes, 500 places with 500 answers. The other 18 are synthetic: entries in the running set
and leases, renewed four times a lease as a worker renews them, and the lost one's, which are not. Prints a JSON line for
each row, and ends with status 1 if one took longer than a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from shared.cli.embedded import EmbeddedValkey
from tests.bench.machine import cpu_s
from tests.chaos.crowd import Crowd, begun
from tests.harness.processes import wait_until
from tests.harness.upstream import ScriptedUpstream, ending, words
from tests.support.fleet import Fleet
from tests.support.names import WAITING, keys

PLACES, FLEET_PLACES, WAIT = 250, 5000, 10_000
REAL = 2 * PLACES
BAR_S = 1.0
_LONG = "long"
_PATIENT = {"STREAMSPOOL_LEASE_S": "10", "STREAMSPOOL_UPSTREAM_IDLE_S": "7200"}


def behind_full_workers(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, place: Path, *, workers: int
) -> dict[str, Any]:
    with Fleet(valkey, upstream, place, **_PATIENT, STREAMSPOOL_WORKER_CONCURRENCY="20") as fleet:
        fleet.heal(*(f"worker-{number}" for number in range(3, workers + 1)))
        with httpx.Client(base_url=fleet.url, trust_env=False, timeout=30) as api:

            def background(model: str) -> str:
                body = {"model": model, "background": True, "messages": [{"role": "user", "content": "x"}]}
                answer = api.post("/v1/chat/completions", json=body)
                assert answer.status_code == 202, answer.text
                return str(answer.json()["id"])

            long = [background("fake/lorem?tokens=300&rate=1") for _ in range(20 * workers)]
            wait_until(lambda: len(begun(fleet, long)) == len(long), 60, "all places are full")
            short = [background("fake/echo") for _ in range(6)]
            time.sleep(1)  # whatever was going to begin has
            before = len(begun(fleet, short))
            for generation_id in long[:4]:
                api.post(f"/v1/streams/{generation_id}/cancel").raise_for_status()
            cancelled = time.monotonic()
            times: list[float] = []
            while len(times) < len(short) and time.monotonic() < cancelled + 120:
                done = len(begun(fleet, short))
                times += [time.monotonic() - cancelled] * (done - len(times))
                time.sleep(0.005)
        return {
            "workers": workers,
            "long": len(long),
            "short_before_the_cancels": before,
            "first_s": _s(times[:1]),
            "last_s": _s(times),
            "wrong": int(before > 0 or len(times) < len(short) or max(times) > BAR_S),
        }


def next_in_line(valkey: EmbeddedValkey, upstream: ScriptedUpstream, place: Path) -> dict[str, Any]:
    with _big(valkey, upstream, place) as fleet, Crowd(fleet) as crowd:
        waiting = _fill(fleet, crowd, WAIT)
        used = _cpu(fleet, valkey)
        times = []
        for number in range(50):
            _cancel(fleet, waiting[number])
            times.append(_until_claimed(fleet, waiting[REAL + number]))
        in_order = begun(fleet, waiting[: REAL + 60]) == set(waiting[: REAL + 50])
        return {
            "running": REAL + len(crowd.elsewhere),
            "waiting": fleet.client.zcard(WAITING),
            "places_freed": len(times),
            "p50_s": round(statistics.median(times), 3),
            "worst_s": _s(times),
            "in_order": in_order,
            **used,
            "wrong": int(max(times) > BAR_S or not in_order),
        }


def what_a_lost_worker_held(valkey: EmbeddedValkey, upstream: ScriptedUpstream, place: Path) -> dict[str, Any]:
    with _big(valkey, upstream, place) as fleet, Crowd(fleet) as crowd:
        waiting = _fill(fleet, crowd, WAIT)
        times, order = [], True
        for turn in range(10):
            first = 20 * turn
            lost = crowd.held_by_one_that_is_lost(20, model=_LONG, lease_ms=1000)
            ends = time.monotonic() + fleet.client.pttl(keys.lease(lost[0])) / 1000
            time.sleep(
                max(0, ends - time.monotonic()) + 1
            )  # on a busy machine a worker's idea of Redis's clock is late
            before = len(begun(fleet, waiting))
            freed = waiting[first : first + 20]
            for generation_id in freed:
                _cancel(fleet, generation_id)
            started = time.monotonic()
            wait_until(lambda lost=lost: len(begun(fleet, lost)) == len(lost), 30, "all of them run again")
            times.append(time.monotonic() - started)
            order = order and len(begun(fleet, waiting)) == before
            for generation_id in lost:  # and the places go to the next in line
                _cancel(fleet, generation_id)
            wait_until(lambda before=before: len(begun(fleet, waiting)) == before + 20, 30)
        return {
            "running": REAL + len(crowd.elsewhere),
            "waiting": fleet.client.zcard(WAITING),
            "held": 20,
            "runs": len(times),
            "claimed_p50_s": round(statistics.median(times), 3),
            "claimed_worst_s": _s(times),
            "before_what_waits": order,
            "wrong": int(max(times) > BAR_S or not order),
        }


def what_a_lost_worker_held_with_places_free(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, place: Path
) -> dict[str, Any]:
    with _big(valkey, upstream, place) as fleet, Crowd(fleet) as crowd:
        _fill(fleet, crowd, 0, real=REAL - PLACES)
        taken, claimed = [], []
        for _ in range(10):
            lost = crowd.held_by_one_that_is_lost(PLACES, model=_LONG, lease_ms=2000)
            ends = time.monotonic() + fleet.client.pttl(keys.lease(lost[-1])) / 1000
            time.sleep(max(0, ends - time.monotonic()))
            leases = list(map(keys.lease, lost))
            wait_until(lambda leases=leases: fleet.client.exists(*leases) == len(leases), 60, "all of them are taken")
            taken.append(time.monotonic() - ends)
            wait_until(lambda lost=lost: len(begun(fleet, lost)) == len(lost), 60, "all of them run again")
            claimed.append(time.monotonic() - ends)
            for generation_id in lost:
                _cancel(fleet, generation_id)
            wait_until(lambda lost=lost: not fleet.client.exists(*map(keys.lease, lost)), 30)
        return {
            "running": REAL + len(crowd.elsewhere),
            "held": PLACES,
            "runs": len(taken),
            "all_taken_p50_s": round(statistics.median(taken), 3),
            "all_taken_worst_s": _s(taken),
            "all_claimed_p50_s": round(statistics.median(claimed), 3),
            "all_claimed_worst_s": _s(claimed),
            "wrong": int(max(taken) > BAR_S),
        }


def _big(valkey: EmbeddedValkey, upstream: ScriptedUpstream, place: Path) -> Fleet:
    upstream.script(_LONG, [*words(1), 7200.0, *ending()])
    return Fleet(valkey, upstream, place, **_PATIENT, STREAMSPOOL_WORKER_CONCURRENCY=str(PLACES))


def _fill(fleet: Fleet, crowd: Crowd, waiting: int, *, real: int = REAL) -> list[str]:
    """So many run for real, the rest of the fleet elsewhere, and so many wait; returns those that run and wait, in order."""
    time.sleep(6)  # a worker that has just started takes nothing over for half a lease
    crowd.run_elsewhere(FLEET_PLACES - REAL)
    ids = crowd.wait(real + waiting, model=_LONG)
    wait_until(lambda: len(begun(fleet, ids[:real])) == real, 120, "the places are full")
    return ids


def _cancel(fleet: Fleet, generation_id: str) -> None:
    fleet.http.post(f"{fleet.url}/v1/streams/{generation_id}/cancel").raise_for_status()


def _until_claimed(fleet: Fleet, generation_id: str) -> float:
    started = time.monotonic()
    assert fleet.client.xread({keys.log(generation_id): "0-2"}, count=1, block=30_000)
    return time.monotonic() - started


def _cpu(fleet: Fleet, valkey: EmbeddedValkey) -> dict[str, float]:
    """What the two workers and Valkey use while nothing happens, in percent of a core."""
    assert valkey.pid is not None
    pids: dict[str, list[int]] = {
        "two_workers_percent": [fleet.process(name).pid for name in ("worker", "worker-2")],
        "valkey_percent": [valkey.pid],
    }
    before = {name: cpu_s(found) for name, found in pids.items()}
    time.sleep(10)
    return {name: round((cpu_s(found) - before[name]) * 10, 1) for name, found in pids.items()}


def _s(times: Sequence[float]) -> float | None:
    return round(max(times), 3) if times else None


ROWS: dict[str, Callable[[EmbeddedValkey, ScriptedUpstream, Path], dict[str, Any]]] = {
    "Q1": lambda *parts: behind_full_workers(*parts, workers=6),
    "Q1c": lambda *parts: behind_full_workers(*parts, workers=4),
    "Q2": next_in_line,
    "Q3": what_a_lost_worker_held,
    "Q3f": what_a_lost_worker_held_with_places_free,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all by default")
    wrong = 0
    for row in parser.parse_args().rows or ROWS:
        with tempfile.TemporaryDirectory(prefix="queue-") as directory:
            place = Path(directory)
            with EmbeddedValkey(place / "valkey") as valkey, ScriptedUpstream() as upstream:
                found = ROWS[row](valkey, upstream, place)
        wrong += found["wrong"]
        print(json.dumps({"row": row, **found}), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
