"""What the end of a line's generation means for the line: it is done, or it is asked again, and why.

Pure. Only what is the line's own fails it: that it was refused for what it asks, or for what its key may ask. What may pass
puts it back for as long as the batch's window lasts, see `Verdict`. The table for users is in docs/api/batches.md
("What is asked again").
"""

from __future__ import annotations

from enum import Enum, auto

from shared.errors import StoredError, StreamspoolError, Unavailable
from shared.log.entry import Status
from shared.log.records import Outcome
from shared.store.redis import RedisError

ANSWERS = (Status.COMPLETED, Status.INCOMPLETE)
OUTAGES = (Unavailable, RedisError, OSError)
"""What says that a part is away: never a line's own, however often it is raised while one is looked at."""


class Verdict(Enum):
    """`DONE` ends a line, the others put it back."""

    DONE = auto()
    """It was answered, refused, or ended by itself."""
    BUSY = auto()
    """The provider was asked too much: fewer at once, later."""
    AWAY = auto()
    """The provider did not deliver: no connection, too late, cut, or an error of its own."""
    HELD_UP = auto()
    """It is on our side, and has nothing to do with the line: no worker, no room."""
    LOST = auto()
    """It is on our side, and may have to do with the line: a few times only."""


_TOO_MUCH = frozenset({429, 529})
_OWN = frozenset(
    {
        "insufficient_quota",  # 429s that no waiting helps against
        "billing_hard_limit_reached",
        "generation_timeout",  # longer than an answer may take here: it would be again
        "generation_interrupted",  # the line said itself that it is not to be said again
        "upstream_chunk_too_large",
    }
)
_HELD_UP = frozenset({"no_worker", "storage_full", "storage_refused", "storage_unavailable", "unsupported_version"})
_LOST = frozenset({"worker_lost", "stream_lost", "request_lost"})
_BUG = ("internal_error", 500)
"""With its status: a provider's own errors are never 500 here, whatever code they have."""


def verdict(outcome: Outcome) -> Verdict:
    """`outcome` is what the log was sealed with."""
    return Verdict.DONE if outcome["status"] != Status.FAILED else _of(outcome.get("error"))


def refused(error: StreamspoolError) -> Verdict:
    """The same of what was raised before there was a generation."""
    return _of(error.to_stored())


def failed(outcome: Outcome, error: StreamspoolError) -> Outcome:
    """The outcome as if it had ended with this error."""
    return {**outcome, "status": Status.FAILED, "error": error.to_stored()}


def _of(error: StoredError | None) -> Verdict:
    code, status = (error.get("code"), _status(error)) if error else (None, 500)
    if code in _OWN:
        return Verdict.DONE
    if code in _HELD_UP:
        return Verdict.HELD_UP
    if not error or code in _LOST or (code, status) == _BUG:
        return Verdict.LOST
    if status in _TOO_MUCH:
        return Verdict.BUSY
    return Verdict.AWAY if status >= 500 or status == 408 else Verdict.DONE


def _status(error: StoredError) -> int:
    """The provider's own, where it gave one: what it says of the server's key is 502 to clients."""
    return error.get("provider_status") or error.get("status") or 500
