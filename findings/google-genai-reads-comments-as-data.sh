#!/usr/bin/env bash
# Package: google-genai 3.6.1 (PyPI).
# Behaviour: a comment line in a stream, which the standard says to ignore and which keeps silent streams alive, is taken for
#   an answer that is no JSON: the iteration raises, and what comes after the comment is lost.
# For us: a front that speaks Gemini's format cannot keep a stream alive with comments.
# Seen: two chunks: ['one', 'two']; with ": keep-alive" between them: ['one'], then UnknownApiResponseError
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check google-genai==3.6.1 httpx==0.28.1
"$dir/venv/bin/python" - <<'PY'
import json
import sys

import httpx
from google import genai


def chunk(text: str) -> str:
    return f"data: {json.dumps({'candidates': [{'index': 0, 'content': {'role': 'model', 'parts': [{'text': text}]}}]})}\n\n"


def read(between: str) -> str:
    body = chunk("one") + between + chunk("two")
    answer = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, text=body)
    transport = httpx.MockTransport(lambda _request: answer)
    client = genai.Client(api_key="key", http_options={"httpx_client": httpx.Client(transport=transport)})
    got: list[str | None] = []
    try:
        for piece in client.models.generate_content_stream(model="m", contents="hello"):
            got.append(piece.text)
    except genai.errors.UnknownApiResponseError as error:
        return f"{got}, then {type(error).__name__}"
    return str(got)


plain, commented = read(""), read(": keep-alive\n\n")
print(f'two chunks: {plain}; with ": keep-alive" between them: {commented}')
sys.exit((plain, commented) != ("['one', 'two']", "['one'], then UnknownApiResponseError"))
PY
