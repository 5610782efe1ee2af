"""A stand-in for the API that follows a script, and the command line as a process that asks it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WAIT_S = 120
ID = "chatcmpl-" + "0" * 32
STATE = {
    "id": ID,
    "object": "stream",
    "status": "completed",
    "model": "fake/lorem",
    "created_at": 1_700_000_000,
    "attempts": 1,
    "position": "1-3",
    "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
    "usage_source": "provider",
}
DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": ka\n"


def chunk(position: str, **delta: str) -> bytes:
    data = json.dumps({"id": ID, "choices": [{"index": 0, "delta": delta}]})
    return f"id: {position}\ndata: {data}\n\n".encode()


class StandIn:
    """Answers from `script`: `{"METHOD /path": [answer, …]}`, the last one for ever after.

    An answer is `(status, object)`, or a list of bytes to stream; a stream without DONE is cut off. `asked` keeps what
    came in: `(method and path, headers, body)`.
    """

    def __init__(self, script: dict[str, list[Any]]) -> None:
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.hold = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def handle_one(self) -> None:
                key = f"{self.command} {self.path.partition('?')[0]}"
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = json.loads(body) if headers.get("content-type") == "application/json" else body or None
                outer.asked.append((f"{self.command} {self.path}", headers, asked))
                answers = script.get(key, [(404, {"error": {"message": "no such stream", "code": "not_found"}})])
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                if isinstance(answer, tuple):
                    self.answer(*answer)
                else:
                    self.stream(answer)

            do_GET = do_POST = handle_one

            def answer(self, status: int, value: Any) -> None:
                content = json.dumps(value).encode() if value is not None else b""
                self.send_response(status)
                if content:
                    self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def stream(self, parts: list[Any]) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("x-stream-id", ID)
                self.end_headers()
                for part in parts:
                    if part is Ellipsis:
                        outer.hold.wait(WAIT_S)
                    elif isinstance(part, float):  # the pace of what is said
                        time.sleep(part)
                    else:
                        self.wfile.write(part)
                        self.wfile.flush()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@contextlib.contextmanager
def stand_ins() -> Iterator[Callable[[dict[str, list[Any]]], StandIn]]:
    """Starts one for each script; all are gone at the end."""
    with contextlib.ExitStack() as stack:

        def start(script: dict[str, list[Any]]) -> StandIn:
            one = StandIn({f"GET /v1/streams/{ID}": [(200, STATE)], **script})
            thread = threading.Thread(target=one.server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            for undo in (thread.join, one.server.server_close, one.server.shutdown, one.hold.set):
                stack.callback(undo)
            return one

        yield start


def command(*words: str, program: Sequence[str] = ("-m", "shared.cli.main"), **variables: str) -> dict[str, Any]:
    return {
        "args": [sys.executable, *program, *words],
        "env": {**os.environ, "PYTHONPATH": str(ROOT), **variables},
        "text": True,
        "encoding": "utf-8",
    }


def run(
    *words: str, program: Sequence[str] = ("-m", "shared.cli.main"), stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        **command(*words, program=program, **variables), input=stdin, capture_output=True, timeout=WAIT_S, check=False
    )
    assert "Traceback" not in done.stderr
    return done
