"""The endpoints that a batch may name: how a line's body becomes a request, and its answer an object of that API."""

from __future__ import annotations

from typing import Any, NamedTuple

from shared.chat import legacy
from shared.chat.chunks import completion
from shared.chat.request import ChatRequest
from shared.chat.whole import REQUESTS, to_stored, whole_answer
from shared.errors import Damaged, Gone
from shared.features.responses.lines import line_object, to_line
from shared.generations.broker import Broker
from shared.generations.outcome import Outcomes
from shared.lib import json
from shared.log.records import Outcome, Surface
from shared.log.streamlog import StreamLog

RESPONSES, COMPLETIONS = "/v1/responses", "/v1/completions"


class Request(NamedTuple):
    """A line's request as it is checked, and as it is stored."""

    request: ChatRequest
    body: dict[str, Any]


_SURFACES: dict[str, Surface] = {
    RESPONSES: "responses",
    COMPLETIONS: "completions",
    "/v1/embeddings": "embeddings",
    "/v1/moderations": "moderations",
}


def surface_of(endpoint: str) -> Surface:
    """The API that a line's log says it was asked through."""
    return _SURFACES.get(endpoint, "chat")


def read(endpoint: str, body: dict[str, Any]) -> Request:
    """Raises BadRequest that names the field."""
    if endpoint in REQUESTS:
        return Request(*to_stored(endpoint, body))
    if endpoint == RESPONSES:
        return Request(*to_line(body))
    if endpoint == COMPLETIONS:
        return Request(*legacy.to_stored(body))
    return Request(ChatRequest.check(body), body)


class Answers:
    """The answers of lines, with marks for blobs. Raises Gone, and Damaged where a part of one is missing."""

    def __init__(self, log: StreamLog, broker: Broker, outcomes: Outcomes) -> None:
        self._log, self._broker, self._outcomes = log, broker, outcomes

    async def body(self, endpoint: str, generation_id: str, outcome: Outcome) -> dict[str, Any]:
        """What the API of this endpoint would have answered."""
        (summary,) = await self._log.describe([generation_id])
        if summary is None:
            raise Gone(generation_id)
        if endpoint in REQUESTS:
            chunks, damage = await self._broker.chunks(summary.header, summary.position.epoch)
            if damage is not None:
                raise damage
            if (found := whole_answer(chunks)) is None:
                raise Damaged(f"{generation_id} has no answer")
            return found
        told = await self._outcomes.transcripts.read(generation_id, summary.position.epoch)
        if endpoint == COMPLETIONS:
            name, created = legacy.completion_id(generation_id), told.header["created_at_ms"] // 1000
            found = legacy.whole_object(name, created, told.header["model"], told.fold)
            return {**found, "usage": outcome["usage"]}
        if endpoint != RESPONSES:
            return {**completion(told.header, told.fold), "usage": outcome["usage"]}
        _, stored = await self._log.request(generation_id)
        body = json.loads(await self._outcomes.transcripts.blobs.marked(told.header["owner"], stored))
        message = told.fold.messages[0] if told.fold.messages else {}
        return line_object(told.header, body, outcome, message, think_tags=told.think_tags)
