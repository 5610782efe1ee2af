"""Batches over HTTP: their life, what is wrong with their lines, their ends, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.features.batch_head import parts_of
from shared.lib.clock import now_ms
from tests.harness.processes import Stack, memory_mb, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.support.batch import ENDPOINT, ended, jsonl, line, results, start, state, upload
from tests.support.names import keys
from tests.support.s3 import S3
from tests.support.wire import Client, Register, refused


@pytest.fixture
def quick(own_stack: Stack) -> Iterator[Client]:
    with Client(own_stack.url) as client:
        yield client


def test_a_batch_is_run_to_its_end(alice: Client, bob: Client, keyed: Stack) -> None:
    lines = [line(f"id-{n}", prompt=f"number {n}") for n in range(40)]
    lines.append(line("refused", "fake/echo?error=400"))
    batch_id = start(alice.http, jsonl(lines), metadata={"ticket": "42"})
    batch = ended(alice.http, batch_id)
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 41, "completed": 40, "failed": 1}
    assert (batch["metadata"], batch["errors"], batch["object"]) == ({"ticket": "42"}, None, "batch")
    assert (batch["endpoint"], batch["completion_window"]) == (ENDPOINT, "24h")
    assert batch["expires_at"] == batch["created_at"] + 86400
    times = [batch[name] for name in ("created_at", "in_progress_at", "finalizing_at", "completed_at")]
    assert times == sorted(times)
    assert [batch[f"{name}_at"] for name in ("failed", "expired", "cancelling", "cancelled")] == [None] * 4
    assert batch["usage"] == {
        "input_tokens": 80,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 80,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 160,
    }
    output = results(alice.http, batch["output_file_id"])
    assert output.keys() == {f"id-{n}" for n in range(40)}
    for name, found in output.items():
        assert list(found) == ["id", "custom_id", "response", "error"]
        assert (found["response"]["status_code"], found["error"]) == (200, None)
        body = found["response"]["body"]
        assert body["choices"][0]["message"]["content"] == name.replace("id-", "number ")
        assert (body["id"], body["object"], body["model"]) == (
            found["response"]["request_id"],
            "chat.completion",
            "fake/echo",
        )
        assert body["usage"]["total_tokens"] == 4
    (failed,) = results(alice.http, batch["error_file_id"]).values()
    assert (failed["custom_id"], failed["response"]["status_code"], failed["error"]) == ("refused", 400, None)
    assert failed["response"]["body"]["error"]["code"] == "fake_error"
    file = alice.get(f"/v1/files/{batch['output_file_id']}").json()
    assert (file["purpose"], file["filename"]) == ("batch_output", f"{batch_id}_output.jsonl")
    refused(bob.get(f"/v1/batches/{batch_id}"), 404, "not_found")
    refused(bob.http.post(f"/v1/batches/{batch_id}/cancel"), 404, "not_found")
    assert batch_id not in {one["id"] for one in bob.get("/v1/batches").json()["data"]}
    refused(bob.get(f"/v1/files/{batch['output_file_id']}/content"), 404)
    assert alice.get("/v1/batches", params={"limit": 1}).json()["data"][0]["id"] == batch_id
    assert parts_left(keyed, batch_id)
    let_parts_go(keyed, batch_id)
    wait_until(lambda: not parts_left(keyed, batch_id), what="the parts are removed")
    with open_store(keyed.redis_url) as store:
        wait_until(lambda: store.zscore(keys.batches_open, batch_id) is None)
        ids = {found["response"]["request_id"] for found in [*output.values(), failed]}
        assert not store.exists(*map(keys.log, ids), *map(keys.settled, ids))
        assert not ids & {member.decode() for member in store.zrange(keys.index("a", 0), 0, -1)}


def let_parts_go(stack: Stack, batch_id: str) -> None:
    """They stay for an hour after the end, in case that the server forgets it. Now it is over."""
    with open_store(stack.redis_url) as store:
        parts = f"{parts_of(batch_id)}/"
        due_ms = wait_until(lambda: store.zscore(keys.files_end, parts), what="they have a date")
        assert due_ms > now_ms() + 3_000_000
        store.zadd(keys.files_end, {parts: 1})


def parts_left(stack: Stack, batch_id: str) -> list[Path]:
    return list((Path(stack.environment["STREAMSPOOL_DATA_DIR"]) / "files" / "parts" / batch_id).glob("*"))


def test_usage_of_a_batch_is_booked_once(quick: Client) -> None:
    ended(quick.http, start(quick.http, jsonl([line(f"{n}", "fake/echo", "a b c") for n in range(30)])))
    usage = quick.get("/v1/usage").json()
    assert {row["model"] for row in usage["data"]} == {"fake/echo"}
    total = usage["total"]
    assert (total["requests"], total["prompt_tokens"], total["completion_tokens"]) == (30, 90, 90)


def test_what_is_wrong_is_told_line_by_line_and_nothing_is_run(alice: Client, scripted: Register) -> None:
    model, script = scripted([*words(1), *ending()])
    good = line("good", model)
    lines = [
        good,
        line("twice", model),
        line("twice", model),
        {**good, "custom_id": "get", "method": "GET"},
        {**good, "custom_id": "url", "url": "/v1/embeddings"},
        line("streams", model, stream=True),
        line("unknown", "nobody/knows"),
        line("role", model, messages=[{"role": "me", "content": "x"}]),
    ]
    content = jsonl(lines) + b"\nnot json\n" + json.dumps(good | {"custom_id": None}).encode()
    batch = ended(alice.http, start(alice.http, content))
    assert (batch["status"], batch["errors"]["object"]) == ("failed", "list")
    told = [(error["line"], error["code"], error["param"]) for error in batch["errors"]["data"]]
    assert told == [
        (3, "duplicate_custom_id", "custom_id"),
        (4, "invalid_method", "method"),
        (5, "invalid_url", "url"),
        (6, "streaming_unsupported", "body.stream"),
        (7, "model_not_found", "body.model"),
        (8, "invalid_request", "body.messages[0].role"),
        (9, "invalid_json_line", None),
        (10, "invalid_json_line", None),
        (11, "missing_required_parameter", "custom_id"),
    ]
    assert batch["failed_at"] >= batch["created_at"]
    assert (batch["output_file_id"], batch["error_file_id"], batch["in_progress_at"]) == (None, None, None)
    assert script.calls == []


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "empty_file"), (b"\xef\xbb\xbf" + jsonl([line("a")]), "invalid_json_line"), (b"\n", "invalid_json_line")],
)
def test_a_file_that_is_no_input_fails_the_batch(alice: Client, content: bytes, code: str) -> None:
    batch = ended(alice.http, start(alice.http, content))
    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", code)


def test_a_batch_with_too_many_lines_is_refused(alice: Client) -> None:
    batch = ended(alice.http, start(alice.http, jsonl(line(f"{n}") for n in range(50_001))), 90)
    assert (batch["status"], [error["code"] for error in batch["errors"]["data"]]) == ("failed", ["too_many_lines"])


def test_of_many_wrong_lines_the_first_hundred_are_told(alice: Client) -> None:
    batch = ended(alice.http, start(alice.http, jsonl([line("same")]) * 1000))
    told = batch["errors"]["data"]
    assert [error["line"] for error in told] == list(range(2, 102))
    assert {error["code"] for error in told} == {"duplicate_custom_id"}


def test_what_cannot_begin_is_refused_at_once(alice: Client) -> None:
    body = {"input_file_id": "file-1", "endpoint": ENDPOINT, "completion_window": "24h"}
    vision = upload(alice.http, b"x", "vision")
    for fields, status, param in (
        ({}, 404, "input_file_id"),
        ({"input_file_id": vision}, 400, "input_file_id"),
        ({"endpoint": "/v1/images"}, 400, "endpoint"),
        ({"completion_window": "now"}, 400, "completion_window"),
        ({"webhook": {"url": "http://x"}}, 400, "webhook"),
    ):
        response = alice.http.post("/v1/batches", json={**body, **fields})
        assert refused(response, status)["param"] == param
    refused(alice.get("/v1/batches/batch_1"), 404, "not_found")


def test_a_cancel_keeps_what_is_finished(alice: Client, scripted: Register) -> None:
    pause = Pause()
    model, script = scripted([*words(2), pause, *ending()])
    lines = [line(f"done-{n}") for n in range(5)] + [line(f"open-{n}", model) for n in range(3)]
    lines += [line(f"later-{n}", model) for n in range(300)]
    batch_id = start(alice.http, jsonl(lines))
    wait_until(lambda: state(alice.http, batch_id)["request_counts"]["completed"] == 5 and script.live)
    cancelling = alice.http.post(f"/v1/batches/{batch_id}/cancel").json()
    assert (cancelling["status"], cancelling["cancelled_at"]) == ("cancelling", None)
    assert alice.http.post(f"/v1/batches/{batch_id}/cancel").status_code == 200
    batch = ended(alice.http, batch_id)
    assert batch["status"] == "cancelled"
    assert batch["cancelled_at"] >= batch["cancelling_at"] >= batch["in_progress_at"]
    assert batch["request_counts"] == {"total": 308, "completed": 5, "failed": 303}
    assert results(alice.http, batch["output_file_id"]).keys() == {f"done-{n}" for n in range(5)}
    skipped = results(alice.http, batch["error_file_id"])
    assert skipped.keys() == {one["custom_id"] for one in lines[5:]}
    assert {(one["response"], one["error"]["code"]) for one in skipped.values()} == {(None, "batch_cancelled")}
    wait_until(lambda: script.live == 0, what="the workers have hung up")
    assert alice.http.post(f"/v1/batches/{batch_id}/cancel").json()["status"] == "cancelled"
    assert len(script.calls) <= 100, "what is not open is not asked"


def test_a_batch_that_has_ended_cannot_be_cancelled(alice: Client) -> None:
    batch_id = start(alice.http, jsonl([line("a")]))
    ended(alice.http, batch_id)
    refused(alice.http.post(f"/v1/batches/{batch_id}/cancel"), 400, "batch_not_cancellable")


def test_a_window_that_is_over_ends_the_batch(alice: Client, scripted: Register) -> None:
    pause = Pause()
    model, _ = scripted([*words(2), pause, *ending()])
    lines = [line("done"), *(line(f"late-{n}", model) for n in range(150))]
    batch = ended(alice.http, start(alice.http, jsonl(lines), completion_window="6s"))
    assert (batch["status"], batch["expires_at"] - batch["created_at"]) == ("expired", 6)
    assert batch["expired_at"] >= batch["expires_at"]
    assert results(alice.http, batch["output_file_id"]).keys() == {"done"}
    skipped = results(alice.http, batch["error_file_id"])
    assert len(skipped) == 150
    assert {one["error"]["code"] for one in skipped.values()} == {"batch_expired"}


def test_too_much_slows_a_batch_down_and_fails_no_line(
    alice: Client, scripted: Register, upstream: ScriptedUpstream
) -> None:
    model, script = scripted(status=429, headers={"content-type": "application/json", "retry-after": "60"})
    batch_id = start(alice.http, jsonl([line(f"{n}", model) for n in range(20)]))
    wait_until(lambda: len(script.calls) >= 20)
    found = state(alice.http, batch_id)
    assert (found["status"], found["request_counts"]["failed"]) == ("in_progress", 0)
    alice.http.post(f"/v1/batches/{batch_id}/cancel")
    assert ended(alice.http, batch_id)["request_counts"] == {"total": 20, "completed": 0, "failed": 20}


def test_a_provider_that_recovers_is_asked_again(alice: Client, upstream: ScriptedUpstream) -> None:
    headers = {"content-type": "application/json", "retry-after": "1"}
    upstream.script("recovers", status=429, headers=headers)
    batch_id = start(alice.http, jsonl([line(f"{n}", "scripted/recovers") for n in range(10)]))
    wait_until(lambda: state(alice.http, batch_id)["status"] == "in_progress")
    upstream.script("recovers", [*words(2), *ending()])
    batch = ended(alice.http, batch_id, 90)
    assert batch["request_counts"] == {"total": 10, "completed": 10, "failed": 0}


def test_a_provider_that_is_paused_holds_up_nobody_elses_lines(alice: Client, upstream: ScriptedUpstream) -> None:
    headers = {"content-type": "application/json", "retry-after": "60"}
    script = upstream.script("paused", status=429, headers=headers)
    lines = [line(f"paused-{n}", "scripted/paused") for n in range(250)] + [line(f"done-{n}") for n in range(150)]
    batch_id = start(alice.http, jsonl(lines))
    wait_until(lambda: state(alice.http, batch_id)["request_counts"]["completed"] == 150, 60)
    assert state(alice.http, batch_id)["request_counts"]["failed"] == 0
    assert len(script.calls) <= 100, "it is left alone"
    alice.http.post(f"/v1/batches/{batch_id}/cancel")
    batch = ended(alice.http, batch_id)
    assert batch["request_counts"] == {"total": 400, "completed": 150, "failed": 250}
    assert results(alice.http, batch["output_file_id"]).keys() == {f"done-{n}" for n in range(150)}
    assert results(alice.http, batch["error_file_id"]).keys() == {f"paused-{n}" for n in range(250)}


def test_a_quota_that_is_used_up_fails_the_line(alice: Client, scripted: Register) -> None:
    error = {"error": {"message": "You exceeded your quota.", "type": "x", "code": "insufficient_quota"}}
    headers = {"content-type": "application/json", "retry-after": "60"}
    model, _ = scripted([json.dumps(error).encode()], status=429, headers=headers)
    batch = ended(alice.http, start(alice.http, jsonl([line("a", model)])))
    (failed,) = results(alice.http, batch["error_file_id"]).values()
    assert failed["response"]["status_code"] == 429


def test_an_input_that_is_deleted_under_way_fails_the_batch_and_keeps_what_is_done(
    alice: Client, scripted: Register
) -> None:
    pause = Pause()
    model, script = scripted([*words(1), pause, *ending()])
    content = jsonl([line("a", model), *(line(f"{n}", model, "x" * 50_000) for n in range(200))])
    batch_id = start(alice.http, content)
    wait_until(lambda: script.live)
    alice.http.delete(f"/v1/files/{state(alice.http, batch_id)['input_file_id']}")
    pause.go()
    batch = ended(alice.http, batch_id)
    if batch["status"] == "completed":
        assert batch["request_counts"]["completed"] == 201, "all of it had been read"
    else:
        assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "input_file_gone")
        assert len(results(alice.http, batch["output_file_id"])) == batch["request_counts"]["completed"]


def test_a_line_can_be_watched_while_it_runs(alice: Client, scripted: Register) -> None:
    pause = Pause()
    model, script = scripted([*words(2), pause, *ending()])
    batch_id = start(alice.http, jsonl([line("a", model)]))
    wait_until(lambda: script.live)
    (running,) = alice.get("/v1/streams", params={"model": model}).json()["data"]
    assert running["batch_id"] == batch_id
    with alice.watching(running["id"]) as viewer:
        viewer.until(b"w1 ")
        pause.go()
        assert b"[DONE]" in viewer.rest()
    assert ended(alice.http, batch_id)["request_counts"]["completed"] == 1


def test_a_line_that_is_cancelled_by_itself_is_an_error(alice: Client, scripted: Register) -> None:
    pause = Pause()
    model, script = scripted([*words(2), pause, *ending()])
    batch_id = start(alice.http, jsonl([line("a", model), line("b")]))
    wait_until(lambda: script.live)
    (running,) = alice.get("/v1/streams", params={"model": model}).json()["data"]
    alice.cancel(running["id"])
    batch = ended(alice.http, batch_id)
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    (failed,) = results(alice.http, batch["error_file_id"]).values()
    assert failed["response"]["body"]["error"]["code"] == "generation_cancelled"


def test_what_is_stored_stays(alice: Client) -> None:
    batch = ended(alice.http, start(alice.http, jsonl([line("a", store=True)])))
    (found,) = results(alice.http, batch["output_file_id"]).values()
    stored = alice.get(f"/v1/chat/completions/{found['response']['request_id']}")
    assert stored.json()["choices"][0]["message"]["content"] == "hello"
    alice.http.delete(f"/v1/chat/completions/{found['response']['request_id']}")


def test_the_output_lives_as_long_as_was_asked_for(alice: Client) -> None:
    life = {"anchor": "created_at", "seconds": 3600}
    batch = ended(alice.http, start(alice.http, jsonl([line("a")]), output_expires_after=life))
    file = alice.get(f"/v1/files/{batch['output_file_id']}").json()
    assert file["expires_at"] == file["created_at"] + 3600


def test_a_batch_in_a_bucket(own_stack: Stack, tmp_path: Path) -> None:
    with S3(tmp_path) as s3:
        for name in ("api", "worker"):
            own_stack.kill(name)
            own_stack.start(name, STREAMSPOOL_FILES_URL=s3.url, **s3.environment)
        own_stack.wait_ready()
        with Client(own_stack.url) as client:
            batch = ended(client.http, start(client.http, jsonl([line(f"{n}") for n in range(50)])))
            assert len(results(client.http, batch["output_file_id"])) == 50
            let_parts_go(own_stack, batch["id"])
            wait_until(lambda: s3.names() == {batch["input_file_id"], batch["output_file_id"]})


@pytest.mark.timeout(500)
def test_a_large_batch_takes_no_more_memory_than_a_small_one(quick: Client, own_stack: Stack) -> None:
    """Ninety megabytes in, and as many out: to hold either would be seen."""
    lines = [line(f"{n}", prompt="x" * 60_000) for n in range(1500)]
    # Long enough that it fills what a worker keeps of the last ten seconds in case the server forgets them.
    ended(quick.http, start(quick.http, jsonl(lines[:400])), 200)
    before = {name: memory_mb(own_stack, "VmHWM", name) for name in ("api", "worker")}
    batch = ended(quick.http, start(quick.http, jsonl(lines)), 200)
    assert batch["request_counts"]["completed"] == 1500
    with quick.http.stream("GET", f"/v1/files/{batch['output_file_id']}/content") as content:
        assert sum(map(len, content.iter_bytes())) > 90_000_000
    for name, peak_mb in before.items():
        assert memory_mb(own_stack, "VmHWM", name) - peak_mb < 40, name


@pytest.fixture
def crowded(own_stack: Stack) -> Iterator[Client]:
    """One place for lines, one for everybody else."""
    own_stack.kill("worker")
    own_stack.start("worker", STREAMSPOOL_WORKER_CONCURRENCY="2", STREAMSPOOL_WORKER_LINES="1")
    own_stack.wait_ready()
    with Client(own_stack.url) as client:
        yield client


def test_a_place_is_kept_for_everybody_else(crowded: Client, upstream: ScriptedUpstream) -> None:
    pause = Pause()
    script = upstream.script("holds", [*words(1), pause, *ending()])
    batch_id = start(crowded.http, jsonl([line(f"{n}", "scripted/holds") for n in range(5)]))
    wait_until(lambda: script.live == 1)
    answer: Any = crowded.post({"model": "fake/echo", "messages": [{"role": "user", "content": "me first"}]})
    assert answer.json()["choices"][0]["message"]["content"] == "me first"
    assert (script.live, len(script.calls)) == (1, 1)
    pause.go()
    assert ended(crowded.http, batch_id)["request_counts"]["completed"] == 5
