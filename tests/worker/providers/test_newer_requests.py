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


# ---- other clients' and clouds' spellings


@pytest.mark.parametrize(
    ("model", "budget"),
    [
        ("anthropic.claude-sonnet-4-5-v1:0", True),
        ("us.anthropic.claude-opus-4-1-20250805-v1:0", True),
        ("claude-sonnet-4.5:beta", True),
        ("claude-sonnet-4-5-thinking", True),
        ("claude-opus-4@20250514", True),
        ("claude-sonnet-4-20250514", True),
        ("claude-haiku-4", True),
        ("anthropic.claude-sonnet-4-6-v1:0", False),
        ("claude-opus-4.8:beta", False),
        ("claude-opus-4-10", False),
        ("claude-sonnet-5", False),
    ],
)
def test_k7_whether_a_model_of_claudes_has_a_budget_does_not_depend_on_who_serves_it(model: str, budget: bool) -> None:
    body = sent("anthropic", USER, model=model, reasoning_effort="medium")
    assert (body["thinking"]["type"] == "enabled") is budget
    loop = sent("anthropic", USER, calling("f"), result("call_0"), model=model, reasoning_effort="medium")
    assert ("thinking" not in loop) is budget


@pytest.mark.parametrize("kind", NATIVES)
def test_f22_a_limit_beside_one_that_is_none_counts(kind: str) -> None:
    assert "100" in json.dumps(sent(kind, USER, max_completion_tokens=-1, max_tokens=100))


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}}}]


@pytest.mark.parametrize(
    ("choice", "same"),
    [
        ("any", "required"),
        ({"type": "any"}, "required"),
        ({"type": "required"}, "required"),
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
@pytest.mark.parametrize("kind", ["gemini", "cohere"])
def test_k6_a_choice_of_tools_in_another_formats_words(kind: str, choice: Any, same: Any) -> None:
    assert sent(kind, USER, tools=TOOLS, tool_choice=choice) == sent(kind, USER, tools=TOOLS, tool_choice=same)


PICTURE = "data:image/png;base64,QUJDREVG"


@pytest.mark.parametrize("url", ["data:image/png;base64,QUJD\nREVG\r\n", "data:image/x-png;base64,QUJDREVG"])
@pytest.mark.parametrize("kind", KINDS)
def test_f19_a_picture_in_lines_is_one(kind: str, url: str) -> None:
    told, same = (
        sent(kind, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": one}}]})
        for one in (url, PICTURE)
    )
    assert told == same


def test_f19_a_picture_that_is_written_as_text_keeps_its_spaces() -> None:
    url = "data:image/svg+xml;utf8,<svg width='1' height='1'/>"
    body = sent("own", {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]})
    assert body["messages"][0]["content"][0]["image_url"]["url"] == url


def test_k6_what_a_result_shows_stands_beside_it_for_gemini() -> None:
    shown = result("call_0", [{"type": "text", "text": "a map"}, {"type": "image_url", "image_url": {"url": PICTURE}}])
    turn = sent("gemini", USER, calling("f"), shown, USER)["contents"][2]
    assert turn["parts"] == [
        {"functionResponse": {"id": "call_0", "name": "f", "response": {"output": "a map"}}},
        {"inlineData": {"mimeType": "image/png", "data": "QUJDREVG"}},
    ]


@pytest.mark.parametrize("kind", ["own", "mistral"])
def test_f17_what_only_python_takes_for_json_is_none(kind: str) -> None:
    call = calling("f")
    call["tool_calls"][0]["function"]["arguments"] = '{"x": NaN}'
    [_, said, *_] = sent(kind, USER, call, result("call_0"), USER)["messages"]
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"x": None}
