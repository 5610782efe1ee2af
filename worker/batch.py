"""Running a batch: N submits and a fold; no second engine.

Each line is a generation like any other, in a log of its own, run by whichever worker has room. The worker that holds the
batch's job only hands lines out, a window of them at a time, and takes their answers in: into parts of the output, in the
storage, and then, in one step, into the checkpoint. A line's log goes only after that. So a batch of any length needs the
memory of one window, and whoever takes it over finds each line in one of three states: behind the checkpoint, in a log
whose name follows from the line's number, or not begun.

The checkpoint: `next` and `offset`, the first line that no checkpoint knows; `open`, the lines before it that are in no
part yet, as `[number, offset, length, tries]`; `stored`, the lines of the last part, as `[number, tries]`, whose logs may
still be there if who stored it died; `parts`, how many there are of each claim, as
`[epoch, of the output, of the errors]`; and the counts of what is in them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from typing import Any

from shared import json
from shared.batches import ENDED, ERRORS, OUTPUT, Batches, Head, enter
from shared.broker import Broker, Principal
from shared.chat import Accumulator, completion
from shared.config import Settings
from shared.entry import BEGIN, SEAL, Kind, Position, Status, now_ms
from shared.errors import Damaged, Fenced, Gone, NotFound, Sealed
from shared.redis import ArqRedis
from shared.storage import Missing
from shared.streamlog import StreamLog
from shared.telemetry import BATCH_LINES, BATCHES, get_logger
from worker.batch_input import Input
from worker.batch_lines import Found, LineWrong, answer_line, line_id, skipped_line
from worker.batch_queue import AHEAD, Line, Queue
from worker.batch_results import PART_LINES, Results, make_file, refusal

logger = get_logger(__name__)

TICK_S = 1.0
"""How often news are told and asked for: counts, a cancel, what other batches need."""
_BLOCK_MS = 500
_AT_ONCE = 8
"""Calls of one kind at a time: the connections are shared with all other batches of this worker."""
_WORKERS_LOST = 3
"""How often a line is begun anew whose every attempt lost its worker."""
_BEFORE_SEAL = Position(SEAL.epoch - 1, 2**53 - 1)
_TOO_MUCH = frozenset({429, 529})
_FOR_GOOD = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
"""Refusals with 429 that no waiting helps against."""

_ANSWERS = (Status.COMPLETED, Status.INCOMPLETE)
CANCELLED, EXPIRED, INPUT_GONE = "batch_cancelled", "batch_expired", "input_file_gone"


class Batcher:
    """All batches of one worker; `run` is what arq calls."""

    def __init__(self, redis: ArqRedis, log: StreamLog, broker: Broker, settings: Settings) -> None:
        self.redis, self.log, self.broker, self.settings = redis, log, broker, settings
        self.batches: Batches = broker.batches
        self.at_once = asyncio.Semaphore(_AT_ONCE)

    async def run(self, batch_id: str) -> bool:
        """Brings a batch to its end. False if it is another worker's now.

        Cancelling hands it over as it is. Raises RedisError, OSError and Unavailable: then it is to be run again.
        """
        try:
            head = await self.batches.claim(batch_id)
            BATCHES.inc()
            try:
                await _Run(self, head).to_the_end()
            finally:
                BATCHES.dec()
        except Fenced:
            logger.warning("batch fenced", batch_id=batch_id)
            return False
        except Gone:
            logger.info("batch gone", batch_id=batch_id)
        await self.batches.close(batch_id)
        return True


class _Run:
    """One claim on one batch."""

    def __init__(self, shared: Batcher, head: Head) -> None:
        self._shared, self._head = shared, head
        self.id, self._epoch, self._owner = head["id"], head["epoch"], head["owner"]
        self._settings, self._log = shared.settings, shared.log
        self._files, self._storage = shared.broker.files, shared.broker.files.storage
        self._clock = asyncio.get_running_loop().time
        self._ticked = float("-inf")
        self._ended_by: str | None = None
        self._input = Input(self._storage, head, self._settings.models)
        self._results = Results(self._storage, head, self._clock())

    async def to_the_end(self) -> None:
        logger.info("batch claimed", batch_id=self.id, attempt=self._epoch, status=self._head["status"])
        if self._head["status"] == "validating":
            await self._validate()
        began = "in_progress" in self._head["at"]
        if self._head["status"] == "cancelling" and not began:
            await self._save(lambda head: enter(head, "cancelled"))
        if self._head["status"] in ("in_progress", "cancelling"):
            await self._work()
        if self._head["status"] not in ENDED:
            await self._finalize()
        await self._storage.delete_all(f"parts/{self.id}")
        logger.info("batch ended", batch_id=self.id, status=self._head["status"])

    async def _save(self, change: Any) -> None:
        self._head = await self._shared.batches.save(self.id, self._epoch, change)

    # ---- validating

    async def _validate(self) -> None:
        """Reads the whole input once: nothing is run of a batch that has a wrong line."""
        try:
            found = await self._input.check(self._shared.broker.catalogue.check, self._tick)
        except Missing:
            gone = LineWrong(INPUT_GONE, "The input file is gone.", "input_file_id")
            found = Found(errors=[gone.at(None)])

        def checked(head: Head) -> None:
            if found.errors:
                head["errors"] = found.errors
                enter(head, "failed")
            elif head["status"] == "validating":
                enter(head, "in_progress")
                head["total"] = found.total
                head["model"] = next(iter(found.models)) if len(found.models) == 1 else None
                head["providers"] = sorted(set(map(self._input.provider, found.models)))

        await self._save(checked)

    # ---- in progress

    async def _work(self) -> None:
        """Until every line is in a part, or the batch is to end before that."""
        self._queue = Queue(self._settings.batch_lines, self._head.get("providers", []))
        try:
            await self._attach()
            while not self._ended_by:
                await self._hand_out()
                if self._input.over and not self._queue:
                    break
                await self._take_in()
                if self._results.is_due(self._clock()):
                    await self._flush()
                await self._tick()
        except (Missing, NotFound):
            self._ended_by = INPUT_GONE
        if self._ended_by:
            await self._stop(self._ended_by)
        await self._flush()

    async def _attach(self) -> None:
        """Goes on with the lines that were open when the last worker wrote down how far it was, and tidies up after it."""
        await self._forget()
        await self._tick()
        async for line in self._input.again((self._head["checkpoint"] or {}).get("open", [])):
            self._queue.wait(line, self._clock())

    async def _hand_out(self) -> None:
        """Begins as many lines as there is room for."""
        while self._queue.wants(self._clock()) and (line := await self._input.next()):
            self._queue.wait(line, self._clock())
        chosen = self._queue.choose(self._clock())
        try:
            await self._input.fetch(chosen)
        except (Missing, NotFound):
            for line in chosen:
                self._queue.wait(line, self._clock())
            raise
        await _all(map(self._begin, chosen))

    async def _begin(self, line: Line) -> None:
        """Submits a line, once however often and by whomever it is done."""
        assert line.asked
        generation_id = line_id(self.id, line.number, line.tries)
        async with self._shared.at_once:
            await self._shared.broker.submit_line(
                generation_id,
                json.dumps(line.asked.body),
                line.asked.request,
                Principal(self._owner),
                {"id": self.id, "line": line.number},
            )
        self._queue.begun(generation_id, line, self._clock())

    async def _take_in(self) -> None:
        """Waits for lines to end, and takes their answers in."""
        if not self._queue.open:
            await asyncio.sleep(_BLOCK_MS / 1000)
            return
        found = await self._log.poll(dict.fromkeys(self._queue.open, _BEFORE_SEAL), block_ms=_BLOCK_MS)
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
        for generation_id, end in (await self._log.ends(list(self._queue.open))).items():
            if end is None:
                self._queue.wait(self._queue.ended(generation_id), self._clock())

    async def _take(self, generation_id: str, outcome: dict[str, Any]) -> None:
        line, now = self._queue.open[generation_id], self._clock()
        error = outcome["error"] or {}
        too_much = _is_too_much(error)
        lost = error.get("code") == "no_worker" or (error.get("code") == "worker_lost" and line.tries < _WORKERS_LOST)
        if too_much:
            self._queue.refused(line, now, error.get("retry_after_s"))
        elif not lost:
            self._queue.answered(line)
        if too_much or lost:
            line = self._queue.ended(generation_id)
            line.tries += 1
            self._queue.wait(line, now)
            BATCH_LINES.labels("again").inc()
            return
        with suppress(Gone):  # deleted by its owner just now: it will be begun again
            text = await self._written(line, generation_id, outcome)
            self._add(self._queue.ended(generation_id), text, outcome)

    async def _written(self, line: Line, generation_id: str, outcome: dict[str, Any]) -> bytes:
        """What stands in the output for a line that has ended."""
        if outcome["status"] in _ANSWERS:
            async with self._shared.at_once:
                header, _ = await self._log.request(generation_id)
                fold = Accumulator()
                async for page in self._log.read_all(generation_id, BEGIN, strict=False):
                    for entry in page:
                        if entry.kind is Kind.ATTEMPT:
                            fold = Accumulator()
                        elif entry.kind in (Kind.CHUNK, Kind.USAGE):
                            fold.feed(json.loads(entry.data))
            body = {**completion(header, fold), "usage": outcome["usage"]}
            return answer_line(self.id, line.number, line.custom_id, 200, generation_id, body)
        status, body = refusal(outcome)
        return answer_line(self.id, line.number, line.custom_id, status, generation_id, body)

    def _add(self, line: Line, text: bytes, outcome: dict[str, Any]) -> None:
        self._results.add(line, text, "completed" if outcome["status"] in _ANSWERS else "failed", outcome.get("usage"))

    # ---- the checkpoint

    async def _flush(self) -> None:
        """Stores the part, then says so, then forgets its lines' logs."""
        await self._results.store(self._clock())
        await self._save(self._write_checkpoint)
        await self._forget()

    def _write_checkpoint(self, head: Head) -> None:
        head["checkpoint"] = {
            **self._input.position(),
            "open": [line.spot() for line in self._queue.lines()],
            **self._results.checkpoint(),
        }
        self._results.write_counts(head)

    async def _forget(self) -> None:
        """Deletes the logs of the lines of the last part, once what they used is booked. Harmless to do again."""
        ids = self._results.stored()
        closing = self._shared.broker.closing
        async with self._shared.redis.pipeline(transaction=False) as pipe:
            for generation_id in ids:
                pipe.exists(self._shared.redis.key.settled(generation_id))
            booked = await pipe.execute() if ids else []
        for generation_id, done in zip(ids, booked, strict=True):
            if not done:
                await closing.settle(generation_id)
        await self._log.delete_all(ids, self._owner)

    # ---- news

    async def _tick(self) -> None:
        """Once a second: tells the counts, learns of a cancel and of the time, and of what other batches need."""
        now = self._clock()
        if now - self._ticked < TICK_S:
            return
        self._ticked = now
        validating = self._head["status"] == "validating"
        await self._save(self._results.write_counts)
        if self._head["status"] == "cancelling":
            self._ended_by = CANCELLED
        elif now_ms() >= self._head["expires_at_ms"]:
            self._ended_by = EXPIRED
        if not validating:
            await self._share()

    async def _share(self) -> None:
        wanted = min(self._settings.batch_lines, max(1, self._head["total"] - self._results.count))
        mine = {"tenant": self._owner, "providers": dict.fromkeys(self._queue.providers, wanted)}
        demands = await self._shared.batches.demands(self.id, mine)
        self._queue.share(self.id, self._settings.batch_provider_lines, demands)

    # ---- the end

    async def _stop(self, why: str) -> None:
        """Ends what is open, keeps what is finished, and writes down for every other line that it was not run."""
        await self._end(list(self._queue.open))
        known = set(self._queue.open)
        begun, waiting = await self._begun()
        await self._end(begun.keys() - known)
        for (generation_id, line), summary in zip(begun.items(), await self._log.describe(list(begun)), strict=True):
            outcome = (summary.outcome if summary else None) or {"status": Status.CANCELLED}
            if outcome["status"] in _ANSWERS or (
                outcome["status"] == Status.FAILED and not _is_too_much(outcome["error"] or {})
            ):
                self._add(line, await self._written(line, generation_id, outcome), outcome)
            else:
                waiting.append(line)
        for line in waiting:
            self._skip(line, why)
        while why != INPUT_GONE and (rest := await self._input.next()):
            self._skip(rest, why)
            if self._results.is_due(self._clock()):
                await self._flush()

    async def _end(self, generation_ids: Iterable[str]) -> None:
        for generation_id in generation_ids:
            with suppress(Sealed, Gone):
                last = await self._log.last(generation_id)
                await self._shared.broker.closing.conclude(generation_id, last.epoch, Status.CANCELLED)
            await self._shared.redis.publish(self._shared.redis.key.doorbell, generation_id)

    def _skip(self, line: Line, why: str) -> None:
        line.asked = None
        self._results.add(line, skipped_line(self.id, line.number, line.custom_id, why), "skipped")

    async def _begun(self) -> tuple[dict[str, Line], list[Line]]:
        """The lines that have a log, by its newest try, and those read so far that have none.

        This claim may not have begun them: the one before it may have, after it last wrote down how far it was.
        """
        begun = dict(self._queue.open)
        for generation_id in begun:
            self._queue.ended(generation_id)
        waiting = self._queue.waiting()
        while self._ended_by != INPUT_GONE and len(waiting) < AHEAD + 2 * self._settings.batch_lines + PART_LINES:
            if (line := await self._input.next()) is None:
                break
            line.asked = None
            waiting.append(line)
        looked = waiting
        while looked:
            names = {line_id(self.id, line.number, line.tries): line for line in looked}
            ends = await self._log.ends(list(names))
            looked = [names[generation_id] for generation_id, end in ends.items() if end is not None]
            for line in looked:
                begun.pop(line_id(self.id, line.number, line.tries - 1), None)
                begun[line_id(self.id, line.number, line.tries)] = line
                line.tries += 1  # perhaps it was even asked again
        found = {line.number for line in begun.values()}
        return begun, [line for line in waiting if line.number not in found]

    async def _finalize(self) -> None:
        """Makes the files, which is done again from the start if it is interrupted, and says how it ended."""
        ended_by = self._ended_by

        def finalizing(head: Head) -> None:
            head.setdefault("ended_by", CANCELLED if head["status"] == "cancelling" else ended_by)
            if head["status"] != "cancelling":
                enter(head, "finalizing")

        await self._save(finalizing)
        ended_by = self._head["ended_by"]
        output = await make_file(self._files, self._head, OUTPUT)
        errors = await make_file(self._files, self._head, ERRORS)
        final = {CANCELLED: "cancelled", EXPIRED: "expired", INPUT_GONE: "failed"}.get(ended_by or "", "completed")

        def done(head: Head) -> None:
            head["output_file_id"], head["error_file_id"] = output, errors
            if ended_by == INPUT_GONE:
                wrong = LineWrong(INPUT_GONE, "The input file was deleted before all lines were read.", "input_file_id")
                head["errors"] = [wrong.at(None)]
            head["checkpoint"] = None
            enter(head, final)

        await self._save(done)


def _is_too_much(error: dict[str, Any]) -> bool:
    """Whether a line is to be asked again, later, because too much was asked at once."""
    return error.get("status") in _TOO_MUCH and error.get("code") not in _FOR_GOOD


async def _all(calls: Iterable[Awaitable[None]]) -> None:
    """Waits for all of them, also where one fails."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
