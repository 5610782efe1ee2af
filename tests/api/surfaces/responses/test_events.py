"""The fold from a chat's chunks to items and events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.live.folding import Folding
from api.surfaces.responses.events import ResponseEvents, ResponseFold
from shared.errors import Gone, Stopping
from shared.features.responses.request import ResponsesRequest, echoed, to_chat
from shared.log.entry import Entry, Kind, Position, Status
from tests.harness.records import header_with, outcome_with
from tests.support.responses import events, joined, kinds, response

HEADER = header_with({"id": "chatcmpl-" + "0" * 32, "model": "m/x", "created_at_ms": 1000})
USAGE = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
COMPLETED = {
    "status": "completed",
    "ended_at_ms": 3000,
    "by": "w",
    "error": None,
    "finish_reasons": ["stop"],
    "usage": USAGE,
}
MESSAGE = [
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.done",
    "content_part.done",
    "output_item.done",
]
CALL = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
START = ["created", "in_progress"]


def view(**fields: Any) -> ResponseEvents:
    given = {"model": "m/x", "input": "hi", **fields}
    checked = ResponsesRequest.check(given)
    body = to_chat(given, checked, checked.items).body
    header = {**HEADER, "background": bool(fields.get("background"))}
    return ResponseEvents(HEADER["id"], echoed(header_with(header), body))


def entry(number: int, delta: dict[str, Any], **choice: Any) -> Entry:
    data = json.dumps({"choices": [{"index": 0, "delta": delta, **choice}]}).encode()
    return Entry(Position(1, number), Kind.CHUNK, data)


def told(*deltas: dict[str, Any], asked: ResponseEvents | None = None, **outcome: Any) -> list[dict[str, Any]]:
    """The events of a generation that says these deltas and ends with this outcome."""
    frames, fold = (asked or view()).start(HEADER)
    body = b"".join(frames)
    for number, delta in enumerate(deltas, 1):
        frames, fold = fold.feed(entry(number, delta))
        body += b"".join(frames)
    return events(body + b"".join(fold.end(outcome_with({**COMPLETED, **outcome}))))


def call(index: int, *, id: str | None = None, name: str | None = None, arguments: str = "") -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return {"tool_calls": [{"index": index, "function": function, **({"id": id, "type": "function"} if id else {})}]}


def test_text_is_a_message() -> None:
    found = told({"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}, {})
    assert kinds(found) == [*START, *MESSAGE, "completed"]
    assert joined(found) == "ab"
    answer = response(found[-1]["response"])
    assert answer["id"] == "resp_" + "0" * 32
    assert (answer["status"], answer["created_at"], answer["completed_at"]) == ("completed", 1, 3)
    (item,) = answer["output"]
    assert item["content"] == [{"type": "output_text", "text": "ab", "annotations": [], "logprobs": []}]
    ids = {event["item_id"] for event in found if "item_id" in event} | {
        event["item"]["id"] for event in found if "item" in event
    }
    assert ids == {item["id"]} == {"msg_" + "0" * 36}
    assert answer["usage"]["input_tokens"] == 2


def test_reasoning_text_and_calls_are_items_of_their_own() -> None:
    found = told(
        {"reasoning_content": "w"}, {"reasoning_content": "hy"}, {"content": "so"},
        call(0, id="c1", name="f"), call(1, id="c2", name="g"), call(0, arguments='{"a"'), call(1, arguments="{}"),
        call(0, arguments=":1}"),
    )  # fmt: skip
    reasoning, message, first, second = found[-1]["response"]["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "why"}]
    assert message["content"][0]["text"] == "so"
    assert (first["call_id"], first["name"], first["arguments"]) == ("c1", "f", '{"a":1}')
    assert (second["call_id"], second["arguments"]) == ("c2", "{}")
    assert {item["status"] for item in found[-1]["response"]["output"]} == {"completed"}
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done == [reasoning, message, first, second]
    added = [event["output_index"] for event in found if event["type"] == "response.output_item.added"]
    assert added == [0, 1, 2, 3]


def test_reasoning_is_a_summary_where_one_was_asked_for() -> None:
    found = told({"reasoning_content": "why"}, {"content": "so"}, asked=view(reasoning={"summary": "auto"}))
    assert joined(found, "response.reasoning_summary_text.delta") == "why"
    reasoning = found[-1]["response"]["output"][0]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "why"}]
    assert "content" not in reasoning


def test_text_between_reasoning_is_several_items() -> None:
    found = told({"reasoning": "a"}, {"content": "b"}, {"reasoning": "c"}, {"content": "d"})
    assert [item["type"] for item in found[-1]["response"]["output"]] == ["reasoning", "message"] * 2


def test_a_refusal_is_a_part_after_the_text() -> None:
    found = told({"content": "well"}, {"refusal": "n"}, {"refusal": "o"})
    (item,) = found[-1]["response"]["output"]
    assert [part["type"] for part in item["content"]] == ["output_text", "refusal"]
    assert item["content"][1]["refusal"] == "no"
    assert joined(found, "response.refusal.delta") == "no"


def test_custom_tools_have_input() -> None:
    calls = [{"index": 0, "id": "c", "type": "custom", "custom": {"name": "sh", "input": "l"}}]
    found = told({"tool_calls": calls}, {"tool_calls": [{"index": 0, "custom": {"input": "s"}}]})
    (item,) = found[-1]["response"]["output"]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "sh", "ls")
    assert joined(found, "response.custom_tool_call_input.delta") == "ls"


def test_calls_that_come_in_turns_are_shown_one_after_the_other() -> None:
    found = told(
        call(0, id="c1", name="f"), call(1, id="c2", name="g"), call(0, arguments='{"a":'), call(1, arguments='{"b":'),
        call(0, arguments="{}}"), call(2, id="c3", name="h", arguments="{}"), call(1, arguments="2}"), {"content": "so"},
    )  # fmt: skip
    assert kinds(found) == [*START, *CALL, *CALL, *CALL, *MESSAGE, "completed"]
    done = [event["arguments"] for event in found if event["type"] == "response.function_call_arguments.done"]
    assert done == ['{"a":{}}', '{"b":2}', "{}"]


def test_a_call_begins_when_its_name_is_known_and_has_an_id_always() -> None:
    found = told(call(0, arguments="{"), call(0, name="f", arguments="}"))
    (item,) = found[-1]["response"]["output"]
    assert (item["name"], item["arguments"]) == ("f", "{}")
    assert item["call_id"]


def test_sources_are_annotations() -> None:
    source: dict[str, Any] = {
        "type": "url_citation",
        "url_citation": {"url": "u", "title": "t", "start_index": 0, "end_index": 1},
    }
    found = told({"content": "a"}, {"annotations": [source]}, {"content": "b"})
    (item,) = found[-1]["response"]["output"]
    assert item["content"][0]["annotations"] == [{"type": "url_citation", **source["url_citation"]}]
    assert "output_text.annotation.added" in kinds(found)


def test_an_empty_answer_is_an_empty_message() -> None:
    found = told({"role": "assistant"}, {})
    assert found[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_the_background_begins_in_the_queue() -> None:
    found = told({"content": "a"}, asked=view(background=True))
    assert kinds(found) == ["created", "queued", "in_progress", *MESSAGE, "completed"]
    assert [event["response"]["status"] for event in found[:3]] == ["queued", "queued", "in_progress"]


@pytest.mark.parametrize(("reason", "detail"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_that_was_cut_short_keeps_its_text(reason: str, detail: str) -> None:
    found = told({"content": "a"}, status="incomplete", finish_reasons=[reason])
    assert kinds(found) == [*START, *MESSAGE, "incomplete"]
    answer = found[-1]["response"]
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": detail})
    assert answer["output"][0]["status"] == "incomplete"


def test_a_call_that_was_cut_is_never_done() -> None:
    deltas = (call(0, id="c1", name="f", arguments="{}"), call(1, id="c2", name="g", arguments='{"x":'))
    found = told(*deltas, status="incomplete", finish_reasons=["length"])
    done = [event["item"]["call_id"] for event in found if event["type"] == "response.output_item.done"]
    assert done == ["c1"]
    assert [item["status"] for item in found[-1]["response"]["output"]] == ["completed", "incomplete"]


def test_a_cancelled_stream_ends_incomplete_and_is_found_cancelled() -> None:
    found = told({"content": "a"}, status="cancelled", finish_reasons=[None])
    assert found[-1]["type"] == "response.incomplete"
    answer = found[-1]["response"]
    assert (answer["status"], answer["incomplete_details"]) == ("cancelled", {"reason": "cancelled"})
    fold: ResponseFold = view().begin(HEADER)
    stored = fold.whole(outcome_with({**COMPLETED, "status": "cancelled"}), Status.CANCELLED)
    assert (stored["status"], stored["incomplete_details"], stored["completed_at"]) == ("cancelled", None, None)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"code": "upstream_incomplete", "status": 502}, "server_error"),
        ({"code": "slow_down", "status": 429}, "rate_limit_exceeded"),
        ({"code": "insufficient_quota", "status": 429}, "insufficient_quota"),
        ({"code": "bad", "status": 400}, "invalid_prompt"),
    ],
)
def test_a_failure_keeps_what_was_said_and_closes_nothing(error: dict[str, Any], code: str) -> None:
    fold = view().begin(HEADER).take(entry(1, {"content": "a"}).data)
    outcome = outcome_with(
        {**COMPLETED, "status": "failed", "error": {"message": "m", "type": "t", "param": None, **error}}
    )
    found = [json.loads(frame.rpartition(b"data: ")[2]) for frame in fold.end(outcome)]
    assert [event["type"] for event in found] == ["response.failed"]
    answer = found[0]["response"]
    assert (answer["error"]["code"], answer["error"]["message"]) == (code, "m")
    assert answer["output"][0]["status"] == "incomplete"


def test_a_log_that_is_gone_or_an_attempt_that_is_replaced_ends_the_stream_as_failed() -> None:
    asked = view()
    fold = asked.begin(HEADER).take(entry(1, {"content": "a"}).data)
    for frames, reason in (
        (fold.problem(Gone("x")), "stream_gone"),
        (asked.attempt(2, fold), "generation_interrupted"),
    ):
        (event,) = events(b"".join(frames), first=fold.events)
        assert event["response"]["error"]["reason"] == reason


def test_a_server_that_stops_says_so_without_counting_as_an_event() -> None:
    """Who resumes after the last number misses nothing."""
    shown = Folding(view(), HEADER)
    shown(entry(1, {"content": "a"}))
    error = Stopping.told("resp_1").to_object()
    frame = shown.stopping(error)
    assert frame.startswith(b"event: error\nretry: 2000\ndata: ")
    found = json.loads(frame.rpartition(b"data: ")[2])
    assert found == {**error, "type": "error", "sequence_number": shown.fold.events, "error": error}


def test_any_fold_may_be_gone_on_from_twice() -> None:
    fold = view().begin(HEADER)
    deltas = [{"reasoning": "a"}, {"content": "b"}, {"content": "c"}, call(0, id="c", name="f", arguments="{}")]
    folds = [fold]
    for number, delta in enumerate(deltas, 1):
        folds.append(folds[-1].take(entry(number, delta).data))
    whole = folds[-1].end(outcome_with(COMPLETED))
    for at, again in enumerate(folds):
        for number, delta in enumerate(deltas[at:], at + 1):
            again = again.take(entry(number, delta).data)
        assert again.events == folds[-1].events
        assert again.end(outcome_with(COMPLETED)) == whole


@pytest.mark.parametrize("thought", ["", "why"])
def test_a_little_more_text_is_told_as_a_writer_would_tell_it(monkeypatch: pytest.MonkeyPatch, thought: str) -> None:
    deltas = [
        {"reasoning": thought},
        *({"content": text} for text in ("a", 'b"\n', "ü\u2028", "", "c")),
        {"refusal": "d"},
    ]

    def frames() -> list[bytes]:
        fold: ResponseFold = view().begin(HEADER)
        found: list[bytes] = []
        for number, delta in enumerate(deltas, 1):
            more, fold = fold._fed(entry(number, delta).data)
            found += more
        return [*found, *fold.end(outcome_with(COMPLETED))]

    quick = frames()
    monkeypatch.setattr(ResponseFold, "_more_text", lambda *_: None)
    assert frames() == quick
