"""F86 to F89: a bucket that has bad days, under answers that move there and viewers who read them: nothing is lost, and nothing
that has a hole is called an answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.chaos.archiving import is_whole
from tests.harness.processes import Stack, wait_until
from tests.harness.store import Store, open_store
from tests.harness.upstream import ScriptedUpstream
from tests.support.bad_s3 import BadS3, How
from tests.support.s3 import S3
from tests.support.wire import Client, chunks, frames, position, refused, text

FAULT = """
from api.live import hot
from shared.features import files, storage
from shared.features.archive import archiver, objects
from shared.generations import reaper

reaper.TICK_S = 0.2
archiver.LEASE_MS, archiver._POSTPONED_MS = 5000, 300
archiver.GRACE_MS = 6000
archiver.DUE_MS = files._SLACK_MS = 0
storage._TIMEOUT_S, storage._RETRIES, storage._GIVE_UP_S = 2, 1, 3
objects._HELD_BYTES = hot._BYTES = 0
"""
"""The reaper looks often, what failed is tried again soon, and no process has anything at hand."""
MODEL = "fake/lorem?tokens=400"
APIS = ("api", "api-2")
PATIENCE_S = 90.0


class Place(Stack):
    """A stack whose answers become objects in a bucket at once."""

    store: Store
    bad: BadS3
    s3: S3
    expected: str
    """The text of each answer."""

    def is_archived(self, generation_id: str) -> bool:
        entries = self.store.xrevrange(f"streamspool:{{{generation_id}}}:log", count=1)
        return bool(entries) and b"x" in entries[0][1]

    def asked(self, count: int) -> list[str]:
        with Client(self.url) as client:
            return [str(client.stream(MODEL, store=True).headers["x-stream-id"]) for _ in range(count)]

    def archived(self, names: list[str]) -> None:
        wait_until(lambda: all(map(self.is_archived, names)), PATIENCE_S, "all are objects")

    def are_whole(self, names: list[str]) -> bool:
        for api in APIS:
            with Client(self.at(api)) as client:
                if not all(is_whole(client.whole(name), self.expected) for name in names):
                    return False
        return True

    def is_tidy(self) -> None:
        """No answer has two objects, and no object is nobody's."""
        wait_until(lambda: not self.store.exists("streamspool:files-end"), PATIENCE_S, "what was left over is removed")
        wait_until(lambda: self.stored() == self.named(), PATIENCE_S, "objects and names are the same")
        ids = [name.rpartition("/")[2].partition(".")[0] for name in self.named()]
        assert len(set(ids)) == len(ids)

    def stored(self) -> set[str]:
        return {name for name in self.s3.names() if name.startswith("logs/")}

    def named(self) -> set[str]:
        return {name.decode() for name in self.store.zrange("streamspool:archived", 0, -1)}


@pytest.fixture(scope="module")
def place(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    url = valkey.url.replace("db=0", "db=3")
    directory = tmp_path_factory.mktemp("stack")
    settings = {"STREAMSPOOL_ARCHIVE_AFTER_S": "0.01", "STREAMSPOOL_ARCHIVE_LEAST_BYTES": "0"}
    processes = " ".join(["worker", *APIS])
    with open_store(url) as store, S3(directory) as s3, BadS3(s3) as bad:
        store.flushdb()
        settings |= {"STREAMSPOOL_FILES_URL": bad.url, **bad.environment}
        with Place(url, upstream.base_url, directory, fault=FAULT, processes=processes, **settings) as running:
            running.store, running.bad, running.s3 = store, bad, s3
            wait_until(lambda: all(map(running.answers, APIS)), PATIENCE_S)
            with Client(running.url) as client:
                running.expected = text(chunks(client.stream(MODEL).content))
            yield running
        store.flushdb()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["500", "503", "refuse", "cut", "slow"])
def test_f86_a_bucket_that_fails_while_answers_move_there(place: Place, how: How) -> None:
    """They stay where they are until it has them, and can be read all the time."""
    before = place.bad.done[how]
    with place.bad.doing(how, "PUT GET", every=1 if how == "slow" else 2):
        names = place.asked(6)
        place.archived(names)
    assert place.bad.done[how] > before
    assert place.are_whole(names)
    if how == "slow":
        return
    with place.bad.doing(how, "PUT"):
        before = place.bad.done[how]
        names = place.asked(3)
        wait_until(lambda: place.bad.done[how] >= before + 4, PATIENCE_S, "it has tried")
        assert not any(map(place.is_archived, names))
        assert place.are_whole(names)
    place.archived(names)
    assert place.are_whole(names)
    place.is_tidy()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["500", "503", "refuse", "cut"])
def test_f87_a_bucket_that_fails_while_they_are_read(place: Place, how: How) -> None:
    (name,) = names = place.asked(1)
    place.archived(names)
    views = "/v1/streams/{}", "/v1/chat/completions/{}?stream=true"
    with Client(place.at("api-2")) as client:
        found = frames(client.whole(name))
        with place.bad.doing(how, "GET"):
            for view in (*views, "/v1/chat/completions/{}", "/v1/chat/completions/{}/messages"):
                response = client.get(view.format(name))
                refused(response, 503, "storage_unavailable")
                assert int(response.headers["retry-after"]) > 0
            middle = client.get(views[0].format(name), params={"last_event_id": position(found[100])})
            refused(middle, 503, "storage_unavailable")
        with place.bad.doing(how, "GET", every=2):  # it is asked again, and nobody need know
            assert is_whole(client.whole(name), place.expected)
            assert frames(client.whole(name, headers={"last-event-id": position(found[100])})) == found[101:]
        assert client.whole(name) == b"".join(found)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["hang", "refuse"])
def test_f88_a_bucket_that_is_away_for_a_while(place: Place, how: How) -> None:
    (old,) = place.asked(1)
    place.archived([old])
    with Client(place.at("api-2")) as client:
        with place.bad.doing(how, "GET PUT DELETE HEAD"):
            refused(client.get(f"/v1/streams/{old}"), 503, "storage_unavailable")
            assert client.state(old)["status"] == "completed"
            assert old in client.get("/v1/streams", params={"limit": 100}).text
            new = place.asked(2)  # which need no bucket
            assert place.are_whole(new)
            assert not any(map(place.is_archived, new))
        place.archived(new)
    assert place.are_whole([old, *new])
    place.is_tidy()


@pytest.mark.timeout(300)
def test_f89_a_bucket_that_lets_nobody_in(place: Place) -> None:
    """That does not pass by itself: whoever reads is told that the operator has to do something."""
    (old,) = place.asked(1)
    place.archived([old])
    with Client(place.at("api-2")) as client, place.bad.doing("403", "GET PUT"):
        problem = refused(client.get(f"/v1/streams/{old}"), 500, "file_storage_refused")
        assert "log has the cause" in problem["message"]
        before = place.bad.done["403"]
        new = place.asked(2)
        wait_until(lambda: place.bad.done["403"] >= before + 4, PATIENCE_S, "it has tried")
        assert place.are_whole(new)
        assert not any(map(place.is_archived, new))
    place.archived(new)
    assert place.are_whole([old, *new])
    place.is_tidy()
    assert "AccessDenied" in "".join(map(place.log, ("worker", *APIS)))
