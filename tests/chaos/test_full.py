"""A server that is full, of either kind and of memory or disk: what runs ends, what is there can be removed, and probes and
clients are told what it is. Nobody makes room for us."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.harness.processes import Stack, free_port, wait_until
from tests.harness.upstream import Pause, Script, ScriptedUpstream, chunk, ending, whole, words
from tests.support import batch
from tests.support.names import jobs_left, keys
from tests.support.server import Server
from tests.support.wire import end_error

FULL_S = 5.0
"""How long our workers wait for room; as shipped it is a minute."""
_FAULT = """
import asyncio, pathlib
import shared.log.writer
from shared.generations.outcome import Outcomes

shared.log.writer.FULL_S = {full_s}
seal = Outcomes.seal

async def held(*arguments, **named):
    while pathlib.Path({held!r}).exists():
        await asyncio.sleep(0.01)
    return await seal(*arguments, **named)

Outcomes.seal = held
"""
QUICK = {
    "STREAMSPOOL_LEASE_S": "2",
    "STREAMSPOOL_HOLD_HEADERS_S": "0.2",
    "STREAMSPOOL_KEEPALIVE_S": "0.5",
    "STREAMSPOOL_DISCONNECT_GRACE_S": "2",
    "STREAMSPOOL_DRAIN_S": "0.5",
    "STREAMSPOOL_CONFIRM": "none",  # a busy disk confirms too late, and what is asked for here is refused
}


class Filled(Stack):
    """An API and a worker on a server of their own, which can be filled up and emptied."""

    def __init__(self, server: Server, upstream: ScriptedUpstream, directory: Path) -> None:
        self._metrics = free_port()
        self._held = directory / "held"
        settings = {**QUICK, "STREAMSPOOL_WORKER_METRICS_PORT": str(self._metrics)}
        fault = _FAULT.format(full_s=FULL_S, held=str(self._held))
        super().__init__(server.url, upstream.base_url, directory, fault=fault, **settings)
        self.client, self.upstream = server.client(), upstream
        self.http = httpx.Client(base_url=self.url, timeout=100, trust_env=False)
        self._count = 0

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.client.config_set("maxmemory", 0)
        super().__exit__()
        self.client.close()

    @contextmanager
    def full(self) -> Iterator[None]:
        self.client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            self.client.config_set("maxmemory", 0)

    @contextmanager
    def ends_held(self) -> Iterator[Callable[[], None]]:
        """Answers are written to their last word, and nobody seals one before what this gives is called."""
        self._held.touch()
        try:
            yield lambda: self._held.unlink(missing_ok=True)
        finally:
            self._held.unlink(missing_ok=True)

    @contextmanager
    def disk_full(self) -> Iterator[None]:
        """The server cannot save, and takes no write until it can."""
        blocked = Path(self.client.config_get("dir")["dir"], "dump.rdb")
        blocked.mkdir()
        self.client.config_set("save", "3600 1")
        wait_until(lambda: self._save() == "err", what="saving fails")
        try:
            yield
        finally:
            blocked.rmdir()
            wait_until(lambda: self._save() == "ok", what="saving works")
            self.client.config_set("save", "")

    @contextmanager
    def refused(self) -> Iterator[None]:
        """Our user may write no logs any more."""
        self.client.execute_command("ACL", "SETUSER", "default", "-xadd")
        try:
            yield
        finally:
            self.client.execute_command("ACL", "SETUSER", "default", "+xadd")

    def _save(self) -> str:
        """Begins to, unless it does just now; how it went last."""
        with suppress(redis.ResponseError):
            self.client.bgsave()
        return str(self.client.info("persistence")["rdb_last_bgsave_status"])

    def scripted(self, chunks: int, barrier: Pause, *, ends: bool = False) -> Script:
        """A model that says so many words, waits for the barrier, says some more, and ends, or has no end."""
        self._count += 1
        more = [chunk({"content": f"more{i} "}) for i in range(20)]
        last = ending() if ends else [Pause()]
        return self.upstream.script(f"full-{self._count}", [*words(chunks), barrier, *more, *last])

    @property
    def model(self) -> str:
        """Of the last script."""
        return f"scripted/full-{self._count}"

    def post(self, model: str, **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def background(self, model: str, **fields: Any) -> str:
        response = self.post(model, background=True, **fields)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def state(self, generation_id: str) -> dict[str, Any]:
        response = self.http.get(f"/v1/streams/{generation_id}", headers={"accept": "application/json"})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def open(self, count: int, *models: str) -> list[str]:
        """So many generations of these models that run."""

        def found() -> list[str]:
            ids = [raw.decode() for raw in self.client.zrange(keys.open(0), 0, -1)]
            heads = {one: self.client.xrange(keys.log(one), "0-1", "0-1") for one in ids}
            of_these = [one for one, head in heads.items() if head and json.loads(head[0][1][b"r"])["model"] in models]
            return of_these if len(of_these) == count else []

        return list(wait_until(found, what=f"{count} run"))

    def until_said(self, generation_id: str, chunks: int) -> None:
        """Its attempt may be of any number: it skips some where the server had become another one."""
        key, before = keys.log(generation_id), 3  # the header, the body and the attempt
        wait_until(lambda: self.client.xlen(key) >= before + chunks, what=f"{chunks} chunks")

    def metric(self, part: str) -> float:
        """How often a part of the worker could not use Redis."""
        text = httpx.get(f"http://127.0.0.1:{self._metrics}/metrics", trust_env=False, timeout=60).text
        found = re.search(rf'^streamspool_redis_errors_total{{part="{part}"}} (\S+)', text, re.M)
        return float(found[1]) if found else 0.0

    def checks(self, query: str = "") -> tuple[int, dict[str, str]]:
        response = self.http.get(f"/readyz{query}")
        return response.status_code, response.json()["checks"]


@pytest.fixture(scope="module", params=["valkey", "redis"])
def stack(
    request: pytest.FixtureRequest, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Filled]:
    directory = tmp_path_factory.mktemp("full")
    options = ("--appendonly", "yes", "--enable-debug-command", "yes")
    with (
        Server(directory / "server", *options, kind=request.param) as server,
        Filled(server, upstream, directory) as running,
    ):
        yield running


@pytest.fixture
def filled(stack: Filled) -> Iterator[Filled]:
    pids = [stack.process(name).pid for name in ("api", "worker")]
    yield stack
    stack.client.config_set("maxmemory", 0)
    assert [stack.process(name).pid for name in ("api", "worker") if stack.process(name).poll() is None] == pids
    wait_until(lambda: stack.checks()[0] == 200, what="ready again")
    assert stack.post("fake/echo").status_code == 200


# ---- what runs


def test_f52_a_running_answer_waits_for_room_and_then_ends_with_what_it_has(filled: Filled) -> None:
    """Whole answers, whose clients have not got a byte yet: the text is nowhere but in the worker and in the log."""
    barrier = Pause()
    scripts = [(filled.scripted(5, barrier), filled.model) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(filled.post, model) for _, model in scripts]
        ids = filled.open(8, *(model for _, model in scripts))
        for generation_id in ids:
            filled.until_said(generation_id, 5)
        with filled.full():
            barrier.go()
            responses = [future.result(100) for future in waiting]
            assert {response.status_code for response in responses} == {507}
            errors = [response.json()["error"] for response in responses]
            assert {error["code"] for error in errors} == {"storage_full"}
            assert all("is full" in error["message"] and "kept" in error["message"] for error in errors)
            assert {response.headers["x-should-retry"] for response in responses} == {"false"}
            wait_until(lambda: not any(script.live for script, _ in scripts), what="the provider is hung up on")
            for generation_id in ids:
                found = filled.state(generation_id)
                assert (found["status"], found["error"]["code"]) == ("failed", "storage_full")
                kept = filled.http.get(f"/v1/chat/completions/{generation_id}").json()
                assert kept["choices"][0]["message"]["content"].startswith(whole(5))
            assert not {raw.decode() for raw in filled.client.zrange(keys.open(0), 0, -1)} & set(ids)
    assert all(len(script.calls) == 1 for script, _ in scripts)


def test_f52_a_viewer_is_told_how_it_ends(filled: Filled) -> None:
    barrier = Pause()
    filled.scripted(5, barrier)
    body = {"model": filled.model, "stream": True, "messages": [{"role": "user", "content": "x"}]}
    with filled.http.stream("POST", "/v1/chat/completions", json=body) as response:
        filled.until_said(response.headers["x-stream-id"], 5)
        with filled.full():
            barrier.go()
            seen = response.read()
    assert seen.endswith(b"data: [DONE]\n\n")
    assert end_error(seen)["code"] == "storage_full"
    assert b"w4 " in seen


def test_f52_room_that_is_made_in_time_is_used(filled: Filled) -> None:
    barrier = Pause()
    filled.scripted(5, barrier, ends=True)
    generation_id = filled.background(filled.model)
    filled.until_said(generation_id, 5)
    before = filled.metric("append")
    with filled.full():
        barrier.go()
        wait_until(lambda: filled.metric("append") > before, what="it waits")
    wait_until(lambda: filled.state(generation_id)["status"] == "completed", what="it is whole")


def test_f52_a_full_disk_bounds_the_wait_as_well_and_is_told_for_what_it_is(filled: Filled) -> None:
    """Not even an end can be written: the provider is hung up on in time, and the end follows as soon as it can."""
    barrier = Pause()
    script = filled.scripted(5, barrier)
    generation_id = filled.background(filled.model)
    filled.until_said(generation_id, 5)
    with filled.disk_full():
        barrier.go()
        wait_until(lambda: not script.live, what="the provider is hung up on")
        assert filled.checks() == (503, filled.checks()[1])
        checks = filled.checks("?for=serve")
        assert checks[0] == 200
        assert (checks[1]["accept"], checks[1]["serve"]) == ("storage_full", "ok")
        refused = filled.post("fake/echo")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_full")
        assert "disk" in refused.json()["error"]["message"]
        assert filled.state(generation_id)["status"] == "in_progress"
        wait_until(lambda: filled.post("fake/echo") and "MISCONF" in filled.log("api"), what="the log has the cause")
    found = wait_until(lambda: (s := filled.state(generation_id))["status"] != "in_progress" and s, what="an end")
    assert (found["status"], found["error"]["code"]) == ("failed", "storage_full")
    assert "disk" in found["error"]["message"]
    assert len(script.calls) == 1


def test_f104_a_right_that_is_taken_away_is_told_for_what_it_is(filled: Filled) -> None:
    """No outage: nobody is told to wait for one, and the provider is hung up on in time. The end follows with the right."""
    barrier = Pause()
    script = filled.scripted(5, barrier)
    generation_id = filled.background(filled.model)
    filled.until_said(generation_id, 5)
    with filled.refused():
        barrier.go()
        wait_until(lambda: not script.live, what="the provider is hung up on")
        refusal = filled.post("fake/echo")
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "storage_refused")
        assert "doctor" in refusal.json()["error"]["message"]
        assert filled.state(generation_id)["status"] == "in_progress"
        wait_until(lambda: filled.metric("seal") > 0, what="its end is tried")
        assert "NoPermissionError" in filled.log("api")
        assert "NoPermissionError" in filled.log("worker")
    found = wait_until(lambda: (s := filled.state(generation_id))["status"] != "in_progress" and s, what="an end")
    assert (found["status"], found["error"]["code"]) == ("failed", "storage_refused")
    kept = filled.http.get(f"/v1/chat/completions/{generation_id}").json()
    assert kept["choices"][0]["message"]["content"].startswith(whole(5))
    assert len(script.calls) == 1


def test_f104_a_right_that_is_given_back_in_time_costs_nothing(filled: Filled) -> None:
    barrier = Pause()
    script = filled.scripted(5, barrier, ends=True)
    generation_id = filled.background(filled.model)
    filled.until_said(generation_id, 5)
    before = filled.metric("append")
    with filled.refused():
        barrier.go()
        wait_until(lambda: filled.metric("append") > before, what="it waits")
    wait_until(lambda: filled.state(generation_id)["status"] == "completed", what="it is whole")
    assert len(script.calls) == 1


def test_f52_who_watches_does_not_seem_to_leave_because_memory_is_full(filled: Filled) -> None:
    barrier = Pause()
    script = filled.scripted(5, barrier, ends=True)
    body = {"model": filled.model, "stream": True, "messages": [{"role": "user", "content": "x"}]}
    seen: list[bytes] = []

    def watch() -> None:
        with filled.http.stream("POST", "/v1/chat/completions", json={**body, "on_disconnect": "cancel"}) as response:
            seen.extend(response.iter_raw())

    watching = threading.Thread(target=watch)
    watching.start()
    wait_until(lambda: b"w4 " in b"".join(seen), what="it speaks")
    with filled.full():
        before = b"".join(seen).count(b": ka")
        wait_until(lambda: b"".join(seen).count(b": ka") > before + 12, what="longer than the grace time, twice")
        assert script.live
    barrier.go()
    watching.join(100)
    assert b"more19 " in b"".join(seen)
    assert b'"error"' not in b"".join(seen)


# ---- what is there


def test_f53_a_full_server_can_be_emptied(filled: Filled) -> None:
    """Everything that a client may end or delete, at a server that takes nothing else."""
    barrier = Pause()
    done = filled.background("fake/echo", store=True, session_id="chat", metadata={"a": "b"})
    wait_until(lambda: filled.state(done)["status"] == "completed")
    running: list[str] = []
    told: list[Any] = []
    for fields in ({}, {"session_id": "chat"}, {"store": True}):
        filled.scripted(5, barrier)
        running.append(filled.background(filled.model, **fields))
        filled.until_said(running[-1], 5)
    file = batch.upload(filled.http, batch.jsonl([batch.line("a")]))
    with filled.full():
        response = filled.http.post(f"/v1/streams/{running[0]}/cancel")
        told.append((response.status_code, response.json()["status"]))
        for path in (
            f"/v1/streams/{running[0]}",
            "/v1/sessions/chat",
            f"/v1/streams/{running[1]}",
            f"/v1/chat/completions/{running[2]}",
            f"/v1/chat/completions/{done}",
            f"/v1/files/{file}",
        ):
            told.append((path.split("/")[2], filled.http.delete(path).status_code))
        assert told == [
            (200, "cancelled"),
            ("streams", 200),
            ("sessions", 200),
            ("streams", 200),
            ("chat", 200),
            ("chat", 200),
            ("files", 200),
        ]
        left = {key.decode() for key in filled.client.keys("streamspool:*")}
        ours = {keys.log(generation_id) for generation_id in (done, *running)} | {keys.file(file)}
        assert not left & (ours | set(keys.session("local", "chat"))), left
        wait_until(lambda: not jobs_left(filled.client), what="the worker lets go of its jobs")


def test_f53_a_batch_can_be_cancelled_and_ends(filled: Filled) -> None:
    barrier = Pause()
    scripts = [(filled.scripted(3, barrier), filled.model)]
    lines = [batch.line(f"n{i}", scripts[0][1]) for i in range(6)] + [batch.line(f"e{i}") for i in range(6)]
    batch_id = batch.start(filled.http, batch.jsonl(lines))
    wait_until(lambda: batch.state(filled.http, batch_id)["request_counts"]["completed"] == 6, what="six are done")
    wait_until(lambda: scripts[0][0].live == 6, what="six are asked")
    with filled.full():
        response = filled.http.post(f"/v1/batches/{batch_id}/cancel")
        assert (response.status_code, response.json()["status"]) == (200, "cancelling"), response.text
        found = batch.ended(filled.http, batch_id)
        assert found["status"] == "cancelled"
        assert len(batch.results(filled.http, found["output_file_id"])) == 6
        assert len(batch.results(filled.http, found["error_file_id"])) == 6
        wait_until(lambda: not scripts[0][0].live, what="the provider is hung up on")


def test_f53_a_batch_that_was_answered_is_written_down(filled: Filled) -> None:
    """Its last answers come in while memory is full: no line is asked once more, and the batch ends."""
    script = filled.upstream.script("last-word", [*words(3), *ending()])
    lines = [batch.line(f"n{i}", "scripted/last-word") for i in range(6)]
    with filled.ends_held() as let_them_end:
        batch_id = batch.start(filled.http, batch.jsonl(lines))
        for generation_id in filled.open(6, "scripted/last-word"):
            filled.until_said(generation_id, 6)
        with filled.full():
            let_them_end()
            found = batch.ended(filled.http, batch_id)
            assert (found["status"], found["request_counts"]["completed"]) == ("completed", 6)
            assert len(batch.results(filled.http, found["output_file_id"])) == 6
    assert len(script.calls) == 6


# ---- what is told


def test_f54_probes_tell_what_can_be_done(filled: Filled) -> None:
    well = {"accept": "ok", "serve": "ok", "redis": "ok", "workers": "1 alive"}
    assert filled.checks() == (200, well)
    with filled.full():
        full = {**well, "accept": "storage_full", "redis": "storage_full"}
        assert filled.checks() == (503, full)
        assert filled.checks("?for=both") == (503, full)
        assert filled.checks("?for=accept") == (503, full)
        assert filled.checks("?for=serve") == (200, full)
    assert filled.checks() == (200, well)
    filled.client.replicaof("127.0.0.1", 1)
    try:
        refused = {**well, "accept": "storage_unavailable", "redis": "storage_unavailable"}
        assert filled.checks() == (503, refused)
        assert filled.checks("?for=serve") == (200, refused)
    finally:
        filled.client.replicaof("NO", "ONE")
    response = filled.http.get("/readyz?for=everything")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "for")


def test_f54_the_log_has_the_cause(filled: Filled) -> None:
    def told() -> bool:
        assert filled.post("fake/echo").json()["error"]["code"] == "storage_full"
        lines = [line for line in filled.log("api").splitlines() if '"redis failed"' in line and '"broker"' in line]
        return any("maxmemory" in line for line in lines)

    with filled.full():
        wait_until(told, what="it is in the log, which tells it once in a while")
