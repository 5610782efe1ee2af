"""Batches whose lines ask for other things than chat: responses, embeddings, moderations."""

from __future__ import annotations

import json
from typing import Any

from tests.harness.upstream import chunk, ending, words
from tests.support.batch import ended, jsonl, results, start
from tests.support.responses import response, text_of
from tests.support.wire import Client, Register


def lines(url: str, bodies: dict[str, dict[str, Any]]) -> bytes:
    return jsonl({"custom_id": name, "method": "POST", "url": url, "body": body} for name, body in bodies.items())


def output(client: Client, url: str, bodies: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    batch = ended(client.http, start(client.http, lines(url, bodies), endpoint=url))
    assert batch["status"] == "completed", batch
    assert batch["endpoint"] == url
    assert batch["request_counts"]["total"] == len(bodies)
    found = results(client.http, batch["output_file_id"]) | results(client.http, batch["error_file_id"])
    return {name: line["response"]["body"] for name, line in found.items()}


def test_responses(client: Client, scripted: Register) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    thinks = scripted([chunk({"role": "assistant", "reasoning_content": "why"}), *words(2)[1:], *ending()])
    calls = scripted([chunk({"role": "assistant", "tool_calls": [call]}), chunk({}, "tool_calls"), *ending()[1:]])
    found = output(
        client,
        "/v1/responses",
        {
            "echo": {"model": "fake/echo", "input": "one two", "instructions": "be brief", "metadata": {"a": "b"}},
            "thinks": {"model": thinks.model, "input": [{"role": "user", "content": "x"}]},
            "calls": {"model": calls.model, "input": "x"},
            "cut": {"model": "fake/lorem?tokens=30", "input": "x", "max_output_tokens": 4},
            "refused": {"model": "fake/echo?error=400", "input": "x"},
        },
    )
    assert found["refused"]["error"]["code"]
    made = {name: response(body) for name, body in found.items() if name != "refused"}
    assert (text_of(made["echo"]), made["echo"]["instructions"]) == ("one two", "be brief")
    assert (made["echo"]["metadata"], made["echo"]["usage"]["output_tokens"]) == ({"a": "b"}, 2)
    assert [item["type"] for item in made["thinks"]["output"]] == ["reasoning", "message"]
    assert text_of(made["thinks"]) == "w0 w1 "
    assert made["calls"]["output"][0]["call_id"] == "c1"
    assert (made["cut"]["status"], made["cut"]["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_embeddings_and_moderations(client: Client, scripted: Register) -> None:
    value = {"object": "list", "data": [{"embedding": [0.5], "index": 0}], "usage": {"prompt_tokens": 2}}
    kind = {"content-type": "application/json"}
    script = scripted([json.dumps(value).encode()], headers=kind)
    bodies = {f"l{number}": {"model": script.model, "input": f"text {number}"} for number in range(5)}
    assert output(client, "/v1/embeddings", bodies) == dict.fromkeys(bodies, value)
    assert sorted(call["input"] for call in script.script.calls) == sorted(body["input"] for body in bodies.values())
    judged = {"results": [{"flagged": True}]}
    script = scripted([json.dumps(judged).encode()], headers=kind)
    bodies = {"m": {"model": script.model, "input": "x"}}
    assert output(client, "/v1/moderations", bodies) == {"m": judged}


def test_completions(client: Client, scripted: Register) -> None:
    kind = {"content-type": "text/event-stream"}
    logprobs = {"tokens": ["and", " on"], "token_logprobs": [None, -0.5], "top_logprobs": None, "text_offset": [0, 3]}
    said = {
        "id": "up",
        "object": "text_completion",
        "choices": [{"index": 0, "text": "and on", "finish_reason": "stop", "logprobs": logprobs}],
    }
    parts = [b"data: " + json.dumps(said).encode() + b"\n\n", *ending()[1:]]
    script = scripted(parts, headers=kind)
    bodies = {f"l{number}": {"model": script.model, "prompt": f"text {number}"} for number in range(3)}
    found = output(client, "/v1/completions", bodies)
    assert [body["choices"][0]["text"] for body in found.values()] == ["and on"] * 3
    assert [body["choices"][0]["logprobs"] for body in found.values()] == [logprobs] * 3
    assert all(body["object"] == "text_completion" and body["id"].startswith("cmpl-") for body in found.values())
    assert all(body["usage"]["completion_tokens"] == 5 for body in found.values())
    assert sorted(call["prompt"] for call in script.script.calls) == ["text 0", "text 1", "text 2"]


def test_a_line_stands_alone(client: Client) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "a": {"model": "fake/echo", "input": "x", "previous_response_id": "resp_0"},
        "b": {"model": "fake/echo", "input": [{"type": "item_reference", "id": "msg_0"}]},
        "c": {"model": "fake/echo", "input": "x", "tools": [{"type": "web_search"}]},
        "d": {"model": "fake/echo", "input": [{"type": {"a": 1}}]},
    }
    batch = ended(client.http, start(client.http, lines("/v1/responses", bodies), endpoint="/v1/responses"))
    assert batch["status"] == "failed"
    wrong = [(error["line"], error["param"]) for error in batch["errors"]["data"]]
    of_bodies = [(1, "previous_response_id"), (2, "input[0].type"), (3, "tools[0].type"), (4, "input[0].type")]
    assert wrong == [(line, f"body.{param}") for line, param in of_bodies]
