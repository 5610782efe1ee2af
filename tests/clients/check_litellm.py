"""What a program with LiteLLM as its client library does. It fetches its price list at import unless told not to."""

import asyncio
import json
import os
from importlib.metadata import version
from typing import Any

import harness
from harness import ANSWER, CALLS, MESSAGES, TEXT, THOUGHT, TOOLS, raises

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

litellm.telemetry = False
litellm.suppress_debug_info = True


def options(base_url: str, key: str, model: str = "fake/echo", **others: Any) -> dict[str, Any]:
    place = {"model": f"openai/{model}", "api_base": base_url, "api_key": key}
    return {**place, "messages": MESSAGES, "timeout": 60, "max_retries": 0, **others}


def ask(base_url: str, key: str, model: str = "fake/echo", **others: Any) -> Any:
    return litellm.completion(**options(base_url, key, model, **others))


def said(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def check_whole(base_url: str, key: str) -> None:
    answer = ask(base_url, key)
    assert answer.choices[0].message.content == "one two three"
    assert answer.usage.completion_tokens == 3


def check_stream(base_url: str, key: str) -> None:
    chunks = list(ask(base_url, key, "scripted/client-slow", stream=True))
    assert said(chunks) == TEXT
    assert chunks[-1].choices[0].finish_reason == "stop"


def check_stream_with_usage(base_url: str, key: str) -> None:
    chunks = list(ask(base_url, key, stream=True, stream_options={"include_usage": True}))
    assert [usage.completion_tokens for chunk in chunks if (usage := getattr(chunk, "usage", None))] == [3]


def check_tool_calls(base_url: str, key: str) -> None:
    whole = ask(base_url, key, "scripted/client-tools", tools=TOOLS)
    chunks = list(ask(base_url, key, "scripted/client-tools", tools=TOOLS, stream=True))
    for answer in (whole, litellm.stream_chunk_builder(chunks)):
        calls = answer.choices[0].message.tool_calls
        found = [(call.id, call.function.name, json.loads(call.function.arguments)) for call in calls]
        assert found == CALLS


def check_reasoning(base_url: str, key: str) -> None:
    whole = ask(base_url, key, "scripted/client-thinks").choices[0].message
    assert (whole.reasoning_content, whole.content) == (THOUGHT, ANSWER)
    deltas = [chunk.choices[0].delta for chunk in ask(base_url, key, "scripted/client-thinks", stream=True)]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == THOUGHT
    assert "".join(delta.content or "" for delta in deltas) == ANSWER


def check_refusal(base_url: str, key: str) -> None:
    with raises(litellm.BadRequestError, status_code=400):
        ask(base_url, key, "scripted/client-refuses")


def check_rate_limit(base_url: str, key: str) -> None:
    with raises(litellm.RateLimitError, status_code=429):
        ask(base_url, key, "scripted/client-limit")


def check_error_in_the_middle(base_url: str, key: str) -> None:
    got = []
    with raises(litellm.exceptions.MidStreamFallbackError, generated_content="w0 w1 "):
        for chunk in ask(base_url, key, "scripted/client-broken", stream=True):
            got.append(chunk)
    assert said(got) == "w0 w1 "


def check_wrong_key(base_url: str, key: str) -> None:
    with raises(litellm.AuthenticationError):
        ask(base_url, "wrong")


def check_async(base_url: str, key: str) -> None:
    async def run() -> list[Any]:
        stream = await litellm.acompletion(**options(base_url, key, "scripted/client-slow", stream=True))
        return [chunk async for chunk in stream]

    assert said(asyncio.run(run())) == TEXT


def check_models(base_url: str, key: str) -> None:
    found = litellm.get_valid_models(
        check_provider_endpoint=True, custom_llm_provider="openai", api_key=key, api_base=base_url.removesuffix("/v1")
    )
    assert "fake/echo" in found, found


def check_hang_up(base_url: str, key: str) -> None:
    stream = ask(base_url, key, "scripted/client-waits", stream=True)
    for chunk in stream:
        if chunk.choices[0].delta.content == "w1 ":
            break
    stream.completion_stream.close()


if __name__ == "__main__":
    harness.run(globals(), version("litellm"))
