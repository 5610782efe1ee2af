"""An answer's bytes through decoder and normalizer, and what official clients make of the chunks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from shared.chat.chunks import Accumulator
from shared.errors import UpstreamError
from shared.log.entry import Chunk
from tests.support.recordings import pieces
from worker.normalizer import Normalizer
from worker.providers.dialect import Dialect
from worker.providers.formats.openai import DIALECT


def new_normalizer(*, show_usage: bool = False, choices: int = 1, dialect: Dialect = DIALECT) -> Normalizer:
    normalizer = Normalizer(
        id="chatcmpl-ours", created=1700000000, model="ours/model", show_usage=show_usage, choices=choices
    )
    normalizer.begin(dialect)
    return normalizer


def play(
    stream: bytes, normalizer: Normalizer, seed: str, dialect: Dialect = DIALECT
) -> tuple[list[Chunk], UpstreamError | None]:
    """All chunks of a stream that comes in pieces of random sizes, and the error it ended in."""
    decoder, chunks = dialect.decoder(1 << 20), []
    try:
        for piece in pieces(stream, seed):
            for event in decoder.feed(piece):
                chunks += normalizer.feed(event)
        for event in decoder.close():
            chunks += normalizer.feed(event)
        chunks += normalizer.end()
    except UpstreamError as error:
        return chunks, error
    return chunks, None


def hear(dialect: Dialect, stream: bytes, seed: str = "") -> tuple[list[Chunk], UpstreamError | None]:
    """The same of one choice in this dialect, for a client that asked for usage."""
    return play(stream, new_normalizer(show_usage=True, dialect=dialect), seed, dialect)


def values(chunks: Iterable[Chunk]) -> list[dict[str, Any]]:
    return [json.loads(chunk.payload) for chunk in chunks]


def completion(chunks: Iterable[Chunk]) -> dict[str, Any]:
    """What the broker itself adds the chunks up to."""
    fold = Accumulator()
    for value in values(chunks):
        fold.feed(value)
    return fold.result()


def assert_readable(chunks: list[Chunk]) -> None:
    """Every chunk is one that official clients can read; they were asked for with usage."""
    seen: list[int] = []
    for chunk, value in zip(chunks, values(chunks), strict=True):
        assert (value["id"], value["object"], value["created"], value["model"]) == (
            "chatcmpl-ours",
            "chat.completion.chunk",
            1700000000,
            "ours/model",
        )
        assert (value["usage"] is not None) is chunk.is_usage
        for choice in value["choices"]:
            first = choice["index"] not in seen
            assert ("role" in choice["delta"]) is first
            if first:
                assert choice["index"] == len(seen)
                seen.append(choice["index"])


def read_by_sdk(chunks: Iterable[Chunk]) -> dict[str, Any]:
    """What the stream helper of OpenAI's SDK for Python adds the chunks up to."""
    state: Any = ChatCompletionStreamState()
    for value in values(chunks):
        state.handle_chunk(ChatCompletionChunk.construct(**value))
    answer: dict[str, Any] = state.current_completion_snapshot.to_dict()
    return answer
