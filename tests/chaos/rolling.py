"""What clients of `up --apis N` see while its API processes are replaced: viewers who come back, and requests all the time.

Hidden here: whom a replacement may hurt, and what counts as hurt. A viewer is cut, as docs/STREAMING.md says, and comes back
with its last id: refused is who is not let in then. A request is asked once, by an unchanged client: on a connection of its
own, or on one that is kept. Refused is every one that does not get its whole answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.harness.processes import free_port, wait_until
from tests.harness.shown import Shown
from tests.support.up import WAIT_S, Up, starting
from tests.support.wire_async import JSON, Cut, Stream, call, follow

APIS = 3
WORDS = {"model": "fake/echo", "messages": [{"role": "user", "content": "one two three"}]}


class Posts:
    """Requests at a steady rate, every other one streamed, every third on a connection of its own."""

    def __init__(self, port: int, rate: float) -> None:
        self._port, self._pause_s = port, 1 / rate
        self.sent = 0
        self.refused: Counter[str] = Counter()
        self.longest_s = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop, and all are answered."""
        due = time.monotonic()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with (
            httpx.AsyncClient(trust_env=False, timeout=WAIT_S, limits=limits) as kept,
            asyncio.TaskGroup() as tasks,
        ):
            while not stop.is_set():
                tasks.create_task(self._ask(kept, self.sent))
                self.sent += 1
                due += self._pause_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _ask(self, kept: httpx.AsyncClient, number: int) -> None:
        began = time.monotonic()
        body = {**WORDS, "stream": bool(number % 2)}
        try:
            wrong = await (self._alone(body) if number % 3 == 0 else self._kept(kept, body))
        except (OSError, httpx.TransportError) as error:
            wrong = type(error).__name__
        if wrong:
            self.refused[wrong] += 1
        self.longest_s = max(self.longest_s, time.monotonic() - began)

    async def _alone(self, body: dict[str, Any]) -> str:
        content = json.dumps(body).encode()
        async with await Stream.open(self._port, "POST", "/v1/chat/completions", headers=JSON, body=content) as stream:
            return _wrong(stream.status, await stream.body(), streamed=body["stream"])

    async def _kept(self, kept: httpx.AsyncClient, body: dict[str, Any]) -> str:
        response = await kept.post(f"http://127.0.0.1:{self._port}/v1/chat/completions", json=body)
        return _wrong(response.status_code, response.content, streamed=body["stream"])


def _wrong(status: int, body: bytes, *, streamed: bool) -> str:
    if status != 200:
        return f"HTTP {status}"
    if streamed:
        return "" if body.endswith(b"data: [DONE]\n\n") and b'"error"' not in body else "no end"
    return "" if json.loads(body)["choices"][0]["finish_reason"] else "no end"


class Audience:
    """Viewers of some answers: half of the log's own view, half of OpenAI's with ids."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.refused: Counter[str] = Counter()
        self.shown: list[tuple[str, Shown]] = []

    async def ask(self, tokens: int, rate: int) -> str:
        """Starts an answer, and leaves it; its id."""
        body = {**WORDS, "model": f"fake/lorem?tokens={tokens}&rate={rate}", "stream": True}
        content = json.dumps(body).encode()
        async with await Stream.open(self._port, "POST", "/v1/chat/completions", headers=JSON, body=content) as stream:
            assert stream.status == 200, await stream.body()
            return stream.headers["x-stream-id"]

    async def watch(self, generation_id: str) -> None:
        """One viewer, to the end."""
        native = len(self.shown) % 2 == 0
        view = f"/v1/streams/{generation_id}" if native else f"/v1/chat/completions/{generation_id}?stream=true"
        shown = Shown(native)
        self.shown.append((generation_id, shown))
        while not shown.ended:
            asked = {"x-stream-ids": "1", **({"last-event-id": shown.last_id} if shown.last_id else {})}
            try:
                opened = await Stream.open(self._port, "GET", view, headers=asked)
            except OSError as error:
                self.refused[type(error.__cause__ or error).__name__] += 1
                continue
            async with opened as stream:
                if stream.status != 200:
                    self.refused[f"HTTP {stream.status}"] += 1
                    return
                try:
                    await follow(shown, stream)
                except Cut:
                    shown.resumes += 1

    async def judge(self) -> list[str]:
        """What is wrong with what they were shown: nothing, where all are whole."""
        found, answers = [], {}
        for generation_id, shown in self.shown:
            if generation_id not in answers:
                status, whole = await call(self._port, "GET", f"/v1/chat/completions/{generation_id}")
                assert status == 200, whole
                answers[generation_id] = whole["choices"][0]["message"]["content"]
            found += shown.wrong
            if not shown.ended or shown.error or shown.text != answers[generation_id]:
                found.append(f"{generation_id}: {len(shown.text)} of {len(answers[generation_id])}, {shown.error}")
        return found


@contextmanager
def several(directory: Path, apis: int = APIS, **settings: str) -> Iterator[tuple[Up, int]]:
    """`up` with so many APIs, and the first of the ports at which each of them answers alone."""
    own = free_port(apis)
    with starting(directory, STREAMSPOOL_API_METRICS_PORT=str(own), **settings) as start:
        one = start("--apis", str(apis))
        one.wait_ready()
        for port in range(own, own + apis):
            wait_until(lambda port=port: _serves(port), WAIT_S, "each API serves")
        yield one, own


def _serves(port: int) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False, timeout=WAIT_S).status_code == 200
    return False


def viewers_of_each(own: int, apis: int = APIS) -> list[int]:
    """How many each API process has, by its own metrics."""
    found = []
    for port in range(own, own + apis):
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=WAIT_S).text
        found.append(int(float(text.partition("\nstreamspool_viewers ")[2].split()[0])))
    return found


async def soon(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(3 * WAIT_S):
        while not (found := await asyncio.to_thread(condition)):  # noqa: ASYNC110 - others are looked at
            await asyncio.sleep(0.05)
        return found


async def roll(one: Up, own: int, *, viewers: int, answers: int, rate: float, tokens: int) -> dict[str, Any]:
    """All API processes are replaced under viewers and requests; what everybody saw."""
    port = int(one.url.rpartition(":")[2])
    audience, posts, stop = Audience(port), Posts(port, rate), asyncio.Event()
    before = one.all("api")
    assert len(before) == APIS
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(posts.run(stop))
        ids = [await audience.ask(tokens, 20) for _ in range(answers)]
        for number in range(viewers):
            tasks.create_task(audience.watch(ids[number % answers]))
        spread = await soon(lambda: sum(found := viewers_of_each(own)) == viewers and found)
        began = time.monotonic()
        os.kill(one.process.pid, signal.SIGHUP)
        await soon(lambda: len(now := one.all("api")) == APIS and not now & before)
        replaced_s = time.monotonic() - began
        watching = sum(not shown.ended for _, shown in audience.shown)
        stop.set()
    return {
        "viewers": viewers,
        "watching_at_the_end": watching,
        "resumes": sum(shown.resumes for _, shown in audience.shown),
        "viewers_refused": dict(audience.refused),
        "viewers_not_whole": await audience.judge(),
        "longest_gap_s": round(max(shown.max_gap_s for _, shown in audience.shown), 2),
        "posts": posts.sent,
        "posts_refused": dict(posts.refused),
        "longest_post_s": round(posts.longest_s, 2),
        "viewers_of_each": spread,
        "replaced_s": round(replaced_s, 1),
    }
