"""Many requests around one kill -9 at a random moment: what rows F4, F11 and F41 of the fault matrix are made of.

Each burst is one kill (F41: some kills) and the judgement of every request it met, added to a Tally. Which moment a
request was met in is told afterwards by what is stored, not by what was aimed at.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from shared.log.decoding import decode
from shared.log.entry import Kind
from shared.log.envelope import Envelopes
from tests.chaos.tally import Tally
from tests.harness.processes import wait_until
from tests.harness.shown import Shown
from tests.harness.upstream import DONE, USAGE, Pause, Script, ScriptedUpstream, ending, whole, words
from tests.support.fleet import Fleet, ask
from tests.support.ledger import ledger_problems
from tests.support.names import keys
from tests.support.wire_async import JSON, Stream, follow

SEAL = f"{2**53 - 1}-0"
STUCK_S = 120.0
WORDS = 20
SAID = 10
"""Words before the barrier; the rest comes around the kill."""
KILLED_WITHIN_S = 0.25
TURN_WORDS = 8
DIES_BEFORE_ITS_TURN_IS_KEPT = """
import os, signal
from shared.generations.settlement import Settlement

async def settle_outcome(*_):
    os.kill(os.getpid(), signal.SIGKILL)

Settlement.settle_outcome = settle_outcome
"""


@dataclass
class Asked:
    """One request of a burst."""

    name: str
    script: Script
    headers: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    status: int = 0
    replayed: bool = False
    reading: Shown = field(default_factory=lambda: Shown(native=False))
    ended_at: float = 0.0
    go: Pause = field(default_factory=Pause)

    async def post(self, port: int, *, read: bool = True) -> None:
        """Asks, and reads to the end if wanted. Raises OSError (Cut is one) where the connection breaks."""
        body = json.dumps(ask(self.name, stream=True, **self.fields)).encode()
        self.reading = Shown(native=False)
        opening = Stream.open(port, "POST", "/v1/chat/completions", headers={**JSON, **self.headers}, body=body)
        async with await opening as stream:
            self.status, self.id = stream.status, stream.headers.get("x-stream-id", self.id)
            self.replayed = "idempotent-replayed" in stream.headers
            if self.status == 200 and read:
                await follow(self.reading, stream)
                self.ended_at = time.monotonic()


def stored_requests(fleet: Fleet) -> dict[str, list[dict[str, Any]]]:
    """The headers of all requests in the store, by model, whoever knows of them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for raw in fleet.client.zrange(keys.index("local", 0), 0, -1):
        header = json.loads(fleet.client.xrange(keys.log(raw.decode()), "0-1", "0-1")[0][1][b"r"])
        found.setdefault(header["model"].removeprefix("scripted/"), []).append(header)
    return found


def wait_still(fleet: Fleet) -> None:
    """Until every generation has ended and is settled, for as long as the matrix allows."""
    wait_until(lambda: not fleet.client.zcard(keys.open(0)), STUCK_S, "every generation ends")
    wait_until(lambda: not fleet.client.scard(keys.unsettled(0)), STUCK_S, "every generation is settled")


def check_ledger(fleet: Fleet, tally: Tally, generation_ids: Iterable[str]) -> None:
    """Each of them counts once, with the usage in its state; they are all there are of their models."""
    rows = fleet.read("/v1/usage")["data"]
    states = fleet.states()
    tally.blame(ledger_problems([states[generation_id] for generation_id in generation_ids], rows))


# ---- F4: workers, around the end of the stream


def kill_workers_around_the_end(
    fleet: Fleet, upstream: ScriptedUpstream, tally: Tally, chance: random.Random, *, burst: int, streams: int = 24
) -> None:
    """Streams that all end within a fifth of a second, in which a worker is killed, or both.

    Finish chunk, usage and `[DONE]` come in one write or some milliseconds apart, as from real providers. Counts where
    each stream was caught; a run is one that had its finish chunk stored, and no seal or no settlement.
    """
    asyncio.run(_kill_workers_around_the_end(fleet, upstream, tally, chance, burst, streams))


async def _kill_workers_around_the_end(
    fleet: Fleet, upstream: ScriptedUpstream, tally: Tally, chance: random.Random, burst: int, streams: int
) -> None:
    go = Pause()
    made = []
    for i in range(streams):
        gap_s = chance.choice([0, chance.uniform(0, 0.06)])
        end: list[bytes | float] = [*ending()] if gap_s else [b"".join(ending())]
        if gap_s:
            end = [end[0], gap_s, USAGE, gap_s, DONE]
        parts = [*words(SAID), go, chance.uniform(0, 0.2), *words(WORDS)[SAID + 1 :], *end]
        made.append(Asked(f"f04-{burst}-{i}", upstream.script(f"f04-{burst}-{i}", parts)))
    reading = asyncio.gather(*(one.post(fleet.port) for one in made))
    await _until(lambda: all(one.reading.text == whole(SAID) for one in made))
    owners = {one.id: await asyncio.to_thread(fleet.owner, one.id) for one in made}
    victims = chance.choice([["worker"], ["worker-2"], ["worker", "worker-2"]])
    go.go()
    await asyncio.sleep(chance.uniform(0, KILLED_WITHIN_S))
    for name in victims:
        fleet.kill(name)
    killed = time.monotonic()
    unsettled = {raw.decode() for raw in fleet.client.smembers(keys.unsettled(0))}
    await asyncio.to_thread(fleet.heal)
    await asyncio.wait_for(reading, STUCK_S)
    tally.seen["kills"] += 1
    for one in made:
        where = _caught(fleet, one.id, unsettled) if owners[one.id] in victims else "not_hit"
        tally.seen[where] += 1
        if where in ("before_seal", "before_settlement"):
            tally.runs += 1
        _judge_end(fleet, tally, one, whole_stored=where != "before_finish", killed=killed)


def _caught(fleet: Fleet, generation_id: str, unsettled: set[str]) -> str:
    """In which moment the kill of its worker met a generation."""
    raw = fleet.client.xrange(keys.log(generation_id))
    entries = dict(raw)
    chunks = [
        entry.data for entry in decode(raw, None, Envelopes()) if entry.position.epoch == 1 and entry.kind is Kind.CHUNK
    ]
    finished = any(choice["finish_reason"] for data in chunks for choice in json.loads(data)["choices"])
    if json.loads(entries[SEAL.encode()][b"o"])["by"] == json.loads(entries[b"1-0"][b"a"])["worker"]:
        return "before_settlement" if generation_id in unsettled else "after_settlement"
    return "before_seal" if finished else "before_finish"


def _judge_end(fleet: Fleet, tally: Tally, one: Asked, *, whole_stored: bool, killed: float) -> None:
    state, text = fleet.state(one.id), one.reading.text
    found = (one.reading.terminal, state["status"], state["attempts"], len(one.script.calls), one.reading.wrong)
    if whole_stored:
        tally.check(one.name, found, ("done", "completed", 1, 1, []))
    else:
        tally.check(one.name, found, ("generation_interrupted", "failed", 1, 1, []))
    tally.words(text, WORDS if whole_stored else len(text.split()))
    tally.check(f"{one.name} as it is stored", fleet.stored(one.id), text)
    tally.check(f"{one.name} has ends", fleet.entries(one.id).count(SEAL), 1)
    tally.worst_s = max(tally.worst_s, one.ended_at - killed)


# ---- F11: APIs, within 50 ms of a POST


def kill_apis_within_posts(
    fleet: Fleet,
    upstream: ScriptedUpstream,
    tally: Tally,
    chance: random.Random,
    *,
    burst: int,
    apis: int = 4,
    posts: int = 20,
    stored: bool = False,
) -> list[tuple[Asked, float]]:
    """Each of some APIs is killed while requests come in, the oldest 50 ms old; the first API lives on.

    Every other request has an Idempotency-Key and is sent again, to that one. With `stored`, one of these is stored before
    the kill, however long that takes. A run is a kill. Returns the requests and when (Unix time) their API was killed, to be
    judged with `judge_posts` when all is still.
    """
    names = [f"api-{number}" for number in range(2, 2 + apis)]
    fleet.heal(*names)
    made: list[tuple[Asked, float]] = []
    for name in names:
        tagged = [f"f11-{burst}-{name}-{i}" for i in range(posts)]
        asked = [Asked(tag, upstream.script(tag, [*words(WORDS), *ending()])) for tag in tagged]
        for one in asked[::2]:
            one.headers["idempotency-key"] = one.name
        asyncio.run(_kill_api_within_posts(fleet, name, asked, chance, stored=stored))
        made += [(one, time.time()) for one in asked]
        tally.runs += 1
        asyncio.run(_ask_again(fleet, tally, asked[::2]))
    return made


async def _kill_api_within_posts(
    fleet: Fleet, name: str, made: list[Asked], chance: random.Random, *, stored: bool
) -> None:
    port = int(fleet.at(name).rpartition(":")[2])

    async def post(one: Asked, after_s: float) -> None:
        await asyncio.sleep(after_s)
        with contextlib.suppress(OSError):
            await one.post(port)

    posting = [asyncio.create_task(post(one, chance.uniform(0, 0.05))) for one in made]
    await asyncio.sleep(0.05)
    keyed = {one.name for one in made if one.headers}
    while stored and not keyed & (await asyncio.to_thread(stored_requests, fleet)).keys():
        assert not all(one.done() for one in posting)
    fleet.kill(name)
    await asyncio.gather(*posting)


async def _ask_again(fleet: Fleet, tally: Tally, made: list[Asked]) -> None:
    """The client's next try, with its key: the same generation, whole."""
    before = [one.id for one in made]
    await asyncio.wait_for(asyncio.gather(*(one.post(fleet.port) for one in made)), STUCK_S)
    for one, known in zip(made, before, strict=True):
        tally.seen["with_key_found_again"] += one.replayed
        tally.check(f"{one.name} again", (one.reading.terminal, one.reading.wrong), ("done", []))
        tally.words(one.reading.text, WORDS)
        if known:
            tally.check(f"{one.name} is the same generation", one.id, known)


def judge_posts(fleet: Fleet, tally: Tally, made: list[tuple[Asked, float]]) -> None:
    """One key, one generation, one call; and whatever was accepted came to its end, whether its client knows or not."""
    wait_still(fleet)
    stored = stored_requests(fleet)
    for one, killed in made:
        headers = stored.get(one.name, [])
        keyed = bool(one.headers)
        if keyed or one.id:
            tally.check(f"{one.name} is there", [header["id"] for header in headers], [one.id])
        elif headers:
            tally.seen["without_key_unanswered"] += 1
        tally.seen[f"{'with' if keyed else 'without'}_key_accepted"] += len(headers)
        tally.check(f"{one.name} is there once at most", len(headers) <= 1, True)
        tally.check(f"calls for {one.name}", len(one.script.calls), len(headers))
        for header in headers:
            state = fleet.state(header["id"])
            tally.check(f"{one.name} ended", (state["status"], fleet.stored(header["id"])), ("completed", whole(WORDS)))
            sealed = json.loads(fleet.client.xrange(keys.log(header["id"]), SEAL, SEAL)[0][1][b"o"])
            tally.worst_s = max(tally.worst_s, sealed["ended_at_ms"] / 1000 - killed)


# ---- F41: workers, under sessions


def kill_workers_under_sessions(
    fleet: Fleet,
    upstream: ScriptedUpstream,
    tally: Tally,
    chance: random.Random,
    *,
    burst: int,
    sessions: int = 20,
) -> None:
    """Two requests at once in each of some sessions, and kills of workers around the ends of both turns.

    One more worker dies by itself between its first seal, if it comes to that, and the settlement, a moment too short to
    meet often. Every fourth session refuses the second request. A run is a session.
    """
    made: list[tuple[Asked, Asked]] = []
    for number in range(sessions):
        fields = {
            "session_id": f"f41-{burst}-{number}",
            "session_policy": "enqueue" if number % 4 else "reject",
            "on_interruption": chance.choice(["restart", "restart", "fail"]),
        }
        go = Pause()
        made.append((_turn(upstream, chance, "a", go, fields), _turn(upstream, chance, "b", go, fields)))
    fleet.start_and_wait("worker-doomed", fault=DIES_BEFORE_ITS_TURN_IS_KEPT)
    killed = asyncio.run(_kill_under_sessions(fleet, tally, made, chance))
    wait_still(fleet)
    tally.worst_s = max(tally.worst_s, time.monotonic() - killed)
    headers = stored_requests(fleet)
    for pair in made:
        _judge_session(fleet, tally, pair, headers)
    check_ledger(fleet, tally, [one.id for pair in made for one in pair if one.status == 200])


def _turn(upstream: ScriptedUpstream, chance: random.Random, which: str, go: Pause, fields: dict[str, Any]) -> Asked:
    name = f"{fields['session_id']}-{which}"
    said = [part for piece in words(TURN_WORDS) for part in (piece, chance.uniform(0, 0.03))]
    script = upstream.script(name, [go, *said, ending()[0], chance.choice([0.0, 0.02]), USAGE, DONE])
    messages = [{"role": "user", "content": f"question {name}"}]
    return Asked(name, script, fields={**fields, "messages": messages}, go=go)


async def _kill_under_sessions(
    fleet: Fleet, tally: Tally, made: list[tuple[Asked, Asked]], chance: random.Random
) -> float:
    """Returns when the last worker was killed."""
    doomed = asyncio.create_task(_dies_by_itself(fleet, tally, "worker-doomed"))
    asking = asyncio.gather(*(_ask_both(fleet, pair) for pair in made))
    killed = 0.0
    for _ in range(3):
        await asyncio.sleep(chance.uniform(0.1, 0.6))
        if living := [name for name in ("worker", "worker-2") if fleet.up(name)]:
            name = chance.choice(living)
            pid = fleet.process(name).pid
            fleet.kill(name)
            killed = time.monotonic()
            _count_kill(fleet, tally, pid)
            fleet.start(name)
    await asyncio.wait_for(asking, STUCK_S)
    await _until(lambda: doomed.done() or not fleet.client.zcard(keys.open(0)))
    doomed.cancel()  # the others may have been quicker to take everything
    await asyncio.gather(doomed, return_exceptions=True)
    return killed


async def _ask_both(fleet: Fleet, pair: tuple[Asked, Asked]) -> None:
    """At once; the provider begins when both are answered, so that one of them met the other."""
    await asyncio.gather(*(one.post(fleet.port, read=False) for one in pair))
    pair[0].go.go()


async def _dies_by_itself(fleet: Fleet, tally: Tally, name: str) -> None:
    pid = fleet.process(name).pid
    await _until(lambda: not fleet.alive(name))
    _count_kill(fleet, tally, pid)


def _count_kill(fleet: Fleet, tally: Tally, pid: int) -> None:
    tally.seen["kills"] += 1
    for raw in fleet.client.smembers(keys.unsettled(0)):
        sealed = json.loads(fleet.client.xrange(keys.log(raw.decode()), SEAL, SEAL)[0][1][b"o"])
        tally.seen["before_settlement"] += f"-{pid}-" in sealed["by"]


def _judge_session(
    fleet: Fleet, tally: Tally, pair: tuple[Asked, Asked], headers: dict[str, list[dict[str, Any]]]
) -> None:
    """The history is the finished turns in the order of their numbers, each once and whole; each saw those before it."""
    tally.runs += 1
    session_id, policy = pair[0].fields["session_id"], pair[0].fields["session_policy"]
    refused = [one.status for one in pair if one.status != 200]
    tally.check(f"{session_id} refused", refused, [409] if policy == "reject" else [])
    tally.seen["refused"] += len(refused)
    taken = [one for one in pair if one.status == 200]
    numbers = {one.name: headers[one.name][0]["session"]["turn"] for one in taken}
    tally.check(f"{session_id} numbers", sorted(numbers.values()), list(range(1, len(taken) + 1)))
    history: list[dict[str, str]] = []
    for one in sorted(taken, key=lambda one: numbers[one.name]):
        state = fleet.state(one.id)
        tally.seen[state["status"]] += 1
        asked = one.fields["messages"]
        prompts = [call["messages"] for call in one.script.calls]
        tally.check(f"{one.name} was asked with", prompts, [[*_plain(history), *asked]] * len(prompts))
        if state["status"] == "completed":
            text = fleet.stored(one.id)
            tally.words(text, TURN_WORDS)
            said = [*asked, {"role": "assistant", "content": text}]
            history += [{"generation_id": one.id, **message} for message in said]
    shown = fleet.read(f"/v1/sessions/{session_id}/messages")["data"]
    fields = ("generation_id", "role", "content")
    tally.check(f"{session_id} has", [{name: message[name] for name in fields} for message in shown], history)
    tally.check(f"{session_id} open", fleet.read(f"/v1/sessions/{session_id}")["open"], [])


def _plain(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(STUCK_S):
        while not condition():  # noqa: ASYNC110 - what viewers have read
            await asyncio.sleep(0.005)
