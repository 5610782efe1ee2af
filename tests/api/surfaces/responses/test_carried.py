"""`encrypted_content`: what a provider wants back of its reasoning, carried by the client where nothing is kept here."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from shared.errors import BadRequest
from shared.features.responses.carried import KEY_BYTES, Carried, Cipher
from tests.api.surfaces.responses.test_events import HEADER, call, told, view
from tests.harness.upstream import chunk, ending, words
from tests.support.responses import PATH, events
from tests.support.wire import Client, Register, refused

CIPHER = Cipher(b"k" * KEY_BYTES, "alice")
SIGNED = [{"type": "reasoning.encrypted", "data": "s", "index": 0}]
CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}, "signed_by": {"g": 1}}
ASKED: dict[str, Any] = {"store": False, "include": ["reasoning.encrypted_content"]}


def carried(*deltas: dict[str, Any]) -> list[tuple[str, Any]]:
    """The items of an answer, each with what it carries."""
    asked = view(**ASKED)
    asked.cipher = CIPHER
    found = told(*deltas, asked=asked)
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done == found[-1]["response"]["output"]
    shown = []
    for item in done:
        text = item.get("encrypted_content")
        one = CIPHER.decrypt(text, "x") if text else None
        assert one is None or (one.generation_id, one.model) == (HEADER["id"], HEADER["model"])
        shown.append((item["type"], one and one.delta))
    return shown


def test_reasoning_is_carried_by_its_item() -> None:
    block = {"index": 0, "type": "thinking", "thinking": "why", "signature": "s"}
    said = carried(
        {"reasoning_content": "w"}, {"reasoning_content": "hy"}, {"thinking_blocks": [block]}, {"content": "so"}
    )
    del block["index"]
    assert said == [("reasoning", {"reasoning_content": "why", "thinking_blocks": [block]}), ("message", None)]


def test_what_a_model_thinks_in_secret_is_an_item_without_text() -> None:
    assert carried({"reasoning_details": SIGNED}, {"content": "so"})[0] == ("reasoning", {"reasoning_details": SIGNED})


def test_what_is_signed_after_all_else_is_an_item_at_the_end() -> None:
    signed = call(0, id="c1", name="f", arguments="{}")
    signed["tool_calls"][0]["extra_content"] = {"google": {"thought_signature": "s"}}
    one = {"id": "c1", "extra_content": {"google": {"thought_signature": "s"}}}
    assert carried({"content": "so"}, signed) == [
        ("message", None),
        ("function_call", None),
        ("reasoning", {"tool_calls": [one]}),
    ]


def test_nothing_is_carried_where_it_is_not_asked_for() -> None:
    found = told({"reasoning_content": "why"}, {"content": "so"})
    assert found[-1]["response"]["output"][0]["encrypted_content"] is None


def test_the_same_reasoning_is_the_same_text_and_only_its_tenants() -> None:
    one = Carried("g", "m", {"reasoning_content": "why " * 1000})
    text = CIPHER.encrypt(one)
    assert text == CIPHER.encrypt(one)
    assert len(text) < 400
    assert CIPHER.decrypt(text, "p") == one
    other = "A" if text[-2] != "A" else "B"
    for wrong in (text[:-2] + other + text[-1], text[:-8], "sr1_"):
        if wrong == "sr1_":
            assert CIPHER.decrypt(wrong, "p") is None
            continue
        with pytest.raises(BadRequest) as refusal:
            CIPHER.decrypt(wrong, "input[1].encrypted_content")
        assert (refusal.value.code, refusal.value.param) == ("invalid_encrypted_content", "input[1].encrypted_content")
    with pytest.raises(BadRequest):
        Cipher(b"k" * KEY_BYTES, "bob").decrypt(text, "p")
    assert Cipher(b"j" * KEY_BYTES, "alice").decrypt(text, "p") is None
    assert CIPHER.decrypt("gAAAAABoISQ24OyVRYbkYfukdJoqdzWT-3ug", "p") is None


@pytest.mark.parametrize("way", ["kept", "gone", "gone, and without ids"])
def test_a_tool_loop_of_a_client_that_keeps_all_itself(
    alice: Client, bob: Client, scripted: Register, way: str
) -> None:
    opening = chunk({"role": "assistant", "reasoning_content": "why"})
    thought = chunk({"reasoning_details": SIGNED, "tool_calls": [CALL]})
    script = scripted([opening, thought, chunk({}, "tool_calls"), *ending()[1:]])
    body = {"model": script.model, "input": "go", "stream": True, **ASKED}
    last = events(alice.http.post(PATH, json=body).content)[-1]["response"]
    assert alice.get(f"{PATH}/{last['id']}").json()["output"] == last["output"]
    items = copy.deepcopy(last["output"])
    if way != "kept":
        alice.http.delete(f"{PATH}/{last['id']}")
    if "without" in way:
        items = [{name: value for name, value in item.items() if name not in ("id", "status")} for item in items]
    output = {"type": "function_call_output", "call_id": "c1", "output": "7"}
    asked = [{"role": "user", "content": "go"}, *items, output]

    def again(client: Client, model: str, *more: Any) -> Any:
        return client.http.post(PATH, json={"model": model, "input": [*asked, *more], **ASKED})

    assert again(alice, script.model).status_code == 200
    sent = script.script.calls[1]["messages"][1]
    assert (sent["reasoning_content"], sent["reasoning_details"]) == ("why", SIGNED)
    assert sent["tool_calls"][0]["signed_by"] == {"g": 1}

    again(alice, script.model, {"role": "user", "content": "now"})
    assert "reasoning_details" not in script.script.calls[2]["messages"][1], "the turn is over"
    other = scripted([*words(1), *ending()])
    assert again(alice, other.model).status_code == 200
    assert "reasoning_details" not in other.script.calls[0]["messages"][1], "another model thought that"
    error = refused(again(bob, script.model), 400, "invalid_encrypted_content")
    assert error["param"] == "input[1].encrypted_content"
