#!/usr/bin/env bash
# Package: fastapi 0.165.0 and openai 3.57.0 (PyPI), uvicorn 0.54.0 between them.
# Behaviour: FastAPI's own EventSourceResponse keeps a silent stream alive with `: ping` and a blank line. Once an event has
#   had an `id:`, openai takes that for an event with empty data and raises JSONDecodeError. The same stream without ids is
#   read to its end.
# For us: a keep-alive is a comment line alone, without the blank line behind it.
# Seen: 16 s of silence after the first chunk: without ids "all read", with ids "JSONDecodeError"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check fastapi==0.165.0 uvicorn==0.54.0 openai==3.57.0
"$dir/venv/bin/python" - <<'PY'
import asyncio, json, sys
from collections.abc import AsyncIterator

import openai
import uvicorn
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent

app = FastAPI()

def chunk(reason: str | None) -> dict[str, object]:
    choice = {"index": 0, "delta": {"content": "word"}, "finish_reason": reason}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}

@app.post("/{ids}/chat/completions", response_class=EventSourceResponse)
async def answer(ids: str) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(data=chunk(None), id="1" if ids == "with" else None)
    await asyncio.sleep(16)
    yield ServerSentEvent(data=chunk("stop"), id="2" if ids == "with" else None)
    yield ServerSentEvent(raw_data="[DONE]")

async def read(port: int, ids: str) -> str:
    client = openai.AsyncOpenAI(api_key="key", base_url=f"http://127.0.0.1:{port}/{ids}")
    try:
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        return "all read" if len([piece async for piece in stream]) == 2 else "some read"
    except json.JSONDecodeError as error:
        return type(error).__name__

async def main() -> int:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    said = await asyncio.gather(read(port, "without"), read(port, "with"))
    server.should_exit = True
    await serving
    print('16 s of silence after the first chunk: without ids "{}", with ids "{}"'.format(*said))
    return said != ["all read", "JSONDecodeError"]

sys.exit(asyncio.run(main()))
PY
