"""A chunk of a role and a text, and nothing else, is read on the short way, which has to come to what the long one does."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest

from worker.providers.choice import Choice
from worker.providers.tool_calls import CallIds

DELTAS: list[Any] = [
    {"role": "assistant", "content": ""},
    {"content": "", "role": "model"},
    {"role": "assistant", "content": "Hel"},
    {"content": " <thi"},
    {"content": "nk>why and more"},
    {"role": None, "content": "x"},
    {"role": "assistant"},
    {"role": "assistant", "content": None},
    {"content": "x", "reasoning_content": "y"},
    {"content": "x", "refusal": None},
    {},
    "bare",
]
AROUND: list[dict[str, Any]] = [
    {"finish_reason": None},
    {"finish_reason": None, "logprobs": None},
    {"finish_reason": None, "logprobs": {"content": []}},
    {"finish_reason": None, "stop_reason": None},
    {"finish_reason": "stop"},
    {"finish_reason": ""},
    {},
]
SEEN = (
    "head",
    "held",
    "said",
    "unknown",
    "word",
    "usage",
    "finish_reason",
    "_spoken",
    "_length",
    "_opened",
)


def choice(*, opened: bool) -> Choice:
    return Choice(CallIds("id", (), ()), wire_format="openai", forced=False, opened=opened)


def state(one: Choice) -> dict[str, Any]:
    return {name: getattr(one, name) for name in SEEN}


@pytest.mark.parametrize("opened", [False, True])
def test_the_short_way_comes_to_what_the_long_one_does(opened: bool) -> None:
    events = list(itertools.product(DELTAS, AROUND))
    for first, second, third in itertools.product(events, events[::5], events[:40:7]):
        short, long = choice(opened=opened), choice(opened=opened)
        for delta, around in (first, second, third):
            event = {"index": 0, "delta": delta, **around}
            one, other = copy.deepcopy(event), copy.deepcopy(event)
            found, wanted = short.read(one), long._read(other)
            assert (found, repr(one)) == (wanted, repr(other)), (first, second, third)
            assert state(short) == state(long), (first, second, third)


@pytest.mark.parametrize(
    ("delta", "around", "is_short"),
    [
        ({"role": "assistant", "content": ""}, {"finish_reason": None}, True),
        ({"content": "Hel"}, {"finish_reason": None, "logprobs": None}, True),
        ({"content": "Hel"}, {}, False),
        ({"content": "Hel", "refusal": None}, {"finish_reason": None}, False),
        ({"content": "Hel"}, {"finish_reason": "stop"}, False),
    ],
)
def test_which_beginnings_go_the_short_way(
    delta: dict[str, Any], around: dict[str, Any], is_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, long = Choice._read, list[int]()

    def counted(self: Choice, one: dict[str, Any]) -> tuple[int, int]:
        long.append(1)
        return read(self, one)

    monkeypatch.setattr(Choice, "_read", counted)
    choice(opened=False).read({"index": 0, "delta": delta, **around})
    assert (not long) is is_short
