"""Chromium without a window, and the site whose page it shows: what the page saw comes back by POST.

Hidden here: how the browser is found, started and ended with all its processes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from tempfile import TemporaryDirectory
from typing import Any

from tests.harness.processes import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
POLYFILL = ROOT / "tests/clients/node_modules/event-source-polyfill/src/eventsource.js"
_START_S = 90


class Site:
    """An origin with one page: `page.js`, told `about`. It listens on the loopback under two names, which are two origins."""

    def __init__(self) -> None:
        self.about: dict[str, Any] = {"run": ""}
        self._told: Queue[tuple[str, Any]] = Queue()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content, kind = site._content(self.path)
                self.send_response(200 if kind else 404)
                self.send_header("content-type", kind or "text/plain")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                run, _, what = self.path.removeprefix("/told/").partition("/")
                if run == site.about["run"]:  # what a page told with its last breath may come when the next is open
                    site._told.put((what, json.loads(body)))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]

    def show(self, **about: Any) -> None:
        """What the page is told that is opened next; nothing is heard any more of those before."""
        self.about = {**about, "run": uuid.uuid4().hex}
        while not self._told.empty():
            self._told.get()

    def origin(self, host: str = "localhost") -> str:
        return f"http://{host}:{self.port}"

    @contextmanager
    def open(self) -> Iterator[Site]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _content(self, path: str) -> tuple[bytes, str]:
        if path == "/":
            about = json.dumps(self.about).encode()
            return (
                b'<!doctype html><meta charset="utf-8"><title>page</title><script src="polyfill.js"></script>'
                b"<script>const about = %b</script><script src=page.js></script>" % about,
                "text/html",
            )
        files = {"/page.js": Path(__file__).with_name("page.js"), "/polyfill.js": POLYFILL}
        return (files[path].read_bytes(), "text/javascript") if path in files else (b"", "")

    def hear(self, what: str, timeout_s: float = _START_S) -> Any:
        """The next thing of this name that the page tells; what it tells before is dropped."""
        while True:
            try:
                name, value = self._told.get(timeout=timeout_s)
            except Empty:
                raise AssertionError(f"the page has not told {what!r} within {timeout_s} s") from None
            if name == "end" and "broke" in value:
                raise AssertionError(value["broke"])
            if name == what:
                return value


@contextmanager
def browsing(url: str) -> Iterator[None]:
    """A browser with nothing remembered shows the page, until the context ends."""
    assert CHROMIUM is not None
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # No sandbox: root has none in a container. No proxy: all of it is on the loopback.
        options = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --no-proxy-server"
        quiet = "--disable-background-networking --disable-component-update --disable-sync --disable-extensions"
        process = subprocess.Popen(
            [CHROMIUM, *options.split(), *quiet.split(), f"--user-data-dir={profile}", url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "HOME": profile},
        )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
