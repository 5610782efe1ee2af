"""Watching a batch: its events, its results before the end, and the command that does it all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.support.batch import ended, jsonl, line, start, state
from tests.support.wire import Client, Register, field, frames, payload, refused


def test_each_change_is_an_event_to_the_end(alice: Client, bob: Client, scripted: Register) -> None:
    pause = Pause()
    model, script = scripted([*words(1), pause, *ending()])
    batch_id = start(alice.http, jsonl([line("done"), line("held", model)]))
    wait_until(lambda: script.live)
    path = f"/v1/batches/{batch_id}/events"
    with alice.view("GET", path) as viewer:
        assert viewer.response.headers["content-type"].startswith("text/event-stream")
        viewer.until(b'"completed":1,')
        pause.go()
        viewer.rest()
    *seen, end = [frame[frame.index(b"id: ") :] for frame in frames(viewer.body)]
    states = [payload(frame) for frame in seen]
    assert states[-1] == state(alice.http, batch_id)
    assert states[-1]["status"] == "completed"
    assert field(end, b"data") == b"[DONE]"
    ids = [int(field(frame, b"id") or b"") for frame in seen]
    assert ids == sorted(set(ids))
    for cursor in ({"headers": {"last-event-id": str(ids[-1])}}, {"params": {"last_event_id": str(ids[-1])}}):
        assert alice.get(path, **cursor).status_code == 204
    late = frames(alice.get(path, headers={"last-event-id": str(ids[0])}).content)
    assert [payload(frame) for frame in late[:-1]] == states[-1:], "what it was in between is over"
    refused(alice.get(path, headers={"last-event-id": str(ids[-1] + 1)}), 400, "cursor_ahead")
    refused(alice.get(path, headers={"last-event-id": "1-2"}), 400, "invalid_cursor")
    refused(bob.get(path), 404, "not_found")


def test_results_can_be_read_before_the_end(alice: Client, bob: Client, scripted: Register) -> None:
    pause = Pause()
    model, _ = scripted([*words(1), pause, *ending()])
    lines = [*(line(f"{n}") for n in range(10)), line("bad", "fake/echo?error=400"), line("held", model)]
    batch_id = start(alice.http, jsonl(lines))

    def names(kind: str) -> set[str]:
        response = alice.get(f"/v1/batches/{batch_id}/{kind}")
        assert response.status_code == 200, response.text
        return {json.loads(text)["custom_id"] for text in response.text.splitlines()}

    wait_until(lambda: len(names("output")) == 10 and names("errors") == {"bad"})
    assert state(alice.http, batch_id)["status"] == "in_progress"
    assert names("output") == {f"{n}" for n in range(10)}
    refused(bob.get(f"/v1/batches/{batch_id}/output"), 404, "not_found")
    pause.go()
    batch = ended(alice.http, batch_id)
    whole = alice.get(f"/v1/batches/{batch_id}/output").content
    assert whole == alice.get(f"/v1/files/{batch['output_file_id']}/content").content
    assert names("output") == {*(f"{n}" for n in range(10)), "held"}


# ---- the command


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(f"prompt {n}") + "\n" for n in range(20)))
    return source


def command(stack: Stack, *words: str) -> dict[str, Any]:
    environment = {**os.environ, "NO_COLOR": "1", "STREAMSPOOL_URL": stack.url, "PYTHONWARNINGS": "ignore"}
    return {"args": [sys.executable, "-m", "shared.cli.main", "batch", *words], "env": environment, "text": True}


def run(stack: Stack, *words: str) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        **command(stack, *words), capture_output=True, timeout=100, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_a_file_of_prompts_becomes_a_file_of_answers(stack: Stack, inputs: Path) -> None:
    output = inputs.with_name("out.jsonl")
    done = run(stack, str(inputs), "-m", "fake/echo", "-o", str(output))
    assert done.returncode == 0, done.stderr
    assert "completed · 20 answers · 40 tokens" in done.stderr
    answers = {(one := json.loads(text))["custom_id"]: one for text in output.read_text().splitlines()}
    assert answers.keys() == {str(n) for n in range(1, 21)}
    assert answers["3"]["response"]["body"]["choices"][0]["message"]["content"] == "prompt 2"
    assert sorted(path.name for path in inputs.parent.iterdir()) == ["in.jsonl", "out.jsonl"]
    again = run(stack, str(inputs), "-m", "fake/echo", "-o", str(output))
    assert (again.returncode, "exists already" in again.stderr) == (2, True)


def test_failed_lines_stand_beside_the_output(stack: Stack, inputs: Path) -> None:
    lines = [line("good"), line("bad", "fake/echo?error=400")]
    inputs.write_bytes(jsonl(lines))
    output = inputs.with_name("out.jsonl")
    done = run(stack, str(inputs), "-o", str(output))
    assert (done.returncode, "1 line failed" in done.stderr) == (1, True)
    (failed,) = inputs.with_name("out.errors.jsonl").read_text().splitlines()
    assert json.loads(failed)["custom_id"] == "bad"


def test_a_batch_that_is_refused_says_where(stack: Stack, inputs: Path) -> None:
    inputs.write_bytes(jsonl([line("same"), line("same")]))
    done = run(stack, str(inputs), "-o", str(inputs.with_name("out.jsonl")))
    assert (done.returncode, "line 2: The custom_id" in done.stderr) == (1, True)


def test_ctrl_c_leaves_the_batch_and_the_same_command_goes_on(
    stack: Stack, upstream: ScriptedUpstream, inputs: Path
) -> None:
    pause = Pause()
    script = upstream.script("bulk", [*words(1), pause, *ending()])
    output = inputs.with_name("out.jsonl")
    words_ = (str(inputs), "-m", "scripted/bulk", "-o", str(output))
    process = subprocess.Popen(**command(stack, *words_), stderr=subprocess.PIPE)
    begun = output.with_name("out.jsonl.batch")
    wait_until(lambda: script.live == 20 and begun.exists(), what="all lines run, and the command knows its batch")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, "give the same command again" in told) == (130, True)
    assert not output.exists()
    other = inputs.with_name("other.jsonl")
    other.write_text('"another"\n')
    refusal = run(stack, str(other), "-m", "scripted/bulk", "-o", str(output))
    assert (refusal.returncode, "another input" in refusal.stderr) == (1, True)
    pause.go()
    done = run(stack, *words_)
    assert done.returncode == 0, done.stderr
    assert len(output.read_text().splitlines()) == 20
    assert len(script.calls) == 20, "nothing was asked twice"
