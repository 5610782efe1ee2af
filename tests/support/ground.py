"""The ground that batches are run on, and that is pulled away under them."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import httpx

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import TWO_WORKERS, Stack, kill_valkey, wait_until
from tests.harness.store import open_store
from tests.support.batch import state
from tests.support.fleet import QUICK
from tests.support.names import keys

WORKERS = ("worker", "worker-2")


class Ground:
    """A Valkey, an API and two workers, each of which can be killed and is started again."""

    def __init__(self, directory: Path, upstream_url: str, **settings: str) -> None:
        self._exits = ExitStack()
        self.valkey = EmbeddedValkey(directory / "data")
        quick = {**QUICK, "STREAMSPOOL_NO_WORKER_S": "30", "STREAMSPOOL_BATCH_LINES": "50", **settings}
        self.stack = Stack(self.valkey.url, upstream_url, directory, processes=TWO_WORKERS, **quick)
        self._plan = directory / "plan"

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            exits.callback(self.valkey.stop)
            self.valkey.launch()
            self.valkey.wait_ready()
            exits.enter_context(self.stack)
            self.http = exits.enter_context(httpx.Client(base_url=self.stack.url, timeout=60, trust_env=False))
            self.redis = exits.enter_context(open_store(self.valkey.url))
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def runner(self, batch_id: str) -> str:
        """The worker that hands out the lines of the batch now."""
        holder = wait_until(lambda: self.redis.get(keys.lease(batch_id)), what="somebody holds the batch")
        names = {str(self.stack.process(name).pid): name for name in WORKERS}
        return names.get(holder.decode().split("-")[-2], "")

    def kill(self, name: str) -> None:
        self.stack.kill(name)
        self.stack.start(name)

    # ---- workers that end at a stage (stages.py)

    def doom(self) -> None:
        """From now on workers that are started carry plans out."""
        self.stack.fault = f"from tests.support.stages import install\ninstall({str(self._plan)!r})\n"
        for name in WORKERS:
            self.kill(name)

    def plan(self, stage: str, number: signal.Signals, often: str = "once") -> None:
        self._plan.with_suffix(".done").unlink(missing_ok=True)
        self._plan.with_suffix(".new").write_text(f"{stage}:{int(number)}:{often}")
        self._plan.with_suffix(".new").rename(self._plan)

    def forgive(self) -> None:
        """Nobody is to end any more."""
        self._plan.unlink(missing_ok=True)

    def carried_out(self) -> bool:
        return self._plan.with_suffix(".done").exists()

    def revive(self) -> list[int]:
        """Starts the workers again that have ended; returns how they ended."""
        ended = [name for name in WORKERS if not self.stack.alive(name)]
        statuses = [self.stack.process(name).returncode for name in ended]
        for name in ended:
            self.stack.start(name)
        return statuses

    def kill_valkey(self) -> None:
        kill_valkey(self.valkey)
        self.valkey.launch()
        self.valkey.wait_ready()

    def completed(self, batch_id: str) -> int:
        """As last told; the API may be away."""
        try:
            return int(state(self.http, batch_id)["request_counts"]["completed"])
        except (httpx.TransportError, AssertionError):
            return -1

    def status(self, batch_id: str) -> str:
        """Empty while the API is away."""
        try:
            return str(state(self.http, batch_id)["status"])
        except (httpx.TransportError, AssertionError):
            return ""

    def until(self, batch_id: str, count: int) -> None:
        wait_until(lambda: self.completed(batch_id) >= count, 120, f"{count} lines are done")

    def logs(self) -> list[bytes]:
        """The logs that are there."""
        return list(self.redis.scan_iter("streamspool:{*}:log", count=1000))
