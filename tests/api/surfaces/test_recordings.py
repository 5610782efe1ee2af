"""Every recorded stream of a real provider, replayed byte for byte through the worker, Valkey and the API."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack
from tests.harness.upstream import ScriptedUpstream
from tests.support import native, recordings
from tests.support.recordings import FOLDER, Row, fold, fold_whole, payloads, pieces, wire
from tests.support.wire import Client, Register, ask, error_of, field, frames, payload, position

KINDS = {"chat": "openai", "anthropic": "anthropic", "gemini": "gemini", "cohere": "cohere", "responses": "responses"}
"""The format of a recording, and the kind of provider that speaks it."""

RECORDINGS = [{**row, "expected": native.expected(row)} for row in recordings.recordings(*KINDS)]
WITH_USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=recordings.MISSING)
every_recording = pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])


@pytest.fixture(scope="session")
def client(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A server with one provider of each kind, all of them played by the scripted one."""
    tables = [f'[providers.{kind}]\nkind = "{kind}"\nbase_url = "{upstream.base_url}"\n' for kind in KINDS.values()]
    directory = tmp_path_factory.mktemp("recordings")
    url = valkey.url.replace("db=0", "db=8")
    with (
        Stack(url, upstream.base_url, directory, config="".join(tables)) as stack,
        Client(stack.url) as http,
    ):
        yield http


@pytest.mark.parametrize("format", KINDS)
def test_no_recording_is_left_out(format: str) -> None:
    """Counted by the files' names, which INDEX.jsonl has no part in."""
    there = Counter(path.parent.name for path in FOLDER.glob(f"*/{format}-*"))
    assert there
    assert Counter(row["provider"] for row in RECORDINGS if row["format"] == format) == there
    print(f"{format}: {dict(there)}")


@every_recording
def test_every_view_shows_what_the_provider_said(client: Client, scripted: Register, row: Row) -> None:
    posted = client.post(ask(play(scripted, row, sent(row)), stream=True, n=choices(row), **WITH_USAGE))
    stream_id = posted.headers["x-stream-id"]
    stored = frames(client.whole(stream_id))
    assert_as_recorded(row, stored)

    chat_view = f"/v1/chat/completions/{stream_id}"
    assert frames(client.get(chat_view, params={"stream": "true"}).content) == stored
    if posted.status_code == 200:
        assert frames(posted.content) == [without_id(frame) for frame in stored]
    else:
        assert error_of(posted.json()) == end_error(stored), "an error before the first chunk has a status"
    kept = client.get(chat_view).json()
    assert summary(row, fold_whole(kept)) == row["expected"]["choices"]
    assert kept.get("error") == end_error(stored)
    state = client.state(stream_id)
    assert (state["status"], state["usage"]) == (kept["status"], kept["usage"])
    cut_short = any(choice["finish"] in ("length", "content_filter") for choice in row["expected"]["choices"].values())
    assert state["status"] == ("failed" if must_fail(row) else "incomplete" if cut_short else "completed")


@every_recording
def test_who_leaves_in_the_middle_gets_the_rest(client: Client, scripted: Register, row: Row) -> None:
    """Once by counting, without ids, while the answer may still be going on; once by position, from the log.

    What fails before its first chunk is no stream, and there is nothing to leave: all of it is the rest.
    """
    body = ask(play(scripted, row, sent(row)), stream=True, n=choices(row), **WITH_USAGE)
    at = random.Random(row["file"]).randrange(1, 1 + least_frames(row))
    with client.view("POST", "/v1/chat/completions", json=body) as viewer:
        assert viewer.response.status_code == 200 or must_fail(row)
        seen = viewer.take(at) if viewer.response.status_code == 200 else []
        at = len(seen)
    path = f"/v1/streams/{viewer.id}"
    seen += map(without_id, frames(client.get(path, params={"starting_after": at}).content))
    assert_as_recorded(row, seen)

    stored = frames(client.whole(viewer.id))
    assert seen == [without_id(frame) for frame in stored]
    rest = client.get(path, headers={"Last-Event-ID": position(stored[at - 1]) if at else "0"})
    assert frames(rest.content) == stored[at:]


@every_recording
def test_the_whole_answer_is_what_the_stream_adds_up_to(client: Client, scripted: Register, row: Row) -> None:
    response = client.post(ask(play(scripted, row, sent(row)), n=choices(row)))
    expected = row["expected"]
    if must_fail(row):
        error = error_of(response.json())
        assert (response.status_code, error["code"]) == error_of_provider(row)
        return
    answer = response.json()
    assert response.status_code == 200
    assert summary(row, fold_whole(answer)) == expected["choices"]
    assert native.counted(row, answer["usage"]) == native.counted(row, expected["usage"]) or (
        expected["usage"] is None and client.state(answer["id"])["usage_source"] == "estimate"
    )


@every_recording
def test_a_stream_that_is_cut_never_passes_for_whole(client: Client, scripted: Register, row: Row) -> None:
    stream = sent(row)
    cut = random.Random(row["file"]).randrange(len(stream) // 2, len(stream))
    posted = client.post(ask(play(scripted, row, stream[:cut]), stream=True, n=choices(row), **WITH_USAGE))
    stored = frames(client.whole(posted.headers["x-stream-id"]))
    assert end_error(stored) or summary(row, fold(chunks_of(stored))) == row["expected"]["choices"]


def sent(row: Row) -> bytes:
    return wire(row, done=row["format"] == "chat")


def play(scripted: Register, row: Row, stream: bytes) -> str:
    """Sets a recording up, in pieces of random sizes, and returns the model that plays it."""
    headers = {"content-type": row["headers"].get("content-type", "text/event-stream")}
    parts = list(pieces(stream, row["file"]))
    return scripted(parts, provider=KINDS[row["format"]], status=row["status"], headers=headers).model


def summary(row: Row, folded: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return native.comparable(row, recordings.summary(folded))


def choices(row: Row) -> int:
    return max(1, len(row["expected"]["choices"]))


def must_fail(row: Row) -> bool:
    """An error was sent, or there is neither a finish reason for every choice nor `[DONE]`."""
    ends = [choice["finish"] for choice in row["expected"]["choices"].values()]
    return bool(row["expected"]["error"]) or (b"data: [DONE]" not in sent(row) and not (ends and all(ends)))


def error_of_provider(row: Row) -> tuple[int, str | None]:
    """The status and the code that a viewer must get."""
    error = row["expected"]["error"]
    return (error.get("status_code", 502), error["code"]) if error else (502, "upstream_incomplete")


def least_frames(row: Row) -> int:
    """So many frames a stream has at least: the payloads that say something, up to an error, become a chunk each.

    Formats of their own have no such rule, but the last chunk and `[DONE]`.
    """
    count = 0
    for value in map(json.loads, payloads(row)):
        if value.get("error"):
            break
        deltas = [choice.get("delta") or {} for choice in value.get("choices") or ()]
        count += any(item for delta in deltas for key, item in delta.items() if key not in ("role", "tool_calls"))
    return max(count, 1)


def assert_as_recorded(row: Row, found: list[bytes]) -> None:
    """The frames of a stream that shows usage, against what INDEX.jsonl expects and against the recording itself."""
    expected, said, error = row["expected"], chunks_of(found), end_error(found)
    assert field(found[-1], b"data") == b"[DONE]"
    assert summary(row, fold(said)) == expected["choices"]
    if row["format"] == "chat":
        assert_unknown_fields_untouched(row, said)
    used = [native.counted(row, chunk["usage"]) for chunk in said if chunk["usage"] is not None]
    if must_fail(row):
        assert error is not None
        assert error["code"] == error_of_provider(row)[1]
        assert not expected["error"] or error["message"] == expected["error"]["message"]
        assert used == []
    else:
        assert error is None
        figures = [expected["usage"]] if expected["usage"] else []
        assert used == [native.counted(row, one) for one in figures] or (not figures and len(used) == 1)
        assert said[-1].get("usage_source") == (None if figures else "estimate")


def assert_unknown_fields_untouched(row: Row, said: list[dict[str, Any]]) -> None:
    """Whatever is none of OpenAI's own fields is there with its values, in their order. It may be in a neighbour's chunk.

    A chunk that carries usage alone goes last, whenever its provider sent it. Only the last one of them is kept.
    """
    sent: list[dict[str, Any]] = []
    with_usage: list[dict[str, Any]] = []
    for value in map(json.loads, payloads(row)):
        if value.get("error"):
            with_usage = []
            break
        if not value.get("choices") and value.get("usage"):
            with_usage = [value]
        else:
            sent.append(value)
    assert recordings.unknown_fields(said) == recordings.unknown_fields([*sent, *with_usage])


def chunks_of(found: list[bytes]) -> list[dict[str, Any]]:
    """The chunks of a stream: what comes before its error, if it has one, and `[DONE]`."""
    values = [payload(frame) for frame in found[:-1]]
    return [value for value in values if "choices" in value]


def end_error(found: list[bytes]) -> dict[str, Any] | None:
    """The error right before `[DONE]`, None if there is none."""
    last = payload(found[-2]) if len(found) > 1 else {}
    return None if "choices" in last or not last else error_of(last)


def without_id(frame: bytes) -> bytes:
    head, _, rest = frame.partition(b"\n")
    assert head.startswith(b"id: ")
    return rest
