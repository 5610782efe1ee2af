"""A worker that is killed while another model summarises what was thought: the answer is whole, and so is the bill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.test_responses import Watching
from tests.chaos.test_responses_killed import ended, owner, start
from tests.harness.processes import wait_until
from tests.harness.upstream import Pause, ScriptedUpstream, chunk, ending, words
from tests.support.ground import Ground
from tests.support.responses import joined, text_of

THOUGHTS = [chunk({"role": "assistant", "content": None}), chunk({"reasoning_content": "Let me see. "})]


@pytest.fixture
def ground(tmp_path: Path, upstream: ScriptedUpstream) -> Iterator[Ground]:
    with Ground(tmp_path, upstream.base_url, STREAMSPOOL_SUMMARY_MODEL="scripted/summarises") as running:
        yield running


def generation(response_id: str) -> str:
    return f"chatcmpl-{response_id.removeprefix('resp_')}"


def summaries(ground: Ground, response_id: str) -> list[dict[str, Any]]:
    found = ground.http.get("/v1/streams", params={"limit": "100"}).json()["data"]
    return [state for state in found if state["summarises"] == generation(response_id)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("when", ["in the middle", "after the last word"])
def test_f71_a_worker_dies_while_a_summary_is_made(ground: Ground, upstream: ScriptedUpstream, when: str) -> None:
    """In the middle of the words it is said again, with a summary of its own; after the last one the answer is whole, and has
    none. Either way each summary that was begun comes to its end, once, whoever was to wait for it."""
    held, go_on = Pause(), Pause()
    summary = upstream.script("summarises", [*words(1), held, *ending()])
    middle = [go_on] if when == "in the middle" else []
    script = upstream.script("summarised", [*THOUGHTS, *words(2)[1:], *middle, *words(4)[3:], *ending()])
    response_id = start(ground, "summarised", on_interruption="restart", reasoning={"summary": "auto"})
    viewer = Watching([ground.stack.url], response_id)
    wait_until(lambda: [one for one in summaries(ground, response_id) if one["chunks"]], 60)
    wait_until(lambda: viewer.says("w0 w1 " if middle else "w0 w1 w2 w3 "), 60)
    (first,) = summaries(ground, response_id)
    own, other = owner(ground, response_id), owner(ground, f"resp_{first['id'].removeprefix('chatcmpl-')}")
    ground.kill(own)
    go_on.go()
    if not middle:
        answer = ended(ground, response_id)
        assert (answer["status"], text_of(answer)) == ("completed", "w0 w1 w2 w3 ")
        assert answer["output"][0]["summary"] == []
        held.go()
    else:
        wait_until(lambda: len(summaries(ground, response_id)) == 2, 60)
        held.go()
        answer = ended(ground, response_id)
        assert (answer["status"], text_of(answer)) == ("completed", "w0 w1 w2 w3 ")
        assert answer["output"][0]["summary"] == [{"type": "summary_text", "text": "w0"}]
    told = viewer.end()
    if not middle:
        assert told[-1]["response"] == answer
        assert joined(told) == text_of(answer)
    wait_until(lambda: all(one["status"] == "completed" for one in summaries(ground, response_id)), 60)
    made = summaries(ground, response_id)
    assert len(script.calls) == len(made) == (2 if middle else 1)
    assert len(summary.calls) == len(made) + (own == other)
    assert all(one["usage"]["total_tokens"] == 12 for one in made)

    def counted() -> int:
        return int(ground.http.get("/v1/usage").json()["total"]["requests"])

    wait_until(lambda: counted() >= len(made) + 1, 60, "all is settled")
    assert counted() == len(made) + 1
