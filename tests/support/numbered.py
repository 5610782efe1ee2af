"""A surface that exists for tests only: events with numbers of their own, an item, and a final object.

    id: 0   event: created       {number, id}
    id: 1   event: item.opened   {number}                        before the first text
    id: 2   event: text          {number, text}                  for each chunk that has some
    id: 9   event: item.closed   {number, text}                  the whole text, if an item was opened
    id: 10  event: done          {number, answer: {id, status, text, usage}}       or `error` {number, error}

It is of the second kind (api/live/projection.py), as a Responses API would be: nothing here but the fold knows how many
events there were, or what was said. A client that has the event N resumes with the count N + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query
from starlette.responses import Response

from api.deps import CurrentCaller, CurrentServices
from api.errors import outcome_error, problem_error
from api.live.event_stream import EventStream
from api.live.projection import Fold, Step
from shared.errors import LogError
from shared.lib import json, sse
from shared.log.entry import Entry, Kind
from shared.log.records import Header, Outcome


class Numbered:
    """The projection. `fed` counts the chunks that folds were fed with, for tests that look at the work done."""

    encode = None
    keepalive = sse.KEEPALIVE

    def __init__(self, *, native: bool) -> None:
        self.native = self.resumes = native
        self.fed = 0

    def start(self, header: Header) -> Step:
        return Step((_event(0, "created", id=header["id"]),), _Fold(self, header["id"], 1, None, None))

    def attempt(self, epoch: int, replaced: Fold) -> Sequence[bytes]:
        return [sse.frame(json.dumps({"attempt": epoch}), event=b"attempt" if self.native else b"error")]


class _Said(NamedTuple):
    """Text, and what was said before it: shared by all folds that come after."""

    before: _Said | None
    text: str


class _Fold(NamedTuple):
    surface: Numbered
    id: str
    events: int
    said: _Said | None
    usage: Any

    def feed(self, entry: Entry) -> Step:
        self.surface.fed += 1
        chunk = json.loads(entry.data)
        if entry.kind is Kind.USAGE:
            return Step((), self._replace(usage=chunk["usage"]))
        text = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else None
        if not text:
            return Step((), self)
        frames = [] if self.said else [_event(self.events, "item.opened")]
        frames.append(_event(self.events + len(frames), "text", text=text))
        return Step(frames, self._replace(events=self.events + len(frames), said=_Said(self.said, text)))

    def end(self, outcome: Outcome) -> Sequence[bytes]:
        text, number = self._text(), self.events
        frames = [_event(number, "item.closed", text=text)] if self.said else []
        if error := outcome_error(outcome):
            return [*frames, _event(number + len(frames), "error", error=error["code"])]
        answer = {"id": self.id, "status": outcome["status"], "text": text, "usage": self.usage}
        return [*frames, _event(number + len(frames), "done", answer=answer)]

    def problem(self, problem: LogError) -> Sequence[bytes]:
        return [_event(self.events, "error", error=problem_error(problem).code)]

    def _text(self) -> str:
        texts, said = [], self.said
        while said:
            texts.append(said.text)
            said = said.before
        return "".join(reversed(texts))


def _event(number: int, name: str, **fields: Any) -> bytes:
    return sse.frame(json.dumps({"number": number, **fields}), id=b"%d" % number, event=name.encode())


@cache
def numbered() -> Numbered:
    """One for all viewers."""
    return Numbered(native=False)


router = APIRouter(prefix="/numbered")


@router.get("/{generation_id}", response_model=None)
async def watch(
    services: CurrentServices,
    caller: CurrentCaller,
    generation_id: str,
    starting_after: Annotated[int | None, Query(description="number of the last event received", ge=0)] = None,
) -> Response:
    """A generation's numbered events, from the one after `starting_after` on."""
    summary = await services.broker.find(generation_id, caller)
    cursor = None if starting_after is None else starting_after + 1
    return EventStream(services, summary.header, numbered(), cursor=cursor, headers={})
