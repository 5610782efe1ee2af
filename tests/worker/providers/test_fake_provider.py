"""The fake models say what their docstring says, in the form a real provider would."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.errors import BadRequest, UpstreamIncomplete, UpstreamRefused
from worker.normalizer import Normalizer
from worker.providers.fake import FakeScript, parse_model, script

HELLO: dict[str, Any] = {
    "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Say  hello,\nwörld"}]
}


def play(model: str, body: dict[str, Any] | None = None) -> tuple[str, str, Normalizer, float]:
    body = body or HELLO
    normalizer = Normalizer(id="a", created=1, model=model, show_usage=False, choices=body.get("n") or 1)
    content = reasoning = ""
    delays = 0.0
    for delay, event in script(body, model):
        delays += delay
        for chunk in normalizer.feed(event):
            for choice in json.loads(chunk.payload)["choices"]:
                if choice["index"] == 0:
                    content += choice["delta"].get("content", "")
                    reasoning += choice["delta"].get("reasoning_content", "")
    normalizer.end()
    return content, reasoning, normalizer, delays


def test_echo_says_the_last_user_message() -> None:
    content, _, normalizer, delays = play("echo")
    assert content == "Say  hello,\nwörld"
    assert normalizer.done
    assert normalizer.finish_reasons == ["stop"]
    assert normalizer.usage == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert delays == 0


def test_echo_reads_parts_and_survives_nothing_to_say() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "image_url"}, {"type": "text", "text": "two"}]
    assert play("echo", {"messages": [{"role": "user", "content": parts}]})[0] == "one two"
    for messages in ([], [{"role": "user", "content": None}], [{"role": "assistant", "content": "x"}], None):
        assert play("echo?tokens=5", {"messages": messages})[0] == ""


def test_lorem_is_the_same_in_every_run_whatever_its_length() -> None:
    long, short = play("lorem?tokens=200")[0], play("lorem?tokens=80")[0]
    assert long.startswith(short)
    assert len(long.split()) == 200
    assert len(play("fake/lorem")[0].split()) == 50


def test_reasoning_comes_first_and_is_counted() -> None:
    content, reasoning, normalizer, _ = play("lorem?tokens=4&reasoning=3", {**HELLO, "n": 2})
    assert (len(content.split()), len(reasoning.split())) == (4, 3)
    assert normalizer.finish_reasons == ["stop", "stop"]
    assert normalizer.usage is not None
    assert normalizer.usage["completion_tokens"] == 14
    assert normalizer.usage["completion_tokens_details"] == {"reasoning_tokens": 6}


def test_times() -> None:
    delays = [delay for delay, _ in script({**HELLO, "n": 2}, "lorem?tokens=3&rate=10&first_ms=500")]
    assert delays == [0.5, 0, 0, 0, 0.1, 0, 0.1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_length(field: str) -> None:
    content, reasoning, normalizer, _ = play("lorem?reasoning=2", {**HELLO, field: 5})
    assert (len(content.split()), len(reasoning.split())) == (3, 2)
    assert normalizer.finish_reasons == ["length"]


def test_cut_and_error() -> None:
    with pytest.raises(UpstreamIncomplete):
        play("lorem?tokens=9&cut=4")
    for status, ours in ((429, 429), (503, 502)):
        with pytest.raises(UpstreamRefused) as caught:
            script(HELLO, f"lorem?error={status}")
        assert caught.value.status == ours


def test_options() -> None:
    assert parse_model("lorem?tokens=5&rate=2.5&reasoning=1&first_ms=10&error=500&cut=0") == FakeScript(
        "lorem", tokens=5, rate=2.5, reasoning=1, first_ms=10, error=500, cut=0
    )


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("gpt", "fake/echo and fake/lorem"),
        ("", "fake/echo and fake/lorem"),
        ("lorem?speed=1", "tokens, rate, reasoning, first_ms, error, cut"),
        ("lorem?tokens", "tokens, rate"),
        ("lorem?tokens=1&tokens=2", "tokens, rate"),
        ("lorem?tokens=-1", "option tokens must be a number from 0"),
        ("lorem?tokens=many", "option tokens"),
        ("lorem?rate=nan", "option rate"),
        ("lorem?error=200", "option error must be a number from 400 to 599"),
    ],
)
def test_a_bad_name_is_told_what_is_allowed(model: str, names: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_model(model)
    assert names in caught.value.message
    assert caught.value.param == "model"
