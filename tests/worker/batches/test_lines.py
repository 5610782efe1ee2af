"""The lines of a batch: cut out of pieces, checked, and written."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.features.batches import NO_USAGE
from worker.batches import endpoints
from worker.batches.lines import (
    MAX_LINE_BYTES,
    LineWrong,
    Raw,
    add_usage,
    answer_line,
    check_line,
    line_id,
    read_lines,
    skipped_line,
)

ENDPOINT = "/v1/chat/completions"
BODY = {"model": "fake/echo", "messages": [{"role": "user", "content": "hi"}]}
LINE: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": ENDPOINT, "body": BODY}


async def pieces(*found: bytes) -> AsyncIterator[bytes]:
    for piece in found:
        yield piece


@given(
    st.lists(st.binary(max_size=5).map(lambda line: line.replace(b"\n", b"-")), max_size=8), st.booleans(), st.data()
)
async def test_lines_are_those_of_the_file_however_it_comes(
    lines: list[bytes], ended: bool, data: st.DataObject
) -> None:
    content = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5)))
    parts = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    found = [line async for line in read_lines(pieces(*parts))]
    expected = content.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert [line.data for line in found] == expected
    assert [line.number for line in found] == list(range(1, len(expected) + 1))
    assert all(content[line.offset : line.offset + line.length] == line.data for line in found)
    for line in found:  # from any line on, they are the same
        rest = read_lines(pieces(content[line.offset :]), line.number, line.offset)
        assert [one async for one in rest] == found[line.number - 1 :]


async def test_a_line_without_end_is_not_kept() -> None:
    chunk = b"x" * 1_000_000
    found = [line async for line in read_lines(pieces(*[chunk] * 53, b"x\nnext\n"))]
    assert [(line.number, line.length, line.data) for line in found] == [(1, 53_000_001, None), (2, 4, b"next")]
    whole = b"y" * MAX_LINE_BYTES
    (line,) = [line async for line in read_lines(pieces(whole))]
    assert line.data == whole


def raw(value: object) -> Raw:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Raw(1, 0, len(data), data)


def test_a_good_line_is_understood() -> None:
    asked = check_line(raw({**LINE, "body": {**BODY, "stream": False, "temperature": 0}}), ENDPOINT)
    assert (asked.custom_id, asked.body["temperature"], asked.request.model) == ("a", 0, "fake/echo")
    assert check_line(raw(json.dumps(LINE).encode() + b"\r"), ENDPOINT).custom_id == "a"


@pytest.mark.parametrize(
    ("value", "code", "param"),
    [
        (b"", "invalid_json_line", None),
        (b"  \r", "invalid_json_line", None),
        (b"{", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (b"\xff\xfe", "invalid_json_line", None),
        (b"\xef\xbb\xbf" + json.dumps(LINE).encode(), "invalid_json_line", None),
        ({**LINE, "custom_id": None}, "missing_required_parameter", "custom_id"),
        ({name: LINE[name] for name in LINE if name != "body"}, "missing_required_parameter", "body"),
        ({**LINE, "custom_id": ""}, "invalid_custom_id", "custom_id"),
        ({**LINE, "custom_id": 7}, "invalid_custom_id", "custom_id"),
        ({**LINE, "custom_id": "x" * 513}, "invalid_custom_id", "custom_id"),
        ({**LINE, "method": "GET"}, "invalid_method", "method"),
        ({**LINE, "url": "/v1/responses"}, "invalid_url", "url"),
        ({**LINE, "url": "https://example.org/v1/chat/completions"}, "invalid_url", "url"),
        ({**LINE, "body": []}, "invalid_request", "body"),
        ({**LINE, "priority": 1}, "unknown_parameter", "priority"),
        ({**LINE, "body": {**BODY, "stream": True}}, "streaming_unsupported", "body.stream"),
        ({**LINE, "body": {**BODY, "session_id": "s"}}, "unsupported_parameter", "body.session_id"),
        ({**LINE, "body": {**BODY, "on_disconnect": "cancel"}}, "unsupported_parameter", "body.on_disconnect"),
        ({**LINE, "body": {**BODY, "messages": [{"role": "x"}]}}, "invalid_request", "body.messages[0].role"),
        ({**LINE, "body": {"messages": []}}, "invalid_request", "body.model"),
    ],
)
def test_what_is_wrong_with_a_line_is_told(value: object, code: str, param: str | None) -> None:
    with pytest.raises(LineWrong) as caught:
        check_line(raw(value), ENDPOINT)
    told = caught.value.at(17)
    assert (told["code"], told["param"], told["line"]) == (code, param, 17)
    assert len(told["message"]) > 10


def test_a_byte_order_mark_is_called_one() -> None:
    with pytest.raises(LineWrong, match="byte order mark"):
        check_line(raw(b"\xef\xbb\xbf{}"), ENDPOINT)


def test_a_line_too_long_is_refused() -> None:
    with pytest.raises(LineWrong) as caught:
        check_line(Raw(3, 0, 5_000_000, None), ENDPOINT)
    assert caught.value.code == "line_too_large"


def test_a_line_has_one_generation_for_each_try() -> None:
    ids = {line_id(batch, number, tries) for batch in "ab" for number in (1, 2, 11) for tries in (0, 1)}
    assert len(ids) == 12
    assert all(len(one) == len("chatcmpl-") + 32 for one in ids)
    assert line_id("a", 1, 0) == line_id("a", 1, 0)


def test_what_is_written_is_openais() -> None:
    line = json.loads(answer_line("b", 1, "c", 200, "chatcmpl-1", {"x": 1}))
    assert line == {
        "id": line["id"],
        "custom_id": "c",
        "response": {"status_code": 200, "request_id": "chatcmpl-1", "body": {"x": 1}},
        "error": None,
    }
    skipped = json.loads(skipped_line("b", 1, "c", "batch_expired"))
    assert (skipped["id"], skipped["response"], skipped["error"]["code"]) == (line["id"], None, "batch_expired")
    assert line["id"].startswith("batch_req_")


def test_usage_adds_up_whatever_providers_send() -> None:
    total = dict(NO_USAGE)
    add_usage(total, {"prompt_tokens": 2, "completion_tokens": 3.0, "total_tokens": 5})
    add_usage(
        total, {"prompt_tokens": "7", "completion_tokens": -1, "total_tokens": 1e300, "prompt_tokens_details": []}
    )
    add_usage(
        total,
        {
            "prompt_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": 4},
        },
    )
    add_usage(total, None)
    assert total == {
        "input_tokens": 3,
        "cached_tokens": 1,
        "output_tokens": 3,
        "reasoning_tokens": 4,
        "total_tokens": 5,
    }
    assert sum(NO_USAGE.values()) == 0


@pytest.mark.parametrize("wrong", [{"type": {"a": 1}}, {"type": "function_call_output", "call_id": [1], "output": ""}])
def test_an_item_of_no_type_is_its_lines_error(wrong: dict[str, Any]) -> None:
    """It ended the whole batch, and no line was named."""
    line = {**LINE, "url": "/v1/responses", "body": {"model": "fake/echo", "input": [wrong]}}
    with pytest.raises(LineWrong) as caught:
        check_line(Raw(1, 0, 0, json.dumps(line).encode()), "/v1/responses")
    assert (caught.value.code, caught.value.param) == ("invalid_request", f"body.input[0].{[*wrong][len(wrong) > 1]}")


def test_a_check_that_breaks_is_its_lines_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(*_: Any) -> None:
        raise TypeError("unhashable: what the client wrote")

    monkeypatch.setattr(endpoints, "read", read)
    with pytest.raises(LineWrong) as caught:
        check_line(Raw(1, 0, 0, json.dumps(LINE).encode()), ENDPOINT)
    assert (caught.value.code, caught.value.param) == ("internal_error", "body")
    logged = capsys.readouterr()
    assert "TypeError" in logged.out + logged.err
    assert "what the client wrote" not in f"{caught.value}{logged.out}{logged.err}"
