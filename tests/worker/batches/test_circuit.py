"""When a model is left alone because its provider is away, and how it is found out that it is back."""

from __future__ import annotations

import pytest

from worker.batches.circuit import Circuit


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.batches.circuit.jittered", lambda pause_s: pause_s)


def opened(at: float = 0) -> Circuit:
    circuit = Circuit()
    assert [circuit.failed(at, at) for _ in range(5)] == [False] * 4 + [True]
    return circuit


def test_a_few_failures_among_answers_open_nothing() -> None:
    circuit = Circuit()
    for now in range(50):
        assert not circuit.failed(now, now)
        if now % 4 == 3:
            circuit.answered(now)
    assert circuit.room(50) > 1000


def test_failures_in_a_row_open_it_for_a_time() -> None:
    circuit = opened(at=7)
    assert [circuit.room(now) for now in (7, 7.9, 8)] == [0, 0, 1]


def test_what_was_on_its_way_when_it_opened_does_not_make_it_worse() -> None:
    circuit = opened(at=7)
    assert not any(circuit.failed(6.9, 7.5) for _ in range(100))
    assert circuit.until == 8


def test_one_line_is_let_through_and_each_that_fails_doubles_the_time() -> None:
    circuit, now, pauses = opened(), 0.0, []
    for _ in range(9):
        pauses.append(circuit.until - now)
        now = circuit.until
        assert circuit.room(now) == 1
        circuit.begun(now)
        assert circuit.room(now) == 0
        assert circuit.failed(now, now + 0.5)
        now += 0.5
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_an_answer_closes_it_and_forgets() -> None:
    circuit = opened()
    circuit.begun(1)
    circuit.failed(1, 1)
    assert circuit.answered(2)
    assert not circuit.answered(3)
    assert circuit.room(3) > 1000
    assert [circuit.failed(4, 4) for _ in range(5)][-1]
    assert circuit.until == 5


def test_a_line_let_through_that_is_never_heard_of_again_is_not_the_last() -> None:
    circuit = opened()
    circuit.begun(1)
    assert [circuit.room(now) for now in (2, 180, 181)] == [0, 0, 1]


def test_a_provider_that_says_when_to_come_back_is_kept_to_within_bounds() -> None:
    for asked_s, until in ((30, 30), (0.1, 1), (86400, 600)):
        circuit = Circuit()
        for _ in range(5):
            circuit.failed(0, 0, asked_s)
        assert circuit.until == until
