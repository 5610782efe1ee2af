"""An answer without end, in every provider's format: what of it is kept, and what is never collected."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.cli.embedded import EmbeddedValkey
from shared.config.providers import ProviderKind
from shared.errors import UpstreamInvalid
from shared.lib.sse import Event
from shared.log.entry import Kind, Status
from shared.log.records import Outcome
from tests.harness.records import error_in
from tests.harness.upstream import Wire, chunk, serving
from tests.worker.test_generate import Bench, benching
from tests.worker.upstream.test_native_upstreams import block, line
from tests.worker.upstream.test_native_upstreams import sse as events
from worker import normalizer as normalizing
from worker.normalizer import Normalizer
from worker.providers.formats import dialect_of
from worker.providers.registry import Provider

GEMINI = {"candidates": [{"content": {"parts": [{"text": "word "}]}}]}
CLAUDE = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "word "}}
FORMATS: dict[ProviderKind, tuple[str, list[bytes], bytes]] = {
    "openai": ("text/event-stream", [], chunk("word ")),
    "anthropic": (
        "text/event-stream",
        events({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        events(CLAUDE)[0],
    ),
    "gemini": ("text/event-stream", [], events(GEMINI)[0]),
    "cohere": ("text/event-stream", [], events(block("word "))[0]),
    "ollama": ("application/x-ndjson", [], line("word ")),
    "responses": (
        "text/event-stream",
        events({"type": "response.created", "response": {"id": "resp_1"}}),
        events({"type": "response.output_text.delta", "output_index": 0, "delta": "word "})[0],
    ),
}
"""Content type, how an answer begins, and what it goes on with."""


async def ended(bench: Bench) -> tuple[str, Outcome]:
    generation_id = await bench.request("m")
    assert await bench.generator.run(generation_id, 1)
    outcome = (await bench.summary(generation_id)).outcome
    assert outcome
    return generation_id, outcome


@pytest.mark.parametrize("kind", FORMATS)
async def test_an_answer_over_the_limit_is_ended_in_every_format(valkey: EmbeddedValkey, kind: ProviderKind) -> None:
    content_type, begin, piece = FORMATS[kind]

    async def script(wire: Wire) -> None:
        await wire.head(content_type=content_type)
        await wire.send(*begin)
        while True:
            await wire.send(piece)

    limit = 20_000
    async with (
        serving(script) as server,
        benching(valkey, Provider("scripted", kind, server.url, "k"), max_answer_bytes=limit) as bench,
    ):
        generation_id, outcome = await ended(bench)
        assert (outcome["status"], error_in(outcome)["code"]) == (Status.INCOMPLETE, "upstream_too_long")
        assert outcome["finish_reasons"] == ["length"]
        said = await bench.text(generation_id)
        assert said == "word " * (len(said) // 5)
        assert outcome["characters"]["content"] == len(said)
        chunks = [entry for entry in await bench.entries(generation_id) if entry.kind is Kind.CHUNK]
        assert json.loads(chunks[-1].data)["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]
        assert limit < 80 * len(chunks)
        assert 60 * len(chunks) < limit + 400_000  # and what one read brought
        assert len(server.calls) == 1
        await server.calls[0].closed.wait()


async def test_what_is_always_the_same_counts_although_nothing_of_it_is_stored(valkey: EmbeddedValkey) -> None:
    """As pieces, such chunks are empty: a few kilobytes in Redis would be gigabytes for whoever reads them."""

    async def script(wire: Wire) -> None:
        await wire.head()
        while True:
            await wire.send(chunk("x" * 10_000))

    async with (
        serving(script) as server,
        benching(valkey, Provider("scripted", "openai", server.url, "k"), max_answer_bytes=1_000_000) as bench,
    ):
        generation_id, outcome = await ended(bench)
        assert error_in(outcome)["code"] == "upstream_too_long"
        assert 900_000 < len(await bench.text(generation_id)) < 1_400_000  # and what one read brought


async def test_without_a_limit_there_is_none(valkey: EmbeddedValkey) -> None:
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(*[chunk("x" * 1000)] * 1000, chunk(None, "stop"))

    async with (
        serving(script) as server,
        benching(valkey, Provider("scripted", "openai", server.url, "k"), max_answer_bytes=0) as bench,
    ):
        generation_id, outcome = await ended(bench)
        assert outcome["status"] == Status.COMPLETED
        assert len(await bench.text(generation_id)) == 1_000_000


def normalizer(kind: ProviderKind) -> Normalizer:
    made = Normalizer(id="c", created=1, model="acme/m", show_usage=False)
    made.begin(dialect_of(Provider("acme", kind, "http://x", "k")))
    return made


def feed(made: Normalizer, value: dict[str, Any]) -> int:
    return len(made.feed(Event(json.dumps(value).encode())))


@pytest.mark.parametrize("kind", ["anthropic", "gemini"])
def test_what_is_collected_before_it_is_said_has_a_limit_too(
    monkeypatch: pytest.MonkeyPatch, kind: ProviderKind
) -> None:
    """The input of Anthropic's own tools, and what Gemini sends of a call's arguments by value."""
    monkeypatch.setattr(normalizing, "_HELD_BYTES", 1_000_000)
    made, piece = normalizer(kind), "x" * 10_000
    if kind == "anthropic":
        tool = {"type": "server_tool_use", "id": "s", "name": "code_execution", "input": {}}
        feed(made, {"type": "content_block_start", "index": 0, "content_block": tool})
        delta = {"type": "input_json_delta", "partial_json": piece}
        event: dict[str, Any] = {"type": "content_block_delta", "index": 0, "delta": delta}
    else:
        feed(made, {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "willContinue": True}}]}}]})
        partial = {"willContinue": True, "partialArgs": [{"jsonPath": "$.a", "stringValue": piece}]}
        event = {"candidates": [{"content": {"parts": [{"functionCall": partial}]}}]}
    for _ in range(90):
        feed(made, event)
    with pytest.raises(UpstreamInvalid) as raised:
        for _ in range(20):
            feed(made, event)
    assert raised.value.code == "upstream_chunk_too_large"


def test_what_is_said_as_it_comes_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalizing, "_HELD_BYTES", 1_000_000)
    made = normalizer("anthropic")
    feed(made, {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
    for _ in range(300):
        assert feed(made, {**CLAUDE, "delta": {"type": "text_delta", "text": "x" * 10_000}}) == 1


def test_blocks_are_put_together_from_all_their_pieces() -> None:
    made = normalizer("anthropic")
    tool = {"type": "server_tool_use", "id": "s", "name": "search", "input": {}}
    feed(made, {"type": "content_block_start", "index": 0, "content_block": tool})
    for piece in ("", '{"q":', ' "a"', "}"):
        delta = {"type": "input_json_delta", "partial_json": piece}
        assert feed(made, {"type": "content_block_delta", "index": 0, "delta": delta}) == 0
    (said,) = made.feed(Event(json.dumps({"type": "content_block_stop", "index": 0}).encode()))
    (one,) = json.loads(said.payload)["choices"][0]["delta"]["anthropic_blocks"]
    assert one["input"] == {"q": "a"}


def test_a_choice_that_never_began_is_ended_too() -> None:
    made = Normalizer(id="c", created=1, model="acme/m", show_usage=True, choices=3)
    made.feed(Event(chunk("a")[6:].strip()))
    made.feed(Event(b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":7}}'))
    found = [(one.is_usage, json.loads(one.payload)) for one in made.cut_off()]
    assert [one["choices"][0]["index"] for is_usage, one in found if not is_usage] == [0, 1, 2]
    assert all(one["choices"][0]["finish_reason"] == "length" for is_usage, one in found if not is_usage)
    assert [one["choices"][0]["delta"] for _, one in found[:3]] == [{}, {"role": "assistant"}, {"role": "assistant"}]
    assert found[-1][0]
    assert made.finished
