"""A whole Streamspool whose Redis can be broken: two workers, an API, a provider, and viewers that judge what they see.

Everything that talks to Redis does so through a `Proxy`; tests reach around it with `rig.redis`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import httpx

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import TWO_WORKERS, Stack, kill_valkey, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import Pause, Script, ScriptedUpstream, chunk, ending, whole, words
from tests.support.judge import Judges, Verdict
from tests.support.names import keys
from tests.support.proxy import Proxy

LEASE_S = 3.0
QUICK = {
    "STREAMSPOOL_LEASE_S": str(LEASE_S),
    "STREAMSPOOL_HOLD_HEADERS_S": "0.2",
    "STREAMSPOOL_KEEPALIVE_S": "0.5",
    "STREAMSPOOL_DRAIN_S": "0.5",
}


@dataclass(kw_only=True)
class Viewer(Verdict):
    """One stream of a rig; `judge` says what was wrong with it."""

    model: str
    expected: str
    script: Script

    def judge(self) -> str:
        """What is wrong with a stream that ought to be whole; empty if nothing is."""
        if self.error or self.cut or self.status != 200:
            return f"{self.model}: {self.status} {self.error} {self.cut}"
        if self.text != self.expected:
            return f"{self.model}: {self.text[-60:]!r} of {len(self.expected)} characters"
        if self.wrong or not self.ended:
            return f"{self.model}: {self.wrong}"
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
        self._judges = Judges(patience_s=120).__enter__()
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
        self._judges.__exit__()
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
        return self.view(Viewer(model=f"scripted/{name}", expected=expected, script=script))

    def view(self, viewer: Viewer) -> Viewer:
        """Asks for what it expects."""
        body = {"model": viewer.model, "messages": [{"role": "user", "content": "x"}]}
        self._judges.fill(viewer, [self.stack.url], body, headers={"x-stream-ids": "1"}, resume=False)
        return viewer

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
        wait_until(lambda: all(viewer.says("w3 ") for viewer in viewers), what="all streams speak")
        return viewers

    def post(self, model: str = "fake/echo", **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}
        return httpx.post(f"{self.stack.url}/v1/chat/completions", json=body, timeout=60, trust_env=False)

    def state(self, generation_id: str) -> dict[str, Any]:
        headers = {"accept": "application/json"}
        url = f"{self.stack.url}/v1/streams/{generation_id}"

        def answered() -> httpx.Response | None:
            response = httpx.get(url, headers=headers, timeout=60, trust_env=False)
            return None if response.status_code == 503 else response

        found: dict[str, Any] = wait_until(answered, what="the state is told").json()
        return found

    def ready(self) -> bool:
        return httpx.get(f"{self.stack.url}/readyz", timeout=60, trust_env=False).status_code == 200

    def whole(self, viewers: Sequence[Viewer], *, attempts: int = 1) -> None:
        """Every stream came through as if nothing had happened, and its record says so."""
        wrong = [problem for viewer in viewers if (problem := viewer.end().judge())]
        assert not wrong, wrong[:3]
        for viewer in viewers:
            found = self.state(viewer.id)
            assert (found["status"], found["attempts"]) == ("completed", attempts), found

    def answers_again(self) -> None:
        """A new request is served, which needs every part."""
        wait_until(self.ready, what="ready again")
        response = self.post()
        assert response.status_code == 200, response.text

    def answers_everywhere(self) -> None:
        """A dozen requests in a row are served. On a cluster each may be at another node, and one of them may hear later than
        another who is a master now: what it has is refused until then (503, come again)."""
        wait_until(lambda: all(self.post().status_code == 200 for _ in range(12)), 60, "all nodes serve")

    def log_lines(self) -> dict[str, int]:
        return {name: self.stack.log(name).count("\n") for name in ("api", "worker", "worker-2")}
