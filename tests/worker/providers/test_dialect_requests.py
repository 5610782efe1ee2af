"""Whatever a client may send is either said in a provider's own words or refused as the client's mistake."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.chat.chunks import EXTENSION_FIELDS
from shared.chat.request import ChatRequest
from shared.errors import BadRequest
from shared.lib import json
from worker.providers.formats import anthropic_request, cohere, gemini_request, ollama, responses

Build = Callable[[dict[str, Any], str], dict[str, Any]]

junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(["", "text", "function", "a", "data:,", "{}", "[]"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "x"]), inner, max_size=2),
    max_leaves=4,
)
objects = st.dictionaries(st.sampled_from(["type", "a", "index"]), junk, max_size=3)


def near(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that have some of these fields, mostly of the right shape."""

    def mostly(field: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.integers(0, 15).flatmap(lambda i: field if i else junk)

    return st.fixed_dictionaries({}, optional={name: mostly(field) for name, field in fields.items()})


def whole(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(fields)


words = st.text(max_size=3)
urls = st.sampled_from(
    ["data:image/png;base64,QUJD", "data:text/plain;base64,/w==", "https://a/b.png", "http://[", "ftp://a", "gs://a/b"]
)
part_types = st.sampled_from("text image_url input_audio file refusal document thinking".split())
parts = near(
    type=part_types,
    text=words,
    refusal=words,
    image_url=near(url=urls) | urls,
    input_audio=near(data=words, format=words),
    file=near(file_data=urls, file_id=words, filename=words),
    cache_control=objects,
)
calls = near(
    id=words,
    type=st.sampled_from(["function", "custom"]),
    function=near(name=words, arguments=words | st.just('{"a":1}')),
    custom=near(name=words, input=words),
)
messages = st.builds(
    lambda role, content, more: {**more, "role": role, "content": content},
    st.sampled_from("developer system user assistant tool function".split()),
    st.none() | words | st.lists(parts, max_size=3),
    near(
        name=words,
        tool_calls=st.lists(calls, max_size=2),
        tool_call_id=words,
        refusal=words,
        audio=objects,
        thinking_blocks=st.lists(objects | near(type=st.just("thinking"), signature=words), max_size=2),
        anthropic_blocks=st.lists(objects, max_size=2),
        gemini_parts=st.lists(objects, max_size=2),
        reasoning_items=st.lists(objects | near(output_index=st.integers(0, 3)), max_size=2),
        reasoning_content=words,
        tool_plan=words,
        images=st.lists(parts, max_size=2),
        extra_content=near(google=near(thought_signature=words)),
    ),
)
names = st.sampled_from(["a", "b"])
good_parts = st.one_of(
    whole(type=st.just("text"), text=words),
    whole(type=st.just("image_url"), image_url=whole(url=st.just("data:image/png;base64,QUJD"))),
    whole(type=st.just("file"), file=whole(file_data=st.just("data:application/pdf;base64,QUJD"))),
)
good_calls = whole(id=names, type=st.just("function"), function=whole(name=names, arguments=st.just('{"a":1}')))
good_messages = st.one_of(
    whole(role=st.just("system"), content=words),
    whole(role=st.just("user"), content=words | st.lists(good_parts, max_size=2)),
    whole(role=st.just("assistant"), content=st.none() | words, tool_calls=st.lists(good_calls, max_size=2)),
    whole(role=st.just("tool"), tool_call_id=names, name=names, content=words),
)
tools = near(
    type=st.just("function"), function=near(name=words, description=words, parameters=objects, strict=st.booleans())
)
bodies = st.builds(
    lambda required, more: {**required, **more},
    st.fixed_dictionaries(
        {
            "model": st.just("a/m"),
            "messages": st.lists(good_messages | good_messages | messages, min_size=1, max_size=4),
        }
    ),
    near(
        n=st.sampled_from([1, 1, 1, 2]),
        stop=words | st.lists(words, max_size=2),
        max_tokens=st.integers(1, 5000),
        max_completion_tokens=st.integers(1, 5000),
        tools=st.lists(tools, max_size=2),
        tool_choice=st.sampled_from(["auto", "none", "required", "x"])
        | near(type=words | st.just("function"), function=near(name=words))
        | near(type=st.just("allowed_tools"), allowed_tools=near(mode=words, tools=st.lists(tools, max_size=1))),
        parallel_tool_calls=st.booleans(),
        response_format=near(
            type=st.sampled_from(["text", "json_object", "json_schema"]), json_schema=near(schema=objects)
        ),
        reasoning_effort=st.sampled_from(["none", "low", "max"]),
        metadata=st.dictionaries(words, words, max_size=2),
        modalities=st.just(["text"]) | st.lists(words, max_size=1),
        service_tier=words,
        seed=st.integers(0, 1),
        logprobs=st.booleans(),
        reasoning=near(effort=words),
        include=st.lists(words, max_size=1),
        text=near(verbosity=words),
        options=near(num_ctx=st.integers(0, 1), temperature=st.integers(0, 1)),
        temperature=st.integers(0, 1),
        thinking=near(budget_tokens=st.integers()),
        system=words,
        stop_sequences=st.lists(words),
        generationConfig=objects,
        toolConfig=objects,
        session_id=words,
        webhook=objects,
    ),
)


@pytest.mark.parametrize(
    "dialect", [anthropic_request, cohere, gemini_request, ollama, responses], ids=lambda module: module.__name__
)
@given(body=bodies, model=st.sampled_from(["claude-sonnet-4-5", "claude-5", "gemini-2.5-pro", "gemini-3", "x"]))
def test_a_request_is_said_or_refused(dialect: Any, body: dict[str, Any], model: str) -> None:
    build: Build = dialect.build_request
    before = copy.deepcopy(body)
    try:
        ChatRequest.check(body)
    except BadRequest:
        return
    try:
        request = build(body, model)
    except BadRequest as error:
        assert error.param  # noqa: PT017 - both ways are right
        assert error.message.startswith(error.param)  # noqa: PT017
    else:
        json.dumps(request)
        own_words = {"store", "metadata"}  # a format of its own may have a meaning for them
        assert not request.keys() & EXTENSION_FIELDS - own_words
        assert request.get("messages") or request.get("contents") or "input" in request
    assert body == before
