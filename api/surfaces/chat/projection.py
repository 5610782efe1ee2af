"""The log as a Chat Completions stream or object: what stands for a generation, and for the messages of its request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from api.chunk_events import ChunkEvents, error_frame
from api.errors import outcome_error
from api.live.projection import Fold
from shared.chat.chunks import Accumulator
from shared.chat.chunks import completion as whole
from shared.errors import AttemptReplaced, Damaged, StreamLost, wire_error
from shared.lib import sse
from shared.log.entry import Status
from shared.log.records import Summary


class ChatEvents(ChunkEvents):
    """OpenAI's stream. Its clients know no attempts: where one is replaced in the middle, the stream ends with an error."""

    native = False

    def attempt(self, epoch: int, replaced: Fold) -> Sequence[bytes]:
        return [error_frame(AttemptReplaced().to_object()), sse.frame(sse.DONE)]


@cache
def chat_events(*, ids: bool, include_usage: bool) -> ChatEvents:
    """One of each variant for all viewers."""
    return ChatEvents(ids=ids, include_usage=include_usage)


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

    Besides OpenAI's fields: `status`, `error` where it ended with one, and `usage_source` where the usage is not the
    provider's own.
    """
    header, outcome = summary.header, summary.outcome
    answer = {**whole(header, fold), "status": summary.status}
    if outcome:
        answer["usage"] = outcome["usage"]
        if (source := outcome.get("usage_source")) not in (None, "provider"):
            answer["usage_source"] = source
        if error := outcome_error(outcome):
            answer["error"] = wire_error(error)
    return answer
