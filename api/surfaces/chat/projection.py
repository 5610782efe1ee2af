"""The log seen as a Chat Completions stream or object.

Hidden here: how entries become SSE frames, with and without ids; what stands for an outcome. A frame depends on its
entry and on nothing else, so it is formatted once for all viewers and a client may count frames to resume.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import quote

from shared.chat.chunks import Accumulator
from shared.chat.chunks import completion as whole
from shared.chat.messages import billable_text
from shared.errors import (
    Damaged,
    ErrorObject,
    GenerationCancelled,
    GenerationEnded,
    LogError,
    StoredError,
    StreamGone,
    StreamLost,
    wire_error,
)
from shared.lib import json, sse
from shared.log.entry import SEAL, Entry, Kind, Status
from shared.log.records import Outcome, Summary

Encode = Callable[[Entry], bytes]

_SEAL_ID = str(SEAL).encode()
_CHARACTERS_PER_TOKEN = 4  # as in shared/features/usage.py


@cache
def encoder(*, ids: bool, include_usage: bool) -> Encode:
    """How a chunk becomes a frame: always the same function for the same variant. Hidden chunks become `b""`."""

    def encode(entry: Entry) -> bytes:
        if entry.kind is Kind.USAGE and not include_usage:
            return b""
        return sse.numbered_frame(entry.data, entry.position) if ids else sse.data_frame(entry.data)

    return encode


def tokens(payload: bytes) -> int:
    """What a chunk counts for a paced viewer: a quarter of the characters it adds, and never nothing."""
    choices = json.loads(payload).get("choices") or ()
    texts = [text for choice in choices for text in billable_text(choice.get("delta") or {})]
    return max(1, sum(map(len, texts)) // _CHARACTERS_PER_TOKEN)


def attempt_frame(epoch: int) -> bytes:
    """Tells a native viewer that what it has is void: `event: attempt`, cursor at the start of the new attempt."""
    return sse.frame(json.dumps({"attempt": epoch}), id=b"%d-0" % epoch, event=b"attempt")


def end_frames(outcome: Outcome, *, ids: bool) -> list[bytes]:
    """What ends the stream: `[DONE]`, and an error before it where there is one."""
    error = outcome_error(outcome)
    seal_id = _SEAL_ID if ids else None
    done = sse.frame(sse.DONE, id=seal_id)
    return [error_frame(wire_error(error), seal_id), done] if error else [done]


def error_frame(error: ErrorObject, frame_id: bytes | None = None) -> bytes:
    """`data: {"error": {message, type, param, code}}`, at which every OpenAI client raises."""
    return sse.frame(json.dumps({"error": error}), id=frame_id)


def problem_frames(problem: LogError) -> list[bytes]:
    """The end of a stream whose log is gone or damaged."""
    return [error_frame(problem_error(problem).to_object()), sse.frame(sse.DONE)]


def problem_error(problem: LogError) -> GenerationEnded:
    """The same for a response without frames."""
    return StreamLost() if isinstance(problem, Damaged) else StreamGone()


def served_headers(note: bytes | None) -> dict[str, str]:
    """`x-served-by: PROVIDER/MODEL`, and `x-fallback-from: PROVIDER/MODEL=STATUS, …` where others were asked in vain."""
    if note is None:
        return {}
    served = json.loads(note)
    headers = {"x-served-by": _token(served["model"])}
    if refused := served.get("refused"):
        headers["x-fallback-from"] = ", ".join(f"{_token(one['model'])}={one['status']}" for one in refused)
    return headers


def _token(text: str) -> str:
    """A model's name may be anything; a header's value may not."""
    return quote(text, safe="/:@?&=+._-")


def outcome_error(outcome: Outcome) -> StoredError | None:
    """The error of an outcome, None if it is an answer: one that was ended for its size is, and says `length` itself."""
    if outcome["status"] == Status.CANCELLED:
        return GenerationCancelled().to_stored()
    return None if outcome["status"] == Status.INCOMPLETE else outcome["error"]


def stored_completion(summary: Summary, fold: Accumulator, damage: Damaged | None = None) -> dict[str, Any]:
    """The same as it is found later: with its metadata, which OpenAI leaves out of the answer to the POST.

    With `damage`, the fold is of the chunks before a missing one: no answer, whatever the log says.
    """
    found = {**completion(summary, fold), "metadata": summary.header.get("metadata") or {}}
    if damage is not None:
        found |= {"status": Status.FAILED, "error": StreamLost().to_object()}
    return found


def stored_message(generation_id: str, number: int, message: dict[str, Any]) -> dict[str, Any]:
    """A message of the request as OpenAI's ChatCompletionStoreMessage: text in `content`, parts in `content_parts`."""
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    return {
        "name": None,
        **message,
        "id": f"{generation_id}-{number}",
        "content": None if parts is not None else content,
        "content_parts": parts,
    }


def completion(summary: Summary, fold: Accumulator) -> dict[str, Any]:
    """The `chat.completion` that an attempt's chunks amount to, finished or not.

    Besides OpenAI's fields: `status`, and `error` where it ended with one.
    """
    header, outcome = summary.header, summary.outcome
    answer = {**whole(header, fold), "status": summary.status}
    if outcome:
        answer["usage"] = outcome["usage"]
        if error := outcome_error(outcome):
            answer["error"] = wire_error(error)
    return answer
