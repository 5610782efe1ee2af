"""A whole Streamspool whose Redis can be broken: two workers, an API, a provider, and viewers that judge what they see.

Everything that talks to Redis does so through a `Proxy`; tests reach around it with `rig.redis`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import httpx

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import TWO_WORKERS, Stack, kill_valkey, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import Pause, Script, ScriptedUpstream, chunk, ending, whole, words
from tests.support.names import keys
from tests.support.proxy import Proxy
from tests.support.wire import DONE_FRAME, SEAL_ID, field

LEASE_S = 2.0
QUICK = {
    "STREAMSPOOL_LEASE_S": str(LEASE_S),
    "STREAMSPOOL_HOLD_HEADERS_S": "0.2",
    "STREAMSPOOL_KEEPALIVE_S": "0.5",
    "STREAMSPOOL_DRAIN_S": "0.5",
}


class Viewer:
    """One stream, read in a thread as it comes; `judge` says what was wrong with it."""

    def __init__(self, url: str, model: str, expected: str, script: Script) -> None:
        self._url, self.model, self.expected, self.script = url, model, expected, script
        self.generation_id = ""
        self.status = 0
        self.body = b""
        self.text = ""
        self.keepalives = 0
        self.error: dict[str, Any] | None = None
        self.last_at = 0.0
        self.worst_gap_s = 0.0
        """The longest time without a new piece of the answer."""
        self.repeated = self.missing = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            self._receive()
        except httpx.HTTPError as error:
            self.error = {"code": f"broken off: {error!r}"}

    def _receive(self) -> None:
        body = {"model": self.model, "stream": True, "messages": [{"role": "user", "content": "x"}]}
        headers = {"x-stream-ids": "1"}
        self.last_at = time.monotonic()
        with (
            httpx.Client(timeout=120, trust_env=False) as client,
            client.stream("POST", f"{self._url}/v1/chat/completions", json=body, headers=headers) as response,
        ):
            self.status = response.status_code
            self.generation_id = response.headers.get("x-stream-id", "")
            unread = b""
            for piece in response.iter_raw():
                self.body += piece
                *whole, unread = (unread + piece).split(b"\n\n")
                for frame in whole:
                    self._take(frame)

    def _take(self, frame: bytes) -> None:
        self.keepalives += frame.count(b": ka")
        data, at = field(frame, b"data"), field(frame, b"id")
        if data is None or data == b"[DONE]":
            return
        value = json.loads(data)
        if "error" in value:
            self.error = value["error"]
        if "error" in value or at == SEAL_ID.encode():
            return
        now = time.monotonic()
        self.worst_gap_s, self.last_at = max(self.worst_gap_s, now - self.last_at), now
        for choice in value["choices"]:
            self.text += choice["delta"].get("content") or ""
        if at is not None:
            seq = int(at.partition(b"-")[2])
            following = getattr(self, "_following", 1)
            self.repeated += seq < following
            self.missing += max(0, seq - following)
            self._following = seq + 1

    def says(self, wanted: str) -> bool:
        return wanted in self.text

    def end(self, timeout_s: float = 30) -> Self:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"{self.model} has no end: {self.body[-200:]!r}"
        return self

    def judge(self) -> str:
        """What is wrong with a stream that ought to be whole; empty if nothing is."""
        if self.error or self.status != 200:
            return f"{self.model}: {self.status} {self.error}"
        if self.text != self.expected:
            return f"{self.model}: {self.text[-60:]!r} of {len(self.expected)} characters"
        if self.repeated or self.missing:
            return f"{self.model}: {self.repeated} repeated, {self.missing} missing"
        if self.body.count(DONE_FRAME.strip()) != 1:
            return f"{self.model}: {self.body[-100:]!r}"
        if len(self.script.calls) != 1:
            return f"{self.model}: {len(self.script.calls)} calls"
        return ""


class Rig:
    """A context manager. `redis_url` is for another Redis than the rig's own Valkey behind its proxy."""

    def __init__(self, upstream: ScriptedUpstream, directory: Path, *, redis_url: str = "", **settings: str) -> None:
        self.upstream = upstream
        self._directory = directory
        self.valkey = EmbeddedValkey(directory / "data", maxmemory="200mb")
        self._redis_url, self._settings = redis_url, {**QUICK, **settings}
        self._count = 0

    def __enter__(self) -> Self:
        self.valkey.launch()
        self.valkey.wait_ready()
        self.redis = open_store(self.valkey.url)
        self.proxy = Proxy(unquote(urlsplit(self.valkey.url).path)).__enter__()
        url = self._redis_url or f"redis://127.0.0.1:{self.proxy.port}/0"
        self.stack = Stack(url, self.upstream.base_url, self._directory, processes=TWO_WORKERS, **self._settings)
        try:
            self.stack.__enter__()
            if not self._redis_url:
                wait_until(lambda: self.redis.scard(keys.workers) == 2, what="two workers")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.heal()
        self.stack.__exit__()
        self.proxy.__exit__()
        self.redis.close()
        self.valkey.stop()

    def pids(self) -> dict[str, int]:
        """The processes that must survive; fails if one has not."""
        names = ("api", "worker", "worker-2")
        ended = [name for name in names if self.stack.process(name).poll() is not None]
        assert not ended, f"{ended[0]} ended:\n{self.stack.log(ended[0])[-2000:]}"
        return {name: self.stack.process(name).pid for name in names}

    def kill_valkey(self) -> None:
        kill_valkey(self.valkey)

    def start_valkey(self) -> None:
        self.valkey.launch()
        self.valkey.wait_ready()

    def watch(self, parts: Sequence[bytes | float | Pause], expected: str) -> Viewer:
        """Asks for an answer made of these parts, and views it."""
        self._count += 1
        name = f"stream-{self._count}"
        script = self.upstream.script(name, parts)
        return Viewer(self.stack.url, f"scripted/{name}", expected, script)

    def streams(
        self, count: int, *, chunks: int = 60, pause_s: float = 0.05, barrier: Pause | None = None
    ) -> list[Viewer]:
        """So many streams, which have begun to speak. With a barrier, they stop there before their last words."""
        role, *said = words(chunks)
        parts: list[bytes | float | Pause] = [role]
        for piece in said:
            parts += [piece, pause_s]
        if barrier is not None:
            parts.append(barrier)
        parts += [chunk({"content": "the end"}), *ending()]
        expected = whole(chunks) + "the end"
        viewers = [self.watch(parts, expected) for _ in range(count)]
        wait_until(lambda: all(viewer.says("w3 ") for viewer in viewers), 20, "all streams speak")
        return viewers

    def post(self, model: str = "fake/echo", **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}
        return httpx.post(f"{self.stack.url}/v1/chat/completions", json=body, timeout=20, trust_env=False)

    def state(self, generation_id: str) -> dict[str, Any]:
        headers = {"accept": "application/json"}
        url = f"{self.stack.url}/v1/streams/{generation_id}"

        def answered() -> httpx.Response | None:
            response = httpx.get(url, headers=headers, timeout=10, trust_env=False)
            return None if response.status_code == 503 else response

        found: dict[str, Any] = wait_until(answered, what="the state is told").json()
        return found

    def ready(self) -> bool:
        return httpx.get(f"{self.stack.url}/readyz", timeout=10, trust_env=False).status_code == 200

    def whole(self, viewers: Sequence[Viewer], *, attempts: int = 1) -> None:
        """Every stream came through as if nothing had happened, and its record says so."""
        wrong = [problem for viewer in viewers if (problem := viewer.end().judge())]
        assert not wrong, wrong[:3]
        for viewer in viewers:
            found = self.state(viewer.generation_id)
            assert (found["status"], found["attempts"]) == ("completed", attempts), found

    def answers_again(self) -> None:
        """A new request is served, which needs every part."""
        wait_until(self.ready, 15, "ready again")
        response = self.post()
        assert response.status_code == 200, response.text

    def log_lines(self) -> dict[str, int]:
        return {name: self.stack.log(name).count("\n") for name in ("api", "worker", "worker-2")}
