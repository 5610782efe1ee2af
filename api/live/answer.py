"""The response that shows a log as one object, once it is sealed.

Hidden here: waiting for the end, the status of one without an answer, and a fold of any length that leaves the event loop
to others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from api.errors import problem_error
from api.live.client import Client
from api.live.livelog import LiveLog
from api.live.projection import Whole
from api.live.response import LogResponse, Process, served_headers
from shared.chat.chunks import Accumulator
from shared.errors import Unavailable
from shared.lib import json
from shared.log.records import Header, Summary

_FOLDED_AT_ONCE = 1000


class Answer(LogResponse):
    """What `whole` makes of the log; an outcome without success has its true status."""

    def __init__(
        self, process: Process, header: Header, whole: Whole, *, fresh: bool, headers: Mapping[str, str]
    ) -> None:
        super().__init__(process, header, fresh=fresh, headers=headers)
        self._header, self._whole = header, whole

    async def respond(self, client: Client, live: LiveLog) -> None:
        await self.until(client, live, lambda: live.outcome)
        if client.gone:
            return
        if live.problem:
            raise problem_error(live.problem)
        if live.outcome is None:
            raise Unavailable("This server is stopping. The generation goes on; ask for it by its id.", code="draining")
        if failure := self.failure(live):
            raise failure
        outcome = json.loads(live.outcome.data)
        chunks = live.payloads
        if chunks is None:
            chunks, damage = await self.process.broker.chunks(self.id, live.epoch)
            if damage:
                raise damage
        summary = Summary(self._header, (), live.position, outcome)
        body = json.dumps(self._whole(summary, await accumulate(chunks)))
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        await client.start(200, {**headers, **self.extra, **served_headers(live.note)})
        await client.send(body, more=False)


async def accumulate(chunks: Iterable[bytes]) -> Accumulator:
    """What these add up to. Of some hundred thousand, which takes seconds, others have their turns meanwhile."""
    folded = Accumulator()
    for number, chunk in enumerate(chunks, 1):
        folded.feed(json.loads(chunk))
        if not number % _FOLDED_AT_ONCE:
            await asyncio.sleep(0)
    return folded
