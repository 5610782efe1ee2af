"""The Responses API as its clients see it: events, checked by OpenAI's own models, and what is asked."""

from __future__ import annotations

import json
from typing import Any, get_args

from openai.types.responses import Response, ResponseStreamEvent

from tests.support.wire import field, frames

PATH = "/v1/responses"
ENDS = ("response.completed", "response.incomplete", "response.failed")
CODEX = {"session_id": "s", "turn_id": "1", "x-codex-window-id": "s:0", "x-codex-turn-metadata": '{"turn_id":"1"}'}
"""The `client_metadata` of a turn."""

_EVENTS = {
    model.model_fields["type"].annotation.__args__[0]: model for model in get_args(get_args(ResponseStreamEvent)[0])
}
"""OpenAI's model of each event, by its type."""

Event = dict[str, Any]


def native_model(name: str) -> str:
    """The scripted model, of a provider that speaks this API itself (fixture `native`)."""
    return f"own/{name.partition('/')[2]}"


def written_anew(body: dict[str, Any]) -> dict[str, Any]:
    """What Codex sends for the same request after a cut: all that it says, in another order."""
    fields = reversed(body["client_metadata"].items())
    return {**body, "client_metadata": {**dict(fields), "x-codex-try": "2"}}


def response(value: Any) -> dict[str, Any]:
    """A response object that OpenAI's model takes."""
    details = value["incomplete_details"]
    if details == {"reason": "cancelled"}:  # not in OpenAI's list; the one word that every client takes for what it is
        details = {"reason": "max_output_tokens"}
    Response.model_validate({**value, "incomplete_details": details})
    found: dict[str, Any] = value
    return found


def checked(event: Event) -> Event:
    """An event that OpenAI's model of it takes."""
    if "response" in event:
        response(event["response"])
    else:
        _EVENTS[event["type"]].model_validate(event)
    return event


def events(body: bytes, *, first: int = 0, ended: bool = True) -> list[Event]:
    """The events of a stream, each checked: by OpenAI's model, `event:` and `type` alike, numbers without a gap."""
    found = []
    for frame in frames(body):
        data = field(frame, b"data")
        assert data is not None, frame
        event = json.loads(data)
        assert field(frame, b"event") == event["type"].encode()
        if event["type"] == "keepalive":
            continue
        assert field(frame, b"id") == b"%d" % event["sequence_number"]
        found.append(checked(event))
    assert [event["sequence_number"] for event in found] == list(range(first, first + len(found)))
    if ended:
        assert [event["type"] for event in found if event["type"] in ENDS] == [found[-1]["type"]]
    return found


def kinds(found: list[Event]) -> list[str]:
    """Their types, those of deltas that follow each other once."""
    names = [event["type"].removeprefix("response.") for event in found]
    return [name for number, name in enumerate(names) if not (name.endswith("delta") and names[number - 1] == name)]


def joined(found: list[Event], kind: str = "response.output_text.delta") -> str:
    """What the deltas of one type say."""
    return "".join(event["delta"] for event in found if event["type"] == kind)


def text_of(answer: dict[str, Any]) -> str:
    """The text of a response's messages."""
    messages = [item for item in answer["output"] if item["type"] == "message"]
    return "".join(part["text"] for item in messages for part in item["content"] if part["type"] == "output_text")
