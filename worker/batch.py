"""Running a batch: N submits and a fold; no second engine.

Each line is a generation like any other, in a log of its own, run by whichever worker has room. The worker that holds the
batch's job only hands lines out, a window of them at a time, and takes their answers in: into parts of the output, in the
storage, and then, in one step, into the checkpoint. A line's log goes only after that. So a batch of any length needs the
memory of one window, and whoever takes it over finds each line in one of three states: behind the checkpoint, in a log
whose name follows from the line's number and try, or not begun.

The checkpoint: `next` and `offset`, the first line that no checkpoint knows; `open`, the lines before it that are in no
part yet, as `[number, offset, length, tries]`, followed by `strikes` and `lost` where there are any; `stored`, as
`[number, try]`, the generations that it made needless, whose logs may still be there if who wrote it died; `parts`, how
many there are of each claim, as `[epoch, of the output, of the errors]`; and the counts of what is in them.

How it ends, whatever is the matter with it, is worker/batch_end.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from typing import Any

from shared import json
from shared.batches import ENDED, Batches, Head, enter
from shared.broker import Broker, Principal
from shared.chat import completion
from shared.config import Settings
from shared.entry import SEAL, Position, Status
from shared.errors import Damaged, Fenced, FileStorageInvalid, Gone, LogError, Unavailable
from shared.outage import Pauses, complain
from shared.queue import JobQueue
from shared.redis import ArqRedis, OutOfMemoryError, RedisError
from shared.storage import Missing
from shared.streamlog import StreamLog
from shared.telemetry import BATCH_LINES, BATCHES, get_logger
from worker.batch_end import CANCELLED, EXPIRED, GIVEN_UP, INPUT_GONE, Ending
from worker.batch_input import Input
from worker.batch_lines import Found, LineWrong, answer_line, line_id, wrong_line
from worker.batch_queue import Line, Queue
from worker.batch_results import Results, refusal
from worker.batch_stop import Stop
from worker.batch_verdict import ANSWERS, Verdict, verdict
from worker.circuit import Circuits, jittered

logger = get_logger(__name__)

TICK_S = 1.0
"""How often news are asked for: a cancel, the time, what other batches need, who is away."""
HEALTHY_S = 30.0
"""A claim that lasts so long is none that comes to nothing, though every line may be waiting."""
_BLOCK_MS = 500
_AT_ONCE = 8
"""Calls of one kind at a time: the connections are shared with all other batches of this worker."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
"""Before a run that failed is made again."""
_MODELS = 100
"""If a batch has more models, it is not written down which."""
_FULL_S = 5.0
"""So long nothing is begun after Redis had no room for it. What is taken in meanwhile makes some."""
_HAND_OVER_S = 1.0
_STRIKES = 20
"""How often a line may fail while its provider answers others. In between it waits: all of it takes a quarter of an hour."""
_LOST = 3
"""How often something of ours may be lost with a line: its workers, its log."""
_BEFORE_SEAL = Position(SEAL.epoch - 1, 2**53 - 1)

_STREAM_LOST = {
    "message": "The storage lost a part of the answer, each time that it was asked for. Send the request again.",
    "type": "server_error",
    "param": None,
    "code": "stream_lost",
    "status": 500,
}
_BROKE = {
    "message": "Something broke on our side with this line. The batch's id finds it in the log.",
    "type": "server_error",
    "param": None,
    "code": "internal_error",
    "status": 500,
}


class Batcher:
    """All batches of one worker; `run` is what arq calls."""

    def __init__(self, redis: ArqRedis, log: StreamLog, broker: Broker, settings: Settings) -> None:
        self.redis, self.log, self.broker, self.settings = redis, log, broker, settings
        self.jobs = JobQueue(redis)
        self.batches: Batches = broker.batches
        self.circuits = Circuits(redis)
        self.at_once = asyncio.Semaphore(_AT_ONCE)

    async def run(self, batch_id: str) -> bool:
        """Brings a batch to its end. False if it is another worker's now.

        Cancelling hands it over as it is. Raises RedisError and OSError where it cannot even be claimed.
        """
        BATCHES.inc()
        try:
            await self._to_the_end(await self._claim(batch_id))
        except Fenced:
            logger.warning("batch fenced", batch_id=batch_id)
            return False
        except Gone:
            logger.info("batch gone", batch_id=batch_id)
        finally:
            BATCHES.dec()
        await self.batches.close(batch_id)
        return True

    async def _claim(self, batch_id: str) -> Head:
        """Claims it. A stop in the middle of that waits for the answer and hands it over: else it would count as a loss."""
        claiming = asyncio.create_task(self.batches.claim(batch_id))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            with suppress(RedisError, OSError, LogError, Unavailable):
                async with asyncio.timeout(_HAND_OVER_S):
                    head = await claiming
                    await self.batches.hand_over(head["id"], head["epoch"])
            raise

    async def _to_the_end(self, head: Head) -> None:
        """Runs it again and again under this claim, with growing pauses, while something that it needs is away.

        That it was is not held against the batch; what may lie in itself is: a bug it shows, a storage that cannot do what
        is asked, and, since it makes a claim, a worker that is lost.
        """
        again, counted, trouble = False, False, None
        pauses = Pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        try:
            while True:
                run = None
                try:
                    if again:
                        head = await self.batches.claim(head["id"], head, counted=counted)
                    run = Run(self, head, trouble)
                    return await run.to_the_end()
                except LogError:
                    raise
                except (Unavailable, RedisError, OSError) as error:
                    complain("batch", error, batch_id=head["id"])
                    trouble = error if isinstance(error, Unavailable) else None
                    counted = isinstance(error, FileStorageInvalid)
                except Exception as bug:
                    logger.error("batch broke", batch_id=head["id"], exc_info=bug)
                    trouble, counted = None, True
                if run and run.moved:
                    pauses.reset()
                again = True
                if await self._is_told(run.head if run else head, pauses.next_s()):
                    pauses.reset()
        except asyncio.CancelledError:
            with suppress(RedisError, OSError, LogError):
                async with asyncio.timeout(_HAND_OVER_S):
                    await self.batches.hand_over(head["id"], head["epoch"])
            raise

    async def _is_told(self, head: Head, pause_s: float) -> bool:
        """Pauses; not to the end, and True, if there is news of the batch: a cancel, or the end of its window."""
        clock = asyncio.get_running_loop().time
        until, left_ms = clock() + pause_s, None
        while (left_s := until - clock()) > 0:
            await asyncio.sleep(min(TICK_S, left_s))
            with suppress(RedisError, OSError):
                now = await self.batches.look(head["id"], head["epoch"])
                before_ms, left_ms = left_ms, now["expires_at_ms"] - await self.batches.clock_ms()
                if now["status"] != head["status"] or (before_ms is not None and left_ms <= 0 < before_ms):
                    return True
        return False


class Run:
    """One claim on one batch, or one more try under it. `trouble` is what the last one failed of, if that was away."""

    def __init__(self, shared: Batcher, head: Head, trouble: Unavailable | None) -> None:
        self.shared, self.head, self._trouble = shared, head, trouble
        self.id, self._epoch, self._owner = head["id"], head["epoch"], head["owner"]
        self._settings, self._log = shared.settings, shared.log
        self.clock = asyncio.get_running_loop().time
        self._began, self._ticked, self._full_until = self.clock(), float("-inf"), float("-inf")
        self._ended_by: str | None = None
        self.moved = False
        """Whether it came further than the one before it."""

    async def to_the_end(self) -> None:
        logger.info("batch claimed", batch_id=self.id, attempt=self._epoch, status=self.head["status"])
        ending = Ending(self.shared, self.head, self._trouble, await self.shared.batches.clock_ms())
        if self.head["status"] not in ENDED:
            if ending.is_bare:
                return await ending.bare()
            self._ended_by = ending.why
            if self.head["status"] == "validating" and not self._ended_by:
                await self._validate()
            if self.head["status"] == "cancelling" and "in_progress" not in self.head["at"]:
                await self._save(lambda head, at_ms: enter(head, "cancelled", at_ms))
            if self.head["status"] in ("in_progress", "cancelling"):
                await self._work()
        await ending.files(self.head, self._ended_by)
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
            found = await source.check(self.shared.broker.catalogue.check, self._tick)
        except Missing:
            gone = LineWrong(INPUT_GONE, "The input file is gone.", "input_file_id")
            found = Found(errors=[gone.at(None)])

        def checked(head: Head, at_ms: int) -> None:
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
        return Input(self.shared.broker.files.storage, self.head, self._settings.models)

    # ---- in progress

    async def _work(self) -> None:
        """Until every line is in a part, or the batch is to end before that."""
        head = self.head
        self.source = self._input()
        self.results = Results(self.shared.broker.files.storage, head, self.clock())
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
        async for line in self.source.again((self.head["checkpoint"] or {}).get("open", [])):
            self._wait(line)

    def _wait(self, line: Line, pause_s: float = 0.0) -> None:
        """Until it can be begun, if it ever can."""
        if line.wrong:
            self._fail(line)
        else:
            self.queue.wait(line, self.clock(), pause_s)

    def _fail(self, line: Line) -> None:
        """It was understood once, and is not now: by another version of this program, or it was changed."""
        assert line.wrong
        logger.error("line not understood", batch_id=self.id, line=line.number, code=line.wrong.code)
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

    async def _begin(self, line: Line) -> None:
        """Submits a line, once however often and by whomever it is done."""
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
                    Principal(self._owner),
                    {"id": self.id, "line": line.number},
                )
        except OutOfMemoryError as error:
            complain("batch", error, batch_id=self.id)
            self._full_until = self.clock() + _FULL_S
            self._wait(line)
        else:
            self.queue.begun(generation_id, line, self.clock())

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
        """A log that is gone, whoever deleted it, leaves its line as if it had not been begun."""
        for generation_id, end in (await self._log.ends(list(self.queue.open))).items():
            if end is None:
                self._wait(self.queue.ended(generation_id))

    async def _take(self, generation_id: str, outcome: dict[str, Any]) -> None:
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
                means, outcome = Verdict.LOST, {**outcome, "status": Status.FAILED, "error": _STREAM_LOST}
            except (RedisError, OSError):
                raise
            except Exception as bug:
                logger.error("line broke", batch_id=self.id, line=line.number, exc_info=bug)
                means, outcome = Verdict.LOST, {**outcome, "status": Status.FAILED, "error": _BROKE}
            else:
                self.add(self.queue.ended(generation_id), text, outcome)
                return
        await self._put_back(means, generation_id, outcome)

    async def _put_back(self, means: Verdict, generation_id: str, outcome: dict[str, Any]) -> None:
        """To be asked again, unless that was done often enough for what may lie in the line itself."""
        line, now, error = self.queue.open[generation_id], self.clock(), outcome.get("error") or {}
        if means is Verdict.BUSY:
            self.queue.refused(line, now, error.get("retry_after_s"))
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
        logger.info("line put back", batch_id=self.id, line=line.number, tries=line.tries, error_code=error.get("code"))
        self.results.replaced(line.number, line.tries)
        pause_s = line.again()
        self._wait(line, 0.0 if means is Verdict.BUSY else jittered(pause_s))

    async def written(self, line: Line, generation_id: str, outcome: dict[str, Any]) -> bytes:
        """What stands in the output for a line that has ended. Raises Gone, and Damaged where a part of it is missing."""
        if outcome["status"] in ANSWERS:
            async with self.shared.at_once:
                (summary,) = await self._log.describe([generation_id])
                if summary is None:
                    raise Gone(generation_id)
                told = await self.shared.broker.closing.read(generation_id, summary.position.epoch)
            body = {**completion(told.header, told.fold), "usage": outcome["usage"]}
            return answer_line(self.id, line.number, line.custom_id, 200, generation_id, body)
        status, body = refusal(outcome)
        return answer_line(self.id, line.number, line.custom_id, status, generation_id, body)

    def add(self, line: Line, text: bytes, outcome: dict[str, Any]) -> None:
        self.results.add(line, text, "completed" if outcome["status"] in ANSWERS else "failed", outcome.get("usage"))

    # ---- the checkpoint

    async def flush(self) -> None:
        """Stores the part, then says so, then forgets its lines' logs."""
        await self.results.store(self.clock())
        await self._save(self._write_checkpoint)
        self.moved = True
        await self._forget()

    def _write_checkpoint(self, head: Head, _: int) -> None:
        before = head["checkpoint"] or {}
        head["checkpoint"] = {
            **self.source.position(),
            "open": [line.spot() for line in self.queue.lines()],
            **self.results.checkpoint(),
        }
        self.results.write_counts(head)
        if any(before.get(name) != head["checkpoint"][name] for name in ("next", "parts")):
            head["claims"] = 0

    async def _forget(self) -> None:
        """Deletes the logs that the last checkpoint made needless, once what they used is booked. Harmless to do again.

        What a full server does not let us book stays until it has room: the reaper does it then.
        """
        ids = self.results.stored()
        closing, key = self.shared.broker.closing, self.shared.redis.key
        async with self.shared.redis.pipeline(transaction=False) as pipe:
            for generation_id in ids:
                pipe.exists(key.settled(generation_id))
            booked = await pipe.execute() if ids else []
        done = []
        for generation_id, is_booked in zip(ids, booked, strict=True):
            with suppress(OutOfMemoryError):
                if not is_booked:
                    await closing.settle(generation_id)
                done.append(generation_id)
        await self._log.delete_all(done, self._owner)

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
        mine = {"tenant": self._owner, "providers": dict.fromkeys(self.queue.providers, wanted)}
        with suppress(OutOfMemoryError):  # nothing is begun then anyway
            demands = await self.shared.batches.demands(self.id, mine)
            self.queue.share(self.id, self._settings.batch_provider_lines, demands)


async def _all(calls: Iterable[Awaitable[None]]) -> None:
    """Waits for all of them, also where one fails."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
