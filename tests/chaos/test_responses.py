"""Responses in the background whose processes are killed in the middle: every event comes once, under its number."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import pytest

from tests.harness.processes import wait_until
from tests.harness.upstream import Pause, ScriptedUpstream, ending, whole, words
from tests.support.fleet import Fleet
from tests.support.responses import CODEX, PATH, Event, events, joined, text_of, written_anew

SETTINGS = {"STREAMSPOOL_KEEPALIVE_S": "0.5"}
PROCESSES = ("api", "api-2")
AGAIN_S = 0.02
"""A client's pause before it connects again."""


class Watching:
    """A client that resumes by number, at one API after the other, until it has the last event."""

    def __init__(self, urls: list[str], response_id: str, after: int = -1) -> None:
        self.told: list[Event] = []
        self.cuts = 0
        self._http = httpx.Client(timeout=60, trust_env=False, verify=False)
        self._urls, self.id, self._first = urls, response_id, after + 1
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not (self.told and self.told[-1]["type"] in ("response.completed", "response.failed")):
            url = self._urls[self.cuts % len(self._urls)]
            params = {"stream": "true"}
            if count := self._first + len(self.told):
                params["starting_after"] = str(count - 1)
            body = b""
            try:
                with self._http.stream("GET", f"{url}{PATH}/{self.id}", params=params) as response:
                    for piece in response.iter_raw():
                        body += piece
                        body = self._take(body)
            except httpx.HTTPError:
                pass
            time.sleep(AGAIN_S)
            self.cuts += 1

    def _take(self, body: bytes) -> bytes:
        *found, rest = body.split(b"\n\n")
        for frame in found:
            count = self._first + len(self.told)
            self.told += events(frame + b"\n\n", first=count, ended=False)
        return rest

    def says(self, text: str) -> bool:
        return joined(self.told) == text

    def end(self) -> list[Event]:
        self._thread.join(100)
        assert not self._thread.is_alive(), self.told[-1:]
        self._http.close()
        return self.told


def start(fleet: Fleet, model: str, **fields: Any) -> str:
    body = {"model": f"scripted/{model}", "input": "x", "background": True, **fields}
    answer = fleet.http.post(f"{fleet.url}{PATH}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def found(fleet: Fleet, response_id: str, url: str = "") -> dict[str, Any]:
    value: dict[str, Any] = fleet.http.get(f"{url or fleet.url}{PATH}/{response_id}", timeout=60).json()
    return value


def test_viewers_of_a_killed_api_go_on_at_another_with_the_next_event(fleet: Fleet, upstream: ScriptedUpstream) -> None:
    pause = Pause()
    script = upstream.script("responses-api", [*words(10), pause, *words(30)[11:], *ending()])
    response_id = start(fleet, "responses-api")
    urls = [fleet.url, fleet.at("api-2")]
    viewers = [Watching(urls, response_id) for _ in range(2)]
    wait_until(lambda: all(viewer.says(whole(10)) for viewer in viewers))
    fleet.kill("api")
    pause.go()
    told = [viewer.end() for viewer in viewers]
    assert all(one == told[0] for one in told)
    assert joined(told[0]) == text_of(told[0][-1]["response"]) == whole(30)
    late = Watching(urls[1:], response_id).end()
    assert late == told[0]
    assert found(fleet, response_id, urls[1]) == told[0][-1]["response"]
    assert len(script.calls) == 1


def test_a_turn_that_is_asked_again_after_its_api_was_killed_is_the_same_answer(
    fleet: Fleet, upstream: ScriptedUpstream
) -> None:
    """As Codex asks again: with no id, key or count, and its body written anew."""
    pause = Pause()
    script = upstream.script("responses-turn", [*words(3), pause, *words(6)[4:], *ending()])
    body = {"model": "scripted/responses-turn", "input": "x", "stream": True, "store": False, "client_metadata": CODEX}
    session = {"session-id": "s"}
    told = b""
    with fleet.http.stream("POST", f"{fleet.url}{PATH}", json=body, headers=session, timeout=60) as response:
        pieces = response.iter_raw()
        while b"w2 " not in told:
            told += next(pieces)
        fleet.kill("api")
        with pytest.raises(httpx.HTTPError):
            list(pieces)
    url = fleet.at("api-2")
    again = written_anew(body)
    with fleet.http.stream("POST", f"{url}{PATH}", json=again, headers=session, timeout=60) as response:
        pause.go()
        rest = response.read()
        assert response.headers["idempotent-replayed"] == "true"
    seen = events(told[: told.rindex(b"\n\n") + 2], ended=False)
    assert events(rest)[: len(seen)] == seen
    assert joined(events(rest)) == whole(6)
    assert len(script.calls) == 1


def test_a_killed_worker_never_makes_one_text_of_two(fleet: Fleet, upstream: ScriptedUpstream) -> None:
    """The stream of the first attempt ends as failed; asked for anew, the response is the second one, whole."""
    pause = Pause()
    upstream.script("responses-worker", [*words(5), pause, *words(9)[6:], *ending()])
    response_id = start(fleet, "responses-worker", on_interruption="restart")
    viewer = Watching([fleet.url], response_id)
    wait_until(lambda: viewer.says(whole(5)))
    fleet.kill(fleet.owner(f"chatcmpl-{response_id.removeprefix('resp_')}"))
    pause.go()
    told = viewer.end()
    assert told[-1]["type"] == "response.failed"
    assert joined(told) == whole(5)
    wait_until(lambda: found(fleet, response_id)["status"] == "completed", 60)
    again = Watching([fleet.url], response_id).end()
    assert joined(again) == text_of(found(fleet, response_id)) == whole(9)
    stale = fleet.http.get(f"{fleet.url}{PATH}/{response_id}", params={"stream": "true", "starting_after": "3"})
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "attempt_replaced")
