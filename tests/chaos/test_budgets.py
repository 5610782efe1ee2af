"""A hard budget under 500 answers at once, with workers and an API killed: overspent by what ran (F46), or by nothing where the
price is known (F72); and never miscounted."""

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
from tests.support.wire import KEY_A, KEY_B

ANSWERS, PLACES, COST = 500, 10, 0.02
PAID, PRICED = "f46-paid", "f72-priced"
SETTINGS = {
    "STREAMSPOOL_API_KEYS": f"{PAID}:{KEY_A},{PRICED}:{KEY_B}",
    "STREAMSPOOL_BUDGETS": "month_usd=1",
    "STREAMSPOOL_WORKER_CONCURRENCY": str(PLACES),
    "STREAMSPOOL_PRICES": json.dumps({f"scripted/{PRICED}": {"input": 0, "request": COST}}),
}
KEYS = {PAID: KEY_A, PRICED: KEY_B}
"""The tenants are called as their models are."""
USAGE: dict[str, Any] = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12, "cost": COST}


def paid() -> list[bytes | float]:
    event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": USAGE}
    return [*words(3), 0.05, chunk({}, "stop"), b"data: " + json.dumps(event).encode() + b"\n\n", DONE]


async def ask_all(fleet: Fleet, model: str) -> Counter[int]:
    """Every one of them until it is accepted or refused for good, whatever is killed meanwhile; how often which."""
    found: Counter[int] = Counter()
    numbers = iter(range(ANSWERS))

    async def some(http: httpx.AsyncClient) -> None:
        for number in numbers:
            while True:
                try:
                    response = await http.post(
                        f"{fleet.url}/v1/chat/completions",
                        json=ask(model, background=True),
                        headers={"idempotency-key": f"f46-{number}", "authorization": f"Bearer {KEYS[model]}"},
                    )
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
                    continue
                if response.status_code == 503:
                    await asyncio.sleep(0.05)
                    continue
                if response.status_code == 429:
                    code = response.json()["error"]["code"]
                    if code == "budget_reserved":
                        assert response.headers["x-should-retry"] == "true"
                        await asyncio.sleep(0.2)
                        continue
                    assert code == "insufficient_quota"
                    assert response.headers["x-should-retry"] == "false"
                found[response.status_code] += 1
                break

    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        await asyncio.gather(*(some(http) for _ in range(50)))
    return found


def with_kills(fleet: Fleet, upstream: ScriptedUpstream, model: str) -> int:
    """What was charged, which is the sum of the outcomes."""
    script = upstream.script(model, paid())

    async def asked_meanwhile() -> Counter[int]:
        asked = asyncio.create_task(ask_all(fleet, model))
        for name, calls in (("worker", 10), ("api", 20), ("worker-2", 30)):
            await asyncio.to_thread(
                wait_until,
                lambda calls=calls: len(script.calls) >= calls or asked.done(),
                120,
                what="so many are asked",
            )
            fleet.kill(name)
            await asyncio.to_thread(fleet.start, name)
        return await asked

    statuses = asyncio.run(asked_meanwhile())
    wait_still(fleet)
    assert statuses[202] + statuses[429] == ANSWERS, statuses
    fleet.http.headers["authorization"] = f"Bearer {KEYS[model]}"
    states = fleet.states()
    assert len(states) == statuses[202]
    ends = Counter((state["status"], (state["error"] or {}).get("code")) for state in states.values())
    assert {end for end in ends if end[1] == "insufficient_quota"} <= {("failed", "insufficient_quota")}

    total = sum(money.from_dollars(state["cost_usd"]) or 0 for state in states.values() if state["cost_usd"])
    month = datetime.now(UTC).strftime("%Y-%m")
    charged = int(fleet.client.hget(keys.spent(model, month), month) or 0)
    assert charged == total, "what is charged is the sum of the outcomes"
    assert not any(map(int, fleet.client.hvals(keys.held(f"tenant:{model}")))), "nothing is held any more"
    tally = Tally()
    check_ledger(fleet, tally, states)
    assert tally.problems == []
    return charged


def test_f46_a_hard_budget_is_overspent_by_what_ran_when_it_was_reached(
    fleet: Fleet, upstream: ScriptedUpstream
) -> None:
    """Nobody knows the price before the provider tells it."""
    charged = with_kills(fleet, upstream, PAID)
    ran = 2 * PLACES + 2 * PLACES  # and those that killed workers had said to the end and not sealed: others seal them
    assert money.PER_DOLLAR <= charged < money.PER_DOLLAR + ran * (money.from_dollars(COST) or 0)


def test_f72_a_hard_budget_is_not_overspent_where_the_price_is_known(fleet: Fleet, upstream: ScriptedUpstream) -> None:
    assert with_kills(fleet, upstream, PRICED) == money.PER_DOLLAR
