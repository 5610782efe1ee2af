#!/usr/bin/env bash
# Package: huggingface-hub 2.4.0 with httpx2 2.16.2 (PyPI).
# Behaviour: a stream does not keep alive the client that it is from, and a client that nobody holds any more closes its
#   streams: a function that makes an InferenceClient and returns the stream returns one that raises when it is read.
# For us: examples and recipes hold the client as long as the stream; a stream that "has been closed" says nothing of the server.
# Seen: a stream without its client: StreamClosed; with it: ['one', 'two']
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check huggingface-hub==2.4.0 httpx2==2.16.2
HF_HUB_DISABLE_TELEMETRY=1 "$dir/venv/bin/python" - <<'PY'
import json, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from huggingface_hub import InferenceClient
from httpx2 import StreamClosed

MESSAGES = [{"role": "user", "content": "hello"}]


def chunk(text: str) -> str:
    choices = [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}]
    return f"data: {json.dumps({'id': 'c', 'created': 1, 'model': 'm', 'choices': choices})}\n\n"


class Provider(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(f"{chunk('one')}{chunk('two')}data: [DONE]\n\n".encode())

    def log_message(self, *_said: object) -> None: ...


def words(stream: Any) -> str:
    try:
        return str([piece.choices[0].delta.content for piece in stream])
    except StreamClosed as error:
        return type(error).__name__


server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"


def ask(client: InferenceClient) -> Any:
    return client.chat_completion(MESSAGES, stream=True)


client = InferenceClient(base_url=url)
held, lone = words(ask(client)), words(ask(InferenceClient(base_url=url)))
print(f"a stream without its client: {lone}; with it: {held}")
sys.exit((lone, held) != ("StreamClosed", "['one', 'two']"))
PY
