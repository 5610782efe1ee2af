"""A batch while everything around it is killed: each line is in the output or in the errors, once, and the counts are right."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.processes import wait_until
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.support.batch import ended, jsonl, line, results, start, state
from tests.support.ground import WORKERS, Ground
from tests.support.names import keys
from tests.support.s3 import S3
from tests.support.stages import STAGES
from worker.batches.lines import line_id

LINES, MORE = 1000, 600
MODEL = "fake/lorem?tokens=10&rate=20"
EMBEDDINGS = "/v1/embeddings"
AT_ONCE = 50
"""Lines of a batch that run in a worker, as `Ground` has it."""


@pytest.fixture
def ground(tmp_path: Path, upstream: ScriptedUpstream) -> Iterator[Ground]:
    with Ground(tmp_path, upstream.base_url) as running:
        yield running


def check(ground: Ground, batch_id: str, lines: int) -> None:
    wait_until(lambda: ground.completed(batch_id) >= 0)
    batch = ended(ground.http, batch_id, 200)
    assert batch["status"] == "completed"
    output, errors = results(ground.http, batch["output_file_id"]), results(ground.http, batch["error_file_id"])
    assert output.keys() | errors.keys() == {f"line-{n}" for n in range(lines)}
    assert output.keys() & errors.keys() == set()
    assert not errors, next(iter(errors.values()))
    assert batch["request_counts"] == {"total": lines, "completed": lines, "failed": 0}
    assert batch["usage"]["total_tokens"] == sum(
        one["response"]["body"]["usage"]["total_tokens"] for one in output.values()
    )

    def row() -> dict[str, Any]:
        (found,) = ground.http.get("/v1/usage").json()["data"]
        return dict(found)

    wait_until(lambda: row()["requests"] >= lines, what="all are settled, be it by a reaper")
    assert (row()["requests"], row()["total_tokens"]) == (lines, batch["usage"]["total_tokens"])
    wait_until(lambda: not ground.logs(), 90, "no log is left")


@pytest.mark.timeout(300)
def test_b1_a_batch_outlives_whatever_runs_it(ground: Ground) -> None:
    batch_id = start(ground.http, jsonl(line(f"line-{n}", MODEL) for n in range(LINES)))
    ground.until(batch_id, 50)
    ground.kill(ground.runner(batch_id) or "worker")
    ground.until(batch_id, 150)
    ground.kill("api")
    ground.until(batch_id, 250)
    for name in ("worker", "worker-2"):
        ground.kill(name)
    ground.until(batch_id, 400)
    ground.kill_valkey()
    ground.until(batch_id, 550)
    ground.kill("api")
    ground.kill(ground.runner(batch_id) or "worker-2")
    ground.until(batch_id, 700)
    ground.kill("worker")
    check(ground, batch_id, LINES)


@pytest.mark.timeout(400)
def test_b13_each_line_of_embeddings_is_there_once_whatever_worker_is_killed(
    ground: Ground, upstream: ScriptedUpstream
) -> None:
    """What was asked again were lines that ran in the killed workers."""
    vector = {"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}
    value = {"object": "list", "data": [vector], "model": "up", "usage": {"prompt_tokens": 2, "total_tokens": 2}}
    script = upstream.script("embeds", [json.dumps(value).encode()], headers={"content-type": "application/json"})
    bodies = [{"model": "scripted/embeds", "input": f"text {number}"} for number in range(5 * LINES)]
    lines = [
        {"custom_id": f"line-{number}", "method": "POST", "url": EMBEDDINGS, "body": body}
        for number, body in enumerate(bodies)
    ]
    batch_id = start(ground.http, jsonl(lines), endpoint=EMBEDDINGS)
    for done in (LINES // 2, 2 * LINES, 4 * LINES):
        ground.until(batch_id, done)
        ground.kill(ground.runner(batch_id) or "worker")
    check(ground, batch_id, len(lines))
    asked = Counter(call["input"] for call in script.calls)
    assert asked.keys() == {body["input"] for body in bodies}
    assert sum(asked.values()) - len(lines) <= 3 * AT_ONCE


@pytest.mark.timeout(300)
def test_b2_a_stopped_worker_that_wakes_up_writes_nothing_twice(ground: Ground) -> None:
    batch_id = start(ground.http, jsonl(line(f"line-{n}", MODEL) for n in range(MORE)))
    ground.until(batch_id, 60)
    first = ground.runner(batch_id)
    ground.stack.kill(first, signal.SIGSTOP)
    wait_until(lambda: ground.runner(batch_id) not in ("", first), what="the other worker has it")
    ground.until(batch_id, 150)
    ground.stack.kill(first, signal.SIGCONT)
    check(ground, batch_id, MORE)


@pytest.mark.timeout(300)
def test_b3_a_worker_that_is_asked_to_stop_hands_the_batch_over(ground: Ground) -> None:
    batch_id = start(ground.http, jsonl(line(f"line-{n}", MODEL) for n in range(MORE)))
    ground.until(batch_id, 60)
    first = ground.runner(batch_id)
    ground.stack.kill(first, signal.SIGTERM)
    assert ground.stack.process(first).wait(60) == 0
    check(ground, batch_id, MORE)


@pytest.mark.timeout(300)
def test_b4_finished_lines_are_kept_by_a_cancel_after_a_kill(ground: Ground, upstream: ScriptedUpstream) -> None:
    """The worker dies right after lines were answered, before it could write that down."""
    pause = Pause()
    script = upstream.script("held", [*words(1), pause, *ending()])
    lines = [line(f"line-{n}") for n in range(20)] + [line(f"wrong-{n}", "fake/echo?error=400") for n in range(5)]
    lines += [line(f"held-{n}", "scripted/held") for n in range(100)]
    batch_id = start(ground.http, jsonl(lines))
    wait_until(lambda: script.live == 50, what="every place is taken, so the others are answered")
    ground.kill(ground.runner(batch_id))
    ground.http.post(f"/v1/batches/{batch_id}/cancel")
    batch = ended(ground.http, batch_id, 60)
    assert (batch["status"], batch["request_counts"]) == ("cancelled", {"total": 125, "completed": 20, "failed": 105})
    output, errors = results(ground.http, batch["output_file_id"]), results(ground.http, batch["error_file_id"])
    assert output.keys() == {f"line-{n}" for n in range(20)}
    assert errors.keys() == {one["custom_id"] for one in lines[20:]}
    wrong = [one["response"] for one in errors.values() if one["custom_id"].startswith("wrong")]
    assert [response["status_code"] for response in wrong] == [400] * 5, "they were answered, too"
    wait_until(lambda: script.live == 0, what="the provider is hung up on")


@pytest.mark.timeout(300)
def test_b5_lines_that_were_asked_again_are_ended_by_a_cancel_after_a_kill(
    ground: Ground, upstream: ScriptedUpstream
) -> None:
    """The worker dies before it wrote down that they were refused and asked again."""
    headers = {"content-type": "application/json", "retry-after": "1"}
    upstream.script("again", status=429, headers=headers)
    batch_id = start(ground.http, jsonl(line(f"line-{n}", "scripted/again") for n in range(4)))
    again = [keys.log(line_id(batch_id, number, 1)) for number in range(1, 5)]
    wait_until(lambda: ground.redis.exists(*again), what="some are asked again")
    script = upstream.script("again", [*words(1), Pause(), *ending()])
    wait_until(lambda: script.live, what="they are answered")
    ground.kill(ground.runner(batch_id))
    ground.http.post(f"/v1/batches/{batch_id}/cancel")
    batch = ended(ground.http, batch_id, 60)
    assert batch["request_counts"] == {"total": 4, "completed": 0, "failed": 4}
    wait_until(lambda: script.live == 0, what="the provider is hung up on")
    wait_until(lambda: not ground.logs(), 90, "no log is left")


@pytest.mark.timeout(300)
def test_b6_a_line_is_asked_once_more_only_where_its_worker_was_lost(
    ground: Ground, upstream: ScriptedUpstream
) -> None:
    """Whoever takes a batch over finds the lines that are running or answered, and begins none of them again."""
    pause = Pause()
    script = upstream.script("counted", [*words(1), pause, *ending()])
    batch_id = start(ground.http, jsonl(line(f"line-{n}", "scripted/counted", prompt=f"{n}") for n in range(40)))
    wait_until(lambda: script.live == 40)
    runner = ground.runner(batch_id)
    lost = [
        one["id"]
        for one in ground.http.get("/v1/streams", params={"limit": 100}).json()["data"]
        if one["batch_id"] == batch_id
    ]
    owners = Counter(
        json.loads(ground.redis.xrange(keys.log(one), "1-0", "1-0")[0][1][b"a"])["worker"].split("-")[-2]
        for one in lost
    )
    pid = str(ground.stack.process(runner).pid)
    ground.kill(runner)
    wait_until(lambda: len(script.calls) == 40 + owners[pid], what="the lost ones are asked again")
    pause.go()
    batch = ended(ground.http, batch_id)
    assert batch["request_counts"]["completed"] == 40
    assert len(script.calls) == 40 + owners[pid]


@pytest.fixture(scope="module")
def doomed(tmp_path_factory: pytest.TempPathFactory, upstream: ScriptedUpstream) -> Iterator[Ground]:
    """Its workers end at the stage that a test plans."""
    with Ground(tmp_path_factory.mktemp("doomed"), upstream.base_url) as running:
        running.doom()
        yield running


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("stage", STAGES)
def test_b8_a_batch_ends_wherever_its_worker_did(doomed: Ground, stage: str, number: signal.Signals) -> None:
    """Twenty lines are all handed out at once, so that the input has been read to its end ever after."""
    lines = 120 if stage == "handed out" else 20
    doomed.plan(stage, number)
    batch_id = start(doomed.http, jsonl(line(f"line-{n}", MODEL) for n in range(lines)))
    wait_until(doomed.carried_out, 60, f"a worker ended at: {stage}")
    statuses = wait_until(doomed.revive, 60, "it has ended")
    assert statuses == [0 if number == signal.SIGTERM else -number]
    batch = ended(doomed.http, batch_id, 90)
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": lines, "completed": lines, "failed": 0}
    assert results(doomed.http, batch["output_file_id"]).keys() == {f"line-{n}" for n in range(lines)}
    assert batch["error_file_id"] is None
    wait_until(lambda: doomed.redis.zscore(keys.batches_open, batch_id) is None, 60, "nobody looks after it any more")
    wait_until(lambda: not doomed.logs(), 90, "no log is left")


@pytest.mark.timeout(300)
def test_b9_a_provider_that_goes_and_comes_back_fails_no_line(ground: Ground, upstream: ScriptedUpstream) -> None:
    script = upstream.script("leaves", [*words(3), 0.4, *ending()])  # some are to be left, however late we look
    batch_id = start(ground.http, jsonl(line(f"line-{n}", "scripted/leaves") for n in range(300)))
    ground.until(batch_id, 100)
    upstream.leave()
    try:
        wait_until(lambda: "provider away" in "".join(map(ground.stack.log, WORKERS)), 60, "they leave it alone")
        ground.kill(ground.runner(batch_id) or "worker")
        quick = start(ground.http, jsonl(line(f"quick-{n}") for n in range(20)))
        assert ended(ground.http, quick)["request_counts"]["completed"] == 20, "others go on"
    finally:
        upstream.come_back()
    batch = ended(ground.http, batch_id, 180)
    assert batch["request_counts"] == {"total": 300, "completed": 300, "failed": 0}
    assert results(ground.http, batch["output_file_id"]).keys() == {f"line-{n}" for n in range(300)}
    assert len(script.calls) < 400
    wait_until(lambda: not ground.logs(), 90, "no log is left")


@pytest.mark.timeout(300)
def test_b10_a_cancel_does_not_wait_for_a_storage_that_hangs(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Its files come when the storage does."""
    upstream.script("stores", [*words(3), 0.2, *ending()])
    with (
        S3(tmp_path) as s3,
        Ground(tmp_path, upstream.base_url, STREAMSPOOL_FILES_URL=s3.url, **s3.environment) as ground,
    ):
        batch_id = start(ground.http, jsonl(line(f"line-{n}", "scripted/stores") for n in range(400)))
        ground.until(batch_id, 50)
        with s3.away():
            ground.http.post(f"/v1/batches/{batch_id}/cancel")
            batch = ended(ground.http, batch_id, 150)
            assert batch["status"] == "cancelled"
            wait_until(lambda: upstream.live == 0, what="the provider is hung up on")
        batch = wait_until(lambda: (found := state(ground.http, batch_id))["output_file_id"] and found, 90, "its files")
        counts, output = batch["request_counts"], results(ground.http, batch["output_file_id"])
        assert (batch["status"], batch["errors"] is None or "files_late" not in str(batch["errors"])) == (
            "cancelled",
            True,
        )
        assert counts["completed"] == len(output) >= 50
        assert counts["completed"] + counts["failed"] == 400


@pytest.mark.timeout(400)
@pytest.mark.parametrize("stage", ["handed out", "validated"])
def test_b12_a_batch_that_kills_whoever_has_it_is_given_up(doomed: Ground, stage: str) -> None:
    quick = start(doomed.http, jsonl(line(f"line-{n}") for n in range(5)))
    assert ended(doomed.http, quick)["status"] == "completed"
    lines = 60
    doomed.plan(stage, signal.SIGKILL, "always")
    batch_id = start(doomed.http, jsonl(line(f"line-{n}", MODEL) for n in range(lines)))
    try:
        wait_until(lambda: [*doomed.revive(), doomed.status(batch_id) == "failed"][-1], 300, "it is given up")
    finally:
        doomed.forgive()
    wait_until(lambda: not doomed.revive())
    batch = ended(doomed.http, batch_id, 60)
    assert [error["code"] for error in batch["errors"]["data"]] == ["batch_given_up"]
    counts = batch["request_counts"]
    assert (counts["total"], counts["completed"] + counts["failed"]) == (lines, lines)
    output, errors = results(doomed.http, batch["output_file_id"]), results(doomed.http, batch["error_file_id"])
    assert len(output) == counts["completed"]
    if stage == "handed out":
        assert output.keys() | errors.keys() == {f"line-{n}" for n in range(lines)}, "its input can be read"
    wait_until(lambda: doomed.redis.zscore(keys.batches_open, batch_id) is None, 60, "nobody looks after it any more")
