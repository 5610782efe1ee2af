"""A provider of your own: a server that speaks OpenAI's chat format, in a hundred lines of standard library.

    python examples/own_provider.py [PORT]

and in streamspool.toml, beside the worker:

    [providers.mine]
    base_url = "http://127.0.0.1:9000/v1"
    models = ["reverse"]

Then ask for the model `mine/reverse`. It says the last message backwards, word by word.

What Streamspool relies on: `data:` lines with chunks, a finish reason for each choice, `[DONE]` at the end, and the usage
where `stream_options` asks for it. It always asks with `stream: true`.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAUSE_S = 0.02
MODELS = ("reverse",)


class Provider(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/chat/completions" or request["model"] not in MODELS:
            self.refuse(404, f"There is no {request['model']} here.", "model_not_found")
            return
        words = str(request["messages"][-1]["content"]).split()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.chunk({"role": "assistant", "content": ""})
        for word in reversed(words):
            time.sleep(PAUSE_S)
            self.chunk({"content": f"{word} "})
        self.chunk({}, finish_reason="stop")
        if (request.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": len(words), "completion_tokens": len(words), "total_tokens": 2 * len(words)}
            self.event({**self.head(), "choices": [], "usage": usage})
        self.send(b"data: [DONE]\n\n")
        self.send(b"")  # a chunk of no bytes ends the response

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        self.event({**self.head(), "choices": [choice]})

    def head(self) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": int(time.time()), "model": "reverse"}

    def event(self, value: dict[str, Any]) -> None:
        self.send(b"data: " + json.dumps(value).encode() + b"\n\n")

    def send(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def refuse(self, status: int, message: str, code: str) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": "model", "code": code}
        body = json.dumps({"error": error}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the worker's log has it."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 9000), Provider)
    print(f"listening on http://127.0.0.1:{server.server_port}/v1", flush=True)
    server.serve_forever()
