"""The places of a worker: which jobs get one, and what having it costs their tenants.

Hidden here: that an answer somebody waits for goes first, then one of the background, then a line of a batch, and that the
last of these still come on: of four places that several of them want, one goes to the second, and of sixteen, one to the last.
A batch itself, which only hands out its lines, takes no place of theirs. Who goes first inside of each is turns.py's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from shared.config.settings import Settings
from shared.config.tenants import EVERY_TENANT
from shared.store.jobs import Job
from shared.store.keys import Lane
from shared.store.turns import Charges, Waiting

BATCHES = 32
"""How many batches one worker hands out at once; more wait for another worker, or for one of these to end."""
ORDER = (Lane.GENERATION, Lane.BACKGROUND, Lane.LINE)
_SECOND, _LAST = 4, 16
_GUESS_S = 5.0
"""What a job is thought to take before any has ended."""
_NEWER = 0.1
"""How much of the last one is in what the next one is thought to take."""


class Places:
    """`running` are the ids of the jobs that run, by lane, in the order in which they began."""

    def __init__(self, settings: Settings, running: Mapping[Lane, Collection[str]]) -> None:
        self._all, self._lines, self._running = settings.worker_concurrency, settings.worker_lines, running
        self._in_places = [running[lane] for lane in ORDER]
        self._contested = 0

    def shown(self) -> dict[str, Any]:
        """As the worker tells it."""
        return {"places": self._all, "jobs": {lane: len(jobs) for lane, jobs in self._running.items()}}

    def room(self, lane: Lane) -> int:
        """How many more jobs of a lane may run here, if they are alone."""
        if lane is Lane.BATCH:
            return BATCHES - len(self._running[lane])
        first, second, last = self._in_places
        free = max(0, self._all - len(first) - len(second) - len(last))
        return max(0, min(free, self._lines - len(last))) if lane is Lane.LINE else free

    def may_begin(self, lane: Lane, more: Collection[Lane]) -> bool:
        """Whether a job may begin as soon as it is there, while of these lanes more is known to wait."""
        if not more:
            return True
        before = (lane,) if lane is Lane.BATCH else ORDER[: ORDER.index(lane) + 1]
        return not set(before).intersection(more)

    def choose(self, wanted: Sequence[Waiting]) -> tuple[list[Waiting], list[Waiting]]:
        """Those of the jobs that there is room for, and the others."""
        if len(wanted) == 1:
            return ([*wanted], []) if self.room(wanted[0].lane) else ([], [*wanted])
        waiting = {lane: [job for job in wanted if job.lane is lane] for lane in Lane}
        hand_out = self.room(Lane.BATCH)
        chosen, left = waiting[Lane.BATCH][:hand_out], waiting[Lane.BATCH][hand_out:]
        free, lines = self.room(Lane.GENERATION), self.room(Lane.LINE)
        while free and (able := [lane for lane in ORDER if waiting[lane] and (lines or lane is not Lane.LINE)]):
            lane = self._next(able)
            chosen.append(waiting[lane].pop(0))
            free -= 1
            lines -= lane is Lane.LINE
        return chosen, left + [job for lane in ORDER for job in waiting[lane]]

    def surplus(self, waiting: Iterable[Waiting], jobs: Mapping[str, Job], costs: Costs) -> str | None:
        """Of the batches that are handed out here, `jobs` by id, the one to be given back for one of another tenant that has
        fewer of them: the newest of the tenant that has most. A batch may take a day, and goes on wherever it is taken."""
        if self.room(Lane.BATCH):
            return None
        held: dict[str, list[str]] = {}
        for job_id in self._running[Lane.BATCH]:
            held.setdefault(jobs[job_id].tenant, []).append(job_id)
        most = max(held, key=lambda tenant: len(held[tenant]) / costs.weight(tenant))
        shares = len(held[most]) / costs.weight(most)
        for job in waiting:
            if job.tenant is not None and (len(held.get(job.tenant, ())) + 1) / costs.weight(job.tenant) < shares:
                return held[most][-1]
        return None

    def _next(self, able: list[Lane]) -> Lane:
        if len(able) == 1:
            return able[0]
        self._contested += 1
        if self._contested % _LAST == 0:
            return able[-1]
        return able[1 if self._contested % _SECOND == 0 else 0]


class Costs:
    """What places cost. Each job is charged when it is taken what those before it took, and the rest when it has ended."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """`weights` by tenant: with twice the weight, a place costs half."""
        self._weights = weights
        self._guess_s = dict.fromkeys(Lane, _GUESS_S)
        self._charged: dict[str, tuple[float, float]] = {}

    def of(self, lane: Lane, tenant: str) -> float:
        return self._guess_s[lane] / self.weight(tenant)

    def begin(self, jobs: Iterable[Job], now: float) -> Charges:
        """Charges them what they are thought to take."""
        charges: dict[tuple[Lane, str], float] = {}
        for job in jobs:
            self._charged[job.id] = now, self._guess_s[job.lane]
            place = job.lane, job.tenant
            charges[place] = charges.get(place, 0.0) + self.of(*place)
        return charges

    def end(self, job: Job, now: float) -> Charges:
        """Charges what it took beyond that, or gives some back."""
        began, charged = self._charged.pop(job.id, (now, 0.0))
        took = now - began
        self._guess_s[job.lane] += _NEWER * (took - self._guess_s[job.lane])
        return {(job.lane, job.tenant): (took - charged) / self.weight(job.tenant)}

    def weight(self, tenant: str) -> float:
        return self._weights.get(tenant, self._weights.get(EVERY_TENANT, 1.0))
