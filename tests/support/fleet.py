"""A stack that a whole module of tests may kill: two workers, APIs by need, and healed before each test.

Hidden here: which process runs a generation, and when a process counts as up again.
"""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import READY_S, TWO_WORKERS, Stack, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import ScriptedUpstream
from tests.support.names import keys, wait

QUICK = {
    "STREAMSPOOL_LEASE_S": "2",
    "STREAMSPOOL_DRAIN_S": "0.5",
    "STREAMSPOOL_HOLD_HEADERS_S": "0.2",
    "STREAMSPOOL_DISCONNECT_GRACE_S": "1",
    "STREAMSPOOL_KEEPALIVE_S": "0.2",
    "STREAMSPOOL_NO_WORKER_S": "100",
}
PATIENCE_S = STOP_S = 60
BAR_S = 15.0
"""What the fault matrix allows for a takeover with a lease of ten seconds; ours have two seconds."""


class Fleet(Stack):
    """A Stack on a database of its own, with the ways to look into it and to break it."""

    def __init__(self, valkey: EmbeddedValkey, upstream: ScriptedUpstream, directory: Path, **settings: str) -> None:
        url = valkey.url.replace("db=0", "db=3")
        self.client = open_store(url)
        self.client.flushdb()
        self.http = httpx.Client(trust_env=False, timeout=PATIENCE_S)
        super().__init__(url, upstream.base_url, directory, processes=TWO_WORKERS, **{**QUICK, **settings})

    def __enter__(self) -> Self:
        super().__enter__()
        self.heal()
        return self

    def __exit__(self, *details: object) -> None:
        super().__exit__(*details)
        self.client.flushdb()
        self.client.close()
        self.http.close()

    def heal(self, *names: str) -> None:
        """Everything that tests killed or stopped runs again: two workers and an API, and what else is named."""
        wanted = ["worker", "worker-2", "api", *names]
        for name in list(self._processes):
            if self.alive(name):
                self._processes[name].send_signal(signal.SIGCONT)
                if name not in wanted:
                    self.stop(name)
        for name in wanted:
            if not self.alive(name):
                self.start(name)
        wait_until(lambda: all(map(self.up, wanted)), READY_S, what="everything is up again")

    def replace_workers(self, *names: str, **settings: str) -> None:
        """These work in the place of those that did; `heal` brings the usual ones back."""
        for name in self.running():
            self.stop(name)
        for name in names:
            self.start_and_wait(name, **settings)

    def start_and_wait(self, name: str, *, fault: str = "", **settings: str) -> None:
        self.start(name, fault=fault, **settings)
        wait_until(lambda: self.up(name), READY_S, what=f"{name} is up")

    def up(self, name: str) -> bool:
        """Whether a process does its work: a worker has reported, an API answers."""
        assert self.alive(name), f"{name} ended:\n{self.log(name)[-2000:]}"
        if not name.startswith("api"):
            return bool(self.client.keys(f"streamspool:worker:*-{self.process(name).pid}-*"))
        return self.answers(name)

    @contextmanager
    def no_reaper(self) -> Iterator[None]:
        """As long as this takes, no process has its turn to look for what nobody rang for, or settled."""
        self.client.set(keys.reaping, b"a test", ex=300)
        try:
            yield
        finally:
            self.client.delete(keys.reaping)

    def running(self) -> list[str]:
        """The workers that live."""
        return [name for name in self._processes if name.startswith("worker") and self.alive(name)]

    # ---- generations

    def submit(self, model: str, *, url: str = "", headers: dict[str, str] | None = None, **fields: Any) -> str:
        """Starts a generation and leaves at once."""
        body = ask(model, stream=True, **fields)
        asked = f"{url or self.url}/v1/chat/completions"
        with httpx.stream(
            "POST", asked, json=body, headers=headers, timeout=PATIENCE_S, trust_env=False, verify=False
        ) as response:
            assert response.status_code == 200, response.read()
            return response.headers["x-stream-id"]

    def read(self, path: str) -> Any:
        """What GET answers, as soon as it is not told to come back later."""

        def answered() -> httpx.Response | None:
            response = httpx.get(
                f"{self.url}{path}", headers=dict(self.http.headers), timeout=PATIENCE_S, trust_env=False
            )
            return None if response.status_code == 503 else response

        response: httpx.Response = wait_until(answered, what=path)
        assert response.status_code == 200, response.text
        return response.json()

    def state(self, generation_id: str, *, url: str = "") -> dict[str, Any]:
        headers = {"accept": "application/json"}
        found: dict[str, Any] = self.http.get(f"{url or self.url}/v1/streams/{generation_id}", headers=headers).json()
        return found

    def states(self) -> dict[str, dict[str, Any]]:
        """Those of all generations there are, by id."""
        found: dict[str, dict[str, Any]] = {}
        after: dict[str, str] | None = {}
        while after is not None:
            page = self.http.get(f"{self.url}/v1/streams", params={"limit": "100", **after}).json()
            found |= {state["id"]: state for state in page["data"]}
            after = {"after": page["last_id"]} if page["has_more"] else None
        return found

    def plant(self, model: str, **header: Any) -> str:
        """A log that is there without a bell: what an API leaves that dies in between. Returns its id."""
        generation_id = f"chatcmpl-{uuid.uuid4().hex}"
        fields = {"id": generation_id, "owner": "local", "model": f"scripted/{model}", "created_at_ms": 1}
        key = keys.log(generation_id)
        self.client.xadd(key, {"r": json.dumps({**fields, "n": 1, "include_usage": False, **header})}, id="0-1")
        self.client.xadd(key, {"b": json.dumps(ask(model))}, id="0-2")
        self.client.expire(key, 600)
        self.client.zadd(keys.open(0), {generation_id: 1})
        return generation_id

    def ring(self, *generation_ids: str) -> None:
        """The bell, as another version of ours would ring it."""
        for generation_id in generation_ids:
            job: dict[str, Any] = {"t": None, "f": "generate", "a": [generation_id], "k": {}, "et": 1}
            self.client.set(keys.job(generation_id), json.dumps(job), ex=60)
            wait(self.client, {generation_id: 1})
            self.client.publish(keys.doorbell, generation_id)

    def ended(self, generation_id: str) -> dict[str, Any]:
        """The state of a generation once it has ended."""
        ended: dict[str, Any] = wait_until(
            lambda: (found := self.state(generation_id))["status"] not in ("queued", "in_progress") and found,
            what="an end",
        )
        return ended

    def stored(self, generation_id: str) -> str:
        """The text as it is kept."""
        answer = self.http.get(f"{self.url}/v1/chat/completions/{generation_id}").json()
        return answer["choices"][0]["message"]["content"] or "" if answer["choices"] else ""

    def owner(self, generation_id: str, attempt: int = 1) -> str:
        """Which process runs it: the log says the worker's id, which holds its pid."""

        def claimed() -> str | None:
            entries = self.client.xrange(keys.log(generation_id), f"{attempt}-0", f"{attempt}-0")
            return json.loads(entries[0][1][b"a"])["worker"] if entries else None

        worker_id = wait_until(claimed, what=f"attempt {attempt}")
        return next(name for name, process in self._processes.items() if f"-{process.pid}-" in worker_id)

    def until_said(self, generation_id: str, chunks: int, attempt: int = 1) -> None:
        """Waits until an attempt has stored so many chunks."""
        key = keys.log(generation_id)
        wait_until(lambda: self.client.xrange(key, f"{attempt}-{chunks}", count=1), what=f"{chunks} chunks")

    def logged(self, name: str, generation_id: str, event: str) -> bool:
        """Whether a process has logged this about a generation."""
        return any(f'"event": "{event}"' in line for line in self.log(name).splitlines() if generation_id in line)

    def entries(self, generation_id: str) -> list[str]:
        """The positions in the log."""
        return [entry_id.decode() for entry_id, _ in self.client.xrange(keys.log(generation_id))]


def ask(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": f"scripted/{model}", "messages": [{"role": "user", "content": "x"}], **fields}
