"""Every recorded chat stream of a real provider, through decoder and normalizer, cut at random points.

What each must amount to was computed by another program (shared/recorded/README.md). The recordings are kept beside the
repository, or where STREAMSPOOL_RECORDED says.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from shared import sse
from shared.chat import Chunk
from shared.errors import UpstreamError
from worker.providers.openai import Normalizer

FOLDER = Path(os.environ.get("STREAMSPOOL_RECORDED") or Path(__file__).resolve().parents[3] / "shared" / "recorded")
INDEX = FOLDER / "INDEX.jsonl"
RECORDINGS = (
    [row for row in map(json.loads, INDEX.read_text().splitlines()) if row["format"] == "chat"]
    if INDEX.is_file()
    else []
)

pytestmark = pytest.mark.skipif(not RECORDINGS, reason=f"no recordings in {FOLDER}; STREAMSPOOL_RECORDED names them")


def stream_of(row: dict[str, Any]) -> bytes:
    data = (FOLDER / row["file"]).read_bytes()
    if row["wire"] == "sse":
        return data
    payloads = [line for line in data.split(b"\n") if line.strip()]
    return b"".join(sse.data_frame(payload) for payload in [*payloads, sse.DONE])


def normalizer_for(row: dict[str, Any], *, show_usage: bool) -> Normalizer:
    return Normalizer(
        id="chatcmpl-ours",
        created=1700000000,
        model="ours/model",
        show_usage=show_usage,
        choices=max(1, len(row["expected"]["choices"])),
    )


def play(stream: bytes, normalizer: Normalizer, pieces: random.Random) -> tuple[list[Chunk], UpstreamError | None]:
    decoder, chunks, at = sse.Decoder(1 << 20), [], 0
    try:
        while at < len(stream):
            size = pieces.choice((1, 2, 3, 7, 100, 1460, 65536))
            for event in decoder.feed(stream[at : at + size]):
                chunks += normalizer.feed(event)
            at += size
        for event in decoder.close():
            chunks += normalizer.feed(event)
        chunks += normalizer.end()
    except UpstreamError as error:
        return chunks, error
    return chunks, None


def fold(chunks: list[Chunk]) -> dict[str, dict[str, Any]]:
    """What a client that follows OpenAI's rules would make of it: no dialects here, except in where text may stand."""
    choices: dict[str, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in json.loads(chunk.payload)["choices"]:
            new = {"content": "", "reasoning": "", "refusal": "", "finish": None, "tools": {}}
            total, delta = choices.setdefault(str(choice["index"]), new), choice["delta"]
            content = delta.get("content") or ""
            if isinstance(content, list):
                thoughts = [thought for part in content for thought in part.get("thinking") or []]
                total["reasoning"] += "".join(thought["text"] for thought in thoughts)
                content = "".join(part["text"] for part in content if part["type"] == "text")
            total["content"] += content
            total["reasoning"] += delta.get("reasoning_content") or delta.get("reasoning") or ""
            total["refusal"] += delta.get("refusal") or ""
            for call in delta.get("tool_calls") or []:
                tool = total["tools"].setdefault(call["index"], {"id": None, "name": "", "arguments": ""})
                assert tool["id"] is None or "id" not in call
                tool["id"] = call.get("id") or tool["id"]
                tool["name"] += call["function"].get("name") or ""
                tool["arguments"] += call["function"].get("arguments") or ""
            total["finish"] = choice.get("finish_reason") or total["finish"]
    return choices


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def summary(choices: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        index: {
            "content_sha": digest(choice["content"]),
            "content_len": len(choice["content"]),
            "reasoning_sha": digest(choice["reasoning"]),
            "reasoning_len": len(choice["reasoning"]),
            "refusal": choice["refusal"],
            "finish": choice["finish"],
            "tools": [choice["tools"][at] for at in sorted(choice["tools"])],
        }
        for index, choice in sorted(choices.items())
    }


@pytest.mark.parametrize("show_usage", [False, True])
@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_recording(row: dict[str, Any], show_usage: bool) -> None:
    expected = row["expected"]
    normalizer = normalizer_for(row, show_usage=show_usage)
    chunks, error = play(stream_of(row), normalizer, random.Random(row["file"]))

    choices = fold(chunks)
    assert summary(choices) == expected["choices"]
    assert normalizer.content_chars == sum(len(choice["content"]) for choice in choices.values())
    assert normalizer.reasoning_chars == sum(len(choice["reasoning"]) for choice in choices.values())
    assert normalizer.finish_reasons == [choice["finish"] for _, choice in sorted(choices.items())]
    assert normalizer.chunks == len(chunks)

    if expected["error"]:
        assert error is not None
        assert error.message == expected["error"]["message"]
        assert error.code == expected["error"]["code"]
        assert error.status == expected["error"].get("status_code", 502)
        return
    assert error is None
    assert normalizer.usage == expected["usage"]
    assert [chunk.is_usage for chunk in chunks].count(True) == bool(expected["usage"])
    if expected["usage"]:
        assert chunks[-1].is_usage
        last = json.loads(chunks[-1].payload)
        assert last["choices"] == []
        assert last["usage"] == expected["usage"]


@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_every_chunk_is_one_that_official_clients_can_read(row: dict[str, Any]) -> None:
    chunks, _ = play(stream_of(row), normalizer_for(row, show_usage=True), random.Random(1))
    seen: list[int] = []
    for chunk in chunks:
        value = json.loads(chunk.payload)
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


@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_a_recording_cut_anywhere_never_passes_for_whole(row: dict[str, Any]) -> None:
    stream = stream_of(row)
    whole = summary(fold(play(stream, normalizer_for(row, show_usage=False), random.Random(2))[0]))
    cuts = random.Random(row["file"])
    for _ in range(8):
        cut = cuts.randrange(len(stream))
        chunks, error = play(stream[:cut], normalizer_for(row, show_usage=False), cuts)
        assert error is not None or summary(fold(chunks)) == whole


@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_unknown_fields_pass_untouched(row: dict[str, Any]) -> None:
    known = {"id", "object", "created", "model", "usage", "choices"}
    events = [event for event in sse.Decoder(1 << 20).feed(stream_of(row)) if event.data != sse.DONE]
    normalizer = normalizer_for(row, show_usage=False)
    for event in events:
        before = json.loads(event.data)
        if before.get("error"):
            break
        for chunk in normalizer.feed(event)[-1:]:
            after = json.loads(chunk.payload)
            assert {k: v for k, v in after.items() if k not in known} == {
                k: v for k, v in before.items() if k not in known
            }
            for old, new in zip(before["choices"], after["choices"], strict=True):
                for side in (old, new):
                    side.get("delta", {}).pop("role", None)
                    side.get("delta", {}).pop("tool_calls", None)
                assert old == new
