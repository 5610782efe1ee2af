"""What a feature does when a generation has ended: a session takes its turn, the ledger its figures, a webhook its event.

Hidden here: that the answer's text is read from the log only if a feature asks for it, and once however many do. All effects
of one generation are written in one transaction, which `shared.generations.settlement` makes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from shared.chat.chunks import Accumulator
from shared.chat.messages import Messages
from shared.errors import Damaged, Gone, RequestLost
from shared.features.responses.namespaces import Own
from shared.log.records import Header, Outcome
from shared.store.transaction import Command

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


class Asked:
    """A read that is done in the transaction that settles, or while that watches. `answer` is there when a feature adds its
    commands: a word of them, or None for nothing; whether it is known by then is not to be seen."""

    __slots__ = ("answer", "command")

    def __init__(self, command: Command) -> None:
        self.command = command
        self.answer: Any = None


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
        self.asked: list[Asked] = []
        self._read = read
        self._transcript: Answered | None = None
        self._is_read = False

    def ask(self, *command: str | bytes | int) -> Asked:
        """Has a key of the control's looked at; nothing that a settlement writes, unless it is this one."""
        self.asked.append(asked := Asked(command))
        return asked

    def answer(self, answers: Sequence[Any]) -> None:
        """What was asked for was answered so, in its order."""
        for one, answer in zip(self.asked, answers, strict=True):
            one.answer = answer

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
