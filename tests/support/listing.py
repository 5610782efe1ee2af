"""Providers that have nothing but a list of models, on loopback.

Hidden here: a small HTTP server in a thread, which notes what it was asked.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self


class Asked(NamedTuple):
    path: str
    headers: dict[str, str]
    body: Any


class ListingProvider:
    """`answers[PATH]` is what a path is answered with, as JSON, or as it is if it is bytes; `status` with what; all other
    paths with 404. While `silent`, it takes requests and says nothing. A context manager."""

    def __init__(self, answers: dict[str, Any] | None = None) -> None:
        self.answers = answers or {}
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked: list[Asked] = []
        self.heard = threading.Event()
        """Set while it is not silent."""
        self.heard.set()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                provider.asked.append(Asked(self.path, headers, json.loads(body) if body else None))
                provider.heard.wait(60)
                answer = provider.answers.get(self.path, provider.answers.get(self.path.partition("?")[0]))
                if callable(answer):
                    answer = answer(provider.asked[-1].body)
                self.send_response(404 if answer is None else provider.status)
                content = answer if isinstance(answer, bytes) else json.dumps(answer or {"error": "not found"}).encode()
                for name, value in {"content-type": "application/json", **provider.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # of 5, some connections of many at once have to be begun again, a second later

            def handle_error(self, *_: object) -> None:
                """Who asked has given up: that is no error of the test's."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.heard.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
