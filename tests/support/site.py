"""An installation on several hosts: `a` has an API, `b` an API and a worker, `c` a worker; `d` has what they share, a Valkey
Cluster of three masters and a bucket. Each has its own directory, and nothing on its disk that another reads.

Hidden here: which address is whose, and when a process that was broken counts as up again. Clients and the provider are
outside.
"""

from __future__ import annotations

import json
import signal
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Self

import httpx

from tests.harness.cluster import Cluster
from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import Pause, Script, ScriptedUpstream, ending, words
from tests.support.hosts import Hosts
from tests.support.judge import Judges
from tests.support.s3 import S3

KEY, ADMIN = "5f1c0b7e9a24d386", "c93e81d06b57f2a4"
PLACES = 8
"""Of each worker."""

RUNS = {"a": ("api",), "b": ("api", "worker"), "c": ("worker",)}
SETTINGS = {
    "STREAMSPOOL_API_KEYS": f"site:{KEY}",
    "STREAMSPOOL_ADMIN_KEYS": f"ops:{ADMIN}",
    "STREAMSPOOL_WORKER_CONCURRENCY": str(PLACES),
    "STREAMSPOOL_ON_INTERRUPTION": "restart",
    "STREAMSPOOL_LEASE_S": "3",
    "STREAMSPOOL_HOLD_HEADERS_S": "0.2",
    "STREAMSPOOL_KEEPALIVE_S": "0.5",
    "STREAMSPOOL_DRAIN_S": "0.5",
    "STREAMSPOOL_UPSTREAM_PROXY": "none",  # these addresses are not this machine's own, to whoever has a proxy
    "NO_PROXY": "*",
}
_UP_S = 90.0


class Site:
    """A context manager. `stacks` and `urls` are by host, `judges` are viewers who give up on a server after 3 s of silence."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._exits = ExitStack()
        self._asked = 0

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            self.hosts = exits.enter_context(Hosts(len(RUNS) + 1))
            *running, stores = self.hosts.all
            self.upstream = exits.enter_context(ScriptedUpstream(self.hosts.outside))
            self.cluster = exits.enter_context(Cluster(self._place("d"), address=stores.address, within=stores.within))
            self.s3 = exits.enter_context(S3(self._place("d"), address=stores.address, within=stores.within))
            shared = {**SETTINGS, "STREAMSPOOL_FILES_URL": self.s3.url, **self.s3.environment}
            self.host = dict(zip(RUNS, running, strict=True))
            self.stacks = {
                name: Stack(
                    self.cluster.url,
                    self.upstream.base_url,
                    self._place(name),
                    address=host.address,
                    within=host.within,
                    **shared,
                )
                for name, host in self.host.items()
            }
            for stack in self.stacks.values():
                exits.push(stack)
            self.heal()
            self.judges = exits.enter_context(Judges(KEY, patience_s=_UP_S, silence_s=3))
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _place(self, name: str) -> Path:
        place = self.directory / name
        place.mkdir(exist_ok=True)
        return place

    @property
    def urls(self) -> dict[str, str]:
        """The APIs'."""
        return {name: stack.url for name, stack in self.stacks.items() if "api" in RUNS[name]}

    def http(self, name: str, key: str = KEY) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.urls[name], headers=headers, timeout=60, trust_env=False)

    # ---- processes

    def heal(self) -> None:
        """All run, and do their work."""
        for host, names in RUNS.items():
            for name in names:
                if not self.stacks[host].alive(name):
                    self.stacks[host].start(name)
        wait_until(self._all_work, _UP_S, "all hosts do their work")

    def _all_work(self) -> bool:
        for host, names in RUNS.items():
            for name in names:
                stack = self.stacks[host]
                assert stack.alive(name), f"{name} of {host} ended:\n{stack.log(name)[-2000:]}"
        if not all(self.stacks[name].answers() for name in self.urls):
            return False
        with self.http("b", ADMIN) as http:
            told = http.get("/v1/workers")
        known = {one["id"] for one in told.json()["data"]} if told.status_code == 200 else set()
        pids = [stack.process("worker").pid for host, stack in self.stacks.items() if "worker" in RUNS[host]]
        return all(any(f"-{pid}-" in worker for worker in known) for pid in pids)

    def unplugged(self, name: str) -> AbstractContextManager[None]:
        """The host's cable is pulled."""
        return self.host[name].unplugged(*(self.stacks[name].process(one) for one in RUNS[name]))

    def kill(self, host: str, name: str) -> None:
        self.stacks[host].kill(name, signal.SIGKILL)

    # ---- answers

    def script(self, parts: list[bytes | float | Pause]) -> tuple[str, Script]:
        """A model that says this."""
        self._asked += 1
        return f"scripted/site-{self._asked}", self.upstream.script(f"site-{self._asked}", parts)

    def ask(self, name: str, model: str, **fields: Any) -> str:
        """Asks an API for an answer, and leaves: its id."""
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": True, **fields}
        with self.http(name) as http, http.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200, response.read()
            return response.headers["x-stream-id"]

    def state(self, name: str, generation_id: str) -> dict[str, Any]:
        with self.http(name) as http:
            response = http.get(f"/v1/streams/{generation_id}", headers={"accept": "application/json"})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def claimed(self, host: str) -> set[str]:
        """The answers that the worker of a host began."""
        lines = [json.loads(line) for line in self.stacks[host].log("worker").splitlines() if '"claimed"' in line]
        return {line["generation_id"] for line in lines if line["event"] == "claimed"}


def paced(count: int, pause_s: float, *barriers: tuple[int, Pause]) -> list[bytes | float | Pause]:
    """So many words, one by one; a barrier after that many."""
    role, *said = words(count)
    parts: list[bytes | float | Pause] = [role]
    for number, word in enumerate(said, 1):
        parts += [word, pause_s, *(pause for after, pause in barriers if after == number)]
    return [*parts, *ending()]
