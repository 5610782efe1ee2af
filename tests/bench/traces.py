"""What traces cost: CPU of API and worker for each answer, without them, with a tenth of all answers sampled, with all.

    python -m tests.bench.traces [--pairs 6] [--requests 200] [--against CHECKOUT]

The stacks run side by side on one Valkey and are asked in turn, so that whatever else the machine does meets them alike: a
closed loop of eight clients, each answer of 200 tokens. What is counted is the time of both processes by their own clocks,
until their spans are sent. Each figure is a ratio to the run without traces right before it; the median and the range are
printed. `again` is one more stack without traces: how far that is from 1 is what the machine does not let be told.
`--against` is another checkout, an older one, whose stack is one more, without traces.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from shared.cli.embedded import EmbeddedValkey
from tests.bench.machine import cpu_s
from tests.harness.processes import Stack
from tests.support.collector import Collector
from tests.support.wire_async import JSON, Stream

CLIENTS = 8
BODY = {"model": "fake/lorem?tokens=200", "messages": [{"role": "user", "content": "hi"}], "stream": True}
SAMPLED = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}
SENT_S = 1.0
"""How often spans are sent; five times as often as the SDK does by default."""


async def ask(port: int, requests: int) -> None:
    """So many answers, by clients that each ask as soon as they have one."""
    asked, left = json.dumps(BODY).encode(), iter(range(requests))

    async def client() -> None:
        for _ in left:
            async with await Stream.open(port, "POST", "/v1/chat/completions", headers=JSON, body=asked) as stream:
                body = await stream.body()
                assert body.endswith(b"data: [DONE]\n\n"), (stream.status, body[-300:])

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


def cost_ms(stack: Stack, requests: int) -> float:
    """CPU of both ends for each answer."""
    pids = [stack.process(name).pid for name in ("api", "worker")]
    before = cpu_s(pids)
    asyncio.run(ask(stack.port, requests))
    time.sleep(1.5 * SENT_S)
    return (cpu_s(pids) - before) / requests * 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--against", type=Path, help="another checkout")
    options = parser.parse_args()
    with ExitStack() as exits:
        place = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        valkey = exits.enter_context(EmbeddedValkey(place / "valkey"))
        collector = exits.enter_context(Collector())
        told = {**collector.environment, "OTEL_BSP_SCHEDULE_DELAY": f"{SENT_S * 1000:g}"}
        kinds = {"off": {}, "again": {}, "10 %": {**told, **SAMPLED}, "all": told}
        kinds |= {"before": {}} if options.against else {}
        stacks: dict[str, Stack] = {}
        for number, (kind, settings) in enumerate(kinds.items()):
            (directory := place / str(number)).mkdir()
            url = valkey.url.replace("db=0", f"db={number}")
            stack = Stack(url, "http://127.0.0.1:1", directory, **settings)
            if kind == "before":
                stack.environment["PYTHONPATH"] = str(options.against.resolve())
            stacks[kind] = exits.enter_context(stack)
            cost_ms(stack, options.requests // 2)  # what is loaded late is loaded now
        ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(options.pairs):
            for kind, stack in list(stacks.items())[1:]:
                off, other = cost_ms(stacks["off"], options.requests), cost_ms(stack, options.requests)
                ratios["off"].append(off)
                ratios[kind].append(other / off)
    print(f"off: {statistics.median(ratios.pop('off')):.2f} ms for each answer")
    for kind, found in ratios.items():
        print(f"{kind}: {statistics.median(found):.3f} × ({min(found):.3f} to {max(found):.3f})")
    print(f"{len(collector.spans)} spans came, in {len(collector.bodies)} requests")
    return 0


if __name__ == "__main__":
    sys.exit(main())
