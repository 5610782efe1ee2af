"""What a feature does when a generation has ended: a session takes its turn, the ledger its figures, a webhook its event.

Hidden here: that the answer's text is read from the log only if a feature asks for it, and once however many do. All effects
of one generation are written in one transaction, which `shared.generations.settlement` makes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from shared.chat.chunks import Accumulator
from shared.chat.messages import Messages
from shared.errors import Damaged, Gone, RequestLost
from shared.features.responses.namespaces import Own
from shared.log.records import Header, Outcome

Commands = Callable[[Any], None]
"""Adds a feature's commands to the transaction, a pipeline in MULTI. It may be called again, if another process wrote."""


class Answered(Protocol):
    """What an effect may look at of a generation's transcript."""

    @property
    def asked(self) -> Messages:
        """Messages of the request that are new: after the session's."""

    @property
    def fold(self) -> Accumulator:
        """The answer."""

    @property
    def names(self) -> Mapping[str, Own]:
        """What tools of namespaces are called by the client, by their names in the chat (responses/namespaces.py)."""

    @property
    def think_tags(self) -> bool:
        """Whether reasoning may stand in the text, in `<think>…</think>`."""


class Ended:
    """A generation that has ended. `epoch` is its last attempt, 0 without one; `kept_s` how long it can still be looked at."""

    def __init__(
        self,
        header: Header,
        outcome: Outcome,
        epoch: int,
        kept_s: float,
        read: Callable[[str, int], Awaitable[Answered]],
    ) -> None:
        self.header, self.outcome, self.epoch, self.kept_s = header, outcome, epoch, kept_s
        self._read = read
        self._transcript: Answered | None = None
        self._is_read = False

    async def transcript(self) -> Answered | None:
        """What its last attempt said; None without an attempt, or where the log is gone, or it or its request lacks a part."""
        if not self._is_read and self.epoch:
            try:
                self._transcript = await self._read(self.header["id"], self.epoch)
            except (Gone, Damaged, RequestLost):
                self._transcript = None
        self._is_read = True
        return self._transcript


class Effect(Protocol):
    """A feature that has something to write when a generation ends."""

    async def effect(self, ended: Ended) -> Commands | None:
        """Reads what it needs and returns what to write, None for nothing. Raises RedisError, OSError."""
