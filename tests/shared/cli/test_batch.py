"""The input of `streamspool batch`: whatever its lines are, batches take what becomes of them."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from shared.cli.batch import errors_beside, prepare, run, state_beside
from shared.cli.client import Client
from shared.errors import StreamspoolError
from worker.batches.lines import Raw, check_line

MESSAGES = [{"role": "user", "content": "hi"}]
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": MESSAGES}}


def prepared(*values: Any, model: str | None = "fake/echo") -> list[dict[str, Any]]:
    target = io.BytesIO()
    prepare(iter([json.dumps(value).encode() + b"\n" for value in values]), model, target)
    return [json.loads(line) for line in target.getvalue().splitlines()]


def test_every_kind_of_line_becomes_a_batchs() -> None:
    lines = prepared(LINE, {"messages": MESSAGES, "temperature": 0}, "hi")
    assert [line["custom_id"] for line in lines] == ["a", "2", "3"]
    assert lines[1]["body"] == {"model": "fake/echo", "messages": MESSAGES, "temperature": 0}
    assert lines[2]["body"] == {"model": "fake/echo", "messages": MESSAGES}
    for line in lines:
        data = json.dumps(line).encode()
        assert check_line(Raw(1, 0, len(data), data), "/v1/chat/completions").body["messages"] == MESSAGES


def test_a_model_in_the_line_wins() -> None:
    (line,) = prepared({"messages": MESSAGES, "model": "fake/lorem"})
    assert line["body"]["model"] == "fake/lorem"


@pytest.mark.parametrize("value", [7, {"prompt": "x"}, {"body": []}, [], None])
def test_what_is_no_line_is_named(value: Any) -> None:
    with pytest.raises(StreamspoolError, match="Line 2"):
        prepared("fine", value)


def test_what_is_no_json_is_named() -> None:
    with pytest.raises(StreamspoolError, match="Line 1 of the input is not JSON"):
        prepare(iter([b"plain text\n"]), "fake/echo", io.BytesIO())


def test_a_line_without_a_model_asks_for_one() -> None:
    with pytest.raises(StreamspoolError, match="-m"):
        prepared("hi", model=None)


def test_the_digest_is_of_what_is_sent() -> None:
    digests = {
        prepare(iter([b'"%s"\n' % text]), model, io.BytesIO()) for text in (b"a", b"b") for model in ("m/x", "m/y")
    }
    assert len(digests) == 4
    assert prepare(iter([b'"a"']), "m/x", io.BytesIO()) in digests


@pytest.mark.parametrize("output", ["missing/out.jsonl", "file/out.jsonl", "x" * 300])
async def test_what_cannot_be_written_is_said_before_anything_is_asked(tmp_path: Path, output: str) -> None:
    """Of a client that could not be asked either: an answer would be paid for, and then be nowhere."""
    source = tmp_path / "file"
    source.write_bytes(b'"hi"\n')
    with pytest.raises(StreamspoolError, match=r"Cannot write .*Nothing was asked"):
        await run(Client("http://127.0.0.1:1"), source, "fake/echo", tmp_path / output, lambda batch: None)
    assert os.listdir(tmp_path) == ["file"]


def test_files_stand_beside_the_output() -> None:
    assert errors_beside(Path("d/out.jsonl")) == Path("d/out.errors.jsonl")
    assert state_beside(Path("d/out.jsonl")) == Path("d/out.jsonl.batch")
