"""A chat request said in Gemini's words, and Gemini's events in OpenAI's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.chat.chunks import EXTENSION_FIELDS, Accumulator
from shared.errors import BadRequest, UpstreamError, UpstreamInvalid, UpstreamRefused
from shared.lib import sse
from tests.support.answers import new_normalizer, read_by_sdk, values
from worker.providers.formats import dialect_of, gemini, gemini_request
from worker.providers.registry import Provider

WHO = Provider("gemini", "gemini", "http://127.0.0.1/v1beta", "AIza-secret")
USER = {"role": "user", "content": "hi"}
SAID = {"role": "user", "parts": [{"text": "hi"}]}
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"$ref": "#/x"}}}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
DECLARED = {"name": "f", "description": "d", "parametersJsonSchema": FUNCTION["parameters"]}


def build(*messages: dict[str, Any], model: str = "gemini-2.5-flash", **fields: Any) -> dict[str, Any]:
    return gemini_request.build_request({"model": "g/m", "messages": list(messages) or [USER], **fields}, model)


def config(model: str = "gemini-2.5-flash", **fields: Any) -> Any:
    return build(model=model, **fields).get("generationConfig")


def refused(*messages: dict[str, Any], **fields: Any) -> str | None:
    with pytest.raises(BadRequest) as caught:
        build(*messages, **fields)
    return caught.value.param


# ---- requests


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-2.5-flash", "/models/gemini-2.5-flash"),
        ("tunedModels/my one", "/tunedModels/my%20one"),
        ("a?b#c:d", "/models/a%3Fb%23c%3Ad"),
    ],
)
def test_the_call(model: str, path: str) -> None:
    assert dialect_of(WHO) is gemini.DIALECT
    call = gemini.DIALECT.call(WHO, {"messages": [USER]}, model)
    assert call.path == f"{path}:streamGenerateContent?alt=sse"
    assert call.headers == {"x-goog-api-key": "AIza-secret"}
    assert call.body == {"contents": [SAID]}
    assert gemini.DIALECT.call(Provider("g", "gemini", ""), {"messages": [USER]}, model).headers == {}


@pytest.mark.parametrize("model", ["../x", "a/../../b", "/a", "a//b", "./a"])
def test_a_model_is_no_way_out_of_the_base_url(model: str) -> None:
    with pytest.raises(BadRequest) as caught:
        gemini.DIALECT.call(WHO, {"messages": [USER]}, model)
    assert caught.value.param == "model"


def test_our_own_and_openais_own_fields_stay_here() -> None:
    fields: dict[str, Any] = dict.fromkeys(EXTENSION_FIELDS - {"metadata"}, "x") | {
        "user": "u",
        "store": True,
        "stream_options": {},
        "stream": True,
    }
    labels: dict[str, Any] = {"metadata": {"label": "x"}, "service_tier": "flex", "parallel_tool_calls": False, "n": 1}
    assert build(**fields, **labels) == {"contents": [SAID]}


def test_fields_that_are_geminis_own_pass_untouched() -> None:
    own: dict[str, Any] = {
        "safetySettings": [{"category": "c"}],
        "cachedContent": "x",
        "labels": {"a": "b"},
        "unknown": None,
    }
    assert build(**own) == {"contents": [SAID], **own}


def test_what_gemini_calls_config_adds_up() -> None:
    both = build(
        temperature=0.5, tools=[TOOL], tool_choice="required", generationConfig={"topK": 3}, toolConfig={"x": 1}
    )
    assert both["generationConfig"] == {"temperature": 0.5, "topK": 3}
    assert both["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}, "x": 1}
    assert refused(temperature=0.5, generationConfig={"temperature": 1}) == "generationConfig.temperature"
    assert refused(contents=[]) == "contents"
    assert refused(temperature=0.5, generationConfig=[]) == "generationConfig"


@pytest.mark.parametrize(
    ("fields", "made"),
    [
        ({"stop": "x"}, {"stopSequences": ["x"]}),
        (
            {"temperature": 0, "top_p": 0.5, "top_k": 4, "seed": 0},
            {"temperature": 0, "topP": 0.5, "topK": 4, "seed": 0},
        ),
        ({"frequency_penalty": 1.0, "presence_penalty": 0.5}, {"frequencyPenalty": 1.0, "presencePenalty": 0.5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"maxOutputTokens": 7}),
        ({"n": 3}, {"candidateCount": 3}),
        ({"modalities": ["text", "image"]}, {"responseModalities": ["TEXT", "IMAGE"]}),
        ({"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}},
            {"responseMimeType": "application/json", "responseJsonSchema": {"type": "object"}},
        ),
        ({"response_format": {"type": "text"}}, None),
    ],
)
def test_fields_with_another_name(fields: dict[str, Any], made: dict[str, Any] | None) -> None:
    assert config(**fields) == made


@pytest.mark.parametrize(
    ("model", "effort", "thinking"),
    [
        ("gemini-2.5-flash", "low", {"thinkingBudget": 1024, "includeThoughts": True}),
        ("gemini-2.5-pro", "max", {"thinkingBudget": 24576, "includeThoughts": True}),
        ("gemini-2.5-flash", "none", {"thinkingBudget": 0}),
        ("gemini-3-pro-preview", "low", {"thinkingLevel": "low", "includeThoughts": True}),
        ("gemini-3.8-flash", "max", {"thinkingLevel": "xhigh", "includeThoughts": True}),
        ("gemini-flash-latest", "none", {"thinkingBudget": 0}),
    ],
)
def test_effort_becomes_thinking(model: str, effort: str, thinking: dict[str, Any]) -> None:
    assert config(model=model, reasoning_effort=effort) == {"thinkingConfig": thinking}


def test_the_system_is_said_apart() -> None:
    system: list[dict[str, Any]] = [
        {"role": "system", "content": "a"},
        USER,
        {"role": "developer", "content": [{"type": "text", "text": "b"}]},
    ]
    assert build(*system) == {"contents": [SAID], "systemInstruction": {"parts": [{"text": "a"}, {"text": "b"}]}}


def test_calls_and_their_results() -> None:
    assert build(
        USER,
        {"role": "assistant", "content": "I look", "tool_calls": [CALL, {**CALL, "id": "c2"}]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"r":1}'},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "[1]"}]},
        {"role": "user", "content": "and?"},
    )["contents"] == [
        SAID,
        {
            "role": "model",
            "parts": [
                {"text": "I look"},
                {"functionCall": {"id": "c1", "name": "f", "args": {"a": 1}}},
                {"functionCall": {"id": "c2", "name": "f", "args": {"a": 1}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "c1", "name": "f", "response": {"r": 1}}},
                {"functionResponse": {"id": "c2", "name": "f", "response": {"output": "[1]"}}},
            ],
        },
        {"role": "user", "parts": [{"text": "and?"}]},
    ]


def signed(signature: str) -> dict[str, Any]:
    return {"extra_content": {"google": {"thought_signature": signature}}}


def test_signatures_go_back_where_they_were() -> None:
    code = {"executableCode": {"code": "1"}}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}, "index": 0, **signed("s1")}
    message = {
        "role": "assistant",
        "content": "a",
        "reasoning_content": "not sent",
        "gemini_parts": [{**code, "index": 0}],
        "images": [picture],
        "tool_calls": [{**CALL, **signed("s3")}, {**CALL, "id": "c2"}],
        **signed("s2"),
    }
    [_, turn] = build(USER, message, model="gemini-3-pro")["contents"]
    call = {"functionCall": {"id": "c1", "name": "f", "args": {"a": 1}}}
    assert turn["parts"] == [
        code,
        {"inlineData": {"mimeType": "image/png", "data": "QUJD"}, "thoughtSignature": "s1"},
        {"text": "a"},
        {"text": "", "thoughtSignature": "s2"},
        {**call, "thoughtSignature": "s3"},
        {"functionCall": {**call["functionCall"], "id": "c2"}},
    ]


@pytest.mark.parametrize(("model", "stand_in"), [("gemini-3-pro", True), ("gemini-2.5-pro", False)])
def test_a_call_that_lost_its_signature(model: str, stand_in: bool) -> None:
    message = {"role": "assistant", "tool_calls": [CALL, CALL], "extra_content": "odd"}
    first, second = build(USER, message, model=model)["contents"][1]["parts"]
    assert first.get("thoughtSignature") == ("skip_thought_signature_validator" if stand_in else None)
    assert "thoughtSignature" not in second


@pytest.mark.parametrize(
    ("part", "made"),
    [
        ({"type": "text", "text": "a", "cache_control": {}}, {"text": "a"}),
        ({"videoMetadata": {"fps": 1}, "fileData": {}}, {"videoMetadata": {"fps": 1}, "fileData": {}}),
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
            {"inlineData": {"mimeType": "image/png", "data": "QUJD"}},
        ),
        (
            {"type": "image_url", "image_url": {"url": "https://a/b.png?x=1"}},
            {"fileData": {"fileUri": "https://a/b.png?x=1", "mimeType": "image/png"}},
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "mp3"}},
            {"inlineData": {"mimeType": "audio/mp3", "data": "QUJD"}},
        ),
        (
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,QUJD", "filename": "a"}},
            {"inlineData": {"mimeType": "application/pdf", "data": "QUJD"}},
        ),
        ({"type": "file", "file": {"file_id": "https://g/files/1"}}, {"fileData": {"fileUri": "https://g/files/1"}}),
    ],
)
def test_parts(part: dict[str, Any], made: dict[str, Any]) -> None:
    assert build({"role": "user", "content": [part]})["contents"][0]["parts"] == [made]


@pytest.mark.parametrize(
    ("choice", "made"),
    [
        ("auto", None),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        ({"type": "function", "function": {"name": "f"}}, {"mode": "ANY", "allowedFunctionNames": ["f"]}),
    ],
)
def test_tools_and_the_choice_among_them(choice: Any, made: dict[str, Any] | None) -> None:
    empty = {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {}}}}
    request = build(tools=[TOOL, {"googleSearch": {}}, empty], tool_choice=choice)
    assert request["tools"] == [{"googleSearch": {}}, {"functionDeclarations": [DECLARED, {"name": "g"}]}]
    assert request.get("toolConfig") == (made and {"functionCallingConfig": made})


def user(part: Any) -> dict[str, Any]:
    return {"role": "user", "content": [part]}


@pytest.mark.parametrize(
    ("messages", "fields", "param"),
    [
        ([], {"logprobs": True}, "logprobs"),
        ([], {"logit_bias": {"1": 2}}, "logit_bias"),
        ([], {"modalities": ["audio"]}, "modalities"),
        ([], {"audio": {"voice": "x"}}, "audio"),
        ([], {"tool_choice": "required"}, "tool_choice"),
        ([], {"response_format": {"type": "grammar"}}, "response_format"),
        ([{"role": "system", "content": [{"type": "image_url"}]}], {}, "messages[0].content[0]"),
        ([{"role": "tool", "content": "x"}], {}, "messages[0].tool_call_id"),
        ([user({"type": "video_url"})], {}, "messages[0].content[0]"),
        ([user({"type": "image_url", "image_url": {"url": "ftp://a"}})], {}, "messages[0].content[0]"),
        ([user({"type": "image_url", "image_url": {"url": "http://[a"}})], {}, "messages[0].content[0]"),
        ([user({"type": "input_audio", "input_audio": {}})], {}, "messages[0].content[0].input_audio.format"),
        ([{"role": "assistant", "audio": {"id": "x"}}], {}, "messages[0].audio"),
    ],
)
def test_what_cannot_be_asked(messages: list[dict[str, Any]], fields: dict[str, Any], param: str) -> None:
    assert refused(*messages, **fields) == param


# ---- answers


def event(*parts: dict[str, Any], finish: str | None = None, index: int | None = None, **fields: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}} if parts else {}
    candidate |= {"finishReason": finish} if finish else {}
    candidate |= {"index": index} if index is not None else {}
    return {"candidates": [{**candidate, **fields}], "responseId": "R"}


def as_sse(value: dict[str, Any]) -> sse.Event:
    return sse.Event(json.dumps(value).encode())


def answer(*events: dict[str, Any], choices: int = 1) -> dict[str, Any]:
    """The whole answer; the SDK's own helper has to read the chunks, too, and find the same calls in them."""
    normalizer, fold = new_normalizer(dialect=gemini.DIALECT, choices=choices), Accumulator()
    chunks = [chunk for value in events for chunk in normalizer.feed(as_sse(value))]
    chunks += normalizer.end()
    for value in values(chunks):
        fold.feed(value)
    calls = [
        [call["function"]["arguments"] for call in choice["message"].get("tool_calls") or ()]
        for choice in read_by_sdk(chunks)["choices"]
    ]
    result = fold.result()
    assert calls == [
        [call["function"]["arguments"] for call in choice["message"].get("tool_calls") or ()]
        for choice in result["choices"]
    ]
    return result


def choice(*events: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = answer(*events)["choices"][0]
    return found


def test_text_thoughts_and_the_last_signature() -> None:
    told = choice(
        event({"text": "t1", "thought": True, "thoughtSignature": "s0"}),
        event({"text": "t2", "thought": True}, {"text": "a"}, {"text": "b", "thoughtSignature": "s1"}),
        event({"text": "", "thoughtSignature": "s2"}, finish="STOP"),
    )
    assert told["message"] == {
        "role": "assistant",
        "content": "ab",
        "refusal": None,
        "reasoning_content": "t1t2",
        **signed("s2"),
    }


def test_candidates_are_choices() -> None:
    both = {"candidates": [{"index": 1, "content": {"parts": [{"text": "b"}]}}, event({"text": "a"})["candidates"][0]]}
    told = answer(both, event(finish="STOP", index=1), event(finish="MAX_TOKENS"), choices=2)
    assert [(c["message"]["content"], c["finish_reason"]) for c in told["choices"]] == [("a", "length"), ("b", "stop")]


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        *(
            (native, "content_filter")
            for native in ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY")
        ),
        *((native, "length") for native in ("OTHER", "NO_IMAGE", "IMAGE_OTHER", "FINISH_REASON_UNSPECIFIED")),
        ("NEW_IN_2030", "length"),
    ],
)
def test_finish_reasons(native: str, reason: str) -> None:
    told = choice(event({"text": "a"}), event(finish=native))
    assert (told["finish_reason"], told["native_finish_reason"]) == (reason, native)


@pytest.mark.parametrize(("native", "status"), [("MALFORMED_FUNCTION_CALL", 502), ("MISSING_THOUGHT_SIGNATURE", 400)])
def test_an_end_that_is_none_is_an_error(native: str, status: int) -> None:
    with pytest.raises(UpstreamRefused) as caught:
        answer(event({"text": "a"}), event(finish=native, finishMessage="print(secret)"))
    assert (caught.value.code, caught.value.status) == (native.lower(), status)
    assert "secret" not in caught.value.message


def test_a_prompt_that_is_not_answered() -> None:
    blocked = {"promptFeedback": {"blockReason": "SAFETY", "safetyRatings": [{"a": 1}]}}
    told = answer({**blocked, "usageMetadata": {"promptTokenCount": 4, "totalTokenCount": 4}})
    [only] = told["choices"]
    assert (only["finish_reason"], only["native_finish_reason"]) == ("content_filter", "SAFETY")
    assert told["promptFeedback"] == blocked["promptFeedback"]
    assert told["usage"]["prompt_tokens"] == told["usage"]["total_tokens"] == 4


def test_usage_is_the_last_there_was() -> None:
    first = {**event({"text": "a"}), "usageMetadata": {"trafficType": "ON_DEMAND"}}
    figures = {
        "promptTokenCount": 10,
        "toolUsePromptTokenCount": 2,
        "cachedContentTokenCount": 4,
        "candidatesTokenCount": 5,
        "thoughtsTokenCount": 3,
        "totalTokenCount": 20,
        "trafficType": "ON_DEMAND",
    }
    assert answer(first, {**event(finish="STOP"), "usageMetadata": figures})["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 8,
        "total_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
        "toolUsePromptTokenCount": 2,
        "trafficType": "ON_DEMAND",
    }


def test_function_calls_come_whole() -> None:
    told = choice(
        event({"functionCall": {"name": "f", "args": {"a": [1]}}, "thoughtSignature": "s"}),
        event({"functionCall": {"name": "g", "id": "own"}}, {"functionCall": {"name": "f", "args": {}}}, finish="STOP"),
    )
    assert told["finish_reason"] == "tool_calls"
    calls = told["message"]["tool_calls"]
    assert len({call["id"] for call in calls}) == 3
    assert calls == [
        {"id": calls[0]["id"], "type": "function", "function": {"name": "f", "arguments": '{"a":[1]}'}, **signed("s")},
        {"id": "own", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        {"id": calls[2]["id"], "type": "function", "function": {"name": "f", "arguments": "{}"}},
    ]


def test_function_calls_come_value_by_value() -> None:
    def part(path: str, **value: Any) -> dict[str, Any]:
        return {"functionCall": {"partialArgs": [{"jsonPath": path, **value}], "willContinue": True}}

    told = choice(
        event({"functionCall": {"name": "f", "willContinue": True}}),
        event(part("$.a.b[0].c", stringValue="x", willContinue=True), part("$.a.b[0].c", stringValue="y")),
        event(part("$.a.b[1]", numberValue=2), part("$['d.e\\'f']", boolValue=True)),
        event(part("$.n", nullValue="NULL_VALUE"), {"functionCall": {}}),
        event({"functionCall": {"name": "g", "willContinue": True}}, finish="STOP"),
    )
    first, second = (json.loads(call["function"]["arguments"]) for call in told["message"]["tool_calls"])
    assert first == {"a": {"b": [{"c": "xy"}, 2]}, "d.e'f": True, "n": None}
    assert second == {}


@pytest.mark.parametrize(
    ("native", "reason"), [("MAX_TOKENS", "length"), ("SAFETY", "content_filter"), ("STOP", "tool_calls")]
)
@pytest.mark.parametrize(
    ("values", "cut", "whole"),
    [
        ([], "", "{}"),
        ([{"jsonPath": "$.to", "stringValue": "ann", "willContinue": True}], '{"to":"ann"', '{"to":"ann"}'),
        (
            [{"jsonPath": "$.a[0].b", "numberValue": 1}, {"jsonPath": "$.a[1]", "boolValue": True}],
            '{"a":[{"b":1},true]',
            '{"a":[{"b":1},true]}',
        ),
    ],
)
def test_arguments_that_were_cut_do_not_look_whole(
    values: list[dict[str, Any]], cut: str, whole: str, native: str, reason: str
) -> None:
    """What came of them was told as an object that has its end, and would be run."""
    pieces = [event({"functionCall": {"partialArgs": [value], "willContinue": True}}) for value in values]
    told = choice(
        event({"functionCall": {"name": "f", "args": {"x": 1}}}),
        event({"functionCall": {"name": "h", "willContinue": True}}),
        *pieces,
        event(finish=native),
    )
    last = whole if native == "STOP" else cut
    assert [one["function"]["arguments"] for one in told["message"]["tool_calls"]] == ['{"x":1}', last]
    assert told["finish_reason"] == reason


def test_while_arguments_come_something_is_handed_out() -> None:
    """Or the idle timer would end a long call."""
    normalizer = new_normalizer(dialect=gemini.DIALECT)
    normalizer.feed(as_sse(event({"functionCall": {"name": "f", "willContinue": True}})))
    assert len(normalizer.feed(as_sse(event({"functionCall": {"willContinue": True}})))) == 1


def test_pictures_and_parts_openai_has_nothing_like() -> None:
    picture = {"inlineData": {"mimeType": "image/png", "data": "QUJD"}, "thoughtSignature": "s"}
    draft = {"inlineData": {"mimeType": "image/png", "data": "RA=="}, "thought": True}
    code, sound = {"executableCode": {"code": "1"}}, {"inlineData": {"mimeType": "audio/L16", "data": "QQ=="}}
    message = choice(event(code, picture), event(draft, sound, {}, finish="STOP"))["message"]
    url = {"url": "data:image/png;base64,QUJD"}
    assert message["images"] == [{"type": "image_url", "image_url": url, **signed("s")}]
    assert message["gemini_parts"] == [code, draft, sound]


def test_what_is_said_about_a_candidate_comes_with_its_end() -> None:
    pages = [{"web": {"uri": "u0", "title": "t0"}}, {"retrievedContext": {"uri": "u1"}}, {"web": {"title": "none"}}]
    segment = {"startIndex": 3, "endIndex": 6, "text": "bäc"}
    supports = [
        {"segment": segment, "groundingChunkIndices": [0, 2, 9]},
        {"segment": {"endIndex": 3}, "groundingChunkIndices": [1]},
    ]
    rating = [{"category": "c"}]
    told = choice(
        event({"text": "ä."}, safetyRatings=rating, groundingMetadata={"webSearchQueries": ["q"]}),
        event({"text": "bäc"}, safetyRatings=rating),
        event(
            finish="STOP", groundingMetadata={"groundingChunks": pages, "groundingSupports": supports}, avgLogprobs=-1
        ),
    )
    assert told["safetyRatings"] == rating
    assert told["avgLogprobs"] == -1
    assert told["groundingMetadata"].keys() == {"webSearchQueries", "groundingChunks", "groundingSupports"}
    assert [item["url_citation"] for item in told["message"]["annotations"]] == [
        {"url": "u0", "title": "t0", "start_index": 2, "end_index": 5},
        {"url": "u1", "title": "", "start_index": 0, "end_index": 2},
    ]


def test_what_is_told_after_the_end_is_told() -> None:
    pages = {"groundingChunks": [{"web": {"uri": "u"}}]}
    grounds = {**pages, "groundingSupports": [{"segment": {"text": "a"}, "groundingChunkIndices": [0]}]}
    told = choice(
        event({"text": "a"}, finish="MAX_TOKENS"),
        event({"text": "", "thoughtSignature": "s"}),
        event(groundingMetadata=grounds),
        event({"text": ""}),
    )
    assert (told["finish_reason"], told["groundingMetadata"]) == ("length", grounds)
    assert ([one["url_citation"]["url"] for one in told["message"]["annotations"]]) == ["u"]
    assert {"extra_content": told["message"]["extra_content"]} == signed("s")


def test_words_after_an_end_want_one_of_their_own() -> None:
    normalizer = new_normalizer(dialect=gemini.DIALECT)
    for value in (event({"text": "a"}, finish="STOP"), event(avgLogprobs=-1), event({"text": "b"}, avgLogprobs=-2)):
        normalizer.feed(as_sse(value))
    with pytest.raises(UpstreamError):
        normalizer.end()


def test_what_is_said_about_words_after_an_end_does_not_end_them() -> None:
    """The end before was told for them, and half an answer was whole."""
    normalizer = new_normalizer(dialect=gemini.DIALECT)
    for value in (event({"text": "a"}, finish="STOP"), event({"text": "b"}), event(avgLogprobs=-2)):
        normalizer.feed(as_sse(value))
    assert not normalizer.finished
    with pytest.raises(UpstreamError):
        normalizer.end()


def test_a_signature_beside_an_end_in_every_event_is_told_once() -> None:
    """OpenAI's SDK for Python joins what is told twice."""
    normalizer = new_normalizer(dialect=gemini.DIALECT)
    parts = [{"text": "a", "thoughtSignature": "s"}, {"text": "b"}, {"text": "c"}]
    chunks = [chunk for part in parts for chunk in normalizer.feed(as_sse(event(part, finish="STOP")))]
    message = read_by_sdk([*chunks, *normalizer.end()])["choices"][0]["message"]
    assert (message["content"], message["extra_content"]) == ("abc", signed("s")["extra_content"])


def test_errors_in_the_stream() -> None:
    error = {"code": 429, "message": "slow down", "status": "RESOURCE_EXHAUSTED"}
    with pytest.raises(UpstreamError) as caught:
        answer(event({"text": "a"}), {"error": error})
    assert (caught.value.status, caught.value.kind) == (429, "RESOURCE_EXHAUSTED")
    assert caught.value.message == "slow down"


@pytest.mark.parametrize(
    "value",
    [
        {"candidates": {"a": 1}},
        {"candidates": [5]},
        {"candidates": [{"index": [1]}]},
        event({"text": 5}),
        event({"functionCall": {}}),
        event({"functionCall": {"name": 5}}),
        event({"functionCall": {"name": "f", "args": 5}}),
        event({"functionCall": {"name": "f", "partialArgs": [{"jsonPath": "a", "stringValue": ""}]}}),
        event({"functionCall": {"name": "f", "partialArgs": [{"jsonPath": "$", "stringValue": ""}]}}),
        event({"functionCall": {"name": "f", "partialArgs": [{"jsonPath": "$.a[9]", "stringValue": ""}]}}),
        event({"functionCall": {"name": "f", "partialArgs": [{"jsonPath": "$[0]", "stringValue": ""}]}}),
        event({"functionCall": {"name": "f", "partialArgs": [{"jsonPath": "$.a..b", "stringValue": ""}]}}),
        event({"inlineData": 5}),
    ],
)
def test_events_of_another_shape_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(UpstreamInvalid):
        new_normalizer(dialect=gemini.DIALECT).feed(as_sse(value))
