"""How a generation ends: what its log says so far, and the outcome that is made of it and sealed.

Hidden here: how an unfinished log adds up, for example one whose worker died in the middle: the text so far, whether only the
seal is missing, and the usage, measured where the provider gave none. What follows from an outcome is `settlement.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from shared.chat.chunks import Accumulator
from shared.chat.messages import Messages, Texts, billable_text, is_asked, plain, visible_text
from shared.errors import Damaged, FileStorageFailed, Forgotten, RequestLost, StoredError, StreamLost
from shared.features import usage
from shared.features.blobs import Blobs
from shared.features.chains import Chains
from shared.features.responses.namespaces import NAMESPACES, Own, own_names
from shared.features.sessions import Sessions
from shared.features.spend.prices import NO_COST, Prices
from shared.generations.settlement import Settlement
from shared.lib import json, money
from shared.lib.clock import now_ms
from shared.lib.telemetry import COST, COST_UNKNOWN, SEALED, TOKENS, answered_by, get_logger, tenant_label
from shared.lib.traces import genai
from shared.log.blobs import Stored
from shared.log.entry import BEGIN, Entry, Kind, Position, Status
from shared.log.records import Header, Lengths, Outcome, Served
from shared.log.streamlog import Following, StreamLog
from shared.store.commands import Words
from shared.store.outage import cause
from shared.store.redis import RedisError

logger = get_logger(__name__)

_GOOD = frozenset({"stop", "tool_calls", "function_call"})
"""The finish reasons of an answer that is whole."""


def finished_status(reasons: list[str | None]) -> Status:
    """What a whole answer is called, by the reasons of its choices. None is a choice that was asked for and never came."""
    return Status.COMPLETED if _GOOD.issuperset(filter(None, reasons)) else Status.INCOMPLETE


class Transcript(NamedTuple):
    """What a log has so far: the request, and what its newest attempt said."""

    header: Header
    history: Messages
    """Messages of the session that were put before the request's."""
    asked: Messages
    """Messages of the request that are new: after the history."""
    fold: Accumulator
    served: Served
    position: Position
    """The last entry of what was read."""
    damage: Damaged | None = None
    """Why this is only what stands before a missing entry."""
    spoke_at_ms: int | None = None
    """When its first chunk was said."""
    names: Mapping[str, Own] = MappingProxyType({})
    """What tools of namespaces are called by the client, by their names in the chat."""

    @property
    def whole(self) -> bool:
        """Whether only the seal is missing: every choice has its finish reason."""
        reasons = self.fold.finish_reasons
        return self.damage is None and len(reasons) >= self.header["n"] and all(reasons)

    @property
    def think_tags(self) -> bool:
        return bool(self.served.get("think"))

    def lengths(self) -> Lengths:
        texts = [visible_text(message, think_tags=self.think_tags) for message in self.fold.messages]
        return {
            "content": sum(len(one.content) for one in texts),
            "reasoning": sum(len(one.reasoning) for one in texts),
        }

    async def usage(self, given: dict[str, Any] | None = None) -> usage.Measured:
        """What it cost. The provider's own figures stand for the whole of it, and so do those that were shown; `given` are its
        own that no chunk shows."""
        texts = [billable_text(message, think_tags=self.think_tags) for message in self.fold.messages]
        text = Texts("".join(one.content for one in texts), "".join(one.reasoning for one in texts))
        model = self.served.get("model") or self.header["model"]
        if self.fold.usage and (source := usage.source_of(self.fold.usage_source)):
            return usage.Measured(self.fold.usage, source)
        return await usage.measure(model, [*self.history, *self.asked], text, given or self.fold.usage)


class Transcripts:
    """Logs read as transcripts, each with what its session puts before the request."""

    def __init__(self, log: StreamLog, sessions: Sessions, chains: Chains, blobs: Blobs) -> None:
        self._log, self._sessions, self._chains, self.blobs = log, sessions, chains, blobs

    async def messages(self, header: Header, body: Mapping[str, Any]) -> tuple[Messages, Messages]:
        """What stands before a request's own messages, from its session or from what it goes on from, and those of its messages
        that are new. A response's `instructions` stand before all, and are no part of what is new."""
        asked: Messages = body.get("messages", [])
        first: Messages = []
        if (body.get("responses") or {}).get("instructions"):
            first, asked = asked[:1], asked[1:]
        if previous := header.get("previous"):
            before = await self._chains.messages(header["owner"], header["model"], previous, asked)
            return [*first, *before], asked
        history, asked = await self._sessions.split_history(header, asked)
        if header.get("surface") == "responses":  # reasoning goes back as long as tools are called, and no longer
            said = 1 + max((at for at, message in enumerate(history) if message["role"] == "user"), default=-1)
            said = len(history) if is_asked(asked) else said
            history = [*map(plain, history[:said]), *history[said:]]
        return [*first, *history], asked

    async def read(self, generation_id: str, epoch: int, *, damaged: bool = False, ending: bool = False) -> Transcript:
        """What the log has of this attempt now, with marks for blobs (`shared.log.blobs`). All that makes an answer of a log
        does it with this.

        Raises Gone; Damaged where an entry is missing. With `damaged`, for what is to be ended as lost, it is what stands
        before that entry. Raises FileStorageFailed, RequestLost where a long text is in a storage that has it not, NotFound
        where something that it goes on from is gone. But with `ending`, for an end that must not wait for either, it is as if
        nothing had been asked, or nothing said before.
        """
        header, body, (history, asked) = await self._request(generation_id, ending=ending)
        fold, note, damage, last = Accumulator(), None, None, Position(epoch, 0)
        spoke_at_ms: int | None = None
        pages = self._log.read_all(generation_id, last)
        while True:
            try:
                page = await anext(pages, None)
            except Damaged as problem:
                if not damaged:
                    raise
                page, damage = list(problem.before), problem
            for entry in page or ():
                if entry.position.epoch == epoch:
                    last = entry.position
                    if entry.kind in (Kind.CHUNK, Kind.USAGE):
                        note, spoke_at_ms = note or entry.note, spoke_at_ms or entry.at_ms
                        if chunk := await self._chunk(header, entry, ending=ending):
                            fold.feed(json.loads(chunk))
            if page is None or damage is not None:
                break
        served: Served = json.loads(note) if note else {}
        names = own_names((body.get("responses") or {}).get(NAMESPACES))
        return Transcript(header, history, asked, fold, served, last, damage, spoke_at_ms, names)

    async def _chunk(self, header: Header, entry: Entry, *, ending: bool) -> bytes:
        """The JSON of a chunk; none of one that is a long text in a storage that has it not, if it is for an end."""
        try:
            return await self.blobs.marked(header["owner"], Stored(entry.data, entry.blobs))
        except (FileStorageFailed, RequestLost):
            if not ending:
                raise
            return b""

    async def _request(
        self, generation_id: str, *, ending: bool
    ) -> tuple[Header, Mapping[str, Any], tuple[Messages, Messages]]:
        header, stored = await self._log.request(generation_id)
        try:
            body = json.loads(await self.blobs.marked(header["owner"], stored))
        except (FileStorageFailed, RequestLost):
            if not ending:
                raise
            return header, {}, ([], [])
        try:
            return header, body, await self.messages(header, body)
        except (RedisError, OSError):
            raise
        except Exception as why:  # whatever is the matter with another log, this one is to have its end
            if not ending:
                raise
            logger.warning("ended without its history", generation_id=generation_id, why=type(why).__name__)
            return header, body, ([], body.get("messages", []))


class Outcomes:
    """Ends generations: `conclude` what another process ran, or `compose` and `seal` one's own."""

    def __init__(
        self, log: StreamLog, transcripts: Transcripts, settlement: Settlement, prices: Prices, *, name: str
    ) -> None:
        """`name` is the process that will have sealed them."""
        self.transcripts, self.prices = transcripts, prices
        self._log, self._settlement, self._name = log, settlement, name

    async def conclude(
        self, generation_id: str, epoch: int, status: Status, *, error: StoredError | None = None
    ) -> Status:
        """Ends what another process ran, keeping what it said. What lacks nothing but its seal is an answer; what lacks a
        part is lost.

        Returns what it ended as. Raises Sealed if it had ended, Gone.
        """
        while True:
            transcript = await self.transcripts.read(generation_id, epoch, damaged=True, ending=True)
            found, problem, after = status, error, BEGIN
            if transcript.damage is not None:
                found, problem = Status.FAILED, StreamLost().to_stored()
            elif transcript.whole:
                found, problem, after = finished_status(transcript.fold.finish_reasons), None, transcript.position
            outcome = await self.compose(transcript, found, problem)
            tier = transcript.fold.tier
            outcome["cost"] = await self.prices.cost(transcript.header, outcome, asked=epoch > 0, tier=tier)
            try:
                await self.seal(transcript.header, outcome, attempt=epoch, after=after)
                return found
            except Forgotten:  # since it was read: it is another log now
                continue

    async def compose(self, transcript: Transcript, status: Status, error: StoredError | None) -> Outcome:
        """The outcome of what was said, with its usage and where that is from."""
        measured = await transcript.usage()
        outcome: Outcome = {
            "status": status,
            "ended_at_ms": now_ms(),
            "by": self._name,
            "error": error,
            "finish_reasons": transcript.fold.finish_reasons,
            "usage": measured.figures,
            "usage_source": measured.source,
            "served": transcript.served,
            "characters": transcript.lengths(),
        }
        if transcript.spoke_at_ms is not None:
            outcome["spoke_at_ms"] = transcript.spoke_at_ms
        return outcome

    def take_back_with(self, pipe: Any, header: Header) -> None:
        """What `pipe` creates is cancelled right behind that, where its caller does not wait for it: it was told no."""

        def outcome() -> Outcome:
            return {
                "status": Status.CANCELLED,
                "ended_at_ms": now_ms(),
                "by": self._name,
                "error": None,
                "finish_reasons": [],
                "usage": usage.NOTHING.figures,
                "usage_source": usage.NOTHING.source,
                "served": {},
                "characters": {"content": 0, "reasoning": 0},
                "cost": NO_COST,
            }

        self._log.seal_if_given_up(pipe, header, outcome)

    async def seal(
        self,
        header: Header,
        outcome: Outcome,
        *,
        attempt: int,
        epoch: int | None = None,
        after: Position = BEGIN,
        length: int | None = None,
        timings: Mapping[str, int] = MappingProxyType({}),
        told: Sequence[Words] = (),
    ) -> None:
        """Writes the outcome and settles. Raises what `StreamLog.seal` raises; the settlement may come later.

        `attempt` is the one whose words the outcome is about; `timings` are for the log line; the rest is as for
        `StreamLog.seal`.
        """
        generation_id = header["id"]
        following = None if length is None else await self._following(header, outcome, attempt)
        end: dict[str, Any] = {"epoch": epoch, "after": after, "length": length, "following": following}
        await self._log.seal(generation_id, outcome, header=header, told=told, **end)
        _count(header, outcome)
        error = outcome["error"]
        logger.info(
            "sealed",
            generation_id=generation_id,
            request_id=header.get("request_id"),
            tenant=header["owner"],
            model=header["model"],
            served_by=outcome.get("served", {}).get("model"),
            status=str(outcome["status"]),
            error_code=error.get("code") if error else None,
            error_status=error.get("status") if error else None,
            **timings,
            total_ms=outcome["ended_at_ms"] - header["created_at_ms"],
            **_tokens(outcome),
            **_cost(outcome),
            **_lengths(outcome),
        )
        try:
            if following is not None and following.replies is not None:
                await self._settlement.followed(header, following.replies)
            else:
                await self._settlement.settle_outcome(header, outcome, attempt)
        except FileStorageFailed as problem:
            logger.warning("settlement waits", generation_id=generation_id, why=problem.why)
        except (RedisError, OSError) as problem:
            logger.warning("settlement waits", generation_id=generation_id, **cause(problem))

    async def _following(self, header: Header, outcome: Outcome, attempt: int) -> Following | None:
        """What is settled in one step with the seal. Where that fails now, by a bug or not, it is done after it, which says
        why if it fails again: the end waits for none of it."""
        try:
            return await self._settlement.following(header, outcome, attempt)
        except Exception:
            return None


def _count(header: Header, outcome: Outcome) -> None:
    served = outcome.get("served") or {}
    refused, asked = served.get("refused"), header["model"]  # which is a provider's own, where it has one in its name
    model = served.get("model") or (refused[-1]["model"] if refused else asked if "/" in asked else None)
    labels, tenant = answered_by(model), tenant_label(header["owner"])
    SEALED.labels(outcome["status"], labels["provider"], tenant).inc()
    if (cost := outcome.get("cost")) is not None:
        if cost["picodollars"] is not None:
            COST.labels(**labels, tenant=tenant).inc(money.to_dollars(cost["picodollars"]))
        elif model is not None:
            COST_UNKNOWN.labels(**labels).inc()
    used = outcome.get("usage") or {}
    for kind, part in (("prompt", None), ("cached", "prompt"), ("completion", None), ("reasoning", "completion")):
        figures = used.get(f"{part}_tokens_details") if part else used
        amount = figures.get(f"{kind}_tokens") if isinstance(figures, dict) else None
        if isinstance(amount, int) and 0 < amount < 2**53:  # a provider may have said anything
            TOKENS.labels(**labels, type=kind, tenant=tenant).inc(amount)
            genai.count(labels, kind, amount)


def _tokens(outcome: Outcome) -> dict[str, int | None]:
    usage = outcome.get("usage") or {}
    return {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}


def _cost(outcome: Outcome) -> dict[str, str]:
    amount = outcome["cost"]["picodollars"] if "cost" in outcome else None
    return {"cost_usd": "unknown" if amount is None else money.shown(amount)}


def _lengths(outcome: Outcome) -> dict[str, int]:
    """For the log line: both lengths where reasoning was seen; never the text."""
    lengths = outcome.get("characters")
    if not lengths or not lengths["reasoning"]:
        return {}
    return {"content_characters": lengths["content"], "reasoning_characters": lengths["reasoning"]}
