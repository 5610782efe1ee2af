"""The Responses format as llama.cpp's own server speaks it, with a real model behind it."""

from __future__ import annotations

from typing import Any

import pytest

from shared.config.providers import BASE_URL_VARIABLE, KEY_VARIABLE, MODEL
from shared.config.settings import Settings
from shared.log.entry import Chunk
from tests.support.answers import completion, new_normalizer
from worker.providers.registry import Provider
from worker.upstream.attempts import Served, Target
from worker.upstream.client import Upstream

from .conftest import Live

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"],
        },
    },
}


async def ask(live: Live, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    address = live.address()
    target = Target(Provider("live", "responses", address[BASE_URL_VARIABLE], address[KEY_VARIABLE]), MODEL)
    chunks: list[Chunk] = []
    async with Upstream(Settings()) as upstream:
        body = {"model": "live/m", "messages": list(messages), "temperature": 0.0, **fields}
        async for batch in upstream.stream([target], body, new_normalizer(), Served()):
            chunks += batch
    return completion(chunks)


@pytest.mark.timeout(120)
async def test_a_conversation_with_a_tool(live: Live) -> None:
    """What was called is made up: so small a model calls when it likes."""
    question = {"role": "user", "content": [{"type": "text", "text": "What is the weather in Paris?"}]}
    function = {"name": "weather", "arguments": '{"city": "Paris"}'}
    called = {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }
    result = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
    system = {"role": "system", "content": "Be brief."}

    told = await ask(live, system, question, called, result, tools=[WEATHER], max_tokens=20)
    [choice] = told["choices"]
    assert choice["message"]["content"] or choice["message"]["tool_calls"]
    assert choice["finish_reason"] == ("tool_calls" if choice["message"].get("tool_calls") else "stop")
    assert choice["native_finish_reason"] == "completed"
    usage = told["usage"]
    assert 0 < usage["completion_tokens"] <= 20
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
