"""A stopped installation moves its queue to a server of its own, by the command, and goes on: nothing is lost or done twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import Pause, ScriptedUpstream, ending, whole, words

PLACES, MANY = 2, 8
ADMIN = "an-admin-of-sixteen"
SETTINGS = {
    "STREAMSPOOL_WORKER_CONCURRENCY": str(PLACES),
    "STREAMSPOOL_ADMIN_KEYS": f"ops:{ADMIN}",
    "STREAMSPOOL_API_KEYS": "ann:a-key-of-anns-own",
}


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[EmbeddedValkey, EmbeddedValkey]]:
    with EmbeddedValkey(tmp_path / "logs") as logs, EmbeddedValkey(tmp_path / "queue") as queue:
        yield logs, queue


def asking(stack: Stack, key: str) -> httpx.Client:
    return httpx.Client(base_url=stack.url, headers={"authorization": f"Bearer {key}"}, trust_env=False, timeout=60)


def command(stack: Stack, directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    asked = [sys.executable, "-m", "shared.cli.main", *words]
    environment = stack.environment
    return subprocess.run(
        asked, cwd=directory, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def stop(stack: Stack, name: str) -> None:
    stack.kill(name, signal.SIGTERM)
    stack.process(name).wait(60)


def used(http: httpx.Client) -> int:
    return sum(row["requests"] for row in http.get("/v1/usage").json()["data"])


@pytest.mark.timeout(300)  # it starts a whole system twice, and the command looks for ten seconds
def test_what_was_accepted_ends_after_the_move_and_is_asked_once(
    servers: tuple[EmbeddedValkey, EmbeddedValkey], upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    logs, queue = servers
    release = Pause()
    held = upstream.script("moving-held", [*words(3), release, *ending()])
    upstream.script("moving-quick", [*words(5), *ending()])
    said = {"messages": [{"role": "user", "content": "hi"}]}
    quick = {"model": "scripted/moving-quick", **said, "session_id": "s"}
    once = {"idempotency-key": "once"}
    with Stack(logs.url, upstream.base_url, tmp_path, **SETTINGS) as stack:
        with asking(stack, ADMIN) as admin:
            made = admin.post("/v1/keys", json={"tenant": "bob", "name": "kept"})
            assert made.status_code < 300, made.text
        with asking(stack, made.json()["key"]) as bob, asking(stack, "a-key-of-anns-own") as ann:
            first = ann.post("/v1/chat/completions", json=quick, headers=once)
            assert first.status_code == 200, first.text
            gone = bob.post("/v1/chat/completions", json=quick).headers["x-stream-id"]
            wait_until(lambda: used(ann) == 1 and used(bob) == 1, 60, "all is settled")
            asked = [
                ann.post("/v1/chat/completions", json={"model": "scripted/moving-held", **said, "background": True})
                for _ in range(MANY)
            ]
            ids = [one.json()["id"] for one in asked]
            wait_until(lambda: len(held.calls) == PLACES, 60, "every place is taken")
        told = command(stack, tmp_path, "move-queue")
        assert (told.returncode, "REDIS_URL, where it all is, is needed" in told.stderr) == (2, True), told.stderr
        stack.environment["STREAMSPOOL_QUEUE_URL"] = queue.url
        told = command(stack, tmp_path, "move-queue")
        assert (told.returncode, "Stop all of them" in told.stderr) == (2, True), told.stderr
        stop(stack, "api")
        stack.kill("worker", signal.SIGTERM)
        wait_until(lambda: '"draining"' in stack.log("worker"), what="it begins nothing more")
        release.go()  # what runs ends while it drains; the rest waits
        stack.process("worker").wait(60)
        assert len(held.calls) < MANY
        with open_store(logs.url) as source:
            wait_until(lambda: not source.exists("streamspool:reaping"), what="nobody has the reaper's turn any more")
        told = command(stack, tmp_path, "move-queue")
        assert told.returncode == 0, told.stderr
        assert "Start with REDIS_URL and STREAMSPOOL_QUEUE_URL" in told.stdout
        for name in ("worker", "api"):
            stack.start(name)
        stack.wait_ready()
        with asking(stack, made.json()["key"]) as bob, asking(stack, "a-key-of-anns-own") as ann:
            assert (
                ann.post("/v1/chat/completions", json=quick, headers=once).headers["x-stream-id"]
                == (first.headers["x-stream-id"])
            )
            assert used(bob) == 1
            for one in ids:
                wait_until(lambda one=one: ann.get(f"/v1/chat/completions/{one}").json().get("choices"), 60, "it ends")
                found = ann.get(f"/v1/chat/completions/{one}").json()["choices"][0]
                assert (found["message"]["content"], found["finish_reason"]) == (whole(3), "stop")
            assert len(held.calls) == MANY
            wait_until(lambda: used(ann) == 1 + MANY, 60, "each is counted once")
            assert ann.get("/v1/sessions/s").json()["turns"] == 1
            assert ann.post("/v1/chat/completions", json=quick).status_code == 200
            assert ann.get("/v1/sessions/s").json()["turns"] == 2
            assert bob.delete(f"/v1/streams/{gone}").status_code < 300
            assert used(bob) == 1, "what was settled before was settled once more"
    with open_store(logs.url) as source, open_store(queue.url) as target:
        assert source.get("streamspool{control}:cells") == b"1 apart"
        assert [name for name in target.keys("*") if not name.startswith(b"streamspool{control}:")] == []
