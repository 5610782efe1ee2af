"""Twelve histories for every kind of vendor: what leaves is held against the vendors' own SDKs, and against what they refuse.

A history is what a client of OpenAI's format may have kept, from whichever provider answered before. A vendor answers at an
address that is not its own, as behind a proxy. The SDKs are in a venv of their own: tests/clients/vendor_models.py.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shared.chat.request import ChatRequest
from shared.config.settings import Settings
from worker.providers.formats import dialect_of
from worker.providers.registry import VENDORS, Provider, load_providers

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-vendors/bin/python"
PROGRAM = ROOT / "tests/clients/vendor_models.py"

USER = {"role": "user", "content": "What is the weather?"}
pytestmark = pytest.mark.timeout(
    600
)  # six SDKs are imported, once: seconds, or minutes where a machine is short of them
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 3},
        "days": {"type": "array", "items": {"type": "integer"}, "minItems": 2},
    },
    "required": ["city"],
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]


def call(call_id: str | None, arguments: Any = '{"city": "Oslo"}', name: str = "get_weather") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def answer(content: Any = None, *calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {}), **more}


def result(call_id: str, content: Any = "12 degrees") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def text(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": one} for one in texts]


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


THINKING = {
    "reasoning_content": "why",
    "thinking_blocks": [{"type": "thinking", "thinking": "why", "signature": "c2ln"}],
    "reasoning_items": [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}],
    "annotations": [],
    "refusal": None,
    "audio": None,
    "function_call": None,
}

HISTORIES: dict[str, dict[str, Any]] = {
    "text": {"messages": [{"role": "system", "content": "Be kind."}, USER, answer("Cold."), USER], "temperature": 0.5},
    "tools": {
        "messages": [USER, answer(None, call("call_1")), result("call_1"), USER],
        "tools": TOOLS,
        "tool_choice": "auto",
    },
    "parallel": {
        "messages": [
            USER,
            answer(None, call("call_0"), call("call_0", "{}", "now")),
            result("call_0", "a"),
            result("call_0", "b"),
            answer("And again.", call("call_0"), call(None, "", "now")),
            result("call_0", "c"),
            USER,
        ],
        "tools": TOOLS,
    },
    "broken": {
        "messages": [
            USER,
            answer("", call("c1", '{"city": "Os')),
            result("c1", "no such city"),
            answer(None, call("c2", None, "now"), call("c3", "[1]")),
            result("c2"),
            USER,
        ],
        "tools": TOOLS,
    },
    "thinking": {
        "messages": [
            USER,
            answer(None, call("t1"), **THINKING),
            result("t1"),
            answer("Cold.", **THINKING),
            USER,
            answer(None, call("t2")),
            result("t2"),
        ],
        "tools": TOOLS,
        "reasoning_effort": "high",
        "temperature": 0.2,
    },
    "pictures": {
        "messages": [
            {
                "role": "user",
                "content": [
                    *text("What is this?"),
                    picture(f"data:image/jpg;base64,{PIXEL}"),
                    picture(f"DATA:IMAGE/PNG;base64,{PIXEL}"),
                ],
            }
        ]
    },
    "foreign_ids": {
        "messages": [
            USER,
            answer(None, call("functions.get_weather:0"), call("functions.now:1" + "x" * 80, "{}", "now")),
            result("functions.get_weather:0"),
            result("functions.now:1" + "x" * 80),
            USER,
        ],
        "tools": TOOLS,
    },
    "blank": {
        "messages": [
            {"role": "system", "content": " "},
            USER,
            answer("\n\n", call("c1")),
            result("c1", " "),
            answer("\n"),
            {"role": "user", "content": text(" ", "So?")},
        ],
        "tools": TOOLS,
    },
    "developer": {"messages": [{"role": "developer", "content": "Be kind."}], "max_tokens": -1},
    "parts": {
        "messages": [
            {"role": "system", "content": text("Be kind.", "Be brief.")},
            {"role": "user", "content": text("One.", "Two.")},
            answer([{"type": "thinking", "thinking": text("why")}, *text("Three.")], call("c1")),
            result("c1", text("four", "five")),
            USER,
        ],
        "tools": TOOLS,
    },
    "empty": {
        "messages": [USER, answer(""), {**USER, "name": None}, answer(None, tool_calls=[], reasoning_content=""), USER],
        "tools": [],
        "stop": [],
    },
    "prefill": {"messages": [USER, answer("Once upon a time ")], "max_completion_tokens": 50},
    "schema": {
        "messages": [USER],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
        "seed": 7,
        "stop": ["END"],
        "user": "u",
        "prompt_cache_key": "k",
    },
}

SDKS = {
    "openai": "openai",
    "azure": "openai",
    "groq": "openai",
    "deepseek": "openai_and_reasoning",
    "moonshot": "openai_and_reasoning",
    "openrouter": "openai_and_reasoning",
    "cerebras": "openai_and_reasoning",
    "vllm": "openai_and_reasoning",
    "lmstudio": "openai_and_reasoning",
    "mistral": "mistral",
    "anthropic": "anthropic",
    "gemini": "gemini",
    "cohere": "cohere",
    "ollama": "ollama",
    "responses": "responses",
}
"""Vendors, and the SDK whose models hold for them."""
MODELS = {
    "anthropic": "claude-sonnet-4-5",
    "gemini": "gemini-3-pro-preview",
    "ollama": "qwen3:8b",
    "cohere": "command-a-03-2025",
}
CELLS = [(name, history) for name in SDKS for history in HISTORIES if (name, history) != ("responses", "schema")]
"""The Responses format has no `seed` and no `stop`, and says so."""


def vendor(name: str) -> Provider:
    if name == "responses":
        table = {"kind": "responses", "base_url": "http://127.0.0.1:9/v1"}
        return load_providers(Settings.model_validate({"providers": {name: table}}), {})[name]
    row = next(row for row in VENDORS if row.name == name)
    return load_providers(Settings(), {row.base_variables[0]: "http://127.0.0.1:9/v1"})[name]


def sent(name: str, history: str) -> dict[str, Any]:
    body = {"model": f"{name}/m", **copy.deepcopy(HISTORIES[history])}
    ChatRequest.check(body)
    provider = vendor(name)
    return dialect_of(provider).call(provider, body, MODELS.get(name, "m")).body


@pytest.fixture(scope="module")
def problems() -> dict[str, str | None]:
    """What each vendor's SDK has against what is sent."""
    if not PYTHON.exists():
        pytest.skip("no .venv-vendors: run `make clients`")
    asked = {f"{name} {history}": {"sdk": SDKS[name], "body": sent(name, history)} for name, history in CELLS}
    for name in SDKS:
        for wrong, body in mistaken(name).items():
            asked[f"{name} {wrong}"] = {"sdk": SDKS[name], "body": body}
    line = [str(PYTHON), str(PROGRAM)]
    done = subprocess.run(line, input=json.dumps(asked), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


def mistaken(name: str) -> dict[str, dict[str, Any]]:
    """Requests that are wrong, each in one place."""
    found = {}
    for wrong, place in (("at the top", ()), ("in a message", (-1,)), ("in a call", None)):
        body = sent(name, "tools")
        turns = next(body[key] for key in ("messages", "contents", "input") if key in body)
        if place == ():
            body["no_such_field"] = 1
        elif place:
            turns[-1]["no_such_field"] = 1
        else:
            said = next(turn for turn in turns if "get_weather" in json.dumps(turn))
            inner = said.get("content") or said.get("parts") or said.get("tool_calls") or [said]
            inner[0]["no_such_field"] = 1
        found[wrong] = body
    return found


@pytest.mark.parametrize("wrong", ["at the top", "in a message", "in a call"])
@pytest.mark.parametrize("name", SDKS)
def test_the_models_are_held_to(name: str, wrong: str, problems: dict[str, str | None]) -> None:
    assert "no_such_field" in (problems[f"{name} {wrong}"] or "")


@pytest.mark.parametrize(("name", "history"), CELLS)
def test_the_vendors_own_models_take_it(name: str, history: str, problems: dict[str, str | None]) -> None:
    assert problems[f"{name} {history}"] is None


# ---- what no model of theirs says, and their servers refuse


def ids(body: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The ids of calls, and of results, in their order."""
    calls: list[str] = []
    results: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, list):
            for one in value:
                look(one)
        elif isinstance(value, dict):
            kind = value.get("type")
            if (
                kind == "tool_use"
                or (kind == "function" and "function" in value and "id" in value)
                or "functionCall" in value
            ):
                calls.append((value.get("functionCall") or value)["id"])
            elif kind == "function_call" or ("function" in value and "id" in value):
                calls.append(value.get("call_id") or value["id"])
            elif "functionResponse" in value:
                results.append(value["functionResponse"]["id"])
            elif kind == "function_call_output" or "tool_use_id" in value or "tool_call_id" in value:
                results.append(value.get("call_id") or value.get("tool_use_id") or value["tool_call_id"])
            for key, one in value.items():
                if key != "tools":
                    look(one)

    look(body.get("messages") or body.get("contents") or body.get("input"))
    return calls, results


@pytest.mark.parametrize(("name", "history"), CELLS)
def test_each_call_has_its_own_id_and_one_result(name: str, history: str) -> None:
    calls, results = ids(sent(name, history))
    made = sum(len(message.get("tool_calls") or ()) for message in HISTORIES[history]["messages"])
    assert len(calls) == made
    assert sorted(calls) == sorted(results), "every call is answered, by its own id"
    assert len({*calls}) == len(calls)
    accepts = vendor(name).accepts.call_ids
    for one in calls:
        assert accepts.least <= len(one) <= accepts.most
        assert not accepts.alphabet or not {*one} - {*accepts.alphabet}


@pytest.mark.parametrize(("name", "history"), CELLS)
def test_nothing_goes_out_that_a_vendor_refuses(name: str, history: str) -> None:
    body = sent(name, history)
    told = json.dumps(body, ensure_ascii=False)
    for invented in ("thinking_blocks", "reasoning_items", "gemini_parts", "native_finish_reason"):
        assert invented not in told
    assert (": -1" in told) is (history == "developer" and vendor(name).accepts.unlimited)
    assert "image/jpg" not in told
    assert "IMAGE/PNG" not in told
    assert ('"developer"' in told) is (history == "developer" and vendor(name).accepts.developer)
    if history == "thinking" and name in ("openai", "azure", "groq", "mistral"):
        assert "why" not in told
    if history == "broken":
        assert re.search(r"city[^,]*Os", told), "what the model wrote is kept"
        if vendor(name).kind in ("openai", "cohere") and not vendor(name).accepts.raw_arguments:
            written = [
                one["function"]["arguments"] for turn in body["messages"] for one in turn.get("tool_calls") or ()
            ]
            assert all(isinstance(json.loads(one), dict) for one in written)
    if name == "anthropic":
        texts = re.findall(r'"text": "((?:[^"\\]|\\.)*)"', told)
        assert all(json.loads(f'"{one}"').strip() for one in texts)
        assert "thinking" not in body, "the last loop of tools began without a thought"
    if name == "mistral" and history == "prefill":
        assert body["messages"][-1]["prefix"] is True


def test_there_are_twelve_histories_and_eight_vendors_at_least() -> None:
    assert len(HISTORIES) >= 12
    assert len(SDKS) >= 8
    assert {row.kind for row in VENDORS} | {"responses"} == {vendor(name).kind for name in SDKS}
