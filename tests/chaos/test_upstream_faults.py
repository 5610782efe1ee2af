"""F23 to F31: providers that refuse, stall, break off or talk nonsense, seen from the client's end of the whole chain.

One API, one worker, one Valkey, and a provider that misbehaves on purpose. Beside each fault stands a generation that
began before it and ends after it, on the same worker: it must be whole.
"""

from __future__ import annotations

import gzip
import itertools
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, free_port, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import (
    DONE,
    RESET,
    USAGE,
    Answer,
    Part,
    Pause,
    Script,
    ScriptedUpstream,
    chunk,
    ending,
    refusal,
    words,
)
from tests.support.wire import Client, ask, chunks, end_error, frames, refused, text

GENERATION_S = 12
SETTINGS = {
    "STREAMSPOOL_UPSTREAM_CONNECT_S": "5",
    "STREAMSPOOL_UPSTREAM_FIRST_S": "4",
    "STREAMSPOOL_UPSTREAM_IDLE_S": "4",
    "STREAMSPOOL_GENERATION_S": str(GENERATION_S),
    "STREAMSPOOL_HOLD_HEADERS_S": "100",
}
"""Short, since they are waited for, and long enough for a busy machine to be quicker where nothing is wrong."""
KEY = "provider-key-that-nobody-may-see"
GOOD = Answer([*words(3), *ending()])
BOUND_S = 90.0
"""Generous, because the machine is busy: what is being proven is that there is an end at all."""


@pytest.fixture(scope="module")
def faulty(
    valkey: EmbeddedValkey, provider: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """`scripted/…` is the provider, `nowhere/…` a port where nobody listens, `unnamed/…` a host that is not there."""
    directory = tmp_path_factory.mktemp("faulty")
    stack = Stack(valkey.url.replace("db=0", "db=2"), provider.base_url, directory, **SETTINGS, FAULTY_KEY=KEY)
    with (directory / "streamspool.toml").open("a") as config:
        config.write('api_key_env = "FAULTY_KEY"\n')
        config.write(f'[providers.nowhere]\nbase_url = "http://127.0.0.1:{free_port()}/v1"\n')
        config.write('[providers.unnamed]\nbase_url = "http://nobody.invalid/v1"\n')
    with stack:
        yield stack


@pytest.fixture(scope="module")
def client(faulty: Stack) -> Iterator[Client]:
    with Client(faulty.url) as http:
        yield http


@pytest.fixture(autouse=True)
def others_untouched(client: Client, provider: ScriptedUpstream, faulty: Stack) -> Iterator[None]:
    """A generation that is in mid-answer all through the test, with its own timers running; and no key in any log."""
    enough = threading.Event()

    def ticking() -> Iterator[bytes | float]:
        yield from words(1)
        while not enough.is_set():
            yield 0.1
            yield chunk({"content": "tick "})
        yield from ending()

    plan = provider.plan("bystander", Answer(ticking()))
    started = time.monotonic()
    with client.streaming("scripted/bystander") as viewer:
        viewer.take(3)
        yield
        enough.set()
        viewer.rest()
    said = text(chunks(viewer.body))
    assert re.fullmatch(r"w0 (tick )+", said), said[:100]
    if time.monotonic() - started < GENERATION_S:  # else its own time was over, too
        assert b"error" not in viewer.body
    assert len(plan.calls) == 1
    assert KEY not in faulty.log("worker") + faulty.log("api") + viewer.body.decode()
    wait_until(lambda: provider.live == 0, what="connections to the provider are closed")
    assert faulty.process("worker").poll() is None


@contextmanager
def bounded(longest_s: float = BOUND_S) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < longest_s


def outcome(client: Client, body: bytes, code: str, said: str) -> dict[str, Any]:
    """A stream that failed in the middle: the error is explicit, what came before it is kept, no end is invented."""
    found = frames(body)
    assert end_error(body)["code"] == code
    assert b'"finish_reason":"' not in body
    generation_id = re.search(rb"chatcmpl-[0-9a-f]{32}", body)
    assert generation_id
    state = client.state(generation_id[0].decode())
    assert (state["status"], state["error"]["code"]) == ("failed", code)
    answer = client.get(f"/v1/chat/completions/{state['id']}").json()
    assert answer["choices"][0]["message"]["content"] == said
    assert found[-1] == b"data: [DONE]\n\n"
    return state


# ---- F23, F24: refused before the first chunk


def test_f23_one_429_is_a_delay(client: Client, provider: ScriptedUpstream) -> None:
    plan = provider.plan("limited", refusal(429, "rate_limit", **{"retry-after": "1"}), GOOD)
    response = client.stream("scripted/limited")
    assert text(chunks(response.content)) == "w0 w1 w2 "
    assert len(plan.calls) == 2
    assert plan.calls[1].at - plan.calls[0].at >= 1
    assert client.state(response.headers["x-stream-id"])["attempts"] == 1


@pytest.mark.parametrize("stream", [True, False])
def test_f23_nothing_but_429_is_a_429(client: Client, provider: ScriptedUpstream, stream: bool) -> None:
    plan = provider.plan("limited", refusal(429, "rate_limit", **{"retry-after": "1"}))
    with bounded():
        response = client.post(ask("scripted/limited", stream=stream))
    refused(response, 429, "rate_limit")
    assert response.headers["retry-after"] == "1"
    assert len(plan.calls) == 3


@pytest.mark.parametrize("said", ["1" + "0" * 20, "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_f23_nobody_is_told_to_wait_for_more_than_a_day(client: Client, provider: ScriptedUpstream, said: str) -> None:
    provider.plan("limited", refusal(429, "rate_limit", **{"retry-after": said}))
    response = client.post(ask("scripted/limited"))
    refused(response, 429, "rate_limit")
    assert response.headers["retry-after"] == "86400"


def test_f23_a_long_retry_after_is_the_clients_to_wait_for(client: Client, provider: ScriptedUpstream) -> None:
    plan = provider.plan("limited", refusal(429, "rate_limit", **{"retry-after": "60"}))
    with bounded():
        response = client.post(ask("scripted/limited", stream=True))
    refused(response, 429)
    assert response.headers["retry-after"] == "60"
    assert len(plan.calls) == 1


@pytest.mark.parametrize(
    "answer", [*(refusal(status) for status in (500, 502, 503, 529)), RESET, Answer(status=0), Answer(end="rst")],
    ids=["500", "502", "503", "529", "reset", "no response", "reset after the head"],
)  # fmt: skip
def test_f24_one_failure_is_a_delay(client: Client, provider: ScriptedUpstream, answer: Answer) -> None:
    plan = provider.plan("shaky", answer, GOOD)
    assert text(chunks(client.stream("scripted/shaky").content)) == "w0 w1 w2 "
    assert len(plan.calls) == 2


@pytest.mark.parametrize(("status", "seen"), [(500, 502), (503, 502), (0, 502)])
def test_f24_nothing_but_failures_is_a_502(client: Client, provider: ScriptedUpstream, status: int, seen: int) -> None:
    plan = provider.plan("broken", refusal(status) if status else RESET)
    with bounded():
        refused(
            client.post(ask("scripted/broken", stream=True)), seen, "broken" if status else "upstream_connect_error"
        )
    assert len(plan.calls) == 3


@pytest.mark.parametrize("name", ["nowhere", "unnamed"])
def test_f24_nobody_there(client: Client, name: str) -> None:
    with bounded():
        error = refused(client.post(ask(f"{name}/any", stream=True)), 502, "upstream_connect_error")
    assert "127.0.0.1" not in error["message"]
    assert "invalid" not in error["message"]


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_f24_a_final_refusal_is_not_met_with_another_try(
    client: Client, provider: ScriptedUpstream, status: int
) -> None:
    quoting = refusal(status, f"wrong-{KEY}")
    plan = provider.plan("final", quoting)
    response = client.post(ask("scripted/final", stream=True))
    assert response.status_code == (502 if status in (401, 403) else status)
    assert KEY not in response.text
    assert len(plan.calls) == 1
    assert [call.headers["authorization"] for call in plan.calls] == [f"Bearer {KEY}"]


# ---- F63: connections that were kept for nothing


def test_f63_a_provider_that_closes_without_a_word_costs_nobody_a_try(
    client: Client, provider: ScriptedUpstream
) -> None:
    """After each answer; 300 of them, 30 at a time, so that the next request often meets the close."""
    plan = provider.plan("silent", Answer([*words(3), *ending()], end="silent"))
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: client.post(ask("scripted/silent")), range(300)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["choices"][0]["message"]["content"] for answer in answers} == {"w0 w1 w2 "}
    assert len(plan.calls) == 300
    assert {client.state(answer.headers["x-stream-id"])["retries"] for answer in answers} == {0}


# ---- F25: silence


PING: list[Part] = [b": still here\n\n", 0.1]
PINGS = PING * 300
TIMERS = {
    "before the head": (Answer([100.0], status=0), "upstream_first_timeout", ""),
    "before the first chunk": (Answer(end="hang"), "upstream_first_timeout", ""),
    "comments before the first chunk": (Answer(PINGS), "upstream_first_timeout", ""),
    "in the middle": (Answer(words(2), end="hang"), "upstream_idle_timeout", "w0 w1 "),
    "comments in the middle": (Answer([*words(2), *PINGS]), "upstream_idle_timeout", "w0 w1 "),
    "half an event": (Answer([*words(2), b'data: {"id', 100.0]), "upstream_idle_timeout", "w0 w1 "),
}


@pytest.mark.parametrize("name", TIMERS)
def test_f25_silence_has_an_end_that_names_its_timer(client: Client, provider: ScriptedUpstream, name: str) -> None:
    answer, code, said = TIMERS[name]
    plan = provider.plan("silent", answer)
    with bounded():
        response = client.post(ask("scripted/silent", stream=True))
        wait_until(lambda: plan.live == 0, what="the connection is closed")
    if said:
        outcome(client, response.content, code, said)
    else:
        refused(response, 504, code)
    assert (len(plan.calls), plan.hung_up) == (1, 1)


def test_f25_an_answer_that_goes_on_for_ever_ends(client: Client, provider: ScriptedUpstream) -> None:
    plan = provider.plan("endless", Answer(itertools.cycle([*words(1), 0.3])))
    with bounded():
        response = client.post(ask("scripted/endless", stream=True))
    assert end_error(response.content)["code"] == "generation_timeout"
    wait_until(lambda: plan.hung_up == 1)
    assert len(plan.calls) == 1


# ---- F26, F27, F28: broken off, reported, nonsense


HALF = words(2)
BROKEN = {
    "f26 eof": (Answer(HALF, end="eof"), "upstream_incomplete"),
    "f26 chunked, cut": (Answer(HALF, end="cut"), "upstream_incomplete"),
    "f26 cut in an event": (Answer([*HALF, b'data: {"choices": [{"ind'], end="cut"), "upstream_incomplete"),
    "f26 rst": (Answer(HALF, end="rst"), "upstream_incomplete"),
    "f26 a clean end": (Answer(HALF), "upstream_incomplete"),
    "f27 error": (
        Answer([*HALF, b'data: {"error": {"message": "the machine is on fire", "code": "fire"}}\n\n', DONE]),
        "fire",
    ),
    "f27 named": (
        Answer([*HALF, b'event: error\ndata: {"error": {"message": "the machine is on fire", "code": "fire"}}\n\n']),
        "fire",
    ),
    "f28 bad json": (Answer([*HALF, b'data: {"choices": [\n\n', *ending()]), "upstream_invalid"),
    "f28 bad utf-8": (
        Answer([*HALF, b'data: {"choices":[{"index":0,"delta":{"content":"\xc3\x28"}}]}\n\n', *ending()]),
        "upstream_invalid",
    ),
    "f28 not an object": (Answer([*HALF, b'data: "text"\n\n', *ending()]), "upstream_invalid"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_f26_f27_f28_broken_in_the_middle(client: Client, provider: ScriptedUpstream, name: str) -> None:
    answer, code = BROKEN[name]
    plan = provider.plan("broken", answer)
    with bounded():
        response = client.post(ask("scripted/broken", stream=True))
    outcome(client, response.content, code, "w0 w1 ")
    assert b"\xc3\x28" not in response.content
    assert len(plan.calls) == 1


def test_f26_done_without_a_finish_reason_is_an_end_with_stop(client: Client, provider: ScriptedUpstream) -> None:
    plan = provider.plan("unfinished", Answer([*words(2), DONE]))
    response = client.stream("scripted/unfinished")
    found = chunks(response.content)
    assert text(found) == "w0 w1 "
    assert [choice["finish_reason"] for one in found for choice in one["choices"]] == [None, None, None, "stop"]
    state = client.state(response.headers["x-stream-id"])
    assert (state["status"], state["finish_reasons"]) == ("completed", ["stop"])
    assert len(plan.calls) == 1


def test_f26_a_cut_with_restart_is_another_attempt(client: Client, provider: ScriptedUpstream) -> None:
    """Opt-in: a client that knows attempts is told to clear, then reads the second one only."""
    pause = Pause()
    plan = provider.plan("twice", Answer([*words(2), pause], end="cut"), Answer([*words(3), *ending()]))
    with client.streaming("scripted/twice", on_interruption="restart") as first:
        with client.watching(first.id) as viewer:
            viewer.take(3)
            pause.go()
            rest = viewer.rest()
        assert end_error(first.rest())["code"] == "generation_interrupted"
    marker, *second = frames(rest)
    assert marker == b'id: 2-0\nevent: attempt\ndata: {"attempt":2}\n\n'
    assert text(chunks(b"".join(second))) == "w0 w1 w2 "
    assert text(chunks(client.whole(first.id))) == "w0 w1 w2 "
    assert len(plan.calls) == 2


def test_f28_a_web_page_is_a_502(client: Client, provider: ScriptedUpstream) -> None:
    page = Answer([b"<html>internal page</html>"], headers={"content-type": "text/html"})
    plan = provider.plan("page", page)
    error = refused(client.post(ask("scripted/page", stream=True)), 502, "upstream_invalid")
    assert "internal" not in error["message"]
    assert len(plan.calls) == 1


# ---- F29: too much


def peak_mb(stack: Stack) -> float:
    """The most memory the worker ever held."""
    status = Path(f"/proc/{stack.process('worker').pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


def _flood(first: bytes, count: int) -> Answer:
    return Answer(itertools.chain(words(2), [first], itertools.repeat(b"x" * 65536, count), [b"\n\n"], ending()))


def _bomb() -> Answer:
    headers = {"content-type": "text/event-stream", "content-encoding": "gzip"}
    return Answer([gzip.compress(bytes(100_000_000), 1)], headers=headers)


@pytest.mark.parametrize(
    ("first", "count"),
    [
        pytest.param(b'data: {"choices":[{"index":0,"delta":{"content":"', 640, id="a chunk of 40 MB"),
        pytest.param(b": a comment", 2048, id="a line without end"),
    ],
)
def test_f29_what_is_too_large_is_not_read_to_its_end(
    client: Client, provider: ScriptedUpstream, faulty: Stack, first: bytes, count: int
) -> None:
    before = peak_mb(faulty)
    plan = provider.plan("huge", _flood(first, count))
    response = client.post(ask("scripted/huge", stream=True))
    outcome(client, response.content, "upstream_chunk_too_large", "w0 w1 ")
    assert peak_mb(faulty) - before < 64
    wait_until(lambda: plan.live == 0)
    assert len(plan.calls) == 1


def test_f29_a_gzip_bomb_is_opened_as_far_as_an_event_may_be(
    client: Client, provider: ScriptedUpstream, faulty: Stack
) -> None:
    before = peak_mb(faulty)
    plan = provider.plan("bomb", _bomb())
    refused(client.post(ask("scripted/bomb", stream=True)), 502, "upstream_chunk_too_large")
    assert peak_mb(faulty) - before < 64
    assert len(plan.calls) == 1


def test_f29_an_error_without_end(client: Client, provider: ScriptedUpstream, faulty: Stack) -> None:
    before = peak_mb(faulty)
    headers = {"content-type": "application/json"}
    provider.plan("long", by=lambda _: Answer(itertools.repeat(b"x" * 65536, 2048), 400, headers))
    assert len(client.post(ask("scripted/long", stream=True)).content) < 10_000
    assert peak_mb(faulty) - before < 64


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_f29_a_redirect_is_not_followed(client: Client, provider: ScriptedUpstream, status: int) -> None:
    elsewhere = provider.plan("elsewhere", GOOD)
    plan = provider.plan("moved", Answer(status=status, headers={"location": f"{provider.base_url}/chat/completions"}))
    refused(client.post(ask("scripted/moved", stream=True)), 502, "upstream_redirect")
    assert (len(plan.calls), len(elsewhere.calls)) == (1, 0)


# ---- F30, F31: odd, and legal


def _say(content: str) -> bytes:
    return chunk({"content": content})


def _bytes(parts: list[bytes], ending_: bytes = b"\n") -> list[bytes]:
    return [bytes([byte]) for byte in b"".join(parts).replace(b"\n", ending_)]


_UTF8 = 'data: {"choices":[{"index":0,"delta":{"content":"é🙂"}}]}\n\n'.encode()
ODD: dict[str, tuple[list[bytes], str]] = {
    "u2028": ([_say("a\u2028b\u2029c\u0085d\x0b"), *ending()], "a\u2028b\u2029c\u0085d\x0b"),
    "raw u2028": (
        ['data: {"choices":[{"index":0,"delta":{"content":"a\u2028b\u0085"}}]}\n\n'.encode(), *ending()],
        "a\u2028b\u0085",
    ),
    "split utf-8": ([*(bytes([byte]) for byte in _UTF8), *ending()], "é🙂"),
    "surrogates": (
        [b'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d\\ude42"}}]}\n\n', *ending()],
        "🙂",
    ),
    "comments": ([b": hi\n\n", *words(1), b":\n:\n\n", b": ping\n", *ending()], "w0 "),
    "id and retry lines": ([b"id: 77\nretry: 1\n" + words(1)[0], b"id: \x00\n" + words(1)[1], *ending()], "w0 "),
    "many data lines": ([b'data: {"choices":\ndata: [{"index":0,"delta":{"content":"m"}}]}\n\n', *ending()], "m"),
    "CR": ([part.replace(b"\n", b"\r") for part in [*words(2), *ending()]], "w0 w1 "),
    "CRLF": ([part.replace(b"\n", b"\r\n") for part in [*words(2), *ending()]], "w0 w1 "),
    "one byte a packet": (_bytes([*words(2), *ending()], b"\r\n"), "w0 w1 "),
    "no space after the colon": ([part.replace(b"data: ", b"data:") for part in [*words(2), *ending()]], "w0 w1 "),
    "a byte order mark": ([b"\xef\xbb\xbf" + words(2)[0], *words(2)[1:], *ending()], "w0 w1 "),
    "f31 after done": ([*words(2), *ending(), _say("ghost"), DONE], "w0 w1 "),
    "f31 done twice": ([*words(2), *ending(), DONE, DONE], "w0 w1 "),
    "f31 finish twice": ([*words(2), chunk({}, "stop"), chunk({}, "stop"), USAGE, DONE], "w0 w1 "),
}


@pytest.mark.parametrize("name", ODD)
def test_f30_f31_odd_and_legal(client: Client, provider: ScriptedUpstream, name: str) -> None:
    parts, said = ODD[name]
    plan: Script = provider.plan("odd", Answer(parts))
    response = client.stream("scripted/odd", ids=True)
    found = chunks(response.content)
    assert text(found) == said
    assert found[-1]["choices"][0]["finish_reason"] == "stop"
    assert response.content.count(b"[DONE]") == 1
    for leak in (b"id: 77", b"retry:", b"ping", b"ghost", b": hi"):
        assert leak not in response.content
    assert response.content == client.whole(response.headers["x-stream-id"])
    answer = client.get(f"/v1/chat/completions/{response.headers['x-stream-id']}").json()
    assert answer["choices"][0]["message"]["content"] == said
    assert len(plan.calls) == 1


def test_f30_unknown_fields_and_a_half_emoji_arrive_as_they_were(client: Client, provider: ScriptedUpstream) -> None:
    raw = b'{"choices":[{"index":0,"delta":{"content":"\\ud83d","extra":{"deep":[1,null]}},"finish_reason":null}],"x_new":1}'
    provider.plan("odd", Answer([b"data: " + raw + b"\n\n", *ending()]))
    body = client.stream("scripted/odd").content
    assert b'"content":"\\ud83d"' in body
    assert b'"extra":{"deep":[1,null]}' in body
    assert b'"x_new":1' in body


def test_no_log_of_a_fault_lives_for_ever(faulty: Stack) -> None:
    with open_store(faulty.redis_url) as store:
        assert all(store.ttl(key) != -1 for key in store.scan_iter("streamspool:{*"))
