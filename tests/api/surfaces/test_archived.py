"""Answers that have become objects, seen through the API: nobody can tell which they are, until the storage fails."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.store import Store, open_store
from tests.harness.upstream import ScriptedUpstream
from tests.support.wire import Client, ask, end_error, frames, position, refused

FAULT = """
import os, sys
from shared.errors import FileStorageFailed
from shared.features.archive import objects
from shared.features.storage import Storage
from shared.generations import reaper

reaper.TICK_S = 0.2
if "api" in sys.orig_argv:
    from api import chunk_events
    chunk_events._PATIENCE_S = 6
if os.environ.get("SMALL_BYTES"):
    objects._SMALL_BYTES = int(os.environ["SMALL_BYTES"])
read = Storage.read

async def away(self, *arguments, **named):
    if os.path.exists("away"):
        raise FileStorageFailed
    async for piece in read(self, *arguments, **named):
        if os.path.exists("midway") and "piece" not in named:
            yield piece[: len(piece) // 2]
            raise FileStorageFailed
        yield piece

Storage.read = away
"""
"""The reaper looks often, and the storage does not answer while there is a file of that name, or not to the end of what is read
block by block."""
APIS = ["api-2", "api-3"]
"""`api` has what it showed at hand; these have never shown it."""


BY_BLOCKS = "api-4"
"""To which even small objects are large ones."""


class Place(Stack):
    """A stack whose answers become objects at once, and the ways to look at both homes."""

    store: Store

    def is_archived(self, generation_id: str) -> bool:
        entries = self.store.xrevrange(f"streamspool:{{{generation_id}}}:log", count=1)
        return bool(entries) and b"x" in entries[0][1]

    def archived(self, generation_id: str) -> None:
        wait_until(lambda: self.is_archived(generation_id), what="it is an object")

    def objects(self) -> list[Path]:
        places = os.walk(self._directory / "files/logs")  # a folder may go while it is looked into
        return [Path(place) / name for place, _, names in places for name in names]


@pytest.fixture(scope="module")
def place(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    url = valkey.url.replace("db=0", "db=3")
    settings = {"STREAMSPOOL_ARCHIVE_AFTER_S": "0.5", "STREAMSPOOL_ARCHIVE_LEAST_BYTES": "0"}
    directory, processes = tmp_path_factory.mktemp("stack"), " ".join(["worker", "api", *APIS])
    with open_store(url) as store:
        store.flushdb()
        with Place(url, upstream.base_url, directory, fault=FAULT, processes=processes, **settings) as running:
            running.store = store
            running.start(BY_BLOCKS, SMALL_BYTES="0")
            wait_until(lambda: all(map(running.answers, [*APIS, BY_BLOCKS])), 60)
            yield running
        store.flushdb()


@pytest.fixture
def client(place: Place) -> Iterator[Client]:
    with Client(place.url) as found:
        yield found


@pytest.fixture
def elsewhere(place: Place) -> Iterator[Client]:
    """An API that has none of it in memory."""
    with Client(place.at("api-2")) as found:
        yield found


def asked(client: Client, **fields: Any) -> str:
    return str(client.stream("fake/lorem?tokens=60&rate=5000", **fields).headers["x-stream-id"])


def state(client: Client, generation_id: str) -> dict[str, Any]:
    return {**client.state(generation_id), "viewers": 0}


def test_every_view_is_the_same(place: Place, client: Client, elsewhere: Client) -> None:
    mark = uuid.uuid4().hex
    name = asked(client, store=True, metadata={"a": mark})
    paths = [f"/v1/streams/{name}", f"/v1/chat/completions/{name}?stream=true", f"/v1/chat/completions/{name}"]
    paths += [f"/v1/chat/completions/{name}/messages", f"/v1/chat/completions?metadata[a]={mark}"]
    paths.append(f"/v1/streams?metadata[a]={mark}")
    before = [client.get(path) for path in paths]
    told = state(client, name)
    place.archived(name)
    for one in (elsewhere, client):
        assert [one.get(path).content for path in paths] == [response.content for response in before]
        assert state(one, name) == told
        for path, response in zip(paths, before, strict=True):
            assert one.get(path).headers.get("x-served-by") == response.headers.get("x-served-by"), path
    assert len(frames(before[0].content)) > 60
    assert before[0].headers["x-served-by"]


@pytest.mark.parametrize("fields", [{"stream_options": {"include_usage": True}}, {"max_tokens_per_s": 9000}])
def test_every_kind_of_stream_is_the_same(
    place: Place, client: Client, elsewhere: Client, fields: dict[str, Any]
) -> None:
    name = asked(client, **fields)
    paths = [f"/v1/streams/{name}", f"/v1/chat/completions/{name}?stream=true", f"/v1/chat/completions/{name}"]
    before = [client.get(path).content for path in paths]
    assert before[0].count(b"data: ") > 60
    place.archived(name)
    for api in (*APIS, BY_BLOCKS):
        with Client(place.at(api)) as one:
            assert [one.get(path).content for path in paths] == before
            assert [one.get(path).content for path in paths] == before  # from what it has at hand
            assert not one.http.head(paths[0]).content


def test_an_answer_of_many_blocks(place: Place, client: Client) -> None:
    """While the storage fails in the middle, a viewer waits; if it goes on failing, the viewer is told, and comes again."""
    name = str(client.stream("fake/lorem?tokens=6000").headers["x-stream-id"])
    before = client.whole(name)
    place.archived(name)
    flag = place._directory / "midway"
    with Client(place.at(BY_BLOCKS)) as one:
        assert one.whole(name) == before
        flag.touch()
        try:
            with one.watching(name) as viewer:
                viewer.take(1000)
                flag.unlink()
                viewer.rest()
            assert viewer.body == before
            flag.touch()
            with one.watching(name) as viewer, pytest.raises(httpx.RemoteProtocolError):
                viewer.rest()
        finally:
            flag.unlink(missing_ok=True)
        *said, end = frames(viewer.body)
        error = json.loads(end.partition(b"data: ")[2])["error"]
        assert error["code"] == "storage_unavailable"
        assert "Try again" in error["message"]
        assert b"[DONE]" not in viewer.body
        assert 1000 < len(said) < 6000
        rest = one.whole(name, headers={"last-event-id": position(said[-1])})
        assert [*said, *frames(rest)] == frames(before)


def test_a_viewer_goes_on_from_anywhere(place: Place, client: Client, elsewhere: Client) -> None:
    name = asked(client)
    found = frames(client.whole(name))
    place.archived(name)
    with Client(place.at("api-3")) as first:  # which begins in the middle
        assert frames(first.whole(name, headers={"last-event-id": position(found[31])})) == found[32:]
    for at in range(0, len(found) - 1, 9):
        for query in ({"last_event_id": position(found[at])}, {"starting_after": str(at + 1)}):
            assert frames(elsewhere.whole(name, params=query)) == found[at + 1 :]
    assert elsewhere.get(f"/v1/streams/{name}", params={"last_event_id": position(found[-1])}).status_code == 204
    refused(elsewhere.get(f"/v1/streams/{name}", params={"last_event_id": "1-900"}), 400, "cursor_ahead")


def test_a_response_is_the_same_and_goes_on(place: Place, client: Client, elsewhere: Client) -> None:
    body = {"model": "fake/echo", "input": "one two three", "background": True, "stream": True}
    first = client.http.post("/v1/responses", json=body)
    name = json.loads(first.content.split(b"data: ", 1)[1].split(b"\n", 1)[0])["response"]["id"]
    paths = [f"/v1/responses/{name}", f"/v1/responses/{name}?stream=true", f"/v1/responses/{name}/input_items"]
    paths.append(f"/v1/responses/{name}?stream=true&starting_after=4")
    before = [client.get(path).content for path in paths]
    place.archived(name.replace("resp_", "chatcmpl-"))
    assert [elsewhere.get(path).content for path in paths] == before
    more = {"model": "fake/echo", "input": "and four", "previous_response_id": name}
    made = elsewhere.http.post("/v1/responses", json=more)
    assert made.status_code == 200, made.text
    assert elsewhere.get(f"/v1/responses/{made.json()['id']}").json()["previous_response_id"] == name


def test_a_repeat_of_its_request_is_the_same_answer(place: Place, client: Client, elsewhere: Client) -> None:
    headers = {"idempotency-key": "archived"}
    first = client.post(ask("fake/echo", "one two"), headers=headers)
    place.archived(first.headers["x-stream-id"])
    again = elsewhere.post(ask("fake/echo", "one two"), headers=headers)
    assert again.json() == first.json()


def test_a_retry_asks_the_same_again(place: Place, client: Client, elsewhere: Client) -> None:
    first = client.post(ask("fake/echo", "one two"))
    name = first.headers["x-stream-id"]
    place.archived(name)
    again = elsewhere.http.post(f"/v1/streams/{name}/retry")
    assert again.status_code in (200, 201, 202), again.text
    assert again.json()["id"] != name


def test_what_is_deleted_is_gone_from_both_homes(place: Place, client: Client, elsewhere: Client) -> None:
    name = asked(client)
    place.archived(name)
    assert any(name in path.name for path in place.objects())
    for key in ("streamspool:archived", "streamspool:files-end"):  # it is at once, however far their times are
        assert place.store.zscore(key, "nothing") is None
    assert elsewhere.http.delete(f"/v1/streams/{name}").status_code < 300
    refused(elsewhere.get(f"/v1/streams/{name}"), 404)
    wait_until(lambda: not any(name in path.name for path in place.objects()), what="its object is removed")


def test_a_storage_that_is_away_is_an_outage(place: Place, client: Client, elsewhere: Client) -> None:
    name = asked(client, store=True)
    before = client.whole(name)
    place.archived(name)
    flag = place._directory / "away"
    flag.touch()
    try:
        for path in (f"/v1/streams/{name}", f"/v1/chat/completions/{name}", f"/v1/chat/completions/{name}/messages"):
            response = elsewhere.get(path)
            refused(response, 503, "storage_unavailable")
            assert int(response.headers["retry-after"]) > 0
        assert elsewhere.state(name)["status"] == "completed"
    finally:
        flag.unlink()
    assert elsewhere.whole(name) == before


def test_an_object_that_is_lost_is_an_error_and_no_shorter_answer(
    place: Place, client: Client, elsewhere: Client
) -> None:
    name = asked(client, store=True)
    place.archived(name)
    (path,) = [path for path in place.objects() if name in path.name]
    data = path.read_bytes()
    for left in (None, data[:-60], data[: len(data) // 2] + b"?" + data[len(data) // 2 + 1 :]):
        path.unlink(missing_ok=True)
        if left is not None:
            path.write_bytes(left)
        response = elsewhere.get(f"/v1/streams/{name}")
        if response.status_code == 200:
            assert end_error(response.content)["code"] == "stream_lost"
        else:
            assert response.json()["error"]["code"] == "stream_lost"
        assert elsewhere.get(f"/v1/chat/completions/{name}").json()["error"]["code"] == "stream_lost"
        if left is None or len(left) < len(data):  # else it is the answer that is wrong, and the request is not
            assert elsewhere.get(f"/v1/chat/completions/{name}/messages").json()["error"]["code"] == "request_lost"
    path.write_bytes(data)
    assert elsewhere.whole(name) == client.whole(name)
