"""Pacing: a viewer may be shown no more than so many tokens a second, however fast they were said.

Hidden here: what a token is, and the clock. The log is written at full speed; only what is shown waits. One clock holds
for all viewers of an attempt, wherever they watch: it starts when the attempt's first chunk was said, which is in the
log (`at`), and chunk k is due `tokens before it / rate` seconds later. So a late viewer gets at once what the others
have seen by now, and what was said long ago waits for nobody.

The clocks of worker and API are compared only for that. A worker's that is ahead counts as right now; and a viewer that
resumes has waited for what it has, so it goes on at the pace at once, whatever the clocks say.
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_right

from api.errors import outcome_error
from shared.chat.messages import CHARACTERS_PER_TOKEN, billable_text
from shared.lib import json
from shared.lib.clock import now_ms
from shared.log.entry import Entry

TICK_S = 0.02
"""A paced viewer is sent something at most this often: at high rates several tokens go together."""


def weight(payload: bytes) -> int:
    """What a chunk counts, in tokens: a quarter of the characters it adds, and never nothing.

    The same for all surfaces, since one clock holds for all viewers of a log, whichever API they watch it through.
    """
    choices = json.loads(payload).get("choices") or ()
    texts = [text for choice in choices for text in billable_text(choice.get("delta") or {})]
    return max(1, sum(map(len, texts)) // CHARACTERS_PER_TOKEN)


class TokenClock:
    """How many tokens stand before each chunk of a log's newest attempt, counted once for all viewers.

    `began` is when its first chunk was said, by the event loop's clock; `off` says that nothing has to wait any more.
    Eight bytes a chunk, which stay when the chunk leaves the hub's window: laggards are paced, too.
    """

    def __init__(self) -> None:
        self.began = 0.0
        self.off = False
        self._before = array("q")
        self._next = 0
        self._first = 0

    def clear(self, first: int = 0) -> None:
        """Another attempt begins, or this one is known only from after its chunk `first`."""
        self._before = array("q")
        self._next, self._first = 0, first

    def add(self, entry: Entry) -> None:
        """Counts the next chunk."""
        if not self._before:
            age_ms = 0 if entry.at_ms is None else max(0, now_ms() - entry.at_ms)
            self.began = asyncio.get_running_loop().time() - age_ms / 1000
        self._before.append(self._next)
        self._next += weight(entry.data)

    def end(self, outcome: Entry) -> None:
        """What failed or was cancelled is not worth waiting for: the rest, and the reason, are shown at once."""
        self.off = outcome_error(json.loads(outcome.data)) is not None

    def before(self, index: int) -> int:
        """Tokens before the chunk that follows `index` chunks."""
        at = max(0, index - self._first)
        return self._before[at] if at < len(self._before) else self._next

    def within(self, tokens: float, index: int, end: int) -> int:
        """How many chunks, from `index` to `end` of them, begin within the first `tokens` tokens."""
        low = max(0, index - self._first)
        return bisect_right(self._before, tokens, low, max(low, end - self._first)) + self._first


class Pacer:
    """One viewer's view of the clock. `rate` is in tokens a second; times are the event loop's."""

    def __init__(self, rate: float, tally: TokenClock) -> None:
        self._rate, self._tally = rate, tally
        self._epoch = 0
        self._began = 0.0

    def limit(self, epoch: int, index: int, end: int, now: float) -> int:
        """How many of the attempt's `end` chunks may be shown by now to a viewer that has `index` of them."""
        tally = self._tally
        if tally.off:
            return end
        if epoch != self._epoch:
            self._epoch = epoch
            self._began = min(tally.began, now - tally.before(index) / self._rate)
        return tally.within((now - self._began) * self._rate, index, end)

    def due(self, index: int) -> float:
        """When the chunk that follows `index` chunks may be shown. Only after `limit` for that attempt."""
        return self._began + self._tally.before(index) / self._rate
