"""Idempotency-Key: one request is one generation, however often, wherever and at what moment it is sent (F37)."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.harness.processes import wait_until
from tests.harness.upstream import Pause, ScriptedUpstream, ending, whole, words
from tests.support.fleet import Fleet, ask
from tests.support.judge import Judges
from tests.support.names import keys
from tests.support.wire import KEY_A, KEY_B, refused

SETTINGS = {"STREAMSPOOL_API_KEYS": f"a:{KEY_A},b:{KEY_B}"}
PROCESSES = ("api-2",)
API_KEY = KEY_A
TIMES = 20


@pytest.fixture
def key() -> dict[str, str]:
    return {"idempotency-key": uuid.uuid4().hex}


def post(url: str, body: object, headers: dict[str, str], api_key: str = KEY_A) -> httpx.Response:
    wanted = {"authorization": f"Bearer {api_key}", **headers}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=wanted, timeout=60, trust_env=False)


def test_f37_twenty_at_once_on_two_apis_are_one_generation(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream, key: dict[str, str]
) -> None:
    pause = Pause()
    script = upstream.script("f37", [*words(3), pause, *words(9)[4:], *ending()])
    urls = [fleet.at(name) for name in ("api", "api-2")]
    viewers = [judges.post([urls[i % 2]], ask("f37"), headers=key) for i in range(TIMES)]
    wait_until(lambda: all(viewer.text == whole(3) for viewer in viewers))
    pause.go()
    judges.wait()
    assert [(viewer.outcome, viewer.text) for viewer in viewers] == [("whole", whole(9))] * TIMES
    assert len({viewer.id for viewer in viewers}) == 1
    assert sum("idempotent-replayed" not in viewer.headers for viewer in viewers) == 1
    again = judges.post([urls[1]], ask("f37"), headers=key)
    judges.wait()
    assert (again.outcome, again.text, again.id) == ("whole", whole(9), viewers[0].id)
    assert again.headers["idempotent-replayed"] == "true"
    assert len(script.calls) == 1


def test_f37_whole_answers_too(fleet: Fleet, upstream: ScriptedUpstream, key: dict[str, str]) -> None:
    script = upstream.script("f37-json", [*words(4), *ending()])
    urls = [fleet.at(name) for name in ("api", "api-2")]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda i: post(urls[i % 2], ask("f37-json"), key), range(6)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].json()["choices"][0]["message"]["content"] == whole(4)
    assert len(script.calls) == 1


def test_f37_another_body_is_refused_and_another_tenant_is_another_key(
    fleet: Fleet, upstream: ScriptedUpstream, key: dict[str, str]
) -> None:
    script = upstream.script("f37-body", [*words(2), *ending()])
    first = post(fleet.url, ask("f37-body"), key)
    refused(post(fleet.at("api-2"), ask("f37-body", temperature=1), key), 422, "idempotency_key_reused")
    refused(post(fleet.url, ask("f37-body"), {**key, "x-on-interruption": "restart"}), 422, "idempotency_key_reused")
    reordered = dict(reversed(ask("f37-body").items()))
    assert post(fleet.url, reordered, key).content == first.content
    theirs = post(fleet.url, ask("f37-body"), key, KEY_B)
    assert theirs.status_code == 200
    assert theirs.headers["x-stream-id"] != first.headers["x-stream-id"]
    assert "idempotent-replayed" not in theirs.headers
    assert len(script.calls) == 2


def test_f37_after_the_api_was_killed_the_other_one_knows_the_key(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream, key: dict[str, str]
) -> None:
    pause = Pause()
    script = upstream.script("f37-kill", [*words(3), pause, *words(9)[4:], *ending()])
    lost = judges.post([fleet.url], ask("f37-kill"), headers=key)
    wait_until(lambda: lost.text == whole(3))
    fleet.kill("api")
    again = judges.post([fleet.at("api-2")], ask("f37-kill"), headers=key)
    wait_until(lambda: again.text == whole(3))
    pause.go()
    judges.wait()
    assert lost.cut
    assert (again.outcome, again.text, again.id) == ("whole", whole(9), lost.id)
    assert len(script.calls) == 1


def test_f37_a_key_that_was_claimed_but_never_used_is_no_dead_end(
    fleet: Fleet, upstream: ScriptedUpstream, key: dict[str, str]
) -> None:
    """The API died right after it took the key: the next try makes the generation that was promised."""
    script = upstream.script("f37-claim", [*words(2), *ending()])
    first = post(fleet.url, ask("f37-claim"), key)
    (name,) = [
        found
        for found in fleet.client.scan_iter(keys.idempotency("a", "*"))
        if json.loads(fleet.client.get(found) or b"{}").get("id") == first.headers["x-stream-id"]
    ]
    fleet.client.delete(keys.log(first.headers["x-stream-id"]))
    again = post(fleet.at("api-2"), ask("f37-claim"), key)
    assert again.json()["choices"][0]["message"]["content"] == whole(2)
    assert again.headers["x-stream-id"] == first.headers["x-stream-id"]
    assert "idempotent-replayed" not in again.headers
    assert len(script.calls) == 2
    assert fleet.client.ttl(name) > 86_400


def test_f37_a_deleted_generation_frees_its_key(fleet: Fleet, upstream: ScriptedUpstream, key: dict[str, str]) -> None:
    script = upstream.script("f37-delete", [*words(2), *ending()])
    first = post(fleet.url, ask("f37-delete"), key)
    found = f"{fleet.url}/v1/streams/{first.headers['x-stream-id']}"
    assert fleet.http.delete(found, headers={"authorization": f"Bearer {KEY_A}"}).status_code == 200
    second = post(fleet.url, ask("f37-delete"), key)
    assert second.headers["x-stream-id"] != first.headers["x-stream-id"]
    assert len(script.calls) == 2
