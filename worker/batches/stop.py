"""A batch is to end before its lines have: what is open is ended, what is finished is kept, the rest is written down.

Hidden here: which lines have a log. This claim may not have begun them: the one before it may have, after it last wrote
down how far it was.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from shared.errors import Damaged, Gone, Sealed
from shared.features.batch_head import BatchHead, reached
from shared.features.storage import Missing
from shared.lib.telemetry import get_logger
from shared.log.entry import SEAL, Status
from worker.batches.lines import line_id, skipped_line
from worker.batches.queue import AHEAD, Line
from worker.batches.results import PART_LINES
from worker.batches.verdict import ANSWERS, OUTAGES, Verdict, verdict

if TYPE_CHECKING:
    from worker.batches.batcher import Batcher
    from worker.batches.run import Run

logger = get_logger(__name__)

_AT_ONCE = 500


class Stop:
    """Of one run, once. Reads the input to its end, as far as that is there."""

    def __init__(self, run: Run, why: str) -> None:
        self._run, self._why = run, why
        self._log = run.shared.log
        self._readable = True

    async def do(self) -> None:
        run = self._run
        await _end(run.shared, list(run.queue.open))
        known = set(run.queue.open)
        begun, waiting = await self._begun()
        await _end(run.shared, begun.keys() - known)
        for (generation_id, line), summary in zip(begun.items(), await self._log.describe(list(begun)), strict=True):
            outcome = summary.outcome if summary else None
            if outcome and (
                outcome["status"] in ANSWERS
                or (outcome["status"] == Status.FAILED and verdict(outcome) is Verdict.DONE)
            ):
                try:
                    run.add(line, await run.written(line, generation_id, outcome), outcome)
                    continue
                except OUTAGES:
                    raise
                except Exception as why:  # it counts as one that was not run
                    if not isinstance(why, Gone | Damaged):
                        logger.error("line broke", batch_id=run.id, line=line.number, exc_info=why)
            waiting.append(line)
        for line in waiting:
            self._skip(line)
        while rest := await self._next():
            self._skip(rest)
            if run.results.is_due(run.clock()):
                await run.flush()
        if not self._readable:
            await end_unread(run.shared, run.head, known={line.number for line in (*begun.values(), *waiting)})

    async def _next(self) -> Line | None:
        """The next line of the input. Where it is gone there is none, and the batch says so."""
        if self._readable:
            try:
                return await self._run.source.next()
            except Missing:
                self._readable = False
        return None

    def _skip(self, line: Line) -> None:
        line.asked = None
        text = skipped_line(self._run.id, line.number, line.custom_id, self._why)
        self._run.results.add(line, text, "skipped")

    async def _begun(self) -> tuple[dict[str, Line], list[Line]]:
        """The lines that have a log, by its newest try, and those read so far that have none."""
        run = self._run
        begun = dict(run.queue.open)
        for generation_id in begun:
            run.queue.ended(generation_id)
        waiting = run.queue.waiting()
        while len(waiting) < _begun_at_most(run.shared) and (line := await self._next()):
            line.asked = None
            waiting.append(line)
        found = set()
        looked = waiting
        while looked:
            names = {line_id(run.id, line.number, line.tries): line for line in looked}
            ends = await self._log.ends(list(names))
            looked = [names[generation_id] for generation_id, end in ends.items() if end is not None]
            for line in looked:
                found.add(line.number)
                if begun.pop(line_id(run.id, line.number, line.tries - 1), None):
                    run.results.replaced(line.number, line.tries - 1)
                begun[line_id(run.id, line.number, line.tries)] = line
                line.tries += 1  # perhaps it was even asked again
        for line in waiting:
            line.tries -= line.number in found
        return begun, [line for line in waiting if line.number not in found]


def _begun_at_most(shared: Batcher) -> int:
    """So many lines may have been read since the last checkpoint."""
    return AHEAD + 2 * shared.settings.batch_lines + PART_LINES


async def end_unread(shared: Batcher, head: BatchHead, known: Container[int] = ()) -> None:
    """Ends what was begun of lines that cannot be read: their generations follow from their numbers. `known` are not
    among them."""
    checkpoint = reached(head)
    first = checkpoint["next"]
    last = min(head["total"], first + _begun_at_most(shared))
    spots = [(spot[0], spot[3]) for spot in checkpoint["open"]] + [(number, 0) for number in range(first, last + 1)]
    looked = [spot for spot in spots if spot[0] not in known]
    while looked:
        found = []
        for some in _groups(looked):
            names = {line_id(head["id"], number, tries): (number, tries) for number, tries in some}
            ends = await shared.log.ends(list(names))
            await _end(shared, [generation_id for generation_id, end in ends.items() if end not in (None, SEAL)])
            found += [names[generation_id] for generation_id, end in ends.items() if end is not None]
        looked = [(number, tries + 1) for number, tries in found]


def _groups(spots: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    rest = iter(spots)
    while some := list(islice(rest, _AT_ONCE)):
        yield some


async def _end(shared: Batcher, generation_ids: Iterable[str]) -> None:
    for generation_id in generation_ids:
        with suppress(Sealed, Gone):
            last = await shared.log.last(generation_id)
            await shared.outcomes.conclude(generation_id, last.epoch, Status.CANCELLED)
        await shared.jobs.withdraw(generation_id)
