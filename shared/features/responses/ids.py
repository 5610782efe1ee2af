"""The ids of a response and of its items: all of them are the generation's id in another spelling, so there is no index.

    chatcmpl-6f…                    the generation
    resp_6f…                        its response
    msg_6f…0001, rs_…, fc_…, ctc_…  what stands at place 1 of its output

Places are counted from 0 and written with four hexadecimal digits.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_RESPONSE = re.compile(r"resp_([0-9a-f]{32})")
_ITEM = re.compile(r"[a-z]{2,6}_([0-9a-f]{32})([0-9a-f]{4})")
_GENERATION = "chatcmpl-"

FIRST_INPUT = 0x8000
"""Items of the input have places from here on, those of the answer from 0 on."""

PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "function_call_output": "fco",
    "custom_tool_call_output": "ctco",
}
"""What an item's id begins with, by its type."""


class Place(NamedTuple):
    """Where an item stands: in which generation, at which place."""

    generation_id: str
    number: int


def generation_id(response_id: str) -> str | None:
    """The id of a response's generation; None for what is no id of a response."""
    match = _RESPONSE.fullmatch(response_id)
    return f"{_GENERATION}{match[1]}" if match else None


def item_id(kind: str, generation_id: str, index: int) -> str:
    """The id of an item of an answer."""
    return f"{PREFIXES.get(kind, 'item')}_{_digits(generation_id, index)}"


def call_id(generation_id: str, number: int) -> str:
    """The id of a call that has none of its own."""
    return f"call_{_digits(generation_id, number)}"


def _digits(generation_id: str, number: int) -> str:
    return f"{generation_id.removeprefix(_GENERATION)}{number:04x}"


def place(item_id: str) -> Place | None:
    """Where an item with this id stands; None for an id that is not ours."""
    match = _ITEM.fullmatch(item_id)
    return Place(f"{_GENERATION}{match[1]}", int(match[2], 16)) if match else None
