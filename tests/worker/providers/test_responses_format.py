"""The Responses format: what is asked for, what its events mean, and every recorded stream of it."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadRequest, UpstreamError, UpstreamRefused
from shared.lib import sse
from shared.log.entry import Chunk
from tests.support import recordings
from tests.support.answers import assert_readable, completion, hear, read_by_sdk, values
from tests.support.recordings import digest, fold, payloads, wire
from worker.providers.formats.responses import DIALECT, build_request

RECORDINGS = recordings.recordings("responses")
recorded = pytest.mark.skipif(not RECORDINGS, reason=recordings.MISSING)
USER: dict[str, Any] = {"role": "user", "content": "hi"}


def sdk_message(chunks: list[Chunk]) -> dict[str, Any]:
    message: dict[str, Any] = read_by_sdk(chunks)["choices"][0]["message"]
    return message


def message_of(chunks: list[Chunk]) -> dict[str, Any]:
    message: dict[str, Any] = completion(chunks)["choices"][0]["message"]
    return message


def natives(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(payload) for payload in payloads(row)]


def asked(**fields: Any) -> dict[str, Any]:
    return build_request({"model": "acme/m", "messages": [USER], **fields}, "m")


def items(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = asked(messages=list(messages))["input"]
    return found


# ---- the request


def test_a_plain_question() -> None:
    assert asked(stream=False, temperature=0.5, session_id="s") == {
        "model": "m",
        "input": [{"type": "message", "role": "user", "content": "hi"}],
        "stream": True,
        "store": False,
        "temperature": 0.5,
    }


def test_fields_with_another_name() -> None:
    sent = asked(max_tokens=5, max_completion_tokens=7, verbosity="low", reasoning_effort="high", store=True)
    assert (sent["max_output_tokens"], sent["text"], sent["store"]) == (7, {"verbosity": "low"}, True)
    assert sent["reasoning"] == {"effort": "high", "summary": "auto"}
    assert asked(reasoning_effort="none")["reasoning"] == {"effort": "none"}
    assert not {"max_tokens", "max_completion_tokens", "verbosity", "reasoning_effort"} & sent.keys()


def test_the_clients_own_words_are_kept() -> None:
    own = {"instructions": "i", "previous_response_id": "resp_1", "truncation": "auto", "include": ["x"], "y": None}
    assert asked(**own) == {**asked(), **own}
    assert asked(reasoning={"summary": None}, reasoning_effort="low")["reasoning"] == {"effort": "low", "summary": None}
    assert asked(text={"verbosity": "low"}, response_format={"type": "text"})["text"] == {
        "format": {"type": "text"},
        "verbosity": "low",
    }
    for said_twice in (
        {"reasoning": {"effort": "low"}, "reasoning_effort": "high"},
        {"max_output_tokens": 1, "max_tokens": 2},
    ):
        with pytest.raises(BadRequest, match="said twice"):
            asked(**said_twice)


def test_logprobs_are_included() -> None:
    sent = asked(logprobs=True, top_logprobs=3, include=["x"])
    assert sent["include"] == ["x", "message.output_text.logprobs"]
    assert sent["top_logprobs"] == 3
    assert "logprobs" not in sent
    assert "include" not in asked(logprobs=False)


def test_formats_tools_and_choices_are_flat() -> None:
    schema = {"name": "n", "schema": {"type": "object"}, "strict": True}
    assert asked(response_format={"type": "json_schema", "json_schema": schema})["text"] == {
        "format": {"type": "json_schema", **schema}
    }
    grammar = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "d"}}
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}},
        {"type": "function", "function": {"name": "g", "description": "d", "strict": None}},
        {"type": "custom", "custom": {"name": "c", "format": grammar}},
        {"type": "web_search"},
    ]
    assert asked(tools=tools)["tools"] == [
        {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True},
        {
            "type": "function",
            "name": "g",
            "description": "d",
            "parameters": {"type": "object", "properties": {}},
            "strict": False,
        },
        {"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "lark", "definition": "d"}},
        {"type": "web_search"},
    ]
    named = {"type": "function", "function": {"name": "f"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    for choice, flat in (
        ("required", "required"),
        (named, {"type": "function", "name": "f"}),
        ({"type": "custom", "custom": {"name": "c"}}, {"type": "custom", "name": "c"}),
        (allowed, {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}),
        ({"type": "web_search"}, {"type": "web_search"}),
    ):
        assert asked(tools=tools, tool_choice=choice)["tool_choice"] == flat


def test_what_is_said_to_the_model() -> None:
    content = [
        {"type": "text", "text": "see", "prompt_cache_breakpoint": {"mode": "explicit"}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA", "filename": "a.pdf"}},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    ]
    assert items({"role": "developer", "content": "d"}, {"role": "user", "content": content}) == [
        {"type": "message", "role": "developer", "content": "d"},
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "see", "prompt_cache_breakpoint": {"mode": "explicit"}},
                {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"},
                {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "auto"},
                {"type": "input_file", "file_data": "data:application/pdf;base64,AA", "filename": "a.pdf"},
                content[4],
            ],
        },
    ]


def test_what_the_model_said() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":'}}
    custom = {"id": "c2", "type": "custom", "custom": {"name": "g", "input": "x"}}
    said = {"role": "assistant", "content": "t", "refusal": "r", "tool_calls": [call, custom]}
    said["responses_items"] = [{"index": 0, "output_index": 1, "type": "web_search_call", "id": "ws"}]
    said["reasoning_items"] = [
        {"index": 0, "output_index": 0, "type": "reasoning", "encrypted_content": "e"},
        {"index": 1, "output_index": 2, "type": "reasoning", "encrypted_content": "f"},
    ]
    results: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "2"}]},
    ]
    assert items(said, *results) == [
        {"type": "reasoning", "encrypted_content": "e"},
        {"type": "web_search_call", "id": "ws"},
        {"type": "reasoning", "encrypted_content": "f"},
        {
            "type": "message",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "t", "annotations": []},
                {"type": "refusal", "refusal": "r"},
            ],
        },
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":'},
        {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": "x"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
    ]


@pytest.mark.parametrize("field", ["seed", "stop", "input"])
def test_what_the_format_has_no_words_for(field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        asked(**{field: ["x"] if field == "stop" else 0})
    assert caught.value.param == field


# ---- the answer


def events(*values: dict[str, Any]) -> bytes:
    return b"".join(sse.frame(json.dumps(value).encode(), event=value["type"].encode()) for value in values)


def answer(*values: dict[str, Any], show_usage: bool = False) -> tuple[list[Chunk], UpstreamError | None]:
    return hear(DIALECT, events(*values))


def added(at: int, kind: str, **item: Any) -> dict[str, Any]:
    return {"type": "response.output_item.added", "output_index": at, "item": {"type": kind, "id": f"i{at}", **item}}


def finished(at: int, kind: str, **item: Any) -> dict[str, Any]:
    return {**added(at, kind, **item), "type": "response.output_item.done"}


def piece(kind: str, delta: str, at: int = 0, **more: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", "output_index": at, "content_index": 0, "delta": delta, **more}


def completed(**response: Any) -> dict[str, Any]:
    return {"type": "response.completed", "response": {"id": "resp_1", "status": "completed", **response}}


def test_text_with_logprobs_and_usage() -> None:
    odds = [{"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "a", "logprob": -1.0}]}]
    usage = {"input_tokens": 3, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 1}, "cost": 5}
    chunks, error = answer(
        piece("output_text", "a", logprobs=odds), completed(usage=usage, service_tier="flex"), show_usage=True
    )
    assert error is None
    first, last, final = [json.loads(chunk.payload) for chunk in chunks]
    assert first["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "a",
                "logprob": -1.0,
                "bytes": None,
                "top_logprobs": [{"token": "a", "logprob": -1.0, "bytes": None}],
            }
        ],
        "refusal": None,
    }
    assert (last["responses"], last["service_tier"]) == ({"id": "resp_1"}, "flex")
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop", "native_finish_reason": "completed"}]
    assert final["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
        "cost": 5,
    }
    assert_readable(chunks)
    sdk_message(chunks)


def test_parts_of_a_summary_are_paragraphs() -> None:
    def said(delta: str, at: int, part: int) -> dict[str, Any]:
        return piece("reasoning_summary_text", delta, at, summary_index=part)

    chunks, _ = answer(said("a", 0, 0), said("b", 0, 0), said("", 0, 1), said("c", 0, 1), said("d", 2, 0), completed())
    assert message_of(chunks)["reasoning_content"] == "ab\n\nc\n\nd"


def test_words_that_only_come_whole_are_said_once() -> None:
    text = [{"type": "output_text", "text": "ab", "annotations": []}, {"type": "refusal", "refusal": "no"}]
    whole = {"output_index": 1, "content_index": 0}
    silent = (added(1, "message"), finished(1, "message", content=text), completed())
    done = (added(1, "message"), {"type": "response.output_text.done", "text": "ab", **whole}, *silent[1:])
    spoken = (added(1, "message"), piece("output_text", "ab", 1), *done[1:])
    assert message_of(answer(*silent)[0])["content"] == "ab"
    assert message_of(answer(*silent)[0])["refusal"] == "no"
    assert message_of(answer(*done)[0])["content"] == "ab"
    assert message_of(answer(*spoken)[0])["content"] == "ab"
    assert message_of(answer(*done[1:])[0])["content"] == "ab", "some tell neither the item's start nor pieces"

    thought = [{"type": "summary_text", "text": "x"}, {"type": "summary_text", "text": "y"}]
    chunks, _ = answer(added(0, "reasoning"), finished(0, "reasoning", summary=thought), completed())
    assert message_of(chunks)["reasoning_content"] == "x\n\ny"


THOUGHT = {"type": "reasoning", "id": "r", "content": [{"type": "reasoning_text", "text": "Hm."}]}
TOLD_LAST = {"type": "message", "id": "m", "content": [{"type": "output_text", "text": "42", "annotations": []}]}


def thought_of(place: int) -> tuple[dict[str, Any], ...]:
    """Events of reasoning alone; some servers tell neither where it begins nor where it ends."""
    return piece("reasoning_text", "Hm", place), piece("reasoning_text", ".", place)


@pytest.mark.parametrize(
    "events",
    [
        thought_of(0),
        (piece("reasoning_summary_text", "Hm.", 0, summary_index=0),),
        (added(0, "reasoning", id="r"), *thought_of(0)),
        (added(0, "reasoning", id="r"), *thought_of(0), finished(0, "reasoning", **THOUGHT)),
        # One place for all, and a message of which no event but its end has words.
        (*thought_of(1), finished(1, "message", id="m", content=TOLD_LAST["content"])),
    ],
)
@pytest.mark.parametrize(
    "response", [{"output": [THOUGHT, TOLD_LAST]}, {"output": [TOLD_LAST]}, {"output": [], "output_text": "42"}]
)
def test_a_message_that_only_the_end_tells_is_told_whatever_was_thought_before(
    events: tuple[dict[str, Any], ...], response: dict[str, Any]
) -> None:
    """Reasoning that had come was counted as a message that had."""
    chunks, error = answer(*events, completed(**response))
    assert error is None
    for said in (message_of(chunks), sdk_message(chunks)):
        assert (said["content"], said["reasoning_content"]) == ("42", "Hm.")


@pytest.mark.parametrize("sealed", [{}, {"encrypted_content": "e"}])
def test_all_that_was_thought_is_told_of_an_answer_that_comes_whole(sealed: dict[str, str]) -> None:
    """Behind a tool of the provider's own it thinks once more: the first thought was taken for one that events had told."""
    more = {**THOUGHT, "id": "r2", "content": [{"type": "reasoning_text", "text": " So."}], **sealed}
    search = {"type": "web_search_call", "id": "ws", "status": "completed"}
    chunks, error = answer(completed(output=[{**THOUGHT, **sealed}, search, more, TOLD_LAST]))
    said = message_of(chunks)
    assert (error, said["content"], said["reasoning_content"]) == (None, "42", "Hm. So.")
    assert len(said.get("reasoning_items") or []) == 2 * bool(sealed)


def test_an_item_that_had_its_end_is_told_once_wherever_the_end_has_it() -> None:
    """Servers that leave reasoning out at the end, or tell every item at one place."""
    search = {"type": "web_search_call", "id": "ws", "status": "completed"}
    for at in ((0, 1, 2), (0, 0, 0)):
        events = (
            *thought_of(at[0]),
            finished(at[0], "reasoning", **THOUGHT),
            finished(at[1], "web_search_call", id="ws", status="completed"),
            piece("output_text", "42", at[2]),
            finished(at[2], "message", **{**TOLD_LAST, "content": TOLD_LAST["content"]}),
        )
        chunks, error = answer(*events, completed(output=[search, TOLD_LAST]))
        said = message_of(chunks)
        assert (error, said["content"]) == (None, "42")
        assert len(said["responses_items"]) == 1, at


def test_messages_that_came_are_counted_by_themselves() -> None:
    second = {**TOLD_LAST, "id": "m2", "content": [{"type": "output_text", "text": "!"}]}
    chunks, _ = answer(*thought_of(0), piece("output_text", "42", 1), completed(output=[THOUGHT, TOLD_LAST, second]))
    assert message_of(chunks)["content"] == "42!"


@pytest.mark.parametrize("told", [True, False])
def test_what_reasoning_is_sealed_with_is_told_once_also_where_only_the_end_has_it(told: bool) -> None:
    sealed = {**THOUGHT, "encrypted_content": "e"}
    over = [finished(5, "reasoning", **{**sealed, "id": "another"})] if told else []
    chunks, _ = answer(*thought_of(5), *over, completed(output=[sealed, TOLD_LAST]))
    said = message_of(chunks)
    assert [one["encrypted_content"] for one in said["reasoning_items"]] == ["e"]
    assert (said["content"], said["reasoning_content"]) == ("42", "Hm.")


@pytest.mark.parametrize("deltas", [["{", "}"], []])
@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("opened", [True, False])
def test_arguments_are_said_once(deltas: list[str], done: bool, opened: bool) -> None:
    call = {"call_id": "c1", "name": "f", "arguments": "{}"}
    values = [added(1, "function_call", **{**call, "arguments": ""})] if opened else []
    values += [piece("function_call_arguments", delta, 1) for delta in deltas]
    if done:
        values.append({"type": "response.function_call_arguments.done", "output_index": 1, "arguments": "{}"})
    chunks, error = answer(*values, finished(1, "function_call", **call), completed())
    assert error is None
    tool: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert message_of(chunks)["tool_calls"] == [tool]
    assert json.loads(chunks[-1].payload)["choices"][0]["finish_reason"] == "tool_calls"
    assert [call["function"] for call in sdk_message(chunks)["tool_calls"]] == [
        {**tool["function"], "parsed_arguments": None}
    ]


def test_parallel_and_custom_calls_keep_their_places() -> None:
    chunks, _ = answer(
        added(3, "function_call", call_id="a", name="f"),
        added(5, "custom_tool_call", call_id="b", name="g"),
        piece("custom_tool_call_input", "x", 5),
        piece("function_call_arguments", "{}", 3),
        piece("custom_tool_call_input", "y", 5),
        completed(),
    )
    assert message_of(chunks)["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "b", "type": "custom", "custom": {"name": "g", "input": "xy"}},
    ]


def test_annotations_are_counted_from_the_start_of_the_content() -> None:
    link = {"type": "url_citation", "url": "u", "title": "t", "start_index": 0, "end_index": 1}
    file = {"type": "file_citation", "file_id": "f", "filename": "n", "index": 9}
    noted = {"type": "response.output_text.annotation.added", "output_index": 1, "content_index": 0}
    chunks, error = answer(
        piece("output_text", "abc", 0),
        added(1, "message"),
        piece("output_text", "de", 1),
        {**noted, "annotation_index": 0, "annotation": link},
        finished(1, "message", content=[{"type": "output_text", "text": "de", "annotations": [link, file]}]),
        completed(),
    )
    assert error is None
    expected = [
        {
            "index": 0,
            "type": "url_citation",
            "url_citation": {"url": "u", "title": "t", "start_index": 3, "end_index": 4},
        },
        {"index": 0, "type": "file_citation", "file_citation": {"file_id": "f", "filename": "n", "index": 9}},
    ]
    by_sdk = sdk_message(chunks)
    told = [*by_sdk["annotations"], *by_sdk["other_annotations"]]
    assert [{key: value for key, value in one.items() if value is not None} for one in told] == expected


def test_other_items_are_kept_whole_and_can_go_back() -> None:
    search = {"status": "completed", "action": {"query": "q"}}
    chunks, error = answer(
        finished(0, "reasoning", summary=[], encrypted_content="e"),
        added(1, "web_search_call", status="in_progress"),
        finished(1, "web_search_call", **search),
        finished(2, "reasoning", summary=[]),
        finished(3, "image_generation_call", result="AA"),
        completed(),
    )
    assert error is None
    said = message_of(chunks)
    assert said["reasoning_items"] == [
        {"type": "reasoning", "id": "i0", "summary": [], "encrypted_content": "e", "output_index": 0}
    ]
    assert [(item["type"], item["output_index"]) for item in said["responses_items"]] == [
        ("web_search_call", 1),
        ("image_generation_call", 3),
    ]
    for answered in (said, sdk_message(chunks)):
        assert items(answered) == [
            {"type": "reasoning", "id": "i0", "summary": [], "encrypted_content": "e"},
            {"type": "web_search_call", "id": "i1", **search},
            {"type": "image_generation_call", "id": "i3", "result": "AA"},
        ]


@pytest.mark.parametrize(
    ("kind", "response", "finish", "native"),
    [
        ("completed", {"status": "completed"}, "stop", "completed"),
        ("completed", {}, "stop", "completed"),
        (
            "incomplete",
            {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            "length",
            "max_output_tokens",
        ),
        (
            "completed",
            {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
            "content_filter",
            "content_filter",
        ),
        ("incomplete", {"status": "incomplete", "incomplete_details": None}, "length", "incomplete"),
    ],
)
def test_ends(kind: str, response: dict[str, Any], finish: str, native: str) -> None:
    chunks, error = answer(piece("output_text", "a"), {"type": f"response.{kind}", "response": response})
    assert error is None
    choice = json.loads(chunks[-1].payload)["choices"][0]
    assert (choice["finish_reason"], choice["native_finish_reason"]) == (finish, native)


ERROR = {"code": "rate_limit_exceeded", "message": "slow down"}


@pytest.mark.parametrize(
    "value",
    [
        {"type": "error", **ERROR, "param": None, "sequence_number": 2},
        {"type": "error", "error": {"type": "x", **ERROR}},
        {"type": "response.failed", "response": {"status": "failed", "error": ERROR}},
        {"type": "response.completed", "response": {"status": "failed", "error": ERROR}},
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_errors(value: dict[str, Any], named: bool) -> None:
    frame = events(value) if named else sse.data_frame(json.dumps(value).encode())
    chunks, error = hear(DIALECT, events(piece("output_text", "a")) + frame)
    assert isinstance(error, UpstreamRefused)
    assert (error.code, error.message) == ("rate_limit_exceeded", "slow down")
    assert fold(values(chunks))["0"]["content"] == "a"


@pytest.mark.parametrize("response", [{"status": "failed", "error": None}, {"status": "cancelled"}])
def test_ends_that_are_none(response: dict[str, Any]) -> None:
    _, error = answer({"type": f"response.{response['status']}", "response": response})
    assert isinstance(error, UpstreamRefused)


@given(st.lists(st.sampled_from(["a", "bc", "é"]), max_size=5), st.text())
def test_any_split(deltas: list[str], pieces: str) -> None:
    stream = events(*(piece("output_text", delta) for delta in deltas), completed())
    chunks, error = hear(DIALECT, stream.replace(b"\n", b"\r\n"), pieces)
    assert error is None
    assert fold(values(chunks))["0"]["content"] == "".join(deltas)


# ---- recordings


def played(row: dict[str, Any], show_usage: bool = False) -> tuple[list[Chunk], UpstreamError | None]:
    return hear(DIALECT, wire(row, done=False), row["file"])


def breaks(native: list[dict[str, Any]]) -> int:
    """How many parts of summaries follow another."""
    pieces = [event for event in native if event["type"] == "response.reasoning_summary_text.delta"]
    said = [(event.get("output_index"), event.get("summary_index")) for event in pieces]
    return sum(one != other for one, other in zip(said, said[1:], strict=False))


@recorded
@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_recording(row: dict[str, Any]) -> None:
    expected, native = row["expected"], natives(row)
    chunks, error = played(row, show_usage=True)
    choice = fold(values(chunks)).get("0", {"content": "", "reasoning": "", "tools": {}, "finish": None})
    assert (digest(choice["content"]), len(choice["content"])) == (expected["text_sha"], expected["text_len"])
    assert len(choice["reasoning"]) == expected["reasoning_len"] + 2 * breaks(native)
    if expected["error"]:
        assert isinstance(error, UpstreamRefused)
        assert (error.code, error.message) == (expected["error"]["code"], expected["error"]["message"])
        return
    if expected["status"] not in ("completed", "incomplete"):
        assert error is not None
        return
    assert error is None
    output = [event["item"] for event in native if event["type"] == "response.output_item.done"]
    calls = [
        {"id": item["call_id"], "name": item["name"], "arguments": item["arguments"]}
        for item in output
        if item["type"] == "function_call"
    ]
    assert list(choice["tools"].values()) == calls
    if expected["status"] == "completed":
        assert choice["finish"] == ("tool_calls" if calls else "stop")
    said = message_of(chunks)
    hosted = Counter(item["type"] for item in output if item["type"] not in ("message", "reasoning", "function_call"))
    assert Counter(item["type"] for item in said.get("responses_items", ())) == hosted
    sealed = [item["encrypted_content"] for item in output if item.get("encrypted_content")]
    assert [item["encrypted_content"] for item in said.get("reasoning_items", ())] == sealed
    texts = [part for item in output if item["type"] == "message" for part in item["content"]]
    noted = [annotation for part in texts for annotation in part.get("annotations") or ()]
    assert len([*said.get("annotations", ()), *said.get("other_annotations", ())]) == len(noted)

    usage = json.loads(chunks[-1].payload)["usage"]
    names = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens", "total_tokens": "total_tokens"}
    assert {name: usage[name] for name in names} == {name: expected["usage"][key] for name, key in names.items()}
    assert usage.get("prompt_tokens_details") == expected["usage"].get("input_tokens_details")
    assert usage.get("completion_tokens_details") == expected["usage"].get("output_tokens_details")


@recorded
@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_every_chunk_is_one_that_official_clients_can_read(row: dict[str, Any]) -> None:
    chunks, error = played(row, show_usage=True)
    assert_readable(chunks)
    if error is None:
        assert (sdk_message(chunks)["content"] or "") == fold(values(chunks))["0"]["content"]


@recorded
@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_a_recording_cut_anywhere_never_passes_for_whole(row: dict[str, Any]) -> None:
    stream, cuts = wire(row, done=False), random.Random(row["file"])
    whole = fold(values(played(row)[0]))
    for _ in range(8):
        cut = cuts.randrange(len(stream))
        chunks, error = hear(DIALECT, stream[:cut], str(cut))
        assert error is not None or fold(values(chunks)) == whole
