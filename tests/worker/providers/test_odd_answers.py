"""Answers of the kinds of test_answers.py that other gateways met, and that were silently read as something else here.

Each is read in packets of 1, 7 and 1,400 bytes. K1: ended too early, K2: a failure that looks like a success, K3: calls,
K5: figures, K8: no stream of deltas.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.errors import UpstreamRefused
from tests.support.answers import completion
from tests.support.written import DIALECTS, DONE, FRAMED, assert_reads, chunk, hear, said, stream_of


def heard(kind: str, given: Any, **options: Any) -> tuple[dict[str, Any], Any]:
    """The whole answer, as far as it came, and the error it ended in; the same however the packets are cut."""
    body = given if isinstance(given, bytes) else stream_of(*given)
    chunks, error, _ = hear(body, dialect=DIALECTS[kind], **options)
    for size in (1, 7):
        others, other, _ = hear(body, dialect=DIALECTS[kind], size=size, **options)
        assert (others, type(other), str(other)) == (chunks, type(error), str(error))
    if error is None:
        assert_reads(chunks)
    return completion(chunks), error


# ---- K2

FAILURES: list[dict[str, Any]] = [
    {"Error": {"Message": "boom", "Code": "x"}},
    {"ERROR": "boom"},
    {"err": "boom"},
    {"err_msg": "boom"},
    {"errcode": 1, "errmsg": "boom"},
    {"ret": -1, "msg": "boom"},
    {"ErrorMsg": {"Msg": "boom", "Code": 4001}},
    {"ResponseMetadata": {"Error": {"Message": "boom", "Code": "x"}}},
    {"Response": {"Error": {"Code": "x", "Message": "boom"}}},
    {"response": {"error": {"message": "boom"}}},
    {"result": {"error": "boom"}},
    {"header": {"code": 10013, "message": "boom"}},
    {"message": {"error": "boom"}},
    {"body": {"detail": {"message": "boom"}}},
    {"internalServerException": {"message": "boom"}},
    {"modelStreamErrorException": {"message": "boom"}},
    {"__type": "ThrottlingException", "message": "boom"},
    {"upstream_error": "boom"},
    {"stream_error": {"message": "boom"}},
    {"error_type": "x", "message": "boom"},
    {"error_description": "boom", "error_uri": "x"},
    {"failure": "boom"},
    {"failed": True, "message": "boom"},
    {"success": "false", "message": "boom"},
    {"success": 0, "message": "boom"},
    {"ok": False, "description": "boom"},
    {"state": "error", "message": "boom"},
    {"event": "error", "data": "boom"},
    {"type": "exception", "message": "boom"},
    {"type": "response.failed", "message": "boom"},
    {"statusCode": 500, "body": "boom"},
    {"error": {"error": {"message": "boom"}}},
    {"error": {"message": {"text": "boom"}}},
    {"error": "Internal Server Error", "status": 500, "message": "boom"},
    {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}, "message": "boom", "code": 500},
    {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": None}], "code": 500, "message": "boom"},
    {"choices": [{"index": 0, "delta": {"role": "assistant"}}], "errors": ["boom"]},
    {"choices": [{"index": 0, "delta": {}}], "object": "error", "message": "boom"},
    {"choices": [{"index": 0, "delta": {}}], "detail": "boom"},
    {"choices": [{"index": 0, "message": {"error": "boom"}}]},
    chunk({}, None, x_groq={"id": "r", "error": "boom"}),
    chunk({}, "stop", x_groq={"id": "r", "error": "boom"}),
]


@pytest.mark.parametrize("value", FAILURES, ids=json.dumps)
def test_k2_an_error_in_words_of_others_is_one(value: dict[str, Any]) -> None:
    whole, error = heard("openai", [*said("Half"), value, DONE])
    assert (type(error), str(error)) == (UpstreamRefused, "boom")
    assert whole["choices"][0]["message"]["content"] == "Half"


@pytest.mark.parametrize("value", [one for one in FAILURES if "choices" not in one], ids=json.dumps)
@pytest.mark.parametrize("kind", FRAMED)
def test_k2_so_it_is_in_every_format(kind: str, value: dict[str, Any]) -> None:
    _, error = heard(kind, [value, DONE])
    assert (type(error), "boom" in str(error)) == (UpstreamRefused, True)


@pytest.mark.parametrize(
    "value",
    [
        {"error_code": 0, "error_msg": "success"},
        {"errcode": 0, "errmsg": "ok"},
        {"Response": {"RequestId": "r"}},
        {"header": {"code": 0, "message": "Success"}},
        {"result": {"message": "all is well"}},
        {"success": True, "message": "ok"},
        {"is_error": False, "last_error": None},
        {**chunk({"content": ""}), "code": 0, "message": "Success", "sid": "s"},
        {**chunk({}), "detail": None, "errors": []},
        {**chunk({}), "x_groq": {"id": "r", "error": ""}},
    ],
    ids=json.dumps,
)
def test_k2_what_tells_of_no_error_is_none(value: dict[str, Any]) -> None:
    whole, error = heard("openai", [value, *said("a"), value, chunk({}, "stop"), DONE])
    assert (error, whole["choices"][0]["message"]["content"]) == (None, "a")


def test_k2_a_status_beside_the_words_is_the_errors() -> None:
    _, error = heard("openai", [{"error": "Too Many Requests", "status": 429, "message": "boom"}, DONE])
    assert (error.provider_status, error.message) == (429, "boom")


def test_k2_an_error_within_an_error_does_not_hide_its_words() -> None:
    """Azure tells the cause as `innererror`."""
    told = {"error": {"message": "boom", "code": "content_filter", "innererror": {"code": "ResponsibleAI"}}}
    _, error = heard("openai", [told, DONE])
    assert (error.message, error.code) == ("boom", "content_filter")
