"""Many responses in the background, streamed from a provider of chats, while API, Valkey and a worker are killed one after the
other: every event once, under numbers without a gap, and no answer asked for that was not lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.test_responses import Watching
from tests.harness.processes import wait_until
from tests.harness.upstream import Pause, Script, ScriptedUpstream, ending, whole, words
from tests.support.ground import Ground
from tests.support.names import keys
from tests.support.responses import PATH, joined, text_of

COUNT, PHASE = 20, 5


@pytest.fixture
def ground(tmp_path: Path, upstream: ScriptedUpstream) -> Iterator[Ground]:
    # Who runs an answer has half a lease to say so to a Valkey that was started again.
    with Ground(tmp_path, upstream.base_url, STREAMSPOOL_LEASE_S="4") as running:
        yield running


def start(ground: Ground, model: str, **fields: Any) -> str:
    body = {"model": f"scripted/{model}", "input": "x", "background": True, "stream": False, **fields}
    answer = ground.http.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def owner(ground: Ground, response_id: str, attempt: int = 1) -> str:
    """The worker that made this attempt."""
    entries = ground.redis.xrange(
        keys.log(f"chatcmpl-{response_id.removeprefix('resp_')}"), f"{attempt}-0", f"{attempt}-0"
    )
    worker_id = json.loads(entries[0][1][b"a"])["worker"]
    return next(name for name in ("worker", "worker-2") if f"-{ground.stack.process(name).pid}-" in worker_id)


def in_phases(upstream: ScriptedUpstream, name: str, pauses: list[Pause]) -> Script:
    """Five words before each pause, and five after the last."""
    head, *said = words(PHASE * (len(pauses) + 1))
    parts: list[Any] = [head]
    for number, word in enumerate(said):
        if number and not number % PHASE:
            parts.append(pauses[number // PHASE - 1])
        parts.append(word)
    return upstream.script(name, [*parts, *ending()])


@pytest.mark.timeout(400)
def test_f67_twenty_responses_outlive_api_valkey_and_a_worker(ground: Ground, upstream: ScriptedUpstream) -> None:
    pauses = [Pause(), Pause(), Pause()]
    text = whole(PHASE * 4)
    scripts = [in_phases(upstream, f"killed-{number}", pauses) for number in range(COUNT)]
    ids = [start(ground, f"killed-{number}", on_interruption="restart") for number in range(COUNT)]
    viewers = [Watching([ground.stack.url], response_id) for response_id in ids]

    def all_say(phases: int) -> bool:
        return all(viewer.says(whole(PHASE * phases)) for viewer in viewers)

    wait_until(lambda: all_say(1), 60, "the first words")
    ground.kill("api")
    pauses[0].go()
    wait_until(lambda: all_say(2), 60, "the words after the API was killed")
    ground.kill_valkey()
    pauses[1].go()
    wait_until(lambda: all_say(3), 60, "the words after Valkey was killed")
    killed = owner(ground, ids[0])
    lost = {response_id for response_id in ids if owner(ground, response_id) == killed}
    ground.kill(killed)
    wait_until(lambda: all(viewer.told[-1]["type"] == "response.failed" for viewer in viewers if viewer.id in lost), 60)
    pauses[2].go()
    for response_id, viewer, script in zip(ids, viewers, scripts, strict=True):
        told = viewer.end()
        if response_id in lost:
            assert told[-1]["response"]["error"]["reason"] == "generation_interrupted"
            assert joined(told) == whole(PHASE * 3)
            told = Watching([ground.stack.url], response_id).end()
        assert joined(told) == text_of(told[-1]["response"]) == text
        assert ground.http.get(f"{PATH}/{response_id}").json() == told[-1]["response"]
        assert len(script.calls) == 1 + (response_id in lost)


@pytest.mark.timeout(300)
def test_f68_fifty_viewers_of_one_response_see_the_same_through_a_killed_api(
    ground: Ground, upstream: ScriptedUpstream
) -> None:
    pauses = [Pause(), Pause()]
    script = in_phases(upstream, "fifty", pauses)
    response_id = start(ground, "fifty")
    first = Watching([ground.stack.url], response_id)
    wait_until(lambda: first.says(whole(PHASE)), 60)
    viewers = [Watching([ground.stack.url], response_id) for _ in range(44)]
    late = [Watching([ground.stack.url], response_id, after) for after in range(1, 6)]
    wait_until(lambda: all(viewer.says(whole(PHASE)) for viewer in viewers), 60)
    ground.kill("api")
    pauses[0].go()
    wait_until(lambda: first.says(whole(PHASE * 2)), 60)
    pauses[1].go()
    told = first.end()
    assert joined(told) == text_of(told[-1]["response"]) == whole(PHASE * 3)
    assert all(viewer.end() == told for viewer in viewers)
    for after, viewer in enumerate(late, 1):
        assert viewer.end() == told[after + 1 :]
    assert len(script.calls) == 1
    with httpx.Client(trust_env=False, timeout=60) as http:
        answer = http.get(f"{ground.stack.url}{PATH}/{response_id}", params={"stream": "true", "starting_after": "999"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "cursor_ahead")


@pytest.mark.timeout(300)
def test_f76_a_chain_of_twenty_turns_is_whole_after_kills_and_after_the_streams_ttl(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    turns, with_worker, with_api = 20, 6, 13
    last = upstream.script("chain-last", [*words(1), *ending()])
    said: list[str] = []
    ids: list[str] = []
    with Ground(tmp_path, upstream.base_url, STREAMSPOOL_RETENTION_S="6") as ground:
        for number in range(turns):
            asked: dict[str, Any] = {"input": f"q{number}", **({"previous_response_id": ids[-1]} if ids else {})}
            killed = {with_worker: "worker", with_api: "api"}.get(number)
            if killed is None:
                answer = ground.http.post(PATH, json={"model": "fake/echo", **asked}).json()
            else:
                answer = survived(ground, upstream, killed, f"chain-{number}", **asked)
            assert answer["status"] == "completed"
            ids.append(answer["id"])
            said += [f"q{number}", text_of(answer)]
        assert said[2 * with_worker + 1] == said[2 * with_api + 1] == whole(PHASE * 2)
        unstored = ended(ground, start(ground, "chain-last", store=False))["id"]  # the last one
        wait_until(lambda: ground.http.get(f"{PATH}/{unstored}").status_code == 404, 60, "streams' TTL is over")
        for number, response_id in enumerate(ids):
            assert text_of(ground.http.get(f"{PATH}/{response_id}").json()) == said[2 * number + 1]
            assert joined(Watching([ground.stack.url], response_id).end()) == said[2 * number + 1]
        body = {"model": "scripted/chain-last", "input": "now", "previous_response_id": ids[-1]}
        assert ground.http.post(PATH, json=body).json()["status"] == "completed"
        assert [message["content"] for message in last.calls[-1]["messages"]] == [*said, "now"]


def survived(ground: Ground, upstream: ScriptedUpstream, killed: str, name: str, **asked: Any) -> dict[str, Any]:
    """An answer in whose middle the API is killed, or the worker that makes it."""
    pause = Pause()
    script = in_phases(upstream, name, [pause])
    response_id = start(ground, name, on_interruption="restart", **asked)
    viewer = Watching([ground.stack.url], response_id)
    wait_until(lambda: viewer.says(whole(PHASE)), 60)
    ground.kill(owner(ground, response_id) if killed == "worker" else killed)
    pause.go()
    viewer.end()
    found = ended(ground, response_id)
    assert len(script.calls) == 1 + (killed == "worker")
    return found


def ended(ground: Ground, response_id: str) -> dict[str, Any]:
    def final() -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = ground.http.get(f"{PATH}/{response_id}").json()
        except httpx.TransportError:
            return None
        return found if found.get("status") not in ("queued", "in_progress", None) else None

    value: dict[str, Any] = wait_until(final, 60)
    return value
