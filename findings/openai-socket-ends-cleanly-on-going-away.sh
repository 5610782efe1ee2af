#!/usr/bin/env bash
# Package: openai 3.57.0 and websockets 17.4 (PyPI), Responses over a WebSocket.
# Behaviour: a socket that is closed in the middle of an answer with code 1001, "going away", what a server says when it is
#   stopped, ends the loop over the events without an error, as 1000 does. Code 1012, "service restart", raises.
# For us: on a drain, a socket with an answer under way has to be closed with 1012.
# Seen: closed after one delta with 1000: the loop ends; 1001: the loop ends; 1012: ConnectionClosedError
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0 websockets==17.4
"$dir/venv/bin/python" - <<'PY'
import asyncio
import json
import sys

import openai
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

DELTA = {"type": "response.output_text.delta", "sequence_number": 1, "item_id": "msg_1", "output_index": 0,
         "content_index": 0, "delta": "half", "logprobs": []}


async def end(code: int) -> str:
    async def answer(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(json.dumps(DELTA))
        await connection.close(code)

    async with serve(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = openai.AsyncOpenAI(api_key="key", base_url=f"http://127.0.0.1:{port}/v1")
        try:
            async with client.responses.connect() as connection:
                await connection.send({"type": "response.create", "model": "m", "input": "hello"})
                got = [event.type async for event in connection]
            return "the loop ends" if got == [DELTA["type"]] else f"the loop ends with {got}"
        except ConnectionClosed as error:
            return type(error).__name__


ends = [asyncio.run(end(code)) for code in (1000, 1001, 1012)]
print("closed after one delta with 1000: {}; 1001: {}; 1012: {}".format(*ends))
sys.exit(ends != ["the loop ends", "the loop ends", "ConnectionClosedError"])
PY
