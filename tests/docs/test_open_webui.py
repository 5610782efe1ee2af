"""Open WebUI as a client: its own reading rules (backend/open_webui: routers/openai.py, utils/middleware.py), applied."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.support.stack import Stack, wait_until

FORWARDED = {
    "X-OpenWebUI-User-Name": "Ada",
    "X-OpenWebUI-User-Id": "u-1",
    "X-OpenWebUI-User-Email": "ada@example.com",
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "c-1",
}
PARAMETERS: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.9,
    "min_p": 0.05,
    "max_tokens": 1000,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "reasoning_effort": "low",
    "seed": 7,
    "stop": ["\n\n\n"],
    "logit_bias": {"50256": -100},
    "custom_of_the_admin": {"deep": [1, None, "x"]},
}


@dataclass
class Shown:
    """What the chat window has in the end."""

    content: str = ""
    reasoning: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    errors: list[Any] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)


def read(text: str) -> Shown:
    """Splits at LF; only lines that begin with `data:` count; others are tried as JSON, for an error; usage is added up."""
    shown = Shown()
    for line in text.split("\n"):
        if not line.startswith("data:"):
            try:
                other = json.loads(line)
            except ValueError:
                continue
            if isinstance(other, dict) and "error" in other:
                shown.errors.append(other["error"])
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            continue
        chunk = json.loads(data)
        assert not {"type", "event", "selected_model_id"} & set(chunk), "would be taken for an event of another kind"
        for name, value in (chunk.get("usage") or {}).items():
            if isinstance(value, int):
                shown.usage[name] = shown.usage.get(name, 0) + value
        choices = chunk.get("choices", [])
        if not choices:
            if chunk.get("error"):
                shown.errors.append(chunk["error"])
            continue
        delta = choices[0].get("delta", {})
        shown.content += delta.get("content") or ""
        shown.reasoning += delta.get("reasoning_content") or delta.get("reasoning") or delta.get("thinking") or ""
        if reason := choices[0].get("finish_reason"):
            shown.finish_reasons.append(reason)
    return shown


@pytest.fixture
def webui(stack: Stack) -> Any:
    """Its HTTP client: base URL without the trailing slash, a bearer key, and the user's headers where that is on."""
    headers = {"Authorization": "Bearer any", **FORWARDED}
    with httpx.Client(base_url=f"{stack.url}/v1", headers=headers, trust_env=False, timeout=20) as client:
        yield client


def chat(webui: httpx.Client, model: str, **fields: Any) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello there"}], "stream": True, **fields}
    response = webui.post("/chat/completions", json=body)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    return response.text


def test_the_verify_button_finds_the_models(webui: httpx.Client) -> None:
    response = webui.get("/models")
    assert response.status_code == 200
    listed = response.json()
    models = listed if isinstance(listed, list) else listed["data"]
    assert {"fake/echo", "fake/lorem"} <= {model.get("id") or model["name"] for model in models}
    assert all(isinstance(model["id"], str) for model in models)


def test_a_chat_with_all_its_parameters_is_shown_whole(webui: httpx.Client) -> None:
    shown = read(chat(webui, "fake/lorem?tokens=4&reasoning=3", stream_options={"include_usage": True}, **PARAMETERS))
    assert shown.content == "lorem ipsum dolor sit "
    assert shown.reasoning == "lorem ipsum dolor "
    assert shown.finish_reasons == ["stop"]
    assert shown.errors == []


@pytest.mark.parametrize("asked", [True, False])
def test_usage_adds_up_to_what_was_used(webui: httpx.Client, asked: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if asked else {}
    shown = read(chat(webui, "fake/lorem?tokens=5", **options))
    assert shown.usage == ({"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7} if asked else {})


def test_a_stream_with_ids_reads_the_same(webui: httpx.Client) -> None:
    plain = read(chat(webui, "fake/echo"))
    webui.headers["X-Stream-Ids"] = "1"
    assert read(chat(webui, "fake/echo")) == plain


def test_an_answer_that_breaks_off_shows_its_text_and_one_error(webui: httpx.Client) -> None:
    shown = read(chat(webui, "fake/echo?cut=1"))
    assert shown.content == "Hello "
    assert [error["code"] for error in shown.errors] == ["upstream_incomplete"]


def test_a_refusal_is_passed_to_the_user(webui: httpx.Client) -> None:
    body = {"model": "fake/echo?error=429", "messages": [{"role": "user", "content": "x"}], "stream": True}
    response = webui.post("/chat/completions", json=body)
    assert response.status_code == 429
    assert isinstance(response.json()["error"]["message"], str)


def test_titles_tags_and_follow_ups_are_answered_side_by_side(webui: httpx.Client) -> None:
    def task(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        body = {
            "model": "fake/echo",
            "messages": messages,
            "stream": False,
            "max_tokens": 1000,
            "metadata": {"task": "t"},
        }
        answer = webui.post("/chat/completions", json=body)
        assert answer.status_code == 200
        return str(answer.json()["choices"][0]["message"]["content"])

    prompts = ["a title", "some tags", "follow ups"]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(task, prompts)) == prompts


def test_stop_closes_the_connection_and_the_answer_goes_on(webui: httpx.Client) -> None:
    body = {"model": "fake/lorem?tokens=1000&rate=20", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with webui.stream("POST", "/chat/completions", json=body) as response:
        next(response.iter_raw())
        stream = f"/streams/{response.headers['x-stream-id']}"

    def state() -> Any:
        return webui.get(stream, headers={"Accept": "application/json"}).json()

    left_at = wait_until(lambda: (now := state())["viewers"] == 0 and now)
    after = wait_until(lambda: (now := state())["position"] != left_at["position"] and now)
    assert after["status"] == "in_progress"
    assert webui.post(f"{stream}/cancel").json()["status"] == "cancelled"


def test_stop_ends_the_answer_if_the_model_has_that_parameter(webui: httpx.Client) -> None:
    body = {
        "model": "fake/lorem?tokens=1000&rate=20",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "on_disconnect": "cancel",
    }
    with webui.stream("POST", "/chat/completions", json=body) as response:
        next(response.iter_raw())
        stream = f"/streams/{response.headers['x-stream-id']}"
    state = {"Accept": "application/json"}
    wait_until(lambda: webui.get(stream, headers=state).json()["status"] == "cancelled")
