"""Sessions and the ledger while workers die (F41): every turn whole, once and in order; every generation counted once."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx

from tests.chaos.bursts import (
    DIES_BEFORE_ITS_TURN_IS_KEPT,
    check_ledger,
    kill_workers_under_sessions,
    wait_still,
)
from tests.chaos.tally import Tally
from tests.harness.processes import wait_until
from tests.harness.upstream import DONE, Pause, ScriptedUpstream, chunk, ending, whole, words
from tests.support.fleet import Fleet, ask
from tests.support.names import keys
from tests.support.wire_async import JSON, Stream

STREAMS = 1000


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def history(fleet: Fleet, session_id: str) -> list[tuple[str, str]]:
    """Who said what in a session."""
    found = fleet.read(f"/v1/sessions/{session_id}/messages")["data"]
    return [(message["role"], message["content"]) for message in found]


def test_f41_kills_around_the_ends_of_turns(fleet: Fleet, upstream: ScriptedUpstream) -> None:
    tally = Tally()
    kill_workers_under_sessions(fleet, upstream, tally, random.Random(1), burst=0)
    assert tally.problems == []
    assert (tally.lost, tally.duplicated) == (0, 0)
    assert tally.seen["kills"] > 0
    assert tally.seen["completed"] > 0


def test_f41_killed_between_the_seal_and_the_turn(fleet: Fleet, upstream: ScriptedUpstream) -> None:
    """Whoever asks on finds the turn, though the worker that sealed it is gone: the API keeps it before it answers."""
    for name in fleet.running():
        fleet.stop(name)
    fleet.start_and_wait("worker-doomed", fault=DIES_BEFORE_ITS_TURN_IS_KEPT)
    script = upstream.script("f41-doomed", [*words(3), *ending()])
    fields: dict[str, Any] = {"session_id": "f41-doomed"}
    with fleet.no_reaper():
        first = fleet.submit("f41-doomed", messages=question("one"), **fields)
        wait_until(lambda: not fleet.alive("worker-doomed"), what="it dies")
        assert fleet.state(first)["status"] == "completed"
        assert fleet.client.sismember(keys.unsettled(0), first)
    fleet.heal()
    second = fleet.submit("f41-doomed", messages=question("two"), **fields)
    fleet.ended(second)
    wait_still(fleet)
    turns = [("user", "one"), ("assistant", whole(3)), ("user", "two"), ("assistant", whole(3))]
    assert history(fleet, "f41-doomed") == turns
    shown = [(message["role"], message["content"]) for message in script.calls[1]["messages"]]
    assert shown == turns[:3]
    assert len(script.calls) == 2
    tally = Tally()
    check_ledger(fleet, tally, [first, second])
    assert tally.problems == []


def test_f41_three_sessions_of_five_turns_with_a_worker_killed_in_each(
    fleet: Fleet, upstream: ScriptedUpstream
) -> None:
    """In the middle of every turn its worker dies; with `restart` another one says it anew, and that is the history."""
    sessions = [f"f41-{name}" for name in "abc"]
    turns: dict[str, list[tuple[str, str]]] = {session: [] for session in sessions}
    made = []
    for turn in range(5):
        rest = Pause()
        running = {}
        for session in sessions:
            name, asked = f"{session}-{turn}", f"question {turn}"
            script = upstream.script(name, [*words(3), rest, *words(5 + turn)[4:], *ending()])
            generation_id = fleet.submit(name, session_id=session, on_interruption="restart", messages=question(asked))
            running[session] = (generation_id, script)
            turns[session] += [("user", asked)]
        for generation_id, _ in running.values():
            fleet.until_said(generation_id, 4)
        for name in {fleet.owner(generation_id) for generation_id, _ in running.values()}:
            fleet.kill(name)
        fleet.heal()
        rest.go()
        for session, (generation_id, script) in running.items():
            state = fleet.ended(generation_id)
            assert (state["status"], state["attempts"]) == ("completed", 2)
            prompts = [[(said["role"], said["content"]) for said in call["messages"]] for call in script.calls]
            assert prompts == [turns[session]] * 2
            turns[session].append(("assistant", whole(5 + turn)))
            made.append(generation_id)
    assert {session: history(fleet, session) for session in sessions} == turns
    wait_still(fleet)
    tally = Tally()
    check_ledger(fleet, tally, made)
    assert tally.problems == []


def test_f41_the_usage_of_a_thousand_streams_is_the_ledger(fleet: Fleet, upstream: ScriptedUpstream) -> None:
    """Figures of the provider, counts of ours for those without, cuts, and a worker killed in the middle of it all."""
    model = "f41-ledger"
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    upstream.script(f"{model}-0", [*words(2), *ending()])
    upstream.script(f"{model}-1", [*words(3), *ending(usage=False)])
    upstream.script(f"{model}-2", [*words(4), chunk({}, "stop", usage=usage), DONE])
    upstream.script(f"{model}-3", words(5), end="cut")

    async def submit_all() -> None:
        numbers = iter(range(STREAMS))

        async def some() -> None:
            for number in numbers:
                body = httpx.Request("POST", "http://x", json=ask(f"{model}-{number % 4}", stream=True)).content
                path = "/v1/chat/completions"
                async with await Stream.open(fleet.port, "POST", path, headers=JSON, body=body) as stream:
                    assert stream.status == 200
                if number == STREAMS // 2:
                    fleet.kill("worker")

        await asyncio.gather(*(some() for _ in range(20)))

    asyncio.run(submit_all())
    wait_still(fleet)
    made = [generation_id for generation_id, state in fleet.states().items() if f"/{model}-" in state["model"]]
    assert len(made) == STREAMS
    tally = Tally()
    check_ledger(fleet, tally, made)
    assert tally.problems == []
