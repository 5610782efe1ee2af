#!/usr/bin/env bash
# Package: together 3.1.1 and openai 3.57.0 (PyPI).
# Behaviour: together looks at an event only if it has no name. `event: message`, which is what an event without a name is, too,
#   empties a stream: no chunk and no error. An error told as `event: error` in the middle of an answer is dropped as well, and
#   half of the answer looks whole. openai reads both right.
# For us: the views for OpenAI's clients give no event a name, neither a chunk nor an error.
# Seen: together reads chunks with a name as [], half with an error named so as ['half']; openai ['half', 'rest'], APIError
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check together==3.1.1 openai==3.57.0 httpx==0.28.1
"$dir/venv/bin/python" - <<'PY'
import json
import sys
from collections.abc import Iterable
from typing import Any

import httpx
import httpx2
import openai
import together


def event(value: object, name: str | None = None) -> str:
    data = value if isinstance(value, str) else json.dumps(value)
    return (f"event: {name}\n" if name else "") + f"data: {data}\n\n"


def chunk(text: str) -> dict[str, object]:
    choices = [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}]
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}


ERROR = {"error": {"message": "The model broke.", "type": "server_error", "param": None, "code": None}}
NAMED = event(chunk("half"), "message") + event(chunk("rest"), "message") + event("[DONE]")
BROKEN = event(chunk("half")) + event(ERROR, "error") + event("[DONE]")


def read(library: Any, http: Any, body: str) -> str:
    answer = http.Response(200, headers={"Content-Type": "text/event-stream"}, text=body)
    transport = http.MockTransport(lambda _request: answer)
    make = library.Together if library is together else library.OpenAI
    client = make(api_key="key", base_url="http://provider/v1", http_client=http.Client(transport=transport))
    messages = [{"role": "user", "content": "hello"}]
    chunks: Iterable[Any] = client.chat.completions.create(model="m", messages=messages, stream=True)
    try:
        return str([piece.choices[0].delta.content for piece in chunks])
    except library.APIError as error:
        return type(error).__name__


seen = [read(library, http, body) for library, http in ((together, httpx), (openai, httpx2)) for body in (NAMED, BROKEN)]
print("together reads chunks with a name as {}, half with an error named so as {}; openai {}, {}".format(*seen))
sys.exit(seen != ["[]", "['half']", "['half', 'rest']", "APIError"])
PY
