"""Answers written event by event, in OpenAI's format and in formats of their own, and what becomes of them.

Every chunk and every whole answer is read by the models of OpenAI's own SDK for Python, and the streams by its helper.
"""

from __future__ import annotations

import json
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk

from shared.errors import UpstreamError
from shared.log.entry import Chunk
from tests.support.answers import completion, new_normalizer, read_by_sdk, values
from worker.providers import formats
from worker.providers.dialect import Dialect

DIALECTS = formats._DIALECTS
OPENAI = DIALECTS["openai"]
DONE = "[DONE]"
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}

Value = dict[str, Any] | str


def chunk(delta: Any = None, reason: Any = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta if delta is not None else {}, "finish_reason": reason}
    return {"id": "up", "object": "chat.completion.chunk", "choices": [choice], **fields}


def said(*texts: str) -> list[dict[str, Any]]:
    return [chunk({"content": text}) for text in texts]


def stream_of(*events: Value) -> bytes:
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return b"".join(b"data: %b\n\n" % line.encode() for line in lines)


def spelled(stream: bytes) -> list[tuple[str, bytes]]:
    """The same stream as servers may spell it."""
    pinged = b": hello\n\nevent: ping\ndata: {}\n\n" + stream.replace(b"\n\ndata:", b"\n\n: still here\n\ndata:")
    return [
        ("LF", stream),
        ("CR", stream.replace(b"\n", b"\r")),
        ("CRLF and a byte order mark", b"\xef\xbb\xbf" + stream.replace(b"\n", b"\r\n")),
        ("comments and pings", pinged),
    ]


def hear(
    stream: bytes,
    *,
    dialect: Dialect = OPENAI,
    size: int = 1400,
    choices: int = 1,
    forced: bool = False,
    ids: Any = (),
    tools: Any = (),
) -> tuple[list[Chunk], UpstreamError | None, Any]:
    """All chunks of a stream that comes in packets of this size, and the error it ended in."""
    reader = new_normalizer(show_usage=True, choices=choices, dialect=dialect)
    reader.forced = forced
    reader.call_ids, reader.tools = ids, tools
    reader.begin(dialect)
    decoder = dialect.decoder(1 << 20)
    chunks: list[Chunk] = []
    try:
        for at in range(0, len(stream), size):
            for event in decoder.feed(stream[at : at + size]):
                chunks += reader.feed(event)
        for event in decoder.close():
            chunks += reader.feed(event)
        chunks += reader.end()
    except UpstreamError as error:
        return chunks, error, reader
    return chunks, None, reader


def heard(kind: str, given: Any, **options: Any) -> tuple[dict[str, Any], Any]:
    """The whole answer, as far as it came, and the error it ended in; the same however the packets are cut."""
    body = given if isinstance(given, bytes) else stream_of(*given)
    chunks, error, _ = hear(body, dialect=DIALECTS[kind], **options)
    for size in (1, 7):
        others, other, _ = hear(body, dialect=DIALECTS[kind], size=size, **options)
        assert (others, type(other), str(other)) == (chunks, type(error), str(error))
    if error is None:
        assert_reads(chunks)
    return completion(chunks), error


def answered(*events: Value, dialect: Dialect = OPENAI, **options: Any) -> dict[str, Any]:
    """The whole answer: in every spelling, in packets of 1, 7 and 1,400 bytes the same, and the same to OpenAI's SDK."""
    stream = stream_of(*events)
    chunks, error, _ = hear(stream, dialect=dialect, **options)
    assert error is None
    for _, spelling in spelled(stream):
        for size in (1, 7, 1400):
            assert hear(spelling, dialect=dialect, size=size, **options)[:2] == (chunks, None)
    assert_reads(chunks)
    whole = completion(chunks)
    ChatCompletion.model_validate(whole)
    by_sdk = read_by_sdk(chunks)
    for ours, theirs in zip(whole["choices"], by_sdk["choices"], strict=True):
        assert ours["finish_reason"] == theirs["finish_reason"]
        assert (ours["message"]["content"] or "") == (theirs["message"].get("content") or "")
        named = [
            [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls or ()]
            for calls in (ours["message"].get("tool_calls"), theirs["message"].get("tool_calls"))
        ]
        assert named[0] == named[1]
    return whole


def assert_reads(chunks: list[Chunk]) -> None:
    """One finish reason for each choice, which is its last word; usage after that; and nothing that OpenAI's model refuses."""
    ended: set[int] = set()
    for one, value in zip(chunks, values(chunks), strict=True):
        ChatCompletionChunk.model_validate(value)
        assert bool(value["choices"]) is not one.is_usage
        for choice in value["choices"]:
            assert choice["index"] not in ended
            assert "finish_reason" in choice
            if choice["finish_reason"] is not None:
                ended.add(choice["index"])
    assert not any(one.is_usage for one in chunks[:-1])


def only(whole: dict[str, Any]) -> tuple[str | None, str]:
    [choice] = whole["choices"]
    return choice["message"]["content"], choice["finish_reason"]


def calls_of(whole: dict[str, Any]) -> list[tuple[str, str]]:
    calls = whole["choices"][0]["message"].get("tool_calls") or ()
    assert len({call["id"] for call in calls}) == len(calls)
    assert all(call["id"] and call["type"] == "function" for call in calls)
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def refused(*events: Value, dialect: Dialect = OPENAI) -> tuple[UpstreamError, str]:
    """The error a stream ends in, and the text that came before it."""
    chunks, error, _ = hear(stream_of(*events), dialect=dialect)
    assert error is not None
    said_so_far = [choice["delta"].get("content") or "" for value in values(chunks) for choice in value["choices"]]
    return error, "".join(said_so_far)


# ---- the same answers in formats of their own


def anthropic(*blocks: Any, reason: str | None = "end_turn", **usage: int) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"usage": {"input_tokens": 7}}}]
    for index, (block, *deltas) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    usage = usage or {"output_tokens": 5}
    events.append({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage})
    return [*events, {"type": "message_stop"}]


def words(text: str) -> tuple[Any, ...]:
    return {"type": "text", "text": ""}, {"type": "text_delta", "text": text}


def gemini(*parts: Any, reason: str | None = None, **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0, **more}
    if reason:
        candidate["finishReason"] = reason
    figures = {"promptTokenCount": 7, "candidatesTokenCount": 5, "totalTokenCount": 12}
    return {"candidates": [candidate], "usageMetadata": figures, "responseId": "R"}


def cohere_end(reason: str | None, **more: Any) -> dict[str, Any]:
    return {"type": "message-end", "delta": {"finish_reason": reason, **more}}


COHERE_WORDS = {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "a"}}}}


def native(kind: str, word: str) -> list[dict[str, Any]]:
    """An answer `a` that ends with this word."""
    found: dict[str, list[dict[str, Any]]] = {
        "openai": [chunk({"content": "a"}), chunk({}, word)],
        "anthropic": anthropic(words("a"), reason=word),
        "gemini": [gemini({"text": "a"}), gemini(reason=word)],
        "cohere": [COHERE_WORDS, cohere_end(word)],
        "responses": [
            {"type": "response.output_text.delta", "output_index": 0, "delta": "a"},
            {"type": "response.completed", "response": {"status": word}},
        ],
    }
    return found[kind]


FRAMED = [kind for kind in DIALECTS if kind != "ollama"]
"""Formats that come as SSE."""
