"""What of an answer is the answer, what is reasoning, and what a session keeps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.chat.messages import (
    Texts,
    after_last_answer,
    billable_text,
    new_messages,
    split_tags,
    turn_message,
    visible_text,
)

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": "a"}, Texts("a", "")),
        ({"content": None}, Texts("", "")),
        ({}, Texts("", "")),
        ({"content": "a", "reasoning_content": "r"}, Texts("a", "r")),
        ({"content": "a", "reasoning": "r"}, Texts("a", "r")),
        ({"content": "a", "thinking": "r"}, Texts("a", "r")),
        ({"content": "a", "reasoning_content": "", "reasoning": "r"}, Texts("a", "r")),
        ({"content": "a", "reasoning_content": "r", "reasoning": "r"}, Texts("a", "r")),
        ({"content": "<think>r</think>a"}, Texts("<think>r</think>a", "")),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "r"}]},
                    {"type": "text", "text": "a"},
                ]
            },
            Texts("a", "r"),
        ),
    ],
)
def test_answer_and_reasoning_apart(message: dict[str, Any], expected: Texts) -> None:
    assert visible_text(message) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<think>why</think>because", ("because", "why")),
        ("\n <think>\nwhy\n</think>\n\nbecause", ("because", "why")),
        ("<think>never closed", ("", "never closed")),
        ("<think></think>a", ("a", "")),
        ("a <think>quoted</think>", ("a <think>quoted</think>", "")),
        ("", ("", "")),
    ],
)
def test_tags_at_the_start(content: str, expected: tuple[str, str]) -> None:
    assert split_tags(content) == expected
    assert visible_text({"content": content}, think_tags=True) == Texts(*expected)


@given(st.text(), st.text().filter(lambda text: "</think>" not in text))
def test_tags_lose_nothing_but_line_breaks_at_the_seam(answer: str, reasoning: str) -> None:
    found = split_tags(f"<think>{reasoning}</think>{answer}")
    assert found == (answer.lstrip("\n"), reasoning.strip("\n"))


def keep(message: dict[str, Any], *, store_reasoning: bool = False, think_tags: bool = False) -> dict[str, Any]:
    return turn_message(message, store_reasoning=store_reasoning, think_tags=think_tags)


def test_a_turn_has_no_reasoning_unless_it_is_wanted() -> None:
    message = {"role": "assistant", "content": "a", "reasoning_content": "r", "thinking_blocks": [{"signature": "s"}]}
    assert keep(message) == {"role": "assistant", "content": "a"}
    assert keep(message, store_reasoning=True) == message
    tagged = {"content": "<think>r</think>a"}
    assert keep(tagged, think_tags=True) == {"role": "assistant", "content": "a"}
    assert keep(tagged, think_tags=True, store_reasoning=True)["content"] == "<think>r</think>a"


def test_reasoning_alone_is_the_turn() -> None:
    assert keep({"content": None, "reasoning": "r"}) == {"role": "assistant", "content": "r"}
    assert keep({"content": "<think>r"}, think_tags=True) == {"role": "assistant", "content": "r"}
    assert keep({"content": None, "reasoning": "r", "tool_calls": [CALL]})["content"] is None


def test_a_turn_is_what_providers_take_back() -> None:
    message: dict[str, Any] = {
        "content": None,
        "refusal": None,
        "tool_calls": [CALL],
        "annotations": [{}],
        "images": [{}],
    }
    assert keep(message) == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    spoken = {"content": None, "audio": {"id": "audio_1", "data": "x" * 100, "transcript": "hi"}}
    assert keep(spoken) == {"role": "assistant", "content": None, "audio": {"id": "audio_1"}}


def test_instructions_that_are_repeated_stand_there_once() -> None:
    system, user = {"role": "system", "content": "be kind"}, {"role": "user", "content": "u"}
    assert new_messages([], [system, user]) == [system, user]
    assert new_messages([system, user], [system, user]) == [user]
    other = {"role": "system", "content": "be brief"}
    assert new_messages([system, user], [other, user, system]) == [other, user, system]


def test_what_is_new_where_the_client_keeps_the_history() -> None:
    user, answer = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
    assert after_last_answer([user, answer, user]) == [user]
    assert after_last_answer([user]) == [user]
    assert after_last_answer([user, answer]) == []


def test_what_is_billed() -> None:
    message = {"content": "abc", "reasoning_content": "de", "refusal": "f", "tool_calls": [CALL]}
    assert billable_text(message) == Texts("abcff{}", "de")
