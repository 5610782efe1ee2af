"""A viewer that judges what it is shown: the answer is whole, it failed and said so, or it was damaged in silence.

Hidden here: bytes to frames, coming back with the last id after every drop (to the next server of the list), and what
no viewer must ever see: ids that do not rise, words missing or twice, two ends, an end that is none, anything after it.

Judges run on a loop of their own, so a test may kill things while they watch.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.harness.loopback import LoopThread

_RETRY_S = 0.05
_PATIENCE_S = 30.0


@dataclass
class Verdict:
    """What one viewer was shown, kept up to date while it watches. Times are of the monotonic clock."""

    id: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    first_text: str = ""
    """What was said before a newer attempt made it void."""
    attempts: list[int] = field(default_factory=list)
    finish: list[str] = field(default_factory=list)
    error: dict[str, Any] | None = None
    ended: bool = False
    cut: bool = False
    """The connection broke, and this viewer does not come back."""
    connects: int = 0
    damage: list[str] = field(default_factory=list)
    last_id: tuple[int, int] = (0, 0)
    last_at: float = 0.0
    max_gap_s: float = 0.0
    marker_at: float = 0.0
    ended_at: float = 0.0
    back_at: float = 0.0
    keepalives: int = 0

    @property
    def outcome(self) -> str:
        """`whole`, `failed` (and said so), or `damaged`, which must never be."""
        if self.damage or not (self.ended or self.cut):
            return "damaged"
        if self.error is not None or self.cut:
            # A cancel may come between the last word and the end: all is there, and it says what happened.
            return "damaged" if self.finish and self.code != "generation_cancelled" else "failed"
        words = self.text.split()
        whole = bool(self.finish) and words == [f"w{i}" for i in range(len(words))]
        return "whole" if whole else "damaged"

    @property
    def code(self) -> str | None:
        return self.error["code"] if self.error else None

    # ---- what the viewer is shown

    def frame(self, raw: bytes) -> None:
        fields: dict[str, str] = {}
        for line in raw.decode().split("\n"):
            if line.startswith(":"):
                self.keepalives += 1
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
        if "data" not in fields:
            return
        now = time.monotonic()
        self.max_gap_s = max(self.max_gap_s, now - self.last_at if self.last_at else 0.0)
        self.last_at = now
        if self.ended:
            self.damage.append(f"after the end: {raw[:80]!r}")
        self._data(fields["data"], fields.get("event"))
        if "id" in fields:
            self._id(fields["id"], error='"error"' in fields["data"])

    def _data(self, data: str, event: str | None) -> None:
        if data == "[DONE]":
            self.ended, self.ended_at = True, time.monotonic()
        elif event == "attempt":
            self.attempts.append(json.loads(data)["attempt"])
            self.first_text, self.text, self.finish = self.text, "", []
            self.marker_at = time.monotonic()
        elif "error" in (shown := json.loads(data)):
            if self.error is not None:
                self.damage.append("two errors")
            self.error = shown["error"]
        else:
            for choice in shown["choices"]:
                self.text += choice["delta"].get("content") or ""
                if choice["finish_reason"]:
                    self.finish.append(choice["finish_reason"])
            if len(self.finish) > 1:
                self.damage.append("two finish reasons")

    def _id(self, text: str, *, error: bool) -> None:
        epoch, _, seq = text.partition("-")
        found = (int(epoch), int(seq))
        # An error and the [DONE] after it stand for one entry, the outcome.
        if found < self.last_id or (found == self.last_id and not self.ended and not error):
            self.damage.append(f"{found} after {self.last_id}")
        self.last_id = found


class Judges(LoopThread):
    """Starts viewers and hands out their verdicts; a context manager."""

    def __init__(self, key: str | None = None) -> None:
        super().__init__()
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._watching: list[Future[None]] = []

    def post(
        self, urls: Sequence[str], body: dict[str, Any], *, resume: bool = False, headers: dict[str, str] | None = None
    ) -> Verdict:
        """Asks the first server and watches what it answers. Without `resume` like any OpenAI client: no ids."""
        asked = {**self._headers, **(headers or {}), **({"x-stream-ids": "1"} if resume else {})}
        return self._send(urls, {**body, "stream": True}, asked, "", resume=resume)

    def watch(self, urls: Sequence[str], generation_id: str, *, view: str = "streams") -> Verdict:
        """Watches from the start, and comes back after every drop."""
        path = f"/v1/{view}/{generation_id}" + ("?stream=true" if view == "chat/completions" else "")
        return self._send(urls, None, dict(self._headers), path, resume=True)

    def wait(self, timeout_s: float = 20.0) -> None:
        """Until every viewer has seen its end."""
        watching, self._watching = self._watching, []
        for future in watching:
            future.result(timeout_s)

    def _send(
        self,
        urls: Sequence[str],
        body: dict[str, Any] | None,
        headers: dict[str, str],
        path: str,
        *,
        resume: bool,
    ) -> Verdict:
        verdict = Verdict()
        coroutine = _view(verdict, list(urls), body, headers, path, resume=resume)
        self._watching.append(self.start(coroutine))
        return verdict


async def _view(
    verdict: Verdict, urls: list[str], body: dict[str, Any] | None, headers: dict[str, str], path: str, *, resume: bool
) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    async with httpx.AsyncClient(trust_env=False, timeout=_PATIENCE_S) as http:
        while not verdict.ended and time.monotonic() < deadline:
            url = urls[verdict.connects % len(urls)]
            verdict.connects += 1
            try:
                if body is not None:
                    opened = http.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers)
                else:
                    resumed = {"last-event-id": "{}-{}".format(*verdict.last_id)} if verdict.last_id > (0, 0) else {}
                    opened = http.stream("GET", url + path, headers={**headers, **resumed})
                async with opened as response:
                    if not await _read(verdict, response):
                        continue
                    if body is not None and not verdict.ended:
                        raise EOFError
            except (httpx.TransportError, EOFError) as error:
                if isinstance(error, EOFError) and not resume:
                    verdict.damage.append("a clean end without [DONE]")
                    return
                if not resume or (body is not None and not verdict.id):
                    verdict.cut = True
                    return
            if body is not None and verdict.id:
                body, path = None, f"/v1/streams/{verdict.id}"
            await asyncio.sleep(0 if verdict.ended else _RETRY_S)
    if not verdict.ended:
        verdict.damage.append("no end in sight")


async def _read(verdict: Verdict, response: httpx.Response) -> bool:
    """Takes one response to its end; False if the server had nothing to show and asks to come back."""
    if response.status_code == 204:
        verdict.damage.append("204, and no end was shown")
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
            verdict.frame(raw)
    if unread.replace(b": ka\n", b""):
        verdict.damage.append(f"half a frame: {unread[:80]!r}")
    return True
