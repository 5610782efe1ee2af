"""How long the first viewer of an ended answer waits for all of it, at an API process that has just started: of a stream in
Redis, of an object, and of a file that nginx serves, if there is one. One JSON line for each.

python -m tests.chaos.figures_replay [--chunks 10000] [--times 5] [--root DIRECTORY_OF_ANOTHER_REVISION]
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, free_port, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import ScriptedUpstream
from tests.support.wire import Client

_END = b"[DONE]\n\n"
_QUICK = "from shared.generations import reaper\nreaper.TICK_S = 0.2\n"
_NGINX = """daemon off; pid {directory}/nginx.pid; error_log {directory}/error.log; events {{}}
http {{ access_log off; server {{ listen 127.0.0.1:{port}; location / {{ root {directory}; }} }} }}
"""


def replay(port: int, path: str) -> tuple[float, bytes]:
    """Milliseconds from a new connection to its end, and what came."""
    request = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\naccept: text/event-stream\r\nconnection: close\r\n\r\n"
    pieces: list[bytes] = []
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request.encode())
        while piece := connection.recv(1 << 20):
            pieces.append(piece)
    took, body = (time.perf_counter() - began) * 1000, b"".join(pieces)
    assert _END in body[-40:], "it ended early"
    return took, body


def told(what: str, times: list[float], **more: Any) -> None:
    figures = {
        "median_ms": round(statistics.median(times), 1),
        "range_ms": [round(min(times), 1), round(max(times), 1)],
    }
    print(json.dumps({"what": what, **figures, **more}), flush=True)


def ours(asked: argparse.Namespace, upstream: ScriptedUpstream, valkey: EmbeddedValkey, directory: Path) -> bytes:
    """Both homes, as far as this revision has them. Returns what a viewer is shown."""
    settings = {"STREAMSPOOL_ARCHIVE_AFTER_S": "0.01"} if not asked.stream else {}
    root = {"PYTHONPATH": str(asked.root)} if asked.root else {}
    stack = Stack(valkey.url, upstream.base_url, directory, fault=_QUICK if settings else "", **settings)
    stack.environment |= root
    Path(stack.environment["STREAMSPOOL_CONFIG"]).write_text("")  # an older revision may not know all that stands there
    with stack, open_store(valkey.url) as store:
        with Client(stack.url) as client:
            name = str(client.stream(f"fake/lorem?tokens={asked.chunks}").headers["x-stream-id"])
        if settings:
            key = f"streamspool:{{{name}}}:log"
            wait_until(lambda: b"x" in store.xrevrange(key, count=1)[0][1], 60, "it is an object")
        found = [_cold(stack, lambda: replay(stack.port, f"/v1/streams/{name}")) for _ in range(asked.times)]
        again = [replay(stack.port, f"/v1/streams/{name}") for _ in range(asked.times)]
        with Client(stack.url) as client:
            body = client.whole(name)
    what = "object" if settings else "stream"
    told(what, [took for took, _ in found], hot_median_ms=round(statistics.median([took for took, _ in again]), 1))
    return body


def _cold(stack: Stack, do: Callable[[], tuple[float, bytes]]) -> tuple[float, bytes]:
    stack.stop("api")
    stack.start("api")
    wait_until(lambda: stack.answers("api"), 60)
    return do()


@contextmanager
def nginx(directory: Path, body: bytes) -> Iterator[int]:
    port = free_port()
    (directory / "answer.txt").write_bytes(body)
    (directory / "nginx.conf").write_text(_NGINX.format(directory=directory, port=port))
    process = subprocess.Popen(["nginx", "-c", str(directory / "nginx.conf"), "-p", str(directory)])
    try:
        wait_until(lambda: _listens(port), 10)
        yield port
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--root", type=Path, help="a work tree of another revision, whose processes are measured")
    parser.add_argument(
        "--stream", action="store_true", help="leave it in Redis: the only home that older revisions have"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ScriptedUpstream() as upstream:
        directory = Path(name)
        directory.chmod(0o755)
        with EmbeddedValkey(directory / "valkey") as valkey:
            body = ours(asked, upstream, valkey, directory)
        if shutil.which("nginx"):
            with nginx(directory, body) as port:
                told("nginx", [replay(port, "/answer.txt")[0] for _ in range(asked.times)], bytes=len(body))


if __name__ == "__main__":
    main()
