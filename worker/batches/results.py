"""What was taken in of a batch: parts of its output and errors, in the storage, and then its two files.

Hidden here: how parts are named and counted, so that what a worker stored that died before it said so is not read; when
a part is large or old enough to be stored; that files are made from parts without holding them. What is told of a batch is
what is stored: a worker that takes it over finds no less.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shared.errors import GenerationCancelled, wire_error
from shared.features.batch_head import (
    ERRORS,
    OUTPUT,
    BatchHead,
    ResultKind,
    StoredResults,
    part_name,
    part_names,
    reached,
)
from shared.features.batches import NO_USAGE
from shared.features.files import OUTPUT as OUTPUT_PURPOSE
from shared.features.files import Files, NewFile
from shared.features.storage import Missing, Storage
from shared.lib.telemetry import BATCH_LINES, get_logger
from shared.log.records import Outcome
from worker.batches.lines import add_usage, line_id
from worker.batches.queue import Line

logger = get_logger(__name__)

PART_LINES = 500
_PART_BYTES = 1024 * 1024
_SHORTEST_S, _LONGEST_S = 1.0, 30.0
_KINDS = {OUTPUT: "output", ERRORS: "error"}


@dataclass(slots=True)
class _Part:
    """What was taken in and is not stored yet."""

    begun_at: float
    output: list[bytes] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)
    done: list[list[int]] = field(default_factory=list)
    """`[number, try]` of each generation that is not needed any more once the checkpoint knows of this."""
    bytes: int = 0


class Results:
    """Of one claim on a batch; goes on from what the one before wrote down. Times are of the loop's clock, in seconds."""

    def __init__(self, storage: Storage, head: BatchHead, now: float) -> None:
        self._storage, self._id, self._epoch = storage, head["id"], head["epoch"]
        written = reached(head)
        self._parts, self._stored = written["parts"], written["stored"]
        self._usage = {**NO_USAGE, **written["usage"]}
        self._completed, self._failed = written["completed"], written["failed"]
        self._began = now
        self._part = _Part(now)

    @property
    def count(self) -> int:
        """How many lines are in them."""
        return self._completed + self._failed

    def add(self, line: Line, text: bytes, result: str, usage: dict[str, Any] | None = None) -> None:
        """Takes a line in. `result` is `completed`, `failed` or `skipped`; `usage` is counted of completed ones."""
        part, completed = self._part, result == "completed"
        if completed:
            add_usage(self._usage, usage)
        (part.output if completed else part.errors).append(text)
        part.done.append([line.number, line.tries])
        part.bytes += len(text)
        self._completed += completed
        self._failed += not completed
        BATCH_LINES.labels(result).inc()

    def replaced(self, number: int, tries: int) -> None:
        """This try of a line is needless: the next one takes its place."""
        self._part.done.append([number, tries])

    def is_due(self, now: float) -> bool:
        """Parts are small in the beginning, so that results are there early, and few over a day."""
        part = self._part
        if not part.done:
            part.begun_at = now
            return False
        age_s = min(_LONGEST_S, max(_SHORTEST_S, (now - self._began) / 100))
        return part.bytes >= _PART_BYTES or len(part.done) >= PART_LINES or now - part.begun_at >= age_s

    async def store(self, now: float) -> None:
        """Stores what was taken in. It counts once the checkpoint says so. Raises FileStorageFailed."""
        part, self._part = self._part, _Part(now)
        mine = next((entry for entry in self._parts if entry[0] == self._epoch), None) or [self._epoch, 0, 0]
        for kind, texts in ((OUTPUT, part.output), (ERRORS, part.errors)):
            if texts:
                await self._storage.put(part_name(self._id, kind, self._epoch, mine[kind]), b"".join(texts))
        added = [self._epoch, mine[OUTPUT] + bool(part.output), mine[ERRORS] + bool(part.errors)]
        if any(added[1:]):
            self._parts = [*(entry for entry in self._parts if entry[0] != self._epoch), added]
        self._stored = part.done

    def checkpoint(self) -> StoredResults:
        """Its part of the checkpoint."""
        return {
            "parts": self._parts,
            "stored": self._stored,
            "completed": self._completed,
            "failed": self._failed,
            "usage": self._usage,
        }

    def write_counts(self, head: BatchHead) -> None:
        head["completed"], head["failed"], head["usage"] = self._completed, self._failed, dict(self._usage)

    def stored(self) -> list[str]:
        """The generations that are not needed any more since the last checkpoint: of lines that were stored, and of tries
        in whose place others came."""
        return [line_id(self._id, number, tries) for number, tries in self._stored]


def refusal(outcome: Outcome) -> tuple[int, dict[str, Any]]:
    """Status and body of a line that was answered with an error, or cancelled by itself."""
    error = outcome["error"] or GenerationCancelled("The line was cancelled by itself.").to_stored()
    return int(error.get("status") or 500), {"error": wire_error(error)}


class Made(NamedTuple):
    """A file of results: its id, None if there is not one line, how many lines it has, and how many parts were missing."""

    file_id: str | None
    lines: int
    missing: int


async def make_file(files: Files, head: BatchHead, kind: ResultKind) -> Made:
    """The output, or the errors, as a file. It is the same one whenever that is done again. What the storage lost of it is
    left out, and told. Raises Unavailable, FileStorageFailed among them."""
    names = part_names(head, kind)
    if not names:
        return Made(None, 0, 0)
    lines = missing = 0
    async with files.create(head["owner"], f"file-{line_id(head['id'], kind, 0)[-32:]}") as new:
        for name in names:
            try:
                async for piece in files.storage.read(name):
                    lines += piece.count(b"\n")
                    await new.write(piece)
            except Missing:
                logger.error("part of a batch is missing", batch_id=head["id"], part=name)
                missing += 1
        filename = f"{head['id']}_{_KINDS[kind]}.jsonl"
        new.finish(filename=filename, purpose=OUTPUT_PURPOSE, life_s=head["output_life_s"])
    made: NewFile = new
    return Made(made.id, lines, missing)
