#!/usr/bin/env bash
# Package: openai 3.57.0 (PyPI), and openai 7.55.0 on node 24.21.0 (npm): the helper `responses.stream()` of both.
# Behaviour: an answer that reached `max_output_tokens` ends with `response.incomplete`. JavaScript gives it as the final
#   response; Python raises RuntimeError, as if the stream had been cut, and the text that was paid for cannot be had from it.
#   Where it was cut, before any last event, it is JavaScript that gives what came so far as final, with status in_progress.
# For us: an incomplete answer is got by its id, or from its last event; and a cut has to be told by an error, not an end.
# Seen: incomplete: Python RuntimeError, JavaScript incomplete "half rest"; cut: Python RuntimeError, JavaScript in_progress "half "
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0
npm install --prefix "$dir" --silent --no-audit --no-fund node@24.21.0 openai@7.55.0 >/dev/null
cat >"$dir/read.mjs" <<'JS'
import fs from "node:fs"
import OpenAI from "openai"

const fetch = async () => new Response(fs.readFileSync(process.argv[2]), { headers: { "Content-Type": "text/event-stream" } })
const stream = new OpenAI({ apiKey: "key", maxRetries: 0, fetch }).responses.stream({ model: "m", input: "hello" })
const told = await stream.finalResponse().then((final) => `${final.status} "${final.output_text}"`, (error) => error.constructor.name)
process.stdout.write(told)
JS
"$dir/venv/bin/python" - "$dir" <<'PY'
import json, subprocess, sys
from pathlib import Path

import httpx2, openai

FOLDER = Path(sys.argv[1])
RESPONSE = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "in_progress", "output": [],
            "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
PART = {"type": "output_text", "text": "", "annotations": []}
PLACE = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
HALF = [{"type": "response.created", "response": RESPONSE},
        {"type": "response.output_item.added", "output_index": 0, "item": ITEM},
        {"type": "response.content_part.added", **PLACE, "part": PART},
        {"type": "response.output_text.delta", **PLACE, "delta": "half ", "logprobs": []}]
OUTPUT = [{**ITEM, "status": "incomplete", "content": [{**PART, "text": "half rest"}]}]
INCOMPLETE = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "output": OUTPUT}
REST = [{**HALF[-1], "delta": "rest"}, {"type": "response.incomplete", "response": {**RESPONSE, **INCOMPLETE}}]

def read(events: list[dict[str, object]]) -> tuple[str, str]:
    body = "".join(f"data: {json.dumps({**event, 'sequence_number': n})}\n\n" for n, event in enumerate(events))
    (FOLDER / "body").write_text(body)
    provider = httpx2.MockTransport(lambda _: httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, text=body))
    client = openai.OpenAI(api_key="key", http_client=httpx2.Client(transport=provider))
    try:
        with client.responses.stream(model="m", input="hello") as stream:
            python = f'{(final := stream.get_final_response()).status} "{final.output_text}"'
    except RuntimeError as error:
        python = type(error).__name__
    command = [FOLDER / "node_modules/.bin/node", FOLDER / "read.mjs", FOLDER / "body"]
    return python, subprocess.run(command, check=True, capture_output=True, text=True).stdout

incomplete, cut = read(HALF + REST), read(HALF)
print("incomplete: Python {}, JavaScript {}; cut: Python {}, JavaScript {}".format(*incomplete, *cut))
sys.exit((*incomplete, *cut) != ("RuntimeError", 'incomplete "half rest"', "RuntimeError", 'in_progress "half "'))
PY
