"""What a generation goes on from may go before it ends: it has its end all the same, whoever makes that, with all it said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from shared.cli.embedded import EmbeddedValkey
from shared.log.entry import Position, Status
from shared.log.records import Outcome
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.worker.test_generate import FINISH, WORD, Bench, benching
from worker.providers.registry import Provider


@pytest.fixture
async def bench(valkey: EmbeddedValkey, upstream: ScriptedUpstream) -> AsyncIterator[Bench]:
    async with benching(valkey, Provider("scripted", "openai", upstream.base_url, None, ())) as made:
        yield made


async def chained(bench: Bench, model: str) -> tuple[str, str]:
    """A generation, and the one that it goes on from."""
    first = await bench.request("first")
    header, _ = await bench.log.request(first)
    await bench.log.delete(first, "a")
    said = {"messages": [{"role": "user", "content": "hi"}], "responses": {}}
    await bench.log.create(header, json.dumps(said).encode())
    return await bench.request(model, previous=[first], include_usage=True), first


async def outcome_of(bench: Bench, generation_id: str) -> Outcome:
    outcome = (await bench.summary(generation_id)).outcome
    assert outcome is not None
    return outcome


async def test_an_attempt_without_what_it_goes_on_from_fails_with_that(
    bench: Bench, upstream: ScriptedUpstream
) -> None:
    script = upstream.script("lonely", [*words(2), *ending()])
    generation_id, first = await chained(bench, "lonely")
    await bench.log.delete(first, "a")
    assert await bench.generator.run(generation_id, 1)
    outcome = await outcome_of(bench, generation_id)
    assert outcome["error"] is not None
    assert (outcome["status"], outcome["error"]["code"], outcome["error"]["status"]) == (
        Status.FAILED,
        "previous_response_not_found",
        404,
    )
    assert not script.calls


@pytest.mark.parametrize("usage", [True, False], ids=["with usage", "without"])
async def test_an_answer_whose_history_goes_while_it_is_said_is_whole(
    bench: Bench, upstream: ScriptedUpstream, usage: bool
) -> None:
    pause = Pause()
    upstream.script(f"late-{usage}", [*words(2), pause, *ending(usage=usage)])
    generation_id, first = await chained(bench, f"late-{usage}")
    running = asyncio.create_task(bench.generator.run(generation_id, 1))
    await bench.until_stored(generation_id, Position(1, 2))
    await bench.log.delete(first, "a")
    pause.go()
    assert await running
    outcome = await outcome_of(bench, generation_id)
    assert (outcome["status"], outcome["error"]) == (Status.COMPLETED, None)
    assert outcome["usage_source"] == ("provider" if usage else "estimate")
    assert outcome["usage"]["prompt_tokens"], "at least its own"


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in the middle"])
async def test_what_a_lost_worker_left_of_it_is_ended(bench: Bench, upstream: ScriptedUpstream, whole: bool) -> None:
    upstream.script("never", [])
    generation_id, first = await chained(bench, "never")
    await bench.attempt(generation_id, 1, WORD, *([FINISH] if whole else []))
    await bench.log.delete(first, "a")
    assert await bench.generator.run(generation_id, 2)
    outcome = await outcome_of(bench, generation_id)
    assert outcome["status"] == (Status.COMPLETED if whole else Status.FAILED)
    assert outcome["characters"]["content"] == len("word")
