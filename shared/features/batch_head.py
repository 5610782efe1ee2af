"""A batch as it is written down: one JSON value in Redis, and the names of the parts of its results in the storage.

Hidden here: how the parts are named, and what stands in the place of a checkpoint before there is one. What may be done with
a batch is in `batches.py`; how a worker uses the checkpoint, in `worker/batches/run.py`. Source of the life of a batch:
platform.openai.com/docs/guides/batch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

from shared.lib import json
from shared.log.records import WebhookTarget
from shared.log.streamlog import Execute
from shared.store.keys import Keys

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
ENDED: frozenset[BatchStatus] = frozenset({"completed", "failed", "expired", "cancelled"})

ResultKind = Literal[1, 2]
OUTPUT: ResultKind = 1
ERRORS: ResultKind = 2
"""The two kinds of results, and where a part's count of each stands in the checkpoint."""


class LineError(TypedDict):
    """What is wrong with a line, or with the batch, as `errors.data` of the batch object has it."""

    code: str
    message: str
    param: str | None
    line: int | None
    """Its number, from 1; None for the batch as a whole."""


class InputPosition(TypedDict):
    """How far the input was read."""

    next: int
    """The first line that no checkpoint knows, from 1."""
    offset: int
    """Where that begins, in bytes."""


class StoredResults(TypedDict):
    """What is in the storage of the results."""

    parts: list[list[int]]
    """How many parts there are of each claim: `[epoch, of the output, of the errors]`."""
    stored: list[list[int]]
    """Generations that it made needless, whose logs may still be there: `[number, try]`."""
    completed: int
    failed: int
    usage: dict[str, int]


class Checkpoint(InputPosition, StoredResults):
    """From where another worker goes on. All of it is replaced at once."""

    open: list[list[int]]
    """The lines before `next` that are in no part yet: `[number, offset, length, tries]`, and `strikes, lost` where there
    are any."""


class AskedBy(NamedTuple):
    """The key that a batch was asked for with."""

    key_id: str | None = None
    allowed: Sequence[str] | None = None
    """Patterns of the models that it may ask for; None: all."""
    limited: Callable[[str], Awaitable[Execute | None]] | None = None
    """How the batch of an id is made, where limits apply: see `shared.features.access.limits`."""
    budgets: Mapping[str, float] | None = None
    """What it may spend."""


NO_KEY = AskedBy()


class BatchHead(TypedDict):
    """All that is known of a batch. What was asked for never changes; the rest does with every `version`."""

    v: int
    id: str
    owner: str
    """The tenant."""
    key_id: NotRequired[str | None]
    allowed: NotRequired[Sequence[str] | None]
    budgets: NotRequired[Mapping[str, float] | None]
    """See `AskedBy`."""
    endpoint: str
    input_file_id: str
    input_bytes: NotRequired[int]
    completion_window: str
    expires_at_ms: int
    """The end of its window, by Redis's clock, as all times here."""
    metadata: dict[str, str] | None
    output_life_s: int | None
    """How long its files are kept; None: as long as files are."""
    webhook: NotRequired[WebhookTarget | None]
    traceparent: NotRequired[str | None]
    """The span in which it was asked for; None: nobody traces it."""
    status: BatchStatus
    at: dict[str, int]
    """When it was `created`, and when it entered each status."""
    epoch: int
    """The newest claim: a worker's changes count only while it is its own."""
    claims: NotRequired[int]
    """How many claims in a row came to nothing."""
    version: int
    """Counts its changes, for viewers."""
    model: str | None
    """The one of all lines, if they have the same."""
    models: NotRequired[list[str]]
    providers: NotRequired[list[str]]
    """Of its lines, once they were checked."""
    total: int
    completed: int
    failed: int
    usage: dict[str, int]
    errors: list[LineError]
    output_file_id: str | None
    error_file_id: str | None
    ended_by: NotRequired[str | None]
    """Why it ends before its lines have: a code as in the error file, `batch_cancelled`; None: by itself."""
    late: NotRequired[bool]
    """It has ended, and its files are still to be made."""
    checkpoint: Checkpoint | None


def enter(head: BatchHead, status: BatchStatus, at_ms: int) -> None:
    """The next status, with its time by Redis's clock: the first one counts."""
    head["status"] = status
    head["at"].setdefault(status, at_ms)


def make_with(
    pipe: Any, key: Keys, head: BatchHead, life_ms: int, now_ms: int, longest_ms: int, *, again: bool
) -> None:
    """Queues what makes a batch, and lists it for so long; and what takes that back, unless its caller may come `again` for
    it."""
    batch_id, lists = head["id"], (key.batches_open, index := key.batches(head["owner"]))
    pipe.set(key.batch(batch_id), json.dumps(head), px=life_ms, nx=True)
    for name in lists:
        pipe.zadd(name, {batch_id: now_ms})
    pipe.zremrangebyscore(index, "-inf", now_ms - longest_ms)
    pipe.pexpire(index, longest_ms)
    if not again:
        gone = ("DEL", key.batch(batch_id)), *[("ZREM", name, batch_id) for name in lists]
        pipe.given_up = (lambda: gone,)


def reached(head: BatchHead) -> Checkpoint:
    """How far it is: its checkpoint, or one of a batch that was not begun."""
    start = Checkpoint(next=1, offset=0, open=[], parts=[], stored=[], completed=0, failed=0, usage={})
    return {**start, **head["checkpoint"]} if head["checkpoint"] else start


def parts_of(batch_id: str) -> str:
    """Where the parts of the results are in the storage."""
    return f"parts/{batch_id}"


def part_name(batch_id: str, kind: ResultKind, epoch: int, number: int) -> str:
    """Where one of them is."""
    return f"{parts_of(batch_id)}/{kind}-{epoch}-{number}"


def part_names(head: BatchHead, kind: ResultKind) -> list[str]:
    """The stored parts that count, in the order in which they were stored."""
    return [
        part_name(head["id"], kind, entry[0], number)
        for entry in sorted(reached(head)["parts"])
        for number in range(entry[kind])
    ]
