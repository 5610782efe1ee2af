"""Streams a model through both of OpenAI's APIs, and says what became of it, a line of JSON each time.

Called with the URL of a server and a model; `stopped.mjs` is the same in JavaScript.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import openai

url, model = sys.argv[1:]
client: Any = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any")


def say(view: str, **what: str | None) -> None:
    print(json.dumps({"view": view, **what}), flush=True)


async def chat() -> AsyncIterator[str]:
    messages = [{"role": "user", "content": "Hello"}]
    async for chunk in await client.chat.completions.create(model=model, messages=messages, stream=True):
        yield chunk.choices[0].delta.content or ""


async def responses() -> AsyncIterator[str]:
    async for event in await client.responses.create(model=model, input="Hello", stream=True):
        if event.type == "response.output_text.delta":
            yield event.delta


async def watch(view: str, pieces: AsyncIterator[str]) -> None:
    text = ""
    try:
        async for piece in pieces:
            text += piece
            say(view, text=text)
    except Exception as error:
        say(view, raised=type(error).__name__, code=getattr(error, "code", None))
    else:
        say(view, raised=None)


async def both() -> None:
    await asyncio.gather(watch("chat", chat()), watch("responses", responses()))


asyncio.run(both())
