#!/usr/bin/env bash
# Package: openai 3.57.0 (PyPI).
# Behaviour: `responses.stream(response_id=…, starting_after=N)` never sends N: it asks for the whole stream again and drops
#   the events up to N itself. `responses.retrieve(…, stream=True, starting_after=N)` sends it.
# For us: a resume through this helper is a full replay, so a replay has to be cheap, and event numbers the same each time.
# Seen: resume after 4: stream() asks ?stream=true and gives 5, 6; retrieve() asks ?starting_after=4&stream=true and gives 5, 6
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0
"$dir/venv/bin/python" - <<'PY'
import json
import sys

import httpx2
import openai

RESPONSE = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "in_progress", "output": [],
            "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
PLACE = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
EVENTS = [
    {"type": "response.created", "response": RESPONSE},
    {"type": "response.in_progress", "response": RESPONSE},
    {"type": "response.output_item.added", "output_index": 0, "item": ITEM},
    {"type": "response.content_part.added", **PLACE, "part": {"type": "output_text", "text": "", "annotations": []}},
    *({"type": "response.output_text.delta", **PLACE, "delta": word, "logprobs": []} for word in "abc"),
]
asked: list[str] = []


def provider(request: httpx2.Request) -> httpx2.Response:
    asked.append(request.url.query.decode())
    first = int(request.url.params.get("starting_after", -1)) + 1
    told = [json.dumps({"sequence_number": n, **event}) for n, event in enumerate(EVENTS) if n >= first]
    text = "".join(f"event: message\ndata: {data}\n\n" for data in told)
    return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, text=text)


client = openai.OpenAI(api_key="key", http_client=httpx2.Client(transport=httpx2.MockTransport(provider)))
with client.responses.stream(response_id="resp_1", starting_after=4) as events:
    helper = [event.sequence_number for event in events]
plain = [event.sequence_number for event in client.responses.retrieve("resp_1", stream=True, starting_after=4)]
numbers = [", ".join(map(str, got)) for got in (helper, plain)]
print(f"resume after 4: stream() asks ?{asked[0]} and gives {numbers[0]}; retrieve() asks ?{asked[1]} and gives {numbers[1]}")
sys.exit((asked, helper, plain) != (["stream=true", "starting_after=4&stream=true"], [5, 6], [5, 6]))
PY
