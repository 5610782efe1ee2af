"""Cancel with proof (F38), and hanging up (F39): who may end an answer, and that the provider hears of it."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import pytest

from tests.harness.processes import wait_until
from tests.harness.upstream import Pause, ScriptedUpstream, ending, whole, words
from tests.support.fleet import Fleet, ask
from tests.support.judge import Judges
from tests.support.names import jobs_left, keys

GRACE_S = 3
SETTINGS = {"STREAMSPOOL_DISCONNECT_GRACE_S": str(GRACE_S)}
"""An API says three times in it that somebody watches: a busy machine may keep it from that for a second."""
PROCESSES = ("api-2",)
RACES = 40
CLOSED_S = 15.0
"""The row says one second; machines of a CI have other things to do."""


def cancel(url: str, generation_id: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/streams/{generation_id}/cancel", timeout=60, trust_env=False)


def but_for_viewers(answer: httpx.Response) -> dict[str, Any]:
    """A state, of which the count of viewers is another a moment later."""
    state: dict[str, Any] = answer.json()
    return {**state, "viewers": 0}


def test_f38_cancelled_from_another_api_the_upstream_is_closed_at_once(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream
) -> None:
    fleet.replace_workers("worker-told", STREAMSPOOL_LEASE_S="100")  # with its next renewal it would see it by itself
    script = upstream.script("f38", [*words(3), Pause(), *ending()])
    openai = judges.post([fleet.url], ask("f38"))
    wait_until(lambda: openai.text == whole(3))
    native = judges.watch([fleet.at("api-2")], openai.id)
    wait_until(lambda: native.text == whole(3))
    answer = cancel(fleet.at("api-2"), openai.id)
    cancelled = time.monotonic()
    wait_until(lambda: script.live == 0, what="the upstream is closed")
    assert time.monotonic() - cancelled < CLOSED_S
    judges.wait()
    for viewer in (openai, native):
        assert (viewer.outcome, viewer.code, viewer.text) == ("failed", "generation_cancelled", whole(3))
    state = answer.json()
    assert (answer.status_code, state["status"], state["usage_source"]) == (200, "cancelled", "estimate")
    assert state["usage"]["completion_tokens"] > 0
    assert fleet.stored(openai.id) == whole(3)
    again = cancel(fleet.url, openai.id)
    assert again.status_code == 200
    assert but_for_viewers(again) == but_for_viewers(cancel(fleet.at("api-2"), openai.id)) == {**state, "viewers": 0}
    assert script.hung_up == 1
    assert len(script.calls) == 1


def test_f38_cancelled_while_it_waits_it_never_calls_the_upstream(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream
) -> None:
    script = upstream.script("f38-queued", [*words(3), *ending()])
    for name in fleet.running():
        fleet.kill(name, signal.SIGSTOP)
    viewer = judges.post([fleet.url], ask("f38-queued"))
    wait_until(lambda: viewer.id)
    answer = cancel(fleet.at("api-2"), viewer.id)
    assert (answer.json()["status"], answer.json()["attempts"]) == ("cancelled", 0)
    for name in fleet.running():
        fleet.kill(name, signal.SIGCONT)
    judges.wait()
    assert (viewer.outcome, viewer.code, viewer.text) == ("failed", "generation_cancelled", "")
    wait_until(lambda: not jobs_left(fleet.client), what="the job is thrown away")
    assert script.calls == []


def test_f38_cancelled_before_the_providers_end_it_keeps_every_word(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream
) -> None:
    """A finish reason may be followed by more of the answer: until the provider's end, it is not one that was whole."""
    script = upstream.script("f38-whole", [*words(3), ending()[0], Pause()])
    viewer = judges.post([fleet.url], ask("f38-whole"))
    wait_until(lambda: viewer.text == whole(3))
    state = cancel(fleet.at("api-2"), viewer.id).json()
    judges.wait()
    assert (state["status"], state["error"]["code"]) == ("cancelled", "generation_cancelled")
    assert (viewer.outcome, viewer.code, viewer.text) == ("failed", "generation_cancelled", whole(3))
    wait_until(lambda: script.live == 0, what="the upstream is closed")


def test_f38_what_is_unknown_or_over_is_not_cancelled(fleet: Fleet, upstream: ScriptedUpstream) -> None:
    upstream.script("f38-over", [*words(2), *ending()])
    generation_id = fleet.submit("f38-over")
    ended = fleet.ended(generation_id)
    assert but_for_viewers(cancel(fleet.url, generation_id)) == {**ended, "viewers": 0}
    assert cancel(fleet.url, f"chatcmpl-{'0' * 32}").status_code == 404
    assert cancel(fleet.url, "nonsense").status_code == 404


def test_f38_cancel_and_finish_race_for_one_end(fleet: Fleet, judges: Judges, upstream: ScriptedUpstream) -> None:
    ends = []
    apis = [httpx.Client(base_url=fleet.at(name), timeout=60, trust_env=False) for name in ("api", "api-2")]
    with ThreadPoolExecutor(2) as pool, apis[0], apis[1]:
        for i in range(RACES):
            go = Pause()
            script = upstream.script("f38-race", [*words(2), go, *words(4)[3:], *ending()])
            generation_id = fleet.submit("f38-race")
            fleet.until_said(generation_id, 3)
            path = f"/v1/streams/{generation_id}/cancel"
            racing = [pool.submit(api.post, path) for api in apis]
            time.sleep(i % 20 / 2000)  # what races, not what is waited for
            go.go()
            answers = [racer.result() for racer in racing]
            viewer = judges.watch([fleet.url], generation_id)
            judges.wait()
            found = fleet.state(generation_id)
            for answer in answers:
                assert (answer.status_code, but_for_viewers(answer)) == (200, {**found, "viewers": 0})
            assert viewer.outcome == ("whole" if found["status"] == "completed" else "failed")
            assert fleet.entries(generation_id).count(f"{2**53 - 1}-0") == 1
            assert viewer.text == fleet.stored(generation_id)
            assert len(script.calls) == 1
            wait_until(lambda script=script: script.live == 0)
            ends.append(found["status"])
    assert set(ends) <= {"completed", "cancelled"}


def test_f38_cancel_and_delete_race_without_a_server_error(fleet: Fleet, upstream: ScriptedUpstream) -> None:
    for i in range(15):
        script = upstream.script(f"f38-delete-{i}", [*words(2), Pause()])
        generation_id = fleet.submit(f"f38-delete-{i}")
        fleet.until_said(generation_id, 3)
        with ThreadPoolExecutor(4) as pool:
            cancels = [pool.submit(cancel, fleet.at(name), generation_id) for name in ("api", "api-2")]
            deletes = [
                pool.submit(fleet.http.delete, f"{fleet.at(name)}/v1/streams/{generation_id}")
                for name in ("api-2", "api")
            ]
            statuses = [answer.result().status_code for answer in (*cancels, *deletes)]
        assert set(statuses) <= {200, 404}
        wait_until(lambda script=script: script.live == 0)
        assert fleet.http.get(f"{fleet.url}/v1/streams/{generation_id}").status_code == 404


def test_f39_hanging_up_is_no_cancel_unless_asked_for(fleet: Fleet, judges: Judges, upstream: ScriptedUpstream) -> None:
    pause = Pause()
    script = upstream.script("f39", [*words(3), pause, *words(9)[4:], *ending()])
    generation_id = fleet.submit("f39")
    fleet.until_said(generation_id, 4)
    pause.go()
    assert fleet.ended(generation_id)["status"] == "completed"
    viewer = judges.watch([fleet.url], generation_id)
    judges.wait()
    assert (viewer.outcome, viewer.text) == ("whole", whole(9))
    assert len(script.calls) == 1


@pytest.mark.parametrize("asked", ["body", "header"])
def test_f39_on_disconnect_cancel_ends_it_after_the_grace_time(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream, asked: str
) -> None:
    script = upstream.script("f39-cancel", [*words(3), Pause(), *ending()])
    fields = {"on_disconnect": "cancel"} if asked == "body" else {}
    headers = {"x-on-disconnect": "cancel"} if asked == "header" else {}
    asked_at = time.monotonic()  # and left soon after
    generation_id = fleet.submit("f39-cancel", headers=headers, **fields)
    found = fleet.ended(generation_id)
    assert time.monotonic() - asked_at > 0.9 * GRACE_S
    assert (found["status"], found["usage_source"]) == ("cancelled", "estimate")
    assert fleet.stored(generation_id) == whole(3)
    wait_until(lambda: script.live == 0)
    late = judges.watch([fleet.url], generation_id)
    judges.wait()
    assert (late.outcome, late.code, late.text) == ("failed", "generation_cancelled", whole(3))


def test_f39_one_viewer_at_any_api_keeps_it_alive(fleet: Fleet, judges: Judges, upstream: ScriptedUpstream) -> None:
    """Three times the grace time passes with a viewer at the other API only; it leaves, and that is the end."""
    pause = Pause()
    script = upstream.script("f39-kept", [*words(3), pause, *ending()])
    body = ask("f39-kept", stream=True, on_disconnect="cancel")
    with fleet.http.stream("POST", f"{fleet.url}/v1/chat/completions", json=body) as first:
        generation_id = first.headers["x-stream-id"]
        path = f"{fleet.at('api-2')}/v1/streams/{generation_id}"
        viewer = fleet.http.send(fleet.http.build_request("GET", path), stream=True)
    with closing(viewer):
        since = time.monotonic()
        for _ in viewer.iter_raw():  # keep-alives, five a second
            assert fleet.state(generation_id)["status"] in ("queued", "in_progress")
            if time.monotonic() - since > 3 * GRACE_S:
                break
        assert script.live == 1
    assert fleet.ended(generation_id)["status"] == "cancelled"
    wait_until(lambda: script.live == 0)


def test_f39_who_comes_in_the_last_moment_of_the_grace_time_is_counted(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream
) -> None:
    pause = Pause()
    upstream.script("f39-late", [*words(3), pause, *words(9)[4:], *ending()])
    body = ask("f39-late", stream=True, on_disconnect="cancel", on_interruption="restart")
    with fleet.http.stream("POST", f"{fleet.url}/v1/chat/completions", json=body) as first:
        generation_id = first.headers["x-stream-id"]
        fleet.until_said(generation_id, 4)
        worker = fleet.owner(generation_id)
        fleet.kill(worker, signal.SIGSTOP)
    fleet.client.delete(keys.viewers(generation_id))  # the grace time is over, and the worker has not acted upon it
    viewer = judges.watch([fleet.at("api-2")], generation_id)
    wait_until(lambda: viewer.text)
    assert fleet.client.pttl(keys.viewers(generation_id)) > 0
    fleet.kill(worker, signal.SIGCONT)
    pause.go()
    judges.wait()
    assert (viewer.outcome, viewer.text) == ("whole", whole(9))


def test_f39_the_kill_of_an_api_is_a_hang_up_of_its_viewers(
    fleet: Fleet, judges: Judges, upstream: ScriptedUpstream
) -> None:
    script = upstream.script("f39-kill", [*words(3), Pause(), *ending()])
    viewer = judges.post([fleet.at("api-2")], ask("f39-kill", on_disconnect="cancel"))
    wait_until(lambda: viewer.text == whole(3))
    fleet.kill("api-2")
    assert fleet.ended(viewer.id)["status"] == "cancelled"
    wait_until(lambda: script.live == 0)
    assert viewer.cut
