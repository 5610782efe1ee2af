"""What follows from an outcome, once: every feature's effect, in one transaction.

Hidden here: that the transaction is marked as done, so that to settle again is harmless, and that it is not lost with the
process that sealed: each seal leaves the id on a list that the reaper works off. For example, a worker seals an answer and is
killed; seconds later the reaper of another process writes the session's turn, the ledger's figures and the webhook's event.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from shared.config.settings import Settings
from shared.errors import FileStorageFailed
from shared.features.archive.archiver import MARKED_MS
from shared.features.bell import lane_of
from shared.features.effect import Answered, Commands, Effect, Ended
from shared.features.history.outbox import Outbox
from shared.features.sessions import Sessions
from shared.features.spend.budgets import Budgets
from shared.lib.clock import now_ms
from shared.lib.telemetry import SETTLED
from shared.log.entry import SEAL
from shared.log.records import Header, Outcome
from shared.log.streamlog import Following, StreamLog
from shared.store.jobs import queue as enqueue
from shared.store.queue import JobQueue
from shared.store.redis import ArqRedis
from shared.store.transaction import Answer, Command, commit_if, raise_first, transact

_COMPACTED_CHARACTERS = 20_000
"""Of answer and reasoning. A copy of the log takes the server about a microsecond for each kB, and saves 4 kB at most."""
_LOOKED_AT = 500
"""Of those that are left over: more there are only while no reaper can settle them, and each start of an answer looks."""
_Effects = Sequence[tuple[Effect, Commands]]


class Settlement:
    """Methods raise RedisError or OSError when the server is away; the reaper settles later then."""

    def __init__(
        self,
        redis: ArqRedis,
        log: StreamLog,
        effects: Sequence[Effect],
        sessions: Sessions,
        budgets: Budgets,
        read: Callable[[str, int], Awaitable[Answered]],
        settings: Settings,
        outbox: Outbox,
    ) -> None:
        """`read` gives an attempt's transcript, for effects that look at the text; `sessions` tells whose turn is next, and
        `budgets` tells those whose budget is reached. `outbox` is the history's, which is one of the effects."""
        self._redis, self._log, self._sessions, self._outbox = redis, log, sessions, outbox
        self._effects_of = effects
        self.budgets = budgets
        self._read, self._settings = read, settings
        self._key, self._queue = redis.key, JobQueue(redis)

    async def settle(self, generation_id: str) -> None:
        """Does what follows from a generation's outcome, unless it was done; and rings for its session's next."""
        summary = (await self._log.describe([generation_id]))[0]
        if summary is None or summary.outcome is None:
            unsettled = self._key.unsettled(self._key.cells.of(generation_id))
            await self._redis.srem(unsettled, generation_id)  # type: ignore[misc]
            return
        await self.settle_outcome(summary.header, summary.outcome, summary.position.epoch)

    async def settle_outcome(self, header: Header, outcome: Outcome, epoch: int) -> None:
        """The same for a caller that knows them. `epoch` is the attempt that the outcome is about."""
        generation_id = header["id"]
        if now_ms() - outcome["ended_at_ms"] > MARKED_MS // 2 and await self._log.is_archived(generation_id):
            await self._redis.srem(self._key.unsettled(self._key.cells.of(generation_id)), generation_id)  # type: ignore[misc]
            return  # which is done after it was settled; the mark may have gone since
        marker, log = self._key.settled(generation_id), self._key.log(generation_id)
        ended, effects = await self._effects(header, outcome, epoch)
        if self._key.cells.apart:  # but for a session, what follows is the control's
            await self._charge(ended, [add for one, add in effects if one is not self._sessions])
            effects = [(one, add) for one, add in effects if one is self._sessions]
            ended.asked.clear()

        place = self._sessions.place(header)

        def queue(pipe: Any, seen: list[Any]) -> None:
            marked, exists, *answers = seen
            is_kept = place is None or answers.pop(0) in (place[2], place[2].encode())
            ended.answer(answers)
            if marked != _mark(header) and exists:
                self._add(pipe, ended, [(one, add) for one, add in effects if is_kept or one is not self._sessions])
            enqueue(pipe, (b"SREM", self._key.unsettled(self._key.cells.of(generation_id)), generation_id))

        looks: list[Command] = [("GET", marker), ("EXISTS", log)]
        expected = ["", "1"]
        names = [marker, log]
        if place is not None:
            names.append(place[0])
            looks.append(place[1])
            expected.append(place[2])
        asks = [one.command for one in ended.asked]
        async with self._redis.pipeline(transaction=True) as pipe:
            # As it is nearly always: not yet, the log is there, and its session has it open.
            queue(pipe, [None, *expected[1:], *map(Answer, range(len(asks)))])
            done = await commit_if(pipe, list(zip(looks, expected, strict=True)), asks)
        if done is None:
            done = await transact(self._redis, names, [*looks, *asks], queue)
        else:
            raise_first(done)
        await self._settled(header, is_new=len(done) > 1)

    async def following(self, header: Header, outcome: Outcome, epoch: int) -> Following | None:
        """The same to be done in one step with the seal, and `followed` after it. None where that cannot be: an effect looks at
        what has ended, or something of it is in another slot. Raises what effects do."""
        if self._key.cells.apart or header.get("session") or self._outbox.is_kept:
            return None
        ended, effects = await self._effects(header, outcome, epoch)

        def queue(pipe: Any) -> None:
            ended.answer([*map(Answer, range(len(ended.asked)))])
            self._add(pipe, ended, effects)
            enqueue(pipe, (b"SREM", self._key.unsettled(self._key.cells.of(header["id"])), header["id"]))

        not_yet: tuple[Command, str] = (("GET", self._key.settled(header["id"])), "")
        return Following([not_yet], [one.command for one in ended.asked], queue)

    async def followed(self, header: Header, replies: Sequence[Any]) -> None:
        """`following` was done, with these replies."""
        raise_first(replies)
        await self._settled(header, is_new=True)

    async def _effects(self, header: Header, outcome: Outcome, epoch: int) -> tuple[Ended, _Effects]:
        marked_s = self._settings.log_safety_s + (header.get("retention_s") or 0)  # it must outlive the log
        ended = Ended(header, outcome, epoch, marked_s, self._read)
        return ended, [(one, add) for one in self._effects_of if (add := await one.effect(ended)) is not None]

    def _add(self, pipe: Any, ended: Ended, effects: _Effects) -> None:
        """What is done once, with the mark that it was."""
        generation_id = ended.header["id"]
        marked = b"SET", self._key.settled(generation_id), _mark(ended.header), b"PX", int(ended.kept_s * 1000)
        enqueue(pipe, marked)
        for _, add in effects:
            add(pipe)
        if _is_worth_compacting(ended.header, ended.outcome):
            self._log.compact_with(pipe, generation_id)

    async def _settled(self, header: Header, *, is_new: bool) -> None:
        if is_new:
            SETTLED.inc()
        if header.get("session"):
            await self._ring_next(header)
        if self.budgets.of(header):  # also if it was done before: whoever did it may not have heard
            await self.budgets.tell(header)

    async def _charge(self, ended: Ended, adds: Sequence[Commands]) -> None:
        """Does what follows in the control, where that is apart: before what follows in the cell, which takes the generation
        off the list of those to be settled, and once, by a mark of its own."""
        generation_id, mark = ended.header["id"], _mark(ended.header)
        if not await self._redis.exists(self._key.log(generation_id)):
            return
        marker = self._key.charged(generation_id)

        def queue(pipe: Any, seen: list[Any]) -> None:
            marked, *answers = seen
            ended.answer(answers)
            if marked != mark:
                pipe.set(marker, mark, px=int(ended.kept_s * 1000))
                for add in adds:
                    add(pipe)

        await transact(self._redis, [marker], [("GET", marker), *(one.command for one in ended.asked)], queue)

    async def forget(self, generation_id: str) -> None:
        """Its owner deleted it: the history is to know nothing of it either."""
        await self._outbox.forget(generation_id)

    async def _ring_next(self, header: Header) -> None:
        if session := header.get("session"):
            for waiting in (await self._sessions.open(header["owner"], session["id"]))[:1]:
                (summary,) = await self._log.describe([waiting])
                if summary:
                    lane, expires_s = lane_of(summary.header), self._settings.log_safety_s
                    await self._queue.put(waiting, lane, header["owner"], expires_s=expires_s)

    async def settle_session(self, tenant: str, session_id: str) -> None:
        """Settles what of a session is sealed: a client that saw an answer finds it there, and may ask on at once."""
        ends = await self._log.ends(await self._sessions.open(tenant, session_id))
        for generation_id, end in ends.items():
            if end == SEAL:
                await self.settle(generation_id)

    async def check_budget(self, header: Header) -> None:
        """Before a provider is asked. What another process sealed counts, though it died before it charged it: else more and
        more would start on money that is gone. Raises BudgetReached."""
        if not self.budgets.is_hard(header):
            return
        ids = await self._left_over()
        found = [
            one for one in await self._log.describe(ids[:_LOOKED_AT]) if one and one.header["owner"] == header["owner"]
        ]
        costs = [cost["picodollars"] or 0 for one in found if one.outcome and (cost := one.outcome.get("cost"))]
        if any(costs) and await self.budgets.would_reach(header, sum(costs)):
            await self._settle_all([one.header["id"] for one in found])
        await self.budgets.check(header)

    async def settle_left_over(self) -> None:
        """Settles all that is sealed and not settled: the process that sealed it may be gone. If not, it is done once all
        the same."""
        await self._settle_all(await self._left_over())

    async def _left_over(self) -> list[str]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for cell in self._key.cells.all:
                pipe.smembers(self._key.unsettled(cell))
            return [member.decode() for members in await pipe.execute() for member in members]

    async def _settle_all(self, ids: Sequence[str]) -> None:
        for generation_id in ids:
            with suppress(FileStorageFailed):  # a turn that is too large for Redis: once it is back
                await self.settle(generation_id)


def _mark(header: Header) -> bytes:
    """Of this log: an Idempotency-Key may make its id once more later."""
    return b"%d" % header["created_at_ms"]


def _is_worth_compacting(header: Header, outcome: Outcome) -> bool:
    """A line of a batch goes with its batch."""
    lengths = outcome.get("characters")
    characters = lengths["content"] + lengths["reasoning"] if lengths else 0
    return header.get("batch") is None and characters <= _COMPACTED_CHARACTERS
