"""/v1/events: what pages are told of what happens, over real sockets: to whom, in which order, and after an interruption."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import READY_S, Stack, wait_until
from tests.harness.store import Store, emptied, open_store
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.support.follower import Event, following
from tests.support.wire import ADMIN_KEY, KEY_A, KEY_B, Client, ask, refused

KEY = "streamspool:events"


@pytest.fixture(scope="module")
def fleet(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Two API processes and a worker, two tenants and who looks after them."""
    settings = {
        "STREAMSPOOL_API_KEYS": f"a:{KEY_A},b:{KEY_B}",
        "STREAMSPOOL_ADMIN_KEYS": f"ops:{ADMIN_KEY}",
        "STREAMSPOOL_KEEPALIVE_S": "0.3",
        "STREAMSPOOL_HOLD_HEADERS_S": "0.3",
    }
    url = emptied(valkey.url.replace("db=0", "db=13"))
    directory = tmp_path_factory.mktemp("fleet")
    with Stack(url, upstream.base_url, directory, processes="worker api api-2", **settings) as running:
        wait_until(lambda: running.answers("api-2"), READY_S, "the second API is ready")
        yield running


@pytest.fixture
def ann(fleet: Stack) -> Iterator[Client]:
    with Client(fleet.url, KEY_A) as client:
        yield client


@pytest.fixture
def ann_elsewhere(fleet: Stack) -> Iterator[Client]:
    """The same through the other process."""
    with Client(fleet.at("api-2"), KEY_A) as client:
        yield client


@pytest.fixture
def boss(fleet: Stack) -> Iterator[Client]:
    with Client(fleet.url, ADMIN_KEY) as client:
        yield client


@pytest.fixture
def redis(fleet: Stack) -> Iterator[Store]:
    with open_store(fleet.redis_url) as client:
        yield client


def made(client: Client, model: str = "fake/echo", **fields: Any) -> str:
    return str(client.post(ask(model, "canary words", stream=True, **fields)).headers["x-stream-id"])


def kinds(events: list[Event], generation_id: str) -> list[str]:
    return [one["type"] for one in events if one.get("id") == generation_id]


def test_the_life_of_a_generation_and_no_word_of_it(ann: Client) -> None:
    with following(ann) as page:
        start = page.next()
        assert (start["type"], start["reason"], start["tenant"]) == ("snapshot", "start", "a")
        assert start["workers"] is None
        one = made(ann, "fake/lorem?tokens=3", metadata={"title": "canary"}, session_id="s-1")
        settled = page.until("settled", id=one)
        mine = {event["type"]: event for event in page.happened if event["id"] == one}
        assert kinds(page.happened, one) == ["accepted", "claimed", "first_chunk", "sealed", "settled"]
        assert {(event["tenant"], event["key_id"], event["model"]) for event in mine.values()} == {
            ("a", settled["key_id"], "fake/lorem?tokens=3")
        }
        assert (mine["accepted"]["source"], mine["accepted"]["session_id"]) == ("chat", "s-1")
        assert (mine["claimed"]["attempt"], mine["claimed"]["reason"]) == (1, "queued")
        assert mine["first_chunk"]["served_by"] == "fake/lorem?tokens=3"
        state = ann.state(one)
        for event in (mine["sealed"], settled):
            assert (event["status"], event["error_code"]) == ("completed", None)
            assert event["usage"].items() <= state["usage"].items()
            assert event["duration_ms"] == state["timings"]["total_ms"]
            assert 0 <= event["ttft_ms"] <= event["duration_ms"]
            assert event["by"] == mine["claimed"]["worker"]
        assert ann.http.delete(f"/v1/streams/{one}").status_code == 200
        page.until("deleted", id=one)
        assert "canary" not in page.said()


def test_a_provider_that_is_asked_again_and_a_failure(ann: Client) -> None:
    with following(ann) as page:
        one = made(ann, "fake/echo?error=503")
        page.until("settled", id=one)
        assert kinds(page.happened, one) == ["accepted", "claimed", "retried", "retried", "sealed", "settled"]
        mine = [event for event in page.happened if event["id"] == one]
        again = mine[2]
        assert (again["asked"], again["error_status"], again["attempt"]) == ("fake/echo?error=503", 503, 1)
        assert mine[-1]["error_code"] == again["error_code"]
        assert mine[-1]["error_status"] == 502


def test_a_request_that_is_made_again_is_accepted_once(ann: Client) -> None:
    key = {"idempotency-key": uuid.uuid4().hex}
    with following(ann, types="accepted,settled") as page:
        first = ann.post(ask("fake/echo", stream=True), headers=key).headers["x-stream-id"]
        page.until("settled", id=first)
        assert ann.post(ask("fake/echo", stream=True), headers=key).headers["x-stream-id"] == first
        last = made(ann)
        page.until("settled", id=last)
        assert kinds(page.happened, first) == ["accepted", "settled"]


def shown(client: Client, **asked: str) -> dict[str, Any]:
    """A snapshot. It may be one that was made for somebody else just before: what came since is told after it."""
    with following(client, **asked) as page:
        return page.next()


def test_the_snapshot_has_what_runs_and_what_waits(ann: Client, upstream: ScriptedUpstream, boss: Client) -> None:
    pause, name = Pause(), uuid.uuid4().hex
    upstream.script(name, [*words(2), pause, *ending()])
    with ann.streaming(f"scripted/{name}") as viewer:
        viewer.take(2)
        (row,) = wait_until(
            lambda: [row for row in shown(ann)["streams"] if row["id"] == viewer.id and row["served_by"]],
            what="the snapshot has it",
        )
        assert (row["id"], row["status"], row["attempt"]) == (viewer.id, "in_progress", 1)
        assert row["served_by"] == f"scripted/{name}"
        assert row["ttft_ms"] >= row["queued_ms"] >= 0
        start = shown(boss)
        assert start["streams"] == []  # of its own tenant
        assert [worker["status"] for worker in start["workers"]] == ["active"]
        wait_until(
            lambda: viewer.id in [row["id"] for row in shown(boss, tenant="*")["streams"]],
            what="the snapshot of all tenants has it",
        )
        pause.go()
        viewer.rest()


def test_nobody_is_told_what_belongs_to_another(ann: Client, boss: Client, fleet: Stack) -> None:
    with Client(fleet.url, KEY_B) as bob, following(bob) as his, following(boss, tenant="*") as all_of_it:
        his.next()
        one = made(ann)
        all_of_it.until("settled", id=one)
        moved = his.until("cursor")  # he may come again after it, and is told no more
        assert moved.keys() == {"type", "cursor"}
        assert one not in his.said()
        mine = made(bob)
        his.until("settled", id=mine)
        assert {event["tenant"] for event in his.happened} == {"b"}
        assert {event["tenant"] for event in all_of_it.happened if event["id"] == one} == {"a"}
        all_of_it.until("settled", id=mine)
        refused(bob.get("/v1/events?tenant=a"), 403)
        refused(bob.get("/v1/events?types=workers"), 403)


def test_without_keys_whoever_is_there_sees_the_workers(client: Client, stack: Stack) -> None:
    with following(client, types="workers") as page:
        status = {worker["pid"]: worker["status"] for worker in page.next()["workers"]}
    assert status[stack.process("worker").pid] == "active"


def test_who_asks_for_some_types_gets_them_alone(ann: Client) -> None:
    with following(ann, types="sealed,claimed") as page:
        page.next()
        one = made(ann)
        page.until("sealed", id=one)
        assert kinds(page.events, one) == ["claimed", "sealed"]
        assert {event["type"] for event in page.events} <= {"snapshot", "claimed", "sealed", "cursor"}
    refused(ann.get("/v1/events?types=sealed,nothing"), 400, "invalid_request")
    refused(ann.get("/v1/events", headers={"last-event-id": "1-2-3"}), 400)
    refused(ann.get("/v1/events?type=sealed"), 400)


def test_how_many_watch_through_all_processes(
    ann: Client, ann_elsewhere: Client, boss: Client, upstream: ScriptedUpstream
) -> None:
    pause, name = Pause(), uuid.uuid4().hex
    upstream.script(name, [*words(2), pause, *ending()])
    with following(ann) as page, following(boss, types="viewers") as other, ann.streaming(f"scripted/{name}") as first:
        first.take(1)
        page.until("viewers", streams={first.id: 1})
        with ann_elsewhere.watching(first.id) as second:
            second.take(1)
            page.until("viewers", streams={first.id: 2})
            wait_until(
                lambda: shown(ann_elsewhere)["viewers"] == {"streams": {first.id: 2}},
                what="the snapshot of another process has both",
            )
        page.until("viewers", streams={first.id: 1})
        pause.go()
        first.rest()
        page.until("viewers", streams={})
        assert first.id not in other.said()


def test_a_page_goes_on_through_another_process_without_a_hole(
    fleet: Stack, ann_elsewhere: Client, redis: Store
) -> None:
    with Client(fleet.url, KEY_A) as ann, Client(fleet.url, KEY_B) as bob, following(ann) as page:
        page.next()
        begun = page.cursor
        made(bob)  # another tenant's events stand between hers
        seen = made(ann_elsewhere)
        page.until("claimed", id=seen)
        before, cursor = list(page.happened), page.cursor
        fleet.kill("api")
    meanwhile = [made(ann_elsewhere) for _ in range(3)]
    with following(ann_elsewhere, cursor) as page:
        page.until("settled", id=meanwhile[-1])
        assert "snapshot" not in [event["type"] for event in page.events]
        told = [event["cursor"] for event in (*before, *page.happened)]
    fleet.start("api")
    wait_until(fleet.answers, READY_S, "the API is back")
    there = [name.decode() for name, event in redis.xrange(KEY, f"({begun}", told[-1]) if event[b"o"] == b"a"]
    assert told == there


def test_who_missed_something_is_told_so_and_gets_a_snapshot(ann: Client, redis: Store) -> None:
    with following(ann) as page:
        page.next()
        one = made(ann)
        page.until("settled", id=one)
        cursor = page.cursor
        redis.xtrim(KEY, maxlen=0, approximate=False)  # as if so much had happened meanwhile
        assert page.until("snapshot")["reason"] == "gap"
        page.until("settled", id=made(ann))
    with following(ann, cursor) as page:
        assert page.next()["reason"] == "gap"
        page.until("settled", id=made(ann))
        assert page.happened
    with following(ann, "0-0") as page:
        assert page.next()["reason"] == "gap"


def test_twenty_pages_cost_one_read(ann: Client, fleet: Stack, redis: Store) -> None:
    database = fleet.redis_url.rpartition("db=")[2]

    def reading() -> int:
        """Those of this stack: the server has others, of other tests."""
        clients = [one for one in redis.client_list() if one["db"] == database]
        return sum(one["cmd"] == "xread" and "b" in one["flags"] for one in clients)

    with ExitStack() as stack:
        pages = [stack.enter_context(following(ann, types="accepted,settled")) for _ in range(20)]
        for page in pages:
            page.next()
        wait_until(lambda: reading() == 1, what="one read for all of them")
        ids = [made(ann) for _ in range(5)]
        for page in pages:
            while not all("settled" in kinds(page.happened, one) for one in ids):
                page.next()
        for page in pages:
            assert [kinds(page.happened, one) for one in ids] == [["accepted", "settled"]] * 5
            assert page.cursor == pages[0].cursor


def test_a_server_that_stops_lets_its_pages_go(fleet: Stack) -> None:
    with Client(fleet.at("api-2"), KEY_A) as client, following(client) as page:
        page.next()
        fleet.process("api-2").send_signal(signal.SIGTERM)
        page.viewer.rest()  # to a clean end
    assert fleet.process("api-2").wait(60) == 0
    fleet.start("api-2")
    wait_until(lambda: fleet.answers("api-2"), READY_S, fleet.log("api-2")[-3000:])
