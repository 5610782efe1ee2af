"""The loops behind the table in docs/RELIABILITY.md: `python -m tests.chaos.figures_workers [--lease-s 10] [ROW …]`.

Prints a JSON line for each row: runs, the worst figure, words lost and words twice over all viewers, and what must be
zero for that row. Ends with status 1 if anything is not as the row says.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from shared.cli.embedded import EmbeddedValkey
from tests.chaos.bursts import (
    check_ledger,
    judge_posts,
    kill_apis_within_posts,
    kill_workers_around_the_end,
    kill_workers_under_sessions,
    wait_still,
)
from tests.chaos.tally import Tally
from tests.harness.processes import wait_until
from tests.harness.upstream import Part, Pause, ScriptedUpstream, ending, words
from tests.support.fleet import BAR_S, Fleet, ask
from tests.support.judge import Judges

SEAL = f"{2**53 - 1}-0"
WORDS = 60


def f02_kill_in_the_middle(fleet: Fleet, judges: Judges, upstream: ScriptedUpstream) -> Tally:
    """kill -9 mid-stream with on_interruption=restart; worst: from the kill to the marker."""
    tally = Tally()
    for i in range(20):
        rest = Pause()
        script = upstream.script(f"f02-{i}", [*words(3 + i), rest, *words(WORDS)[4 + i :], *ending()])
        generation_id = fleet.submit(f"f02-{i}", on_interruption="restart")
        viewers = [judges.watch([fleet.url], generation_id) for _ in range(3)]
        fleet.until_said(generation_id, 4 + i)
        wait_until(lambda viewers=viewers, said=3 + i: all(len(viewer.text.split()) == said for viewer in viewers))
        fleet.kill(fleet.owner(generation_id))
        killed = time.monotonic()
        rest.go()
        judges.wait(60)
        worst = max(viewer.marker_at for viewer in viewers) - killed
        right = all(viewer.attempts == [2] for viewer in viewers) and len(script.calls) == 2 and worst <= BAR_S
        tally.run(worst, viewers, expected=WORDS, right=right)
        fleet.heal()
    return tally


def f04_kill_around_the_end(fleet: Fleet, judges: Judges, upstream: ScriptedUpstream) -> Tally:
    """kill -9 of one worker or both while 24 streams end; runs: streams caught with everything stored but seal or
    settlement; worst: from the kill to the end of any stream."""
    tally, chance = Tally(), random.Random(4)
    for burst in range(60):
        if tally.runs >= 100 and tally.seen["kills"] >= 20:
            break
        kill_workers_around_the_end(fleet, upstream, tally, chance, burst=burst)
    wait_still(fleet)
    check_ledger(fleet, tally, fleet.states())
    tally.check("ended in time", tally.worst_s <= BAR_S, True)
    return tally


def f07_zombie(fleet: Fleet, judges: Judges, upstream: ScriptedUpstream) -> Tally:
    """SIGSTOP past the lease, SIGCONT while the successor writes; worst: from SIGCONT to the upstream's end."""
    tally = Tally()
    for i in range(50):
        more, rest = Pause(), Pause()
        parts: list[Part] = [*words(2), more, *words(40)[3:], rest, *words(WORDS)[41:], *ending()]
        script = upstream.script(f"f07-{i}", parts)
        generation_id = fleet.submit(f"f07-{i}", on_interruption="restart")
        viewer = judges.watch([fleet.url], generation_id)
        wait_until(lambda viewer=viewer: viewer.text == "w0 w1 ")
        zombie = fleet.owner(generation_id)
        fleet.kill(zombie, signal.SIGSTOP)
        fleet.owner(generation_id, attempt=2)
        more.go()  # both providers speak; one worker is frozen with words in its socket
        fleet.until_said(generation_id, 41, attempt=2)
        woken = time.monotonic()
        fleet.kill(zombie, signal.SIGCONT)
        wait_until(lambda script=script: script.live == 1, what="the zombie hangs up")
        closed = time.monotonic()
        rest.go()
        judges.wait(60)
        late = sum(position.startswith("1-") for position in fleet.entries(generation_id)) - 4
        right = late == 0 and viewer.attempts == [2] and len(script.calls) == 2 and fleet.alive(zombie)
        tally.seen["late_writes"] += late
        tally.run(closed - woken, [viewer], expected=WORDS, right=right)
        fleet.heal()
    return tally


def f11_kill_of_an_api(fleet: Fleet, judges: Judges, upstream: ScriptedUpstream) -> Tally:
    """kill -9 of an API within 50 ms of 20 POSTs, half of them with a key; runs: kills; worst: from the kill to the end
    of any accepted generation."""
    tally, chance = Tally(), random.Random(11)
    made = [
        asked for burst in range(25) for asked in kill_apis_within_posts(fleet, upstream, tally, chance, burst=burst)
    ]
    judge_posts(fleet, tally, made)
    return tally


def f37_twenty_at_once(fleet: Fleet, judges: Judges, upstream: ScriptedUpstream) -> Tally:
    """Twenty POSTs with one Idempotency-Key on two APIs; worst: until the last of them has its end."""
    tally = Tally()
    fleet.heal("api-2")
    for i in range(20):
        script = upstream.script(f"f37-{i}", [*words(WORDS), *ending()])
        started = time.monotonic()
        urls = [fleet.at("api"), fleet.at("api-2")]
        key = {"idempotency-key": f"figures-{i}"}
        viewers = [judges.post([urls[n % 2]], ask(f"f37-{i}"), headers=key) for n in range(20)]
        judges.wait()
        right = len({viewer.id for viewer in viewers}) == 1 and len(script.calls) == 1
        tally.run(time.monotonic() - started, viewers, expected=WORDS, right=right)
    return tally


def f38_cancel_and_finish(fleet: Fleet, judges: Judges, upstream: ScriptedUpstream) -> Tally:
    """Two cancels at two APIs race the provider's last words; worst: until the upstream is closed."""
    tally = Tally()
    fleet.heal("api-2")
    apis = [httpx.Client(base_url=fleet.at(name)) for name in ("api", "api-2")]
    with ThreadPoolExecutor(4) as pool, apis[0], apis[1]:
        for i in range(500):
            go = Pause()
            script = upstream.script("f38", [*words(2), go, *words(4)[3:], *ending()])
            generation_id = fleet.submit("f38")
            fleet.until_said(generation_id, 3)
            started = time.monotonic()
            late_s = i % 25 / 1000 - 0.012  # the last words are sent 12 ms before to 12 ms after the cancels
            if late_s < 0:
                go.go()
                time.sleep(-late_s)
            racing = [pool.submit(_cancel, api, generation_id) for api in apis]
            if late_s >= 0:
                time.sleep(late_s)
                go.go()
            states = [racer.result() for racer in racing]
            wait_until(lambda script=script: script.live == 0)
            closed = time.monotonic()
            viewer = judges.watch([fleet.url], generation_id)
            judges.wait()
            found = fleet.state(generation_id)
            one = fleet.entries(generation_id).count(SEAL) == 1 and len(script.calls) == 1
            same = all({**state, "viewers": 0} == {**found, "viewers": 0} for state in states)
            expected = 4 if found["status"] == "completed" else len(fleet.stored(generation_id).split())
            tally.seen[found["status"]] += 1
            tally.run(closed - started, [viewer], expected=expected, right=one and same)
    return tally


def _cancel(api: httpx.Client, generation_id: str) -> dict[str, Any]:
    found: dict[str, Any] = api.post(f"/v1/streams/{generation_id}/cancel").json()
    return found


def f41_kills_under_sessions(fleet: Fleet, judges: Judges, upstream: ScriptedUpstream) -> Tally:
    """Two POSTs at once to each of 20 sessions, workers killed around the ends of their turns; runs: sessions;
    worst: from the last kill until all have ended and are settled."""
    tally, chance = Tally(), random.Random(41)
    for burst in range(10):
        fleet.heal()
        kill_workers_under_sessions(fleet, upstream, tally, chance, burst=burst)
    return tally


ROWS = {
    "F2": f02_kill_in_the_middle,
    "F4": f04_kill_around_the_end,
    "F7": f07_zombie,
    "F11": f11_kill_of_an_api,
    "F37": f37_twenty_at_once,
    "F38": f38_cancel_and_finish,
    "F41": f41_kills_under_sessions,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all by default")
    parser.add_argument("--lease-s", default="1", help="the workers' lease; as shipped: 10")
    chosen = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        with (
            EmbeddedValkey(place / "valkey") as valkey,
            ScriptedUpstream() as upstream,
            Fleet(valkey, upstream, place, STREAMSPOOL_LEASE_S=chosen.lease_s) as fleet,
            Judges() as judges,
        ):
            for row in chosen.rows or ROWS:
                fleet.heal()
                tally = ROWS[row](fleet, judges, upstream)
                wrong += len(tally.problems)
                injected = " ".join((ROWS[row].__doc__ or "").split())
                print(
                    json.dumps({"row": row, "lease_s": chosen.lease_s, **tally.row(), "injected": injected}), flush=True
                )
                for problem in tally.problems[:10]:
                    print(problem, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
