"""Chat in the background: accepted at once, looked at later, told about when it has ended."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.store import emptied
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.support.receiver import SECRET, Hook, Receiver
from tests.support.wire import KEY_A, KEY_B, Client, Register, ask, chunks, refused, text

CANARY = "canary-webhook-query"


def until_ended(client: Client, generation_id: str) -> dict[str, object]:
    ended: dict[str, object] = wait_until(
        lambda: (state := client.state(generation_id))["status"] not in ("queued", "in_progress") and state
    )
    return ended


# ---- without a webhook


def test_it_is_accepted_with_its_state_at_once(client: Client, scripted: Register) -> None:
    pause = Pause()
    model = scripted([*words(2), pause, *ending()]).model
    response = client.post(ask(model, background=True, metadata={"k": "v"}))
    assert response.status_code == 202
    state = response.json()
    assert (state["object"], state["status"], state["background"], state["webhook"]) == ("stream", "queued", True, None)
    assert state["metadata"] == {"k": "v"}
    generation_id = state["id"]
    assert response.headers["x-stream-id"] == generation_id
    assert response.headers["location"] == state["links"]["self"]
    assert client.state(generation_id).keys() == state.keys()
    with client.view("GET", f"/v1/chat/completions/{generation_id}?stream=true") as viewer:
        viewer.take(2)
        pause.go()
        viewer.rest()
        assert b"[DONE]" in viewer.body
    assert until_ended(client, generation_id)["status"] == "completed"
    assert text(chunks(client.whole(generation_id))) == "w0 w1 "


def test_a_stream_in_the_background_is_shown_as_any(client: Client) -> None:
    response = client.stream("fake/echo", background=True)
    assert text(chunks(response.content)) == "hello there"
    assert client.state(response.headers["x-stream-id"])["background"] is True


def test_one_in_the_foreground_says_so(client: Client) -> None:
    assert client.state(client.stream("fake/echo").headers["x-stream-id"])["background"] is False


def test_made_twice_it_is_one(client: Client, scripted: Register) -> None:
    pause = Pause()
    played = scripted([*words(2), pause, *ending()])
    key = {"idempotency-key": played.name}
    first, second = (client.post(ask(played.model, background=True), headers=key) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    refused(client.post(ask(played.model), headers=key), 422, "idempotency_key_reused")
    pause.go()
    until_ended(client, first.json()["id"])
    third = client.post(ask(played.model, background=True), headers=key)
    assert (third.status_code, third.json()["status"]) == (202, "completed")
    assert len(played.script.calls) == 1


def test_it_can_be_cancelled(client: Client, scripted: Register) -> None:
    played = scripted([*words(2), Pause()])
    generation_id = client.post(ask(played.model, background=True)).json()["id"]
    wait_until(lambda: client.state(generation_id)["status"] == "in_progress")
    assert client.cancel(generation_id).json()["status"] == "cancelled"
    wait_until(lambda: played.script.live == 0)


def test_what_contradicts_itself_is_refused(client: Client) -> None:
    for fields, param in (
        ({"background": "yes"}, "background"),
        ({"background": True, "on_disconnect": "cancel"}, "on_disconnect"),
        ({"webhook": "https://example.com"}, "webhook"),
        ({"webhook": {}}, "webhook.url"),
        ({"webhook": {"url": 1}}, "webhook.url"),
        ({"webhook": {"url": "https://example.com", "secret": "x"}}, "webhook.secret"),
    ):
        assert refused(client.post(ask("fake/echo", **fields)), 400)["param"] == param, fields


def test_without_a_secret_there_are_no_webhooks(client: Client) -> None:
    error = refused(client.post(ask("fake/echo", webhook={"url": "https://example.com/"})), 400)
    assert error["param"] == "webhook"
    assert "STREAMSPOOL_WEBHOOK_SECRET" in error["message"]


def test_the_official_client_polls(stack: Stack, scripted: Register) -> None:
    pause = Pause()
    model = scripted([*words(2), pause, *ending()]).model
    with OpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:
        accepted = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hi"}], extra_body={"background": True}
        )
        assert accepted.id.startswith("chatcmpl-")
        assert accepted.status in ("queued", "in_progress")  # type: ignore[attr-defined]
        pause.go()

        def completed() -> Any:
            found: Any = client.chat.completions.retrieve(accepted.id)
            return found.status == "completed" and found

        done = wait_until(completed)
    assert done.choices[0].message.content == "w0 w1 "


# ---- with a webhook


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture(scope="module")
def hooked(
    valkey: EmbeddedValkey,
    upstream: ScriptedUpstream,
    receiver: Receiver,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """A stack that sends webhooks, to loopback too: tenant `a` has a secret, `b` has none."""
    settings = {
        "STREAMSPOOL_API_KEYS": f"a:{KEY_A},b:{KEY_B}",
        "STREAMSPOOL_WEBHOOK_SECRET": f"a:{SECRET}",
        "STREAMSPOOL_WEBHOOK_ALLOW": "127.0.0.1",
        "STREAMSPOOL_WEBHOOK_URL": f"{receiver.url}/servers?{CANARY}",
        "STREAMSPOOL_WEBHOOK_RETRY_S": "0.1",
        "LOG_LEVEL": "debug",
    }
    url = emptied(valkey.url.replace("db=0", "db=10"))
    with Stack(url, upstream.base_url, tmp_path_factory.mktemp("hooked"), **settings) as running:
        yield running


@pytest.fixture(scope="module")
def ann(hooked: Stack) -> Iterator[Client]:
    with Client(hooked.url, KEY_A) as http:
        yield http


def delivered(client: Client, generation_id: str) -> dict[str, object]:
    found: dict[str, object] = wait_until(
        lambda: (state := client.state(generation_id))["webhook"]["status"] == "delivered" and state
    )
    return found


@pytest.mark.parametrize(
    ("status", "model"),
    [
        ("completed", "fake/echo"),
        ("incomplete", "fake/lorem?tokens=9"),
        ("failed", "fake/lorem?cut=1"),
        ("cancelled", "fake/lorem?tokens=10000&rate=1"),
    ],
)
def test_every_end_is_told_as_what_it_is(ann: Client, receiver: Receiver, status: str, model: str) -> None:
    limit: dict[str, Any] = {"max_tokens": 3} if status == "incomplete" else {}
    body = ask(model, background=True, webhook={"url": f"{receiver.url}?{CANARY}"}, **limit)
    generation_id = ann.post(body).json()["id"]
    if status == "cancelled":
        assert ann.state(generation_id)["webhook"]["status"] == "waiting"
        ann.cancel(generation_id)
    state = delivered(ann, generation_id)
    (hook,) = receiver.of(generation_id)
    event = hook.event()
    assert (state["status"], event["type"]) == (status, f"chat.completion.{status}")
    assert (event["object"], event["data"], event["created_at"]) == ("event", {"id": generation_id}, state["ended_at"])
    assert state["webhook"] == {
        "url": receiver.url,
        "status": "delivered",
        "event_id": event["id"],
        "attempts": 1,
        "last_status": 200,
        "error": None,
        "next_attempt_at": None,
    }
    assert hook.path == f"/hook?{CANARY}"


def test_what_is_listed_and_cancelled_shows_it_too(ann: Client, receiver: Receiver) -> None:
    generation_id = ann.post(ask("fake/echo", background=True, webhook={"url": receiver.url})).json()["id"]
    state = delivered(ann, generation_id)
    assert ann.get("/v1/streams", params={"limit": 1}).json()["data"][0]["webhook"] == state["webhook"]
    assert ann.cancel(generation_id).json()["webhook"] == state["webhook"]


def test_one_that_is_watched_is_told_of_too(ann: Client, receiver: Receiver) -> None:
    generation_id = ann.stream("fake/echo", webhook={"url": receiver.url}).headers["x-stream-id"]
    delivered(ann, generation_id)
    assert len(receiver.of(generation_id)) == 1


def test_the_servers_own_address_is_for_the_background(ann: Client, receiver: Receiver) -> None:
    state = ann.post(ask("fake/echo", background=True)).json()
    assert (state["webhook"]["status"], state["webhook"]["url"]) == ("waiting", None)
    delivered(ann, state["id"])
    assert [hook.path for hook in receiver.of(state["id"])] == [f"/hook/servers?{CANARY}"]
    assert ann.state(ann.stream("fake/echo").headers["x-stream-id"])["webhook"] is None


def test_made_twice_it_is_told_once(ann: Client, receiver: Receiver) -> None:
    body = ask("fake/echo", background=True, webhook={"url": receiver.url})
    ids = {ann.post(body, headers={"idempotency-key": "told-once"}).json()["id"] for _ in range(3)}
    (generation_id,) = ids
    delivered(ann, generation_id)
    assert len(receiver.of(generation_id)) == 1


def test_an_event_is_delivered_again_when_that_is_asked_for(
    ann: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation_id = ann.post(ask("fake/echo", background=True, webhook={"url": receiver.url})).json()["id"]
    delivered(ann, generation_id)
    seen = threading.Event()  # the worker may be quicker than the API with its answer
    monkeypatch.setattr(receiver, "answer", lambda _: 200 if seen.wait(30) else 500)
    again = ann.http.post(f"/v1/streams/{generation_id}/redeliver")
    seen.set()
    assert (again.status_code, again.json()["webhook"]["status"]) == (200, "pending")
    wait_until(lambda: len(receiver.of(generation_id)) == 2)
    first, second = receiver.of(generation_id)
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert delivered(ann, generation_id)["webhook"]["attempts"] == 1  # type: ignore[index]


def test_what_was_given_up_is_delivered_when_that_is_asked_for(
    ann: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "answer", lambda _: 410)
    generation_id = ann.post(ask("fake/echo", background=True, webhook={"url": receiver.url})).json()["id"]
    wait_until(lambda: ann.state(generation_id)["webhook"]["status"] == "failed")
    monkeypatch.setattr(receiver, "answer", lambda _: 200)
    assert ann.http.post(f"/v1/streams/{generation_id}/redeliver").status_code == 200
    delivered(ann, generation_id)


def test_where_there_is_no_event_none_is_delivered_again(ann: Client) -> None:
    generation_id = ann.stream("fake/echo").headers["x-stream-id"]
    refused = ann.http.post(f"/v1/streams/{generation_id}/redeliver")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_event")


def test_the_provider_hears_nothing_of_it(ann: Client, receiver: Receiver, scripted: Register) -> None:
    played = scripted([*words(1), *ending()])
    body = ask(played.model, background=True, webhook={"url": receiver.url})
    delivered(ann, ann.post(body).json()["id"])
    assert not {"background", "webhook"} & played.script.calls[0].keys()


def test_who_has_no_secret_is_sent_nothing(hooked: Stack, receiver: Receiver) -> None:
    with Client(hooked.url, KEY_B) as bob:
        refused(bob.post(ask("fake/echo", webhook={"url": receiver.url})), 400)
        generation_id = bob.post(ask("fake/echo", background=True)).json()["id"]
        assert until_ended(bob, generation_id)["webhook"] is None


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/hook",
        "https://169.254.169.254/latest/meta-data",
        "https://[::ffff:10.0.0.1]/",
        "https://localhost/",
        "http://127.0.0.2:80/",
        "https://2130706433/",
        "https://user:password@example.com/",
        "nonsense",
    ],
)
def test_addresses_that_are_none_to_call_are_refused(ann: Client, url: str) -> None:
    error = refused(ann.post(ask("fake/echo", background=True, webhook={"url": url})), 400)
    assert error["param"] == "webhook.url"
    assert url not in error["message"]


def test_no_log_holds_an_addresss_query_or_a_secret(
    hooked: Stack, ann: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[bytes] = set()

    def busy_at_first(hook: Hook) -> int:
        known = hook.body in seen
        seen.add(hook.body)
        return 200 if known else 500

    monkeypatch.setattr(receiver, "answer", busy_at_first)
    body = ask("fake/echo", prompt="canary-prompt", background=True, webhook={"url": f"{receiver.url}?{CANARY}"})
    generation_id = ann.post(body).json()["id"]
    delivered(ann, generation_id)

    def lines() -> list[str]:
        return [line for line in hooked.log("worker").splitlines() if generation_id in line]

    for end in ("api", "worker"):
        log = hooked.log(end)
        assert not [word for word in (CANARY, "canary-prompt", SECRET, SECRET[6:], KEY_A) if word in log], end
    wait_until(lambda: any("webhook delivered" in line for line in lines()), what="the log line")
    events = lines()
    assert [name for name in ("webhook retried", "webhook delivered") if any(name in line for line in events)] == [
        "webhook retried",
        "webhook delivered",
    ]
