"""A Responses request as the chat request it becomes, and as what the response repeats of it."""

from __future__ import annotations

from typing import Any

import pytest

from shared.errors import BadRequest
from shared.features.responses import ids
from shared.features.responses.items import Calls, to_items
from shared.features.responses.request import ResponsesRequest, echoed, to_chat
from tests.harness.records import header_with

MODEL = {"model": "fake/echo"}
HEADER = header_with({"id": "chatcmpl-" + "0" * 32, "model": "fake/echo", "created_at_ms": 0})
IMAGE = "data:image/png;base64,AA=="
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}


def chat(calls: Calls | None = None, **fields: Any) -> dict[str, Any]:
    given = {**MODEL, "input": "hi", **fields}
    checked = ResponsesRequest.check(given)
    return to_chat(given, checked, checked.items, calls=calls).body


def messages(*items: Any, **fields: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = chat(input=list(items), **fields)["messages"]
    return found


def refusal(**fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        chat(**fields)
    return caught.value


def test_text_and_instructions_are_messages() -> None:
    assert chat(instructions="be brief")["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]


def test_items_are_read_in_every_spelling_that_clients_send() -> None:
    assert messages(
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "id": "msg_foreign", "content": [{"type": "input_text", "text": "a"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": None,
            "encrypted_content": "x",
            "status": "in_progress",
        },
        {
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "b", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "call_id": "c1", "id": "fc_1", "name": "f", "arguments": "{}", "status": None},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": '{"x":1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ) == [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": "b",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": '{"x":1}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
        {"role": "assistant", "content": None, "refusal": "no"},
    ]


def test_an_output_may_name_the_item_instead_of_the_call() -> None:
    call = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"}
    found = messages(call, {"type": "function_call_output", "call_id": "fc_1", "output": "x"})
    assert found[1]["tool_call_id"] == "c1"


def test_a_call_without_arguments_has_none() -> None:
    """Some servers tell null while a call begins, and clients send back what they were told."""
    for written in ({"arguments": None}, {}):
        found = messages({"type": "function_call", "call_id": "c1", "name": "f", **written})
        assert found[0]["tool_calls"][0]["function"] == {"name": "f", "arguments": ""}


def test_an_output_may_answer_a_call_before_by_any_id_it_has() -> None:
    output = {"type": "function_call_output", "call_id": "fc_1", "output": "x"}
    body = chat({("function_call", "fc_1"): "c1"}, instructions="now", input=[output])
    assert [message["role"] for message in body["messages"]] == ["system", "tool"]
    assert body["messages"][1]["tool_call_id"] == "c1"


def test_input_is_found_again_as_items() -> None:
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "b", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "x"},
        {"type": "function_call_output", "call_id": "c", "output": "y"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": "z"},
    ]
    found = to_items(messages(*items), HEADER["id"])
    assert [{k: v for k, v in item.items() if k not in ("id", "status")} for item in found] == items
    assert len({item["id"] for item in found}) == len(found)
    assert all(ids.place(item["id"]) == (HEADER["id"], ids.FIRST_INPUT + at) for at, item in enumerate(found))


def test_images_files_and_sound_are_parts() -> None:
    sound = {"data": "AA==", "format": "wav"}
    (message,) = messages(
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "look"},
                {"type": "input_image", "image_url": IMAGE, "detail": "low"},
                {"type": "input_file", "file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"},
                {"type": "input_audio", "input_audio": sound},
            ],
        }
    )
    assert message["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"}},
        {"type": "input_audio", "input_audio": sound},
    ]


def test_reasoning_goes_back_only_where_it_is_wanted_and_a_tool_was_called() -> None:
    items = [
        {"role": "user", "content": "a"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "why"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"role": "assistant", "content": "b"},
    ]
    found = messages(*items, store_reasoning=True)
    assert [message.get("reasoning_content") for message in found] == [None, "why", None, None]
    assert not any("reasoning_content" in message for message in messages(*items))


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True},
        {"type": "custom", "name": "c", "description": "d", "format": {"type": "text"}},
        {"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"}},
    ],
)
def test_tools_are_nested_there_and_flat_here(tool: dict[str, Any]) -> None:
    body = chat(tools=[tool])
    nested = body["tools"][0]
    assert nested[nested["type"]]["name"] == tool["name"]
    assert echoed(HEADER, body)["tools"] == [tool]


@pytest.mark.parametrize(
    ("choice", "nested"),
    [
        ("required", "required"),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
            },
        ),
    ],
)
def test_a_choice_of_tools_goes_there_and_back(choice: Any, nested: Any) -> None:
    body = chat(tools=[FUNCTION], tool_choice=choice)
    assert body["tool_choice"] == nested
    assert echoed(HEADER, body)["tool_choice"] == choice


def test_a_format_goes_there_and_back() -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True, "description": None}
    body = chat(text={"format": form, "verbosity": "low"})
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
    }
    assert echoed(HEADER, body)["text"] == {"format": form, "verbosity": "low"}
    assert echoed(HEADER, chat())["text"] == {"format": {"type": "text"}}
    assert echoed(HEADER, chat(text={}))["text"] == {"format": {"type": "text"}}


def test_what_has_another_name_and_what_has_the_same() -> None:
    body = chat(
        max_output_tokens=20,
        reasoning={"effort": "low", "summary": "auto"},
        temperature=0.5,
        top_k=3,
        metadata={"a": "b"},
        include=["message.output_text.logprobs"],
    )
    assert (body["max_completion_tokens"], body["reasoning_effort"], body["logprobs"]) == (20, "low", True)
    assert (body["temperature"], body["top_k"], body["metadata"]) == (0.5, 3, {"a": "b"})
    told = echoed(HEADER, body)
    assert (told["max_output_tokens"], told["reasoning"]) == (20, {"effort": "low", "summary": "auto"})


def test_what_clients_send_without_a_need_is_taken() -> None:
    body = chat(
        include=[], tools=[], store=True, previous_response_id=None, metadata={}, text={}, parallel_tool_calls=True,
        tool_choice="auto", truncation="disabled", client_metadata={"x": 1}, prompt=None,
    )  # fmt: skip
    assert set(body) == {"model", "messages", "metadata", "responses"}
    assert echoed(HEADER, body)["parallel_tool_calls"] is True


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [FUNCTION, {"type": "function"}]}, "tools[1].name"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"truncation": "auto"}, "truncation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"response_format": {"type": "text"}}, "response_format"),
        ({"include": ["everything"]}, "include"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"input": 3}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": []}, "input"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type"),
        ({"input": [{"content": "x"}]}, "input[0].type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "video"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "f"}]}]},
            "input[0].content[0].file_url",
        ),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": "warm"}, "temperature"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param
