"""Chains: the responses that a response goes on from, each of which keeps what it adds, and nothing of what was before it.

Hidden here: that the log of each is the only copy of what was said in it. A header names the nearest 32 before it, so a chain
of a hundred is read in four round trips, its newest in the first. To go on from a response keeps all that are before it for as
long as the new one will be; one that is deleted meanwhile is gone for everyone but those who go on from it: its log is
hidden then (`StreamLog.delete`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from shared.chat.chunks import Accumulator
from shared.chat.messages import Messages, is_asked, plain, turn_message
from shared.errors import NotFound
from shared.features.blobs import Blobs
from shared.lib import json
from shared.log.blobs import Stored
from shared.log.entry import Entry, Kind, Status
from shared.log.records import Header, Outcome
from shared.log.streamlog import StreamLog

NAMED = 32
"""How many of those before it a header names."""
_CUT = frozenset({Status.INCOMPLETE, Status.CANCELLED})


class Link(NamedTuple):
    """One response of a chain: its log, read whole."""

    header: Header
    body: dict[str, Any]
    """The chat request, with marks for blobs."""
    outcome: Outcome | None
    chunks: list[bytes]
    """Of its last attempt, with marks, too."""
    think_tags: bool

    @property
    def asked(self) -> Messages:
        """What its own `input` said, without its instructions, which hold for itself alone."""
        messages: Messages = self.body["messages"]
        return messages[bool(self.body["responses"].get("instructions")) :]

    def answer(self, *, reasoning: bool) -> Messages:
        """What it said: one message, or none. With `reasoning`, what the provider wants back to go on thinking is in it."""
        fold = Accumulator()
        for chunk in self.chunks:
            fold.feed(json.loads(chunk))
        if not fold.messages:
            return []
        message = _whole_calls(fold.messages[0], cut=self.outcome is None or self.outcome["status"] in _CUT)
        said = {**message, "content": message.get("content") or ""}
        found = turn_message(message, store_reasoning=reasoning, think_tags=self.think_tags)
        if not (said["content"] or message.get("tool_calls") or message.get("refusal")):
            return []
        return [found if reasoning else plain(found)]


def _whole_calls(message: dict[str, Any], *, cut: bool) -> dict[str, Any]:
    """The message without calls that have not come to their end."""
    calls = message.get("tool_calls")
    if not calls or not cut:
        return message
    return {**message, "tool_calls": [call for call in calls[:-1] if _is_whole(call)]}


def _is_whole(call: dict[str, Any]) -> bool:
    if call.get("type") == "custom":
        return True
    try:
        return isinstance(json.loads(((call.get("function") or {}).get("arguments") or "").encode()), dict)
    except ValueError:
        return False


class Chains:
    """All chains of one Redis. Methods raise RedisError or OSError when the server is away, FileStorageFailed and RequestLost
    where a part of what was said is in a storage that has it not."""

    def __init__(self, log: StreamLog, blobs: Blobs) -> None:
        self._log, self._blobs = log, blobs

    async def keep(self, tenant: str, newest: str, kept_ms: int) -> list[str]:
        """Keeps a response and all that are before it for so long at least, and returns what the header of one that goes on
        from it names. One round trip for 32. Raises NotFound where one of them is gone."""
        nearest: list[str] = []
        ids = [newest]
        while ids:
            header = await self._log.keep(ids, kept_ms)
            if header is None or header["owner"] != tenant:
                raise _gone(ids)
            before = header.get("previous") or []
            nearest = nearest or [newest, *before[: NAMED - 1]]
            ids = before
        return nearest

    async def links(self, tenant: str, previous: Sequence[str], *, at_first: int = NAMED) -> AsyncIterator[Link]:
        """The responses of a chain, the newest first; `previous` is what a header names. Whoever may not need all of them reads
        few `at_first`. Raises NotFound."""
        ids = list(previous[:at_first])
        while ids:
            link = None
            for generation_id, entries in zip(ids, await self._log.whole_logs(ids), strict=True):
                link = await self._link(tenant, generation_id, entries)
                yield link
            assert link is not None
            ids = link.header.get("previous") or []

    async def _link(self, tenant: str, generation_id: str, entries: list[Entry]) -> Link:
        if not entries or entries[0].kind is not Kind.REQUEST:
            raise _gone([generation_id])
        header: Header = json.loads(entries[0].data)
        if header["owner"] != tenant:
            raise _gone([generation_id])
        outcome: Outcome | None = json.loads(entries[-1].data) if entries[-1].kind is Kind.OUTCOME else None
        epoch = max((entry.position.epoch for entry in entries if entry.kind is Kind.ATTEMPT), default=0)
        said = [entry for entry in entries if entry.kind in (Kind.CHUNK, Kind.USAGE) and entry.position.epoch == epoch]
        body = await self._blobs.parsed(tenant, Stored(entries[1].data, entries[1].blobs))
        chunks = [await self._blobs.marked(tenant, Stored(entry.data, entry.blobs)) for entry in said]
        note = next((entry.note for entry in said if entry.note), None)
        return Link(header, body, outcome, chunks, bool(note and json.loads(note).get("think")))

    async def messages(self, tenant: str, model: str, previous: Sequence[str], asked: Messages) -> Messages:
        """All that was said before a request that goes on from others, whose own messages are `asked`. Raises NotFound.

        As long as tools are being called, that is, after the last user message, the same model gets its reasoning back.
        """
        found: list[Messages] = []
        thinking = not is_asked(asked)
        async for link in self.links(tenant, previous):
            found.append(link.answer(reasoning=thinking and link.header["model"] == model))
            found.append(link.asked)
            thinking = thinking and not is_asked(link.asked)
        return [message for said in reversed(found) for message in said]


def _gone(ids: Sequence[str]) -> NotFound:
    return NotFound(
        f"A response that this one goes on from is gone ({ids[-1].replace('chatcmpl-', 'resp_')}). Send the whole conversation "
        "as input.",
        code="previous_response_not_found",
        param="previous_response_id",
    )
