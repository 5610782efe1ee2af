"""How a batch ends: by itself, by a cancel, by the time, or because it can go no further; and the files it leaves.

Hidden here: why it ends, and what is waited for before. Its input is read once more, so that every line that was not run is
in the errors; where that cannot be, because the storage does not let us or the input is what breaks its workers, it ends
without: lines that could not be read are counted as failed, and the batch's own `errors` say so. So a cancel and the end of
the window end it within `PATIENCE_MS`, whatever is away. Its files may come later then, for a day.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shared.errors import Unavailable
from shared.features.batch_head import (
    ENDED,
    ERRORS,
    OUTPUT,
    BatchHead,
    BatchStatus,
    LineError,
    enter,
    part_names,
    parts_of,
    reached,
)
from shared.lib.telemetry import get_logger
from worker.batches.lines import LineWrong
from worker.batches.results import make_file
from worker.batches.stop import end_unread

if TYPE_CHECKING:
    from worker.batches.batcher import Batcher

logger = get_logger(__name__)

MOST_CLAIMS = 10
"""So many claims in a row may come to nothing. Then it ends with what is done; one more may fail of its input, one of its
files."""
PATIENCE_MS = 30_000
"""How long after a cancel, or after its window, a storage that is away is waited for."""
_LATE_MS = 86_400_000
_KEPT_MS = 3_600_000
"""How long the parts stay behind the files that were made of them. A server may forget the batch's end, and whoever runs it
again makes the files of its parts once more."""
CANCELLED, EXPIRED, INPUT_GONE, GIVEN_UP = "batch_cancelled", "batch_expired", "input_file_gone", "batch_given_up"
FILES_LATE, RESULTS_LOST = "files_late", "results_lost"

_FINAL: dict[str | None, BatchStatus] = {None: "completed", CANCELLED: "cancelled", EXPIRED: "expired"}
"""The others have failed."""


class Ending:
    """Of a batch as it was claimed at `now_ms`. `trouble` is what was away when it was last tried, if that was so."""

    def __init__(self, shared: Batcher, head: BatchHead, trouble: Unavailable | None, now_ms: int) -> None:
        self._shared, self._head, self._trouble, self._now_ms = shared, head, trouble, now_ms
        self._id: str = head["id"]
        self._claims: int = head.get("claims", 0)
        self._files = shared.files

    @property
    def why(self) -> str | None:
        """Why it is to end, or ends already; None if it may go on."""
        if "ended_by" in self._head:
            found: str | None = self._head["ended_by"]
            return found
        if self._head["status"] == "cancelling":
            return CANCELLED
        if self._claims > MOST_CLAIMS:
            return GIVEN_UP
        return EXPIRED if self._now_ms >= self._head["expires_at_ms"] else None

    @property
    def is_bare(self) -> bool:
        """Whether it is to end without its input, and without waiting for its files."""
        at = self._head["at"]
        since_ms: int = at["cancelling"] if self._head["status"] == "cancelling" else self._head["expires_at_ms"]
        out_of_patience = self._trouble is not None and self._now_ms >= since_ms + PATIENCE_MS
        return out_of_patience or self._claims > MOST_CLAIMS + 1

    async def bare(self) -> BatchHead:
        """Ends it with what the checkpoint knows. Its files are made at once if that is possible."""
        ended_by = self.why
        await end_unread(self._shared, self._head)

        def over(head: BatchHead, at_ms: int) -> None:
            head["failed"] = head["total"] - head["completed"]
            unread = head["failed"] - reached(head)["failed"]
            head["late"] = any(part_names(head, kind) for kind in (OUTPUT, ERRORS))
            _note(head, *self._errors(ended_by, unread, unfinished=ended_by is None))
            if head["late"]:
                _note(head, _at(FILES_LATE, "The files are made when the file storage lets us."))
            enter(head, "failed" if ended_by is None else _FINAL.get(ended_by, "failed"), at_ms)

        await self._remove_parts_after(int(self._shared.settings.files_retention_s * 1000))
        self._head = await self._save(over)
        logger.error("batch ended without its files", batch_id=self._id, status=self._head["status"], why=self._cause)
        return await self.files(self._head, ended_by)

    async def files(self, head: BatchHead, ended_by: str | None) -> BatchHead:
        """Makes the files, which is done again from the start if it is interrupted, says how it ended, and tidies up. Returns
        the batch as it is then."""

        def finalizing(head: BatchHead, at_ms: int) -> None:
            head.setdefault("ended_by", CANCELLED if head["status"] == "cancelling" else ended_by)
            if head["status"] != "cancelling":
                enter(head, "finalizing", at_ms)

        if head["status"] not in ENDED:
            head = await self._save(finalizing)
        if head["status"] not in ENDED or head.get("late"):
            head = await self._make(head)
        if head["checkpoint"] is None:
            await self._remove_parts_after(_KEPT_MS)
        return head

    async def _make(self, head: BatchHead) -> BatchHead:
        is_late = bool(head.get("late"))
        if is_late and (self._now_ms > head["at"][head["status"]] + _LATE_MS or self._claims > MOST_CLAIMS + 2):
            logger.error("files of a batch were not made", batch_id=self._id)
            return await self._save(_give_up_files)
        output, errors = await make_file(self._files, head, OUTPUT), await make_file(self._files, head, ERRORS)
        missing = output.missing + errors.missing

        def done(head: BatchHead, at_ms: int) -> None:
            ended_by, unread = head.get("ended_by"), head["total"] - head["completed"] - head["failed"]
            head["output_file_id"], head["error_file_id"] = output.file_id, errors.file_id
            head["checkpoint"], head["late"] = None, False
            head["errors"] = [error for error in head["errors"] if error["code"] != FILES_LATE]
            if missing:
                head["completed"] = output.lines
                _note(head, _at(RESULTS_LOST, f"{missing} parts of the results are missing."))
            head["failed"] = head["total"] - head["completed"]
            if not is_late:
                _note(head, *self._errors(ended_by, unread))
                final = _FINAL.get(ended_by, "failed")
                enter(head, "failed" if missing and final == "completed" else final, at_ms)

        return await self._save(done)

    # ---- what is told

    @property
    def _cause(self) -> str:
        return self._trouble.code if self._trouble else GIVEN_UP

    def _errors(self, ended_by: str | None, unread: int, *, unfinished: bool = False) -> list[LineError]:
        """The batch's own errors: what ended it, if it failed, and what is in no file.

        What was away is one of them only where lines were lost to it, or where it kept the batch from its end (`unfinished`):
        a batch that has waited for it has nothing to tell.
        """
        found = []
        if ended_by == GIVEN_UP:
            text = f"The batch was given up: {MOST_CLAIMS} workers in a row got no further. What is done is kept."
            found.append(_at(GIVEN_UP, text))
        elif ended_by == INPUT_GONE:
            found.append(_at(INPUT_GONE, "The input file was deleted or changed before all lines were read."))
        elif self._trouble and (unread or unfinished):
            found.append(_at(self._trouble.code, f"The batch had to end without its storage. {self._trouble.message}"))
        elif unread:
            found.append(_at(INPUT_GONE, "The input file could not be read to its end."))
        if unread:
            found[-1]["message"] += f" {unread} lines are counted as failed, and in no file."
        return found

    # ---- what is left

    async def _remove_parts_after(self, kept_ms: int) -> None:
        """The reaper does it then. Until they are in files, they can be read, and no worker may be left to remove them."""
        kept_ms = min(kept_ms, int(self._shared.settings.files_retention_s * 1000))
        await self._files.remove_all_at(parts_of(self._id), self._now_ms + kept_ms)

    async def _save(self, change: Callable[[BatchHead, int], None]) -> BatchHead:
        at_ms = await self._shared.batches.clock_ms()
        return await self._shared.batches.save(self._id, self._head["epoch"], lambda head: change(head, at_ms))


def _give_up_files(head: BatchHead, _: int) -> None:
    head["late"] = False


def _note(head: BatchHead, *errors: LineError) -> None:
    """Each once, also where it is not known whether that was written already."""
    known = {error["code"] for error in head["errors"]}
    head["errors"] = [*head["errors"], *(error for error in errors if error["code"] not in known)]


def _at(code: str, message: str) -> LineError:
    return LineWrong(code, message, "input_file_id" if code == INPUT_GONE else None).at(None)
