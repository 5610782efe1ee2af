"""A usage object as OpenAI has it is passed on the short way, which has to come to what the long one does."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest

from worker.providers import usage

PLAIN = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
DETAILS: list[Any] = [
    None,
    {},
    {"cached_tokens": 0, "reasoning_tokens": 0},
    {"cached_tokens": 3, "reasoning_tokens": 2, "audio_tokens": 0},
    {"cached_tokens": None},
    {"cached_tokens": "3", "reasoning_tokens": "2"},
    {"cached_tokens": True, "reasoning_tokens": 2.0},
    {"cached_tokens": -1, "reasoning_tokens": 2**60},
    {"num_cached_tokens": 3, "thinking_tokens": 2},
    [1],
    "none",
]
BESIDE: list[dict[str, Any]] = [
    {},
    {"queue_time": 0.1, "cost": 1, "prompt_tokens_details": {"cached_tokens": 1}},
    {"prompt_cache_hit_tokens": 4},
    {"cached_tokens": 0, "reasoning_tokens": 1},
    {"input_tokens_details": {"cached_tokens": 4}, "output_tokens_details": {"reasoning_tokens": 1}},
    {"input_tokens": 9, "output_tokens": 9},
]
FIGURES: list[dict[str, Any]] = [
    PLAIN,
    {"total_tokens": 12, "completion_tokens": 5, "prompt_tokens": 7},
    {**PLAIN, "total_tokens": 17},
    {**PLAIN, "total_tokens": 0},
    {**PLAIN, "total_tokens": None},
    {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    {"prompt_tokens": 7.0, "completion_tokens": 5, "total_tokens": 12},
    {"prompt_tokens": -1, "completion_tokens": 5, "total_tokens": 4},
    {"prompt_tokens": True, "completion_tokens": 5, "total_tokens": 6},
    {"prompt_tokens": 2**53, "completion_tokens": 0, "total_tokens": 2**53},
    {"prompt_tokens": 7, "completion_tokens": 5},
    {"total_tokens": 12},
]


@pytest.mark.parametrize("figures", FIGURES, ids=json.dumps)
def test_the_short_way_comes_to_what_the_long_one_does(figures: dict[str, Any]) -> None:
    for beside, prompt, completion, first in itertools.product(BESIDE, DETAILS, DETAILS, (False, True)):
        details = {"prompt_tokens_details": prompt, "completion_tokens_details": completion}
        told = {**beside, **figures, **details} if first else {**figures, **details, **beside}
        before = copy.deepcopy(told)
        found = usage.in_openais_form(told)
        assert json.dumps(found) == json.dumps(usage._put_in_form(copy.deepcopy(told))), told  # and in this order
        assert told == before
        assert found is not told


@pytest.mark.parametrize(
    ("more", "is_short"),
    [
        ({}, True),
        ({"prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": 2}, "cost": 0.1}, True),
        ({"prompt_cache_hit_tokens": 4}, False),
        ({"total_tokens": 13}, False),
    ],
)
def test_which_objects_go_the_short_way(more: dict[str, Any], is_short: bool) -> None:
    assert usage._is_in_form({**PLAIN, **more}) is is_short
