"""Running a batch: many submits and a fold over their answers; there is no second engine.

Each line is a generation like any other, in a log of its own, run by whichever worker has room. The worker that holds the
batch's job only hands lines out, a window of them at a time, and takes their answers in: into parts of the output, in the
storage, and then, in one step, into the checkpoint. A line's log goes only after that. So a batch of any length needs the
memory of one window, and a worker that takes it over finds each line in one of three states: behind the checkpoint, in a log
whose name follows from the line's number and try, or not begun.

What a checkpoint has is in shared/features/batch_head.py; how it ends, whatever is the matter with it, is in end.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from shared.errors import Damaged, Gone, Internal, LogError, StreamLost, StreamspoolError, Unavailable
from shared.features.access.expected import expected
from shared.features.batch_head import ENDED, BatchHead, Checkpoint, enter, reached
from shared.features.storage import Missing
from shared.generations.caller import Caller
from shared.lib import json
from shared.lib.telemetry import BATCH_LINES, get_logger
from shared.log.entry import SEAL, Position, Status
from shared.log.records import Header, Outcome
from shared.log.streamlog import Execute
from shared.store.outage import log_redis_error
from shared.store.redis import OutOfMemoryError
from worker import spans
from worker.batches.circuit import jittered
from worker.batches.end import CANCELLED, EXPIRED, GIVEN_UP, INPUT_GONE, Ending
from worker.batches.endpoints import Answers, surface_of
from worker.batches.input import Input
from worker.batches.lines import Found, LineWrong, answer_line, line_id, wrong_line
from worker.batches.queue import Line, Queue
from worker.batches.results import Results, refusal
from worker.batches.stop import Stop
from worker.batches.verdict import ANSWERS, OUTAGES, Verdict, failed, refused, verdict

if TYPE_CHECKING:
    from worker.batches.batcher import Batcher

logger = get_logger(__name__)

TICK_S = 1.0
"""How often news are asked for: a cancel, the time, what other batches need, who is away."""
HEALTHY_S = 30.0
"""A claim that lasts so long is none that comes to nothing, though every line may be waiting."""
_BLOCK_MS = 500
_MODELS = 100
"""If a batch has more models, it is not written down which."""
_FULL_S = 5.0
"""So long nothing is begun after Redis had no room for it. What is taken in meanwhile makes some."""
_STRIKES = 20
"""How often a line may fail while its provider answers others. In between it waits: all of it takes a quarter of an hour."""
_LOST = 3
"""How often something of ours may be lost with a line: its workers, its log."""
_REFUSED_S = 1.0
"""Before a line is begun again that was refused for something that may pass."""
_BEFORE_SEAL = Position(SEAL.epoch - 1, 2**53 - 1)
_LOST_AGAIN = "The storage lost a part of the answer, each time that it was asked for. Send the request again."
_BROKE = "Something broke on our side with this line. The batch's id finds it in the log."


class Run:
    """One claim on one batch, or one more try under it. `trouble` is what the last one failed of, if that was away."""

    def __init__(self, shared: Batcher, head: BatchHead, trouble: Unavailable | None) -> None:
        self.shared, self.head, self._trouble = shared, head, trouble
        self.id, self._epoch, self._tenant = head["id"], head["epoch"], head["owner"]
        models = None if (allowed := head.get("allowed")) is None else tuple(allowed)
        self._caller = Caller(self._tenant, head.get("key_id"), models=models, budgets=head.get("budgets") or {})
        self._settings, self._log = shared.settings, shared.log
        self._endpoint, self._answers = head["endpoint"], Answers(shared.log, shared.broker, shared.outcomes)
        self.clock = asyncio.get_running_loop().time
        self._began, self._ticked, self._full_until = self.clock(), float("-inf"), float("-inf")
        self._ended_by: str | None = None
        self.moved = False
        """Whether it came further than the one before it."""

    async def to_the_end(self) -> None:
        logger.info("batch claimed", batch_id=self.id, attempt=self._epoch, status=self.head["status"])
        ending = Ending(self.shared, self.head, self._trouble, await self.shared.batches.clock_ms())
        if self.head["status"] in ENDED:  # but for its files
            await ending.files(self.head, None)
        elif ending.is_bare:
            spans.batched(await ending.bare())
        else:
            self._ended_by = ending.why
            if self.head["status"] == "validating" and not self._ended_by:
                await self._validate()
            if self.head["status"] == "cancelling" and "in_progress" not in self.head["at"]:
                await self._save(lambda head, at_ms: enter(head, "cancelled", at_ms))
            if self.head["status"] in ("in_progress", "cancelling"):
                await self._work()
            spans.batched(await ending.files(self.head, self._ended_by))
        logger.info("batch ended", batch_id=self.id)

    async def _save(self, change: Any) -> None:
        """`change` gets the head and the time. Not called where nothing would change: viewers are told of each."""
        at_ms = await self.shared.batches.clock_ms()
        self.head = await self.shared.batches.save(self.id, self._epoch, lambda head: change(head, at_ms))

    # ---- validating

    async def _validate(self) -> None:
        """Reads the whole input once: nothing is run of a batch that has a wrong line."""
        source = self._input()
        try:
            found = await source.check(self.shared.catalogue.check, self._tick)
        except Missing:
            gone = LineWrong(INPUT_GONE, "The input file is gone.", "input_file_id")
            found = Found(errors=[gone.at(None)])

        def checked(head: BatchHead, at_ms: int) -> None:
            head["claims"] = 0
            if found.errors:
                head["errors"] = found.errors
                enter(head, "failed", at_ms)
            elif head["status"] == "validating":
                enter(head, "in_progress", at_ms)
                head["total"] = found.total
                head["model"] = next(iter(found.models)) if len(found.models) == 1 else None
                head["providers"] = sorted(set(map(source.provider, found.models)))
                head["models"] = sorted(found.models) if len(found.models) <= _MODELS else []

        await self._save(checked)
        self.moved = True

    def _input(self) -> Input:
        return Input(self.shared.files.storage, self.head, self._settings.models)

    # ---- in progress

    async def _work(self) -> None:
        """Until every line is in a part, or the batch is to end before that."""
        head = self.head
        self.source = self._input()
        self.results = Results(self.shared.files.storage, head, self.clock())
        models = {model: self.source.provider(model) for model in head.get("models", [])}
        self.queue = Queue(self._settings.batch_lines, head.get("providers", []), models, self.shared.circuits)
        try:
            await self._attach()
            while not self._ended_by:
                await self._hand_out()
                if self.source.over and not self.queue:
                    break
                await self._take_in()
                if self.results.is_due(self.clock()):
                    await self.flush()
                await self._tick()
        except Missing:
            self._ended_by = self._ended_by or INPUT_GONE
        if self._ended_by:
            await Stop(self, self._ended_by).do()
        await self.flush()

    async def _attach(self) -> None:
        """Goes on with the lines that were open when the last worker wrote down how far it was, and tidies up after it."""
        await self._forget()
        await self._tick()
        async for line in self.source.again(reached(self.head)["open"]):
            self._wait(line)

    def _wait(self, line: Line, pause_s: float = 0.0) -> None:
        """Until it can be begun, if it ever can."""
        if line.wrong:
            self._fail(line)
        else:
            self.queue.wait(line, self.clock(), pause_s)

    def _fail(self, line: Line) -> None:
        """It was understood once, and is refused now: for what it asks for, or by another version of this program."""
        assert line.wrong
        logger.error("line refused", batch_id=self.id, line=line.number, code=line.wrong.code)
        text = wrong_line(self.id, line.number, line.custom_id, line.wrong.code, line.wrong.message)
        self.results.add(line, text, "failed")

    async def _hand_out(self) -> None:
        """Begins as many lines as there is room for."""
        if self.clock() < self._full_until:
            return
        while self.queue.wants(self.clock()) and (line := await self.source.next()):
            self._wait(line)
        chosen = self.queue.choose(self.clock())
        try:
            await self.source.fetch(chosen)
        except Missing:
            for line in chosen:
                self._wait(line)
            raise
        await _all(map(self._begin, chosen))

    async def _hold(self, pipe: Any, header: Header) -> Execute | None:
        """One that has the batch by now may have written the line's answer down and deleted its log: made again, it would be
        asked and paid once more. Raises Fenced, and Gone where this is not known yet, or its owner deleted it."""
        await self.shared.jobs.fence(pipe, self.id, self.shared.worker_id)
        await self._log.fence_deleted(pipe, header["id"])
        return None

    async def _begin(self, line: Line) -> None:
        """Submits a line, once however often and by whomever it is done. Raises Fenced if the batch is another worker's."""
        if line.asked is None:
            self._fail(line)
            return
        generation_id = line_id(self.id, line.number, line.tries)
        try:
            async with self.shared.at_once:
                await self.shared.broker.submit_line(
                    generation_id,
                    json.dumps(line.asked.body),
                    line.asked.request,
                    self._caller,
                    {"id": self.id, "line": line.number},
                    surface_of(self._endpoint),
                    self._hold,
                    partial(expected, body=line.asked.body),
                    self.head.get("traceparent"),
                )
        except OutOfMemoryError as error:
            log_redis_error("batch", error, batch_id=self.id)
            self._full_until = self.clock() + _FULL_S
            self._wait(line)
        except Gone:  # deleted: by its owner, unless another worker has the batch
            await self.shared.batches.look(self.id, self._epoch)
            self.results.replaced(line.number, line.tries)
            self._wait(line, jittered(line.again()))
        except (LogError, *OUTAGES):
            raise
        except Exception as error:
            self._refuse(line, error)
        else:
            self.queue.begun(generation_id, line, self.clock())

    def _refuse(self, line: Line, why: Exception) -> None:
        """Ends a line that was not begun if that is its own; what may pass has it wait, and a bug does a few times."""
        error = why if isinstance(why, StreamspoolError) else Internal(_BROKE)
        means = refused(error)
        if means is Verdict.LOST:
            logger.error("line broke", batch_id=self.id, line=line.number, exc_info=why)
            line.lost += 1
        if means is Verdict.DONE or line.lost >= _LOST:
            line.wrong = LineWrong(error.code, error.message)
            self._fail(line)
        else:
            self._wait(line, error.retry_after_s or _REFUSED_S)

    async def _take_in(self) -> None:
        """Waits for lines to end, and takes their answers in."""
        if not self.queue.open:
            await asyncio.sleep(_BLOCK_MS / 1000)
            return
        found = await self._log.poll(dict.fromkeys(self.queue.open, _BEFORE_SEAL), block_ms=_BLOCK_MS)
        if not found:
            await self._begin_lost_again()
        outcomes = {
            generation_id: json.loads(entries[-1].data)
            for generation_id, entries in found.items()
            if not isinstance(entries, Damaged)
        }
        await _all(self._take(generation_id, outcome) for generation_id, outcome in outcomes.items())

    async def _begin_lost_again(self) -> None:
        """A log that is gone, whatever deleted it, leaves its line as if it had not been begun."""
        for generation_id, end in (await self._log.ends(list(self.queue.open))).items():
            if end is None:
                self._wait(self.queue.ended(generation_id))

    async def _take(self, generation_id: str, outcome: Outcome) -> None:
        line, means = self.queue.open[generation_id], verdict(outcome)
        if means is Verdict.DONE:
            if outcome["status"] != Status.CANCELLED:
                self.queue.answered(line)
                self.shared.circuits.answered(line.model, self.clock())
            try:
                text = await self.written(line, generation_id, outcome)
            except Gone:  # deleted by its owner just now
                means = Verdict.HELD_UP
            except Damaged:
                means, outcome = Verdict.LOST, failed(outcome, StreamLost(_LOST_AGAIN))
            except OUTAGES:
                raise
            except Exception as bug:
                logger.error("line broke", batch_id=self.id, line=line.number, exc_info=bug)
                means, outcome = Verdict.LOST, failed(outcome, Internal(_BROKE))
            else:
                self.add(self.queue.ended(generation_id), text, outcome)
                return
        await self._put_back(means, generation_id, outcome)

    async def _put_back(self, means: Verdict, generation_id: str, outcome: Outcome) -> None:
        """To be asked again, unless that was done often enough for what may lie in the line itself."""
        line, now, error = self.queue.open[generation_id], self.clock(), outcome["error"]
        if means is Verdict.BUSY:
            self.queue.refused(line, now, error.get("retry_after_s") if error else None)
            self.shared.circuits.answered(line.model, now)
        elif means is Verdict.AWAY:
            circuit = self.shared.circuits.of(line.model)
            line.strikes += circuit.opened_at is None and circuit.answered_at > line.asked_at
            self.shared.circuits.failed(line.model, line.asked_at, now, error)
        line.lost += means is Verdict.LOST
        self.queue.ended(generation_id)
        if line.strikes >= _STRIKES or line.lost >= _LOST:
            self.add(line, await self.written(line, generation_id, outcome), outcome)
            return
        BATCH_LINES.labels("again").inc()
        code = error["code"] if error else None
        logger.info("line put back", batch_id=self.id, line=line.number, tries=line.tries, error_code=code)
        self.results.replaced(line.number, line.tries)
        pause_s = line.again()
        self._wait(line, 0.0 if means is Verdict.BUSY else jittered(pause_s))

    async def written(self, line: Line, generation_id: str, outcome: Outcome) -> bytes:
        """What stands in the output for a line that has ended. Raises Gone, and Damaged where a part of it is missing."""
        if outcome["status"] in ANSWERS:
            async with self.shared.at_once:
                body = await self._answers.body(self._endpoint, generation_id, outcome)
            text = answer_line(self.id, line.number, line.custom_id, 200, generation_id, body)
            return await self.shared.blobs.filled(self._tenant, text)
        status, body = refusal(outcome)
        return answer_line(self.id, line.number, line.custom_id, status, generation_id, body)

    def add(self, line: Line, text: bytes, outcome: Outcome) -> None:
        self.results.add(line, text, "completed" if outcome["status"] in ANSWERS else "failed", outcome.get("usage"))

    # ---- the checkpoint

    async def flush(self) -> None:
        """Stores the part, then says so, then forgets its lines' logs."""
        await self.results.store(self.clock())
        await self._save(self._write_checkpoint)
        self.moved = True
        await self._forget()

    def _write_checkpoint(self, head: BatchHead, _: int) -> None:
        before = head["checkpoint"]
        now: Checkpoint = {
            **self.source.position(),
            "open": [line.spot() for line in self.queue.lines()],
            **self.results.checkpoint(),
        }
        head["checkpoint"] = now
        self.results.write_counts(head)
        if before is None or (before["next"], before["parts"]) != (now["next"], now["parts"]):
            head["claims"] = 0

    async def _forget(self) -> None:
        """Deletes the logs that the last checkpoint made needless, once what they used is booked. Harmless to do again.

        What a full server does not let us book stays until it has room: the reaper does it then.
        """
        ids = self.results.stored()
        async with self.shared.redis.pipeline(transaction=False) as pipe:
            for generation_id in ids:
                pipe.exists(self.shared.redis.key.settled(generation_id))
            booked = await pipe.execute() if ids else []
        done = []
        for generation_id, is_booked in zip(ids, booked, strict=True):
            with suppress(OutOfMemoryError):
                if not is_booked:
                    await self.shared.settlement.settle(generation_id)
                done.append(generation_id)
        await self._log.delete_all(done, self._tenant)

    # ---- news

    async def _tick(self) -> None:
        """Once a second: learns of a cancel and of the time, of what other batches need, and of who is away."""
        now = self.clock()
        if now - self._ticked < TICK_S:
            return
        self._ticked = now
        validating = self.head["status"] == "validating"
        self.head = await self.shared.batches.look(self.id, self._epoch)
        if self.head["status"] == "cancelling":
            self._ended_by = CANCELLED
        elif not self._ended_by and await self.shared.batches.clock_ms() >= self.head["expires_at_ms"]:
            self._ended_by = EXPIRED
        if now - self._began >= HEALTHY_S and self.head.get("claims") and self._ended_by != GIVEN_UP:
            await self._save(lambda head, _: head.update(claims=0))
        if not validating and not self._ended_by:
            await self.shared.circuits.sync(self.queue.models, now)
            await self._share()

    async def _share(self) -> None:
        wanted = min(self._settings.batch_lines, max(1, self.head["total"] - self.results.count))
        mine = {"tenant": self._tenant, "providers": dict.fromkeys(self.queue.providers, wanted)}
        with suppress(OutOfMemoryError):  # nothing is begun then anyway
            demands = await self.shared.batches.demands(self.id, mine)
            self.queue.share(self.id, self._settings.batch_provider_lines, demands)


async def _all(calls: Iterable[Awaitable[None]]) -> None:
    """Waits for all of them, also where one fails."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
