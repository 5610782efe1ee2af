"""What a delta of a chat adds to a fold of a Responses stream, and the events that tell it.

Hidden here: which item is open, when one is closed, and that one call is shown after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.chat.messages import SUMMARY, visible_text
from shared.features.responses import ids
from shared.features.responses.carried import Carried, added_up, carried_of
from shared.features.responses.namespaces import Own
from shared.features.responses.objects import response
from shared.features.responses.output import (
    Held,
    Open,
    Said,
    Waiting,
    annotation_object,
    event_frame,
    is_whole,
    logprobs_of,
    part_object,
    pieces,
)
from shared.log.entry import Status

if TYPE_CHECKING:
    from api.surfaces.responses.events import ResponseFold


class Writer:
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
        if self.fold.view.cipher is not None and (thoughts := carried_of(delta)):
            self.fold = self.fold._replace(thoughts=Said(self.fold.thoughts, thoughts))
            if not (reasoning or self.fold.opened):
                self.open(Open("reasoning", self.fold.opened))  # a model may think in secret
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
        if summary := delta.get(SUMMARY):
            self.add_summary(summary)

    # ---- items

    def add_reasoning(self, text: str) -> None:
        self.close_except("reasoning")
        names, item = self.fold.reasoning, self.current("reasoning")
        item = item or self.open(Open("reasoning", self.fold.opened))
        where = {**self.where(item), names.index_field: 0}
        if item.said is None:
            self.say(f"response.{names.part}.added", **where, part={"type": names.kind, "text": ""})
        self.say(f"response.{names.text}.delta", **where, delta=text)
        self.put(item._replace(said=Said(item.said, text)))

    def add_summary(self, text: str) -> None:
        """What another model made of the reasoning."""
        if self.current("reasoning") is not None:
            self.close_except()
        if self.fold.waits is not None:
            self.fold = self.fold._replace(waits=self.fold.waits._replace(summary=text))
            if not self.fold.open:
                self.say_summary()

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
        name, space = self.fold.view.names.get(held.name, Own(held.name))
        item = self.open(Open(held.kind, self.fold.opened, call=number, call_id=call_id, name=name, namespace=space))
        self.add_arguments(item, "".join(pieces(held.said)))
        return item

    # ---- opening

    def where(self, item: Open) -> dict[str, Any]:
        return {"item_id": ids.item_id(item.kind, self.fold.header["id"], item.place), "output_index": item.place}

    def current(self, kind: str) -> Open | None:
        return next((one for one in self.fold.open if one.kind == kind), None)

    def open(self, item: Open) -> Open:
        if self.fold.waits is not None and self.fold.waits.summary is not None:
            self.say_summary()
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

    def say_thought(self, item: Open) -> None:
        """That all of the open part of an item of reasoning was said."""
        names, text = self.fold.reasoning, "".join(pieces(item.said))
        where = {**self.where(item), names.index_field: 0}
        self.say(f"response.{names.text}.done", **where, text=text)
        self.say(f"response.{names.part}.done", **where, part={"type": names.kind, "text": text})

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
        if self.fold.waits is not None:
            self.say_summary()

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

    def say_summary(self) -> None:
        """Closes the reasoning item that waits for its summary: between two others, since there are clients (LangChain) that
        mix up two that come in turns. At the end without one."""
        waits = self.fold.waits
        assert waits is not None
        item, text = waits.item(), waits.summary
        if text is not None:
            where = {"item_id": item["id"], "output_index": waits.place, "summary_index": 0}
            self.say("response.reasoning_summary_part.added", **where, part={"type": "summary_text", "text": ""})
            self.say("response.reasoning_summary_text.delta", **where, delta=text)
            self.say("response.reasoning_summary_text.done", **where, text=text)
            self.say("response.reasoning_summary_part.done", **where, part={"type": "summary_text", "text": text})
        self.say("response.output_item.done", output_index=waits.place, item=item)
        closed = Said(self.fold.closed, (waits.place, item))
        self.fold = self.fold._replace(closed=closed, waits=None)

    def carry_the_rest(self) -> None:
        """What a provider wants back may come after all else (Gemini signs its calls): it gets an item of its own."""
        if self.fold.thoughts is not None:
            self.close(self.open(Open("reasoning", self.fold.opened)), "completed")

    def carried(self) -> str | None:
        """What a reasoning item carries that is closed now."""
        cipher, header = self.fold.view.cipher, self.fold.header
        if cipher is None or self.fold.thoughts is None:
            return None
        delta = added_up(pieces(self.fold.thoughts))
        self.fold = self.fold._replace(thoughts=None)
        return cipher.encrypt(Carried(header["id"], header["model"], delta))

    def close(self, item: Open, status: str) -> None:
        shown = self.fold.item(item, status)
        place = self.where(item)
        if item.kind == "message":
            if item.part:
                self.close_part(item)
        elif item.kind == "reasoning":
            shown["encrypted_content"] = self.carried()
            if item.said is not None:
                self.say_thought(item)
        elif item.kind == "function_call":
            done = {"arguments": shown["arguments"], "name": item.name}
            self.say("response.function_call_arguments.done", **place, **done)
        else:
            self.say("response.custom_tool_call_input.done", **place, input=shown["input"])
        if item.kind == "reasoning" and self.fold.raw and item.said is not None and not self.fold.summarised:
            self.fold = self.fold._replace(waits=Waiting(item.place, shown), summarised=True)
        else:
            self.say("response.output_item.done", output_index=item.place, item=shown)
            self.fold = self.fold._replace(closed=Said(self.fold.closed, (item.place, shown)))
        rest = tuple(one for one in self.fold.open if one.place != item.place)
        self.fold = self.fold._replace(open=rest)
