"""The compliance cases of Open Responses (openresponses.org/compliance), each under its own id, over a provider of chats; those
of compaction, and of phases in an answer, over one that speaks the Responses API, which alone has them.

The response's fields are those that its specification requires of every server; that events have the form of OpenAI's is
checked by OpenAI's models wherever tests read events.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.processes import Stack
from tests.harness.upstream import DONE, Answer, ScriptedUpstream, chunk, ending, words
from tests.support.responses import PATH, Event, events, kinds, native_model, text_of
from tests.support.sockets import Socket
from tests.support.wire import KEY_A, Client, Register, refused

_TEXT, _WHOLE, _YES, _NUMBER, _OBJECT, _LIST = (str,), (int,), (bool,), (int, float), (dict,), (list,)
_MAYBE = (type(None),)
FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "object", "status", "model", "truncation", "service_tier"), _TEXT),
    **dict.fromkeys(("previous_response_id", "instructions", "safety_identifier", "prompt_cache_key"), _TEXT + _MAYBE),
    **dict.fromkeys(("created_at", "top_logprobs"), _WHOLE),
    **dict.fromkeys(("completed_at", "max_output_tokens", "max_tool_calls"), _WHOLE + _MAYBE),
    **dict.fromkeys(("parallel_tool_calls", "store", "background"), _YES),
    **dict.fromkeys(("temperature", "top_p", "presence_penalty", "frequency_penalty"), _NUMBER),
    **dict.fromkeys(("text", "metadata"), _OBJECT),
    **dict.fromkeys(("incomplete_details", "error", "reasoning", "usage"), _OBJECT + _MAYBE),
    **dict.fromkeys(("output", "tools"), _LIST),
    "tool_choice": _TEXT + _OBJECT,
}
ITEMS: dict[str, set[str]] = {
    "message": {"id", "status", "role", "content"},
    "function_call": {"id", "call_id", "name", "arguments", "status"},
    "compaction": {"id", "encrypted_content"},
}
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Tells the weather at a place.",
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
COMPACTION = {"id": "cmp_1", "type": "compaction", "encrypted_content": "short"}


def complies(answer: dict[str, Any]) -> dict[str, Any]:
    """A response with all that is required, completed, with output."""
    for name, kinds_ in FIELDS.items():
        assert isinstance(answer[name], kinds_), (name, answer[name])
        assert bool in kinds_ or not isinstance(answer[name], bool), (name, answer[name])
    assert answer["reasoning"].keys() >= {"effort", "summary"}
    assert answer["text"]["format"]["type"] == "text"
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] >= 0
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] >= 0
    for tool in answer["tools"]:
        assert tool.keys() >= {"type", "name", "description", "parameters", "strict"}
    for item in answer["output"]:
        assert item.keys() >= ITEMS[item["type"]], item
    assert (answer["object"], answer["status"]) == ("response", "completed")
    assert answer["output"]
    return answer


class Bench:
    """What a case has to do with: a provider that says what the test wants, and a server before it."""

    def __init__(
        self, keyed: Stack, alice: Client, native: Client, scripted: Register, upstream: ScriptedUpstream
    ) -> None:
        self.url, self.alice, self.native, self.upstream = keyed.url, alice, native, upstream
        self.model = scripted([*words(2), *ending()]).model
        function = {"name": TOOL["name"], "arguments": '{"location": "Oslo"}'}
        call = {"index": 0, "id": "c1", "type": "function", "function": function}
        said = [chunk({"role": "assistant", "tool_calls": [call]}), chunk({}, "tool_calls"), DONE]
        self.calling = scripted(said).model
        self._scripted = scripted

    def whole(self, given: Any, model: str = "", **fields: Any) -> dict[str, Any]:
        answer = self.alice.http.post(PATH, json={"model": model or self.model, "input": given, **fields})
        assert answer.status_code == 200, answer.text
        return complies(answer.json())

    def streamed(self, given: Any, model: str = "", **fields: Any) -> list[Event]:
        body = {"model": model or self.model, "input": given, "stream": True, **fields}
        told = events(self.alice.http.post(PATH, json=body).content)
        complies(told[-1]["response"])
        return told

    def socket(self) -> Socket:
        return Socket(self.url, KEY_A)

    def own(self, *said: list[dict[str, Any]] | dict[str, Any]) -> str:
        """A model of a provider that speaks this API: a list is output that it streams, an object what it answers whole."""
        answers = []
        for one in said:
            if isinstance(one, dict):
                answers.append(Answer([json.dumps(one).encode()], headers={"content-type": "application/json"}))
                continue
            usage = {
                "input_tokens": 1,
                "output_tokens": 1,
                "total_tokens": 2,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            }
            done = {"id": "resp_up", "object": "response", "status": "completed", "usage": usage, "output": one}
            told = [
                *(
                    {"type": "response.output_item.added", "output_index": n, "item": item}
                    for n, item in enumerate(one)
                ),
                *({"type": "response.output_item.done", "output_index": n, "item": item} for n, item in enumerate(one)),
                {"type": "response.completed", "response": done},
            ]
            answers.append(Answer([b"data: %b\n\n" % json.dumps(event).encode() for event in told]))
        model = self._scripted([]).model
        self.upstream.plan(model.partition("/")[2], *answers)
        return native_model(model)


def user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def assistant(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": text, **fields}


def message(text: str, **fields: Any) -> dict[str, Any]:
    """An item of an answer."""
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part], **fields}


def compaction(output: list[dict[str, Any]]) -> dict[str, Any]:
    usage = {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11}
    return {"id": "resp_1", "object": "response.compaction", "created_at": 1, "output": output, "usage": usage}


def basic_response(bench: Bench) -> None:
    assert text_of(bench.whole([user("Say hello.")])) == "w0 w1 "


def streaming_response(bench: Bench) -> None:
    told = bench.streamed([user("Count to two.")])
    assert kinds(told)[0] == "created"
    assert "output_text.delta" in kinds(told)


def system_prompt(bench: Bench) -> None:
    bench.whole([{"type": "message", "role": "system", "content": "You are a pirate."}, user("Say hello.")])


def tool_calling(bench: Bench) -> None:
    (call,) = bench.whole([user("How is the weather?")], bench.calling, tools=[TOOL])["output"]
    assert (call["type"], call["name"], json.loads(call["arguments"])) == (
        "function_call",
        "get_weather",
        {"location": "Oslo"},
    )


def tool_calling_streaming(bench: Bench) -> None:
    told = bench.streamed([user("How is the weather?")], bench.calling, tools=[TOOL])
    item = "output_item"
    found = [f"{event['type']} {event.get('item', {}).get('type', '')}".strip() for event in told]
    arguments = "response.function_call_arguments"
    wanted = [
        f"response.{item}.added function_call",
        f"{arguments}.delta",
        f"{arguments}.done",
        f"response.{item}.done function_call",
    ]
    assert [kind for kind in found if kind in wanted] == wanted


def image_input(bench: Bench) -> None:
    parts = [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": PIXEL}]
    bench.whole([{"type": "message", "role": "user", "content": parts}])


def multi_turn(bench: Bench) -> None:
    bench.whole([user("My name is Ann."), assistant("Hello, Ann."), user("What is my name?")])


def assistant_phase(bench: Bench) -> None:
    said = [assistant("It is saved.", phase="commentary"), assistant("Four.", phase="final_answer")]
    bench.whole([*said, user("Only the number.")])


def response_output_phase_schema(bench: Bench) -> None:
    phases = ["commentary", "final_answer"]
    model = bench.own([message("So.", phase=phase, id=f"msg_{phase}") for phase in phases])
    answer = complies(bench.native.http.post(PATH, json={"model": model, "input": "x"}).json())
    assert [item["phase"] for item in answer["output"]] == phases


def compact_response(bench: Bench) -> None:
    asked = {"prompt_cache_key": "k", "input": [user("We start on Tuesday."), assistant("On Tuesday.")]}
    model = bench.own(compaction([COMPACTION]))
    answer = bench.native.http.post(f"{PATH}/compact", json={"model": model, **asked})
    assert (answer.status_code, answer.json()["object"]) == (200, "response.compaction")
    (item,) = answer.json()["output"]
    assert item["type"] == "compaction"
    assert item.keys() >= ITEMS["compaction"]


def compact_missing_model(bench: Bench) -> None:
    refused(bench.native.http.post(f"{PATH}/compact", json={"input": [user("Make it short.")]}), 400)


def websocket_response(bench: Bench) -> None:
    with bench.socket() as socket:
        complies(socket.whole(model=bench.model, input=[user("Count to two.")]))


def websocket_sequential_responses(bench: Bench) -> None:
    with bench.socket() as socket:
        for text in ("first", "second"):
            complies(socket.whole(model=bench.model, store=False, input=text))


def websocket_continuation(bench: Bench) -> None:
    with bench.socket() as socket:
        first = complies(socket.whole(model=bench.model, store=False, input="The word is blue."))
        complies(socket.whole(model=bench.model, store=False, input="Which word?", previous_response_id=first["id"]))


def websocket_generate_false(bench: Bench) -> None:
    with bench.socket() as socket:
        ready = socket.whole(model=bench.model, store=False, input="The word is blue.", generate=False)
        assert (ready["status"], ready["output"]) == ("completed", [])
        complies(socket.whole(model=bench.model, store=False, input="Which word?", previous_response_id=ready["id"]))


def websocket_reconnect_store_false_recovery(bench: Bench) -> None:
    with bench.socket() as socket:
        first = complies(socket.whole(model=bench.model, store=False, input="The word is blue."))
    with bench.socket() as socket:
        socket.refused(
            404, "previous_response_not_found", model=bench.model, store=False, previous_response_id=first["id"]
        )
        complies(socket.whole(model=bench.model, store=False, input=[user("Once more.")]))


def websocket_previous_response_not_found(bench: Bench) -> None:
    with bench.socket() as socket:
        missing = {"previous_response_id": "resp_missing", "store": False}
        socket.refused(404, "previous_response_not_found", model=bench.model, **missing)


def websocket_failed_continuation_evicts_cache(bench: Bench) -> None:
    with bench.socket() as socket:
        first = complies(socket.whole(model=bench.model, store=False, input="The word is blue."))
        on = {"model": bench.model, "store": False, "previous_response_id": first["id"]}
        output = {"type": "function_call_output", "call_id": "c_missing", "output": "nothing"}
        socket.refused(400, "invalid_request", input=[output], **on)
        socket.refused(404, "previous_response_not_found", input="stale", **on)


def websocket_compact_new_chain(bench: Bench) -> None:
    model = bench.own(compaction([COMPACTION]), [message("compacted")])
    asked = [user("The word is blue."), assistant("Yes."), user("Make it short.")]
    made = bench.native.http.post(f"{PATH}/compact", json={"model": model, "input": asked}).json()
    with Socket(str(bench.native.http.base_url).rstrip("/")) as socket:
        answer = complies(socket.whole(model=model, store=False, input=[*made["output"], user("Go on.")], tools=[]))
    assert text_of(answer) == "compacted"
    assert answer["previous_response_id"] is None


CASES: list[Callable[[Bench], None]] = [
    basic_response,
    streaming_response,
    system_prompt,
    tool_calling,
    tool_calling_streaming,
    image_input,
    multi_turn,
    assistant_phase,
    response_output_phase_schema,
    compact_response,
    compact_missing_model,
    websocket_response,
    websocket_sequential_responses,
    websocket_continuation,
    websocket_generate_false,
    websocket_reconnect_store_false_recovery,
    websocket_previous_response_not_found,
    websocket_failed_continuation_evicts_cache,
    websocket_compact_new_chain,
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.__name__.replace("_", "-")) for case in CASES])
def test_a_case(
    keyed: Stack,
    alice: Client,
    native: Client,
    scripted: Register,
    upstream: ScriptedUpstream,
    case: Callable[[Bench], None],
) -> None:
    case(Bench(keyed, alice, native, scripted, upstream))
