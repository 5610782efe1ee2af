"""Logs on one server, the queue and the rest on another: clients see one system."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import Pause, ScriptedUpstream, chunk, ending, words
from tests.support.tenant import look_at_all
from tests.support.wire import Client, Register, chunks, frames, text


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("queue")) as server:
        yield server


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("logs")) as server:
        yield server


@pytest.fixture(scope="module")
def parted(
    logs: EmbeddedValkey,
    queue: EmbeddedValkey,
    upstream: ScriptedUpstream,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("parted")
    with Stack(logs.url, upstream.base_url, directory, STREAMSPOOL_QUEUE_URL=queue.url) as running:
        yield running


def test_what_a_tenant_has_is_whole(parted: Stack) -> None:
    look_at_all(parted.url)


def test_an_answer_live_late_and_from_the_middle(
    parted: Stack, scripted: Register, logs: EmbeddedValkey, queue: EmbeddedValkey
) -> None:
    barrier = Pause()
    said = scripted([*words(5), barrier, chunk({"content": "the end"}), *ending()])
    with Client(parted.url) as client:
        with client.streaming(said.model) as first:
            first.until(b"w4 ")
            with client.watching(first.id) as late:
                late.until(b"w4 ")
                barrier.go()
                assert text(chunks(late.rest())).endswith("w4 the end")
            assert text(chunks(first.rest())).endswith("w4 the end")
        whole = frames(client.whole(first.id))
        assert client.whole(first.id, params={"starting_after": "3"}) == b"".join(whole[3:])
        assert client.state(first.id)["status"] == "completed"
    with open_store(logs.url) as store:
        assert [name for name in store.keys("*{control}*") if not name.endswith(b":cells")] == []
        assert store.get("streamspool{control}:cells") == b"1 apart"
    with open_store(queue.url) as store:
        assert [name for name in store.keys("*") if not name.startswith(b"streamspool{control}:")] == []


def test_probes_tell_them_apart(parted: Stack) -> None:
    with Client(parted.url) as client:
        told = client.get("/readyz").json()
        assert {name: told["checks"][name] for name in ("redis", "queue")} == {"redis": "ok", "queue": "ok"}
        wait_until(lambda: "\nstreamspool_redis_up 1.0\n" in client.get("/metrics").text, what="it answers in time")
