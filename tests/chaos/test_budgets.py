"""A hard budget under 500 answers at once, with workers and an API killed (F46): overspent by what ran, never miscounted."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import httpx

from shared.lib import money
from tests.chaos.bursts import check_ledger, wait_still
from tests.chaos.tally import Tally
from tests.harness.processes import wait_until
from tests.harness.upstream import DONE, ScriptedUpstream, chunk, words
from tests.support.fleet import Fleet, ask
from tests.support.names import keys

ANSWERS, PLACES, COST = 500, 10, 0.02
SETTINGS = {"STREAMSPOOL_BUDGETS": "month_usd=1", "STREAMSPOOL_WORKER_CONCURRENCY": str(PLACES)}
MODEL = "f46-paid"
USAGE: dict[str, Any] = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12, "cost": COST}


def paid() -> list[bytes | float]:
    event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": USAGE}
    return [*words(3), 0.05, chunk({}, "stop"), b"data: " + json.dumps(event).encode() + b"\n\n", DONE]


async def ask_all(fleet: Fleet) -> Counter[int]:
    """Every one of them until it is accepted or refused, whatever is killed meanwhile; how often which."""
    found: Counter[int] = Counter()
    numbers = iter(range(ANSWERS))

    async def some(http: httpx.AsyncClient) -> None:
        for number in numbers:
            while True:
                try:
                    response = await http.post(
                        f"{fleet.url}/v1/chat/completions",
                        json=ask(MODEL, background=True),
                        headers={"idempotency-key": f"f46-{number}"},
                    )
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
                    continue
                if response.status_code == 503:
                    await asyncio.sleep(0.05)
                    continue
                if response.status_code == 429:
                    assert response.json()["error"]["code"] == "insufficient_quota"
                    assert response.headers["x-should-retry"] == "false"
                found[response.status_code] += 1
                break

    async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
        await asyncio.gather(*(some(http) for _ in range(50)))
    return found


def test_f46_a_hard_budget_is_overspent_by_what_ran_when_it_was_reached(
    fleet: Fleet, upstream: ScriptedUpstream
) -> None:
    script = upstream.script(MODEL, paid())

    async def with_kills() -> Counter[int]:
        asked = asyncio.create_task(ask_all(fleet))
        for name, calls in (("worker", 10), ("api", 20), ("worker-2", 30)):
            await asyncio.to_thread(
                wait_until, lambda calls=calls: len(script.calls) >= calls or asked.done(), 60, what="so many are asked"
            )
            fleet.kill(name)
            await asyncio.to_thread(fleet.start, name)
        return await asked

    statuses = asyncio.run(with_kills())
    wait_still(fleet)
    assert statuses[202] + statuses[429] == ANSWERS, statuses
    states = {key: state for key, state in fleet.states().items() if state["model"] == f"scripted/{MODEL}"}
    assert len(states) == statuses[202]
    ends = Counter((state["status"], (state["error"] or {}).get("code")) for state in states.values())
    assert {end for end in ends if end[1] == "insufficient_quota"} <= {("failed", "insufficient_quota")}
    assert ends["completed", None] * COST >= 1 or statuses[429] == 0

    total = sum(money.from_dollars(state["cost_usd"]) or 0 for state in states.values() if state["cost_usd"])
    month = datetime.now(UTC).strftime("%Y-%m")
    charged = int(fleet.client.hget(keys.spent("local", month), month) or 0)
    assert charged == total, "what is charged is the sum of the outcomes"
    ran = 2 * PLACES + 2 * PLACES  # and those that a killed worker had sealed: they are charged when they are settled
    assert money.PER_DOLLAR <= charged < money.PER_DOLLAR + ran * (money.from_dollars(COST) or 0)
    tally = Tally()
    check_ledger(fleet, tally, states)
    assert tally.problems == []
