"""What a worker shows of itself by HTTP: its metrics, and whether it is well. It needs no key and tells nothing of any answer.

Hidden here: a thread of its own serves it, since a loop that hangs could not say so. Nothing else in a worker listens.

- `/healthz` is 200 while the loop turns: restart the worker if it is not.
- `/readyz` is 200 while Redis takes its beats, by which the APIs know that a worker is alive. A restart would not help.
- `/metrics` is Prometheus' text.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import TimeoutError as NotInTime
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import Any

from shared.lib.telemetry import exposition, get_logger
from worker.heartbeat import Heartbeat

logger = get_logger(__name__)

_TURN_S = 5.0
"""A loop that does not get to a call within this time hangs. A busy one takes milliseconds."""
_CLIENT_S = 10.0


@contextmanager
def showing(host: str, port: int, heartbeat: Heartbeat) -> Iterator[int]:
    """Serves until the context ends; gives the port, which is any free one for 0. The health is that of the loop that calls it.
    Raises OSError."""
    loop = asyncio.get_running_loop()

    class Handler(_Handler):
        def found(self, path: str) -> tuple[int, str, bytes]:
            if path == "/metrics":
                text, kind = exposition(self.headers.get("accept"))
                return 200, kind, text
            if path == "/healthz":
                return _verdict("" if _turns(loop) else "the loop hangs")
            if path == "/readyz":
                return _verdict("" if heartbeat.is_heard else "Redis does not take its beats")
            return 404, _TEXT, b"/healthz, /readyz or /metrics\n"

    server = _Server((host, port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="status", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_TEXT = "text/plain; charset=utf-8"


def _verdict(wrong: str) -> tuple[int, str, bytes]:
    return 503 if wrong else 200, _TEXT, f"{wrong or 'ok'}\n".encode()


def _turns(loop: asyncio.AbstractEventLoop) -> bool:
    async def turn() -> None:
        pass

    asked = turn()
    try:
        asyncio.run_coroutine_threadsafe(asked, loop).result(_TURN_S)
    except NotInTime:
        return False
    except RuntimeError:  # closed: the worker is at its end
        asked.close()
        return False
    return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client that says nothing must not hold up the end

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone before it was answered is no fault of ours."""
        if not isinstance(sys.exception(), OSError):
            logger.error("status broke", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = _CLIENT_S
    server_version = "streamspool"
    sys_version = ""

    def found(self, path: str) -> tuple[int, str, bytes]:
        raise NotImplementedError

    def do_GET(self) -> None:
        status, kind, content = self.found(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Nothing: a probe every few seconds is no news."""
