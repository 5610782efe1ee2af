"""Which jobs get a place, and what it costs their tenants."""

from __future__ import annotations

import pytest

from shared.config.settings import Settings
from shared.store.jobs import Job, pack_job, unpack_job
from shared.store.keys import Lane
from shared.store.turns import Waiting
from worker.places import BATCHES, ORDER, Costs, Places

SETTINGS = Settings(worker_concurrency=20, worker_lines=5)


def places(**running: int) -> Places:
    return Places(SETTINGS, {lane: [str(n) for n in range(running.get(lane.value, 0))] for lane in Lane})


def many(lane: Lane, count: int) -> list[Waiting]:
    return [Waiting(f"{lane.value}-{number}", lane, "ann") for number in range(count)]


def counted(jobs: list[Waiting]) -> dict[Lane, int]:
    return {lane: sum(job.lane is lane for job in jobs) for lane in Lane if any(job.lane is lane for job in jobs)}


@pytest.mark.parametrize("lane", [Lane.GENERATION, Lane.BACKGROUND])
def test_alone_a_lane_has_every_place(lane: Lane) -> None:
    chosen, left = places().choose(many(lane, 25))
    assert ([job.id for job in chosen], len(left)) == ([f"{lane.value}-{n}" for n in range(20)], 5)


def test_lines_have_some_of_the_places_and_batches_take_none() -> None:
    chosen, _ = places().choose([*many(Lane.LINE, 30), *many(Lane.BATCH, 40)])
    assert counted(chosen) == {Lane.LINE: 5, Lane.BATCH: BATCHES}
    assert places(line=3).room(Lane.LINE) == 2
    assert places(generation=18).room(Lane.LINE) == 2
    assert places(generation=18, background=2).room(Lane.GENERATION) == 0
    assert places(generation=30).room(Lane.GENERATION) == 0


def test_who_is_waited_for_goes_first_and_the_others_still_come_on() -> None:
    """One place at a time is free, as on a busy worker."""
    one = places(generation=19)
    waiting = [job for lane in ORDER for job in many(lane, 400)]
    served: list[Waiting] = []
    for _ in range(160):
        (job,), _ = one.choose(waiting)
        waiting.remove(job)
        served.append(job)
    assert counted(served) == {Lane.GENERATION: 120, Lane.BACKGROUND: 30, Lane.LINE: 10}
    without = [job for job in waiting if job.lane is not Lane.GENERATION]
    assert one.choose(without)[0][0].lane is Lane.BACKGROUND


def test_a_job_begins_at_once_unless_another_has_waited_for_longer() -> None:
    one = places()
    assert one.may_begin(Lane.GENERATION, {Lane.BACKGROUND, Lane.LINE, Lane.BATCH})
    assert not one.may_begin(Lane.BACKGROUND, {Lane.GENERATION})
    assert not one.may_begin(Lane.LINE, {Lane.LINE})
    assert one.may_begin(Lane.BATCH, set(ORDER))
    assert not one.may_begin(Lane.BATCH, {Lane.BATCH})


def test_batches_are_given_back_for_a_tenant_that_has_fewer() -> None:
    jobs = {f"a{n}": job(f"a{n}", lane=Lane.BATCH) for n in range(BATCHES)}
    one = Places(SETTINGS, {**dict.fromkeys(Lane, ()), Lane.BATCH: list(jobs)})
    bobs, anns = Waiting("b", Lane.BATCH, "bob"), Waiting("a", Lane.BATCH, "ann")
    assert one.surplus([anns, bobs], jobs, Costs({})) == f"a{BATCHES - 1}", "the newest"
    assert one.surplus([anns], jobs, Costs({})) is None
    half = {name: job(name, "bob" if number % 2 else "ann", Lane.BATCH) for number, name in enumerate(jobs)}
    assert one.surplus([anns, bobs], half, Costs({})) is None
    assert one.surplus([bobs], half, Costs({"bob": 2.0})) is not None
    assert Places(SETTINGS, dict.fromkeys(Lane, ())).surplus([bobs], {}, Costs({})) is None


def job(name: str, tenant: str = "ann", lane: Lane = Lane.GENERATION) -> Job:
    return Job(name, lane, unpack_job(pack_job("generate", name, 1, tenant)), begun=False, tenant=tenant)


def test_a_job_costs_what_it_took_in_all() -> None:
    costs = Costs({"big": 4.0})
    charged = dict(costs.begin([job("a"), job("b"), job("c", "big")], 100.0))
    ann, big = (Lane.GENERATION, "ann"), (Lane.GENERATION, "big")
    assert charged == {ann: 10.0, big: 1.25}
    charged[ann] += costs.end(job("a"), 101.0)[ann] + costs.end(job("b"), 120.0)[ann]
    charged[big] += costs.end(job("c", "big"), 108.0)[big]
    assert charged == {ann: pytest.approx(21.0), big: pytest.approx(2.0)}
    assert costs.end(job("never taken"), 5.0) == {ann: 0.0}


def test_what_a_job_is_thought_to_take_follows_what_they_take() -> None:
    costs = Costs({"*": 2.0, "ann": 1.0})
    for number in range(100):
        costs.begin([job(str(number))], 0.0)
        costs.end(job(str(number)), 30.0)
    assert 29 < costs.of(Lane.GENERATION, "ann") <= 30
    assert costs.of(Lane.GENERATION, "bob") == costs.of(Lane.GENERATION, "ann") / 2
    assert costs.of(Lane.LINE, "ann") == 5.0
