"""The judges of the soak: they must see what is wrong, or its zeros mean nothing."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos import soak_faults
from tests.chaos.soak_faults import APIS, WORKERS, Faults, Life, Sample, trend
from tests.chaos.soak_load import Generation, session_problems
from tests.harness.upstream import Call, Script, refusal
from tests.support.ledger import ledger_problems


def turn(number: int, before: list[dict[str, Any]]) -> tuple[Generation, list[dict[str, Any]]]:
    """A completed generation of two words, asked with these messages before its own, and what its session has of it."""
    made = Generation.draw(number, random.Random(number))
    made.id, made.words, made.text = f"chatcmpl-{number}", 2, f"g{number}.1.0 g{number}.1.1 "
    made.state = {"status": "completed"}
    made.plan = Script(lambda _: refusal(500))
    made.plan.calls.append(Call({"messages": [*before, *made.messages]}))
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
    state = {"model": "m/a", "served_by": None, "status": "completed", "usage": usage, "cost_usd": 0.25}
    row: dict[str, Any] = {
        "model": "m/a",
        "requests": 2,
        "completed_requests": 2,
        "failed_requests": 0,
        "provider_requests": 2,
        "unknown_costs": 0,
        "cost_usd": 0.5,
    }
    row |= {name: 2 * amount for name, amount in usage.items()}
    others = {**row, "model": "m/b"}
    assert ledger_problems([state, state], [row, others]) == []
    assert ledger_problems([state, state], [{**row, "date": "1"}, {**others, "date": "1"}]) == []
    for name in ("requests", "completed_requests", "failed_requests", *usage):
        assert ledger_problems([state, state], [{**row, name: row[name] + 1}])
    assert ledger_problems([state, state], [{**row, "cost_usd": 0.500000000001}])
    assert ledger_problems([state, {**state, "cost_usd": None}], [row])
    assert ledger_problems([state], [row])
    assert ledger_problems([state, state], [others])
    assert ledger_problems([state, {**state, "status": "failed"}], [row])


def life(
    minutes: float, leak_mb: float, *, kept: Callable[[float], float] = lambda _: 0.0, seed: int = 1, name: str = "api"
) -> Life:
    """As they were measured without faults: 79 MB, requests on top that come and go, and what is kept for viewers."""
    chance = random.Random(seed)
    made = Life(name, 0)
    for step in range(1, int(minutes * 12)):
        age = step * 5.0
        taken = 79 + chance.choice([0, 0, 1, 3, 8]) + chance.uniform(0, 1.5) + leak_mb * age / 60
        made.samples.append(Sample(age, taken + kept(age), kept(age), 40))
    return made


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("minutes", [15, 18, 60])
def test_a_leak_of_a_megabyte_a_minute_is_seen_and_its_absence_as_well(minutes: int, seed: int) -> None:
    leaking = life(minutes, 1, seed=seed).grows()
    assert leaking == pytest.approx(1, abs=0.25)
    assert life(minutes, 0, seed=seed).grows() is None


def test_a_cache_may_fill_and_a_leak_beside_it_is_seen() -> None:
    def kept(age_s: float) -> float:
        return min(16.0, age_s / 40)

    assert life(16, 0, kept=kept).grows() is None
    assert life(16, 1, kept=kept).grows()
    assert life(60, 0.2, kept=kept).grows()


def test_what_has_come_to_its_full_size_does_not_grow_and_a_leak_beside_that_is_seen() -> None:
    def filled(leak_mb: float) -> Life:
        made = life(26, leak_mb)
        made.samples = [one._replace(resident_mb=one.resident_mb + min(9.0, one.age_s / 100)) for one in made.samples]
        return made

    assert trend(filled(0).floor()) * len(filled(0).floor()) > 5
    assert filled(0).grows() is None
    assert filled(1).grows() == pytest.approx(1, abs=0.25)


def test_what_is_too_young_is_not_judged_and_a_long_run_needs_somebody_who_is_not() -> None:
    assert life(14, 9).grows() is None
    soak = SimpleNamespace(stack=SimpleNamespace(log=lambda _: ""), random=random.Random(1))
    faults = Faults(soak, 20, 1800)  # type: ignore[arg-type]
    assert [problem["processes"] for problem in faults.problems()] == [WORKERS, APIS]
    faults._lives = {1: life(16, 0), 2: life(16, 0, name="worker"), 3: life(3, 20), 4: life(3, 90)}
    assert [problem["what"] for problem in faults.problems()] == ["much memory"]


class Broken:
    """A soak whose processes all sleep, and a Valkey that does, too."""

    def __init__(self) -> None:
        self.sleepers = {name: subprocess.Popen([sys.executable, "-c", SLEEP]) for name in (*WORKERS, *APIS, "valkey")}
        self.blamed: list[str] = []
        self.random, self.ports, self.streams = random.Random(1), [1, 2], set[Any]()
        self.stack = SimpleNamespace(process=lambda name: self.sleepers[name])
        valkey = self.sleepers["valkey"]
        self.valkey = SimpleNamespace(pid=valkey.pid, wait_ready=lambda: None, is_running=lambda: valkey.poll() is None)

    def blame(self, what: str, **_: Any) -> None:
        self.blamed.append(what)

    def stopped(self) -> int:
        states = [Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] for process in self.all]
        return states.count("T")

    @property
    def all(self) -> list[subprocess.Popen[bytes]]:
        return list(self.sleepers.values())


SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def broken() -> Iterator[Broken]:
    made = Broken()
    yield made
    for process in made.all:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["_stop", "_valkey"])
async def test_a_fault_that_is_cut_short_leaves_nobody_stopped(broken: Broken, kind: str) -> None:
    broken.random = SimpleNamespace(
        choice=lambda options: "stop" if "stop" in options else options[-1], random=lambda: 0.0
    )  # type: ignore[assignment]
    faults = Faults(broken, 1, 60)  # type: ignore[arg-type]
    fault = asyncio.create_task(getattr(faults, kind)())
    async with asyncio.timeout(60):
        while not broken.stopped():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
    fault.cancel()
    await asyncio.wait({fault})
    async with asyncio.timeout(60):
        while broken.stopped():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


async def test_no_fault_holds_the_soak_up(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_faults, "FAULT_S", 0.05)
    for kind in ("_kill", "_stop", "_term", "_valkey", "_viewers"):
        monkeypatch.setattr(Faults, kind, lambda _: asyncio.Event().wait())
    faults = Faults(broken, 0.01, 60)  # type: ignore[arg-type]
    broken.sleepers["valkey"].send_signal(signal.SIGSTOP)  # left so by whatever
    async with asyncio.timeout(60):
        running = asyncio.create_task(faults.run())
        await asyncio.wait({running})
        await faults.calm(running)
        while broken.stopped():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
    assert len(broken.blamed) == 1


async def test_a_valkey_that_does_not_end_is_killed_and_named(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_faults, "GONE_S", 0.05)
    async with asyncio.timeout(60):
        await Faults(broken, 1, 60)._until_gone(broken.valkey)  # type: ignore[arg-type]
    assert len(broken.blamed) == 1


def test_the_first_of_each_pair_is_spared_in_the_second_half_of_a_long_run() -> None:
    def ended(lasts_s: float) -> Counter[str]:
        faults = Faults(SimpleNamespace(stack=None, random=random.Random(1)), 20, lasts_s)  # type: ignore[arg-type]
        faults._spare_at -= lasts_s
        return Counter(faults._doomed() for _ in range(200))

    assert set(ended(1800)) == {WORKERS[1], APIS[1]}
    assert set(ended(60)) == {*WORKERS, *APIS}
