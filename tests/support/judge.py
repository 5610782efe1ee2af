"""A viewer that judges what it is shown: the answer is whole, it failed and said so, or it was damaged in silence.

Hidden here: bytes to frames, and coming back with the last id after every drop (to the next server of the list).

Judges run on a loop of their own, so a test may kill things while they watch.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from tests.harness.loopback import LoopThread
from tests.harness.shown import Shown

_RETRY_S = 0.05


@dataclass
class Verdict(Shown):
    """What one viewer was shown, kept up to date while it watches. Times are of the monotonic clock."""

    id: str = ""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """The connection broke, and this viewer does not come back."""
    connects: int = 0
    back_at: float = 0.0
    watching: Future[None] | None = None

    @property
    def outcome(self) -> str:
        """`whole`, `failed` (and said so), or `damaged`, which must never be."""
        if self.wrong or not (self.ended or self.cut):
            return "damaged"
        if self.error is not None or self.cut:
            # A cancel may come between the last word and the end: all is there, and it says what happened.
            return "damaged" if self.finish and self.code != "generation_cancelled" else "failed"
        words = self.text.split()
        whole = bool(self.finish) and words == [f"w{i}" for i in range(len(words))]
        return "whole" if whole else "damaged"

    def end(self, timeout_s: float = 100.0) -> Self:
        """Waits until this viewer has seen its end."""
        assert self.watching is not None
        self.watching.result(timeout_s)
        return self


class Judges(LoopThread):
    """Starts viewers and hands out their verdicts; a context manager."""

    def __init__(self, key: str | None = None, *, patience_s: float = 100.0, silence_s: float | None = None) -> None:
        """`patience_s` is how long a viewer goes on coming back, `silence_s` how long it waits for a byte: as long, by
        default."""
        super().__init__()
        self._patience_s, self._silence_s = patience_s, silence_s or patience_s
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._watching: list[Future[None]] = []

    def post(
        self, urls: Sequence[str], body: dict[str, Any], *, resume: bool = False, headers: dict[str, str] | None = None
    ) -> Verdict:
        """Asks the first server and watches what it answers. Without `resume` like any OpenAI client: no ids."""
        verdict = Verdict()
        asked = {"x-stream-ids": "1"} if resume else {}
        self.fill(verdict, urls, body, headers={**(headers or {}), **asked}, resume=resume)
        return verdict

    def fill(
        self, verdict: Verdict, urls: Sequence[str], body: dict[str, Any], *, headers: dict[str, str], resume: bool
    ) -> None:
        """As `post`, into a verdict that there is."""
        self._send(verdict, urls, {**body, "stream": True}, {**self._headers, **headers}, "", resume=resume)

    def watch(
        self, urls: Sequence[str], generation_id: str, *, view: str = "streams", after: str | None = None
    ) -> Verdict:
        """Watches from the start, or from behind a position, and comes back after every drop."""
        path = f"/v1/{view}/{generation_id}" + ("?stream=true" if view == "chat/completions" else "")
        verdict = Verdict(last_id=after)
        if after:
            epoch, _, number = after.partition("-")
            verdict.position = (int(epoch), int(number))
        self._send(verdict, urls, None, dict(self._headers), path, resume=True)
        return verdict

    def wait(self, timeout_s: float = 100.0) -> None:
        """Until every viewer has seen its end."""
        watching, self._watching = self._watching, []
        for future in watching:
            future.result(timeout_s)

    def _send(
        self,
        verdict: Verdict,
        urls: Sequence[str],
        body: dict[str, Any] | None,
        headers: dict[str, str],
        path: str,
        *,
        resume: bool,
    ) -> None:
        waits_s = (self._patience_s, self._silence_s)
        coroutine = _view(verdict, list(urls), body, headers, path, resume=resume, waits_s=waits_s)
        verdict.watching = self.start(coroutine)
        self._watching.append(verdict.watching)


async def _view(
    verdict: Verdict,
    urls: list[str],
    body: dict[str, Any] | None,
    headers: dict[str, str],
    path: str,
    *,
    resume: bool,
    waits_s: tuple[float, float],
) -> None:
    patience_s, silence_s = waits_s
    deadline = time.monotonic() + patience_s
    async with httpx.AsyncClient(trust_env=False, timeout=silence_s) as http:
        while not verdict.ended and time.monotonic() < deadline:
            url = urls[verdict.connects % len(urls)]
            verdict.connects += 1
            try:
                if body is not None:
                    opened = http.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers)
                else:
                    resumed = {"last-event-id": verdict.last_id} if verdict.last_id else {}
                    opened = http.stream("GET", url + path, headers={**headers, **resumed})
                async with opened as response:
                    if not await _read(verdict, response):
                        continue
                    if body is not None and not verdict.ended:
                        raise EOFError
            except (httpx.TransportError, EOFError) as error:
                if isinstance(error, EOFError) and not resume:
                    verdict.wrong.append("a clean end without [DONE]")
                    return
                if not resume or (body is not None and not verdict.id):
                    verdict.cut = True
                    return
            if body is not None and verdict.id:
                body, path = None, f"/v1/streams/{verdict.id}"
            await asyncio.sleep(0 if verdict.ended else _RETRY_S)
    if not verdict.ended:
        verdict.wrong.append("no end in sight")


async def _read(verdict: Verdict, response: httpx.Response) -> bool:
    """Takes one response to its end; False if the server had nothing to show and asks to come back."""
    verdict.status = response.status_code
    if response.status_code == 204:
        verdict.wrong.append("204, and no end was shown")
        verdict.ended = True
        return True
    if response.status_code != 200:
        refusal = json.loads(await response.aread())
        if response.status_code == 503 and verdict.id:
            await asyncio.sleep(_RETRY_S)
            return False
        verdict.error, verdict.ended, verdict.ended_at = refusal["error"], True, time.monotonic()
        return True
    verdict.headers = dict(response.headers)
    verdict.id = response.headers["x-stream-id"]
    verdict.back_at = time.monotonic()
    unread = b""
    async for piece in response.aiter_raw():
        *whole, unread = (unread + piece).split(b"\n\n")
        for raw in whole:
            verdict.feed(raw)
        while unread.startswith(b": ka\n"):
            verdict.feed(b": ka\n")
            unread = unread[5:]
    if unread:
        verdict.wrong.append(f"half a frame: {unread[:80]!r}")
    return True
