"""The clock of paced viewers: what each may see at a given moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.live import pacing as pace
from api.live.livelog import LiveLog
from api.live.pacing import Pacer, TokenClock
from shared.log.entry import SEAL, Entry, Kind, Position


def chunk(text: str, seq: int = 1, at_ms: int | None = None) -> Entry:
    data = json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode()
    return Entry(Position(1, seq), Kind.CHUNK, data, None, at_ms)


async def tally_of(*texts: str, at_ms: int | None = None) -> TokenClock:
    tally = TokenClock()
    for seq, text in enumerate(texts, 1):
        tally.add(chunk(text, seq, at_ms))
    return tally


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        (b'{"choices":[{"delta":{"role":"assistant","content":""}}]}', 1),
        (b'{"choices":[{"delta":{"content":"abc"}}]}', 1),
        (b'{"choices":[{"delta":{"content":"abcdefgh"}}]}', 2),
        (b'{"choices":[{"delta":{"reasoning_content":"abcdefgh"}},{"index":1,"delta":{"content":"abcd"}}]}', 3),
        (b'{"choices":[{"delta":{"tool_calls":[{"id":"x","function":{"name":"f","arguments":"12345678"}}]}}]}', 2),
        (b'{"choices":[{"delta":null,"finish_reason":"stop"}]}', 1),
        (b'{"choices":[],"usage":{}}', 1),
        (b'{"choices":null}', 1),
        (b"{}", 1),
    ],
)
def test_a_token_is_four_characters_and_a_chunk_is_one_at_least(payload: bytes, count: int) -> None:
    assert pace.weight(payload) == count


async def test_the_first_chunk_is_shown_at_once_and_the_others_in_time() -> None:
    tally = await tally_of("a" * 8, "b" * 4, "c", "d")
    viewer, began = Pacer(2, tally), tally.began
    shown = [viewer.limit(1, 0, 4, began + seconds) for seconds in (0, 0.9, 1.1, 1.4, 1.6, 2.1)]
    assert shown == [1, 1, 2, 2, 3, 4]
    assert [viewer.due(index) - began for index in range(4)] == pytest.approx([0, 1, 1.5, 2])


async def test_a_late_viewer_sees_what_the_others_see() -> None:
    tally = await tally_of(*"abcdefgh")
    early, late = Pacer(1, tally), Pacer(1, tally)
    assert early.limit(1, 0, 8, tally.began) == 1
    now = tally.began + 4.5
    assert early.limit(1, 1, 8, now) == late.limit(1, 0, 8, now) == 5
    assert early.due(5) == late.due(5)


async def test_what_was_said_long_ago_is_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "now_ms", lambda: 10_000_000)
    tally = await tally_of(*"abcdefgh", at_ms=9_990_000)
    now = asyncio.get_running_loop().time()
    assert now - tally.began >= 10
    assert Pacer(1, tally).limit(1, 0, 8, now) == 8


@pytest.mark.parametrize("ahead_ms", [1, 3_600_000])
async def test_a_worker_whose_clock_is_ahead_makes_nobody_wait_longer(
    monkeypatch: pytest.MonkeyPatch, ahead_ms: int
) -> None:
    monkeypatch.setattr(pace, "now_ms", lambda: 10_000_000)
    tally = await tally_of(*"abc", at_ms=10_000_000 + ahead_ms)
    assert tally.began <= asyncio.get_running_loop().time()
    assert Pacer(1, tally).limit(1, 0, 3, tally.began) == 1


async def test_a_viewer_that_resumes_does_not_wait_again_for_what_it_has() -> None:
    """Whatever the clock here says: its first process may have had another."""
    tally = await tally_of(*"abcdefgh")
    viewer, now = Pacer(1, tally), tally.began
    assert viewer.limit(1, 5, 8, now) == 6
    assert viewer.limit(1, 6, 8, now + 1) == 7


async def test_a_new_attempt_has_a_clock_of_its_own() -> None:
    tally = await tally_of(*"abcdefgh")
    viewer = Pacer(1, tally)
    assert viewer.limit(1, 0, 8, tally.began + 100) == 8
    tally.clear()
    for seq, text in enumerate("xyz", 1):
        tally.add(chunk(text, seq))
    assert viewer.limit(2, 0, 3, tally.began) == 1


async def test_counting_goes_on_where_the_log_begins_late() -> None:
    tally = TokenClock()
    tally.clear(10)
    for seq, text in enumerate("abc", 11):
        tally.add(chunk(text, seq))
    viewer = Pacer(1, tally)
    assert [viewer.limit(1, 10, 13, tally.began + seconds) for seconds in (0, 1, 2)] == [11, 12, 13]


@pytest.mark.parametrize(("status", "off"), [("completed", False), ("incomplete", False), ("cancelled", True)])
async def test_a_cancelled_answer_is_shown_at_once(status: str, off: bool) -> None:
    live = LiveLog("g", paced=True)
    live.feed([Entry(Position(1, 0), Kind.ATTEMPT, b"{}"), *(chunk("a", seq) for seq in (1, 2, 3))])
    assert live.tally is not None
    live.feed([Entry(SEAL, Kind.OUTCOME, json.dumps({"status": status, "error": None}).encode())])
    assert live.tally.off is off
    assert Pacer(1, live.tally).limit(1, 0, 3, live.tally.began) == (3 if off else 1)


async def test_chunks_that_left_the_window_are_still_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.live.livelog.WINDOW_BYTES", 300)
    live = LiveLog("g", paced=True)
    live.feed([Entry(Position(1, 0), Kind.ATTEMPT, b"{}")])
    for seq in range(1, 51):
        live.feed([chunk("a", seq)])
    assert live.floor > 10
    assert live.tally is not None
    viewer = Pacer(1, live.tally)
    assert [viewer.limit(1, 0, live.end, live.tally.began + seconds) for seconds in (0, 3, 70)] == [1, 4, 50]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.floats(0.01, 1000), st.lists(st.floats(0, 50)))
def test_shown_is_never_more_than_the_pace_and_never_less(
    sizes: Sequence[int], rate: float, moments: Sequence[float]
) -> None:
    async def check() -> None:
        tally = await tally_of(*("x" * size for size in sizes))
        tokens = [max(1, size // 4) for size in sizes]
        viewer, index = Pacer(rate, tally), 0
        for moment in sorted(moments):
            limit = viewer.limit(1, index, len(sizes), tally.began + moment)
            assert index <= limit
            budget = (tally.began + moment - tally.began) * rate
            assert sum(tokens[: limit - 1]) <= budget + 1e-6
            assert limit == len(sizes) or sum(tokens[:limit]) > budget - 1e-6
            index = limit

    asyncio.run(check())


async def test_times_never_go_back() -> None:
    tally = await tally_of(*("x" * size for size in (0, 40, 3, 0, 9)))
    viewer = Pacer(3, tally)
    viewer.limit(1, 0, 5, tally.began)
    assert all(earlier < later for earlier, later in pairwise(viewer.due(index) for index in range(5)))
