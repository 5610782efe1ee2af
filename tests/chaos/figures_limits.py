"""The figures of limits, in docs/RELIABILITY.md: `python -m tests.chaos.figures_limits [ROW …]`.

    L1   (row Q13) 2,000 requests at once to four API processes, of a tenant that may have 600 a minute: how many are let in.
         What a busy machine answers with 503 is asked again; it may have been let in all the same, and is withdrawn then
    L2   (row Q14) the same for 100,000 tokens a minute: what is counted once all that was let in is settled, beside the sum of
         the usage in the outcomes
    L3   what a limit costs: one stream after another, with limits that are never reached and without, in turn: the first
         frame's time, as the median of five rounds; with a provider over HTTP, and with none
    L4   (row Q16) a key is revoked, 20 times: how long after the answer that says so each of four API processes lets it in.
         Each is asked all the time, by a connection of its own

Prints a JSON line for each row.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import ScriptedUpstream, ending, words
from tests.support.names import keys
from tests.support.wire import Client, ask

ALICE, BOB, ADMIN = "key-of-alice-0123456789", "key-of-bob-0123456789", "key-of-the-admin-0123456789"
APIS = ("api", "api-2", "api-3", "api-4")
REQUESTS = 2_000
PROVIDED = "scripted/at-once"
REVOKED = 20


def settings(limits: str) -> dict[str, str]:
    return {
        "STREAMSPOOL_CONFIRM": "none",
        "STREAMSPOOL_API_KEYS": f"alice:{ALICE},bob:{BOB}",
        "STREAMSPOOL_ADMIN_KEYS": f"ops:{ADMIN}",
        "STREAMSPOOL_LIMITS": f"alice:{limits}",
    }


async def burst(stack: Stack, body: dict[str, Any]) -> tuple[Counter[int], float]:
    """All at once, in turn to each API; those that are told to come again because the store was slow do."""
    statuses: Counter[int] = Counter()
    packed = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Authorization: Bearer {ALICE}\r\nContent-Type: application/json\r\nContent-Length: {len(packed)}\r\n\r\n"
    ).encode()

    async def one(number: int) -> None:
        status = 503
        while status == 503:
            reader, writer = await asyncio.open_connection("127.0.0.1", stack.port_of(APIS[number % 4]))
            writer.write(head + packed)
            status = int((await reader.readline()).split()[1])
            await reader.read()
            writer.close()
            statuses[status] += 1
            if status == 503:
                await asyncio.sleep(0.5)

    began = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(REQUESTS)))
    return statuses, time.monotonic() - began


def requests_a_minute(stack: Stack) -> dict[str, Any]:
    statuses, took_s = asyncio.run(burst(stack, ask("fake/echo", background=True)))
    with open_store(stack.redis_url) as store:
        counted = sum(map(int, store.hvals(keys.limit("requests", "tenant:alice"))))
        stored = store.zcard(keys.index("alice", 0))
    return {
        "accepted": statuses[202],
        "stored": stored,
        "counted": counted,
        "statuses": statuses,
        "took_s": round(took_s, 1),
    }


def tokens_a_minute(stack: Stack) -> dict[str, Any]:
    body = ask("fake/lorem?tokens=20", background=True, max_tokens=200)
    statuses, took_s = asyncio.run(burst(stack, body))
    with open_store(stack.redis_url) as store, Client(stack.url, ALICE) as alice:
        name = keys.limit("tokens", "tenant:alice")
        reserved = sum(map(int, store.hvals(name)))
        wait_until(lambda: not store.zcard(keys.limit("running", "tenant:alice")), 300, "all are settled")
        settled = sum(map(int, store.hvals(name)))
        used, after = 0, None
        while True:
            page = alice.get("/v1/streams", params={"limit": 100, **({"after": after} if after else {})}).json()
            used += sum(state["usage"]["total_tokens"] for state in page["data"])
            after = page["last_id"]
            if not page["has_more"]:
                break
    return {
        "accepted": statuses[202],
        "reserved": reserved,
        "settled": settled,
        "sum_of_outcomes": used,
        "off_percent": round(100 * abs(settled - used) / used, 3),
        "took_s": round(took_s, 1),
    }


def cost(stack: Stack) -> dict[str, Any]:
    """With a provider that is asked over HTTP on this machine and answers at once, and with the model inside the worker, which
    is no provider: a limit weighs most there."""
    with Client(stack.url, ALICE) as alice, Client(stack.url, BOB) as bob:
        found = {model: _cost(alice, bob, model) for model in (PROVIDED, "fake/echo")}
    return {**found[PROVIDED], "without_provider": found["fake/echo"], "goal": 1.05}


def _cost(alice: Client, bob: Client, model: str) -> dict[str, Any]:
    """In five rounds, each of 100 streams with limits and 100 without, in turn; the ratio is the median of the rounds'."""
    rounds: list[dict[str, float]] = []
    pair = (("limited", alice), ("free", bob))
    for _ in range(20):
        for _, client in pair:
            _first_ms(client, model)
    for number in range(5):
        times: dict[str, list[float]] = {"limited": [], "free": []}
        for place in range(100):
            for name, client in pair if (number + place) % 2 else pair[::-1]:
                times[name].append(_first_ms(client, model))
        rounds.append({name: statistics.median(found) for name, found in times.items()})
    ratios = sorted(one["limited"] / one["free"] for one in rounds)
    return {
        **{f"{name}_ms": round(statistics.median(one[name] for one in rounds), 3) for name in ("limited", "free")},
        "ratio": round(ratios[2], 3),
        "rounds": [round(ratio, 3) for ratio in ratios],
    }


def _first_ms(client: Client, model: str) -> float:
    """Of one stream that is read to its end."""
    began = time.perf_counter()
    with client.streaming(model, "hello there") as viewer:
        viewer.take(1)
        took = time.perf_counter() - began
        viewer.rest()
    return 1000 * took


def revocation(stack: Stack) -> dict[str, Any]:
    """It is revoked at the first of them."""
    late_ms: dict[str, list[float]] = {name: [] for name in APIS}
    with Client(stack.url, ADMIN) as admin, ThreadPoolExecutor(len(APIS)) as pool:
        for _ in range(REVOKED):
            key = admin.http.post("/v1/keys", json={"tenant": "alice"}).json()
            known = threading.Barrier(len(APIS) + 1)
            refusals = {name: pool.submit(_first_refusal, stack, name, key["key"], known) for name in APIS}
            known.wait()
            assert admin.http.delete(f"/v1/keys/{key['id']}").json()["deleted"]
            told = time.perf_counter()
            for name, refusal in refusals.items():
                late_ms[name].append(max(0.0, 1000 * (refusal.result() - told)))
    worst = max(map(max, late_ms.values()))
    return {
        "keys": REVOKED,
        "p50_ms": {name: round(statistics.median(found)) for name, found in late_ms.items()},
        "worst_ms": {name: round(max(found)) for name, found in late_ms.items()},
        "goal_ms": 1000,
        "wrong": int(worst >= 1000),
    }


def _first_refusal(stack: Stack, name: str, key: str, known: threading.Barrier) -> float:
    """When an API that has known the key refused it, by the clock of this process."""
    with Client(stack.at(name), key) as client:

        def status() -> int:
            return client.get("/v1/models").status_code

        wait_until(lambda: status() == 200, what="the key is known")
        known.wait()
        while status() == 200:
            pass
        return time.perf_counter()


ROWS = {
    "L1": (requests_a_minute, "requests_per_min=600"),
    "L2": (tokens_a_minute, "tokens_per_min=100000"),
    "L3": (cost, "requests_per_min=100000000 tokens_per_min=100000000 running=100000"),
    "L4": (revocation, "requests_per_min=100000000"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], default=list(ROWS))
    wrong = 0
    for row in parser.parse_args().rows:
        measure, limits = ROWS[row]
        with tempfile.TemporaryDirectory() as place, ScriptedUpstream() as upstream:
            directory = Path(place)
            upstream.script(PROVIDED.removeprefix("scripted/"), [*words(2), *ending()])
            with (
                EmbeddedValkey(directory) as valkey,
                Stack(
                    valkey.url, upstream.base_url, directory, processes=" ".join(("worker", *APIS)), **settings(limits)
                ) as stack,
            ):
                for name in APIS:
                    wait_until(lambda name=name: stack.answers(name), 300)
                found = measure(stack)
            wrong += found.get("wrong", 0)
            print(json.dumps({"row": row, **found}), flush=True)
    sys.exit(int(wrong > 0))


if __name__ == "__main__":
    main()
