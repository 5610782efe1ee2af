"""What a program does with the Responses API of the official OpenAI SDK for Python."""

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
    numbered = [event for event in events if event.type != "keepalive"]
    assert [event.sequence_number for event in numbered] == list(range(len(numbered)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT
    assert events[-1].response.output_text == TEXT


def check_stream_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(model="scripted/client-slow", input=ASKED) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert final.output_text == TEXT


def check_stream_is_resumed(client: openai.OpenAI) -> None:
    seen = []
    for event in create(client, "scripted/client-slow", stream=True, background=True):
        seen.append(event)
        if event.type == "response.output_text.delta":
            break
    response_id = seen[0].response.id
    last = seen[-1].sequence_number
    again: Any = client.responses.retrieve(response_id, stream=True, starting_after=last)
    rest = [event for event in again if event.type != "keepalive"]
    assert [event.sequence_number for event in rest] == list(range(last + 1, last + 1 + len(rest)))
    told = [event.delta for event in [*seen, *rest] if event.type == "response.output_text.delta"]
    assert "".join(told) == TEXT
    with client.responses.stream(response_id=response_id, starting_after=last) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == TEXT
    assert "response.created" not in kinds


def check_background(client: openai.OpenAI) -> None:
    answer = create(client, background=True)
    assert answer.status in ("queued", "in_progress")
    while answer.status in ("queued", "in_progress"):
        time.sleep(0.05)
        answer = client.responses.retrieve(answer.id)
    assert (answer.status, answer.output_text) == ("completed", ASKED)


def check_cancel_and_delete(client: openai.OpenAI) -> None:
    answer = create(client, "fake/lorem?tokens=1000&rate=10", background=True)
    assert client.responses.cancel(answer.id).status == "cancelled"
    client.responses.delete(answer.id)
    with raises(openai.NotFoundError, code="not_found"):
        client.responses.retrieve(answer.id)


def check_tool_calls(client: openai.OpenAI) -> None:
    with client.responses.stream(model="scripted/client-tools", input=ASKED, tools=TOOLS) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_response()
    for answer in (streamed, create(client, "scripted/client-tools", tools=TOOLS)):
        calls: list[Any] = [item for item in answer.output if item.type == "function_call"]
        assert [(call.call_id, call.name, json.loads(call.arguments)) for call in calls] == CALLS
    outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "4"} for call in calls]
    history = [{"role": "user", "content": ASKED}, *answer.output, *outputs]
    assert create(client, input=history).status == "completed"
    assert create(client, input=outputs, previous_response_id=answer.id).status == "completed"


def check_reasoning(client: openai.OpenAI) -> None:
    summarised = create(client, "scripted/client-thinks", reasoning={"summary": "auto"})
    plain = create(client, "scripted/client-thinks")
    assert summarised.output[0].summary[0].text == plain.output[0].content[0].text == THOUGHT
    assert summarised.output_text == plain.output_text == ANSWER


def check_carried_reasoning(client: openai.OpenAI) -> None:
    """Nothing is stored, and the client keeps what the model thought."""
    options: Any = {"store": False, "include": ["reasoning.encrypted_content"]}
    with client.responses.stream(model="scripted/client-thinks", input=ASKED, **options) as stream:
        for _ in stream:
            pass
        first: Any = stream.get_final_response()
    assert first.output[0].encrypted_content
    client.responses.delete(first.id)
    history = [{"role": "user", "content": ASKED}, *first.output, {"role": "user", "content": "four"}]
    assert create(client, "scripted/client-thinks", **options, input=history).output_text == ANSWER


def check_previous_response_and_input_items(client: openai.OpenAI) -> None:
    first = create(client)
    second = create(client, input="four", previous_response_id=first.id)
    assert second.output_text == "four"
    items: list[Any] = list(client.responses.input_items.list(second.id))
    assert [item.content[0].text for item in items] == ["four"]
    with raises(openai.NotFoundError, code="previous_response_not_found"):
        create(client, previous_response_id="resp_0")


def check_conversations(client: openai.OpenAI) -> None:
    conversations: Any = client.conversations
    said = [{"type": "message", "role": "user", "content": text} for text in ("one", "two")]
    made = conversations.create(items=said[:1], metadata={"a": "b"})
    assert conversations.retrieve(made.id).metadata == {"a": "b"}
    assert conversations.update(made.id, metadata={"c": "d"}).metadata == {"c": "d"}
    (added,) = conversations.items.create(made.id, items=said[1:]).data
    answer = create(client, input="three", conversation=made.id)
    assert answer.conversation.id == made.id

    def texts() -> list[str]:
        return [item.content[0].text for item in conversations.items.list(made.id, order="asc", limit=2)]

    assert texts() == ["one", "two", "three", "three"]
    assert conversations.items.retrieve(added.id, conversation_id=made.id).content[0].text == "two"
    assert conversations.items.delete(added.id, conversation_id=made.id).id == made.id
    assert texts() == ["one", "three", "three"]
    assert conversations.delete(made.id).deleted
    with raises(openai.NotFoundError, status_code=404):
        conversations.retrieve(made.id)


def check_embeddings(client: openai.OpenAI) -> None:
    """As floats, and as base64, which it asks for unless told otherwise."""
    for form in ("float", None):
        options: Any = {"encoding_format": form} if form else {}
        found = client.embeddings.create(model="fake/echo", input=["one", "two", "one"], dimensions=16, **options)
        first, other, again = [row.embedding for row in found.data]
        assert len(first) == 16
        assert first == again != other


def check_parsed(client: openai.OpenAI) -> None:
    answer = create(
        client, input='{"x": 1}', text={"format": {"type": "json_schema", "name": "n", "schema": PARAMETERS}}
    )
    assert json.loads(answer.output_text) == {"x": 1}
    assert answer.text.format.name == "n"


def check_failures(client: openai.OpenAI) -> None:
    with raises(openai.BadRequestError, code="no_such_thing"):
        create(client, "scripted/client-refuses")
    with raises(openai.BadRequestError, param="tools[0].type"):
        create(client, tools=[{"type": "web_search"}])
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
