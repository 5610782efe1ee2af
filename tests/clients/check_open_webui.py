"""Open WebUI as a client: its own reading rules (backend/open_webui: routers/openai.py, utils/middleware.py), applied.

It is too big to install here. So its rules are written down below, and everything that holds for them holds for it.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import harness
import httpx
from harness import ANSWER, CALLS, MESSAGES, TEXT, THOUGHT, TOOLS

VERSION = "0.12.4"
FORWARDED = {
    "X-OpenWebUI-User-Name": "Ada",
    "X-OpenWebUI-User-Id": "u-1",
    "X-OpenWebUI-User-Email": "ada@example.com",
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "c-1",
}
PARAMETERS = {
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
    tool_calls: dict[int, dict[str, str]] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)
    errors: list[Any] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)

    def line(self, line: str) -> None:
        """Only lines that begin with `data:` count; others are tried as JSON, for an error."""
        if line.startswith("data:"):
            data = line.removeprefix("data:").strip()
            if data != "[DONE]":
                self._chunk(json.loads(data))
            return
        try:
            other = json.loads(line)
        except ValueError:
            return
        if isinstance(other, dict) and "error" in other:
            self.errors.append(other["error"])

    def _chunk(self, chunk: dict[str, Any]) -> None:
        """Usage is added up wherever it stands. An error counts beside no choices only; one beside choices is not seen."""
        assert not {"type", "event", "selected_model_id"} & set(chunk), "would be taken for an event of another kind"
        for name, value in (chunk.get("usage") or {}).items():
            if isinstance(value, int):
                self.usage[name] = self.usage.get(name, 0) + value
        choices = chunk.get("choices", [])
        if not choices:
            if chunk.get("error"):
                self.errors.append(chunk["error"])
            return
        delta = choices[0].get("delta", {})
        self.content += delta.get("content") or ""
        self.reasoning += delta.get("reasoning_content") or delta.get("reasoning") or delta.get("thinking") or ""
        for call in delta.get("tool_calls") or []:
            known = self.tool_calls.setdefault(call["index"], {"id": "", "name": "", "arguments": ""})
            known["id"] = call.get("id") or known["id"]
            for part in ("name", "arguments"):
                known[part] += call.get("function", {}).get(part) or ""
        if reason := choices[0].get("finish_reason"):
            self.finish_reasons.append(reason)


def webui(base_url: str, key: str) -> httpx.Client:
    """Its HTTP client: base URL without the trailing slash, a bearer key, and the user's headers where that is on."""
    headers = {"Authorization": f"Bearer {key}", **FORWARDED}
    return httpx.Client(base_url=base_url, headers=headers, trust_env=False, timeout=60)


def post(base_url: str, key: str, model: str, **fields: Any) -> httpx.Response:
    with webui(base_url, key) as client:
        return client.post("/chat/completions", json={"model": model, "messages": MESSAGES, **fields})


def chat(base_url: str, key: str, model: str = "fake/echo", **fields: Any) -> Shown:
    """What is shown of a chat."""
    response = post(base_url, key, model, stream=True, **fields)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    shown = Shown()
    for line in response.text.split("\n"):
        shown.line(line)
    return shown


def check_whole(base_url: str, key: str) -> None:
    """Titles, tags and follow-ups: asked for side by side, without streaming."""
    fields = {"stream": False, "max_tokens": 1000, "metadata": {"task": "t"}}
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: post(base_url, key, "fake/echo", **fields), range(3)))
    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == ["one two three"] * 3


def check_stream(base_url: str, key: str) -> None:
    shown = chat(base_url, key, "scripted/client-slow", **PARAMETERS)
    assert (shown.content, shown.finish_reasons, shown.errors) == (TEXT, ["stop"], [])
    assert shown.usage == {}


def check_stream_with_usage(base_url: str, key: str) -> None:
    shown = chat(base_url, key, "scripted/client-slow", stream_options={"include_usage": True})
    assert shown.usage == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def check_stream_with_ids(base_url: str, key: str) -> None:
    plain = chat(base_url, key)
    FORWARDED["X-Stream-Ids"] = "1"
    assert chat(base_url, key) == plain
    del FORWARDED["X-Stream-Ids"]


def check_tool_calls(base_url: str, key: str) -> None:
    calls = chat(base_url, key, "scripted/client-tools", tools=TOOLS).tool_calls
    assert [(call["id"], call["name"], json.loads(call["arguments"])) for call in calls.values()] == CALLS


def check_reasoning(base_url: str, key: str) -> None:
    shown = chat(base_url, key, "scripted/client-thinks")
    assert (shown.reasoning, shown.content) == (THOUGHT, ANSWER)


def check_refusal(base_url: str, key: str) -> None:
    """The body of a refusal is shown to the user."""
    response = post(base_url, key, "scripted/client-refuses", stream=True)
    shown = Shown()
    for line in response.text.split("\n"):
        shown.line(line)
    assert [error["code"] for error in shown.errors] == ["no_such_thing"]


def check_rate_limit(base_url: str, key: str) -> None:
    response = post(base_url, key, "scripted/client-limit")
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert isinstance(response.json()["error"]["message"], str)


def check_error_in_the_middle(base_url: str, key: str) -> None:
    shown = chat(base_url, key, "scripted/client-broken")
    assert (shown.content, [error["code"] for error in shown.errors]) == ("w0 w1 ", ["fire"])


def check_models(base_url: str, key: str) -> None:
    """The button that verifies a connection."""
    with webui(base_url, key) as client:
        response = client.get("/models")
    assert response.status_code == 200
    listed = response.json()
    models = listed if isinstance(listed, list) else listed["data"]
    assert {"fake/echo", "fake/lorem"} <= {model.get("id") or model["name"] for model in models}
    assert all(isinstance(model["id"], str) for model in models)


def check_hang_up(base_url: str, key: str) -> None:
    """Its Stop button closes the connection."""
    body = {"model": "scripted/client-waits", "messages": MESSAGES, "stream": True}
    with webui(base_url, key) as client, client.stream("POST", "/chat/completions", json=body) as response:
        shown, unread = Shown(), ""
        for received in response.iter_text():
            *lines, unread = (unread + received).split("\n")
            for line in lines:
                shown.line(line)
            if shown.content.endswith("w1 "):
                break


if __name__ == "__main__":
    harness.run(globals(), VERSION)
