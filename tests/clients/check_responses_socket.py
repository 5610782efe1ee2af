"""What a program does with the WebSocket mode of the official OpenAI SDK for Python: `client.responses.connect()`."""

from collections.abc import Callable
from typing import Any

import harness
import openai
from harness import CALLS, PARAMETERS, TEXT

TOOLS: Any = [{"type": "function", "name": name, "parameters": PARAMETERS, "strict": False} for name in "fg"]


def ask(connection: Any, model: str = "fake/echo", **fields: Any) -> Any:
    """The last event of the answer to this request."""
    connection.send({"type": "response.create", "model": model, "input": "one two three", **fields})
    for event in connection:
        if event.type in ("response.completed", "response.failed", "response.incomplete", "error"):
            return event
    raise AssertionError("the socket was closed")


def check_whole(connection: Any) -> None:
    answer = ask(connection).response
    assert (answer.output_text, answer.usage.output_tokens) == ("one two three", 3)


def check_events(connection: Any) -> None:
    connection.response.create(model="scripted/client-slow", input="x")
    seen = []
    for event in connection:
        if event.type != "keepalive":
            seen.append(event)
        if event.type == "response.completed":
            break
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == TEXT


def check_lanes(connection: Any) -> None:
    for name, model in (("a", "fake/lorem?tokens=4&rate=1"), ("b", "fake/echo")):
        connection.send({"type": "response.create", "model": model, "input": name, "stream_id": name})
    ended = []
    for event in connection:
        if event.type == "response.completed":
            ended.append((event.stream_id, event.response.output_text))
        if len(ended) == 2:
            break
    assert ended == [("b", "b"), ("a", "lorem ipsum dolor sit ")]


def check_tool_loop_without_store(connection: Any) -> None:
    first = ask(connection, "scripted/client-tools", tools=TOOLS, store=False).response
    calls = [item for item in first.output if item.type == "function_call"]
    assert [(call.call_id, call.name) for call in calls] == [(call_id, name) for call_id, name, _ in CALLS]
    outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "4"} for call in calls]
    second = ask(connection, input=outputs, previous_response_id=first.id, tools=TOOLS, store=False)
    assert second.type == "response.completed", second


def check_prepared(connection: Any) -> None:
    ready = ask(connection, generate=False).response
    assert ready.output == []
    assert ask(connection, input="four", previous_response_id=ready.id).response.output_text == "four"


def check_failures(connection: Any) -> None:
    refused = ask(connection, previous_response_id="resp_0")
    assert (refused.status, refused.error.code) == (404, "previous_response_not_found")
    assert ask(connection, "scripted/client-broken").type == "response.failed"
    assert ask(connection).response.status == "completed"


def with_connection(check: Callable[[Any], None]) -> Callable[[str, str], None]:
    def run(base_url: str, key: str) -> None:
        with openai.OpenAI(base_url=base_url, api_key=key) as client, client.responses.connect() as connection:
            check(connection)

    return run


if __name__ == "__main__":
    checks = {name: with_connection(value) for name, value in globals().items() if name.startswith("check_")}
    harness.run(checks, openai.__version__)
