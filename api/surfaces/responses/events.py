"""The log as a Responses stream: numbered events, items that are opened and closed, and the whole response at the end.

Hidden here: how the chunks of a chat, which know no items, become items. Reasoning, text and each call of a tool are an item of
their own. One is open at a time: it is closed when the next begins, and of calls whose arguments come in turns the next is
held until the one before is whole. Events have `sequence_number` from 0 on, which is the `id:` of the frame, too.

It is a projection of the second kind (live/projection.py): a pure fold, so every viewer, in any process and whenever it
comes, sees the same events under the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from api.errors import problem_error
from api.live.projection import Step
from shared.chat.messages import visible_text
from shared.errors import AttemptReplaced, LogError
from shared.features.responses import ids
from shared.features.responses.objects import Echoed, cut_reason, response
from shared.features.responses.output import (
    AS_SUMMARY,
    AS_TEXT,
    Held,
    Item,
    Open,
    Said,
    annotation_object,
    event_frame,
    is_whole,
    item_object,
    logprobs_of,
    part_object,
    pieces,
)
from shared.lib import json, sse
from shared.log.entry import Entry, Status
from shared.log.records import Header, Outcome

KEEPALIVE = sse.frame(b'{"type":"keepalive"}', event=b"keepalive")
"""Clients that watch for silence count events and no comments (Codex); all take this one once the stream has begun."""


class ResponseFold(NamedTuple):
    """What has been shown of one attempt."""

    view: ResponseEvents
    header: Header
    events: int = 0
    opened: int = 0
    """How many items there were."""
    begun: bool = False
    """Whether `response.in_progress` was said."""
    closed: Said | None = None
    """Closed items, each with its index."""
    open: tuple[Open, ...] = ()
    """In the order in which they were last added to."""
    held: tuple[tuple[int, Held], ...] = ()
    """Calls that have not begun, by their index in the chat."""
    calls: frozenset[int] = frozenset()
    """Those that have."""
    recent: int = -1
    """The call that was added to last."""

    def feed(self, entry: Entry) -> Step:
        frames, fold = self._fed(entry.data)
        return Step(frames, fold)

    def take(self, chunk: bytes) -> ResponseFold:
        """The same for one who wants no events."""
        return self._fed(chunk)[1]

    def _fed(self, data: bytes) -> tuple[Sequence[bytes], ResponseFold]:
        chunk = json.loads(data)
        choices = chunk.get("choices")
        if not choices and self.begun:
            return (), self
        writer = _Writer(self)
        writer.begin()
        for choice in choices or ():
            if choice.get("index", 0) == 0:
                writer.read(choice.get("delta") or {}, choice.get("logprobs"))
        return writer.frames, writer.fold

    def end(self, outcome: Outcome) -> Sequence[bytes]:
        writer = self._closed(Status(outcome["status"]))
        kind = "incomplete" if outcome["status"] == Status.CANCELLED else outcome["status"]
        writer.say(f"response.{kind}", response=writer.fold._response(outcome, stored=False))
        return writer.frames

    def _closed(self, status: Status) -> _Writer:
        """With what is open closed, as far as that is fit to be. What has failed is closed nowhere: half of an item is none."""
        writer = _Writer(self)
        if status is Status.COMPLETED:
            writer.begin()
        if status is not Status.FAILED:
            writer.close_all(cut=status is not Status.COMPLETED)
        if status is Status.COMPLETED and not writer.fold.opened:
            writer.add_text("", None)  # clients that find no item at all ask again, for ever
            writer.close_all(cut=False)
        return writer

    def problem(self, problem: LogError) -> Sequence[bytes]:
        return self.failed(problem_error(problem).to_object())

    def failed(self, error: Any) -> Sequence[bytes]:
        """The event that ends a stream without the log's outcome."""
        writer = _Writer(self)
        answer = response(self.header, self.view.echoed, Status.FAILED, output=self.output(cut=True), error=error)
        writer.say("response.failed", response=answer)
        return writer.frames

    def whole(self, outcome: Outcome | None, status: Status) -> dict[str, Any]:
        """The response object as it is found later, finished or not."""
        if outcome is None:
            return response(self.header, self.view.echoed, status, output=self.output(cut=False))
        return self._closed(status).fold._response(outcome, stored=True)

    def _response(self, outcome: Outcome, *, stored: bool) -> dict[str, Any]:
        """The object at the end. Found later (`stored`), what was cancelled says so by its status alone; in a stream it has a
        reason, too, because there are clients that would take it for a whole answer."""
        ended = Status(outcome["status"])
        return response(
            self.header,
            self.view.echoed,
            ended,
            output=self.output(cut=True),
            usage=outcome["usage"],
            error=outcome["error"] if ended is Status.FAILED else None,
            reason=cut_reason(outcome, stored=stored),
            completed_at=outcome["ended_at_ms"] // 1000 if ended is Status.COMPLETED else None,
        )

    def item(self, item: Open, status: str) -> Item:
        return item_object(self.header["id"], item, status, summarised=self.view.summarised)

    def output(self, *, cut: bool) -> list[Item]:
        """All items, by their index. Open ones are `in_progress`, or `incomplete` if there will be no more of them."""
        found = pieces(self.closed)
        found += [(one.place, self.item(one, "incomplete" if cut else "in_progress")) for one in self.open]
        return [item for _, item in sorted(found, key=lambda pair: pair[0])]


class ResponseEvents:
    """OpenAI's events of one response: `echoed` is what it repeats of its request. Its clients know no attempts."""

    native = resumes = False
    encode = None
    keepalive = KEEPALIVE

    def __init__(self, generation_id: str, echoed: Echoed) -> None:
        self.generation_id, self.echoed = generation_id, echoed
        self.summarised = bool(echoed["reasoning"]["summary"])
        """Reasoning is shown as its summary, which is what clients that ask for one show; else as its text."""
        self.reasoning = AS_SUMMARY if self.summarised else AS_TEXT

    def __hash__(self) -> int:
        return hash(self.generation_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResponseEvents) and other.generation_id == self.generation_id

    def start(self, header: Header) -> Step:
        writer = self._begun(header)
        return Step(writer.frames, writer.fold)

    def begin(self, header: Header) -> ResponseFold:
        """The fold before the first chunk."""
        return self._begun(header).fold

    def _begun(self, header: Header) -> _Writer:
        writer = _Writer(ResponseFold(self, header))
        queued = bool(self.echoed["background"])
        snapshot = response(header, self.echoed, Status.QUEUED if queued else Status.IN_PROGRESS, output=[])
        writer.say("response.created", response=snapshot)
        if queued:
            writer.say("response.queued", response=snapshot)
        else:
            writer.begin()
        return writer

    def attempt(self, epoch: int, replaced: Any) -> Sequence[bytes]:
        """Two attempts are never one text: the stream ends. The response goes on, and is found whole by its id."""
        fold: ResponseFold = replaced
        return fold.failed(AttemptReplaced().to_object())


class _Writer:
    """Adds to a fold, and writes down the events that this makes."""

    def __init__(self, fold: ResponseFold) -> None:
        self.fold = fold
        self.frames: list[bytes] = []

    def say(self, kind: str, **fields: Any) -> None:
        number = self.fold.events
        self.frames.append(event_frame(number, kind, fields))
        self.fold = self.fold._replace(events=number + 1)

    def begin(self) -> None:
        if not self.fold.begun:
            fold = self.fold
            snapshot = response(fold.header, fold.view.echoed, Status.IN_PROGRESS, output=[])
            self.say("response.in_progress", response=snapshot)
            self.fold = self.fold._replace(begun=True)

    def read(self, delta: dict[str, Any], logprobs: Any) -> None:
        """One delta of the chat."""
        content, reasoning = visible_text(delta)
        if reasoning:
            self.add_reasoning(reasoning)
        if content:
            self.add_text(content, logprobs)
        if refusal := delta.get("refusal"):
            self.add_refusal(refusal)
        for annotation in delta.get("annotations") or ():
            self.add_annotation(annotation)
        for call in delta.get("tool_calls") or ():
            self.add_call(call)

    # ---- items

    def add_reasoning(self, text: str) -> None:
        self.close_except("reasoning")
        names, item = self.fold.view.reasoning, self.current("reasoning")
        begins = item is None
        item = item or self.open(Open("reasoning", self.fold.opened))
        where = {**self.where(item), names.index_field: 0}
        if begins:
            self.say(f"response.{names.part}.added", **where, part={"type": names.kind, "text": ""})
        self.say(f"response.{names.text}.delta", **where, delta=text)
        self.put(item._replace(said=Said(item.said, text)))

    def add_text(self, text: str, logprobs: Any) -> None:
        item = self.part("output_text")
        tokens = logprobs_of(logprobs)
        where = {**self.where(item), "content_index": len(item.parts)}
        if text:
            self.say("response.output_text.delta", **where, delta=text, logprobs=tokens)
        told = Said(item.logprobs, tokens) if tokens else item.logprobs
        self.put(item._replace(said=Said(item.said, text), logprobs=told))

    def add_refusal(self, text: str) -> None:
        item = self.part("refusal")
        self.say("response.refusal.delta", **self.where(item), content_index=len(item.parts), delta=text)
        self.put(item._replace(said=Said(item.said, text)))

    def add_annotation(self, annotation: Any) -> None:
        flat = annotation_object(annotation)
        if flat is None:
            return
        item = self.part("output_text")
        where = {**self.where(item), "content_index": len(item.parts)}
        number = len(pieces(item.notes))
        self.say("response.output_text.annotation.added", **where, annotation_index=number, annotation=flat)
        self.put(item._replace(notes=Said(item.notes, flat)))

    def add_call(self, call: dict[str, Any]) -> None:
        """One call is shown after the other, since there are clients (LangChain) that mix up two that come in turns: what comes
        of the next one is held until this one is whole."""
        number = call.get("index", 0)
        called = call.get("function") or call.get("custom") or {}
        kind = "custom_tool_call" if call.get("type") == "custom" or "custom" in call else "function_call"
        text = called.get("arguments") if kind == "function_call" else called.get("input")
        item = self.current_call()
        if item is not None and item.call == number:
            self.add_arguments(item, text)
        elif number not in self.fold.calls:
            held = dict(self.fold.held)
            known = held.get(number, Held(kind))
            said = Said(known.said, text) if text else known.said
            held[number] = Held(known.kind, call.get("id") or known.call_id, called.get("name") or known.name, said)
            self.fold = self.fold._replace(held=tuple(held.items()))
        self.fold = self.fold._replace(recent=number)
        while self.fold.held and self.fold.held[0][1].name:
            item = self.current_call()
            if item is not None and not is_whole(item):
                break
            self.close_except()
            self.open_held()

    def add_arguments(self, item: Open, text: str | None) -> None:
        if text:
            event = "function_call_arguments" if item.kind == "function_call" else "custom_tool_call_input"
            self.say(f"response.{event}.delta", **self.where(item), delta=text)
            self.put(item._replace(said=Said(item.said, text)))

    def current_call(self) -> Open | None:
        return next((one for one in self.fold.open if one.kind.endswith("call")), None)

    def open_held(self) -> Open:
        """Begins the first of the calls that are held, with all that came of it."""
        (number, held), *rest = self.fold.held
        self.fold = self.fold._replace(held=tuple(rest), calls=self.fold.calls | {number})
        call_id = held.call_id or ids.call_id(self.fold.header["id"], number)
        item = self.open(Open(held.kind, self.fold.opened, call=number, call_id=call_id, name=held.name))
        self.add_arguments(item, "".join(pieces(held.said)))
        return item

    # ---- opening

    def where(self, item: Open) -> dict[str, Any]:
        return {"item_id": ids.item_id(item.kind, self.fold.header["id"], item.place), "output_index": item.place}

    def current(self, kind: str) -> Open | None:
        return next((one for one in self.fold.open if one.kind == kind), None)

    def open(self, item: Open) -> Open:
        self.fold = self.fold._replace(opened=self.fold.opened + 1, open=(*self.fold.open, item))
        shown = self.fold.item(item, "in_progress")
        if item.kind == "reasoning":
            shown.pop("content", None)
            shown["summary"] = []
        self.say("response.output_item.added", output_index=item.place, item=shown)
        return item

    def put(self, item: Open) -> None:
        """The item as it is now; the one that was added to last is the last."""
        if len(self.fold.open) == 1:
            self.fold = self.fold._replace(open=(item,))
        else:
            rest = tuple(one for one in self.fold.open if one.place != item.place)
            self.fold = self.fold._replace(open=(*rest, item))

    def part(self, kind: str) -> Open:
        """The open message with an open part of this type."""
        self.close_except("message")
        item = self.current("message") or self.open(Open("message", self.fold.opened))
        if item.part == kind:
            return item
        if item.part:
            item = self.close_part(item)
        item = item._replace(part=kind)
        self.say(
            "response.content_part.added", **self.where(item), content_index=len(item.parts), part=part_object(item)
        )
        self.put(item)
        return item

    # ---- closing

    def close_except(self, *kinds: str) -> None:
        """Closes what has ended because something else begins: reasoning, text, and a call that is whole."""
        for item in self.fold.open:
            if item.kind not in kinds and (not item.kind.endswith("call") or is_whole(item)):
                self.close(item, "completed")

    def close_all(self, *, cut: bool) -> None:
        """Closes what is open at the end. With `cut`, the text that was added to last is incomplete; a call that is, or may be,
        gets no `done` event, on which clients would call the tool."""
        last = self.fold.open[-1].place if self.fold.open else -1
        for item in sorted(self.fold.open, key=lambda one: one.place):
            if item.kind.endswith("call"):
                self.close_call(item, cut=cut)
            else:
                self.close(item, "incomplete" if cut and item.place == last else "completed")
        named = tuple(pair for pair in self.fold.held if pair[1].name)
        self.fold = self.fold._replace(held=named)
        while self.fold.held:
            self.close_call(self.open_held(), cut=cut)

    def close_call(self, item: Open, *, cut: bool) -> None:
        now = next(one for one in self.fold.open if one.place == item.place)
        if not cut or (now.call != self.fold.recent and is_whole(now)):
            self.close(now, "completed")

    def close_part(self, item: Open) -> Open:
        part = part_object(item)
        where = {**self.where(item), "content_index": len(item.parts)}
        if item.part == "output_text":
            self.say("response.output_text.done", **where, text=part["text"], logprobs=part["logprobs"])
        else:
            self.say("response.refusal.done", **where, refusal=part["refusal"])
        self.say("response.content_part.done", **where, part=part)
        return item._replace(part="", parts=(*item.parts, part), said=None, notes=None, logprobs=None)

    def close(self, item: Open, status: str) -> None:
        shown = self.fold.item(item, status)
        place = self.where(item)
        if item.kind == "message":
            if item.part:
                self.close_part(item)
        elif item.kind == "reasoning":
            names, text = self.fold.view.reasoning, "".join(pieces(item.said))
            where = {**place, names.index_field: 0}
            self.say(f"response.{names.text}.done", **where, text=text)
            self.say(f"response.{names.part}.done", **where, part={"type": names.kind, "text": text})
        elif item.kind == "function_call":
            done = {"arguments": shown["arguments"], "name": item.name}
            self.say("response.function_call_arguments.done", **place, **done)
        else:
            self.say("response.custom_tool_call_input.done", **place, input=shown["input"])
        self.say("response.output_item.done", output_index=item.place, item=shown)
        rest = tuple(one for one in self.fold.open if one.place != item.place)
        self.fold = self.fold._replace(open=rest, closed=Said(self.fold.closed, (item.place, shown)))
