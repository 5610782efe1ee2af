"""What a tap does with a bug of ours: it is called where a provider's connection is read, and is not to be that one's fault."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

from shared.lib import sse
from worker.providers import framing
from worker.upstream.shortcut import Shortcut


def test_a_bug_ends_the_wait_and_is_not_raised_where_the_connection_is_read() -> None:
    normalizer, timers, writer, bug = Mock(), Mock(), Mock(), ZeroDivisionError()
    normalizer.pass_on.side_effect = bug
    decoder = framing.Decoder(1000)
    assert decoder.feed(b"data: {}\n\n") == [sse.Event(b"{}")]
    tap: Any = Shortcut(writer, Mock(is_off=True), Mock(is_over=False), 0).tap(decoder, normalizer, timers)
    assert tap(b"data: {}\n\n") is True  # it may be in the log already: the long way must not take it again
    timers.interrupt.assert_called_once_with(bug)
    timers.passed_on.assert_not_called()
    assert tap(b"two: lines\ndata: {}\n\n") is False
