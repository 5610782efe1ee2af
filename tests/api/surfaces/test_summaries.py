"""Summaries of reasoning that another model makes (`STREAMSPOOL_SUMMARY_MODEL`): what clients are shown, and the bill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import DONE, Answer, Pause, ScriptedUpstream, chunk, ending, words
from tests.support.responses import PATH, Event, events, joined, kinds
from tests.support.wire import Client, Register, field, frames

CHAT = "/v1/chat/completions"
SUMMARY = "It weighed both."
ASKED = {"reasoning": {"summary": "auto"}}
OPENING = chunk({"role": "assistant", "content": None})
THOUGHTS = [chunk({"reasoning_content": piece}) for piece in ("Let me ", "see. ")]
ITEM = ["output_item.added", "reasoning_text.delta", "reasoning_text.done"]
SUMMARISED = [
    "reasoning_summary_part.added",
    "reasoning_summary_text.delta",
    "reasoning_summary_text.done",
    "reasoning_summary_part.done",
    "output_item.done",
]


@pytest.fixture(scope="module")
def summarising(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    url = valkey.url.replace("db=0", "db=3")
    upstream.script("summary", [*[chunk({"content": piece}) for piece in ("It weighed ", "both.")], *ending()])
    settings = {"STREAMSPOOL_SUMMARY_MODEL": "scripted/summary", "STREAMSPOOL_KEEPALIVE_S": "0.1"}
    with open_store(url) as store:
        store.flushdb()
        directory = tmp_path_factory.mktemp("summaries")
        with Stack(url, upstream.base_url, directory, **settings) as stack, Client(stack.url) as http:
            yield http
        store.flushdb()


def made_of(client: Client, generation_id: str) -> list[dict[str, Any]]:
    """The generations that summarise this one."""
    found = client.get("/v1/streams", params={"limit": "100"}).json()["data"]
    return [state for state in found if state["summarises"] == generation_id]


def generation(response_id: str) -> str:
    return f"chatcmpl-{response_id.removeprefix('resp_')}"


def streamed(client: Client, model: str, **fields: Any) -> list[Event]:
    answer = client.http.post(PATH, json={"model": model, "input": "x", "stream": True, **ASKED, **fields})
    return events(answer.content)


def test_thinking_is_told_as_it_is_and_its_summary_comes_beside(summarising: Client, scripted: Register) -> None:
    script = scripted([OPENING, *THOUGHTS, *words(3)[1:], *ending()])
    told = streamed(summarising, script.model)
    last = told[-1]["response"]
    reasoning, message = last["output"]
    assert reasoning["summary"] == [{"type": "summary_text", "text": SUMMARY}]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Let me see. "}]
    assert message["content"][0]["text"] == "w0 w1 w2 "
    assert joined(told, "response.reasoning_summary_text.delta") == SUMMARY
    assert kinds(told)[-1 - len(SUMMARISED) : -1] == SUMMARISED
    assert summarising.get(f"{PATH}/{last['id']}").json() == last
    again = summarising.get(f"{PATH}/{last['id']}", params={"stream": "true"}).content
    assert events(again) == told

    (state,) = made_of(summarising, generation(last["id"]))
    assert (state["status"], state["served_by"]) == ("completed", "scripted/summary")
    assert state["usage"]["total_tokens"] > 0
    assert last["usage"]["total_tokens"] == summarising.state(generation(last["id"]))["usage"]["total_tokens"]


def test_a_summary_comes_between_two_items_and_never_within_one(
    summarising: Client, scripted: Register, upstream: ScriptedUpstream
) -> None:
    gates = [Pause() for _ in range(60)]
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    text = words(1 + len(gates))[1:]
    script = scripted(
        [
            OPENING,
            *THOUGHTS,
            text[0],
            *(part for gated in zip(gates, text[1:], strict=True) for part in gated),
            chunk({"tool_calls": [call]}),
            chunk({}, "tool_calls"),
            DONE,
        ],
    )
    body = {"model": script.model, "input": "x", "stream": True, **ASKED}
    with summarising.view("POST", PATH, json=body) as viewer:
        viewer.until(b"w0 ")
        response_id = events(viewer.body, ended=False)[0]["response"]["id"]
        generation_id = generation(response_id)
        wait_until(lambda: any(state["status"] == "completed" for state in made_of(summarising, generation_id)))
        chunks, taken = summarising.state(generation_id)["chunks"], 0
        while taken < 2:  # a word alone: its worker has not seen that the summary is there
            gates.pop(0).go()
            wait_until(lambda before=chunks: summarising.state(generation_id)["chunks"] > before)
            taken = summarising.state(generation_id)["chunks"] - chunks
            chunks += taken
        for gate in gates:
            gate.go()
        viewer.rest()
        told = events(viewer.body)
    names = kinds(told)
    assert [item["type"] for item in told[-1]["response"]["output"]] == ["reasoning", "message", "function_call"]
    assert told[-1]["response"]["output"][0]["summary"][0]["text"] == SUMMARY
    at = names.index(SUMMARISED[0])
    assert names[at - 1] == "output_item.done", "the message is whole"
    assert names[at : at + len(SUMMARISED)] == SUMMARISED
    assert at < names.index("function_call_arguments.delta")


def test_a_chat_has_it_in_its_message_and_its_usage_last(summarising: Client, scripted: Register) -> None:
    script = scripted([OPENING, *THOUGHTS, *words(3)[1:], *ending()])
    body = {"model": script.model, "messages": [{"role": "user", "content": "x"}], "reasoning_summary": True}
    made = summarising.http.post(CHAT, json=body).json()
    message = made["choices"][0]["message"]
    assert (message["reasoning_summary"], message["reasoning_content"]) == (SUMMARY, "Let me see. ")
    assert made["reasoning_summary_model"] == "scripted/summary"
    (state,) = made_of(summarising, made["id"])
    assert made["reasoning_summary_id"] == state["id"]
    assert "reasoning_summary" not in json.dumps(script.script.calls[0])

    options = {"stream": True, "stream_options": {"include_usage": True}}
    *said, done = [
        field(frame, b"data") for frame in frames(summarising.http.post(CHAT, json={**body, **options}).content)
    ]
    chunks = [json.loads(data) for data in said if data is not None]
    assert done == b"[DONE]"
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert {"reasoning_summary": SUMMARY} in [part["choices"][0]["delta"] for part in chunks[:-1]]
    with openai.OpenAI(base_url=f"{summarising.http.base_url}/v1", api_key="x") as sdk:
        messages: Any = body["messages"]
        with sdk.chat.completions.stream(
            model=script.model, messages=messages, extra_body={"reasoning_summary": True}
        ) as stream:
            final: Any = stream.get_final_completion()
    assert (final.choices[0].message.content, final.choices[0].finish_reason) == ("w0 w1 w2 ", "stop")
    assert final.choices[0].message.reasoning_summary == SUMMARY


@pytest.mark.parametrize("calls", [False, True])
def test_a_session_keeps_the_summary_in_the_place_of_the_thinking(
    summarising: Client, scripted: Register, calls: bool
) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    called = [chunk({"tool_calls": [call]}), chunk({}, "tool_calls"), DONE]
    script = scripted([OPENING, *THOUGHTS, *(called if calls else [*words(2)[1:], *ending()])])
    session = f"summaries-{calls}"
    body = {
        "model": script.model,
        "messages": [{"role": "user", "content": "x"}],
        "session_id": session,
        "store_reasoning": True,
        "reasoning_summary": True,
    }
    assert summarising.http.post(CHAT, json=body).status_code == 200
    answer = summarising.get(f"/v1/sessions/{session}/messages").json()["data"][1]
    assert answer["reasoning_content"] == ("Let me see. " if calls else SUMMARY)
    assert "reasoning_summary" not in answer


@pytest.mark.parametrize(
    ("thoughts", "fields"),
    [(THOUGHTS, {"reasoning": {"effort": "low"}}), ([], ASKED)],
    ids=["not asked for", "nothing was thought"],
)
def test_none_is_made_without_a_cause(
    summarising: Client, scripted: Register, thoughts: list[bytes], fields: dict[str, Any]
) -> None:
    script = scripted([OPENING, *thoughts, *words(3)[1:], *ending()])
    body = {"model": script.model, "input": "x", **fields}
    made = summarising.http.post(PATH, json=body).json()
    assert made["status"] == "completed"
    assert made_of(summarising, generation(made["id"])) == []


def test_what_thinks_and_says_nothing_more_is_summarised_at_its_end(summarising: Client, scripted: Register) -> None:
    script = scripted([OPENING, *THOUGHTS, *ending()])
    told = streamed(summarising, script.model)
    assert told[-1]["response"]["output"][0]["summary"][0]["text"] == SUMMARY


@pytest.mark.parametrize("broken", [[b"not an event"], [chunk({"content": " "}), *ending()]], ids=["failed", "empty"])
def test_an_answer_is_whole_without_the_summary_that_failed(
    summarising: Client, scripted: Register, upstream: ScriptedUpstream, broken: list[bytes]
) -> None:
    good = [*[chunk({"content": piece}) for piece in ("It weighed ", "both.")], *ending()]
    upstream.plan("summary", by=lambda _: Answer(broken, headers={"content-type": "text/event-stream"}))
    try:
        script = scripted([OPENING, *THOUGHTS, *words(3)[1:], *ending()])
        told = streamed(summarising, script.model)
    finally:
        upstream.script("summary", good)
    reasoning, message = told[-1]["response"]["output"]
    assert told[-1]["type"] == "response.completed"
    assert (reasoning["summary"], message["content"][0]["text"]) == ([], "w0 w1 w2 ")
    assert reasoning["content"][0]["text"] == "Let me see. "


def test_a_cancelled_answer_cancels_its_summary(
    summarising: Client, scripted: Register, upstream: ScriptedUpstream
) -> None:
    good = [*[chunk({"content": piece}) for piece in ("It weighed ", "both.")], *ending()]
    held = Pause()
    upstream.script("summary", [*words(2), held])
    try:
        script = scripted([OPENING, *THOUGHTS, *words(2)[1:], Pause()])
        made = summarising.http.post(
            PATH, json={"model": script.model, "input": "x", "background": True, **ASKED}
        ).json()
        generation_id = generation(made["id"])
        wait_until(lambda: [state for state in made_of(summarising, generation_id) if state["chunks"]])
        summarising.http.post(f"{PATH}/{made['id']}/cancel")
        wait_until(lambda: made_of(summarising, generation_id)[0]["status"] == "cancelled")
    finally:
        held.go()
        upstream.script("summary", good)
