"""More requests of the kinds of test_history.py and test_stranger_requests.py: histories that were cut, or that a model broke.

K6: what is sent back does not fit the next provider, K7: thinking that it cannot go on with.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from worker.providers.accepts import FORMATS, MISTRAL, OPENAI
from worker.providers.formats import dialect_of
from worker.providers.history import BEGINNING, LONE, UNNAMED
from worker.providers.registry import Provider

USER = {"role": "user", "content": "?"}
NATIVES = ["anthropic", "gemini", "cohere", "ollama"]
KINDS = ["openai", "mistral", "own", *NATIVES]


def sent(kind: str, *messages: dict[str, Any], model: str = "m", **more: Any) -> dict[str, Any]:
    accepts = {"mistral": MISTRAL, "own": FORMATS["openai"], "openai": OPENAI}.get(kind) or FORMATS[kind]
    provider = Provider(name="x", kind=kind if kind in FORMATS else "openai", base_url="http://x", accepts=accepts)
    return dialect_of(provider).call(provider, {"model": "x", "messages": list(messages), **more}, model).body


def calling(*names: str, **more: Any) -> dict[str, Any]:
    calls = [
        {"id": f"call_{at}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for at, name in enumerate(names)
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls, **more}


def result(call_id: str, content: Any = "sunny") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def roles(body: dict[str, Any]) -> list[str]:
    return [one["role"] for one in body.get("messages") or body["contents"]]


# ---- K6: results without their calls

CUT = [
    [result("call_0"), USER],
    [{"role": "system", "content": "s"}, result("call_0"), result("call_1"), USER],
    [USER, {"role": "assistant", "content": "So."}, result("call_9"), USER],
    [USER, calling("f"), result("call_0", "it rains"), result("call_0"), USER],
    [USER, calling("f"), result("call_7"), result("call_0", "it rains"), USER],
    [USER, calling("f"), result("call_0", "it rains"), USER, result("call_0"), USER],
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("messages", CUT)
def test_k6_a_result_without_its_call_is_told_by_the_user(kind: str, messages: list[dict[str, Any]]) -> None:
    body = sent(kind, *messages)
    text = json.dumps(body)
    assert (LONE in text, "sunny" in text) == (True, True)
    answered = text.count('"tool_use_id"') + text.count('"functionResponse"') + text.count('"role": "tool"')
    assert answered == ("tool_calls" in json.dumps(messages))
    assert sent(kind, *messages) == body


def test_k6_what_a_result_without_its_call_shows_is_shown() -> None:
    parts = [
        {"type": "text", "text": "here"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    (turn,) = sent("anthropic", result("z", parts))["messages"]
    assert [block["type"] for block in turn["content"]] == ["text", "text", "image"]
    assert sent("own", result("z", ""))["messages"] == [{"role": "user", "content": f"{LONE}\n(nothing)"}]


def test_k6_a_result_goes_to_the_provider_that_has_the_call() -> None:
    body = sent("responses", result("call_1"), previous_response_id="resp_1")
    assert body["input"] == [{"type": "function_call_output", "call_id": "call_1", "output": "sunny"}]


def test_k6_mistral_hears_the_assistant_between_a_result_and_what_the_user_tells() -> None:
    messages = [USER, calling("f"), result("call_0"), result("call_0")]
    assert roles(sent("mistral", *messages)) == ["user", "assistant", "tool", "assistant", "user"]


@pytest.mark.parametrize("kind", ["anthropic", "gemini"])
@pytest.mark.parametrize("first", [calling("f"), {"role": "assistant", "content": "So."}])
def test_k6_the_user_begins(kind: str, first: dict[str, Any]) -> None:
    rest = [result("call_0")] if "tool_calls" in first else []
    body = sent(kind, {"role": "system", "content": "s"}, first, *rest, USER)
    assert roles(body)[0] == "user"
    assert BEGINNING in json.dumps(body)
    assert BEGINNING not in json.dumps(sent(kind, USER, first, *rest, USER))


# ---- K6: names that no tool has

NAMES = [
    ("functions.run", "functions_run"),
    ("run<|channel|>json", "run__channel__json"),
    ("mcp:fs/read", "mcp_fs_read"),
    ("wetter für", "wetter_f_r"),
    ("", UNNAMED),
    ("run", "run"),
    ("run-it_2", "run-it_2"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "fit"), NAMES)
def test_k6_the_name_of_a_call_is_one_that_is_taken_back(kind: str, name: str, fit: str) -> None:
    body = json.dumps(sent(kind, USER, calling(name), result("call_0"), USER))
    assert f'"name": "{fit}"' in body
    assert name == fit or not name or f'"{name}"' not in body


def test_k6_a_free_form_call_has_such_a_name_too() -> None:
    call = {"id": "c", "type": "custom", "custom": {"name": "a.b", "input": "ls"}}
    body = sent("openai", USER, {"role": "assistant", "content": None, "tool_calls": [call]}, result("c"), USER)
    assert body["messages"][1]["tool_calls"][0]["custom"] == {"name": "a_b", "input": "ls"}


# ---- K7: wishes


@pytest.mark.parametrize(("asked", "told"), [(0, 0), (0.7, 0.7), (1, 1), (1.5, 1), (2, 1)])
def test_k7_claude_is_no_warmer_than_it_can_be(asked: float, told: float) -> None:
    assert sent("anthropic", USER, temperature=asked)["temperature"] == told


@pytest.mark.parametrize("kind", ["gemini", "cohere", "own"])
def test_k7_others_are_as_warm_as_they_are_asked_to_be(kind: str) -> None:
    assert '"temperature": 1.5' in json.dumps(sent(kind, USER, temperature=1.5))


@pytest.mark.parametrize("last", ["So", "So ", "So\n\n"])
def test_k7_an_answer_to_go_on_with_is_not_thought_about(last: str) -> None:
    """Claude refuses thinking with an answer to go on with, and white space at its end."""
    body = sent(
        "anthropic", USER, {"role": "assistant", "content": last}, model="claude-sonnet-4-5", reasoning_effort="low"
    )
    assert "thinking" not in body
    assert body["messages"][-1]["content"][-1]["text"] == "So"
