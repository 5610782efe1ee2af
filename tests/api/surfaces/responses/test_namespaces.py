"""Namespaces of tools, as Codex sends them: a chat has their tools under other names, the client under its own."""

from __future__ import annotations

from typing import Any

import pytest

from shared.errors import BadRequest
from shared.features.responses.namespaces import flat_name, spaces_in
from shared.features.responses.request import ResponsesRequest, echoed, to_chat
from tests.api.surfaces.responses.test_events import HEADER
from tests.harness.upstream import DONE, chunk
from tests.support.responses import PATH, events, response
from tests.support.wire import Client, Register

SCHEMA = {"type": "object", "properties": {}}
FIND: dict[str, Any] = {
    "type": "function",
    "name": "find",
    "description": "Finds.",
    "parameters": SCHEMA,
    "strict": False,
}
RUN: dict[str, Any] = {"type": "custom", "name": "run"}
CRM: dict[str, Any] = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [FIND, RUN]}
PLAIN = {**FIND, "description": "Finds all."}


def chat_of(**fields: Any) -> dict[str, Any]:
    given = {"model": "m/x", "input": "hi", **fields}
    checked = ResponsesRequest.check(given)
    return to_chat(given, checked, checked.items).body


def test_a_provider_is_sent_plain_tools_and_a_client_is_told_its_own() -> None:
    choice = {"type": "function", "name": "find", "namespace": "crm"}
    body = chat_of(tools=[PLAIN, CRM], tool_choice=choice)
    functions = [tool[tool["type"]] for tool in body["tools"]]
    assert [function["name"] for function in functions] == ["find", "crm__find", "crm__run"]
    assert [function["description"] for function in functions] == ["Finds all.", "Finds.\n\nCustomers.", "Customers."]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "crm__find"}}
    told = echoed(HEADER, body)
    assert told["tool_choice"] == choice
    assert told["tools"][0] == PLAIN
    assert told["tools"][1] == {**CRM, "tools": [FIND, {**RUN, "description": None}]}


def test_nothing_needs_a_description() -> None:
    told = echoed(HEADER, chat_of(tools=[{"type": "namespace", "name": "crm", "tools": [RUN]}]))
    assert told["tools"] == [
        {"type": "namespace", "name": "crm", "description": "", "tools": [{**RUN, "description": None}]}
    ]


def test_a_namespace_in_two_parts_is_its_providers_own_affair() -> None:
    spaces = spaces_in([{**CRM, "tools": [FIND]}, {**CRM, "tools": [RUN]}])
    assert spaces["crm"]["tools"] == {"crm__find": "find", "crm__run": "run"}


def test_allowed_tools_may_be_in_a_namespace() -> None:
    allowed = [{"type": "function", "name": "find", "namespace": "crm"}, {"type": "function", "name": "find"}]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": allowed}
    body = chat_of(tools=[PLAIN, CRM], tool_choice=choice)
    names = [tool["function"]["name"] for tool in body["tool_choice"]["allowed_tools"]["tools"]]
    assert names == ["crm__find", "find"]
    assert echoed(HEADER, body)["tool_choice"] == choice


@pytest.mark.parametrize("namespace", ["a" * 63, "mcp.server one", "ü"])
def test_a_name_that_a_provider_would_refuse_is_another(namespace: str) -> None:
    flat = flat_name(namespace, "find")
    assert len(flat) <= 64
    assert flat.replace("_", "").replace("-", "").isalnum()
    assert flat.isascii()
    assert flat != flat_name(namespace + "x", "find")
    assert flat == flat_name(namespace, "find")


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{"type": "namespace", "name": "crm"}], "tools[0].tools"),
        ([{"type": "namespace", "name": "crm", "tools": []}], "tools[0].tools"),
        ([{"type": "namespace", "tools": [FIND]}], "tools[0].name"),
        ([{"type": "namespace", "name": "crm", "tools": [{"type": "function"}]}], "tools[0].tools[0].name"),
        ([{"type": "namespace", "name": "crm", "tools": [{"type": "web_search"}]}], "tools[0].tools[0].type"),
        ([{"type": "namespace", "name": "crm", "tools": [CRM]}], "tools[0].tools"),
        ([CRM, {**FIND, "name": "crm__find"}], "tools"),
        ([{**CRM, "tools": [FIND, RUN, {**FIND, "description": "Finds again."}]}], "tools"),
        ([CRM, {**CRM, "tools": [{**RUN, "name": "walk"}]}], "tools"),
        ([CRM, {"type": "web_search"}], "tools[1].type"),
    ],
)
def test_what_is_no_namespace_is_refused(tools: list[dict[str, Any]], param: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        chat_of(tools=tools)
    assert refusal.value.param == param


def test_a_tool_loop_through_a_namespace(alice: Client, scripted: Register) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "crm__find", "arguments": "{}"}}
    first = [chunk({"role": "assistant", "tool_calls": [call]}), chunk({}, "tool_calls"), DONE]
    script = scripted(first)
    body = {"model": script.model, "input": "x", "tools": [CRM], "stream": True}
    told = events(alice.http.post(PATH, json=body).content)
    (item,) = told[-1]["response"]["output"]
    assert (item["name"], item["namespace"], item["call_id"]) == ("find", "crm", "c1")
    (done,) = [event for event in told if event["type"] == "response.function_call_arguments.done"]
    assert done["name"] == "find"
    output = {"type": "function_call_output", "call_id": "c1", "output": "7"}
    again = alice.http.post(
        PATH, json={**body, "stream": False, "input": [{"role": "user", "content": "x"}, item, output]}
    )
    made = response(again.json())
    assert made["output"][0]["namespace"] == "crm"
    sent = script.script.calls[1]["messages"][1]
    assert sent["tool_calls"][0]["function"]["name"] == "crm__find"
    listed = alice.get(f"{PATH}/{made['id']}/input_items", params={"order": "asc"}).json()["data"]
    assert [(one["type"], one.get("name"), one.get("namespace")) for one in listed][1] == (
        "function_call",
        "find",
        "crm",
    )
    rest = alice.http.post(PATH, json={**body, "stream": False, "input": [output], "previous_response_id": made["id"]})
    assert rest.status_code == 200, rest.text


def test_a_conversation_shows_its_calls_as_they_came(alice: Client, scripted: Register) -> None:
    call = {"index": 0, "id": "c2", "type": "function", "function": {"name": "crm__find", "arguments": "{}"}}
    plain = {"index": 1, "id": "c3", "type": "function", "function": {"name": "other__find", "arguments": "{}"}}
    said = [chunk({"role": "assistant", "tool_calls": [call, plain]}), chunk({}, "tool_calls"), DONE]
    script = scripted(said)
    given = [
        {"type": "custom_tool_call", "call_id": "c1", "name": "run", "namespace": "crm", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "7"},
    ]
    conversation = alice.http.post("/v1/conversations", json={"items": given[:1]}).json()["id"]
    path = f"/v1/conversations/{conversation}/items"
    assert alice.http.post(path, json={"items": given[1:]}).status_code == 200
    tools = [CRM, {**FIND, "name": "other__find"}]
    asked = {"model": script.model, "input": "x", "conversation": conversation, "tools": tools}
    answer = response(alice.http.post(PATH, json=asked).json())
    sent = script.script.calls[0]["messages"]
    (earlier,) = sent[0]["tool_calls"]
    assert earlier[earlier["type"]]["name"] == "crm__run"
    items = alice.get(path, params={"order": "asc"}).json()["data"]
    named = [(item["type"], item["name"], item.get("namespace")) for item in items if "name" in item]
    assert named == [
        ("custom_tool_call", "run", "crm"),
        ("function_call", "find", "crm"),
        ("function_call", "other__find", None),
    ]
    assert [item["id"] for item in items[-2:]] == [item["id"] for item in answer["output"]]
    alice.http.delete(f"{path}/{items[2]['id']}")
    assert alice.get(path, params={"order": "asc"}).json()["data"] == [*items[:2], *items[3:]]
