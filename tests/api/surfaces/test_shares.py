"""Shares of one answer, as people without a key have them."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.auth import share_cookie
from api.surfaces.streams.shared_view import shared_events
from shared.chat.messages import split_tags
from shared.lib import json as lib_json
from shared.log.entry import Entry, Kind, Position
from tests.harness.processes import Stack, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import DONE, Pause, chunk, ending, words
from tests.support.wire import Client, Register, ask, chunks, end_error, field, frames, payload, refused, text

CANARY = "canary"


@pytest.fixture
def stranger(keyed: Stack) -> Iterator[Client]:
    """A browser without a key."""
    with Client(keyed.url) as http:
        yield http


class Guest:
    """A browser in which a share was opened."""

    def __init__(self, http: Client, share: dict[str, Any]) -> None:
        response = http.http.post("/s/session", json={"token": share["token"]})
        assert response.status_code == 200, response.text
        self.http, self.told, self.cookie = http, response.json(), response.headers["set-cookie"]
        self.headers = {"cookie": self.cookie.partition(";")[0], "sec-fetch-site": "same-origin"}
        self.query = {"share": share["id"]}

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.http.get(path, headers={**self.headers, **headers}, params=self.query)

    def post(self, path: str) -> httpx.Response:
        return self.http.http.post(path, headers=self.headers, params=self.query)

    def state(self) -> Any:
        return self.get(f"/v1/streams/{self.told['stream_id']}", accept="application/json").json()


def share(client: Client, generation_id: str, **fields: Any) -> dict[str, Any]:
    response = client.http.post(f"/v1/streams/{generation_id}/shares", json=fields)
    assert response.status_code == 200, response.text
    made: dict[str, Any] = response.json()
    return made


def test_it_shows_its_answer_and_nothing_else(alice: Client, stranger: Client) -> None:
    mine, other = (str(alice.stream("fake/echo", "for you").headers["x-stream-id"]) for _ in range(2))
    made = share(alice, mine)
    assert made["object"] == "stream.share"
    assert made["url"] == f"/s/#{made['token']}"
    assert (made["mode"], made["include"], made["stream_id"]) == ("view", ["answer"], mine)
    assert made["expires_at"] - made["created_at"] == 86400
    guest = Guest(stranger, made)
    path = f"/v1/streams/{mine}"
    assert guest.told == {
        "id": made["id"],
        "object": "share.session",
        "stream_id": mine,
        "mode": "view",
        "include": ["answer"],
        "expires_at": made["expires_at"],
        "links": {"stream": f"{path}?share={made['id']}", "request": None, "cancel": None},
    }
    shown, whole = guest.get(path), alice.whole(mine)
    assert text(chunks(shown.content)) == text(chunks(whole))
    positions = [field(frame, b"id") for frame in frames(shown.content)]
    assert positions == [field(frame, b"id") for frame in frames(whole)]
    rest = guest.get(path, **{"last-event-id": "1-2"}).content
    assert shown.content.endswith(rest)
    assert len(frames(rest)) == len(positions) - 2
    assert guest.get(path, **{"last-event-id": "9007199254740991-0"}).status_code == 204
    for foreign in (f"/v1/streams/{other}", "/v1/streams/chatcmpl-" + "0" * 32, "/v1/streams/x"):
        refused(guest.get(foreign), 404, "not_found")
        refused(guest.post(f"{foreign}/cancel"), 404, "not_found")
        refused(guest.get(f"{foreign}/request"), 404, "not_found")
    refused(guest.get(f"{path}/request"), 404, "not_found")
    refused(guest.post(f"{path}/cancel"), 403, "forbidden")
    for method, elsewhere in [
        ("GET", "/v1/streams"),
        ("GET", f"/v1/chat/completions/{mine}"),
        ("DELETE", path),
        ("POST", f"{path}/retry"),
        ("POST", f"{path}/tokens"),
        ("GET", f"{path}/shares"),
        ("POST", f"{path}/shares"),
        ("GET", "/console/session"),
    ]:
        refused(stranger.http.request(method, elsewhere, headers=guest.headers, params=guest.query), 401)


def test_the_cookie_is_of_one_share_and_ends_with_it(alice: Client, stranger: Client) -> None:
    mine = alice.stream("fake/echo").headers["x-stream-id"]
    made = share(alice, mine, expires_in=100)
    guest = Guest(stranger, made)
    name, _, rest = guest.cookie.partition("=")
    assert name == share_cookie(made["id"])
    flags = {part.strip().lower() for part in rest.split(";")[1:]}
    assert {"httponly", "path=/", "samesite=strict", "secure"} < flags
    (life,) = [int(flag.removeprefix("max-age=")) for flag in flags if flag.startswith("max-age=")]
    assert 0 < life <= 100
    path = f"/v1/streams/{mine}"
    for headers in ({**guest.headers, "sec-fetch-site": "cross-site"}, {"cookie": guest.headers["cookie"]}):
        refused(stranger.get(path, headers=headers, params=guest.query), 403, "cross_origin")
    refused(stranger.get(path, headers=guest.headers), 401, "invalid_api_key")
    refused(stranger.get(path, params={"token": made["token"]}), 401, "invalid_api_key")
    refused(stranger.get(path, headers=guest.headers, params={"share": "share_" + "0" * 24}), 401)
    refused(stranger.get(path, headers=guest.headers, params={"share": "x; y"}), 401)
    refused(guest.http.get(path, headers=guest.headers, params={**guest.query, "limt": "1"}), 400)


def test_what_is_not_included_is_nowhere(alice: Client, stranger: Client, scripted: Register) -> None:
    """All there is to see of an answer with reasoning, a session, metadata and a key, searched for what was not shared."""
    said = [
        chunk({"role": "assistant", "content": ""}, provider=CANARY, system_fingerprint=CANARY),
        chunk({"reasoning_content": f"{CANARY} thinks"}),
        chunk({"reasoning_details": [{"type": "reasoning.text", "text": CANARY, "index": 0}]}),
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": CANARY}]}]}),
        chunk({"content": "shown", "thinking_blocks": [{"index": 0, "thinking": CANARY}], "other": CANARY}),
        chunk(
            {
                "tool_calls": [
                    {
                        "index": 0,
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "look", "arguments": "{}"},
                        "extra_content": {"google": {"thought_signature": CANARY}},
                    }
                ]
            }
        ),
        *ending(),
    ]
    asked = alice.post(
        ask(
            scripted(said).model,
            f"{CANARY} asks",
            metadata={"note": CANARY},
            session_id=f"{CANARY}-{uuid.uuid4().hex}",
            user=CANARY,
        )
    )
    mine = asked.headers["x-stream-id"]
    guest = Guest(stranger, share(alice, mine))
    path = f"/v1/streams/{mine}"
    state = alice.state(mine)
    for response in (guest.get(path), guest.get(path, accept="application/json")):
        assert response.status_code == 200
        shown = response.text + str(response.headers)
        for secret in (CANARY, "usage", "cost", "session", "metadata", "sealed_by", state["sealed_by"], "x-served-by"):
            assert secret not in shown, (secret, shown)
    found = chunks(guest.get(path).content)
    assert text([one for one in found if isinstance(one["choices"][0]["delta"].get("content"), str)]) == "shown"
    calls = [call for one in found for call in one["choices"][0]["delta"].get("tool_calls", ())]
    called = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}
    assert calls[0] == called
    assert "".join(call["function"]["arguments"] for call in calls) == "{}"
    assert guest.state()["share"]["id"] == guest.query["share"]
    with_thoughts = Guest(stranger, share(alice, mine, include=["reasoning", "answer"]))
    assert f"{CANARY} thinks" in with_thoughts.get(path).text
    assert f"{CANARY} asks" not in with_thoughts.get(path).text
    refused(with_thoughts.get(f"{path}/request"), 404)
    with_prompt = Guest(stranger, share(alice, mine, include=["answer", "prompt"]))
    assert with_prompt.told["links"]["request"] == f"{path}/request?share={with_prompt.query['share']}"
    request = with_prompt.get(f"{path}/request").json()
    assert request == {"model": state["model"], "messages": [{"role": "user", "content": f"{CANARY} asks"}]}
    assert f"{CANARY} thinks" not in with_prompt.get(path).text


def test_an_error_says_no_more_than_its_code(alice: Client, stranger: Client, scripted: Register) -> None:
    body = json.dumps(
        {"error": {"message": f"{CANARY}: bad", "type": "x", "code": "bad_thing", "param": CANARY}}
    ).encode()
    asked = alice.post(ask(scripted([body], status=400).model))
    mine = asked.headers["x-stream-id"]
    guest = Guest(stranger, share(alice, mine))
    shown = guest.get(f"/v1/streams/{mine}").content
    assert end_error(shown)["code"] == "bad_thing"
    assert CANARY.encode() not in shown
    state = guest.state()
    assert CANARY not in json.dumps(state)
    assert (state["status"], state["error"]["code"]) == ("failed", "bad_thing")


def test_a_running_answer_is_shown_live_and_is_cut_when_the_share_is_revoked(
    alice: Client, stranger: Client, scripted: Register
) -> None:
    pause = Pause()
    asked = scripted([*words(3), pause, *ending()])
    with alice.streaming(asked.model) as owner:
        owner.take(3)
        made, other = share(alice, owner.id), share(alice, owner.id)
        guest, still = Guest(stranger, made), Guest(stranger, other)
        path = f"/v1/streams/{owner.id}"
        with (
            stranger.view("GET", path, headers=guest.headers, params=guest.query) as viewer,
            stranger.view("GET", path, headers=still.headers, params=still.query) as stays,
        ):
            viewer.until(b"w2 ")
            stays.until(b"w2 ")
            assert alice.http.delete(f"{path}/shares/{made['id']}").json()["deleted"]
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                viewer.rest()
            refused(guest.get(path), 401)
            refused(stranger.http.post("/s/session", json={"token": made["token"]}), 404, "share_ended")
            pause.go()
            assert stays.rest().endswith(b"data: [DONE]\n\n")
        assert owner.rest().endswith(b"data: [DONE]\n\n")
    assert not asked.script.hung_up


def test_with_control_it_may_end_the_answer(alice: Client, stranger: Client, scripted: Register) -> None:
    pause = Pause()
    with alice.streaming(scripted([*words(2), pause, *ending()]).model) as owner:
        owner.take(2)
        path = f"/v1/streams/{owner.id}"
        watching = Guest(stranger, share(alice, owner.id))
        refused(watching.post(f"{path}/cancel"), 403, "forbidden")
        assert alice.state(owner.id)["status"] == "in_progress"
        guest = Guest(stranger, share(alice, owner.id, mode="control"))
        state = guest.post(guest.told["links"]["cancel"].partition("?")[0]).json()
        assert state["status"] == "cancelled"
        assert state.keys() == guest.state().keys()
        owner.rest()


def test_they_are_listed_without_their_tokens_and_audited(alice: Client, bob: Client, admin: Client) -> None:
    mine = alice.stream("fake/echo").headers["x-stream-id"]
    path = f"/v1/streams/{mine}/shares"
    first, second = share(alice, mine, mode="control"), share(alice, mine, include=["answer", "prompt"], expires_in=1)
    listed = alice.get(path).json()
    assert {one["id"] for one in listed["data"]} >= {first["id"]}
    assert first["token"] not in json.dumps(listed)
    (told,) = [one for one in listed["data"] if one["id"] == first["id"]]
    assert {**told, "token": first["token"], "url": first["url"]} == first
    refused(bob.get(path), 404, "not_found")
    refused(bob.http.post(path), 404, "not_found")
    refused(bob.http.delete(f"{path}/{first['id']}"), 404, "not_found")
    for unknown in ("x", "share_" + "0" * 24):
        refused(alice.http.delete(f"{path}/{unknown}"), 404, "not_found")
    assert wait_until(lambda: [one["id"] for one in alice.get(path).json()["data"]] == [first["id"]])
    refused(alice.http.delete(f"{path}/{second['id']}"), 404, "not_found")
    alice.http.delete(f"{path}/{first['id']}")
    assert alice.get(path).json()["data"] == []
    entries = admin.get("/v1/audit", params={"subject": first["id"]}).json()["data"]
    assert [entry["action"] for entry in entries] == ["share.revoked", "share.created"]
    assert entries[1]["details"] == {"id": mine, "mode": "control", "include": ["answer"]}
    assert first["token"] not in json.dumps(entries)


def test_it_ends_by_itself_with_its_answer_and_with_the_key_that_made_it(
    keyed: Stack, alice: Client, admin: Client, stranger: Client
) -> None:
    mine = alice.stream("fake/echo").headers["x-stream-id"]
    path = f"/v1/streams/{mine}"
    short = Guest(stranger, share(alice, mine, expires_in=3))
    wait_until(lambda: short.get(path).status_code == 401)
    key = admin.http.post("/v1/keys", json={"tenant": "a"}).json()
    with Client(keyed.url, key["key"]) as colleague:
        guest = Guest(stranger, share(colleague, mine))
    assert guest.get(path).status_code == 200
    admin.http.delete(f"/v1/keys/{key['id']}")
    refused(guest.get(path), 401)
    left = Guest(stranger, share(alice, mine))
    alice.http.delete(path)
    refused(left.get(path), 404, "not_found")


def test_it_does_not_open_another_answer_that_has_the_same_id(keyed: Stack, alice: Client, stranger: Client) -> None:
    """As a request that is made again with its `Idempotency-Key` may, once the first one was deleted."""
    mine = alice.stream("fake/echo").headers["x-stream-id"]
    made = share(alice, mine)
    guest = Guest(stranger, made)
    with open_store(keyed.redis_url) as store:
        for name in store.scan_iter(match="*:token:*", count=1000):
            if (value := store.get(name)) is None:
                continue  # another test's, which has just ended
            opens = json.loads(value)
            assert made["token"].encode() not in name + value
            if opens.get("share", {}).get("id") == made["id"]:
                opens["share"]["log_made_ms"] -= 1
                store.set(name, json.dumps(opens), keepttl=True)
    refused(guest.get(f"/v1/streams/{mine}"), 404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        {"mode": "own"},
        {"expires_in": 0},
        {"expires_in": 2592001},
        {"expires_in": "1"},
        {"include": []},
        {"include": ["prompt"]},
        {"include": ["answer", "key"]},
        {"more": 1},
        [],
    ],
)
def test_what_is_asked_for_is_checked(alice: Client, body: object) -> None:
    generation_id = alice.stream("fake/echo").headers["x-stream-id"]
    refused(alice.http.post(f"/v1/streams/{generation_id}/shares", json=body), 400, "invalid_request")


@pytest.mark.parametrize("token", ["", "x", "sh_" + "x" * 43, "x" * 4000])
def test_a_wrong_token_opens_nothing(keyed: Stack, alice: Client, stranger: Client, token: str) -> None:
    refused(stranger.http.post("/s/session", json={"token": token}), 404, "share_ended")
    generation_id = alice.stream("fake/echo").headers["x-stream-id"]
    viewers = alice.http.post(f"/v1/streams/{generation_id}/tokens").json()["token"]
    refused(stranger.http.post("/s/session", json={"token": viewers}), 404, "share_ended")
    with open_store(keyed.redis_url) as store:  # others of these tests are not to be limited
        for name in store.scan_iter(match="*:console-failed:*", count=1000):
            store.delete(name)


def test_it_works_on_a_server_without_keys_and_for_no_stranger_there(client: Client) -> None:
    mine = client.stream("fake/echo").headers["x-stream-id"]
    guest = Guest(client, share(client, mine))
    assert guest.get(f"/v1/streams/{mine}").status_code == 200
    assert "usage" not in guest.state()
    refused(client.http.post("/s/session", json={"token": "x"}, headers={"host": "attacker.example"}), 403, "forbidden")


def test_it_stands_in_no_log(keyed: Stack, alice: Client, stranger: Client) -> None:
    mine = alice.stream("fake/echo").headers["x-stream-id"]
    made = share(alice, mine)
    Guest(stranger, made).get(f"/v1/streams/{mine}")
    assert made["token"] not in keyed.log("api")


# ---- reasoning in tags, cut anywhere


def shown(pieces: list[str], *, reasoning: bool = False, note: bytes | None = b'{"think": true}') -> str:
    header: Any = {"model": "m", "id": "chatcmpl-1"}
    fold: Any = shared_events(reasoning=reasoning).start(header).fold
    said = ""
    last = len(pieces)
    for number, piece in enumerate([*pieces, None], 1):
        choice = {
            "index": 0,
            "delta": {} if piece is None else {"content": piece},
            "finish_reason": "stop" if piece is None else None,
        }
        data = lib_json.dumps({"id": "x", "choices": [choice]})
        entry = Entry(Position(1, number), Kind.CHUNK, data, note if number == 1 else None)
        (frame,), fold = fold.feed(entry)
        assert field(frame, b"id") == f"1-{number}".encode()
        said += payload(frame)["choices"][0]["delta"].get("content") or ""
    assert fold.events == last + 1
    return said


@pytest.mark.parametrize(
    "whole",
    [
        "<think>why not</think>\n\nbecause",
        " \n<think></think>yes",
        "<thin",
        "no <think>x</think>",
        "<think>endless",
        "",
    ],
)
def test_tags_are_left_out_wherever_they_are_cut(whole: str) -> None:
    expected = split_tags(whole)[0]
    for first, second in itertools.combinations_with_replacement(range(len(whole) + 1), 2):
        pieces = [whole[:first], whole[first:second], whole[second:]]
        assert shown(pieces) == expected, pieces
    assert shown(list(whole)) == expected
    assert shown(list(whole), reasoning=True) == whole
    assert shown(list(whole), note=None) == whole


def test_events_end_as_those_of_the_native_view() -> None:
    header: Any = {"model": "m"}
    outcome: Any = {"status": "completed", "error": None}
    assert DONE in b"".join(shared_events(reasoning=False).start(header).fold.end(outcome))
