"""The shortcut for events that repeat: whatever comes, chunks and counts are those of the long way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.errors import UpstreamError
from shared.lib import sse
from tests.support import recordings
from tests.support.answers import new_normalizer, play
from worker.normalizer import Normalizer
from worker.providers import framing
from worker.providers.formats.template import Template

HEAD = {"id": "up", "object": "chat.completion.chunk", "created": 7, "model": "m", "system_fingerprint": "fp"}
BEGUN = {
    **HEAD,
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Here it is. "}, "finish_reason": None}],
}


def said(text: str, *, index: int = 0, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {**HEAD, "choices": [{"index": index, "delta": {"content": text}, "finish_reason": reason}], **fields}


def spelled(value: Any, *, ascii_only: bool = False, spaces: bool = False) -> bytes:
    separators = (", ", ": ") if spaces else (",", ":")
    return json.dumps(value, ensure_ascii=ascii_only, separators=separators).encode("utf-8", "surrogatepass")


BUT = spelled({**said("a"), "error": {"message": "no"}})
"""An error that comes with a part of the answer: nothing counts after it."""
TEXTS = st.text(max_size=6) | st.sampled_from(
    ["", " the", '"', "\\", "\n", "é", "\u2028", "\x7f", "x" * 300, '"content":"x"']
)
ODD = st.sampled_from(
    [
        b"[DONE]",
        b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}',
        b'{"choices":[],"prompt_filter_results":[{"a":1}]}',
        b'{"choices":[{"index":0,"delta":{"content":"\xff"},"finish_reason":null}]}',
        b'{"choices":[{"index":0,"delta":{"content":"a","content":"b"},"finish_reason":null}]}',
        b'{"choices":[{"index":0,"delta":{"reasoning":"hm"},"finish_reason":null}]}',
        b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
        b'{"content":"a","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}',
        b'{"choices":[{"index":0,"delta":{"content":"a"},"logprobs":{"content":[]},"finish_reason":null}]}',
        b'{"error":{"message":"no"}}',
        BUT,
    ]
)
EVENTS = st.lists(
    st.builds(
        spelled,
        st.builds(said, TEXTS, index=st.sampled_from([0, 0, 0, 1]), reason=st.sampled_from([None] * 9 + ["stop"]))
        | st.builds(said, TEXTS, obfuscation=TEXTS)
        | st.builds(said, TEXTS, usage=st.none()),
        ascii_only=st.booleans(),
        spaces=st.booleans(),
    )
    | st.builds(spelled, st.builds(said, TEXTS))
    | ODD,
    max_size=25,
)


def heard(
    events: list[bytes], *, choices: int = 1, show_usage: bool = False, takes: list[bool] | None = None
) -> list[Any]:
    """All that can be seen of a normalizer, after each event. `takes` says which of the chunks that may are passed on."""
    normalizer, seen = new_normalizer(choices=choices, show_usage=show_usage), []
    for data in (spelled(BEGUN), *events):
        passed: list[bytes] = []
        try:
            if takes and normalizer.pass_on(data, lambda payload: takes.pop() and not passed.append(payload)):  # type: ignore[func-returns-value]  # noqa: B023
                seen.append([json.loads(payload) for payload in passed])
            else:
                seen.append([json.loads(chunk.payload) for chunk in normalizer.feed(sse.Event(data))])
        except UpstreamError as error:
            seen.append([str(error)])
        seen.append([normalizer.content_chars, normalizer.chunks, normalizer.done, normalizer.settled])
        seen[-1] += [normalizer.finish_reasons, normalizer.usage]
    try:
        seen.append([json.loads(chunk.payload) for chunk in normalizer.end()])
    except UpstreamError as error:
        seen.append([str(error)])
    return seen


@given(EVENTS, st.sampled_from([1, 2]), st.booleans())
@example(
    [spelled(said("a")), spelled(said("b", index=1)), spelled(said("", reason="stop")), spelled(said("c"))], 2, False
)
@example([spelled(said("a")), spelled(said("b")), BUT, spelled(said("c"))], 1, False)
@example(
    [spelled(said("a")), b'{"choices":[],"prompt_filter_results":[1]}', spelled(said("b")), spelled(said("c"))], 1, True
)
def test_whatever_comes_is_what_it_would_be_without_it(events: list[bytes], choices: int, show_usage: bool) -> None:
    short = heard(events, choices=choices, show_usage=show_usage)
    with patch.object(Template, "fill", return_value=None):
        assert short == heard(events, choices=choices, show_usage=show_usage)


@given(EVENTS, st.lists(st.booleans(), min_size=1, max_size=30), st.booleans())
def test_what_is_passed_on_is_what_would_be_read(events: list[bytes], takes: list[bool], show_usage: bool) -> None:
    assert heard(events, show_usage=show_usage, takes=takes) == heard(events, show_usage=show_usage)


@pytest.mark.skipif(not recordings.recordings("chat"), reason=recordings.MISSING)
def test_what_providers_have_sent_amounts_to_the_same() -> None:
    used = 0
    for row in recordings.recordings("chat"):

        def told(row: dict[str, Any] = row) -> Any:
            choices = max(1, len(row["expected"]["choices"]))
            normalizer = new_normalizer(show_usage=True, choices=choices)
            chunks, error = play(recordings.wire(row), normalizer, row["file"])
            return chunks, str(error), normalizer.content_chars, normalizer.chunks, normalizer.usage

        with patch.object(Template, "fill", counting := Counting(Template.fill)):
            short = told()
        used += counting.filled
        with patch.object(Template, "fill", return_value=None):
            assert short == told(), row["file"]
    assert used > 300


class Counting:
    """A method that is counted where it returns something."""

    def __init__(self, method: Any) -> None:
        self._method, self.filled = method, 0

    def __get__(self, template: Any, kind: Any) -> Any:
        def call(*words: Any) -> Any:
            found = self._method(template, *words)
            self.filled += found is not None
            return found

        return call


@pytest.fixture
def reads() -> Iterator[list[bytes]]:
    """What is read as JSON from here on."""
    read: list[bytes] = []

    def value_of(data: bytes, original: Any = framing.value_of) -> Any:
        read.append(data)
        return original(data)

    with patch.object(framing, "value_of", value_of):
        yield read


def feed(normalizer: Normalizer, *values: dict[str, Any]) -> list[str]:
    chunks = [chunk for value in values for chunk in normalizer.feed(sse.Event(spelled(value)))]
    return [json.loads(chunk.payload)["choices"][0]["delta"]["content"] for chunk in chunks]


def test_events_that_differ_in_their_text_are_not_read(reads: list[bytes]) -> None:
    normalizer = new_normalizer()
    words = [f" {word}" for word in "it is not read at all é ü".split()]
    assert feed(normalizer, BEGUN, *map(said, words)) == ["Here it is. ", *words]
    assert len(reads) == 2
    assert normalizer.content_chars == len("Here it is. " + "".join(words))
    assert feed(normalizer, said("a\n"), said(" b")) == ["a\n", " b"]  # the first is read, and takes nothing back
    assert len(reads) == 3


def test_events_like_no_other_cost_few_experiments() -> None:
    normalizer = new_normalizer()
    with patch("worker.providers.formats.template._is_replaced", side_effect=[True] * 100) as tried:
        assert feed(normalizer, BEGUN, *(said("a", obfuscation="x" * (number % 50)) for number in range(2000)))
    assert tried.call_count < 20
