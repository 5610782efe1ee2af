#!/usr/bin/env bash
# Package: langchain-openai 1.7.4 with langchain-core 1.8.3 (PyPI).
# Behaviour: a stream that ends in the middle of a tool call's arguments, without finish_reason and without [DONE], raises
#   nothing. What there is of the arguments is completed to valid JSON, and the call stands in `tool_calls`, ready to be run
#   with a path that was never said; `invalid_tool_calls` is empty.
# For us: an answer that was cut must end with an error frame, never with the end of the body alone.
# Seen: arguments cut at {"path": "/srv/data/2025-: tool_calls [('delete', {'path': '/srv/data/2025-'})], invalid_tool_calls []
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check langchain-openai==1.7.4 langchain-core==1.8.3 openai==3.57.0
"$dir/venv/bin/python" - <<'PY'
import json
import sys

import httpx2
from langchain_openai import ChatOpenAI

CUT = '{"path": "/srv/data/2025-'


def frame(**call: object) -> str:
    choice = {"index": 0, "delta": {"role": "assistant", "tool_calls": [{"index": 0, **call}]}, "finish_reason": None}
    about = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return f"data: {json.dumps({**about, 'choices': [choice]})}\n\n"


stream = frame(id="call_1", type="function", function={"name": "delete", "arguments": ""}) + frame(function={"arguments": CUT})
response = httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, text=stream)
client = httpx2.Client(transport=httpx2.MockTransport(lambda _request: response))
first, *others = ChatOpenAI(model="m", api_key="key", http_client=client).stream("tidy up")
whole = sum(others, start=first)
calls = [(call["name"], call["args"]) for call in whole.tool_calls]
print(f"arguments cut at {CUT}: tool_calls {calls}, invalid_tool_calls {whole.invalid_tool_calls}")
sys.exit(calls != [("delete", {"path": "/srv/data/2025-"})] or bool(whole.invalid_tool_calls))
PY
