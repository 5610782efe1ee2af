"""Requests whose history or wishes one provider takes and another refuses: what history.py and the formats make of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from worker.providers.accepts import DEEPSEEK, FORMATS
from worker.providers.formats import dialect_of
from worker.providers.registry import Provider

# ---- K6: what stands between a call and its result, and calls that OpenAI alone knows


def _request(kind: str, model: str, *messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    provider = Provider(name="x", kind=kind, base_url="http://x", accepts=FORMATS[kind])
    return dialect_of(provider).call(provider, {"model": "x", "messages": list(messages), **more}, model).body


def _calling(*ids: str) -> dict[str, Any]:
    calls = [{"id": one, "type": "function", "function": {"name": "f", "arguments": "{}"}} for one in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def _result(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": call_id}


@pytest.mark.parametrize("between", [{"role": "user", "content": "Hurry."}, {"role": "assistant", "content": "Wait."}])
def test_k6_a_result_that_came_late_stands_behind_its_call(between: dict[str, Any]) -> None:
    user = {"role": "user", "content": "?"}
    given = [user, _calling("a", "b"), _result("a"), between, _result("b"), user]
    sent = _request("openai", "m", *given)["messages"]
    shown = [message.get("tool_call_id") or message["role"] for message in sent]
    assert shown == ["user", "assistant", "a", "b", between["role"], "user"]
    claude = _request("anthropic", "m", *given)["messages"]
    assert [block["type"] for block in claude[2]["content"]][:2] == ["tool_result", "tool_result"]
    gemini = _request("gemini", "m", *given)["contents"]
    assert [part["functionResponse"]["id"] for part in gemini[2]["parts"]] == ["a", "b"]


def test_k6_claude_reads_results_before_what_the_user_says() -> None:
    user = {"role": "user", "content": "?"}
    claude = _request("anthropic", "m", user, _calling("z"), user, _result("z"), user)["messages"]
    assert [block["type"] for block in claude[2]["content"]] == ["tool_result", "text", "text"]


@pytest.mark.parametrize("kind", ["anthropic", "gemini", "cohere", "ollama", "openai"])
def test_k6_a_free_form_call_is_a_function_to_others(kind: str) -> None:
    call = {"id": "c", "type": "custom", "custom": {"name": "run", "input": "ls"}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    sent = json.dumps(_request(kind, "m", {"role": "user", "content": "?"}, answer, _result("c")))
    assert '"custom"' not in sent
    assert "ls" in sent
    assert "run" in sent


def test_k6_a_refusal_is_text_to_those_who_know_no_other() -> None:
    part = {"role": "assistant", "content": [{"type": "text", "text": "x"}, {"type": "refusal", "refusal": "No."}]}
    field = {"role": "assistant", "content": None, "refusal": "No."}
    user = {"role": "user", "content": "?"}
    provider = Provider(name="deepseek", kind="openai", base_url="http://x", accepts=DEEPSEEK)
    sent = dialect_of(provider).call(provider, {"messages": [user, part, field, user]}, "m").body["messages"]
    assert [message["content"] for message in sent] == ["?", "x\nNo.", "No.", "?"]
    assert not any("refusal" in message for message in sent)


# ---- K7: an effort is a wish


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("anthropic", "claude-3-5-sonnet-latest"),
        ("anthropic", "claude-3-haiku-20240307"),
        ("gemini", "gemini-2.0-flash"),
        ("gemini", "gemini-1.5-pro"),
        ("gemini", "gemma-3-27b-it"),
    ],
)
def test_k7_models_that_cannot_think_are_not_told_to(kind: str, model: str) -> None:
    sent = _request(kind, model, {"role": "user", "content": "?"}, reasoning_effort="high", temperature=0.2)
    assert "thinking" not in json.dumps(sent)
    assert "0.2" in json.dumps(sent)


def test_k7_gemini_25_pro_thinks_as_little_as_it_can() -> None:
    sent = _request("gemini", "gemini-2.5-pro", {"role": "user", "content": "?"}, reasoning_effort="none")
    assert sent["generationConfig"]["thinkingConfig"] == {"thinkingBudget": 128}
