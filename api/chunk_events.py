"""The chunks of a log as events, as they are: `data: {chunk}`, at the end `data: [DONE]`.

Hidden here: how OpenAI's chat stream is framed, with and without ids, and what ends it. /v1/chat/completions and
/v1/streams show a log in this way; they differ in what a viewer is told of a new attempt. It is a projection of the first
kind (live/projection.py): an event depends on its chunk and on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from api.errors import outcome_error, problem_error
from api.live.projection import Encode, Step
from shared.errors import ErrorObject, LogError, wire_error
from shared.lib import json, sse
from shared.log.entry import SEAL, Entry, Kind
from shared.log.records import Header, Outcome

_SEAL_ID = str(SEAL).encode()


class ChunkEvents:
    """With `ids`, each event has its position as `id:`. With `include_usage`, the usage chunk is shown.

    It is its own fold, since there is nothing to remember.
    """

    events = 0
    keepalive = sse.KEEPALIVE

    def __init__(self, *, ids: bool, include_usage: bool) -> None:
        self.resumes = ids
        self._seal_id = _SEAL_ID if ids else None
        self.encode = _encoder(ids=ids, include_usage=include_usage)

    def start(self, header: Header) -> Step:
        return Step((), self)

    def feed(self, entry: Entry) -> Step:
        return Step((self.encode(entry),), self)

    def end(self, outcome: Outcome) -> Sequence[bytes]:
        """`[DONE]`, and an error before it where there is one."""
        done = sse.frame(sse.DONE, id=self._seal_id)
        error = outcome_error(outcome)
        return [error_frame(wire_error(error), self._seal_id), done] if error else [done]

    def problem(self, problem: LogError) -> Sequence[bytes]:
        return [error_frame(problem_error(problem).to_object()), sse.frame(sse.DONE)]


def _encoder(*, ids: bool, include_usage: bool) -> Encode:
    def encode(entry: Entry) -> bytes:
        if entry.kind is Kind.USAGE and not include_usage:
            return b""
        return sse.numbered_frame(entry.data, entry.position) if ids else sse.data_frame(entry.data)

    return encode


def error_frame(error: ErrorObject, frame_id: bytes | None = None) -> bytes:
    """`data: {"error": {message, type, param, code}}`, at which every OpenAI client raises."""
    return sse.frame(json.dumps({"error": error}), id=frame_id)
