"""Workers that are killed, stopped, drained or never rung for: real processes, a real Valkey, a real provider."""

from __future__ import annotations

import json
import pickle
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from shared import keys
from shared.embedded import EmbeddedValkey
from tests.support.stack import Stack, wait_until
from tests.support.upstream import Pause, ScriptedUpstream, ending, words

QUICK = {"STREAMSPOOL_LEASE_S": "1", "STREAMSPOOL_DRAIN_S": "0.5", "STREAMSPOOL_HOLD_HEADERS_S": "0.2"}


@pytest.fixture
def two_workers(valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path) -> Iterator[Stack]:
    url = valkey.url.replace("db=0", "db=3")
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        with Stack(url, upstream.base_url, tmp_path, **QUICK) as stack:
            stack.start("worker-2")
            wait_until(lambda: client.scard(keys.WORKERS) == 2, what="two workers")
            yield stack
        client.flushdb()


@pytest.fixture
def client(two_workers: Stack) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(two_workers.redis_url) as connected:
        yield connected


def submit(stack: Stack, model: str) -> str:
    """Starts a generation and leaves at once."""
    body = {"model": f"scripted/{model}", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    with httpx.stream("POST", f"{stack.url}/v1/chat/completions", json=body) as response:
        return response.headers["x-stream-id"]


def state(stack: Stack, generation_id: str) -> dict[str, Any]:
    headers = {"accept": "application/json"}
    found: dict[str, Any] = httpx.get(f"{stack.url}/v1/streams/{generation_id}", headers=headers).json()
    return found


def ended(stack: Stack, generation_id: str) -> dict[str, Any]:
    return wait_until(
        lambda: (found := state(stack, generation_id))["status"] not in ("queued", "in_progress") and found
    )


def owner(stack: Stack, client: redis.Redis, generation_id: str, attempt: int = 1) -> str:
    """Which process runs it: the log says the worker's id, which holds its pid."""

    def claimed() -> str | None:
        entries = client.xrange(keys.log(generation_id), f"{attempt}-0", f"{attempt}-0")
        return json.loads(entries[0][1][b"a"])["worker"] if entries else None

    worker_id = wait_until(claimed)
    return next(name for name in ("worker", "worker-2") if f"-{stack.process(name).pid}-" in worker_id)


def test_a_worker_killed_before_the_first_chunk_is_replaced_unseen(
    two_workers: Stack, client: redis.Redis, upstream: ScriptedUpstream
) -> None:
    pause = Pause()
    script = upstream.script("before", [pause, *words(3), *ending()])
    with running(two_workers, "before") as (generation_id, lines):
        two_workers.kill(owner(two_workers, client, generation_id))
        pause.go()
        body = "".join(lines)
    assert [f"w{i} " in body for i in range(3)] == [True] * 3
    assert body.count('"w1 "') == 1
    assert "error" not in body
    found = state(two_workers, generation_id)
    assert (found["status"], found["attempts"]) == ("completed", 2)
    wait_until(lambda: script.live == 0)


def test_a_worker_killed_in_the_middle_is_an_explicit_error(
    two_workers: Stack, client: redis.Redis, upstream: ScriptedUpstream
) -> None:
    script = upstream.script("middle", [*words(3), Pause()])
    with running(two_workers, "middle") as (generation_id, lines):
        body = next(lines)
        while '"w2 "' not in body:
            body += next(lines)
        two_workers.kill(owner(two_workers, client, generation_id))
        body += "".join(lines)
    assert '"generation_interrupted"' in body
    assert body.endswith("data: [DONE]\n\n")
    assert 'finish_reason":"stop' not in body.replace(" ", "")
    found = state(two_workers, generation_id)
    assert (found["status"], found["error"]["code"]) == ("failed", "generation_interrupted")
    completion = httpx.get(f"{two_workers.url}/v1/chat/completions/{generation_id}").json()
    assert completion["choices"][0]["message"]["content"] == "w0 w1 w2 "
    assert len(script.calls) == 1


def test_a_stopped_worker_that_wakes_up_writes_nothing(
    two_workers: Stack, client: redis.Redis, upstream: ScriptedUpstream
) -> None:
    pause = Pause()
    script = upstream.script("zombie", [*words(2), pause, *words(50), *ending()])
    generation_id = submit(two_workers, "zombie")
    wait_until(lambda: client.xlen(keys.log(generation_id)) >= 6)
    zombie = owner(two_workers, client, generation_id)
    two_workers.kill(zombie, signal.SIGSTOP)
    found = ended(two_workers, generation_id)
    assert found["error"]["code"] == "generation_interrupted"
    before = client.xlen(keys.log(generation_id))
    pause.go()
    two_workers.kill(zombie, signal.SIGCONT)
    wait_until(lambda: script.live == 0, what="the zombie hangs up")
    assert client.xlen(keys.log(generation_id)) == before
    assert two_workers.process(zombie).poll() is None


def test_a_drained_worker_hands_over_at_once(
    two_workers: Stack, client: redis.Redis, upstream: ScriptedUpstream
) -> None:
    pause = Pause()
    script = upstream.script("drained", [pause, *words(2), *ending()])
    generation_id = submit(two_workers, "drained")
    name = owner(two_workers, client, generation_id)
    two_workers.kill(name, signal.SIGTERM)
    assert two_workers.process(name).wait(10) == 0
    assert owner(two_workers, client, generation_id, attempt=2) != name
    pause.go()
    assert ended(two_workers, generation_id)["status"] == "completed"
    assert len(script.calls) == 2


def test_a_drained_worker_finishes_what_it_can(
    two_workers: Stack, client: redis.Redis, upstream: ScriptedUpstream
) -> None:
    script = upstream.script("finishing", [*words(2), 0.2, *ending()])
    generation_id = submit(two_workers, "finishing")
    name = owner(two_workers, client, generation_id)
    two_workers.kill(name, signal.SIGTERM)
    assert two_workers.process(name).wait(10) == 0
    found = ended(two_workers, generation_id)
    assert (found["status"], found["attempts"]) == ("completed", 1)
    assert len(script.calls) == 1


def test_a_lost_bell_is_rung_again(two_workers: Stack, client: redis.Redis, upstream: ScriptedUpstream) -> None:
    """The API died between the log and the bell."""
    upstream.script("unheard", [*words(1), *ending()])
    generation_id = f"chatcmpl-{uuid.uuid4().hex}"
    header = {
        "id": generation_id,
        "owner": "local",
        "model": "scripted/unheard",
        "created_at_ms": 1,
        "n": 1,
        "include_usage": False,
    }
    body = {"model": "scripted/unheard", "messages": [{"role": "user", "content": "x"}]}
    key = keys.log(generation_id)
    client.xadd(key, {"r": json.dumps(header)}, id="0-1")
    client.xadd(key, {"b": json.dumps(body)}, id="0-2")
    client.expire(key, 600)
    client.zadd(keys.OPEN, {generation_id: 1})
    assert ended(two_workers, generation_id)["status"] == "completed"
    assert client.zscore(keys.OPEN, generation_id) is None


def test_a_pickled_job_is_never_unpickled(two_workers: Stack, client: redis.Redis, tmp_path: Path) -> None:
    proof = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (proof,)

    client.set("arq:job:bomb", pickle.dumps({"f": Bomb(), "a": (), "k": {}, "t": None, "et": 1}), ex=60)
    client.zadd(keys.QUEUE, {"bomb": 1})
    client.publish(keys.DOORBELL, "bomb")
    wait_until(lambda: client.zscore(keys.QUEUE, "bomb") is None, what="the job is thrown away")
    assert not proof.exists()
    assert two_workers.process("worker").poll() is None


def test_arq_keeps_nothing_of_a_finished_generation(
    two_workers: Stack, client: redis.Redis, upstream: ScriptedUpstream
) -> None:
    upstream.script("tidy", [*words(1), *ending()])
    generation_id = submit(two_workers, "tidy")
    ended(two_workers, generation_id)
    wait_until(lambda: not client.keys("arq:*"), what="arq's keys are gone")


class running:
    """A watched generation: its id and an iterator over the text of its frames."""

    def __init__(self, stack: Stack, model: str) -> None:
        body = {"model": f"scripted/{model}", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        self._context = httpx.stream("POST", f"{stack.url}/v1/chat/completions", json=body, timeout=30)

    def __enter__(self) -> tuple[str, Iterator[str]]:
        response = self._context.__enter__()
        return response.headers["x-stream-id"], response.iter_text()

    def __exit__(self, *details: Any) -> None:
        self._context.__exit__(*details)
