"""Every recorded stream in Anthropic's and Gemini's own formats, against a fold of the native events that knows no chunks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from shared.chat.chunks import Accumulator
from tests.support import recordings
from tests.support.answers import assert_readable, new_normalizer, play, read_by_sdk, values
from tests.support.recordings import FOLDER, Row, payloads
from worker.providers.formats import anthropic, anthropic_request, gemini, gemini_request

DIALECTS = {"anthropic": anthropic.DIALECT, "gemini": gemini.DIALECT}
RECORDINGS = recordings.recordings(*DIALECTS)

pytestmark = [
    pytest.mark.skipif(not RECORDINGS, reason=recordings.MISSING),
    pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"]),
]


def stream_of(row: Row) -> bytes:
    """As it was sent: these formats have no [DONE]."""
    if row["wire"] == "sse":
        return Path(FOLDER, row["file"]).read_bytes()
    return b"".join(b"data: %b\n\n" % payload for payload in payloads(row))


# ---- what the native events say, read straight from them


def native_anthropic(events: list[dict[str, Any]]) -> dict[str, Any]:
    said: dict[str, Any] = {"content": "", "reasoning": "", "tools": [], "thinking": [], "blocks": 0, "citations": []}
    kinds, figures, text = {}, {}, {}
    for event in events:
        match event:
            case {"type": "message_start", "message": message}:
                figures.update(message["usage"])
            case {"type": "content_block_start", "index": at, "content_block": block}:
                kinds[at], text[at] = block, ""
                said["blocks"] += block["type"] not in ("text", "thinking", "redacted_thinking", "tool_use")
            case {"type": "content_block_delta", "delta": {"type": "text_delta", "text": piece}}:
                said["content"] += piece
            case {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": piece}}:
                said["reasoning"] += piece
            case {"type": "content_block_delta", "delta": {"type": "signature_delta", "signature": signature}}:
                said["thinking"].append(signature)
            case {"type": "content_block_delta", "delta": {"type": "citations_delta", "citation": citation}}:
                said["citations"].append(citation["url"])
            case {
                "type": "content_block_delta",
                "index": at,
                "delta": {"type": "input_json_delta", "partial_json": piece},
            }:
                text[at] += piece
            case {"type": "content_block_stop", "index": at} if kinds[at]["type"] == "tool_use":
                arguments = json.loads(text[at] or "{}")
                said["tools"].append((kinds[at]["id"], kinds[at]["name"], arguments))
            case {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}:
                figures.update(usage)
                said["finish"] = {"end_turn": "stop", "tool_use": "tool_calls"}[reason]
    prompt = sum(
        figures.get(name, 0) for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    )
    said["usage"] = (prompt, figures["output_tokens"], prompt + figures["output_tokens"])
    return said


def native_gemini(events: list[dict[str, Any]]) -> dict[str, Any]:
    said: dict[str, Any] = {"content": "", "reasoning": "", "tools": [], "thinking": [], "blocks": 0, "citations": []}
    reason, figures = None, {}
    for event in events:
        figures = event["usageMetadata"]
        [candidate] = event["candidates"]
        reason = candidate.get("finishReason", reason)
        for part in candidate["content"]["parts"]:
            match part:
                case {"text": text, "thought": True}:
                    said["reasoning"] += text
                case {"text": text}:
                    said["content"] += text
                case {"functionCall": {"name": name, **call}}:
                    said["tools"].append((None, name, leaves("$", call.get("args", {}))))
                case {"functionCall": call}:
                    found = said["tools"][-1][2]
                    for value in call.get("partialArgs", ()):
                        path, text = value["jsonPath"], value["stringValue"]
                        found[path] = found.get(path, "") + text
                case _:
                    said["blocks"] += 1
        grounding = candidate.get("groundingMetadata", {})
        pages = [chunk["web"]["uri"] for chunk in grounding.get("groundingChunks", ())]
        for support in grounding.get("groundingSupports", ()):
            said["citations"] += [pages[at] for at in support["groundingChunkIndices"]]
    said["finish"] = {"STOP": "tool_calls" if said["tools"] else "stop", "MAX_TOKENS": "length"}[str(reason)]
    output = figures.get("candidatesTokenCount", 0) + figures.get("thoughtsTokenCount", 0)
    said["usage"] = (figures["promptTokenCount"], output, figures["totalTokenCount"])
    return said


def leaves(path: str, value: Any) -> dict[str, Any]:
    """`{"a": ["x"]}` as `{"$.a[0]": "x"}`: the way Gemini streams arguments."""
    if isinstance(value, dict):
        return {at: leaf for key, item in value.items() for at, leaf in leaves(f"{path}.{key}", item).items()}
    if isinstance(value, list):
        return {at: leaf for i, item in enumerate(value) for at, leaf in leaves(f"{path}[{i}]", item).items()}
    return {path: value}


# ---- the same of an answer in OpenAI's format


def told(row: Row, message: dict[str, Any], finish: str, usage: dict[str, Any]) -> dict[str, Any]:
    anthropic_row = row["format"] == "anthropic"
    tools = []
    for call in message.get("tool_calls") or ():
        arguments = json.loads(call["function"]["arguments"])
        if not anthropic_row:
            assert call["id"]
        call_id = call["id"] if anthropic_row else None
        tools.append((call_id, call["function"]["name"], arguments if anthropic_row else leaves("$", arguments)))
    return {
        "content": message.get("content") or "",
        "reasoning": message.get("reasoning_content") or "",
        "tools": tools,
        "thinking": [block["signature"] for block in message.get("thinking_blocks") or ()],
        "blocks": len(message.get("anthropic_blocks") or message.get("gemini_parts") or ()),
        "citations": [item["url_citation"]["url"] for item in message.get("annotations") or ()],
        "finish": finish,
        "usage": (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]),
    }


def test_a_recording_amounts_to_what_its_events_say(row: Row) -> None:
    dialect = DIALECTS[row["format"]]
    native = {"anthropic": native_anthropic, "gemini": native_gemini}[row["format"]](
        [json.loads(payload) for payload in payloads(row)]
    )
    normalizer = new_normalizer(show_usage=True, dialect=dialect)
    chunks, error = play(stream_of(row), normalizer, row["file"], dialect)
    assert error is None
    assert normalizer.finish_reasons == [native["finish"]]
    assert_readable(chunks)

    fold = Accumulator()
    for value in values(chunks):
        fold.feed(value)
    for answer in (fold.result(), read_by_sdk(chunks)):
        [choice] = answer["choices"]
        assert told(row, choice["message"], choice["finish_reason"], answer["usage"]) == native
    [choice] = fold.result()["choices"]
    for items in (value for value in choice["message"].values() if isinstance(value, list)):
        assert not any("index" in item for item in items)
    for item in choice["message"].get("annotations") or ():
        place = item["url_citation"]
        assert 0 <= place["start_index"] < place["end_index"] <= len(native["content"])
    assert normalizer.content_chars == len(native["content"])
    assert normalizer.reasoning_chars == len(native["reasoning"])


def test_the_size_of_pieces_makes_no_difference(row: Row) -> None:
    dialect = DIALECTS[row["format"]]
    first, *others = (
        play(stream_of(row), new_normalizer(dialect=dialect), f"{row['file']} {i}", dialect)[0] for i in range(3)
    )
    assert all(other == first for other in others)


def test_a_recording_cut_anywhere_never_passes_for_whole(row: Row) -> None:
    dialect, stream = DIALECTS[row["format"]], stream_of(row)
    whole, _ = play(stream, new_normalizer(dialect=dialect), "", dialect)
    cuts = random.Random(row["file"])
    for cut in [cuts.randrange(len(stream)) for _ in range(20)]:
        chunks, error = play(stream[:cut], new_normalizer(dialect=dialect), str(cut), dialect)
        assert error is not None or chunks == whole


def test_what_was_answered_can_be_sent_back(row: Row) -> None:
    """Every block, part and signature that has to go back does, and nothing that OpenAI's clients alone know."""
    dialect = DIALECTS[row["format"]]
    fold = Accumulator()
    for value in values(play(stream_of(row), new_normalizer(dialect=dialect), "", dialect)[0]):
        fold.feed(value)
    message = fold.result()["choices"][0]["message"]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "1"} for call in message.get("tool_calls") or ()]
    body = {"messages": [{"role": "user", "content": "hi"}, message, *results, {"role": "user", "content": "go on"}]}
    if row["format"] == "anthropic":
        request = json.dumps(anthropic_request.build_request(body, "claude"))
        signatures = [block["signature"] for block in message.get("thinking_blocks") or ()]
        blocks = message.get("anthropic_blocks") or ()
    else:
        request = json.dumps(gemini_request.build_request(body, "gemini-3"))
        signatures = [
            part["thoughtSignature"]
            for payload in payloads(row)
            for part in json.loads(payload)["candidates"][0]["content"]["parts"]
            if "thoughtSignature" in part
        ]
        blocks = message.get("gemini_parts") or ()
    assert all(json.dumps(signature) in request for signature in signatures)
    assert all(json.dumps(block) in request for block in blocks)
    assert "extra_content" not in request
    assert "reasoning_content" not in request
