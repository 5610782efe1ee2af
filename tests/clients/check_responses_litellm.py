"""What a program does with LiteLLM's bridge: it asks for a chat, and LiteLLM asks /v1/responses."""

import json
import os
from importlib.metadata import version
from typing import Any

import harness
from harness import ANSWER, CALLS, MESSAGES, TEXT, TOOLS

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

litellm.telemetry = False
litellm.suppress_debug_info = True


def ask(base_url: str, key: str, model: str = "fake/echo", **others: Any) -> Any:
    place = {"model": f"openai/responses/{model}", "api_base": base_url, "api_key": key}
    return litellm.completion(**{**place, "messages": MESSAGES, "timeout": 60, "max_retries": 0, **others})


def check_whole(base_url: str, key: str) -> None:
    answer = ask(base_url, key)
    assert answer.choices[0].message.content == "one two three"
    assert answer.usage.completion_tokens == 3


def check_stream(base_url: str, key: str) -> None:
    chunks = list(ask(base_url, key, "scripted/client-slow", stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT


def check_tool_loop(base_url: str, key: str) -> None:
    """It answers a call by the id of its item."""
    whole = ask(base_url, key, "scripted/client-tools", tools=TOOLS)
    message = whole.choices[0].message
    found = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls]
    assert found == [(name, arguments) for _, name, arguments in CALLS]
    outputs = [{"role": "tool", "tool_call_id": call.id, "content": "4"} for call in message.tool_calls]
    history = [*MESSAGES, message.model_dump(exclude_none=True), *outputs]
    assert ask(base_url, key, messages=history).choices[0].message.content


def check_reasoning(base_url: str, key: str) -> None:
    whole = ask(base_url, key, "scripted/client-thinks").choices[0].message
    assert whole.content == ANSWER


if __name__ == "__main__":
    checks = {name: value for name, value in globals().items() if name.startswith("check_")}
    harness.run(checks, version("litellm"))
