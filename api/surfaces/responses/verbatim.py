"""The log as a Responses stream where the provider speaks this API itself: its events are shown as they came.

Hidden here: where they are (`worker/providers/formats/responses_verbatim.py` puts them beside the chunks of a chat), and what
of them is ours: the events of the beginning, sequence numbers, the id of the response, and the end of an answer that was cut,
cancelled or has failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from api.errors import problem_error
from api.live.projection import Step
from api.services import Services
from api.surfaces.responses.events import ResponseEvents, ResponseFold
from shared.errors import LogError
from shared.features.responses.carried import INCLUDED, Cipher
from shared.features.responses.namespaces import NAMESPACES, own_names
from shared.features.responses.objects import ended_response, response
from shared.features.responses.output import Item, Said, event_frame, pieces
from shared.features.responses.request import TERMS, echoed
from shared.lib import json
from shared.log.entry import Entry, Status
from shared.log.records import Header, Outcome
from shared.store.availability import translate_errors

_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_OURS = ("background", "conversation", "model", "previous_response_id", "store")
"""What a response says of itself, and not what its provider was asked."""
_TEXTS = {
    "response.function_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
    "response.output_text.delta": "text",
    "response.refusal.delta": "refusal",
}


def view_of(header: Header, body: dict[str, Any], cipher: Cipher | None = None) -> ResponseEvents:
    """How a response is shown, by its log's header and the request that is stored there; `cipher` is `cipher_for` it."""
    if "native" in body[TERMS]:
        return VerbatimEvents(header["id"], echoed(header, body))
    return ResponseEvents(header["id"], echoed(header, body), cipher, own_names(body[TERMS].get(NAMESPACES)))


async def cipher_for(services: Services, tenant: str, body: dict[str, Any]) -> Cipher | None:
    """What encrypts the reasoning of a response to this request, if it wants that. Raises Unavailable."""
    if "native" in body[TERMS] or INCLUDED not in (body[TERMS].get("include") or ()):
        return None
    return await cipher_of(services, tenant)


async def cipher_of(services: Services, tenant: str) -> Cipher:
    """A tenant's. Raises Unavailable."""
    with translate_errors():
        return Cipher(await services.installation.secret(), tenant)


class VerbatimEvents(ResponseEvents):
    """The provider's events of one response."""

    def start(self, header: Header) -> Step:
        frames, begun = super().start(header)
        assert isinstance(begun, ResponseFold)
        return Step(frames, VerbatimFold(self, header, begun.events, begun.begun))

    def begin(self, header: Header) -> Any:
        return self.start(header).fold


class _Open(NamedTuple):
    """An item that has begun, and the deltas of it."""

    item: Item
    said: Said | None = None


class VerbatimFold(NamedTuple):
    """What has been shown of one attempt."""

    view: VerbatimEvents
    header: Header
    events: int = 0
    begun: bool = False
    closed: Said | None = None
    """Items that are done, each with its index."""
    open: Mapping[int, _Open] = {}
    final: dict[str, Any] | None = None
    """The provider's last event."""

    def feed(self, entry: Entry) -> Step:
        return self._fed(entry.data)

    def take(self, chunk: bytes) -> VerbatimFold:
        """The same for one who wants no events."""
        fold = self._fed(chunk).fold
        assert isinstance(fold, VerbatimFold)
        return fold

    def _fed(self, data: bytes) -> Step:
        chunk = json.loads(data)
        fold, frames = self, []
        if not self.begun:
            snapshot = response(self.header, self.view.echoed, Status.IN_PROGRESS, output=[])
            frames.append(event_frame(fold.events, "response.in_progress", {"response": snapshot}))
            fold = fold._replace(events=fold.events + 1, begun=True)
        for event in chunk.get("responses_events") or ():
            if event["type"] in _ENDS:
                fold = fold._replace(final=event)
                continue
            if event.get("delta", "") is None:
                event["delta"] = _text_in(chunk)
            frames.append(event_frame(fold.events, event["type"], event))
            fold = fold._after(event)
        return Step(frames, fold)

    def _after(self, event: dict[str, Any]) -> VerbatimFold:
        fold = self._replace(events=self.events + 1)
        kind, place = event["type"], event.get("output_index", 0)
        if kind == "response.output_item.added":
            return fold._replace(open={**self.open, place: _Open(event["item"])})
        if kind == "response.output_item.done":
            rest = {at: one for at, one in self.open.items() if at != place}
            return fold._replace(open=rest, closed=Said(self.closed, (place, event["item"])))
        if kind in _TEXTS and (known := self.open.get(place)):
            piece = (_TEXTS[kind], event.get("content_index", 0), event["delta"])
            return fold._replace(open={**self.open, place: known._replace(said=Said(known.said, piece))})
        return fold

    def output(self, *, cut: bool) -> list[Item]:
        """All items, by their index, those that are not done as far as they came."""
        found = pieces(self.closed)
        found += [(place, _partial(one, "incomplete" if cut else "in_progress")) for place, one in self.open.items()]
        return [item for _, item in sorted(found, key=lambda pair: pair[0])]

    def end(self, outcome: Outcome) -> Sequence[bytes]:
        found = self._response(outcome, stored=False)
        kind = "incomplete" if outcome["status"] == Status.CANCELLED else outcome["status"]
        frames = []
        number = self.events
        if not self.begun and outcome["status"] == Status.COMPLETED:
            snapshot = response(self.header, self.view.echoed, Status.IN_PROGRESS, output=[])
            frames.append(event_frame(number, "response.in_progress", {"response": snapshot}))
            number += 1
        last = {name: value for name, value in (self.final or {}).items() if name not in ("type", "response")}
        fields = {**(last if self._is_told(outcome) else {}), "response": found}
        return [*frames, event_frame(number, f"response.{kind}", fields)]

    def _is_told(self, outcome: Outcome) -> bool:
        """Whether the provider itself said how it ended."""
        return self.final is not None and outcome["status"] in (Status.COMPLETED, Status.INCOMPLETE)

    def problem(self, problem: LogError) -> Sequence[bytes]:
        return self.failed(problem_error(problem).to_object())

    def failed(self, error: Any) -> Sequence[bytes]:
        """The event that ends a stream without the log's outcome."""
        answer = response(self.header, self.view.echoed, Status.FAILED, output=self.output(cut=True), error=error)
        return [event_frame(self.events, "response.failed", {"response": answer})]

    def whole(self, outcome: Outcome | None, status: Status) -> dict[str, Any]:
        """The response object as it is found later, finished or not."""
        if outcome is None:
            return response(self.header, self.view.echoed, status, output=self.output(cut=False))
        return self._response(outcome, stored=True)

    def _response(self, outcome: Outcome, *, stored: bool) -> dict[str, Any]:
        ours = ended_response(self.header, self.view.echoed, outcome, output=self.output(cut=True), stored=stored)
        if not self._is_told(outcome):
            return ours
        assert self.final is not None
        told: dict[str, Any] = self.final["response"]
        fixed = {"output": told.get("output") or ours["output"], **{name: ours[name] for name in ("id", *_OURS)}}
        return {**ours, **told, **fixed}


def _partial(one: _Open, status: str) -> Item:
    """An item as far as it came."""
    item, texts = {**one.item, "status": status}, dict[tuple[str, int], list[str]]()
    for field, number, text in pieces(one.said):
        texts.setdefault((field, number), []).append(text)
    if item["type"] == "message":
        item["content"] = [
            _part(field, "".join(text)) for (field, _), text in sorted(texts.items(), key=lambda x: x[0][1])
        ]
    else:
        item |= {field: "".join(text) for (field, _), text in texts.items()}
    return item


def _part(field: str, text: str) -> Item:
    if field == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _text_in(chunk: dict[str, Any]) -> str:
    """The one text that a chunk adds."""
    for name, value in chunk["choices"][0]["delta"].items():
        if name == "tool_calls":
            inner = value[0].get("function") or value[0].get("custom") or {}
            return str(inner.get("arguments", inner.get("input")))
        if name != "role" and isinstance(value, str):
            return value
    return ""
