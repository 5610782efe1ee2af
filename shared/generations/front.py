"""What an API says of a request beside the body: which API it is, what tells a repeat, and what the request goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shared.features.access.expected import Expects, expected
from shared.log.records import Header, Surface


class Front(NamedTuple):
    """What an API says of a request that does not stand in the chat it becomes."""

    surface: Surface
    turn: str | None = None
    """What tells a repeat from a new request, in the place of the body."""
    previous: Sequence[str] = ()
    """The generations that it goes on from, as `Chains.keep` tells them."""
    retried_from: str | None = None
    """The generation whose request this is, again."""
    summarises: str | None = None
    """The one whose reasoning this is to summarise."""
    expects: Expects = expected
    """How many tokens it may use: a chat does not tell it of every request."""

    def mark(self, header: Header) -> None:
        """Notes in a log's header what of this is to be found there."""
        header["surface"], header["previous"] = self.surface, list(self.previous) or None
        header["retried_from"], header["summarises"] = self.retried_from, self.summarises


CHAT = Front("chat")
