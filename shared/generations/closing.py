"""How a generation ends: its outcome, and what follows from it once.

Hidden here: what an unfinished log adds up to (whoever ran it), the usage that goes into the outcome, and the settlement:
the session's turn, the ledger's figures and the webhook, in one transaction that is marked as done, so that doing it
again is harmless. It comes after the seal and must not be lost with the process that sealed: every seal leaves the id on a list
that the reaper works off.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from shared.chat.chunks import Accumulator
from shared.chat.messages import Texts, after_last_answer, billable_text, turn_message, visible_text
from shared.config.settings import Settings
from shared.errors import Damaged, Forgotten, Gone, StoredError, StreamLost
from shared.features import usage
from shared.features.sessions import Sessions
from shared.features.webhooks import Webhooks
from shared.lib import json
from shared.lib.clock import now_ms
from shared.lib.telemetry import SEALED, SETTLED, get_logger
from shared.log.entry import BEGIN, SEAL, Kind, Position, Status
from shared.log.records import Header, Lengths, Outcome, Served, WebhookTarget
from shared.log.streamlog import StreamLog
from shared.store.keys import Lane
from shared.store.outage import cause
from shared.store.queue import JobQueue
from shared.store.redis import ArqRedis, RedisError
from shared.store.transaction import transact

logger = get_logger(__name__)

_CUT_SHORT = frozenset({"length", "content_filter"})
_TURNS = frozenset({Status.COMPLETED, Status.INCOMPLETE})


def finished_status(reasons: list[str | None]) -> Status:
    """What a whole answer is called, by the reasons of its choices."""
    return Status.INCOMPLETE if _CUT_SHORT.intersection(filter(None, reasons)) else Status.COMPLETED


class Transcript(NamedTuple):
    """What a log has so far: the request, and what its newest attempt said."""

    header: Header
    history: list[dict[str, Any]]
    """Messages of the session that were put before the request's."""
    asked: list[dict[str, Any]]
    """Messages of the request that are new: after the history."""
    fold: Accumulator
    served: Served
    position: Position
    """The last entry of what was read."""
    damage: Damaged | None = None
    """Why this is only what stands before a missing entry."""

    @property
    def whole(self) -> bool:
        reasons = self.fold.finish_reasons
        return self.damage is None and len(reasons) >= self.header["n"] and all(reasons)

    @property
    def think_tags(self) -> bool:
        return bool(self.served.get("think"))

    def lengths(self) -> Lengths:
        """Characters of answer and reasoning, over all choices."""
        said = [visible_text(message, think_tags=self.think_tags) for message in self.fold.messages]
        return {"content": sum(len(one.content) for one in said), "reasoning": sum(len(one.reasoning) for one in said)}

    async def usage(self) -> usage.Measured:
        """What it cost. The provider's own figures stand for the whole of it."""
        said = [billable_text(message, think_tags=self.think_tags) for message in self.fold.messages]
        text = Texts("".join(one.content for one in said), "".join(one.reasoning for one in said))
        model = self.served.get("model") or self.header["model"]
        return await usage.measure(model, [*self.history, *self.asked], text, self.fold.usage)


class Closing:
    """Ends generations: `conclude` for those that others ran, `seal` for one's own, `settle` after either."""

    def __init__(
        self,
        redis: ArqRedis,
        log: StreamLog,
        sessions: Sessions,
        webhooks: Webhooks,
        settings: Settings,
        *,
        name: str,
    ) -> None:
        self._redis, self._log, self._settings = redis, log, settings
        self._key, self._queue = redis.key, JobQueue(redis)
        self.sessions, self._webhooks = sessions, webhooks
        self._name = name

    async def read(self, generation_id: str, epoch: int, *, damaged: bool = False) -> Transcript:
        """What the log has of this attempt now. Whoever makes an answer of a log does it with this.

        Raises Gone; Damaged where an entry is missing. With `damaged`, for whoever ends it as lost, it is what stands before
        that entry.
        """
        header, body = await self._log.request(generation_id)
        history, asked = await self.sessions.place(header, json.loads(body).get("messages", []))
        fold, note, damage, last = Accumulator(), None, None, Position(epoch, 0)
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
                        note = note or entry.note
                        fold.feed(json.loads(entry.data))
            if page is None or damage is not None:
                break
        return Transcript(header, history, asked, fold, json.loads(note) if note else {}, last, damage)

    async def conclude(
        self, generation_id: str, epoch: int, status: Status, *, error: StoredError | None = None
    ) -> Status:
        """Ends what somebody else ran, keeping what it said; what lacks nothing but its seal is an answer, and what lacks
        a part is lost.

        Returns what it ended as. Raises Sealed if it had ended, Gone.
        """
        while True:
            told = await self.read(generation_id, epoch, damaged=True)
            found, problem, after = status, error, BEGIN
            if told.damage is not None:
                found, problem = Status.FAILED, StreamLost().to_stored()
            elif told.whole:
                found, problem, after = finished_status(told.fold.finish_reasons), None, told.position
            outcome = await self.outcome(told, found, problem)
            try:
                await self.seal(told.header, outcome, said=epoch, after=after)
                return found
            except Forgotten:  # since it was read: it is another log now
                continue

    async def outcome(self, told: Transcript, status: Status, error: StoredError | None) -> Outcome:
        """The outcome of what was said, with its usage and where that is from."""
        measured = await told.usage()
        return {
            "status": status,
            "ended_at_ms": now_ms(),
            "by": self._name,
            "error": error,
            "finish_reasons": told.fold.finish_reasons,
            "usage": measured.figures,
            "usage_source": measured.source,
            "served": told.served,
            "characters": told.lengths(),
        }

    async def seal(
        self,
        header: Header,
        outcome: Outcome,
        *,
        said: int,
        epoch: int | None = None,
        after: Position = BEGIN,
        length: int | None = None,
    ) -> None:
        """Writes the outcome and settles. Raises what `StreamLog.seal` raises; the settlement may come later.

        `said` is the attempt whose words the outcome is about; the rest is as for `StreamLog.seal`.
        """
        generation_id = header["id"]
        await self._log.seal(generation_id, outcome, epoch=epoch, header=header, after=after, length=length)
        SEALED.labels(outcome["status"]).inc()
        error = outcome["error"]
        logger.info(
            "sealed",
            generation_id=generation_id,
            status=str(outcome["status"]),
            error_code=error["code"] if error else None,
            **_lengths(outcome),
        )
        try:
            await self._settle(header, outcome, said)
        except (RedisError, OSError) as problem:
            logger.warning("settlement waits", generation_id=generation_id, **cause(problem))

    # ---- settlement

    async def settle(self, generation_id: str) -> None:
        """Does what follows from an outcome, unless it was done: turn, ledger, webhook; the session's next is rung for."""
        summary = (await self._log.describe([generation_id]))[0]
        if summary is None or summary.outcome is None:
            await self._redis.srem(self._key.unsettled, generation_id)  # type: ignore[misc]
            return
        await self._settle(summary.header, summary.outcome, summary.position.epoch)

    async def _settle(self, header: Header, outcome: Outcome, epoch: int) -> None:
        generation_id = header["id"]
        marker, log = self._key.settled(generation_id), self._key.log(generation_id)
        mark = str(header["created_at_ms"]).encode()  # of this log: an Idempotency-Key may make its id once more later
        turn = await self._turn(header, outcome, epoch)
        marked_s = self._settings.log_safety_s + (header.get("retention_s") or 0)  # it must outlive the log

        def queue(pipe: Any, seen: list[Any]) -> None:
            marked, exists = seen
            if marked != mark and exists:
                pipe.set(marker, mark, px=int(marked_s * 1000))
                self._book(pipe, header, outcome)
                if header.get("session"):
                    self.sessions.settle(pipe, header, turn)
                if target := header.get("webhook"):
                    self._tell(pipe, header, outcome, target, marked_s)
            pipe.srem(self._key.unsettled, generation_id)

        done = await transact(self._redis, [marker, log], [("GET", marker), ("EXISTS", log)], queue)
        if len(done) > 1:
            SETTLED.inc()
        await self._ring_next(header)

    def _book(self, pipe: Any, header: Header, outcome: Outcome) -> None:
        name, figures = usage.ledger_entry(self._key, header, outcome)
        for field, amount in figures.items():
            pipe.hincrby(name, field, amount)
        pipe.pexpire(name, usage.ledger_ttl_ms())

    def _tell(self, pipe: Any, header: Header, outcome: Outcome, target: WebhookTarget, kept_s: float) -> None:
        self._webhooks.queue(
            pipe,
            header["id"],
            target,
            tenant=header["owner"],
            event=f"chat.completion.{outcome['status']}",
            created_at=outcome["ended_at_ms"] // 1000,
            kept_s=kept_s,
        )

    async def _turn(self, header: Header, outcome: Outcome, epoch: int) -> list[dict[str, Any]] | None:
        """What a finished generation adds to its session: the request's new messages and the answer's."""
        session = header.get("session")
        if session is None or not epoch:
            return None
        said_all = outcome["status"] in _TURNS and outcome["error"] is None  # not, if it was ended for its size
        if not said_all and not session.get("keep_partial"):
            return None
        try:
            told = await self.read(header["id"], epoch)
        except (Gone, Damaged):
            return None
        answers = told.fold.result()["choices"]
        if not answers:
            return None
        asked = after_last_answer(told.asked) if session.get("client_history") else told.asked
        answer = turn_message(
            answers[0]["message"], store_reasoning=session["store_reasoning"], think_tags=told.think_tags
        )
        return [*asked, answer]

    async def _ring_next(self, header: Header) -> None:
        session = header.get("session")
        if session is None:
            return
        for waiting in (await self.sessions.open(header["owner"], session["id"]))[:1]:
            await self._queue.put(waiting, Lane.GENERATION, expires_s=self._settings.log_safety_s)

    async def settle_session(self, tenant: str, session_id: str) -> None:
        """Settles what of a session is sealed: whoever saw an answer finds it there, and may ask on at once."""
        ends = await self._log.ends(await self.sessions.open(tenant, session_id))
        for generation_id, end in ends.items():
            if end == SEAL:
                await self.settle(generation_id)

    async def settle_left_over(self) -> None:
        """Settles all that is sealed and not settled: whoever sealed it may be gone. If not, it is done once all the same."""
        for member in await self._redis.smembers(self._key.unsettled):  # type: ignore[misc]
            await self.settle(member.decode())


def _lengths(outcome: Outcome) -> dict[str, int]:
    """Both lengths where reasoning was seen; never the text."""
    lengths = outcome.get("characters")
    if not lengths or not lengths["reasoning"]:
        return {}
    return {"content_characters": lengths["content"], "reasoning_characters": lengths["reasoning"]}
