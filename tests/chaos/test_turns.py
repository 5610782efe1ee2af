"""Rows Q9 to Q11 and Q15 of docs/RELIABILITY.md: tenants take turns at the places, on real processes.

What one has waiting keeps no other from a first word. Nothing here judges a time: what counts is how much of the crowd was
served before the other one was.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness.processes import wait_until
from tests.harness.upstream import Part, Pause, ScriptedUpstream, ending, whole, words
from tests.support.batch import ended, jsonl, line, start
from tests.support.fleet import Fleet
from tests.support.wire import Client, ask, chunks, text

PLACES = 10
LARGE = 4_000_000
ALICE, BOB = "key-of-alice-0123456789", "key-of-bob-0123456789"
SETTINGS = {
    "STREAMSPOOL_WORKER_CONCURRENCY": str(PLACES),
    "STREAMSPOOL_WORKER_LINES": str(PLACES),
    "STREAMSPOOL_LEASE_S": "4",
    "STREAMSPOOL_NO_WORKER_S": "30",
    "STREAMSPOOL_API_KEYS": f"alice:{ALICE},bob:{BOB}",
    "STREAMSPOOL_LIMITS": f"alice:stored_bytes={25 * LARGE}",
}


def slow(begin: Pause, seconds: float = 1.5) -> list[Part]:
    """Takes so long, once it may begin: however long it takes to ask for a crowd of them, none has ended before."""
    return [words(1)[0], begin, seconds, *words(2)[1:], *ending()]


@pytest.fixture
def alice(fleet: Fleet) -> Iterator[Client]:
    with Client(fleet.url, ALICE) as client:
        yield client


@pytest.fixture
def bob(fleet: Fleet) -> Iterator[Client]:
    with Client(fleet.url, BOB) as client:
        yield client


def background(client: Client, model: str, count: int) -> list[str]:
    def one(_: int) -> str:
        response = client.post(ask(f"scripted/{model}", background=True, on_interruption="restart"))
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    with ThreadPoolExecutor(20) as threads:
        return list(threads.map(one, range(count)))


def is_over(client: Client, generation_id: str) -> bool:
    return bool(client.state(generation_id)["status"] == "completed")


@pytest.mark.parametrize("asked", ["in the background", "by a client that waits"])
def test_q9_a_question_does_not_wait_behind_anothers_hundred(
    fleet: Fleet, upstream: ScriptedUpstream, alice: Client, bob: Client, asked: str
) -> None:
    begin = Pause()
    crowd = upstream.script("turns-crowd", slow(begin))
    single = upstream.script("turns-single", slow(begin))
    ids = background(alice, "turns-crowd", 140)
    wait_until(lambda: crowd.live == 2 * PLACES, what="every place is taken")
    before = len(crowd.calls)
    if asked == "in the background":
        (mine,) = background(bob, "turns-single", 1)
        begin.go()
        wait_until(lambda: single.calls, what="bob's is asked")
        during = len(crowd.calls)
        wait_until(lambda: is_over(bob, mine))
    else:
        with bob.streaming("scripted/turns-single") as viewer:  # accepted, and its headers were held back for a while
            begin.go()
            wait_until(lambda: single.calls, what="bob's is asked")
            during = len(crowd.calls)
            viewer.rest()
        assert text(chunks(viewer.body)) == whole(2)
    assert during - before <= 6 * PLACES, "three rounds of all places: it was behind a few, and not behind all of them"
    assert len(single.calls) == 1
    fleet.kill("worker")
    fleet.start("worker")
    for one in ids:
        wait_until(lambda one=one: is_over(alice, one), 60, "alice's are all answered")
    assert len(crowd.calls) <= 140 + PLACES, "only those were asked again that the killed worker had"


def test_q10_a_batch_does_not_wait_behind_anothers_hundred(
    fleet: Fleet, upstream: ScriptedUpstream, alice: Client, bob: Client
) -> None:
    """More than two workers hand out at once, each with one line that takes long."""
    begin = Pause()
    crowd = upstream.script("turns-lines", slow(begin, 3.0))
    single = upstream.script("turns-line", [*words(2), *ending()])
    theirs = [start(alice.http, jsonl([line("x", "scripted/turns-lines")])) for _ in range(100)]
    mine = start(bob.http, jsonl([line("x", "scripted/turns-line")]))
    begin.go()
    wait_until(lambda: single.calls, what="bob's is asked")
    assert len(crowd.calls) < 100
    assert ended(bob.http, mine)["request_counts"]["completed"] == 1
    assert [ended(alice.http, one)["request_counts"]["completed"] for one in theirs] == [1] * 100


def test_q11_what_is_waited_for_comes_before_the_background(
    fleet: Fleet, upstream: ScriptedUpstream, alice: Client
) -> None:
    """Of one tenant."""
    begin = Pause()
    crowd = upstream.script("turns-own", slow(begin))
    upstream.script("turns-now", [*words(2), *ending()])
    ids = background(alice, "turns-own", 140)
    wait_until(lambda: crowd.live == 2 * PLACES, what="every place is taken")
    before = len(crowd.calls)
    with alice.streaming("scripted/turns-now") as viewer:
        begin.go()
        viewer.rest()
    assert text(chunks(viewer.body)) == whole(2)
    assert len(crowd.calls) - before <= 6 * PLACES
    for one in ids:
        wait_until(lambda one=one: is_over(alice, one), 60)


def test_q15_one_that_fills_the_storage_shuts_out_no_other(
    fleet: Fleet, upstream: ScriptedUpstream, alice: Client, bob: Client
) -> None:
    """Requests of 4 MB without end, at a server that has room for sixteen of them, and a limit for that tenant."""
    upstream.script("turns-large", [*words(2), *ending()])
    used = int(fleet.client.info("memory")["used_memory"])
    before = fleet.client.config_get("maxmemory")["maxmemory"]
    fleet.client.config_set("maxmemory", used + 16 * LARGE)
    stopped = threading.Event()
    statuses: Counter[int] = Counter()

    def fill(number: int) -> None:
        with Client(fleet.url, ALICE) as client:
            while not stopped.is_set():
                text = f"{number} {sum(statuses.values())} ".ljust(LARGE, "x")
                statuses[client.post(ask("scripted/turns-large", text, background=True)).status_code] += 1

    try:
        with ThreadPoolExecutor(2) as threads:
            filling = [threads.submit(fill, number) for number in range(2)]
            try:
                wait_until(lambda: statuses[413] >= 5, 120, "alice has all she may have, and goes on")
                answers = [bob.post(ask("scripted/turns-large")) for _ in range(20)]
            finally:
                stopped.set()
            for one in filling:
                one.result()
    finally:
        fleet.client.config_set("maxmemory", before)
    assert [answer.status_code for answer in answers] == [200] * 20
    assert set(statuses) == {202, 413}
    assert statuses[202] <= 25
