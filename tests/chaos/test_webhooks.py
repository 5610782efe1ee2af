"""Webhooks when something dies: the receiver, the worker that has just settled, the worker that is just delivering."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import wait_until
from tests.harness.upstream import ScriptedUpstream, ending, words
from tests.support.fleet import Fleet
from tests.support.names import keys
from tests.support.receiver import SECRET, Hook, Receiver

NEVER_LOOKS = "import worker.webhooks\nworker.webhooks.WebhookSender._look = lambda _: __import__('asyncio').sleep(0)\n"
"""A worker that settles and delivers nothing: the moment between the two, held open."""


@pytest.fixture(scope="module")
def running(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    upstream.script("hooked", [*words(3), *ending()])
    settings = {
        "STREAMSPOOL_WEBHOOK_SECRET": SECRET,
        "STREAMSPOOL_WEBHOOK_ALLOW": "127.0.0.1",
        "STREAMSPOOL_WEBHOOK_RETRY_S": "0.2",
        "STREAMSPOOL_WEBHOOK_TIMEOUT_S": "5",
    }
    with Fleet(valkey, upstream, tmp_path_factory.mktemp("webhooks"), **settings) as fleet:
        yield fleet


@pytest.fixture
def fleet(running: Fleet) -> Fleet:
    running.heal()
    return running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


def hook(fleet: Fleet, generation_id: str) -> dict[str, Any]:
    found: dict[str, Any] = fleet.state(generation_id)["webhook"]
    return found


def delivered(fleet: Fleet, generation_id: str) -> dict[str, Any]:
    found: dict[str, Any] = wait_until(
        lambda: (state := hook(fleet, generation_id))["status"] == "delivered" and state, what="it is delivered"
    )
    return found


def one_event(hooks: list[Hook], generation_id: str) -> None:
    """However often it came, it is one event, and signed anew each time."""
    assert {hook.event()["id"] for hook in hooks} == {hooks[0].headers["webhook-id"]}
    assert all(hook.event()["data"] == {"id": generation_id} for hook in hooks)
    assert hooks[0].event()["type"] == "chat.completion.completed"


def test_w1_a_receiver_that_is_down_is_told_when_it_is_up(fleet: Fleet, receiver: Receiver) -> None:
    receiver.stop()
    generation_id = fleet.submit("hooked", webhook={"url": receiver.url})
    state = wait_until(lambda: (state := hook(fleet, generation_id))["attempts"] >= 3 and state)
    assert (state["status"], state["error"], state["last_status"]) == ("pending", "connect_error", None)
    receiver.start()
    state = delivered(fleet, generation_id)
    assert state["attempts"] >= 3  # the third may have been under way
    assert len(receiver.of(generation_id)) == 1
    one_event(receiver.of(generation_id), generation_id)


def test_w2_a_worker_killed_between_settlement_and_delivery(fleet: Fleet, receiver: Receiver) -> None:
    for name in fleet.running():
        fleet.stop(name)
    fleet.start_and_wait("worker-3", fault=NEVER_LOOKS)
    generation_id = fleet.submit("hooked", webhook={"url": receiver.url})
    fleet.ended(generation_id)
    wait_until(lambda: fleet.client.exists(keys.settled(generation_id)), what="it is settled")
    assert fleet.client.zscore(keys.webhooks, generation_id) == 0
    assert (hook(fleet, generation_id)["status"], receiver.got) == ("pending", [])
    fleet.stop("worker-3")
    fleet.start("worker")
    state = delivered(fleet, generation_id)
    assert state["attempts"] == 1
    one_event(receiver.of(generation_id), generation_id)
    assert len(receiver.of(generation_id)) == 1


def test_w3_a_worker_killed_while_it_delivers(fleet: Fleet, receiver: Receiver) -> None:
    """The receiver may have it twice; it is the same event then."""
    killed = threading.Event()

    def hold(_: Hook) -> int:
        return 200 if killed.is_set() or killed.wait(100) else 500

    receiver.answer = hold
    fleet.stop("worker-2")
    generation_id = fleet.submit("hooked", webhook={"url": receiver.url})
    wait_until(lambda: receiver.of(generation_id), what="the first attempt")
    fleet.stop("worker")
    killed.set()
    assert hook(fleet, generation_id)["status"] == "pending"
    fleet.start("worker")
    state = delivered(fleet, generation_id)
    hooks = receiver.of(generation_id)
    assert state["attempts"] == len(hooks) == 2
    one_event(hooks, generation_id)


def test_w4_two_workers_tell_of_each_end_once(fleet: Fleet, receiver: Receiver) -> None:
    ids = [fleet.submit("hooked", webhook={"url": receiver.url}) for _ in range(20)]
    for generation_id in ids:
        assert delivered(fleet, generation_id)["attempts"] == 1
    assert sorted(hook.event()["data"]["id"] for hook in receiver.got) == sorted(ids)  # type: ignore[index]
    assert fleet.client.zcard(keys.webhooks) == 0
