"""The judges of the soak: they must see what is wrong, or its zeros mean nothing."""

from __future__ import annotations

import random
from typing import Any

from tests.chaos.soak_load import Generation, session_problems
from tests.support.faulty import Plan, refusal
from tests.support.ledger import ledger_problems


def turn(number: int, before: list[dict[str, Any]]) -> tuple[Generation, list[dict[str, Any]]]:
    """A completed generation of two words, asked with these messages before its own, and what its session has of it."""
    made = Generation.draw(number, random.Random(number))
    made.id, made.words, made.text = f"chatcmpl-{number}", 2, f"g{number}.1.0 g{number}.1.1 "
    made.state = {"status": "completed"}
    made.plan = Plan(lambda _: refusal(500))
    made.plan.calls.append({"messages": [*before, *made.messages]})
    said = [*made.messages, {"role": "assistant", "content": made.text}]
    return made, said


def kept(made: Generation, said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"generation_id": made.id, **message} for message in said]


def test_a_session_is_its_completed_turns_in_order() -> None:
    (first, said), (second, more) = turn(1, []), turn(2, turn(1, [])[1])
    one, two = kept(first, said), kept(second, more)
    both = [first, second]
    assert session_problems(both, [*one, *two]) == []
    wrong = {
        "the other way round": [*two, *one],
        "one missing": one,
        "one twice": [*one, *two, *two],
        "half a turn": [*one, two[0]],
        "mixed": [one[0], two[1], two[0], one[1]],
        "nobody's": [*one, *two, *kept(*turn(3, []))],
        "shortened": [*one, two[0], {**two[1], "content": "g2.1.0 "}],
    }
    assert [name for name, messages in wrong.items() if not session_problems(both, messages)] == []
    second.state["status"] = "failed"
    assert session_problems(both, one) == []
    assert session_problems(both, [*one, *two])


def test_a_ledger_is_the_sum_of_its_generations() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    state = {"model": "m/a", "served_by": None, "status": "completed", "usage": usage}
    row = {"model": "m/a", "requests": 2, "completed_requests": 2, "failed_requests": 0, "provider_requests": 2}
    row |= {name: 2 * amount for name, amount in usage.items()}
    others = {**row, "model": "m/b"}
    assert ledger_problems([state, state], [row, others]) == []
    assert ledger_problems([state, state], [{**row, "date": "1"}, {**others, "date": "1"}]) == []
    for name in ("requests", "completed_requests", "failed_requests", *usage):
        assert ledger_problems([state, state], [{**row, name: row[name] + 1}])
    assert ledger_problems([state], [row])
    assert ledger_problems([state, state], [others])
    assert ledger_problems([state, {**state, "status": "failed"}], [row])
