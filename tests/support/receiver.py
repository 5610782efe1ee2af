"""Who webhooks are sent to: an HTTP server on loopback that keeps what it got and answers as it is told."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple, Self

from openai import OpenAI

from tests.harness.processes import free_port

SECRET = "whsec_" + "c3RyZWFtc3Bvb2wtd2ViaG9vay10ZXN0LXNlY3JldA=="


class Hook(NamedTuple):
    """One request, as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    def event(self, secret: str = SECRET) -> dict[str, object]:
        """What the official SDK makes of it once it has checked the signature and the time."""
        client = OpenAI(api_key="unused", webhook_secret=secret)
        found: dict[str, object] = client.webhooks.unwrap(self.body, self.headers).model_dump()
        return found


Answer = Callable[[Hook], int]


class Receiver:
    """Listens on `url`; `answer` says with which status. `stop` and `start` again: the same port."""

    def __init__(self, answer: Answer = lambda _: 200, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.got: list[Hook] = []
        self.headers: dict[str, str] = {}
        """Of every answer."""
        self._port, self._tls = port or free_port(), tls  # which nobody takes while it is stopped
        self._server: ThreadingHTTPServer | None = None

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/hook"

    def of(self, subject: str) -> list[Hook]:
        """What came about this subject."""
        return [hook for hook in self.got if subject.encode() in hook.body]

    def start(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                hook = Hook(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                receiver.got.append(hook)
                self.send_response(receiver.answer(hook))
                for name, value in {"content-length": "0", **receiver.headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # of 5, some connections of many at once have to be begun again, a second later

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        if self._tls:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
