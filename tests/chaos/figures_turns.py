"""The figures of tenants that take turns, in docs/RELIABILITY.md: `python -m tests.chaos.figures_turns [ROW …]`.

    T1   (row Q9) alice has 400 in the background on two workers of 20 places, bob asks one question: what he waits for a
         first word, beside what he waits when nobody else is there
    T2   (row Q17) ten tenants with 1, 1, 1, 10, 10, 10, 100, 100, 1,000 and 1,000 answers of 1 s waiting, on 2 × 20 places,
         the big ones first: when each one's first and last answer was begun, beside the same without those of 100 and 1,000;
         and a worker is killed meanwhile
    T3   (row Q12) ten tenants with 600 waiting each, two of them with answers that take five times as long: Jain's index of
         what each had of the places in the first minute, in which a worker is killed
    T4   2,000 of one tenant, served first in, first out, against 2,000 of ten tenants: answers a second, so what turns cost;
         the median of five rounds

A place is held for as long as the scripted provider pauses; the places are filled from what waits, without bells. Prints a
JSON line for each row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shared.cli.embedded import EmbeddedValkey
from tests.chaos.crowd import Crowd, begun_at
from tests.harness.processes import wait_until
from tests.harness.upstream import Part, ScriptedUpstream, ending, words
from tests.support.fleet import Fleet
from tests.support.names import keys
from tests.support.wire import Client, ask

PLACES = 20
ALICE, BOB = "key-of-alice-0123456789", "key-of-bob-0123456789"
SETTINGS = {
    "STREAMSPOOL_WORKER_CONCURRENCY": str(PLACES),
    "STREAMSPOOL_LEASE_S": "2",
    "STREAMSPOOL_UPSTREAM_IDLE_S": "600",
    "STREAMSPOOL_API_KEYS": f"alice:{ALICE},bob:{BOB}",
}


def answer_of(seconds: float) -> list[Part]:
    role, *said = words(2)
    return [role, said[0], seconds, said[1], *ending()]


def one_question(fleet: Fleet, upstream: ScriptedUpstream) -> dict[str, Any]:
    upstream.script("crowd", answer_of(2.0))
    upstream.script("question", answer_of(0.0))
    with Client(fleet.url, ALICE) as alice, Client(fleet.url, BOB) as bob:
        calm = sorted(_first_word(bob) for _ in range(20))
        for _ in range(400):
            assert alice.post(ask("scripted/crowd", background=True)).status_code == 202
        crowded = sorted(_first_word(bob) for _ in range(20))
        for state in fleet_states(alice):
            alice.cancel(state["id"])
    return {
        "calm_p50_s": round(calm[10], 3),
        "p50_s": round(crowded[10], 3),
        "worst_s": round(crowded[-1], 3),
        "ratio": round(crowded[10] / calm[10], 2),
        "goal": 1.5,
    }


def fleet_states(client: Client) -> list[dict[str, Any]]:
    """Of the generations that are not over."""
    found: list[dict[str, Any]] = client.get("/v1/streams?status=queued,in_progress&limit=100").json()["data"]
    more = found
    while len(more) == 100:
        more = client.get(f"/v1/streams?status=queued,in_progress&limit=100&after={more[-1]['id']}").json()["data"]
        found += more
    return found


def _first_word(client: Client) -> float:
    asked = time.monotonic()
    with client.streaming("scripted/question") as viewer:
        viewer.until(b"w0 ")
        return time.monotonic() - asked


def many_tenants(fleet: Fleet, upstream: ScriptedUpstream) -> dict[str, Any]:
    upstream.script("second", answer_of(1.0))
    small = {"x1": 10, "x2": 10, "x3": 10, "i1": 1, "i2": 1, "i3": 1}
    counts = {"k1": 1000, "k2": 1000, "c1": 100, "c2": 100, **small}
    calm = _served(fleet, small)
    found = _served(fleet, counts, kill_after_s=10)
    return {
        "calm_s": calm,
        "s": found,
        "first_word_ratio": {tenant: round(found[tenant][0] / calm[tenant][0], 2) for tenant in small},
        "goal": 1.5,
        "ended_after_s": max(last for _, last in found.values()),
        "at_best_s": round(sum(counts.values()) / (2 * PLACES), 1),
    }


def _served(fleet: Fleet, counts: Mapping[str, int], kill_after_s: float = 0) -> dict[str, tuple[float, float]]:
    """After how many seconds the first and the last answer of each tenant was begun."""
    asked: dict[str, float] = {}
    ids: dict[str, list[str]] = {}
    with Crowd(fleet) as crowd:
        for tenant, count in counts.items():
            asked[tenant] = time.time()
            ids[tenant] = crowd.wait(count, model="second", tenant=tenant)
        if kill_after_s:
            time.sleep(kill_after_s)
            fleet.kill("worker")
            fleet.start("worker")
        wait_until(lambda: not fleet.client.exists(keys.open(0)), 180, "all have ended")
        at = {tenant: sorted(begun_at(fleet, page).values()) for tenant, page in ids.items()}
    return {
        tenant: (round(times[0] - asked[tenant], 3), round(times[-1] - asked[tenant], 2))
        for tenant, times in at.items()
    }


def served_time(fleet: Fleet, upstream: ScriptedUpstream) -> dict[str, Any]:
    upstream.script("short", answer_of(1.0))
    upstream.script("long", answer_of(5.0))
    seconds = {f"t{number}": 5.0 if number < 2 else 1.0 for number in range(10)}
    with Crowd(fleet) as crowd:
        ids = {
            tenant: crowd.wait(600, model="long" if each > 1 else "short", tenant=tenant)
            for tenant, each in seconds.items()
        }
        time.sleep(30)
        fleet.kill("worker")
        fleet.start("worker")
        time.sleep(30)
        now = time.time()
        served = {
            tenant: round(sum(min(seconds[tenant], max(0.0, now - at)) for at in begun_at(fleet, page).values()), 1)
            for tenant, page in ids.items()
        }
        for page in ids.values():
            for generation_id in page:
                fleet.client.delete(keys.log(generation_id), keys.job(generation_id))
    jain = sum(served.values()) ** 2 / (len(served) * sum(one * one for one in served.values()))
    return {"jain": round(jain, 3), "place_seconds": served, "wrong": int(jain < 0.95)}


def throughput(fleet: Fleet, upstream: ScriptedUpstream) -> dict[str, Any]:
    """In five rounds, each with both, in turn. One tenant alone is served in the order of its requests, so it is the FIFO."""
    upstream.script("quick", answer_of(0.05))
    rounds: list[dict[str, float]] = []
    for number in range(5):
        found: dict[str, float] = {}
        pair = (("one", 1), ("ten", 10))
        for name, tenants in pair if number % 2 else pair[::-1]:
            with Crowd(fleet) as crowd:
                started = time.monotonic()
                for tenant in range(tenants):
                    crowd.wait(2000 // tenants, model="quick", tenant=f"t{tenant}")
                wait_until(lambda: not fleet.client.exists(keys.open(0)), 300, "all have ended")
                found[name] = 2000 / (time.monotonic() - started)
        rounds.append(found)
    ratios = sorted(one["ten"] / one["one"] for one in rounds)
    return {
        **{f"{name}_a_s": round(statistics.median(one[name] for one in rounds)) for name in ("one", "ten")},
        "ratio": round(ratios[2], 3),
        "rounds": [round(ratio, 3) for ratio in ratios],
        "goal": 0.97,
    }


ROWS: Mapping[str, Callable[[Fleet, ScriptedUpstream], dict[str, Any]]] = {
    "T1": one_question,
    "T2": many_tenants,
    "T3": served_time,
    "T4": throughput,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.figures_turns", description=__doc__)
    parser.add_argument("rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    wrong = 0
    with tempfile.TemporaryDirectory() as place, EmbeddedValkey(Path(place) / "valkey") as valkey:
        for name in parser.parse_args().rows:
            directory = Path(place) / name
            directory.mkdir()
            with ScriptedUpstream() as upstream, Fleet(valkey, upstream, directory, **SETTINGS) as fleet:
                row = ROWS[name](fleet, upstream)
            wrong += row.get("wrong", 0)
            print(json.dumps({"row": name, **row}), flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
