"""Streams as providers really send them, read through the broker by OpenAI's SDKs and the AI SDK: nothing raises but errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.api.test_clients import ELSEWHERE
from tests.harness.processes import Stack
from tests.harness.upstream import DONE, USAGE, ScriptedUpstream, chunk, usage
from tests.support.wire import KEY_A

pytestmark = pytest.mark.timeout(300)
CLIENTS = Path(__file__).parents[1] / "clients"


class Case(NamedTuple):
    parts: list[bytes]
    text: str = ""
    calls: tuple[tuple[str | None, str, str], ...] = ()
    """An id that is not the provider's is None."""
    finish: str | None = "stop"
    """None: an error."""
    usage: tuple[int, int] | None = None
    content_type: str = "text/event-stream"


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def called(index: int | None, id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    place = {} if index is None else {"index": index}
    given = {} if id is None else {"id": id, "type": "function"}
    named = {} if name is None else {"name": name}
    return {**place, **given, "function": {**named, "arguments": arguments}}


def calling(*calls: dict[str, Any]) -> bytes:
    return chunk({"tool_calls": list(calls)})


def in_choice(choice: dict[str, Any]) -> bytes:
    return event({"id": "up", "object": "chat.completion.chunk", "choices": [{"index": 0, **choice}]})


FIGURES = {"prompt_tokens": 1336, "completion_tokens": 31, "total_tokens": 1367}
MESSAGE = {"role": "assistant", "content": "The whole answer"}
CHOICE = {"index": 0, "message": MESSAGE, "finish_reason": "stop"}
WHOLE = {"object": "chat.completion", "choices": [CHOICE], "usage": FIGURES}
SEEN = [{"type": "reference", "reference_ids": [1]}]
TWO = (("a", "f", '{"x":1}'), ("b", "g", '{"y":2}'))
END = [chunk({}, "tool_calls"), DONE]

CASES = {
    "f1-middle": Case([chunk("one ", "stop"), chunk("two ", "stop"), chunk("three", "stop"), DONE], "one two three"),
    "f2-detail": Case([chunk("Half"), event({"detail": "too long"}), DONE], finish=None),
    "f2-nothing": Case([DONE], finish=None),
    "f3-choice": Case(
        [chunk("Half"), in_choice({"delta": {}, "finish_reason": "error", "error": {"message": "timed out"}}), DONE],
        finish=None,
    ),
    "f4-index-0": Case(
        [calling(called(0, "a", "f", '{"x":1}')), calling(called(0, "b", "g", '{"y":2}')), *END],
        calls=TWO,
        finish="tool_calls",
    ),
    "f5-from-1": Case(
        [
            chunk("Let me see. "),
            calling(called(1, "a", "f", "")),
            calling(called(1, None, None, '{"x":1}')),
            calling(called(2, "b", "g", '{"y"')),
            calling(called(2, None, None, ":2}")),
            *END,
        ],
        "Let me see. ",
        TWO,
        "tool_calls",
    ),
    "f6-no-ids": Case(
        [calling(called(0, "", "f", '{"x":1}')), calling(called(1, None, "g", '{"y":2}')), *END],
        calls=((None, "f", '{"x":1}'), (None, "g", '{"y":2}')),
        finish="tool_calls",
    ),
    "f7-stop": Case([calling(called(0, "a", "f", '{"x":1}')), chunk({}, "stop"), DONE], "", TWO[:1], "tool_calls"),
    "f8-empty": Case(
        [chunk("a", ""), chunk("b", ""), chunk({}, "stop"), chunk("", ""), USAGE, DONE], "ab", usage=(7, 5)
    ),
    "f8-never": Case([chunk("ab"), USAGE, DONE], "ab", usage=(7, 5)),
    "f8-missing": Case([in_choice({"delta": {"content": "ab"}}), in_choice({"delta": {}}), DONE], "ab"),
    "f9-choice": Case(
        [chunk("ab"), in_choice({"delta": {}, "finish_reason": "stop", "usage": FIGURES}), DONE], "ab", usage=(1336, 31)
    ),
    "f9-zeros": Case(
        [
            chunk("ab"),
            chunk({}, "stop"),
            usage(**FIGURES),
            usage(prompt_tokens=0, completion_tokens=0, total_tokens=0),
            DONE,
        ],
        "ab",
        usage=(1336, 31),
    ),
    "f18-message": Case([event(WHOLE), DONE], "The whole answer", usage=(1336, 31)),
    "f18-body": Case(
        [json.dumps(WHOLE, indent=1).encode()], "The whole answer", usage=(1336, 31), content_type="application/json"
    ),
    "f18-called-json": Case([chunk("ab"), chunk({}, "stop"), DONE], "ab", content_type="application/json"),
    "two-references": Case(
        [*(chunk({"content": [{"type": "text", "text": at}, *SEEN]}) for at in "ab"), chunk({}, "stop"), DONE], "ab"
    ),
    "lists-of-its-own": Case(
        [*(chunk({"content": at, "sources": SEEN}) for at in "abc"), chunk({}, "stop"), DONE], "abc"
    ),
    "told-at-the-end": Case(
        [chunk({"reasoning_content": "Hm."}), event({"choices": [CHOICE]}), DONE], "The whole answer"
    ),
    "f18-text": Case([in_choice({"text": "a"}), in_choice({"text": "b", "finish_reason": "stop"}), DONE], "ab"),
}


@pytest.mark.parametrize("program", ["read_odd.mjs", "read_odd.py"])
def test_every_odd_stream_is_read_by_official_clients(
    keyed: Stack, upstream: ScriptedUpstream, program: str, subtests: pytest.Subtests
) -> None:
    for name, case in CASES.items():
        upstream.script(name, case.parts, headers={"content-type": case.content_type})
    command = ["node"] if program.endswith(".mjs") else [sys.executable]
    models = json.dumps([f"scripted/{name}" for name in CASES])
    environment = {name: value for name, value in os.environ.items() if not ELSEWHERE.fullmatch(name)}
    arguments = [*command, str(CLIENTS / program), f"{keyed.url}/v1", KEY_A, models]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    for reader, found in report.items() if program.endswith(".mjs") else [("openai", report)]:
        for name, case in CASES.items():
            with subtests.test(f"{reader} {name}"):
                check(case, found[f"scripted/{name}"])


def check(case: Case, found: dict[str, Any]) -> None:
    if case.finish is None:
        assert "error" in found
        return
    assert "error" not in found, found
    assert (found["text"], found["finish"]) == (case.text, case.finish)
    assert [tuple(call[1:]) for call in found["calls"]] == [call[1:] for call in case.calls]
    for (given, *_), (wanted, *_) in zip(found["calls"], case.calls, strict=True):
        assert given
        assert wanted is None or given == wanted
    assert len({call[0] for call in found["calls"]}) == len(case.calls)
    if case.usage is not None:
        assert tuple(found["usage"]) == case.usage
