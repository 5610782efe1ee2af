"""Which lines of a batch are begun next: in their order, and past providers that have no room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.request import ChatRequest
from worker import batch_queue
from worker.batch_lines import Asked
from worker.batch_queue import Line, Queue

REQUEST = ChatRequest.check({"model": "fake/echo", "messages": [{"role": "user", "content": "hi"}]})


def lines(*providers: str, length: int = 10) -> Iterator[Line]:
    for number, provider in enumerate(providers, 1):
        yield Line(number, number * length, length, f"id-{number}", provider, asked=Asked(f"id-{number}", {}, REQUEST))


def fill(queue: Queue, source: Iterator[Line], now: float = 0) -> list[Line]:
    """What a batch does: reads as much as is wanted, and begins what may be."""
    while queue.wants(now) and (line := next(source, None)):
        queue.wait(line, now)
    chosen = queue.choose(now)
    for line in chosen:
        queue.begun(f"{line.number}-{line.tries}", line, now)
    return chosen


def numbers(chosen: list[Line]) -> list[int]:
    return [line.number for line in chosen]


def refuse(queue: Queue, generation_id: str, now: float, retry_after_s: float) -> None:
    line = queue.open[generation_id]
    queue.refused(line, now, retry_after_s)
    queue.ended(generation_id)
    line.tries += 1
    queue.wait(line, now)


def test_no_line_is_read_that_cannot_be_begun() -> None:
    queue, source = Queue(3, ["a"]), lines(*"aaaaa")
    assert numbers(fill(queue, source)) == [1, 2, 3]
    assert numbers(fill(queue, source)) == []
    queue.ended("2-0")
    assert numbers(fill(queue, source)) == [4]
    assert next(source).number == 5


def test_lines_of_others_go_past_a_provider_that_is_paused() -> None:
    queue, source = Queue(4, ["a", "b"]), lines(*"aababbaab")
    assert numbers(fill(queue, source)) == [1, 2, 3, 4]
    for generation_id in ("1-0", "2-0", "4-0"):
        refuse(queue, generation_id, now=1, retry_after_s=60)
    assert numbers(fill(queue, source, now=2)) == [5, 6, 9]
    assert [line.number for line in queue.lines()] == [3, 5, 6, 9, 1, 2, 4, 7, 8]
    for generation_id in ("3-0", "5-0", "6-0", "9-0"):
        queue.ended(generation_id)
    assert numbers(fill(queue, source, now=2)) == []
    assert numbers(fill(queue, source, now=61)) == [1, 2], "half as many as before, the first ones first"


def test_what_waits_is_kept_without_its_body() -> None:
    queue, source = Queue(2, ["a", "b"]), lines(*"aaaab")
    chosen = fill(queue, source)
    assert numbers(chosen) == [1, 2]
    refuse(queue, "1-0", now=0, retry_after_s=9)
    refuse(queue, "2-0", now=0, retry_after_s=9)
    (last,) = fill(queue, source, now=1)
    assert last.number == 5
    assert [line.asked for line in queue.waiting()] == [None] * 4


def test_the_lines_that_may_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_queue, "AHEAD", 5)
    queue, source = Queue(2, ["a", "b"]), lines(*"a" * 100, "b")
    fill(queue, source)
    refuse(queue, "1-0", now=0, retry_after_s=9)
    assert fill(queue, source, now=1) == []
    assert sum(1 for _ in queue.lines()) == 6
    assert fill(queue, source, now=2) == []
    assert sum(1 for _ in queue.lines()) == 6


def test_large_lines_are_open_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_queue, "_OPEN_BYTES", 25)
    queue, source = Queue(100, ["a"]), lines(*"aaaaa")
    assert numbers(fill(queue, source)) == [1, 2, 3]
    queue = Queue(100, ["a"])
    assert numbers(fill(queue, lines(*"aa", length=1000))) == [1]


def test_a_provider_nobody_foresaw_is_one_like_others() -> None:
    queue, source = Queue(2, []), lines(*"aab")
    begun = []
    for _ in range(3):
        begun += numbers(fill(queue, source))
        for generation_id in list(queue.open):
            queue.ended(generation_id)
    assert begun == [1, 2, 3]
    assert not queue


def test_others_are_left_their_share() -> None:
    queue, source = Queue(100, ["a", "b"]), lines(*"a" * 100)
    mine, other = dict.fromkeys(queue.providers, 100), {"a": 100}
    queue.share("mine", 60, {"mine": {"tenant": "x", "providers": mine}, "other": {"tenant": "y", "providers": other}})
    assert len(fill(queue, source)) == 30


@given(
    st.lists(st.sampled_from("abc"), max_size=40),
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from(["answer", "refuse"]), st.integers(0, 20)), max_size=60),
)
def test_each_line_is_begun_and_ended_once_whatever_is_refused(
    providers: list[str], most: int, events: list[tuple[str, int]]
) -> None:
    queue, source, now, answered = Queue(most, "abc"), lines(*providers), 0.0, []
    rest = iter(events)
    while True:
        fill(queue, source, now)
        assert len(queue.open) <= most
        if not queue:
            break
        now += 1
        for generation_id in list(queue.open):
            event, wait_s = next(rest, ("answer", 0))
            if event == "refuse":
                refuse(queue, generation_id, now, wait_s)
            else:
                queue.answered(queue.open[generation_id])
                answered.append(queue.ended(generation_id).number)
    assert sorted(answered) == list(range(1, len(providers) + 1))
