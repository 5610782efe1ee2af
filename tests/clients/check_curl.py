"""What someone types with curl. Each line of the answer is looked at as a shell script would."""

import json
import subprocess
from typing import Any

import harness
from harness import ANSWER, CALLS, MESSAGES, TEXT, THOUGHT, TOOLS


def curl(base_url: str, key: str, path: str, body: object = None, *options: str) -> tuple[int, str]:
    """Its exit code and what it printed."""
    done = subprocess.run(command(base_url, key, path, body, *options), capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout


def command(base_url: str, key: str, path: str, body: object = None, *options: str) -> list[str]:
    line = ["curl", "-sN", base_url + path, "-H", f"Authorization: Bearer {key}", *options]
    return line if body is None else [*line, "-H", "Content-Type: application/json", "-d", json.dumps(body)]


def ask(base_url: str, key: str, model: str = "fake/echo", *options: str, **fields: Any) -> tuple[int, str]:
    return curl(base_url, key, "/chat/completions", {"model": model, "messages": MESSAGES, **fields}, *options)


def stream(base_url: str, key: str, model: str = "fake/echo", **fields: Any) -> list[dict[str, Any]]:
    """The data of a stream's events; every line is data, a blank one, or a comment."""
    code, answer = ask(base_url, key, model, stream=True, **fields)
    assert code == 0
    lines = [line for line in answer.split("\n") if line and not line.startswith(":")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def said(events: list[dict[str, Any]], field: str = "content") -> str:
    return "".join(event["choices"][0]["delta"].get(field) or "" for event in events if event.get("choices"))


def check_whole(base_url: str, key: str) -> None:
    code, answer = ask(base_url, key)
    assert code == 0
    assert json.loads(answer)["choices"][0]["message"]["content"] == "one two three"


def check_stream(base_url: str, key: str) -> None:
    assert said(stream(base_url, key, "scripted/client-slow")) == TEXT


def check_stream_with_usage(base_url: str, key: str) -> None:
    *chunks, last = stream(base_url, key, stream_options={"include_usage": True})
    assert last["usage"]["completion_tokens"] == 3
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)


def check_tool_calls(base_url: str, key: str) -> None:
    _, answer = ask(base_url, key, "scripted/client-tools", tools=TOOLS)
    calls = json.loads(answer)["choices"][0]["message"]["tool_calls"]
    assert [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls
    ] == CALLS


def check_reasoning(base_url: str, key: str) -> None:
    chunks = stream(base_url, key, "scripted/client-thinks")
    assert (said(chunks, "reasoning_content"), said(chunks)) == (THOUGHT, ANSWER)


def check_refusal(base_url: str, key: str) -> None:
    code, answer = ask(base_url, key, "scripted/client-refuses", "-w", "\n%{http_code}")
    body, _, status = answer.rpartition("\n")
    assert (code, status, json.loads(body)["error"]["code"]) == (0, "400", "no_such_thing")


def check_rate_limit(base_url: str, key: str) -> None:
    code, _ = ask(base_url, key, "scripted/client-limit", "--fail")
    assert code == 22, "with --fail an HTTP error is curl's own"


def check_error_in_the_middle(base_url: str, key: str) -> None:
    *chunks, last = stream(base_url, key, "scripted/client-broken")
    assert (said(chunks), last["error"]["code"]) == ("w0 w1 ", "fire")


def check_models(base_url: str, key: str) -> None:
    _, answer = curl(base_url, key, "/models")
    assert "fake/echo" in [model["id"] for model in json.loads(answer)["data"]]


def check_hang_up(base_url: str, key: str) -> None:
    body = {"model": "scripted/client-waits", "messages": MESSAGES, "stream": True}
    with subprocess.Popen(command(base_url, key, "/chat/completions", body), stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        next(line for line in run.stdout if '"w1 "' in line)
        run.terminate()


if __name__ == "__main__":
    version = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    harness.run(globals(), version)
