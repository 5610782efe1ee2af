"""A query that a list or a cursor does not know is refused: ignored, it would look like an answer."""

from __future__ import annotations

import pytest

from tests.support.wire import Client, frames, refused

LISTS = [
    "/v1/streams",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/files",
    "/v1/batches",
    "/v1/sessions",
    "/v1/usage",
]


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("query", ["limt=3", "sinse=2026-11-27", "Limit=3", "before=x", "last_event_id=1", "="])
def test_what_a_list_does_not_know(client: Client, path: str, query: str) -> None:
    error = refused(client.get(f"{path}?{query}"), 400, "invalid_request")
    assert error["param"] == query.partition("=")[0]


@pytest.mark.parametrize("path", [path for path in LISTS if path != "/v1/usage"])
def test_what_it_knows(client: Client, path: str) -> None:
    assert client.get(f"{path}?limit=3").status_code == 200
    assert client.get(f"{path}?limit=3&limit=3").status_code == 200
    refused(client.get(f"{path}?limit=3&limit=4"), 400, "invalid_request")
    assert client.get(f"{path}?").status_code == 200


def test_metadata_is_looked_at_where_it_is_a_filter(client: Client) -> None:
    for path in ("/v1/chat/completions", "/v1/streams"):
        assert client.get(f"{path}?metadata[x]=1").status_code == 200
    refused(client.get("/v1/files?metadata[x]=1"), 400, "invalid_request")


def test_what_a_stream_does_not_know(client: Client) -> None:
    generation_id = client.stream("fake/echo", "one two three").headers["x-stream-id"]
    whole = frames(client.whole(generation_id))
    for path in (f"/v1/streams/{generation_id}?", f"/v1/chat/completions/{generation_id}?stream=true&"):
        for wrong in ("after=3", "cursor=3", "offset=3", "from=3"):
            refused(client.get(path + wrong), 400, "invalid_request")
        for near in ("lastEventId=3", "lastEventID=1-3", "Last-Event-ID=1-3", "starting-after=3", "startingAfter=3"):
            assert client.get(path + near).content == b"".join(whole[3:]), near


def test_what_no_route_asks_for_is_ignored(client: Client) -> None:
    """As the web does, and as clients rely on: some add a version to each request."""
    assert client.get("/v1/models?client_version=1").status_code == 200
    assert client.http.post("/v1/chat/completions?api-version=1", json={}).status_code == 400
    assert client.get("/healthz?x=y").status_code == 200
