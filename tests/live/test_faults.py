"""A real model server that is hung up on, killed, and left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx

from shared.config.providers import BASE_URL_VARIABLE, NAME
from tests.live.conftest import Live
from tests.support.up import WAIT_S, demo, until
from tests.support.wire import ask, chunks, end_error, frames, payload, text

LONG = {"max_tokens": 1500, "ignore_eos": True}
QUESTION = "Tell me a long story."


def test_a_cancel_hangs_up_on_the_model_and_keeps_what_it_said(live: Live) -> None:
    live.wait_idle()
    with live.client.streaming(NAME, QUESTION, **LONG) as viewer:
        viewer.take(5)
        assert live.busy() == 1
        assert live.client.cancel(viewer.id).status_code == 200
        viewer.rest()
    live.wait_idle()
    assert live.client.state(viewer.id)["status"] == "cancelled"
    assert text([payload(frame) for frame in frames(viewer.body)[:-2]])


def test_a_model_server_killed_in_mid_stream_is_an_error_and_the_next_answers(live: Live) -> None:
    live.wait_idle()
    before, address = live.pid(), live.address()
    assert before
    with live.client.streaming(NAME, QUESTION, **LONG) as viewer:
        viewer.take(8)
        os.kill(before, signal.SIGKILL)
        viewer.rest()
    assert end_error(viewer.body)["code"].startswith("upstream_")
    said = text([payload(frame) for frame in frames(viewer.body)[:-2]])
    state = live.client.state(viewer.id)
    assert (state["status"], state["attempts"]) == ("failed", 1)
    kept = live.client.get(f"/v1/chat/completions/{viewer.id}").json()
    assert kept["choices"][0]["message"]["content"] == said != ""

    until(lambda: live.server("/health") == {"status": "ok"})
    assert live.pid() != before
    assert live.address() == address, "the workers were told once where it answers"
    assert chunks(live.client.stream(NAME, QUESTION, max_tokens=3).content)


def test_nobody_without_the_key_is_answered_by_the_model(live: Live) -> None:
    base = live.address()[BASE_URL_VARIABLE]
    for headers in ({}, {"authorization": "Bearer any", "origin": "http://example.com"}):
        response = httpx.post(f"{base}/chat/completions", json=ask("any"), headers=headers, trust_env=False, timeout=60)
        assert response.status_code == 401
        assert response.headers.get("access-control-allow-origin", "") == ""


def test_ctrl_c_lets_a_running_answer_finish_before_the_model_goes(start: Callable[[], Live]) -> None:
    live = start()
    with live.client, live.client.streaming(NAME, QUESTION, max_tokens=60, ignore_eos=True) as viewer:
        viewer.take(5)
        live.up.process.send_signal(signal.SIGINT)
        viewer.rest()
    found = chunks(viewer.body)
    assert found[-1]["choices"][0]["finish_reason"] == "length"
    assert live.up.process.wait(WAIT_S) == 0
    assert live.up.left() == []


def test_the_supervisor_killed_leaves_no_model_behind(start: Callable[[], Live]) -> None:
    live = start()
    with live.client, live.client.streaming(NAME, QUESTION, **LONG) as viewer:
        viewer.take(5)
        live.up.process.kill()
        live.up.process.wait(WAIT_S)
        until(lambda: live.up.left() == [])


def test_the_demo_convinces_with_a_real_model_and_leaves_nothing(start: object, tmp_path: Path) -> None:
    assert NAME in demo(tmp_path, "--local")
