"""The response that shows a log as one object, once it is sealed.

Hidden here: waiting for the end, in silence or not, the status of one without an answer, and a fold of any length that leaves
the event loop to others.

What stands between may close a connection that is silent for long: nginx after 60 s, others after 100 or 120. A client that
asks for it gets white space meanwhile, which means nothing in front of JSON (RFC 8259 §2). The price: the status is out before
the outcome, so an error then stands in a body whose status is 200.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from typing import Any

from api.errors import problem_error
from api.live.client import Client
from api.live.livelog import LiveLog
from api.live.projection import AddUp, Whole
from api.live.response import LogResponse, Process, cost_headers, served_headers
from shared.chat.chunks import Accumulator
from shared.chat.whole import whole_answer
from shared.config.settings import Settings
from shared.errors import BadRequest, LogError, Stopping, StreamspoolError
from shared.lib import json
from shared.log.records import Header, Summary

_FOLDED_AT_ONCE = 1000
_SPACE = b" "
_JSON = {"content-type": "application/json"}

SPEAK_AFTER = b"x-keepalive-after"
"""Request header: seconds of silence after which white space may be sent; 0 for never. It beats the setting."""


def speak_after_s(asked: bytes | None, settings: Settings) -> float:
    """How long the response to a request may wait in silence that has `asked` for that. Raises BadRequest."""
    if asked is None:
        return settings.answer_keepalive_after_s or math.inf
    try:
        seconds = float(asked.decode("latin-1"))
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        name = SPEAK_AFTER.decode()
        raise BadRequest(f"{name} is a number of seconds, 0 for never.", param=name)
    return seconds or math.inf


class Answer(LogResponse):
    """What `whole` makes of the log, whose chunks `add_up` has added up; an outcome without success has its true status, if
    it came within `speak_after_s`."""

    def __init__(
        self,
        process: Process,
        header: Header,
        whole: Whole,
        *,
        fresh: bool,
        headers: Mapping[str, str],
        speak_after_s: float = math.inf,
        add_up: AddUp | None = None,
    ) -> None:
        super().__init__(process, header, fresh=fresh, headers=headers)
        self._whole, self._speak_after_s = whole, speak_after_s
        self._add_up = add_up or accumulate

    async def respond(self, client: Client, live: LiveLog) -> None:
        silent_s = None if self._speak_after_s == math.inf else self._speak_after_s
        await self.until(client, live, lambda: live.outcome, silent_s)
        if not (client.gone or live.ended or self.process.drain.everyone):
            await self._speak(client, live)
        if client.gone:
            return
        try:
            body = await self._body(live)
        except (StreamspoolError, LogError) as error:
            if not client.started:
                raise
            problem = problem_error(error) if isinstance(error, LogError) else error
            body = json.dumps({"error": problem.to_object()})
        if not client.started:
            headers = {**_JSON, "content-length": str(len(body))}
            cost = cost_headers(json.loads(live.outcome.data)) if live.outcome else {}
            await client.start(200, {**headers, **self.extra, **served_headers(live.note), **cost})
        await client.send(body, more=False)

    async def _speak(self, client: Client, live: LiveLog) -> None:
        """White space until the end. What would read it as the answer's beginning is not to (proxies that buffer)."""
        await client.start(
            200, {**_JSON, "cache-control": "no-cache, no-transform", "x-accel-buffering": "no", **self.extra}
        )
        while not (client.gone or live.ended or self.process.drain.everyone):
            await client.send(_SPACE)
            await self.until(client, live, lambda: live.outcome, self.process.settings.keepalive_s)

    async def _body(self, live: LiveLog) -> bytes:
        """Raises StreamspoolError, Damaged."""
        if live.problem:
            raise problem_error(live.problem)
        if live.outcome is None:
            raise Stopping.told(self.id)
        if failure := self.failure(live):
            raise failure
        outcome = json.loads(live.outcome.data)
        chunks = live.payloads
        if chunks is None:
            chunks, damage = await self.process.broker.chunks(self.header, live.epoch)
            if damage:
                raise damage
        summary = Summary(self.header, (), live.position, outcome)
        return json.dumps(self._whole(summary, await self._add_up(chunks)))


async def accumulate(chunks: Iterable[bytes]) -> Accumulator:
    """What these add up to. Of some hundred thousand, which takes seconds, others have their turns meanwhile."""
    folded = Accumulator()
    for number, chunk in enumerate(chunks, 1):
        folded.feed(json.loads(chunk))
        if not number % _FOLDED_AT_ONCE:
            await asyncio.sleep(0)
    return folded


async def passed_on(chunks: Iterable[bytes]) -> dict[str, Any]:
    """Adds up an answer that is one object of the provider's: there is nothing to add. See `shared.chat.whole`."""
    return whole_answer(chunks) or {}


def as_it_came(_: Summary, found: dict[str, Any]) -> dict[str, Any]:
    """What is shown of such an answer: all of it."""
    return found
