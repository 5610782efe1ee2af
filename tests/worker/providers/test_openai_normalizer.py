"""The dialects of OpenAI's format, one rule at a time; whole recorded streams are in test_recordings.py."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.chat.chunks import EXTENSION_FIELDS
from shared.errors import UpstreamError, UpstreamIncomplete, UpstreamInvalid, UpstreamRefused
from shared.lib import sse
from shared.log.entry import Chunk
from worker.normalizer import Normalizer
from worker.providers.errors import error_from_response
from worker.providers.formats.openai import build_request, key_header
from worker.providers.registry import Provider

KEY = "topsecret-0123456789"
PROVIDER = Provider(name="acme", kind="openai", base_url="https://api.example.com/v1", api_key=KEY)


def normalizer(*, show_usage: bool = False, choices: int = 1) -> Normalizer:
    return Normalizer(id="chatcmpl-1", created=5, model="acme/m", show_usage=show_usage, choices=choices)


def feed(target: Normalizer, *values: Any) -> list[Any]:
    chunks: list[Chunk] = []
    for value in values:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        chunks += target.feed(sse.Event(data))
    return [json.loads(chunk.payload) for chunk in chunks]


def end(target: Normalizer) -> list[Any]:
    return [json.loads(chunk.payload) for chunk in target.end()]


def chunk(delta: Any = None, finish: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"id": "up", "choices": [{"index": index, "delta": delta, "finish_reason": finish}], **fields}


def usage_of(total: int) -> dict[str, int]:
    return {"prompt_tokens": 3, "completion_tokens": total, "total_tokens": 3 + total}


def test_request_asks_for_a_stream_with_usage_and_keeps_what_it_does_not_know() -> None:
    ours = dict.fromkeys(EXTENSION_FIELDS, "x")
    body = {"model": "acme/m", "messages": [], "x_new": {"a": 1}, "stream": False, "temperature": 0, **ours}
    before = json.dumps(body)
    request = build_request({**body, "stream_options": {"include_usage": False, "include_obfuscation": False}}, "m")
    assert request == {
        "model": "m",
        "messages": [],
        "x_new": {"a": 1},
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
    }
    assert json.dumps(body) == before
    assert build_request({"stream_options": None}, "m")["stream_options"] == {"include_usage": True}


def test_chunks_keep_the_providers_object_and_its_order() -> None:
    raw = b'{"z":1,"id":"up","choices":[{"delta":{"role":"assistant","content":"a","thinking":"b"},"index":0}],"x":[]}'
    [out] = normalizer().feed(sse.Event(raw, "execute", "7"))
    assert out == Chunk(
        b'{"z":1,"id":"chatcmpl-1","choices":[{"delta":{"role":"assistant","content":"a","thinking":"b"},"index":0,'
        b'"finish_reason":null}],"x":[],"object":"chat.completion.chunk","created":5,"model":"acme/m"}'
    )


def test_surrogate_halves_and_big_integers_survive() -> None:
    target = normalizer()
    raw = b'{"choices":[{"index":0,"delta":{"role":"assistant","content":"%b"}}],"big":123456789012345678901234567890}'
    first, second = (target.feed(sse.Event(raw % half))[0].payload for half in (b"\\ud83d", b"\\ude00"))
    assert b'"\\ud83d"' in first
    assert b'"\\ude00"' in second
    assert b"123456789012345678901234567890" in first
    assert target.content_chars == 2


@pytest.mark.parametrize(
    "event",
    [
        sse.Event(b'{"choices":[{"index":0,"delta":{"content":"x"}}]}', "ping"),
        sse.Event(b""),
        sse.Event(b"{}"),
        sse.Event(b'{"type":"ping"}'),
        sse.Event(b'{"id":"a","object":"b","choices":[],"usage":null,"system_fingerprint":"f","obfuscation":"pad"}'),
        sse.Event(b'{"choices":null}'),
    ],
)
def test_pings_and_empty_shells_become_nothing(event: sse.Event) -> None:
    assert normalizer().feed(event) == []


def test_j4_a_chunk_without_choices_but_with_something_to_say_rides_on_the_next() -> None:
    """Azure's; clients that did not ask for usage read `choices[0]` unseen."""
    filters = {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    [first, second] = feed(normalizer(), filters, filters, chunk({"content": "a"}), chunk({"content": "b"}))
    assert first["prompt_filter_results"] == [{"prompt_index": 0}] * 2
    assert "prompt_filter_results" not in second

    target = normalizer()
    feed(target, chunk({"content": "a"}), chunk({}, "stop"), {"choices": [], "late": 1}, b"[DONE]")
    [last] = end(target)
    assert (last["late"], last["choices"][0]["finish_reason"]) == (1, "stop")


def test_usage_comes_once_and_last() -> None:
    target = normalizer()
    out = feed(target, chunk({"content": "a"}, usage=usage_of(1)), chunk({}, "stop", usage=usage_of(2)))
    assert all("usage" not in value for value in out)
    [finish, last] = target.end()
    assert not finish.is_usage
    assert last.is_usage
    assert json.loads(last.payload) == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 5,
        "model": "acme/m",
        "choices": [],
        "usage": usage_of(2),
    }
    assert target.end() == []
    assert target.usage == usage_of(2)


def test_who_asked_for_usage_sees_null_until_then() -> None:
    target = normalizer(show_usage=True)
    out = feed(target, chunk({"content": "a"}), chunk({}, "stop", usage=usage_of(2)))
    assert [value["usage"] for value in [*out, *end(target)]] == [None, None, usage_of(2)]


def test_usage_per_choice_and_in_x_groq() -> None:
    target = normalizer(choices=2)
    first = {"choices": [], "usage": usage_of(1), "timings": {"ms": 1}}
    out = feed(target, chunk({}, "stop", 1), first, chunk({}, "stop", 0), {**first, "usage": usage_of(2)})
    assert out == []
    *out, last = end(target)
    shown = [(value["choices"][0]["index"], value["choices"][0]["finish_reason"]) for value in out]
    assert shown == [(0, None), (0, "stop"), (1, "stop")]
    assert (last["usage"], last["timings"]) == (usage_of(2), {"ms": 1})

    groq = normalizer()
    assert feed(groq, chunk({}, "stop", x_groq={"id": "r", "usage": usage_of(3)})) == []
    [out_groq, last_groq] = end(groq)
    assert out_groq["x_groq"] == {"id": "r", "usage": usage_of(3)}
    assert last_groq["usage"] == usage_of(3)


def test_role_once_per_choice_and_choices_in_order() -> None:
    target = normalizer(choices=3)
    out = feed(
        target,
        chunk({"content": "c"}, index=2),
        chunk({"role": "assistant", "content": "a"}),
        chunk({"role": "assistant"}, "stop", 2),
    )
    shown = [(value["choices"][0]["index"], value["choices"][0]["delta"]) for value in out]
    assert shown == [
        (0, {"role": "assistant", "content": ""}),
        (1, {"role": "assistant", "content": ""}),
        (2, {"content": "c", "role": "assistant"}),
        (0, {"content": "a"}),
    ]
    assert target.finish_reasons == [None, None, "stop"]


def test_delta_and_index_are_filled_in() -> None:
    target = normalizer()
    assert feed(target, {"choices": [{"finish_reason": "stop"}]}) == []
    [out] = end(target)
    assert out["choices"] == [{"finish_reason": "stop", "index": 0, "delta": {"role": "assistant"}}]


def test_tool_calls_name_themselves_once() -> None:
    def call(arguments: str, **fields: Any) -> dict[str, Any]:
        name = {"name": fields.pop("name")} if "name" in fields else {}
        return chunk({"tool_calls": [{"index": 0, **fields, "function": {**name, "arguments": arguments}}]})

    out = feed(
        normalizer(),
        call("", id="c1", type="function", name="f"),
        call("{", id="c1", type="function", name="f"),
        call("}", id="", type="function", name=""),
        call("", id="c2"),
    )
    assert [value["choices"][0]["delta"]["tool_calls"][0] for value in out] == [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": "{"}},
        {"index": 0, "function": {"arguments": "}"}},
        {"index": 0, "function": {"arguments": ""}},
    ]


def test_tool_calls_without_index_get_one() -> None:
    def calls(*parts: tuple[str | None, str | None]) -> dict[str, Any]:
        named = [{"function": {"name": name, "arguments": "x"}, **({"id": id} if id else {})} for id, name in parts]
        return chunk({"tool_calls": named})

    out = feed(normalizer(), calls(("a", "f"), ("b", "g")), calls((None, None)), calls(("a", None)), calls((None, "h")))
    indexes = [call["index"] for value in out for call in value["choices"][0]["delta"]["tool_calls"]]
    assert indexes == [0, 1, 1, 0, 2]


def test_counts_text_wherever_it_stands() -> None:
    target = normalizer()
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "abc"}, "d"]}, {"type": "text", "text": "xy"}]
    feed(
        target, chunk({"content": "é"}), chunk({"reasoning": "ab"}), chunk({"reasoning_content": "c", "content": None})
    )
    feed(target, chunk({"content": parts}))
    assert (target.content_chars, target.reasoning_chars, target.chunks) == (3, 7, 4)


def test_after_done_nothing_counts() -> None:
    target = normalizer()
    feed(target, chunk({"content": "a"}), b"[DONE]")
    assert target.done
    assert not target.finished
    assert feed(target, chunk({"content": "ghost"}), b"not json", b"[DONE]") == []
    assert target.finish_reasons == [None]
    [last] = end(target)
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert target.finish_reasons == ["stop"]


@pytest.mark.parametrize("values", [[], [chunk({"content": "a"})], [chunk({}, "stop")]])
def test_an_end_without_proof_is_incomplete(values: list[Any]) -> None:
    target = normalizer(choices=2)
    feed(target, *values, {"choices": [], "usage": usage_of(1)})
    with pytest.raises(UpstreamIncomplete):
        target.end()


@pytest.mark.parametrize(
    ("event", "message", "code", "status"),
    [
        (sse.Event(b'{"error":{"message":"m","type":"t","code":"c"}}'), "m", "c", 502),
        (sse.Event(b'{"error":{"message":"m","code":429},"choices":[]}'), "m", "429", 429),
        (sse.Event(b'{"error":{"message":"m","code":"c","status_code":400}}', "error"), "m", "c", 400),
        (sse.Event(b'{"error":"m"}'), "m", "upstream_refused", 502),
        (sse.Event(b'{"message":"m","code":503}', "error"), "m", "503", 502),
        (sse.Event(b"out of memory", "error"), "out of memory", "upstream_refused", 502),
        (
            sse.Event(b'{"error":{"x":1}}'),
            "the provider reported an error and did not say which.",
            "upstream_refused",
            502,
        ),
    ],
)
def test_errors_in_the_stream(event: sse.Event, message: str, code: str, status: int) -> None:
    with pytest.raises(UpstreamRefused) as caught:
        normalizer().feed(event)
    assert (caught.value.message, caught.value.code, caught.value.status) == (message, code, status)


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices":[{"delta":{"content":"secret text',
        b'{"choices":[{"index":0,"delta":{"content":"secret text \xff\xfe"}}]}',
        b'"secret text"',
        b'{"choices":{"a":"secret text"}}',
        b'{"choices":["secret text"]}',
        b'{"choices":[{"index":"secret text"}]}',
        b'{"choices":[{"index":-1}]}',
        b'{"choices":[{"index":1000000000}]}',
        b'{"choices":[{"index":true}]}',
        b'{"choices":[{"delta":["secret text"]}]}',
        b'{"choices":[{"delta":{"tool_calls":"secret text"}}]}',
        b'{"choices":[{"delta":{"tool_calls":["secret text"]}}]}',
        b'{"choices":[{"delta":{"tool_calls":[{"index":"secret text"}]}}]}',
        b'{"choices":[{"delta":{"content":"\\ud800"}}],"x":1e999}',
        b'{"choices":[{"delta":{"content":"\\ud800"}}],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_damage_is_refused_without_repeating_it(data: bytes) -> None:
    with pytest.raises(UpstreamInvalid) as caught:
        normalizer().feed(sse.Event(data))
    assert caught.value.__context__ is None or "secret" not in str(caught.value.__context__)
    assert "secret" not in str(caught.value)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "index",
                    "delta",
                    "tool_calls",
                    "function",
                    "id",
                    "usage",
                    "error",
                    "x_groq",
                    "content",
                    "role",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@given(st.lists(anything, max_size=4), st.booleans())
def test_no_json_whatsoever_raises_anything_else(values: list[Any], show_usage: bool) -> None:
    target = normalizer(show_usage=show_usage)
    try:
        for value in values:
            for out in target.feed(sse.Event(json.dumps(value).encode())):
                assert json.loads(out.payload)["id"] == "chatcmpl-1"
        target.end()
    except UpstreamError:
        pass


def refused(status: int, body: Any = b"", **headers: str) -> UpstreamError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return error_from_response(PROVIDER, status, {k.replace("_", "-"): v for k, v in headers.items()}, data)


@pytest.mark.parametrize(
    ("status", "ours"), [(400, 400), (404, 404), (408, 504), (409, 409), (422, 422), (500, 502), (503, 502), (504, 504)]
)
def test_status(status: int, ours: int) -> None:
    error = refused(status, {"error": {"message": "m", "type": "t", "code": "c"}})
    assert isinstance(error, UpstreamRefused)
    assert (error.status, error.provider_status) == (ours, status)
    assert ("provider_status" in error.to_stored()) is (ours != status)
    assert error.to_object() == {"message": "acme: m", "type": "t", "param": None, "code": "c"}


@pytest.mark.parametrize("status", [401, 403, 407])
def test_what_is_said_of_the_servers_key_is_no_word_about_the_clients(status: int) -> None:
    """An SDK would tell its user that the key is wrong, which is good here; a proxy may even revoke it."""
    for error in (
        refused(status, {"error": {"message": "m", "type": "t", "code": "c"}}),
        refused(200, {"error": {"message": "m", "type": "t", "code": status}}),
    ):
        assert (error.status, error.provider_status, error.to_stored().get("provider_status")) == (502, status, status)
        assert error.message == f"acme: m ({status} by the provider, to the server's key there; yours is good.)"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "m"}}, "acme: m"),
        ([{"error": {"code": 400, "message": "m"}}], "acme: m"),
        ({"object": "error", "message": "m", "code": None}, "acme: m"),
        ({"detail": "m"}, "acme: m"),
        (b"no healthy upstream", "acme: no healthy upstream"),
        (b'{"error": {"mess', "acme: the provider reported an error and did not say which (HTTP 400)."),
        (b"<html>secret</html>", "acme: the provider reported an error and did not say which (HTTP 400)."),
        (b"", "acme: the provider reported an error and did not say which (HTTP 400)."),
        ({"error": {"message": "x" * 1000}}, "acme: " + "x" * 499 + "…"),
        ({"error": {"message": "a\r\nb\0c"}}, "acme: a b c"),
    ],
)
def test_message(body: Any, message: str) -> None:
    assert refused(400, body).message == message


def test_an_address_that_is_wrong_is_guessed_from_a_page_that_is_not_there() -> None:
    assert refused(404, b"<html>Not here</html>").message.endswith(
        "did not say which (HTTP 404). Is its address right?"
    )


def test_keys_are_taken_out_before_the_text_is_cut() -> None:
    for text in (KEY, "sk-proj-abcdefgh****1234", "Bearer abc.def", "AIzaSyA1234567890", "x" * 480 + KEY):
        error = refused(401, {"error": {"message": f"bad key {text}", "code": f"bad {text}"}})
        assert text.removeprefix("x" * 480)[:12] not in json.dumps(error.to_stored())
        assert "[redacted]"[:5] in error.message


def test_retry_after() -> None:
    assert refused(429, retry_after="2").retry_after_s == 2
    assert refused(429, retry_after="2", retry_after_ms="1500").retry_after_s == 1.5
    assert refused(429, retry_after="-5").retry_after_s == 0
    in_a_minute = refused(429, retry_after=formatdate(time.time() + 60, usegmt=True)).retry_after_s
    assert in_a_minute is not None
    assert 50 < in_a_minute <= 60
    for nonsense in ("soon", "inf", "nan", "-infinity", "", "Fri, 99 Dec 9999 23:59:59 GMT", "1, 2"):
        assert refused(429, retry_after=nonsense).retry_after_s is None
    assert refused(429, retry_after="7", retry_after_ms="soon").retry_after_s == 7


@pytest.mark.parametrize("much", ["86401", "1e20", "1e400", "9" * 5000, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_nobody_is_asked_to_wait_for_more_than_a_day(much: str) -> None:
    assert refused(429, retry_after=much).to_stored()["retry_after_s"] == 86400


@pytest.mark.parametrize("past", ["-1", "-1e400", "Mon, 01 Jan 0001 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:00 -0000"])
def test_what_is_over_is_now(past: str) -> None:
    assert refused(429, retry_after=past).retry_after_s in (0, None)
    assert refused(429, retry_after="5", retry_after_ms="9" * 400).retry_after_s == 86400


def test_not_errors_by_status() -> None:
    assert (refused(302).status, refused(302).code) == (502, "upstream_redirect")
    assert isinstance(refused(200, {"choices": []}), UpstreamInvalid)
    assert isinstance(refused(200, b"<html>"), UpstreamInvalid)
    assert (refused(200, {"error": {"message": "m", "code": 402}}).status) == 402


def test_the_key_goes_where_the_provider_wants_it() -> None:
    assert key_header(Provider("a", "openai", "http://x", "k")) == {"authorization": "Bearer k"}
    assert key_header(Provider("a", "openai", "http://x", "k", key_header="api-key")) == {"api-key": "k"}
    assert key_header(Provider("a", "openai", "http://x")) == {}


@pytest.mark.parametrize(
    ("limit_field", "given", "sent"),
    [
        (None, {"max_tokens": 1}, {"max_tokens": 1}),
        (None, {"max_tokens": 1, "max_completion_tokens": 2}, {"max_completion_tokens": 2}),
        ("max_tokens", {"max_completion_tokens": 2}, {"max_tokens": 2}),
        ("max_completion_tokens", {"max_tokens": 1}, {"max_completion_tokens": 1}),
        ("max_tokens", {"max_tokens": None}, {}),
        ("max_tokens", {}, {}),
    ],
)
def test_one_name_of_the_limit_is_sent(limit_field: str | None, given: dict[str, Any], sent: dict[str, Any]) -> None:
    request = build_request({"messages": [], **given}, "m", limit_field=limit_field)
    assert {name: value for name, value in request.items() if name.startswith("max_")} == sent
