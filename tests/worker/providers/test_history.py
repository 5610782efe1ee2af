"""A conversation that others began, or that broke, is one that the next provider can take."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.lib import json
from worker.providers.accepts import FORMATS, MISTRAL, OPENAI, Accepts
from worker.providers.formats import anthropic_request, cohere, gemini_request, ollama, openai, responses
from worker.providers.history import LONE, UNANSWERED, arguments, arguments_text, fitted, media_url

USER = {"role": "user", "content": "hi"}
CLAUDE = FORMATS["anthropic"]


def call(call_id: Any, arguments: Any = "{}", name: str = "f") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*made: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(made), **more}


def result(call_id: Any, content: str = "done") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def fit(messages: list[dict[str, Any]], accepts: Accepts = CLAUDE) -> list[dict[str, Any]]:
    return [message for message, _ in fitted(messages, accepts)]


def pairs(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Each result's id, and what it says."""
    return [(one["tool_call_id"], one["content"]) for one in messages if one["role"] == "tool"]


# ---- F10: ids


def ids(messages: list[dict[str, Any]]) -> list[str]:
    return [one["id"] for message in messages for one in message.get("tool_calls") or ()]


def test_f10_ids_of_another_alphabet_fit_in_the_call_and_its_result() -> None:
    history = [
        USER,
        calls(call("functions.Bash:0"), call("call_1")),
        result("functions.Bash:0", "a"),
        result("call_1", "b"),
    ]
    made = fit(history)
    assert ids(made) == ["functions_Bash_0", "call_1"]
    assert pairs(made) == [("functions_Bash_0", "a"), ("call_1", "b")]
    assert fit(made) == made


def test_f10_an_id_used_again_is_another_call() -> None:
    turn = [calls(call("call_0")), result("call_0", "first")], [calls(call("call_0")), result("call_0", "second")]
    made = fit([USER, *turn[0], USER, *turn[1]])
    assert ids(made) == ["call_0", "call_0_2"]
    assert pairs(made) == [("call_0", "first"), ("call_0_2", "second")]


def test_f10_calls_with_one_id_in_one_message_are_answered_in_their_order() -> None:
    made = fit([USER, calls(call("x"), call("x")), result("x", "first"), result("x", "second")])
    assert pairs(made) == list(zip(ids(made), ["first", "second"], strict=True))
    assert len({*ids(made)}) == 2


@pytest.mark.parametrize("nothing", ["", None])
def test_f10_calls_without_an_id_get_one(nothing: Any) -> None:
    made = fit([USER, calls(call(nothing), call(nothing)), result("", "first"), result("", "second")], OPENAI)
    assert pairs(made) == list(zip(ids(made), ["first", "second"], strict=True))
    assert all(ids(made))


@pytest.mark.parametrize(
    ("accepts", "form"),
    [
        (CLAUDE, r"[a-zA-Z0-9_-]{1,64}"),
        (MISTRAL, r"[a-zA-Z0-9]{9}"),
        (OPENAI, r".{1,40}"),
        (FORMATS["responses"], r".{1,64}"),
    ],
    ids=["anthropic", "mistral", "openai", "responses"],
)
@given(
    found=st.lists(
        st.tuples(
            st.lists(st.text(max_size=80) | st.sampled_from(["call_0", "a.b", "a_b", "123456789"]), max_size=3),
            st.booleans(),
        ),
        max_size=4,
    )
)
def test_f10_ids_fit_are_unique_and_stay_as_the_conversation_grows(
    accepts: Accepts, form: str, found: list[tuple[list[str], bool]]
) -> None:
    history: list[dict[str, Any]] = [USER]
    for turn, answered in found:
        history += [calls(*map(call, turn)), *map(result, turn if answered else ()), USER]
    before = copy.deepcopy(history)
    made = fit(history, accepts)
    assert history == before
    assert all(re.fullmatch(form, one, re.S) for one in ids(made))
    assert len({*ids(made)}) == len(ids(made))
    assert sorted(one for one, _ in pairs(made)) == sorted(ids(made)), "each call has one result"
    assert fit([*history, calls(call("call_0"))], accepts)[: len(made)] == made


def test_f10_a_call_that_was_never_answered_is_answered() -> None:
    """An answer that was cut in its call, as a session may keep it: every provider refuses calls without results."""
    made = fit([USER, calls(call("a"), call("b")), result("a"), USER])
    assert [message["role"] for message in made] == ["user", "assistant", "tool", "tool", "user"]
    assert sorted(pairs(made)) == [("a", "done"), ("b", UNANSWERED)]
    last = [USER, calls(call("a"))]
    assert fit(last) == last, "the calls that end a request are the client's to answer"


def test_a_result_may_come_late() -> None:
    made = fit([USER, calls(call("a.b")), USER, result("a.b")])
    assert pairs(made) == [("a_b", "done")]


# ---- F17: arguments


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        (None, {}),
        ("", {}),
        (" ", {}),
        ("null", {}),
        ('{"cmd":"ls"', {"arguments": '{"cmd":"ls"'}),
        ('{"a":1}{"b":2}', {"arguments": '{"a":1}{"b":2}'}),
        ("[1]", {"arguments": "[1]"}),
        ('"x"', {"arguments": '"x"'}),
        ("ls -l", {"arguments": "ls -l"}),
        ([1], {"arguments": [1]}),
        (7, {"arguments": 7}),
    ],
)
def test_f17_arguments_are_an_object_that_keeps_what_was_written(written: Any, meant: dict[str, Any]) -> None:
    assert arguments(written) == meant
    assert json.loads(arguments_text(written, raw=False).encode()) == meant
    if isinstance(written, str) and written.strip() not in ("", "null"):
        assert arguments_text(written, raw=True) == written


@pytest.mark.parametrize("written", ['{"cmd":"free -h"', None, "", "[1]", {"cmd": "free -h"}])
@pytest.mark.parametrize(
    "build",
    [
        lambda body: anthropic_request.build_request(body, "claude-sonnet-4-5"),
        lambda body: gemini_request.build_request(body, "gemini-3-pro"),
        lambda body: cohere.build_request(body, "command-a"),
        lambda body: ollama.build_request(body, "qwen3"),
        lambda body: responses.build_request(body, "gpt-5"),
        lambda body: openai.build_request(body, "m"),
        lambda body: openai.build_request(body, "m", OPENAI),
    ],
    ids=["anthropic", "gemini", "cohere", "ollama", "responses", "any", "openai"],
)
def test_f17_broken_arguments_stop_no_conversation(build: Callable[[dict[str, Any]], Any], written: Any) -> None:
    text = json.dumps(build({"messages": [USER, calls(call("c", written)), result("c"), USER]})).decode()
    assert "null" not in re.sub(r'"content": ?null', "", text)
    assert ("free -h" in text) is ("free -h" in str(written)), "what the model wrote is still there"


# ---- F19 and the rest


@pytest.mark.parametrize(
    ("url", "spelled"),
    [
        ("data:image/jpg;base64,QUJD", "data:image/jpeg;base64,QUJD"),
        ("DATA:IMAGE/PNG;BASE64,QUJD", "data:image/png;base64,QUJD"),
        ("data:image/webp;base64,QUJD", "data:image/webp;base64,QUJD"),
        ("https://a/B.JPG", "https://a/B.JPG"),
    ],
)
def test_f19_media_types_are_spelled_as_registered(url: str, spelled: str) -> None:
    assert media_url(url) == spelled
    for picture in ({"url": url, "detail": "low"}, url):
        [message] = fit([{"role": "user", "content": [{"type": "image_url", "image_url": picture}]}])
        assert message["content"][0]["image_url"]["url"] == spelled


def test_f19_claude_gets_only_types_it_knows() -> None:
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/JPG;base64,QUJD"}}]}
    [turn] = anthropic_request.build_request({"messages": [message]}, "claude-sonnet-4-5")["messages"]
    assert turn["content"][0]["source"]["media_type"] == "image/jpeg"


def test_reasoning_in_parts_is_for_those_whose_form_it_is() -> None:
    listed = {"type": "thinking", "thinking": [{"type": "text", "text": "why"}]}
    message = {"role": "assistant", "content": [listed, {"type": "text", "text": "because"}]}
    assert fit([message], MISTRAL)[0]["content"] == message["content"]
    assert fit([message], OPENAI)[0]["content"] == [{"type": "text", "text": "because"}]
    assert fit([message], OPENAI)[0]["reasoning_content"] == "why"
    signed = {"type": "thinking", "thinking": "why", "signature": "s"}
    assert fit([{"role": "assistant", "content": [signed]}])[0]["content"] == [signed]
    assert fit([{"role": "assistant", "content": [{**signed, "signature": ""}]}])[0]["content"] == ""


def test_what_has_the_wrong_shape_stays_for_the_format_to_refuse() -> None:
    odd: list[Any] = [
        7,
        {"role": "assistant", "tool_calls": "x"},
        {"role": "assistant", "tool_calls": [1]},
        {"role": "tool"},
    ]
    assert fit(odd, OPENAI) == odd


# ---- calls from before there were tools

OLD: list[dict[str, Any]] = [
    USER,
    {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
    {"role": "function", "name": "f", "content": "sunny"},
    {"role": "assistant", "content": "And?", "function_call": {"name": "g", "arguments": None}},
    {"role": "function", "name": "g", "content": None},
    {"role": "user", "content": "thanks"},
]


def test_k6_older_calls_and_their_results_are_those_of_tools() -> None:
    made = fit(OLD)
    assert made[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert [message["role"] for message in made] == ["user", "assistant", "tool", "assistant", "tool", "user"]
    assert [one[0] for one in pairs(made)] == ids(made)
    assert [one[1] for one in pairs(made)] == ["sunny", ""]
    assert not any("function_call" in message for message in made)
    assert fit(OLD[:4]) == made[:4], "a longer history begins with the shorter one"


def test_k6_an_older_result_without_its_call_is_told_by_the_user() -> None:
    lone = {"role": "function", "name": "h", "content": "late"}
    assert fit([USER, lone])[1] == {"role": "user", "content": f"{LONE}\nlate"}
    assert fit([*OLD[:2], lone, OLD[2]])[2]["content"] == "sunny", "a result goes by its name"


def test_k6_a_call_that_is_told_in_both_forms_is_one() -> None:
    made = {"name": "f", "arguments": "{}"}
    both = {**calls(call("c")), "function_call": made}
    assert ids(fit([USER, both, result("c")])) == ["c"]


@pytest.mark.parametrize("format", [anthropic_request, cohere, gemini_request, ollama, openai, responses])
def test_k6_every_format_takes_them(format: Any) -> None:
    request = json.dumps(format.build_request({"messages": OLD}, "m")).decode()
    assert "sunny" in request
    assert '"function_call":' not in request


def test_k6_a_request_of_that_time_stays_as_it_is() -> None:
    asked = {"messages": OLD[:3], "functions": [{"name": "f", "parameters": {}}]}
    made = openai.build_request(asked, "m", OPENAI)["messages"]
    assert [message["role"] for message in made] == ["user", "assistant", "function"]
    assert made[1]["function_call"]["name"] == "f"
