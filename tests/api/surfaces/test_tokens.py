"""A stream that is watched with a token in its URL, as an EventSource has to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.processes import Stack, wait_until
from tests.support.wire import Client, refused


@pytest.fixture
def stranger(keyed: Stack) -> Iterator[Client]:
    with Client(keyed.url) as http:
        yield http


def make(client: Client, generation_id: str, **fields: object) -> dict[str, object]:
    response = client.http.post(f"/v1/streams/{generation_id}/tokens", json=fields)
    assert response.status_code == 200, response.text
    made: dict[str, object] = response.json()
    return made


def test_it_opens_its_stream_to_be_read_and_nothing_else(alice: Client, stranger: Client) -> None:
    mine, other = (alice.stream("fake/echo", "for you").headers["x-stream-id"] for _ in range(2))
    made = make(alice, mine)
    url, query = str(made["url"]), {"token": str(made["token"])}
    assert (made["object"], made["stream_id"]) == ("stream.token", mine)
    assert url == f"/v1/streams/{mine}?token={made['token']}"
    assert stranger.get(url).content == alice.whole(mine)
    assert stranger.get(url, headers={"last-event-id": "1-2"}).content == alice.whole(
        mine, params={"starting_after": "2"}
    )
    assert stranger.get(f"{url}&lastEventId=1-2").content == alice.whole(mine, params={"starting_after": "2"})
    refused(stranger.get(f"{url}&limt=2"), 400, "invalid_request")
    for method, path in [
        ("GET", f"/v1/streams/{other}"),
        ("GET", "/v1/streams"),
        ("GET", f"/v1/chat/completions/{mine}"),
        ("DELETE", f"/v1/streams/{mine}"),
        ("POST", f"/v1/streams/{mine}/cancel"),
        ("POST", f"/v1/streams/{mine}/tokens"),
    ]:
        refused(stranger.http.request(method, path, params=query), 401, "invalid_api_key")
    for wrong in ("", "x", "st_" + "x" * 43, "x" * 5000):
        refused(stranger.get(f"/v1/streams/{mine}", params={"token": wrong}), 401, "invalid_api_key")
    refused(stranger.get(url, headers={"authorization": "Bearer wrong"}), 401, "invalid_api_key")


def test_it_ends(alice: Client, stranger: Client) -> None:
    generation_id = alice.stream("fake/echo").headers["x-stream-id"]
    url = str(make(alice, generation_id, expires_in_s=1)["url"])
    wait_until(lambda: stranger.get(url).status_code == 401)


def test_only_its_owner_makes_one(alice: Client, bob: Client) -> None:
    generation_id = alice.stream("fake/echo").headers["x-stream-id"]
    refused(bob.http.post(f"/v1/streams/{generation_id}/tokens"), 404, "not_found")
    assert alice.http.post(f"/v1/streams/{generation_id}/tokens").status_code == 200, "no body is needed"


@pytest.mark.parametrize("body", [{"expires_in_s": 0}, {"expires_in_s": 3601}, {"expires_in_s": True}, {"life": 1}, []])
def test_what_is_asked_for_is_checked(alice: Client, body: object) -> None:
    generation_id = alice.stream("fake/echo").headers["x-stream-id"]
    refused(alice.http.post(f"/v1/streams/{generation_id}/tokens", json=body), 400, "invalid_request")


def test_it_stands_in_no_log(keyed: Stack, alice: Client, stranger: Client) -> None:
    """At debug, whatever is made of it."""
    generation_id = alice.stream("fake/echo").headers["x-stream-id"]
    token = str(make(alice, generation_id)["token"])
    for path in (f"/v1/streams/{generation_id}", "/v1/streams/x", "/nothing", "/v1/streams/%ff"):
        stranger.get(path, params={"token": token})
        stranger.get(path, params={"token": token, "x": "y"})
        stranger.http.put(path, params={"token": token})
    assert token not in keyed.log("api")
    assert token not in keyed.log("worker")
