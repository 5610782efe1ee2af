"""The queue under others: more full workers than one look is long, strangers in the same database, an older version.

Rows Q1 to Q8 of docs/RELIABILITY.md, on real processes; the times are in `figures_queue`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from arq import create_pool
from arq.connections import RedisSettings

from shared.cli.embedded import EmbeddedValkey
from shared.store.keys import Keys, Lane
from tests.chaos.crowd import Crowd, begun
from tests.harness.processes import READY_S, Stack, wait_until
from tests.harness.store import Store, open_store
from tests.harness.upstream import Pause, ScriptedUpstream, ending, whole, words
from tests.support.batch import ended, jsonl, line, results, start
from tests.support.fleet import Fleet, ask
from tests.support.judge import Judges
from tests.support.names import WAITING, keys
from tests.support.rewind import Rewindable

PLACES = 20
SETTINGS = {
    "STREAMSPOOL_WORKER_CONCURRENCY": str(PLACES),
    "STREAMSPOOL_WORKER_LINES": "5",
    "STREAMSPOOL_LEASE_S": "4",
    "STREAMSPOOL_UPSTREAM_IDLE_S": "600",
}


def cancel(fleet: Fleet, generation_id: str) -> None:
    """However long a busy machine keeps its server waiting: told to come back (503), it does."""

    def told() -> httpx.Response | None:
        response = fleet.http.post(f"{fleet.url}/v1/streams/{generation_id}/cancel")
        return None if response.status_code == 503 else response

    response: httpx.Response = wait_until(told, what="it is cancelled")
    assert response.status_code == 200, response.text


def test_q1_behind_six_full_workers_a_free_place_is_taken(fleet: Fleet, upstream: ScriptedUpstream) -> None:
    fleet.heal("worker-3", "worker-4", "worker-5", "worker-6")
    pause = Pause()
    long = upstream.script("q1-long", [*words(1), pause, *words(3)[2:], *ending()])
    short = upstream.script("q1-short", [*words(2), *ending()])
    running = [fleet.submit("q1-long", background=None) for _ in range(6 * PLACES)]
    wait_until(lambda: long.live == 6 * PLACES, what="all places are full")
    waiting = [fleet.submit("q1-short") for _ in range(6)]
    assert not short.calls
    for generation_id in running[:4]:
        cancel(fleet, generation_id)
    for generation_id in waiting:
        assert fleet.ended(generation_id)["status"] == "completed"
    assert fleet.state(running[-1])["status"] == "in_progress"
    pause.go()
    for generation_id in running[4:]:
        assert fleet.ended(generation_id)["status"] == "completed"


def test_q2_beside_thousands_that_run_and_wait_places_are_filled_in_order(
    fleet: Fleet, upstream: ScriptedUpstream
) -> None:
    """What runs elsewhere is synthetic: its entries and its leases."""
    pause = Pause()
    upstream.script("q2", [*words(1), pause, *ending()])
    with Crowd(fleet) as crowd:
        crowd.run_elsewhere(2000)
        waiting = crowd.wait(120, model="q2")
        wait_until(lambda: len(begun(fleet, waiting)) == 2 * PLACES, what="every place is taken")
        assert begun(fleet, waiting) == set(waiting[: 2 * PLACES])
        for generation_id in waiting[:3]:
            cancel(fleet, generation_id)
        wait_until(lambda: len(begun(fleet, waiting)) == 2 * PLACES + 3, what="so are those that are free again")
        assert begun(fleet, waiting) == set(waiting[: 2 * PLACES + 3])
        for generation_id in waiting[70:]:
            cancel(fleet, generation_id)
        left = 70 - 2 * PLACES - 3
        wait_until(lambda: fleet.client.zcard(WAITING) == left, what="what is cancelled does not stay in the way")
        for generation_id in waiting[3:70]:
            cancel(fleet, generation_id)


def test_q3_what_a_lost_worker_held_runs_before_what_waits(fleet: Fleet, upstream: ScriptedUpstream) -> None:
    """Every place is taken by what was taken over: both workers are past the half lease after their start in which they take
    nothing over, and in which what waits goes first."""
    pause = Pause()
    upstream.script("q3", [*words(1), pause, *ending()])
    with Crowd(fleet) as crowd:
        crowd.run_elsewhere(2000)
        first = crowd.held_by_one_that_is_lost(2 * PLACES, model="q3")
        wait_until(lambda: len(begun(fleet, first)) == 2 * PLACES, what="every place is taken")
        lost = crowd.held_by_one_that_is_lost(10, model="q3")
        waiting = crowd.wait(60, model="q3")
        wait_until(lambda: not fleet.client.exists(*map(keys.lease, lost)), what="its leases lapse")
        for generation_id in first[:10]:
            cancel(fleet, generation_id)
        wait_until(lambda: len(begun(fleet, lost)) == 10, what="what it held runs again")
        assert begun(fleet, waiting) == set()
        for generation_id in [*first[10:], *lost, *waiting]:
            cancel(fleet, generation_id)


_UNSAID = "import worker.opening; worker.opening.Moves.say = lambda self: None"


@pytest.mark.parametrize("fault", ["", _UNSAID], ids=["it runs", "it seems to wait"])
def test_q3_on_a_full_server_what_a_lost_worker_held_ends(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream, fault: str
) -> None:
    """Nothing can be written there but an end: the viewers are told, before anybody makes room. Also where the worker is lost
    before it has said that it runs the job, which it does some hundredths of a second later."""
    pause = Pause()
    if fault:
        fleet.replace_workers("worker-3", "worker-4", fault=fault)
    upstream.script("q3-full", [*words(2), pause, *ending()])
    generation_id = fleet.submit("q3-full")
    viewer = judges.watch([fleet.url], generation_id)
    wait_until(lambda: viewer.text == whole(2))
    before = fleet.client.config_get("maxmemory")["maxmemory"]
    fleet.client.config_set("maxmemory", 1)
    try:
        fleet.kill(fleet.owner(generation_id))
        judges.wait()
        assert (viewer.outcome, viewer.code, viewer.text) == ("failed", "generation_interrupted", whole(2))
        wait_until(lambda: not fleet.client.exists(keys.job(generation_id)), what="the job is done")
    finally:
        fleet.client.config_set("maxmemory", before)


# ---- a stranger


APPLICATION = """
import asyncio, os
from arq.connections import RedisSettings
from arq.worker import run_worker

async def mail(ctx, number):
    await asyncio.sleep(0.05)
    await ctx["redis"].rpush("mail:done", number)

class WorkerSettings:
    functions = [mail]
    redis_settings = RedisSettings.from_dsn(os.environ["DSN"])
    max_jobs = 2

run_worker(WorkerSettings)
"""


@pytest.fixture
def arq_application(fleet: Fleet) -> Iterator[RedisSettings]:
    """Another application's worker with arq's defaults, in the same database; yields how to reach that."""
    place = fleet.client.connection_pool.connection_kwargs
    dsn = f"unix://{place['path']}?db={place['db']}"
    process = subprocess.Popen([sys.executable, "-c", APPLICATION], env={**os.environ, "DSN": dsn})
    yield RedisSettings.from_dsn(dsn)
    process.terminate()
    process.wait(60)
    fleet.client.delete("mail:done", *fleet.client.scan_iter("arq:*"))


def test_q4_another_arq_application_with_its_defaults_loses_no_job_and_gets_none(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream, arq_application: RedisSettings
) -> None:
    script = upstream.script("q4", [*words(2), *ending()])

    async def enqueue() -> None:
        pool = await create_pool(arq_application)
        for number in range(40):
            await pool.enqueue_job("mail", number)
        await pool.aclose(close_connection_pool=True)

    asyncio.run(enqueue())
    viewers = [judges.post([fleet.url], ask("q4")) for _ in range(40)]
    judges.wait()
    wait_until(lambda: fleet.client.llen("mail:done") == 40, what="all of its jobs are done")
    assert {int(number) for number in fleet.client.lrange("mail:done", 0, -1)} == set(range(40))
    assert [(viewer.outcome, viewer.text) for viewer in viewers] == [("whole", whole(2))] * 40
    assert len(script.calls) == 40


# ---- another installation


def test_q5_two_installations_in_one_database_never_meet(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    url = valkey.url.replace("db=0", "db=2")
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    settings = {"STREAMSPOOL_WEBHOOK_SECRET": secret, "STREAMSPOOL_WEBHOOK_ALLOW": "127.0.0.1"}
    with ScriptedUpstream() as other, open_store(url) as client, contextlib.ExitStack() as exits:
        client.flushdb()
        exits.callback(client.flushdb)
        stacks = []
        for prefix, provider in (("live", upstream), ("stage", other)):
            place = tmp_path / prefix
            place.mkdir()
            named = {"STREAMSPOOL_PREFIX": prefix, "STREAMSPOOL_FILES_URL": (tmp_path / "files").as_uri(), **settings}
            stacks.append(exits.enter_context(Stack(url, provider.base_url, place, **named)))
        live, stage = [
            exits.enter_context(httpx.Client(base_url=one.url, trust_env=False, timeout=60)) for one in stacks
        ]
        said = {
            "live": upstream.script("q5", [*words(2), *ending()]),
            "stage": other.script("q5", [*words(5), *ending()]),
        }

        def use(api: httpx.Client, session: str) -> list[str]:
            """A bit of everything, with the same names; returns the texts."""
            texts = []
            for _ in range(8):
                answer = api.post("/v1/chat/completions", json=ask("q5"))
                texts.append(answer.json()["choices"][0]["message"]["content"])
            key = {"idempotency-key": "the-same"}
            for extra in ({"session_id": session}, {"store": True}, {"on_disconnect": "cancel"}):
                answer = api.post("/v1/chat/completions", json=ask("q5", **extra))
                texts.append(answer.json()["choices"][0]["message"]["content"])
            answer = api.post("/v1/chat/completions", json=ask("q5"), headers=key)
            texts.append(answer.json()["choices"][0]["message"]["content"])
            background = api.post(
                "/v1/chat/completions",
                json=ask("q5", background=True, webhook={"url": "http://127.0.0.1:9/nobody"}),
            )
            assert background.status_code == 202
            batch_id = start(api, jsonl([line(f"id-{n}", "scripted/q5") for n in range(5)]))
            batch = ended(api, batch_id)
            for found in results(api, batch["output_file_id"]).values():
                texts.append(found["response"]["body"]["choices"][0]["message"]["content"])
            return texts

        assert set(use(live, "chat")) == {whole(2)}
        assert set(use(stage, "chat")) == {whole(5)}
        wait_until(lambda: all(len(one.calls) >= 18 for one in said.values()), what="those in the background, too")
        assert (len(said["live"].calls), len(said["stage"].calls)) == (18, 18)
        lists = (
            "/v1/streams?limit=100",
            "/v1/files",
            "/v1/batches",
            "/v1/sessions",
            "/v1/chat/completions",
            "/v1/usage",
        )
        for path in lists:
            mine, theirs = ({json.dumps(one) for one in api.get(path).json()["data"]} for api in (live, stage))
            assert mine, path
            assert path == "/v1/usage" or not mine & theirs, path
        assert len(live.get("/v1/sessions/chat/messages").json()["data"]) == 2
        names = {key.decode() for key in client.scan_iter(count=1000)}
        assert {name.partition(":")[0] for name in names} == {"live", "stage"}
        immortal = [name for name in names if not Keys(name.partition(":")[0]).is_permanent(name)]
        for name in immortal:  # what is just made gets its end a moment later
            wait_until(lambda name=name: client.ttl(name) != -1, what=f"{name} has an end")
        stacks[1].kill("worker")
        assert live.post("/v1/chat/completions", json=ask("q5")).json()["choices"][0]["message"]["content"] == whole(2)
        wait_until(lambda: stage.get("/readyz").status_code == 503, what="without a worker of its own it has none")
        assert live.get("/readyz").status_code == 200


# ---- an older version


@pytest.fixture
def old_names(fleet: Fleet) -> Iterator[None]:
    yield
    for page in iter(lambda: list(islice(fleet.client.scan_iter("arq:*", count=1000), 500)), []):
        fleet.client.delete(*page)


def left_behind(fleet: Fleet, generation_id: str, *, score: int = 1, leased_ms: int = 0) -> None:
    """A job as the version before queued it."""
    job: dict[str, Any] = {"t": None, "f": "generate", "a": [generation_id], "k": {}, "et": 1}
    fleet.client.set(f"arq:job:{generation_id}", json.dumps(job), ex=600)
    fleet.client.zadd("arq:queue", {generation_id: score})
    if leased_ms:
        fleet.client.set(f"arq:retry:{generation_id}", 1, ex=600)
        fleet.client.set(f"arq:in-progress:{generation_id}", b"old-worker-1-abc", px=leased_ms)


@pytest.mark.usefixtures("old_names")
def test_q6_workers_that_start_take_over_once_what_an_older_version_queued(
    fleet: Fleet, upstream: ScriptedUpstream
) -> None:
    script = upstream.script("q6", [*words(2), *ending()])
    for name in fleet.running():
        fleet.stop(name)
    strangers = {
        uuid.uuid4().hex: pickle.dumps({"t": None, "f": "mail", "a": (), "k": {}, "et": 1}) for _ in range(300)
    }
    for job_id, payload in strangers.items():
        fleet.client.set(f"arq:job:{job_id}", payload, ex=600)
    fleet.client.zadd("arq:queue", dict.fromkeys(strangers, 1))
    ids = [fleet.plant("q6") for _ in range(30)]
    for number, generation_id in enumerate(ids):
        left_behind(fleet, generation_id, score=number)
    for name in (names := ["worker", "worker-2", "worker-3"]):
        fleet.start(name)
    wait_until(lambda: all(map(fleet.up, names)), READY_S, "they have started")
    for generation_id in ids:
        assert fleet.ended(generation_id)["status"] == "completed"
    assert len(script.calls) == 30
    assert {member.decode() for member in fleet.client.zrange("arq:queue", 0, -1)} == strangers.keys()
    assert all(fleet.client.get(f"arq:job:{job_id}") == payload for job_id, payload in strangers.items())
    assert not [key for key in fleet.client.scan_iter("arq:*") if b"chatcmpl-" in key]


@pytest.mark.usefixtures("old_names")
def test_q6_what_an_older_worker_runs_is_its_own_until_it_is_lost(fleet: Fleet, upstream: ScriptedUpstream) -> None:
    """Also not rung for by a reaper of ours, which sees it open."""
    script = upstream.script("q6-old", [*words(2), *ending()])
    generation_id = fleet.plant("q6-old")
    left_behind(fleet, generation_id, leased_ms=60_000)
    fleet.heal()
    later = time.monotonic() + 10  # two looks of a reaper
    wait_until(lambda: time.monotonic() > later)
    assert fleet.state(generation_id)["status"] == "queued"
    assert not script.calls
    fleet.client.pexpire(f"arq:in-progress:{generation_id}", 1)
    assert fleet.ended(generation_id)["status"] == "completed"
    assert len(script.calls) == 1


@pytest.mark.usefixtures("old_names")
def test_q6_what_an_older_api_goes_on_to_queue_is_begun_when_its_bell_rings(
    fleet: Fleet, upstream: ScriptedUpstream
) -> None:
    upstream.script("q6-bell", [*words(2), *ending()])
    generation_id = fleet.plant("q6-bell")
    left_behind(fleet, generation_id)
    fleet.client.publish(keys.doorbell, generation_id)
    assert fleet.ended(generation_id)["status"] == "completed"


# ---- a server that forgot who runs what


def looks(client: Store) -> int:
    """How often the server was asked for the time, which is what a look for work does."""
    return int(client.info("commandstats").get("cmdstat_time", {"calls": 0})["calls"])


def test_q8_what_a_server_forgot_to_be_running_is_left_to_who_runs_it(
    upstream: ScriptedUpstream, judges: Judges, tmp_path: Path
) -> None:
    """Started from an older file it says that the job waits; the other worker asks it more than once before this one can, and
    leaves it alone for half a lease, in which a busy machine may wake this one."""
    pause = Pause()
    script = upstream.script("q8", [*words(3), pause, *words(9)[4:], *ending()])
    place = tmp_path / "stack"
    place.mkdir()
    with (
        Rewindable(tmp_path / "valkey") as server,
        Stack(server.url, upstream.base_url, place, STREAMSPOOL_LEASE_S="100") as stack,
    ):
        # Both are there before anything is said: what the disk has for some seconds is kept in no worker, and a start takes
        # longer on a busy machine. The server would have forgotten what nobody can say again.
        stack.start("worker-2")
        wait_until(lambda: server.client.scard(keys.workers) == 2, READY_S, "there is another worker")
        for name in ("worker", "worker-2"):
            stack.kill(name, signal.SIGSTOP)
        viewer = judges.post([stack.url], ask("q8"))
        wait_until(lambda: server.client.zcard(WAITING) == 1, what="it waits")
        server.remember()
        stack.kill("worker", signal.SIGCONT)
        wait_until(lambda: viewer.text == whole(3), what="it runs")
        stack.kill("worker", signal.SIGSTOP)
        stack.kill("worker-2", signal.SIGCONT)
        before = looks(server.client)
        wait_until(lambda: looks(server.client) > before + 3, what="the other one knows which server this is")
        server.rewind()
        assert server.client.zcard(WAITING) == 1
        wait_until(lambda: looks(server.client) > 3)
        stack.kill("worker", signal.SIGCONT)
        wait_until(lambda: server.client.get(keys.lease(viewer.id)), what="who runs it says so")
        pause.go()
        judges.wait()
        assert (viewer.error, viewer.outcome, viewer.text, viewer.attempts) == (None, "whole", whole(9), [])
        assert len(script.calls) == 1


def test_q7_lines_have_their_places_and_wait_in_nobodys_way(fleet: Fleet, upstream: ScriptedUpstream) -> None:
    """Lines fill what they may have; then somebody asks, and is answered at once, however many lines wait."""
    pause = Pause()
    lines_script = upstream.script("q7-line", [*words(1), pause, *ending()])
    with httpx.Client(base_url=fleet.url, trust_env=False, timeout=60) as client:
        batch_id = start(client, jsonl([line(f"id-{n}", "scripted/q7-line") for n in range(100)]))
        wait_until(lambda: lines_script.live == 10, what="five lines in each of two workers")
        upstream.script("q7", [*words(2), *ending()])
        assert fleet.ended(fleet.submit("q7"))["status"] == "completed"
        assert lines_script.live == 10
        wait_until(lambda: fleet.client.zcard(keys.waiting(Lane.LINE, "local")) > 10, what="and many wait")
        pause.go()
        assert ended(client, batch_id)["request_counts"]["completed"] == 100
