"""/v1/responses over HTTP: created, streamed, resumed, polled, cancelled, deleted; every event as OpenAI's models have it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.harness.processes import wait_until
from tests.harness.upstream import Pause, chunk, ending, words
from tests.support.responses import CODEX, ENDS, PATH, events, joined, kinds, response, text_of, written_anew
from tests.support.wire import Client, Register, refused

UNKNOWN = "resp_" + "0" * 32


def create(client: Client, model: str = "fake/echo", prompt: Any = "one two", **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", {})
    answer = client.http.post(PATH, json={"model": model, "input": prompt, **fields}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def whole(client: Client, response_id: str, **query: str) -> bytes:
    answer = client.get(f"{PATH}/{response_id}", params={"stream": "true", **query})
    assert answer.status_code == 200, answer.text
    return answer.content


def found(client: Client, response_id: str) -> dict[str, Any]:
    answer = client.get(f"{PATH}/{response_id}")
    assert answer.status_code == 200, answer.text
    return response(answer.json())


def ended(client: Client, response_id: str) -> dict[str, Any]:
    """Polls, as clients of the background do."""

    def final() -> dict[str, Any] | None:
        answer = found(client, response_id)
        return answer if answer["status"] not in ("queued", "in_progress") else None

    value: dict[str, Any] = wait_until(final)
    return value


def test_an_answer_is_a_response(alice: Client) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "description": None, "strict": None}
    asked: dict[str, Any] = {"instructions": "be brief", "tools": [tool], "metadata": {"a": "b"}, "temperature": 0.5}
    answer = create(alice, **asked)
    made = response(answer.json())
    assert (made["object"], made["status"], text_of(made)) == ("response", "completed", "one two")
    assert {name: made[name] for name in asked} == asked
    assert made["usage"]["output_tokens"] == 2
    assert answer.headers["location"] == f"{PATH}/{made['id']}"
    assert found(alice, made["id"]) == made


def test_a_stream_is_the_same_for_everybody_and_whenever_it_is_asked_for(alice: Client) -> None:
    told = events(create(alice, "fake/lorem?tokens=6&reasoning=2", stream=True).content)
    made = told[-1]["response"]
    assert joined(told) == text_of(made)
    assert found(alice, made["id"]) == made
    for after in range(-1, len(told) - 1):
        rest = whole(alice, made["id"], **({"starting_after": str(after)} if after >= 0 else {}))
        assert events(rest, first=after + 1) == told[after + 1 :]
    over = alice.get(f"{PATH}/{made['id']}", params={"stream": "true", "starting_after": str(len(told) - 1)})
    assert over.status_code == 204
    ahead = alice.get(f"{PATH}/{made['id']}", params={"stream": "true", "starting_after": str(len(told) + 5)})
    assert refused(ahead, 400, "cursor_ahead")


def test_the_first_event_comes_before_the_provider_says_anything(alice: Client, scripted: Register) -> None:
    pause = Pause()
    model = scripted([pause, *words(2), *ending()]).model
    body = {"model": model, "input": "x", "stream": True}
    with alice.view("POST", PATH, json=body) as viewer:
        viewer.until(b"event: response.in_progress\n")
        viewer.until(b'event: keepalive\ndata: {"type":"keepalive"}\n\n')
        pause.go()
        viewer.rest()
        assert b": ka" not in viewer.body
        told = events(viewer.body)
    assert kinds(told)[:3] == ["created", "in_progress", "output_item.added"]


def test_the_background_is_polled_and_watched(alice: Client, scripted: Register) -> None:
    pause = Pause()
    model = scripted([*words(2), pause, *words(1), *ending()]).model
    queued = response(create(alice, model, background=True).json())
    assert (queued["status"], queued["background"], queued["output"]) == ("queued", True, [])
    with alice.view("GET", f"{PATH}/{queued['id']}?stream=true") as viewer:
        viewer.until(b"w1 ")
        running = found(alice, queued["id"])
        assert (running["status"], text_of(running)) == ("in_progress", "w0 w1 ")
        pause.go()
        viewer.rest()
        told = events(viewer.body)
    assert kinds(told)[:4] == ["created", "queued", "in_progress", "output_item.added"]
    done = ended(alice, queued["id"])
    assert (done["status"], text_of(done)) == ("completed", "w0 w1 w0 ")
    assert done == told[-1]["response"]


def test_a_viewer_that_was_cut_off_goes_on_with_the_next_event(alice: Client, scripted: Register) -> None:
    pause = Pause()
    model = scripted([*words(3), pause, *words(2), *ending()]).model
    with alice.view("POST", PATH, json={"model": model, "input": "x", "stream": True, "background": True}) as viewer:
        viewer.until(b"w2 ")
        before = events(viewer.body, ended=False)
    rest = f"{PATH}/{before[0]['response']['id']}?stream=true&starting_after={before[-1]['sequence_number']}"
    with alice.view("GET", rest) as viewer:
        pause.go()
        viewer.rest()
        after = events(viewer.body, first=len(before))
    assert joined(before) + joined(after) == "w0 w1 w2 w0 w1 "


def test_tools_are_called(alice: Client, scripted: Register) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    script = scripted([chunk({"role": "assistant", "tool_calls": [call]}), chunk({}, "tool_calls"), *ending()[1:]])
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}]
    first = response(create(alice, script.model, "go", tools=tools, tool_choice="auto").json())
    (called,) = first["output"]
    assert (called["type"], called["call_id"], called["status"]) == ("function_call", "c1", "completed")
    sent = script.script.calls[0]
    assert sent["tools"] == [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": False}}
    ]
    output = {"type": "function_call_output", "call_id": "c1", "output": "7"}
    create(alice, script.model, [{"role": "user", "content": "go"}, *first["output"], output], tools=tools)
    assert script.script.calls[1]["messages"][1:] == [
        {"role": "assistant", "content": None, "tool_calls": [{k: v for k, v in call.items() if k != "index"}]},
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
    ]
    assert "responses" not in sent


def test_a_limit_makes_it_incomplete(alice: Client) -> None:
    made = response(create(alice, "fake/lorem?tokens=30", max_output_tokens=4).json())
    assert (made["status"], made["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert whole(alice, made["id"]).count(b"event: response.incomplete\n") == 1


def test_an_early_refusal_of_a_stream_keeps_its_status(client: Client) -> None:
    body = {"model": "fake/lorem?error=429", "input": "x", "stream": True}
    refused(client.http.post(PATH, json=body), 429)


def test_a_failure_is_a_status_where_it_may_be_and_an_event_where_not(alice: Client) -> None:
    answer = alice.http.post(PATH, json={"model": "fake/lorem?error=429", "input": "x"})
    assert answer.status_code == 429
    told = events(create(alice, "fake/lorem?error=429", stream=True, background=True).content)
    assert kinds(told) == ["created", "queued", "failed"]
    assert told[-1]["response"]["error"]["code"] == "rate_limit_exceeded"
    late = events(create(alice, "fake/lorem?cut=3", stream=True).content)
    assert late[-1]["response"]["error"]["code"] == "server_error"
    failed = found(alice, late[0]["response"]["id"])
    assert (failed["status"], failed["output"][0]["status"]) == ("failed", "incomplete")
    waiting = response(create(alice, "fake/lorem?error=400", background=True).json())
    assert ended(alice, waiting["id"])["error"]["code"] == "invalid_prompt"


@pytest.mark.parametrize("background", [False, True])
def test_cancel_keeps_what_was_said(alice: Client, scripted: Register, background: bool) -> None:
    model = scripted([*words(2), Pause()]).model
    body = {"model": model, "input": "x", "stream": True, "background": background}
    with alice.view("POST", PATH, json=body) as viewer:
        viewer.until(b"w1 ")
        response_id = events(viewer.body, ended=False)[0]["response"]["id"]
        headers = {"content-type": "application/json"}
        cancelled = response(alice.http.post(f"{PATH}/{response_id}/cancel", headers=headers).json())
        viewer.rest()
        told = events(viewer.body)
    assert (cancelled["status"], cancelled["incomplete_details"], text_of(cancelled)) == ("cancelled", None, "w0 w1 ")
    assert told[-1]["type"] == "response.incomplete"
    assert told[-1]["response"]["incomplete_details"] == {"reason": "cancelled"}
    again = alice.http.post(f"{PATH}/{response_id}/cancel").json()
    assert again == cancelled == found(alice, response_id)


def test_a_chain_goes_on_and_lasts_when_its_beginning_is_gone(alice: Client, bob: Client, scripted: Register) -> None:
    script = scripted([*words(1), *ending()])
    first = create(alice, script.model, "one", instructions="only now").json()
    second = create(alice, script.model, "two", previous_response_id=first["id"]).json()
    assert second["previous_response_id"] == first["id"]
    alice.http.delete(f"{PATH}/{first['id']}")
    third = create(alice, script.model, "three", previous_response_id=second["id"]).json()
    said = [(message["role"], message["content"]) for message in script.script.calls[2]["messages"]]
    asked = [("user", "one"), ("assistant", "w0 "), ("user", "two"), ("assistant", "w0 "), ("user", "three")]
    assert said == asked
    (item,) = alice.get(f"{PATH}/{third['id']}/input_items").json()["data"]
    assert item["content"] == [{"type": "input_text", "text": "three"}]
    for client, previous in ((alice, first["id"]), (bob, second["id"]), (alice, UNKNOWN), (alice, "x")):
        answer = client.http.post(PATH, json={"model": script.model, "input": "x", "previous_response_id": previous})
        assert refused(answer, 404, "previous_response_not_found")["param"] == "previous_response_id"


def test_a_tool_loop_may_send_nothing_but_the_output(alice: Client, scripted: Register) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    script = scripted([chunk({"role": "assistant", "tool_calls": [call]}), chunk({}, "tool_calls"), *ending()[1:]])
    first = create(alice, script.model, "go").json()
    output = {"type": "function_call_output", "call_id": "c1", "output": "7"}
    create(alice, script.model, [output], previous_response_id=first["id"])
    assert [message["role"] for message in script.script.calls[1]["messages"]] == ["user", "assistant", "tool"]


@pytest.mark.parametrize("way", ["whole", "named", "continued"])
def test_signed_reasoning_goes_back_while_tools_are_called(alice: Client, scripted: Register, way: str) -> None:
    signed = [{"type": "reasoning.encrypted", "data": "s", "index": 0}]
    call = {
        "index": 0,
        "id": "c1",
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
        "signed_by": {"g": 1},
    }
    opening = chunk({"role": "assistant", "reasoning_content": "why"})
    thought = chunk({"reasoning_details": signed, "tool_calls": [call]})
    script = scripted([opening, thought, chunk({}, "tool_calls"), *ending()[1:]])
    first = create(alice, script.model, "go").json()
    output = {"type": "function_call_output", "call_id": "c1", "output": "7"}
    asked = [{"role": "user", "content": "go"}, *first["output"], output]
    if way == "named":
        asked[1] = {"type": "item_reference", "id": first["output"][0]["id"]}
        del asked[2]["id"]
    if way == "continued":
        create(alice, script.model, [output], previous_response_id=first["id"])
    else:
        create(alice, script.model, asked)
    sent = script.script.calls[1]["messages"][1]
    assert (sent["reasoning_content"], sent["reasoning_details"]) == ("why", signed)
    assert sent["tool_calls"][0]["signed_by"] == {"g": 1}
    create(alice, script.model, [*asked, {"role": "user", "content": "now"}])
    assert "reasoning_details" not in script.script.calls[2]["messages"][1]


def test_items_may_be_named_by_their_ids(alice: Client, bob: Client, scripted: Register) -> None:
    script = scripted([chunk({"reasoning_content": "why"}), *words(1), *ending()])
    first = create(alice, script.model, "one").json()
    names = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
    asked = {
        "model": script.model,
        "input": [{"role": "user", "content": "one"}, *names, {"role": "user", "content": "two"}],
    }
    assert alice.http.post(PATH, json=asked).status_code == 200
    said = [(message["role"], message["content"]) for message in script.script.calls[1]["messages"]]
    assert said == [("user", "one"), ("assistant", "w0 "), ("user", "two")]
    error = refused(bob.http.post(PATH, json=asked), 404)
    assert error["param"] == "input[1].id"
    assert names[0]["id"] in error["message"]


def test_what_is_not_to_be_stored_can_be_polled_and_not_continued(alice: Client) -> None:
    made = create(alice, store=False).json()
    assert made["store"] is False
    assert found(alice, made["id"]) == made
    answer = alice.http.post(PATH, json={"model": "fake/echo", "input": "x", "previous_response_id": made["id"]})
    assert refused(answer, 404, "previous_response_not_found")
    assert alice.state("chatcmpl-" + made["id"].removeprefix("resp_"))["stored"] is False


def test_input_items_come_in_pages(alice: Client) -> None:
    made = create(alice, prompt=[{"role": "user", "content": str(number)} for number in range(5)]).json()
    items = f"{PATH}/{made['id']}/input_items"
    seen: list[str] = []
    after: dict[str, str] = {}
    for more in (True, True, False):
        page = alice.get(items, params={"limit": "2", **after}).json()
        seen += [item["content"][0]["text"] for item in page["data"]]
        assert page["has_more"] is more
        after = {"after": page["last_id"]}
    assert seen == list("43210")


def test_input_is_counted_without_asking_anybody(alice: Client) -> None:
    def counted(**fields: Any) -> int:
        answer = alice.http.post(f"{PATH}/input_tokens", json={"model": "fake/echo", "input": "x" * 400, **fields})
        assert answer.json()["object"] == "response.input_tokens"
        return int(answer.json()["input_tokens"])

    first = create(alice, prompt="y" * 400).json()
    assert counted() == 100
    assert counted(instructions="z" * 40) == 110
    assert counted(previous_response_id=first["id"]) == 300


def test_responses_are_not_among_stored_completions(alice: Client) -> None:
    made = create(alice, metadata={"of": "responses"}).json()
    listed = alice.get("/v1/chat/completions", params={"metadata[of]": "responses"}).json()
    assert listed["data"] == []
    assert alice.state("chatcmpl-" + made["id"].removeprefix("resp_"))["stored"] is True


def test_stored_responses_are_listed_page_by_page(newcomer: Client, bob: Client, scripted: Register) -> None:
    alice = newcomer
    asked = scripted([*words(1), *ending()]).model
    made = [create(alice, asked).json() for _ in range(3)]
    create(alice, asked, store=False)
    waiting = create(alice, asked, background=True).json()["id"]
    assert ended(alice, waiting)["status"] == "completed"
    made.append(found(alice, waiting))
    for order, wanted in (("desc", made[::-1]), ("asc", made)):
        seen, query = [], {"limit": "3", "order": order, "model": asked}
        for more in (True, False):
            page = alice.get(PATH, params=query).json()
            seen += [response(one) for one in page["data"]]
            assert (page["object"], page["has_more"]) == ("list", more)
            query["after"] = page["last_id"]
        assert seen == wanted
    assert bob.get(PATH, params={"model": asked}).json()["data"] == []
    for after in (UNKNOWN, "x"):
        assert refused(alice.get(PATH, params={"after": after}), 404)["param"] == "after"
    assert refused(alice.get(PATH, params={"limt": "3"}), 400)


def test_what_is_deleted_is_gone(alice: Client) -> None:
    response_id = create(alice).json()["id"]
    gone = alice.http.delete(f"{PATH}/{response_id}")
    assert gone.json() == {"id": response_id, "object": "response", "deleted": True}
    assert refused(alice.get(f"{PATH}/{response_id}"), 404)
    assert refused(alice.http.delete(f"{PATH}/{response_id}"), 404)


def test_nothing_of_another_tenant_or_of_another_api_is_found(alice: Client, bob: Client) -> None:
    mine = create(alice).json()["id"]
    chat = alice.post({"model": "fake/echo", "messages": [{"role": "user", "content": "x"}]}).json()["id"]
    for client, response_id in (
        (bob, mine),
        (alice, UNKNOWN),
        (alice, "resp_x"),
        (alice, chat.replace("chatcmpl-", "resp_")),
    ):
        for method, path in (("GET", ""), ("POST", "/cancel"), ("DELETE", "")):
            refused(client.http.request(method, f"{PATH}/{response_id}{path}"), 404)
    assert found(alice, mine)["status"] == "completed"


def test_the_same_request_made_twice_is_one_response(alice: Client) -> None:
    headers = {"idempotency-key": "responses-twice"}
    first, second = create(alice, headers=headers), create(alice, headers=headers)
    assert first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"


def test_what_a_client_asks_again_in_its_session_is_one_response(
    alice: Client, bob: Client, scripted: Register
) -> None:
    """As Codex does it after a cut: the same request in the same session, without a key or a count. It makes the body anew,
    with the fields of `client_metadata` in the order that its hash table has them in then."""
    pause = Pause()
    asked = scripted([*words(1), pause, *ending()])
    body = {"model": asked.model, "input": "x", "stream": True, "store": False, "client_metadata": CODEX}
    session = {"session-id": "s1"}
    with alice.view("POST", PATH, json=body, headers=session) as viewer:
        viewer.until(b"w0 ")
    with alice.view("POST", PATH, json=written_anew(body), headers=session) as viewer:
        viewer.until(b"w0 ")
        assert viewer.response.headers["idempotent-replayed"] == "true"
        pause.go()
        viewer.rest()
        again = events(viewer.body)
    assert alice.http.post(PATH, json=body, headers=session).content.endswith(viewer.body[-40:])
    assert len(asked.script.calls) == 1
    others = [
        (alice, {**body, "client_metadata": {**CODEX, "turn_id": "2"}}, session),
        (alice, {**body, "input": "y"}, session),
        (alice, body, {"session-id": "s2"}),
        (alice, body, {}),
        (bob, body, session),
    ]
    for number, (client, other, headers) in enumerate(others, 2):
        told = events(client.http.post(PATH, json=other, headers=headers).content)
        assert told[0]["response"]["id"] != again[0]["response"]["id"]
        assert len(asked.script.calls) == number


def test_what_failed_is_asked_anew_in_its_session(alice: Client, scripted: Register) -> None:
    asked = scripted([*words(1)])
    body = {"model": asked.model, "input": "x", "stream": True}
    for number in (1, 2):
        told = events(alice.http.post(PATH, json=body, headers={"session-id": "s3"}).content)
        assert told[-1]["type"] == "response.failed"
        assert len(asked.script.calls) == number


def test_the_body_ends_with_its_last_event(alice: Client) -> None:
    body = create(alice, stream=True).content
    assert body.rstrip().rpartition(b"\n\n")[2].startswith(b"id: ")
    assert events(body)[-1]["type"] in ENDS
    assert b"[DONE]" not in body


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"tools": [{"type": "web_search"}]}, "tools[0].type"), ({"input": [{"type": "mcp_call"}]}, "input[0].type")],
)
def test_what_cannot_be_carried_is_refused(alice: Client, fields: dict[str, Any], param: str) -> None:
    answer = alice.http.post(PATH, json={"model": "fake/echo", "input": "x", **fields})
    assert refused(answer, 400)["param"] == param
