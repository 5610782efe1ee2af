"""How many tokens a request may use, through whichever API it came."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.chat import legacy, whole
from shared.chat.request import ChatRequest
from shared.features.access.expected import Expected, expected
from shared.features.responses.native import NativeRequest, to_native

PICTURE = 765
TEXT = "x" * 400


def chat(*content: Any, **fields: Any) -> Expected:
    messages = [{"role": "user", "content": one} for one in content or ("hello",)]
    return expected(ChatRequest.check({"model": "fake/echo", "messages": messages, **fields}))


def test_text_and_what_may_be_said() -> None:
    assert chat() == (1, 1000, None)
    assert chat(TEXT, TEXT, max_tokens=50) == (200, 50, None)
    assert chat(TEXT, max_completion_tokens=10, n=3, service_tier="flex") == (100, 30, "flex")
    assert chat(max_tokens=-1).answer == 1000, "as many as it likes"
    assert chat(TEXT).after(700).total == 1800


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        ({"type": "image_url", "image_url": "https://example.com/a.png"}, PICTURE),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9000, "detail": "high"}}, PICTURE),
        ({"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}}, 85),
        ({"type": "input_audio", "input_audio": {"data": "A" * 9000, "format": "wav"}}, PICTURE),
        ({"type": "file", "file": {"file_id": "file-1"}}, PICTURE),
        ({"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + "A" * 9000}}, PICTURE),
        ({"type": "text", "text": TEXT}, 100),
    ],
)
def test_what_is_no_text_is_one_figure(part: dict[str, Any], tokens: int) -> None:
    assert chat([part, part]).prompt == 2 * tokens


def test_calls_and_tools_are_part_of_the_prompt() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": "x" * 396}}
    messages = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert expected(ChatRequest.check({"model": "fake/echo", "messages": messages})).prompt == 200
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {"a": {}}}}}
    assert chat(tools=[tool]).prompt == (5 + len(json.dumps(tool, separators=(",", ":")))) // 4


@pytest.mark.parametrize(
    ("path", "given", "right"),
    [
        ("/v1/embeddings", {"input": TEXT}, (100, 0)),
        ("/v1/embeddings", {"input": [TEXT, TEXT]}, (200, 0)),
        ("/v1/embeddings", {"input": [[1, 2, 3], [4]]}, (4, 0)),
        ("/v1/moderations", {"input": [{"type": "text", "text": TEXT}]}, (100, 0)),
        ("/v1/responses/compact", {"input": TEXT, "instructions": TEXT}, (200, 1000)),
    ],
)
def test_requests_that_are_answered_without_words(path: str, given: dict[str, Any], right: tuple[int, int]) -> None:
    stored = whole.to_stored(path, {"model": "a/b", **given})
    assert expected(stored.request, body=stored.body)[:2] == right


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ({"prompt": TEXT, "max_tokens": 30}, (100, 30)),
        ({"prompt": [TEXT, TEXT], "n": 2, "max_tokens": 30}, (200, 120)),
        ({"prompt": [1, 2, 3]}, (3, 1000)),
    ],
)
def test_a_prompt_that_is_gone_on_with(given: dict[str, Any], right: tuple[int, int]) -> None:
    stored = legacy.to_stored({"model": "a/b", **given})
    assert expected(stored.request, body=stored.body)[:2] == right


def test_what_a_provider_is_sent_as_it_came() -> None:
    picture = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 9000, "detail": "low"}
    file = {"type": "input_file", "file_data": "A" * 9000}
    items = [{"role": "user", "content": [{"type": "input_text", "text": TEXT}, picture, file]}]
    tools = [{"type": "web_search"}]
    given = {"model": "a/b", "input": items, "instructions": TEXT, "tools": tools, "max_output_tokens": 70}
    asked = to_native({**given, "service_tier": "flex"}, NativeRequest.check(given), None)
    prompt = (2 * 400 + len(json.dumps(tools, separators=(",", ":")))) // 4 + 85 + PICTURE
    assert expected(asked.request, body=asked.body, before=500) == (500 + prompt, 70, "flex")
