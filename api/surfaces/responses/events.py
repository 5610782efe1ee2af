"""The log as a Responses stream: numbered events, items that are opened and closed, and the whole response at the end.

Hidden here: how the chunks of a chat, which know no items, become items. Reasoning, text and each call of a tool are an item of
their own. One is open at a time: it is closed when the next begins, and of calls whose arguments come in turns the next is
held until the one before is whole. Events have `sequence_number` from 0 on, which is the `id:` of the frame, too.

It is a projection of the second kind (live/projection.py): a pure fold, so every viewer, in any process and whenever it
comes, sees the same events under the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from api.errors import problem_error
from api.live.projection import Step
from api.surfaces.responses.writer import Writer
from shared.errors import AttemptReplaced, LogError
from shared.features.responses.carried import Cipher
from shared.features.responses.namespaces import Own
from shared.features.responses.objects import Echoed, ended_response, response
from shared.features.responses.output import (
    AS_SUMMARY,
    AS_TEXT,
    Held,
    Item,
    Open,
    ReasoningNames,
    Said,
    Waiting,
    item_object,
    pieces,
    text_frame,
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
    thoughts: Said | None = None
    """What the next reasoning item to be closed carries, by deltas; kept only where its client wants that."""
    raw: bool = False
    """Reasoning is shown as its text, since a summary of it is made."""
    summarised: bool = False
    """Whether an item has it, or waits for it; there is one."""
    waits: Waiting | None = None
    """The reasoning item that the summary is to come for. All of its text was said."""

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
        if (text := self._more_text(choices)) is not None:
            return self._said_more(text)
        writer = Writer(self)
        writer.begin()
        if "reasoning_summary_model" in chunk:
            writer.fold = writer.fold._replace(raw=self.view.summarised)
        for choice in choices or ():
            if choice.get("index", 0) == 0:
                writer.read(choice.get("delta") or {}, choice.get("logprobs"))
        return writer.frames, writer.fold

    def _more_text(self, choices: list[Any]) -> str | None:
        """The text of a chunk that is a little more of the open text and nothing else, as almost all are."""
        if len(self.open) != 1 or self.open[0].part != "output_text" or self.held or len(choices) != 1:
            return None
        delta = choices[0].get("delta")
        plain = (
            delta.__class__ is dict
            and len(delta) == 1
            and not choices[0].get("index")
            and not choices[0].get("logprobs")
        )
        text = delta.get("content") if plain else None
        return text if text.__class__ is str and text else None

    def _said_more(self, text: str) -> tuple[Sequence[bytes], ResponseFold]:
        """What a writer would write and add, for a tenth of the time."""
        (item,) = self.open
        frame = text_frame(self.header["id"], item.place, len(item.parts), self.events, text)
        more = Open._make((item.kind, item.place, Said(item.said, text), *item[3:]))
        return (frame,), ResponseFold._make((*self[:2], self.events + 1, *self[3:6], (more,), *self[7:]))

    def end(self, outcome: Outcome) -> Sequence[bytes]:
        writer = self._closed(Status(outcome["status"]))
        kind = "incomplete" if outcome["status"] == Status.CANCELLED else outcome["status"]
        writer.say(f"response.{kind}", response=writer.fold._response(outcome, stored=False))
        return writer.frames

    def _closed(self, status: Status) -> Writer:
        """With what is open closed, as far as that is fit to be. What has failed is closed nowhere: half of an item is none."""
        writer = Writer(self)
        if status is Status.COMPLETED:
            writer.begin()
        if status is not Status.FAILED:
            writer.close_all(cut=status is not Status.COMPLETED)
        if status is Status.COMPLETED:
            writer.carry_the_rest()
        if status is Status.COMPLETED and not writer.fold.opened:
            writer.add_text("", None)  # clients that find no item at all ask again, for ever
            writer.close_all(cut=False)
        return writer

    def problem(self, problem: LogError) -> Sequence[bytes]:
        return self.failed(problem_error(problem).to_object())

    def failed(self, error: Any) -> Sequence[bytes]:
        """The event that ends a stream without the log's outcome."""
        writer = Writer(self)
        answer = response(self.header, self.view.echoed, Status.FAILED, output=self.output(cut=True), error=error)
        writer.say("response.failed", response=answer)
        return writer.frames

    def whole(self, outcome: Outcome | None, status: Status) -> dict[str, Any]:
        """The response object as it is found later, finished or not."""
        if outcome is None:
            return response(self.header, self.view.echoed, status, output=self.output(cut=False))
        return self._closed(status).fold._response(outcome, stored=True)

    def _response(self, outcome: Outcome, *, stored: bool) -> dict[str, Any]:
        return ended_response(self.header, self.view.echoed, outcome, output=self.output(cut=True), stored=stored)

    def item(self, item: Open, status: str) -> Item:
        return item_object(self.header["id"], item, status, summarised=self.view.summarised and not self.raw)

    @property
    def reasoning(self) -> ReasoningNames:
        """What events about reasoning are called now."""
        return AS_TEXT if self.raw else self.view.reasoning

    def output(self, *, cut: bool) -> list[Item]:
        """All items, by their index. Open ones are `in_progress`, or `incomplete` if there will be no more of them."""
        found = pieces(self.closed)
        found += [(one.place, self.item(one, "incomplete" if cut else "in_progress")) for one in self.open]
        if self.waits is not None:
            found.append((self.waits.place, self.waits.item()))
        return [item for _, item in sorted(found, key=lambda pair: pair[0])]


class ResponseEvents:
    """OpenAI's events of one response: `echoed` is what it repeats of its request. Its clients know no attempts."""

    native = resumes = False
    encode = None
    keepalive = KEEPALIVE

    def __init__(
        self,
        generation_id: str,
        echoed: Echoed,
        cipher: Cipher | None = None,
        names: Mapping[str, Own] = MappingProxyType({}),
    ) -> None:
        """With a cipher, reasoning items have `encrypted_content`. `names` are those of tools in namespaces."""
        self.generation_id, self.echoed, self.cipher, self.names = generation_id, echoed, cipher, names
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

    def _begun(self, header: Header) -> Writer:
        writer = Writer(ResponseFold(self, header))
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
