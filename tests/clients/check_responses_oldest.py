"""What a program does with the Responses API of the oldest official OpenAI SDK for Python that has it. It streams, and knows no
way to go on with a stream by its id; `retrieve` gives the whole."""

import json
import time
from collections.abc import Callable
from typing import Any

import harness
import openai
from harness import ANSWER, CALLS, PARAMETERS, TEXT, THOUGHT, raises

ASKED = "one two three"
TOOLS: Any = [{"type": "function", "name": name, "parameters": PARAMETERS, "strict": False} for name in "fg"]


def create(client: openai.OpenAI, model: str = "fake/echo", **options: Any) -> Any:
    return client.responses.create(model=model, **{"input": ASKED, **options})


def check_whole(client: openai.OpenAI) -> None:
    answer = create(client)
    assert (answer.output_text, answer.status, answer.usage.output_tokens) == (ASKED, "completed", 3)


def check_stream(client: openai.OpenAI) -> None:
    events = list(create(client, "scripted/client-slow", stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT
    assert events[-1].response.output_text == TEXT


def check_retrieve_and_delete(client: openai.OpenAI) -> None:
    answer = create(client, extra_body={"background": True})
    while answer.status in ("queued", "in_progress"):
        time.sleep(0.05)
        answer = client.responses.retrieve(answer.id)
    assert (answer.status, answer.output_text) == ("completed", ASKED)
    items: list[Any] = list(client.responses.input_items.list(answer.id))
    assert [item.content[0].text for item in items] == [ASKED]
    client.responses.delete(answer.id)
    with raises(openai.NotFoundError, code="not_found"):
        client.responses.retrieve(answer.id)


def check_tool_calls(client: openai.OpenAI) -> None:
    answer = create(client, "scripted/client-tools", tools=TOOLS)
    calls: list[Any] = [item for item in answer.output if item.type == "function_call"]
    assert [(call.call_id, call.name, json.loads(call.arguments)) for call in calls] == CALLS
    outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "4"} for call in calls]
    assert create(client, input=outputs, previous_response_id=answer.id).status == "completed"
    assert create(client, input=[{"role": "user", "content": ASKED}, *answer.output, *outputs]).status == "completed"


def check_reasoning(client: openai.OpenAI) -> None:
    answer = create(client, "scripted/client-thinks", reasoning={"effort": "low", "generate_summary": "concise"})
    assert answer.output[0].summary[0]["text"] == THOUGHT, "its model of an item of reasoning has another field"
    assert answer.output_text == ANSWER


def check_failures(client: openai.OpenAI) -> None:
    with raises(openai.BadRequestError, code="no_such_thing"):
        create(client, "scripted/client-refuses")
    *_, last = create(client, "scripted/client-broken", stream=True)
    assert (last.type, last.response.error.code) == ("response.failed", "server_error")


def with_client(check: Callable[[openai.OpenAI], None]) -> Callable[[str, str], None]:
    def run(base_url: str, key: str) -> None:
        with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=60) as client:
            check(client)

    return run


if __name__ == "__main__":
    checks = {name: with_client(value) for name, value in globals().items() if name.startswith("check_")}
    harness.run(checks, openai.__version__)
