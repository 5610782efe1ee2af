"""/v1/completions: text for text what the provider says, streamed, whole and resumed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI

from tests.harness.processes import Stack
from tests.harness.upstream import DONE, Pause
from tests.support.wire import Client, Register, chunks, field, frames, refused

PATH = "/v1/completions"
USAGE = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def text(said: str, finish: str | None = None, index: int = 0, **fields: Any) -> bytes:
    choice = {"text": said, "index": index, "logprobs": None, "finish_reason": finish, **fields}
    body = {"id": "cmpl-up", "object": "text_completion", "created": 1, "model": "up", "choices": [choice]}
    return b"data: %b\n\n" % json.dumps(body).encode()


END = [text("", "stop"), b"data: %b\n\n" % json.dumps({"choices": [], "usage": USAGE}).encode(), DONE]


def joined(found: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(choice["text"] for chunk in found for choice in chunk["choices"] if choice["index"] == index)


def test_a_prompt_is_gone_on_with(client: Client, scripted: Register) -> None:
    script = scripted([text("one "), text("two"), *END])
    asked = {"prompt": "zero", "max_tokens": 9, "suffix": "end", "new": 1}
    made = client.http.post(PATH, json={"model": script.model, **asked})
    assert made.status_code == 200, made.text
    found = made.json()
    assert (found["object"], found["choices"][0]["text"]) == ("text_completion", "one two")
    assert {name: found["usage"][name] for name in USAGE} == USAGE
    assert found["choices"][0]["finish_reason"] == "stop"
    assert client.get(made.headers["location"]).json() == found
    (call,) = script.script.calls
    assert call == {"model": script.name, **asked, "stream": True, "stream_options": {"include_usage": True}}
    assert call.head.startswith("POST /v1/completions ")


def test_it_is_streamed_and_resumed(client: Client, scripted: Register) -> None:
    pause = Pause()
    script = scripted([text("one "), text("two "), pause, text("three"), *END])
    body = {"model": script.model, "prompt": "zero", "stream": True, "stream_options": {"include_usage": True}}
    with client.view("POST", PATH, json=body, headers={"x-stream-ids": "1"}) as viewer:
        viewer.until(b"two ")
        location = viewer.response.headers["location"]
        last = field(frames(viewer.body)[-1], b"id")
    assert last is not None
    pause.go()
    rest = client.get(location, params={"stream": "true", "starting_after": last.decode()}).content
    assert joined(chunks(viewer.body + rest)) == "one two three"
    usage = chunks(rest)[-1]["usage"]
    assert {name: usage[name] for name in USAGE} == USAGE
    whole = client.get(location, params={"stream": "true"}).content
    assert whole == viewer.body + rest
    found = chunks(whole)
    assert {chunk["object"] for chunk in found} == {"text_completion"}
    assert all("delta" not in choice for chunk in found for choice in chunk["choices"])


def told(*spoken: tuple[str, float | None]) -> dict[str, Any]:
    """What this API has for `logprobs`: lists beside each other, and no number for the first token of an echo."""
    return {
        "tokens": [token for token, _ in spoken],
        "token_logprobs": [number for _, number in spoken],
        "top_logprobs": [None if number is None else {token: number, "index": -9.0} for token, number in spoken],
        "text_offset": list(range(len(spoken))),
    }


def test_log_probabilities_are_of_the_text_that_they_came_with(client: Client, scripted: Register) -> None:
    begun, last = told(("zero", None), (" one", -0.5), (" two", -0.5)), told((" three", -0.25))
    pieces = [
        text("zero one two", logprobs=begun, matched=1),
        text(" three", "length", logprobs=last, matched=2),
        *END[1:],
    ]
    script = scripted(pieces)
    asked = {"model": script.model, "prompt": "zero", "logprobs": 1, "echo": True}
    made = client.http.post(PATH, json=asked)
    (choice,) = made.json()["choices"]
    assert choice["logprobs"] == {name: begun[name] + last[name] for name in begun}
    assert "provider_specific_fields" not in choice
    assert client.get(made.headers["location"]).json() == made.json()
    streamed = [
        chunk["choices"][0]
        for chunk in chunks(client.http.post(PATH, json={**asked, "stream": True}).content)
        if chunk["choices"]
    ]
    assert [(one["text"], one["logprobs"]) for one in streamed if one["text"]] == [
        ("zero one two", begun),
        (" three", last),
    ]
    assert [one["logprobs"] for one in streamed if not one["text"]] == [None]
    assert all("provider_specific_fields" not in one for one in streamed)
    assert [call["logprobs"] for call in script.script.calls] == [1, 1]


def test_what_is_no_list_of_log_probabilities_stays_beside_them(client: Client, scripted: Register) -> None:
    script = scripted([text("a", logprobs=0.5), *END])
    (choice,) = client.http.post(PATH, json={"model": script.model, "prompt": "x"}).json()["choices"]
    assert (choice["logprobs"], choice["provider_specific_fields"]) == (None, {"logprobs": 0.5})


def test_several_prompts_are_several_choices(client: Client, scripted: Register) -> None:
    script = scripted([text("a"), text("b", index=1), text("", "stop"), text("", "length", index=1), DONE])
    found = client.http.post(PATH, json={"model": script.model, "prompt": ["x", "y"]}).json()
    assert [(one["text"], one["finish_reason"]) for one in found["choices"]] == [("a", "stop"), ("b", "length")]


def test_what_breaks_off_is_no_answer(client: Client, scripted: Register) -> None:
    script = scripted([text("one ")])
    refused(client.http.post(PATH, json={"model": script.model, "prompt": "x"}), 502)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": "x", "background": True}, "background")],
)
def test_what_is_wrong_is_named(client: Client, fields: dict[str, Any], param: str) -> None:
    assert refused(client.http.post(PATH, json={"model": "fake/echo", **fields}), 400)["param"] == param


def test_it_is_found_under_its_own_path_alone(client: Client) -> None:
    chat = client.post({"model": "fake/echo", "messages": [{"role": "user", "content": "x"}]}).json()["id"]
    for name in (chat, chat.removeprefix("chat"), "cmpl-0"):
        refused(client.get(f"{PATH}/{name}"), 404)


def test_the_official_client(stack: Stack, scripted: Register) -> None:
    script = scripted([text("one "), text("two"), *END])
    with OpenAI(base_url=f"{stack.url}/v1", api_key="x", max_retries=0) as openai:
        assert openai.completions.create(model=script.model, prompt="x").choices[0].text == "one two"
        told = openai.completions.create(model=script.model, prompt="x", stream=True)
        assert "".join(chunk.choices[0].text for chunk in told) == "one two"
