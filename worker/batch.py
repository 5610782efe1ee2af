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
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shared import json, keys
from shared.batches import (
    ENDED,
    ERRORS,
    MAX_LINES,
    NO_USAGE,
    OUTPUT,
    Batches,
    Head,
    enter,
    part_name,
    part_names,
)
from shared.broker import Broker, Principal
from shared.chat import Accumulator, completion
from shared.config import Settings
from shared.entry import BEGIN, SEAL, Kind, Position, Status, now_ms
from shared.errors import Damaged, Fenced, Gone, NotFound, Sealed
from shared.files import OUTPUT as OUTPUT_PURPOSE
from shared.files import NewFile
from shared.redis import ArqRedis
from shared.storage import Missing
from shared.streamlog import StreamLog
from shared.telemetry import BATCH_LINES, BATCHES, get_logger
from worker.batch_lines import (
    Asked,
    LineWrong,
    Raw,
    add_usage,
    answer_line,
    check_line,
    line_id,
    read_lines,
    skipped_line,
)
from worker.window import Demand, Window, fair_shares

logger = get_logger(__name__)

TICK_S = 1.0
"""How often news are told and asked for: counts, a cancel, what other batches need."""
_BLOCK_MS = 500
_AT_ONCE = 8
"""Calls of one kind at a time: the connections are shared with all other batches of this worker."""
_BREATH = 16
"""After so many lines in a row somebody else gets a turn."""
_PART_BYTES, _PART_LINES = 1024 * 1024, 500
_OPEN_BYTES = 32 * 1024 * 1024
_MOST_ERRORS = 100
_WORKERS_LOST = 3
"""How often a line is begun anew whose every attempt lost its worker."""
_BEFORE_SEAL = Position(SEAL.epoch - 1, 2**53 - 1)
_TOO_MUCH = frozenset({429, 529})
_FOR_GOOD = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
"""Refusals with 429 that no waiting helps against."""

_ANSWERS = (Status.COMPLETED, Status.INCOMPLETE)

CANCELLED, EXPIRED, INPUT_GONE = "batch_cancelled", "batch_expired", "input_file_gone"


@dataclass(slots=True)
class Line:
    """A line that is open: begun, and in no part yet."""

    number: int
    offset: int
    length: int
    custom_id: str
    provider: str
    tries: int = 0
    asked_at: float = 0.0

    def spot(self) -> list[int]:
        return [self.number, self.offset, self.length, self.tries]


@dataclass(slots=True)
class _Part:
    """What was taken in and is not stored yet."""

    begun_at: float
    output: list[bytes] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    bytes: int = 0
    count: int = 0


class Batcher:
    """All batches of one worker; `run` is what arq calls."""

    def __init__(
        self,
        redis: ArqRedis,
        log: StreamLog,
        broker: Broker,
        settings: Settings,
    ) -> None:
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
        self._open: dict[str, Line] = {}
        self._again: deque[Line] = deque()
        self._pending: Line | None = None
        self._windows: dict[str, Window] = {}
        self._ended_by: str | None = None
        self._began, self._ticked = self._clock(), float("-inf")
        checkpoint = head["checkpoint"] or {}
        self._next, self._offset = checkpoint.get("next", 1), checkpoint.get("offset", 0)
        self._parts: list[list[int]] = checkpoint.get("parts", [])
        self._stored: list[list[int]] = checkpoint.get("stored", [])
        self._completed, self._failed = checkpoint.get("completed", 0), checkpoint.get("failed", 0)
        self._usage: dict[str, int] = {**NO_USAGE, **checkpoint.get("usage", {})}
        self._bodies: dict[int, Asked] = {}
        self._part = _Part(self._clock())

    async def to_the_end(self) -> None:
        logger.info("batch claimed", batch_id=self.id, attempt=self._epoch, status=self._head["status"])
        if self._head["status"] == "validating":
            await self._validate()
        began = "in_progress" in self._head["at"]
        if self._head["status"] == "cancelling" and not began:
            await self._save(lambda head: enter(head, "cancelled"))
        if self._head["status"] in ("in_progress", "cancelling"):
            try:
                await self._work()
            except (Missing, NotFound):
                self._ended_by = INPUT_GONE
                await self._flush()
        if self._head["status"] not in ENDED:
            await self._finalize()
        await self._storage.delete_all(f"parts/{self.id}")
        logger.info("batch ended", batch_id=self.id, status=self._head["status"])

    async def _save(self, change: Any) -> None:
        self._head = await self._shared.batches.save(self.id, self._epoch, change)

    def _input(self, offset: int = 0) -> AsyncIterator[bytes]:
        return self._storage.read(self._head["input_file_id"], offset)

    # ---- validating

    async def _validate(self) -> None:
        """Reads the whole input once: nothing is run of a batch that has a wrong line."""
        errors: list[dict[str, Any]] = []
        seen: set[bytes] = set()
        models: set[str] = set()
        total = 0
        try:
            async for line in read_lines(self._input()):
                total += 1
                if total > MAX_LINES or len(errors) >= _MOST_ERRORS:
                    break
                if total % _BREATH == 0:
                    await asyncio.sleep(0)
                    await self._tick()
                try:
                    await self._check(line, seen, models)
                except LineWrong as wrong:
                    errors.append(wrong.at(line.number))
        except Missing:
            errors.append(LineWrong(INPUT_GONE, "The input file is gone.", "input_file_id").at(None))
        if total > MAX_LINES:
            errors = [LineWrong("too_many_lines", f"A batch has {MAX_LINES} lines at most.").at(None)]
        elif not total and not errors:
            errors = [LineWrong("empty_file", "The input file has no lines.", "input_file_id").at(None)]

        def checked(head: Head) -> None:
            if errors:
                head["errors"] = errors
                enter(head, "failed")
            elif head["status"] == "validating":
                enter(head, "in_progress")
                head["total"] = total
                head["model"] = next(iter(models)) if len(models) == 1 else None

        await self._save(checked)

    async def _check(self, line: Raw, seen: set[bytes], models: set[str]) -> None:
        asked = check_line(line, self._head["endpoint"])
        key = asked.custom_id.encode("utf-8", "surrogatepass")
        if key in seen:
            raise LineWrong("duplicate_custom_id", f"The custom_id of line {line.number} was used before.", "custom_id")
        seen.add(key)
        if asked.request.model not in models:
            try:
                await self._shared.broker.catalogue.check(asked.request.model)
            except NotFound as error:
                raise LineWrong("model_not_found", error.message, "body.model") from None
            models.add(asked.request.model)

    # ---- in progress

    async def _work(self) -> None:
        """Until every line is in a part, or the batch is to end before that."""
        await self._attach()
        self._source = read_lines(self._input(self._offset), self._next, self._offset)
        while True:
            await self._tick()
            if self._ended_by:
                await self._stop()
                return
            await self._hand_out()
            if not self._open and not self._again and self._pending is None:
                break
            await self._take_in(_BLOCK_MS)
            await self._flush_if_due()
        await self._flush()

    async def _attach(self) -> None:
        """Goes on with the lines that were open when the last worker wrote down how far it was, and tidies up after it."""
        await self._forget()
        spots = (self._head["checkpoint"] or {}).get("open", [])
        raw = await self._storage.read_ranges(self._head["input_file_id"], [(spot[1], spot[2]) for spot in spots])
        for (number, offset, length, tries), data in zip(spots, raw, strict=True):
            line = self._understood(Raw(number, offset, length, data), tries)
            self._again.append(line)

    def _understood(self, raw: Raw, tries: int = 0) -> Line:
        asked = check_line(raw, self._head["endpoint"])
        self._bodies[raw.number] = asked
        model = self._settings.models.get(asked.request.model, [asked.request.model])[0]
        return Line(raw.number, raw.offset, raw.length, asked.custom_id, model.partition("/")[0], tries)

    async def _hand_out(self) -> None:
        """Begins as many lines as there is room for."""
        now = self._clock()
        chosen: list[Line] = []
        opened = Counter(line.provider for line in self._open.values())
        room = self._settings.batch_lines - len(self._open)
        size = sum(open_line.length for open_line in self._open.values())
        while room > 0 and (size < _OPEN_BYTES or not (self._open or chosen)):
            line = await self._next_line()
            if line is None:
                break
            window = self._windows.setdefault(line.provider, Window(self._settings.batch_lines))
            if not window.room(opened[line.provider], now):
                self._pending = line
                break
            opened[line.provider] += 1
            room, size = room - 1, size + line.length
            chosen.append(line)
        await _all(map(self._begin, chosen))

    async def _next_line(self) -> Line | None:
        if self._pending is not None:
            line, self._pending = self._pending, None
            return line
        if self._again:
            return self._again.popleft()
        raw = await anext(self._source, None)
        if raw is None:
            return None
        self._next, self._offset = raw.number + 1, raw.offset + raw.length + 1
        return self._understood(raw)

    async def _begin(self, line: Line) -> None:
        """Submits a line, once however often and by whomever it is done."""
        asked = self._bodies.pop(line.number, None)
        if asked is None:
            (data,) = await self._storage.read_ranges(self._head["input_file_id"], [(line.offset, line.length)])
            asked = check_line(Raw(line.number, line.offset, line.length, data), self._head["endpoint"])
        generation_id = line_id(self.id, line.number, line.tries)
        async with self._shared.at_once:
            await self._shared.broker.submit_line(
                generation_id,
                json.dumps(asked.body),
                asked.request,
                Principal(self._owner),
                {"id": self.id, "line": line.number},
            )
        line.asked_at = self._clock()
        self._open[generation_id] = line

    async def _take_in(self, block_ms: int) -> None:
        """Waits for lines to end, and takes their answers in."""
        if not self._open:
            await asyncio.sleep(block_ms / 1000)
            return
        found = await self._log.poll(dict.fromkeys(self._open, _BEFORE_SEAL), block_ms=block_ms)
        if not found:
            await self._begin_lost_again()
        ended = []
        for generation_id, entries in found.items():
            if not isinstance(entries, Damaged):
                ended.append((generation_id, json.loads(entries[-1].data)))
        await _all(self._take(generation_id, outcome) for generation_id, outcome in ended)

    async def _begin_lost_again(self) -> None:
        """A log that is gone, whoever deleted it, leaves its line as if it had not been begun."""
        for generation_id, end in (await self._log.ends(list(self._open))).items():
            if end is None:
                self._again.append(self._open.pop(generation_id))

    async def _take(self, generation_id: str, outcome: dict[str, Any]) -> None:
        line = self._open[generation_id]
        window = self._windows.setdefault(line.provider, Window(self._settings.batch_lines))
        error = outcome["error"] or {}
        now = self._clock()
        if error.get("status") in _TOO_MUCH and error.get("code") not in _FOR_GOOD:
            window.refused(line.asked_at, now, error.get("retry_after_s"))
            self._ask_again(generation_id, line)
        elif error.get("code") == "no_worker" or (error.get("code") == "worker_lost" and line.tries < _WORKERS_LOST):
            self._ask_again(generation_id, line)
        else:
            window.answered()
            try:
                text = await self._written(line, generation_id, outcome)
            except Gone:
                return  # deleted by its owner just now: it will be begun again
            del self._open[generation_id]
            self._add(line, text, completed=outcome["status"] in _ANSWERS, usage=outcome["usage"])

    def _ask_again(self, generation_id: str, line: Line) -> None:
        del self._open[generation_id]
        line.tries += 1
        self._again.append(line)
        BATCH_LINES.labels("again").inc()

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
        error = outcome["error"] or {
            "message": "The line was cancelled by itself.",
            "type": "cancelled",
            "param": None,
            "code": "generation_cancelled",
            "status": 409,
        }
        shown = {name: error.get(name) for name in ("message", "type", "param", "code")}
        status = int(error.get("status") or 500)
        return answer_line(self.id, line.number, line.custom_id, status, generation_id, {"error": shown})

    def _add(
        self, line: Line, text: bytes, *, completed: bool, skipped: bool = False, usage: dict[str, Any] | None = None
    ) -> None:
        part = self._part
        if completed:
            add_usage(self._usage, usage)
        (part.output if completed else part.errors).append(text)
        part.lines.append(line)
        part.bytes += len(text)
        part.count += 1
        self._completed += completed
        self._failed += not completed
        BATCH_LINES.labels("completed" if completed else "skipped" if skipped else "failed").inc()

    # ---- the checkpoint

    async def _flush_if_due(self) -> None:
        """Parts are small in the beginning, so that results are there early, and few over a day."""
        part, now = self._part, self._clock()
        age = max(TICK_S, (now - self._began) / 100)
        if part.bytes >= _PART_BYTES or part.count >= _PART_LINES or (part.count and now - part.begun_at >= age):
            await self._flush()
        elif not part.count:
            part.begun_at = now

    async def _flush(self) -> None:
        """Stores the part, then says so, then forgets its lines' logs."""
        part, self._part = self._part, _Part(self._clock())
        mine = next((entry for entry in self._parts if entry[0] == self._epoch), None) or [self._epoch, 0, 0]
        for place, texts in ((OUTPUT, part.output), (ERRORS, part.errors)):
            if texts:
                await self._storage.put(part_name(self.id, place, self._epoch, mine[place]), b"".join(texts))
        now = [self._epoch, mine[1] + bool(part.output), mine[2] + bool(part.errors)]
        self._parts = [*(entry for entry in self._parts if entry[0] != self._epoch), now]
        self._stored = [[line.number, line.tries] for line in part.lines]
        await self._save(self._write_checkpoint)
        await self._forget()

    def _write_checkpoint(self, head: Head) -> None:
        waiting = [*self._open.values(), *self._again, *([self._pending] if self._pending else [])]
        head["checkpoint"] = {
            "next": self._next,
            "offset": self._offset,
            "open": [line.spot() for line in waiting],
            "parts": self._parts,
            "stored": self._stored,
            "completed": self._completed,
            "failed": self._failed,
            "usage": self._usage,
        }
        self._write_counts(head)

    def _write_counts(self, head: Head) -> None:
        head["completed"], head["failed"], head["usage"] = self._completed, self._failed, dict(self._usage)

    async def _forget(self) -> None:
        """Deletes the logs of the lines of the last part, once what they used is booked. Harmless to do again."""
        ids = [line_id(self.id, number, tries) for number, last in self._stored for tries in range(last + 1)]
        closing = self._shared.broker.closing
        async with self._shared.redis.pipeline(transaction=False) as pipe:
            for generation_id in ids:
                pipe.exists(keys.settled(generation_id))
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
        await self._save(self._write_counts if self._head["status"] != "validating" else lambda head: None)
        if self._head["status"] == "cancelling":
            self._ended_by = CANCELLED
        elif now_ms() >= self._head["expires_at_ms"]:
            self._ended_by = EXPIRED
        await self._share()

    async def _share(self) -> None:
        left = max(1, self._head["total"] - self._completed - self._failed)
        wanted = min(self._settings.batch_lines, left)
        mine = {"tenant": self._owner, "providers": dict.fromkeys(self._windows, wanted)}
        demands = await self._shared.batches.demands(self.id, mine)
        for name, window in self._windows.items():
            asking = {
                batch_id: Demand(demand["tenant"], demand["providers"][name])
                for batch_id, demand in demands.items()
                if name in demand["providers"]
            }
            share = fair_shares(self._settings.batch_provider_lines, asking)[self.id]
            window.most = min(share, self._settings.batch_lines)

    # ---- the end

    async def _stop(self) -> None:
        """Ends what is open, keeps what is finished, and writes down for every other line that it was not run."""
        assert self._ended_by is not None
        skip = partial(skipped_line, self.id)
        await self._find_begun()
        for generation_id in list(self._open):
            with suppress(Sealed, Gone):
                last = await self._log.last(generation_id)
                await self._shared.broker.closing.conclude(generation_id, last.epoch, Status.CANCELLED)
            await self._shared.redis.publish(keys.DOORBELL, generation_id)
        for generation_id, summary in zip(self._open, await self._log.describe(list(self._open)), strict=True):
            line, outcome = self._open[generation_id], (summary.outcome if summary else None) or {}
            completed = outcome.get("status") in _ANSWERS
            text = (
                await self._written(line, generation_id, outcome)
                if completed
                else skip(line.number, line.custom_id, self._ended_by)
            )
            self._add(line, text, completed=completed, skipped=not completed, usage=outcome.get("usage"))
        self._open.clear()
        for line in self._again:
            self._add(line, skip(line.number, line.custom_id, self._ended_by), completed=False, skipped=True)
        self._again.clear()
        while (raw := await anext(self._source, None)) is not None:
            self._next, self._offset = raw.number + 1, raw.offset + raw.length + 1
            line = self._understood(raw)
            self._bodies.clear()
            self._add(line, skip(line.number, line.custom_id, self._ended_by), completed=False, skipped=True)
            if self._part.count % _BREATH == 0:
                await asyncio.sleep(0)
                await self._flush_if_due()
        await self._flush()

    async def _find_begun(self) -> None:
        """Lines that have a log are open, although this claim may not have begun them: the one before it may have,
        after it last wrote down how far it was."""
        waiting = [*self._again, *([self._pending] if self._pending else [])]
        self._again.clear()
        self._pending = None
        while len(waiting) < 2 * self._settings.batch_lines + _PART_LINES:
            if (line := await self._next_line()) is None:
                break
            waiting.append(line)
        self._bodies.clear()
        names = {line_id(self.id, line.number, line.tries): line for line in waiting}
        for generation_id, end in (await self._log.ends(list(names))).items():
            if end is None:
                self._again.append(names[generation_id])
            else:
                self._open[generation_id] = names[generation_id]

    async def _finalize(self) -> None:
        """Makes the files, which is done again from the start if it is interrupted, and says how it ended."""
        ended_by = self._ended_by

        def finalizing(head: Head) -> None:
            head.setdefault("ended_by", CANCELLED if head["status"] == "cancelling" else ended_by)
            if head["status"] != "cancelling":
                enter(head, "finalizing")

        await self._save(finalizing)
        ended_by = self._head["ended_by"]
        output = await self._make_file(OUTPUT, "output")
        errors = await self._make_file(ERRORS, "error")
        final = {CANCELLED: "cancelled", EXPIRED: "expired", INPUT_GONE: "failed"}.get(ended_by or "", "completed")

        def done(head: Head) -> None:
            head["output_file_id"], head["error_file_id"] = output, errors
            if ended_by == INPUT_GONE:
                wrong = LineWrong(INPUT_GONE, "The input file was deleted before all lines were read.", "input_file_id")
                head["errors"] = [wrong.at(None)]
            head["checkpoint"] = None
            enter(head, final)

        await self._save(done)

    async def _make_file(self, place: int, kind: str) -> str | None:
        names = part_names(self._head, place)
        if not names:
            return None
        async with self._files.create(self._owner, f"file-{line_id(self.id, place, 0)[-32:]}") as new:
            for name in names:
                async for piece in self._storage.read(name):
                    await new.write(piece)
            new.finish(filename=f"{self.id}_{kind}.jsonl", purpose=OUTPUT_PURPOSE, life_s=self._head["output_life_s"])
        made: NewFile = new
        return made.id


async def _all(calls: Iterable[Awaitable[None]]) -> None:
    """Waits for all of them, also where one fails."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
