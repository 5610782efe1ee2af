"""What a program with LangChain's ChatOpenAI does. It shows OpenAI's own fields only, so reasoning is not among them."""

import asyncio
from importlib.metadata import version
from typing import Any

import harness
import openai
from harness import CALLS, TEXT, TOOLS, raises
from langchain_openai import ChatOpenAI, StreamChunkTimeoutError

ASKED = "one two three"
LOOP = asyncio.Runner()
"""One for all: LangChain keeps a connection pool for all its models, with the loop that it was first used in."""


def chat(base_url: str, key: str, model: str = "fake/echo", **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=base_url, api_key=key, timeout=60, **{"max_retries": 0, **options})


def check_whole(base_url: str, key: str) -> None:
    answer = chat(base_url, key).invoke(ASKED)
    assert answer.content == ASKED
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["output_tokens"] == 3


def check_stream(base_url: str, key: str) -> None:
    chunks = list(chat(base_url, key, "scripted/client-slow").stream(ASKED))
    assert "".join(chunk.content for chunk in chunks) == TEXT
    assert len(chunks) > 5


def check_stream_with_usage(base_url: str, key: str) -> None:
    chunks = list(chat(base_url, key, stream_usage=True).stream(ASKED))
    assert sum(chunks[1:], chunks[0]).usage_metadata["output_tokens"] == 3


def check_tool_calls(base_url: str, key: str) -> None:
    model = chat(base_url, key, "scripted/client-tools").bind_tools(TOOLS)
    first, *rest = model.stream(ASKED)
    for answer in (sum(rest, first), model.invoke(ASKED)):
        assert [(call["id"], call["name"], call["args"]) for call in answer.tool_calls] == CALLS


def check_refusal(base_url: str, key: str) -> None:
    with raises(openai.BadRequestError, code="no_such_thing"):
        chat(base_url, key, "scripted/client-refuses").invoke(ASKED)


def check_rate_limit(base_url: str, key: str) -> None:
    with raises(openai.RateLimitError, code="insufficient_quota"):
        chat(base_url, key, "scripted/client-limit", max_retries=2).invoke(ASKED)


def check_error_in_the_middle(base_url: str, key: str) -> None:
    got = ""
    with raises(openai.APIError, code="fire"):
        for chunk in chat(base_url, key, "scripted/client-broken").stream(ASKED):
            got += chunk.content
    assert got == "w0 w1 "


def check_wrong_key(base_url: str, key: str) -> None:
    with raises(openai.AuthenticationError, code="invalid_api_key"):
        chat(base_url, "wrong").invoke(ASKED)


def check_async(base_url: str, key: str) -> None:
    async def ask() -> str:
        return "".join([chunk.content async for chunk in chat(base_url, key, "scripted/client-slow").astream(ASKED)])

    assert LOOP.run(ask()) == TEXT


def check_a6_keep_alives_are_no_chunks(base_url: str, key: str) -> None:
    """The server sends one every 0.1 s."""

    async def ask() -> None:
        async for _ in chat(base_url, key, "scripted/client-silent", stream_chunk_timeout=2).astream(ASKED):
            pass

    with raises(StreamChunkTimeoutError):
        LOOP.run(ask())


def check_hang_up(base_url: str, key: str) -> None:
    stream = chat(base_url, key, "scripted/client-waits").stream(ASKED)
    for chunk in stream:
        if chunk.content == "w1 ":
            break
    stream.close()


if __name__ == "__main__":
    harness.run(globals(), version("langchain-openai"))
