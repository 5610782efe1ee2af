"""What holds for every wire format with words of its own, whatever is asked and whatever comes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import BadRequest, UpstreamError
from shared.lib import json
from shared.lib.sse import Event
from tests.support.answers import new_normalizer
from worker.providers.formats import cohere, ollama, responses, responses_events
from worker.providers.registry import Provider

FORMATS = {"responses": responses, "ollama": ollama, "cohere": cohere}
USER: dict[str, Any] = {"role": "user", "content": "hi"}


def asked(form: Any, **fields: Any) -> dict[str, Any]:
    body = {"model": "acme/m", "messages": [USER], "stream": True, **fields}
    built: dict[str, Any] = form.build_request(body, "m")
    return built


@pytest.fixture(params=FORMATS)
def form(request: pytest.FixtureRequest) -> Any:
    return FORMATS[request.param]


def test_what_only_openai_can_be_asked_for_is_refused(form: Any) -> None:
    for field, value in {
        "n": 2,
        "logit_bias": {"1": 2},
        "functions": [{"name": "f"}],
        "modalities": ["text", "audio"],
        "audio": {"voice": "x"},
        "web_search_options": {"search_context_size": "low"},
    }.items():
        with pytest.raises(BadRequest) as caught:
            asked(form, **{field: value})
        assert caught.value.param == field
    assert asked(form, n=1, logit_bias={}, modalities=["text"], functions=None) == asked(form)


def test_hints_and_our_own_fields_are_no_part_of_it(form: Any) -> None:
    plain = asked(form)
    assert asked(form, prediction={"type": "content", "content": "x"}, session_id="s", on_disconnect="cancel") == plain
    if form is not responses:
        hints = {"store": True, "metadata": {"a": "b"}, "user": "u", "service_tier": "flex", "prompt_cache_key": "k"}
        assert asked(form, stream_options={"include_usage": True}, **hints) == plain


def test_unknown_fields_travel_untouched(form: Any) -> None:
    assert asked(form, keep_alive="5m", documents=["d"]) == {**asked(form), "keep_alive": "5m", "documents": ["d"]}


def test_speakers_that_are_told_apart_by_name_are_refused(form: Any) -> None:
    alice, bob = {**USER, "name": "alice"}, {**USER, "name": "bob"}
    assert asked(form, messages=[alice, alice]) == asked(form, messages=[USER, USER])
    with pytest.raises(BadRequest) as caught:
        asked(form, messages=[alice, bob])
    assert caught.value.param == "messages[1].name"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "user", "content": [{"type": "video_url"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "assistant", "tool_calls": [{"id": "c"}]}, "messages[0].tool_calls[0].function"),
        ({"role": "assistant", "function_call": {"arguments": "{}"}}, "messages[0].tool_calls[0].function.name"),
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[0].audio"),
    ],
)
def test_messages_that_cannot_be_said(form: Any, message: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        asked(form, messages=[message])
    assert caught.value.param == param


def test_the_key_is_a_bearer_key(form: Any) -> None:
    called = form.call(Provider("acme", "openai", "http://x", "k"), {"messages": [USER]}, "m")
    assert called.headers["authorization"] == "Bearer k"
    assert "authorization" not in form.call(Provider("acme", "openai", "http://x"), {"messages": [USER]}, "m").headers


# ---- answers that are not what they should be

words = st.text(max_size=5)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
KINDS = [*responses_events._HANDLERS, *responses_events._PIECES, *responses_events._WHOLES, *cohere._HANDLERS]
inner = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("type", "id", "name", "call_id", "arguments", "content", "summary", "text", "annotations", "function"),
        anything | words,
    ),
)
junk = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(KINDS) | anything,
        "item": inner | anything,
        "response": st.fixed_dictionaries({}, optional={"status": words, "usage": anything, "error": inner}) | anything,
        "delta": st.fixed_dictionaries({"message": inner | anything}) | anything,
        "message": inner | anything,
        "done": st.booleans(),
        **dict.fromkeys(
            ("index", "output_index", "item_id", "content_index", "logprobs", "annotation", "text"), anything
        ),
        "eval_count": anything,
        "arguments": anything,
    },
)


@settings(max_examples=500)
@given(st.lists(junk, max_size=4), st.sampled_from(sorted(FORMATS)))
def test_whatever_comes_is_a_chunk_or_an_upstream_error(values: list[dict[str, Any]], name: str) -> None:
    reader = new_normalizer(dialect=FORMATS[name].DIALECT)
    with suppress(UpstreamError):
        for value in values:
            for chunk in reader.feed(Event(json.dumps(value))):
                assert json.loads(chunk.payload)["object"] == "chat.completion.chunk"
        reader.end()
        assert reader.done
