"""API processes that are killed, or told to stop, under their viewers: the log is whole, and so is what they see."""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.bursts import judge_posts, kill_apis_within_posts, stored_requests
from tests.chaos.tally import Tally
from tests.harness.processes import wait_until
from tests.harness.upstream import Pause, ScriptedUpstream, ending, whole, words
from tests.support.clients import PROGRAMS
from tests.support.fleet import BAR_S, STOP_S, Fleet, ask
from tests.support.judge import Judges
from tests.support.names import keys

SETTINGS = {"STREAMSPOOL_DRAIN_S": "8"}
"""In which one that was told to stop does the last that it is asked for, and a busy machine has other things to do."""
VIEWERS = 50
DIES_BEFORE_THE_BELL = """
import os, signal
import shared.features.bell

async def ring(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

shared.features.bell.Bell.ring = ring
"""
DIES_AFTER_THE_CREATE = """
import os, signal
import shared.generations.broker

async def accepted(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

shared.generations.broker.Broker._accepted = accepted
"""


def test_f10_fifty_viewers_survive_the_kill_of_their_api(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream
) -> None:
    pause = Pause()
    script = upstream.script("f10", [*words(20), pause, *words(60)[21:], *ending()])
    generation_id = fleet.submit("f10")
    viewers = [judges.watch([fleet.url], generation_id) for _ in range(VIEWERS)]
    wait_until(lambda: all(viewer.text == whole(20) for viewer in viewers))
    fleet.kill("api")
    pause.go()  # the worker never notices: it goes on writing while nobody can watch
    wait_until(lambda: fleet.client.zcard(keys.open(0)) == 0, what="the answer ends without an API")
    fleet.start_and_wait("api")
    up = time.monotonic()
    judges.wait()
    assert [(viewer.outcome, viewer.text) for viewer in viewers] == [("whole", whole(60))] * VIEWERS
    assert all(viewer.attempts == [] for viewer in viewers)
    assert max(viewer.back_at for viewer in viewers) - up < BAR_S
    found = fleet.state(generation_id)
    assert (found["status"], found["attempts"]) == ("completed", 1)
    assert len(script.calls) == 1


def test_f11_killed_between_the_log_and_the_bell(fleet: Fleet, judges: Judges, upstream: ScriptedUpstream) -> None:
    """With a key, the client's next try finds the same generation and rings for it; for a session's turn the reaper does."""
    script = upstream.script("f11", [*words(3), *ending()])
    fleet.start("api-doomed", fault=DIES_BEFORE_THE_BELL)
    fleet.start("api-damned", fault=DIES_BEFORE_THE_BELL)
    wait_until(lambda: fleet.up("api-doomed") and fleet.up("api-damned"))
    with fleet.no_reaper():
        lost = judges.post([fleet.at("api-doomed")], ask("f11"), headers={"idempotency-key": "f11"})
        orphan = judges.post([fleet.at("api-damned")], ask("f11", session_id="f11"))
        judges.wait()
        assert (lost.cut, orphan.cut) == (True, True)
        stored = {header["id"] for header in stored_requests(fleet)["f11"]}
        assert len(stored) == 2
        assert script.calls == []
        again = judges.post([fleet.url], ask("f11"), headers={"idempotency-key": "f11"})
        judges.wait()
    assert (again.outcome, again.text) == ("whole", whole(3))
    assert again.headers["idempotent-replayed"] == "true"
    (left,) = stored - {again.id}
    late = judges.watch([fleet.url], left)
    judges.wait()
    assert (late.outcome, late.text) == ("whole", whole(3))
    assert len(script.calls) == 2
    assert fleet.client.zcard(keys.open(0)) == 0


def test_f11_killed_once_the_log_is_there(fleet: Fleet, judges: Judges, upstream: ScriptedUpstream) -> None:
    """Without a key and a session it was rung for in the same step: it runs although its client knows nothing of it."""
    script = upstream.script("f11-created", [*words(3), *ending()])
    fleet.start("api-doomed", fault=DIES_AFTER_THE_CREATE)
    wait_until(lambda: fleet.up("api-doomed"))
    lost = judges.post([fleet.at("api-doomed")], ask("f11-created"))
    judges.wait()
    assert lost.cut
    wait_until(lambda: fleet.client.zcard(keys.open(0)) == 0)
    assert len(script.calls) == 1


def test_f11_killed_within_50_ms_of_posts(fleet: Fleet, upstream: ScriptedUpstream) -> None:
    tally, chance = Tally(), random.Random(1)
    for burst in range(4):  # on a busy machine, 50 ms may pass before an API has stored anything: then it is waited for
        made = kill_apis_within_posts(fleet, upstream, tally, chance, burst=burst, stored=burst > 0)
        judge_posts(fleet, tally, made)
        assert tally.problems == []
        assert (tally.lost, tally.duplicated) == (0, 0)
        if tally.seen["with_key_found_again"]:
            return
    raise AssertionError("no request was stored before its API was killed")


def test_f12_told_to_stop_an_api_hands_its_viewers_over(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream
) -> None:
    """Native viewers go on at the other one, as do those with ids; of the others, the one that can ends, and the one that
    cannot is told so, and cut."""
    fleet.start_and_wait("api-2")
    both = [fleet.url, fleet.at("api-2")]
    pause, never = Pause(), Pause()
    upstream.script("f12", [*words(10), pause, *words(20)[11:], *ending()])
    upstream.script("f12-long", [*words(10), never, *words(20)[11:], *ending()])
    quick = judges.post(both, ask("f12"))
    long = judges.post(both, ask("f12-long"))
    wait_until(lambda: quick.text == long.text == whole(10))
    resuming = judges.watch(both, long.id, view="chat/completions")
    native = [judges.watch(both, generation_id) for generation_id in (quick.id, long.id) for _ in range(10)]
    wait_until(lambda: all(viewer.text == whole(10) for viewer in (*native, resuming)))
    fleet.kill("api", signal.SIGTERM)
    wait_until(lambda: all(viewer.connects > 1 for viewer in native), what="the native viewers leave")
    assert not quick.ended
    pause.go()
    assert fleet.process("api").wait(STOP_S) == 0
    never.go()
    judges.wait()
    assert (quick.outcome, quick.text) == ("whole", whole(20))
    assert (long.outcome, long.cut, long.finish, long.code) == ("failed", True, [], "draining")
    assert long.error is not None
    assert long.id in long.error["message"]
    assert (resuming.outcome, resuming.text, resuming.error) == ("whole", whole(20), None)
    assert [(viewer.outcome, viewer.text) for viewer in native] == [("whole", whole(20))] * 20
    assert "Traceback" not in fleet.log("api")


@pytest.mark.parametrize("program", ["stopped.py", "stopped.mjs"])
def test_f12_official_clients_raise_when_their_api_stops(
    fleet: Fleet, upstream: ScriptedUpstream, program: str, tmp_path: Path
) -> None:
    """In mid-answer, of both APIs: what was said so far is never taken for a whole answer."""
    runner = shutil.which("node") if program.endswith(".mjs") else sys.executable
    if runner is None or not (PROGRAMS / "node_modules/openai").exists():
        pytest.skip("no node, or no openai in tests/clients: run `make clients`")
    never = Pause()
    upstream.script("f12-sdk", [*words(5), never, *words(9)[6:], *ending()])
    said = tmp_path / "said"

    def lines(name: str) -> list[Any]:
        whole_lines = said.read_text().rpartition("\n")[0].splitlines()
        return [line[name] for line in map(json.loads, whole_lines) if name in line]

    with said.open("wb") as out:
        client = subprocess.Popen([runner, str(PROGRAMS / program), fleet.url, "scripted/f12-sdk"], stdout=out)
    try:
        wait_until(lambda: lines("text").count(whole(5)) == 2, what="both streams have shown half of it")
        fleet.kill("api", signal.SIGTERM)
        assert client.wait(STOP_S) == 0
        assert fleet.process("api").wait(STOP_S) == 0
    finally:
        never.go()
        client.kill()
        client.wait()
    assert (lines("raised"), lines("code")) == (["APIError"] * 2, ["draining"] * 2)
    wait_until(lambda: fleet.client.zcard(keys.open(0)) == 0, what="both answers go on to their ends")


def test_f12_rolling_apis_lose_no_viewer(fleet: Fleet, judges: Judges, upstream: ScriptedUpstream) -> None:
    """One after the other is replaced, while the answer goes on."""
    fleet.start_and_wait("api-2")
    both = [fleet.url, fleet.at("api-2")]
    first, second = Pause(), Pause()
    script = upstream.script("f12-roll", [*words(5), first, *words(9)[6:], second, *words(15)[10:], *ending()])
    generation_id = fleet.submit("f12-roll")
    viewers = [judges.watch(urls, generation_id) for urls in (both, both[::-1]) for _ in range(10)]
    wait_until(lambda: all(viewer.text == whole(5) for viewer in viewers))
    for name, pause, said in (("api", first, 9), ("api-2", second, 15)):
        fleet.kill(name, signal.SIGTERM)
        assert fleet.process(name).wait(STOP_S) == 0
        pause.go()
        wait_until(lambda said=said: all(viewer.text == whole(said) for viewer in viewers))
        if name == "api":
            fleet.start_and_wait(name)
    judges.wait()
    assert [(viewer.outcome, viewer.text) for viewer in viewers] == [("whole", whole(15))] * 20
    assert len(script.calls) == 1
    assert fleet.answers()


PATIENT = "import api.server; api.server.LEAVE_S = 600\n"
"""Leaves as much time for a last request as a busy machine may need."""
ASK = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def refuses(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) != 0


def asked(connection: socket.socket) -> bytes:
    """The whole answer: its head may come by itself."""
    connection.sendall(ASK)
    answer = b""
    while b'{"status":"ok"}' not in answer:
        answer += (more := connection.recv(4096))
        assert more
    return answer


def test_f12_a_connection_that_is_made_or_kept_is_answered_once_more(fleet: Fleet) -> None:
    """To close it would be a reset for who asks at this moment."""
    fleet.start("api-patient", fault=PATIENT, STREAMSPOOL_DRAIN_S="600")
    wait_until(lambda: fleet.answers("api-patient"))
    address = ("127.0.0.1", fleet.port_of("api-patient"))
    with socket.create_connection(address, STOP_S) as made, socket.create_connection(address, STOP_S) as kept:
        assert b"connection: close" not in asked(kept)
        fleet.kill("api-patient", signal.SIGTERM)
        wait_until(lambda: "api stopping" in fleet.log("api-patient"))
        wait_until(lambda: refuses(address), what="no new connections are taken")
        for connection in (made, kept):
            connection.sendall(ASK)
            answer = connection.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in answer
        assert fleet.process("api-patient").wait(STOP_S) == 0


def test_f12_one_that_asks_nothing_more_does_not_hold_it_up(fleet: Fleet) -> None:
    fleet.start_and_wait("api-idle", STREAMSPOOL_DRAIN_S="600")  # for that long it would be held up
    with socket.create_connection(("127.0.0.1", fleet.port_of("api-idle")), STOP_S) as idle:
        asked(idle)
        fleet.kill("api-idle", signal.SIGTERM)
        assert idle.recv(4096) == b""
        assert fleet.process("api-idle").wait(STOP_S) == 0


def test_f12_who_has_seen_nothing_yet_is_refused(fleet: Fleet, judges: Judges, upstream: ScriptedUpstream) -> None:
    """Its headers are still held back: it gets a status, and the id under which the answer goes on."""
    fleet.start_and_wait("api-slow", STREAMSPOOL_HOLD_HEADERS_S="60", STREAMSPOOL_DRAIN_S="0.5")
    never = Pause()
    script = upstream.script("f12-silent", [never, *words(3), *ending()])
    silent = judges.post([fleet.at("api-slow")], ask("f12-silent"))
    wait_until(lambda: len(script.calls) == 1)
    fleet.kill("api-slow", signal.SIGTERM)
    assert fleet.process("api-slow").wait(STOP_S) == 0
    judges.wait()
    assert (silent.outcome, silent.code, silent.text) == ("failed", "draining", "")
    never.go()
    wait_until(lambda: fleet.client.zcard(keys.open(0)) == 0, what="the answer goes on to its end")
