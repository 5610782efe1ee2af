"""THE job: claim → upstream → append → seal.

Hidden here: what a worker does with one generation, and what it finds when another worker was there before it. The
log answers every question of the kind "may I?": Taken, Fenced, Sealed and Gone all mean that another worker, or the API,
decided, and that this attempt closes its upstream and writes nothing more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from shared.chat.messages import Messages
from shared.chat.whole import FIELD
from shared.config.settings import Settings
from shared.errors import (
    BudgetReached,
    BudgetStopped,
    Damaged,
    Fenced,
    Forgotten,
    GenerationInterrupted,
    Gone,
    Internal,
    LogError,
    Sealed,
    StorageFull,
    StorageRefused,
    StoredError,
    StreamLost,
    StreamspoolError,
    Taken,
    UnsupportedVersion,
    UpstreamIncomplete,
    UpstreamTimeout,
    UpstreamTooLong,
    WorkerLost,
    without_frames,
)
from shared.features.access.limits import Limiter
from shared.features.blobs import OfTenant
from shared.features.spend.prices import was_taken
from shared.generations.outcome import Outcomes, finished_status
from shared.generations.settlement import Settlement
from shared.lib import json
from shared.lib.clock import now_ms
from shared.lib.telemetry import CHUNKS, begin_request, get_logger
from shared.lib.traces import tracing
from shared.log.appender import Appender
from shared.log.blobs import Stored
from shared.log.entry import BEGIN, VERSION, Position, Status
from shared.log.records import Attempt, Header, Outcome
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from shared.store.outage import is_passing, is_withheld
from shared.store.redis import RedisError, log_redis_error
from worker import counting, spans
from worker.normalizer import Normalizer
from worker.opening import Opening, new_attempt
from worker.providers.chunk_shapes import answer_bytes
from worker.providers.formats import responses_verbatim
from worker.providers.registry import Provider
from worker.providers.tool_calls import forces_one, ids_in, tool_names
from worker.running import RunningAttempts
from worker.summaries import Summaries, Summary
from worker.upstream.attempts import Served, targets_of
from worker.upstream.client import Terms, Upstream
from worker.upstream.shortcut import Shortcut

logger = get_logger(__name__)

Claimed = tuple[Writer, Header, Stored]
"""An attempt that is ours: its writer, the request's header, and its body as the log has it."""


class Generator:
    """Runs generations in this worker; `run` is what arq calls."""

    def __init__(
        self,
        log: StreamLog,
        appender: Appender,
        upstream: Upstream,
        providers: Mapping[str, Provider],
        outcomes: Outcomes,
        settlement: Settlement,
        settings: Settings,
        *,
        worker_id: str,
        summaries: Summaries,
        limiter: Limiter | None = None,
    ) -> None:
        self._limiter, self._summaries = limiter, summaries
        self._log, self._appender, self._upstream, self._outcomes = log, appender, upstream, outcomes
        self.running, self._telling = RunningAttempts(log, appender), counting.Telling(log)
        self._providers, self._settings, self._worker_id = providers, settings, worker_id
        self._settlement = settlement

    async def run(self, generation_id: str, job_try: int, opening: Opening | None = None) -> bool:
        """Brings a generation to its outcome. False if it is another worker's now: then the job is not ours to finish.

        Cancelling hands the generation over: the upstream is closed, the log stays open for the next attempt.
        """
        try:
            claimed = await self._claim(generation_id, opening, first=job_try == 1)
            while claimed is not None:
                writer, header, body = claimed
                if self._limiter is not None and header.get("limited"):
                    await self._limiter.begun(header)
                try:
                    async with spans.generating(self._log, writer, header):
                        claimed = await self._attempt(writer, header, body)
                finally:
                    writer.close()
        except (Taken, Fenced) as error:
            without_frames(error)
            logger.warning("fenced", generation_id=generation_id, worker_id=self._worker_id)
            return False
        except (Sealed, Gone) as error:
            without_frames(error)
            logger.info("stopped", generation_id=generation_id, reason=type(error).__name__.lower())
        return True

    async def note_budgets(self) -> None:
        """Has those that run end whose budget is reached, where the setting says so."""
        if self._settlement.budgets.stops_running:
            await self.running.note_over(self._settlement.budgets.over)

    # ---- claim

    async def _claim(self, generation_id: str, opening: Opening | None, *, first: bool) -> Claimed | None:
        """The right to write the next attempt; None if the generation was brought to its end right here."""
        attempt, data, asked = opening or (new_attempt(self._worker_id, "queued"), b"", None)
        if first or opening:
            try:
                begun = await self._log.claim(self._appender, generation_id, 1, attempt, asked, data)
                return self._claimed(*begun, attempt)
            except Taken:
                pass
        last = await self._log.last(generation_id)
        number = await self._log.attempt_number(generation_id, last.epoch)
        if last.seq and last.epoch and await self._end_interrupted(generation_id, last, number):
            return None
        if number >= self._settings.max_attempts:
            await self._outcomes.conclude(generation_id, last.epoch, Status.FAILED, error=WorkerLost().to_stored())
            return None
        attempt["reason"], attempt["number"] = "worker_lost" if last.epoch else "queued", number + 1
        return await self._claim_next(generation_id, last.epoch, attempt)

    async def _claim_next(self, generation_id: str, epoch: int, attempt: Attempt) -> Claimed:
        return self._claimed(*await self._log.claim(self._appender, generation_id, epoch + 1, attempt), attempt)

    def _claimed(self, writer: Writer, header: Header, body: Stored, attempt: Attempt) -> Claimed:
        begin_request(header.get("request_id"), header.get("traceparent"))
        writer.timings["queued_ms"] = max(0, attempt["at_ms"] - header["created_at_ms"])
        counting.claimed(attempt["reason"], writer.timings["queued_ms"])
        logger.info("claimed", generation_id=writer.generation_id, attempt=writer.epoch, reason=attempt["reason"])
        return writer, header, body

    async def _end_interrupted(self, generation_id: str, last: Position, number: int) -> bool:
        """An earlier worker was lost after chunks: the whole answer is there, or the request's policy decides.

        True if that was the end of it; False if a new attempt may be made.
        """
        header, _ = await self._log.request(generation_id)
        restart = header.get("on_interruption") == "restart"
        if restart and number < self._settings.max_attempts and not await self._is_whole(generation_id, last.epoch):
            return False
        error = WorkerLost() if restart else GenerationInterrupted()
        await self._outcomes.conclude(generation_id, last.epoch, Status.FAILED, error=error.to_stored())
        return True

    async def _is_whole(self, generation_id: str, epoch: int) -> bool:
        try:
            return (await self._outcomes.transcripts.read(generation_id, epoch, ending=True)).whole
        except Damaged:
            return False

    # ---- upstream → append

    async def _attempt(self, writer: Writer, header: Header, stored: Stored) -> Claimed | None:
        """Runs an attempt to its end; returns the next one if the request wants another after an interruption."""
        if header.get("v", 1) > VERSION:
            unsupported = UnsupportedVersion().to_stored()
            await self._outcomes.conclude(writer.generation_id, writer.epoch, Status.FAILED, error=unsupported)
            return None
        answer = Normalizer(
            id=writer.generation_id,
            created=header["created_at_ms"] // 1000,
            model=header["model"],
            show_usage=header["include_usage"],
            choices=header["n"],
        )
        started, served = time.monotonic(), Served()
        error: StreamspoolError | None = None
        status = None
        try:
            say = partial(self._say, writer, header, stored, answer, served)
            if not await self.running.run(writer, header, say):
                status = Status.CANCELLED
        except StreamspoolError as caught:
            error = without_frames(caught)
        except Damaged as damage:
            error = _lost(without_frames(damage))
        except (LogError, RedisError, OSError):
            raise
        except Exception as bug:
            logger.error("attempt broke", generation_id=writer.generation_id, exc_info=bug)
            without_frames(bug)
            error = Internal("Something broke on our side while this was answered. The id finds it in the log.")
        while not (error and writer.position.seq and self._may_restart(error, header, writer)):
            try:
                await self._finish(writer, header, answer, served, error, status)
            except Damaged as damage:  # the last words were there once
                error, status = _lost(without_frames(damage)), None
                continue
            counting.ended(writer, served, time.monotonic() - started, error)
            return None
        counting.failed(error, served)
        self._appender.tell(*writer.untold())
        next_one = new_attempt(self._worker_id, error.code, writer.number + 1)
        return await self._claim_next(writer.generation_id, writer.epoch, next_one)

    def _may_restart(self, error: StreamspoolError, header: Header, writer: Writer) -> bool:
        return (
            header.get("on_interruption") == "restart"
            and writer.number < self._settings.max_attempts
            and isinstance(error, UpstreamIncomplete | UpstreamTimeout | StreamLost)
            and error.code != "generation_timeout"
        )

    async def _ready(self, header: Header, stored: Stored, answer: Normalizer) -> tuple[dict[str, Any], Messages]:
        """The request, and all its messages. Raises BudgetReached."""
        body = await self._outcomes.transcripts.blobs.parsed(header["owner"], stored)
        history, asked = await self._outcomes.transcripts.messages(header, body)
        messages = [*history, *asked]
        answer.forced, answer.call_ids, answer.tools = forces_one(body), ids_in(messages), tool_names(body)
        answer.verbatim, answer.whole = responses_verbatim.request_of(body) is not None, body.get(FIELD)
        await self._settlement.check_budget(header)
        return body, messages

    async def _say(self, writer: Writer, header: Header, stored: Stored, answer: Normalizer, served: Served) -> None:
        """Appends what the provider says, and a summary of its thoughts. Raises UpstreamError after all that came is stored."""
        body, messages = await self.running.ready(header["id"], partial(self._ready, header, stored, answer))
        summary = self._summaries.of(header, body, served, answer)
        body = {**body, "messages": messages}
        async with summary:
            stopped = await self._relay(writer, header, answer, body, served, summary)
            await writer.append(await self._outcomes.transcripts.blobs.chunks(header, await summary.end()))
        await self._tell_usage(writer, answer)
        if stopped is not None:
            raise stopped

    async def _relay(
        self,
        writer: Writer,
        header: Header,
        answer: Normalizer,
        body: dict[str, Any],
        served: Served,
        summary: Summary,
    ) -> StreamspoolError | None:
        """What ended the answer before its provider did.

        Over the limit, it hangs up on the provider, which would go on: the answer has its end then, and UpstreamTooLong
        says why.
        """
        asked, limit, budgets = time.monotonic(), self._settings.max_answer_bytes, self.running.budgets(header["id"])
        blobs, shortcut = self._outcomes.transcripts.blobs, Shortcut(writer, summary, budgets, limit)
        terms = Terms(partial(self._telling.retried, writer, header), OfTenant(blobs, header["owner"]), shortcut)
        targets = targets_of(body["model"], self._settings.models, self._providers)
        stream = self._upstream.stream(targets, body, answer, served, terms)
        async with aclosing(stream) as batches:
            async for batch in batches:  # the upstream reads ahead meanwhile, within bounds, and merges what it read
                if is_first := not writer.position.seq:
                    first_s = time.monotonic() - asked
                    tracing.event("first_chunk")
                    writer.timings["first_chunk_ms"] = round(first_s * 1000)
                    writer.note = json.dumps(note := served.note(spoke=True))
                shortcut.size += answer_bytes(batch)
                await writer.append(await blobs.chunks(header, summary.take(batch)))
                if is_first:
                    counting.first_chunk(served, first_s)
                    self._telling.first_chunk(writer, header, note)
                summary.look()
                CHUNKS.inc(len(batch))
                stopped = budgets.is_over
                if stopped or shortcut.is_too_long:
                    break
            else:
                return None
        whole = answer.finished or answer.done
        summary.forgo()
        await writer.append(summary.take(answer.end() if whole else answer.cut_off()))
        if whole:
            return None
        if stopped:
            return BudgetStopped("The budget was reached while this was answered, and it was ended there.")
        return UpstreamTooLong(
            f"The answer went on beyond {limit} bytes (STREAMSPOOL_MAX_ANSWER_BYTES) and was ended there."
        )

    async def _tell_usage(self, writer: Writer, answer: Normalizer) -> None:
        """Who asked for usage is told it always: where the provider gave none, our own figures, called what they are."""
        if answer.lacks_usage:
            told = await self._outcomes.transcripts.read(writer.generation_id, writer.epoch, ending=True)
            measured = await told.usage(answer.usage)
            await writer.append(answer.measured(measured.figures, measured.source))

    # ---- seal

    async def _finish(
        self,
        writer: Writer,
        header: Header,
        answer: Normalizer,
        served: Served,
        error: StreamspoolError | None,
        status: Status | None,
    ) -> None:
        """Waits for a server that is away, cannot write to its disk or does not let us: only the end is missing, whichever it
        is. Raises Damaged where the server forgot a part of it for good: it is no answer then, and to be finished as lost."""
        try:
            await writer.settle(patient=status is None)
        except Exception as refusal:  # it may be what has ended the answer; that it is another's ends all of it
            is_others = isinstance(refusal, LogError) and not isinstance(refusal, Damaged)
            if is_others or (error is None and status is None):
                raise
            without_frames(refusal)
        if status is None:
            answered = error is None or isinstance(error, UpstreamTooLong)
            status = finished_status(answer.finish_reasons) if answered else Status.FAILED
        failure = None
        if error is not None:
            if not isinstance(error, StorageFull | StorageRefused | BudgetReached):  # those are no provider's
                counting.failed(error, served)
            failure = error.to_stored()
        lost = isinstance(error, StreamLost)
        outcome: Outcome | None = None
        while True:
            try:
                if outcome is None:  # once: it is known by that where the server had taken it and the reply was lost
                    outcome = await self._outcome(writer, answer, served, status, failure, lost=lost)
                    asked = bool(writer.position.seq) or was_taken(error)
                    outcome["cost"] = await self._outcomes.prices.cost(header, outcome, asked=asked, tier=answer.tier)
                after, length = (BEGIN, None) if lost else (writer.position, writer.length)
                end: dict[str, Any] = {"epoch": writer.epoch, "after": after, "length": length}
                told, timings = writer.untold(), writer.timings
                await self._outcomes.seal(header, outcome, attempt=writer.epoch, timings=timings, told=told, **end)
                if header.get("batch") is None:  # a line that is forgotten is asked again: it need not be kept
                    writer.sealed(partial(self._log.seal, header["id"], outcome, header=header, **end))
                return
            except (RedisError, OSError) as problem:
                if not (is_passing(problem) or is_withheld(problem)):
                    raise
                log_redis_error("seal", problem)
                await asyncio.sleep(1)
            except Forgotten:
                await writer.mend()

    async def _outcome(
        self,
        writer: Writer,
        answer: Normalizer,
        served: Served,
        status: Status,
        failure: StoredError | None,
        *,
        lost: bool,
    ) -> Outcome:
        """Where the provider gave no usage, or half, or may have put its reasoning into the text, the log is read for it."""
        note, reasons = served.note(spoke=bool(writer.position.seq)), answer.finish_reasons
        if not answer.usage or answer.half_told or (note.get("think") and answer.tagged):
            told = await self._outcomes.transcripts.read(writer.generation_id, writer.epoch, damaged=lost, ending=True)
            outcome = await self._outcomes.compose(told, status, failure)
        else:
            outcome = {
                "status": status,
                "ended_at_ms": now_ms(),
                "by": self._worker_id,
                "error": failure,
                "finish_reasons": reasons,
                "usage": answer.usage,
                "usage_source": "provider",
                "characters": {"content": answer.content_chars, "reasoning": answer.reasoning_chars},
            }
            if writer.spoke_at_ms is not None:
                outcome["spoke_at_ms"] = writer.spoke_at_ms
        return {**outcome, "served": note, "finish_reasons": reasons}


def _lost(damage: Damaged) -> StreamLost:
    logger.error("stream lost", reason=str(damage))
    return StreamLost()
