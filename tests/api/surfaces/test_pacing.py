"""Pacing on the wire: `max_tokens_per_s`, in the body, as a header and as a setting."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import Pause, ending, words
from tests.support.wire import (
    DONE_FRAME,
    KEEPALIVE,
    Client,
    Register,
    ask,
    chunks,
    end_error,
    frames,
    payload,
    refused,
    text,
)

SLOWLY = 0.001
"""One token in 1000 s: after the first chunk, nothing comes while a test runs but keep-alives."""
FIRST = b"\n\n"
"""The end of that chunk's frame; keep-alives may come before it, too."""


def whole(client: Client, generation_id: str) -> dict[str, Any]:
    """The answer as one object, once it is there."""
    wait_until(lambda: client.state(generation_id)["status"] == "completed")
    answer: dict[str, Any] = client.get(f"/v1/chat/completions/{generation_id}").json()
    return answer


def test_the_log_is_whole_while_viewers_wait(alice: Client, scripted: Register) -> None:
    model = scripted([*words(5), *ending()]).model
    with alice.streaming(model, max_tokens_per_s=SLOWLY) as viewer:
        assert whole(alice, viewer.id)["choices"][0]["message"]["content"] == "w0 w1 w2 w3 w4 "
        viewer.until(FIRST + KEEPALIVE * 3)
        assert viewer.body.count(b"data:") == 1
        view = f"/v1/chat/completions/{viewer.id}"
        with alice.watching(viewer.id) as native, alice.view("GET", view, params={"stream": "true"}) as chat:
            for late in (native, chat):
                late.until(FIRST + KEEPALIVE * 3)
                assert late.body.count(b"data:") == 1
        with alice.watching(viewer.id, headers={"last-event-id": "1-3"}) as resumed:
            resumed.until(KEEPALIVE)
            assert [payload(frame)["choices"][0]["delta"]["content"] for frame in resumed.take(1)] == ["w2 "]
    wait_until(lambda: alice.state(viewer.id)["viewers"] == 0)


def test_whole_answers_are_not_paced(client: Client) -> None:
    answer = client.post(ask("fake/lorem?tokens=20", max_tokens_per_s=SLOWLY)).json()
    assert answer["usage"]["completion_tokens"] == 20


@pytest.mark.parametrize("rate", [10_000, 5000.5])
def test_a_pace_changes_nothing_but_the_time(client: Client, scripted: Register, rate: float) -> None:
    model = scripted([*words(50), *ending()]).model
    paced = client.stream(model, ids=True, max_tokens_per_s=rate)
    free = client.stream(model, ids=True)
    bare = [paced.content.replace(paced.headers["x-stream-id"].encode(), b"ID"), free.content]
    assert bare[0].count(b"id: 1-") == 52
    assert [text(chunks(body)) for body in bare] == ["".join(f"w{i} " for i in range(50))] * 2


def test_a_cancel_does_not_wait_for_the_pace(client: Client, scripted: Register) -> None:
    model = scripted([*words(5), Pause(), *ending()]).model
    with client.streaming(model, max_tokens_per_s=SLOWLY) as viewer:
        viewer.take(1)
        wait_until(lambda: client.state(viewer.id)["position"] == "1-6")
        assert viewer.body.count(b"data:") == 1
        client.cancel(viewer.id)
        rest = viewer.rest()
    assert end_error(rest)["code"] == "generation_cancelled"
    assert len(frames(rest)) == 5 + 2


def test_as_a_header(alice: Client, scripted: Register) -> None:
    model = scripted([*words(5), *ending()]).model
    body = ask(model, stream=True)
    with alice.view("POST", "/v1/chat/completions", json=body, headers={"x-max-tokens-per-s": "1e-3"}) as viewer:
        viewer.until(FIRST + KEEPALIVE)
        whole(alice, viewer.id)
        assert viewer.body.count(b"data:") == 1
    free = alice.post({**body, "max_tokens_per_s": 10_000}, headers={"x-max-tokens-per-s": "0.001"})
    assert free.content.endswith(DONE_FRAME)


@pytest.mark.parametrize("value", ["", "fast", "0", "-1", "10001", "NaN", "Infinity", "true", "[1]", '"5"'])
def test_a_header_that_is_no_pace_is_refused(client: Client, value: str) -> None:
    error = refused(client.post(ask("fake/echo"), headers={"x-max-tokens-per-s": value}), 400)
    assert error["param"] == "max_tokens_per_s"


def test_as_a_setting(own_stack: Stack, scripted: Register) -> None:
    model = scripted([*words(5), *ending()]).model
    own_stack.kill("api")
    own_stack.start("api", STREAMSPOOL_MAX_TOKENS_PER_S=str(SLOWLY), STREAMSPOOL_KEEPALIVE_S="0.1")
    own_stack.wait_ready()
    with Client(own_stack.url) as client:
        with client.streaming(model) as viewer:
            whole(client, viewer.id)
            viewer.until(FIRST + KEEPALIVE * 2)
            assert viewer.body.count(b"data:") == 1
        assert client.stream(model, max_tokens_per_s=10_000).content.endswith(DONE_FRAME)
