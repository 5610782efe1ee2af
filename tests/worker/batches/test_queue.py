"""Which lines of a batch are begun next: in their order, and past providers that have no room."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.chat.request import ChatRequest
from worker.batches import queue as batch_queue
from worker.batches.circuit import Circuit
from worker.batches.lines import Asked
from worker.batches.queue import Line, Queue

REQUEST = ChatRequest.check({"model": "fake/echo", "messages": [{"role": "user", "content": "hi"}]})


class Gates(dict[str, Circuit]):
    """Circuits of models, all closed to begin with."""

    def of(self, model: str) -> Circuit:
        return self.setdefault(model, Circuit())


def queue_of(most: int, providers: Iterable[str], models: Iterable[str] = (), gates: Gates | None = None) -> Queue:
    """Models are called like `a/x`, after their providers."""
    return Queue(
        most, providers, {model: model.partition("/")[0] for model in models}, Gates() if gates is None else gates
    )


def lines(*models: str, length: int = 10) -> Iterator[Line]:
    for number, model in enumerate(models, 1):
        provider, asked = model.partition("/")[0], Asked(f"id-{number}", {}, REQUEST)
        yield Line(number, number * length, length, f"id-{number}", provider, model, asked=asked)


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
    queue, source = queue_of(3, ["a"]), lines(*"aaaaa")
    assert numbers(fill(queue, source)) == [1, 2, 3]
    assert numbers(fill(queue, source)) == []
    queue.ended("2-0")
    assert numbers(fill(queue, source)) == [4]
    assert next(source).number == 5


def test_lines_of_others_go_past_a_provider_that_is_paused() -> None:
    queue, source = queue_of(4, ["a", "b"]), lines(*"aababbaab")
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
    queue, source = queue_of(2, ["a", "b"]), lines(*"aaaab")
    chosen = fill(queue, source)
    assert numbers(chosen) == [1, 2]
    refuse(queue, "1-0", now=0, retry_after_s=9)
    refuse(queue, "2-0", now=0, retry_after_s=9)
    (last,) = fill(queue, source, now=1)
    assert last.number == 5
    assert [line.asked for line in queue.waiting()] == [None] * 4


def test_the_lines_that_may_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_queue, "AHEAD", 5)
    queue, source = queue_of(2, ["a", "b"]), lines(*"a" * 100, "b")
    fill(queue, source)
    refuse(queue, "1-0", now=0, retry_after_s=9)
    assert fill(queue, source, now=1) == []
    assert sum(1 for _ in queue.lines()) == 6
    assert fill(queue, source, now=2) == []
    assert sum(1 for _ in queue.lines()) == 6


def test_large_lines_are_open_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_queue, "_OPEN_BYTES", 25)
    queue, source = queue_of(100, ["a"]), lines(*"aaaaa")
    assert numbers(fill(queue, source)) == [1, 2, 3]
    queue = queue_of(100, ["a"])
    assert numbers(fill(queue, lines(*"aa", length=1000))) == [1]


def test_a_provider_nobody_foresaw_is_one_like_others() -> None:
    queue, source = queue_of(2, []), lines(*"aab")
    begun = []
    for _ in range(3):
        begun += numbers(fill(queue, source))
        for generation_id in list(queue.open):
            queue.ended(generation_id)
    assert begun == [1, 2, 3]
    assert not queue


def test_others_are_left_their_share() -> None:
    queue, source = queue_of(100, ["a", "b"]), lines(*"a" * 100)
    mine, other = dict.fromkeys(queue.providers, 100), {"a": 100}
    queue.share("mine", 60, {"mine": {"tenant": "x", "providers": mine}, "other": {"tenant": "y", "providers": other}})
    assert len(fill(queue, source)) == 30


def away(gates: Gates, *models: str, until: float) -> None:
    for model in models:
        gates.of(model).open(0, until, 1)


def test_lines_of_other_models_of_a_provider_go_past_one_that_is_away() -> None:
    gates = Gates()
    queue, source = queue_of(3, [], ["a/x", "a/y"], gates), lines("a/x", "a/x", "a/y", "a/x", "a/y")
    away(gates, "a/x", until=10)
    assert numbers(fill(queue, source, now=1)) == [3, 5]
    assert [line.number for line in queue.lines()] == [3, 5, 1, 2, 4]


def test_nothing_is_read_ahead_where_every_model_is_away() -> None:
    """It would only stand in the checkpoint."""
    gates = Gates()
    queue, source = queue_of(3, ["a"], ["a/x"], gates), lines(*["a/x"] * 100)
    away(gates, "a/x", until=10)
    assert fill(queue, source, now=1) == []
    assert next(source).number == 1


def test_one_line_is_let_through_to_see_whether_a_provider_is_back() -> None:
    gates = Gates()
    queue, source = queue_of(5, [], ["a/x"], gates), lines(*["a/x"] * 9)
    away(gates, "a/x", until=10)
    assert fill(queue, source, now=9) == []
    assert numbers(fill(queue, source, now=11)) == [1]
    assert fill(queue, source, now=12) == []
    gates.of("a/x").answered(13)
    assert numbers(fill(queue, source, now=13)) == [2, 3, 4, 5]


def test_a_line_that_waits_for_its_time_holds_up_nobody() -> None:
    queue, source = queue_of(2, [], ["a/x"]), lines(*["a/x"] * 4)
    assert numbers(fill(queue, source, now=0)) == [1, 2]
    line = queue.ended("1-0")
    assert [line.again() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    queue.wait(line, 0, 5)
    assert numbers(fill(queue, source, now=0)) == [3]
    assert numbers(fill(queue, source, now=4)) == []
    queue.ended("2-0")
    assert bool(queue)
    assert numbers(fill(queue, source, now=5)) == [1], "the first ones first"
    queue.ended("3-0")
    assert numbers(fill(queue, source, now=5)) == [4]


def test_what_is_held_against_a_line_stands_in_its_spot() -> None:
    (line,) = lines("a/x")
    assert line.spot() == [1, 10, 10, 0]
    line.again()
    line.lost = 2
    assert line.spot() == [1, 10, 10, 1, 0, 2]


@given(
    st.lists(st.sampled_from("abc"), max_size=40),
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from(["answer", "refuse", "fail"]), st.integers(0, 20)), max_size=60),
)
def test_each_line_is_begun_and_ended_once_whatever_is_refused(
    providers: list[str], most: int, events: list[tuple[str, int]]
) -> None:
    gates, now, answered = Gates(), 0.0, []
    queue, source = queue_of(most, "abc", gates=gates), lines(*providers)
    rest = iter(events)
    while True:
        fill(queue, source, now)
        assert len(queue.open) <= most
        if not queue:
            break
        now += 1
        for generation_id in list(queue.open):
            event, wait_s = next(rest, ("answer", 0))
            line = queue.open[generation_id]
            if event == "refuse":
                refuse(queue, generation_id, now, wait_s)
            elif event == "fail":
                gates.of(line.model).failed(line.asked_at, now)
                queue.ended(generation_id)
                queue.wait(line, now, line.again())
            else:
                queue.answered(line)
                gates.of(line.model).answered(now)
                answered.append(queue.ended(generation_id).number)
    assert sorted(answered) == list(range(1, len(providers) + 1))
