"""The figures about batches and webhooks in docs/RELIABILITY.md, one JSON line for each row; ends with status 1 if anything
is not as the row says.

    python -m tests.chaos.figures_batches [ROW …]

Each row has a Valkey, an API and two workers of its own, on this machine, beside the provider and the one who asks. The
lease is 1 s, and what limits lines is as shipped; `throughput` needs a C compiler (tests/bench).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx

from tests.bench.load import Upstream
from tests.bench.machine import cpu_s
from tests.harness.processes import Stack, memory_mb, wait_until
from tests.harness.upstream import ScriptedUpstream, ending, words
from tests.support.batch import ended, jsonl, line, results, start, state
from tests.support.fleet import QUICK as QUICK_LEASE
from tests.support.ground import WORKERS, Ground
from tests.support.names import keys
from tests.support.receiver import SECRET, Receiver
from tests.support.s3 import S3
from tests.support.server import Server
from tests.support.stages import STAGES

LINES = 5000
SHIPPED = {"STREAMSPOOL_BATCH_LINES": "100", "STREAMSPOOL_LEASE_S": "1"}
QUIET = "fake/echo"
SLOW = "bench-n10-r20-w200-p8-g0"
"""Ten chunks: the first after 200 ms, the last 450 ms later. `p` and `g` are of no concern here."""
AT_ONCE = "bench-n10-r0-p8-g0"

Row = Callable[[Path], dict[str, Any]]


@contextmanager
def scripted(directory: Path, **settings: str) -> Iterator[tuple[Ground, ScriptedUpstream]]:
    with ScriptedUpstream() as upstream, Ground(directory, upstream.base_url, **SHIPPED, **settings) as ground:
        yield ground, upstream


@contextmanager
def streaming(directory: Path) -> Iterator[tuple[Ground, str]]:
    """With the provider of the benchmarks, whose URL is given, too."""
    with Upstream(1) as upstream, Ground(directory, upstream.url, **SHIPPED) as ground:
        yield ground, f"{upstream.url}/chat/completions"


def judged(ground: Ground, batch_id: str, lines: int, *, timeout_s: float = 300) -> dict[str, Any]:
    """How a batch ended of which every line should be in the output, once. What is not so is in `wrong`."""
    wait_until(lambda: ground.completed(batch_id) >= 0, 30)
    batch = ended(ground.http, batch_id, timeout_s)
    output, errors = results(ground.http, batch["output_file_id"]), results(ground.http, batch["error_file_id"])
    wanted = {f"line-{n}" for n in range(lines)}
    used = sum(one["response"]["body"]["usage"]["total_tokens"] for one in output.values())
    checks = {
        "status": batch["status"] == "completed",
        "every custom_id": output.keys() == wanted,
        "errors": not errors,
        "counts": batch["request_counts"] == {"total": lines, "completed": lines, "failed": 0},
        "usage": batch["usage"]["total_tokens"] == used,
    }
    return {
        "status": batch["status"],
        "output": len(output),
        "wrong": [name for name, right in checks.items() if not right],
    }


# ---- killed


class Lost:
    """Which lines were running in workers when those were killed: nobody else's may be asked again."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.lines: Counter[int] = Counter()

    def kill(self, name: str) -> None:
        """Stops it, so that what it runs can be looked at, and kills it."""
        ground, process = self._ground, self._ground.stack.process(name)
        ground.stack.kill(name, signal.SIGSTOP)
        for key in ground.logs():
            entries = ground.redis.xrange(key)
            attempts = [fields for position, fields in entries if position.endswith(b"-0") and not _is_seal(position)]
            marker = json.loads(attempts[-1].get(b"a", b"{}")) if len(attempts) > 0 else {}
            if not _is_seal(entries[-1][0]) and f"-{process.pid}-" in marker.get("worker", ""):
                self.lines[json.loads(entries[0][1][b"r"])["batch"]["line"]] += 1
        ground.kill(name)


def _is_seal(position: bytes) -> bool:
    return position.startswith(str(2**53 - 1).encode())


def killed(directory: Path) -> dict[str, Any]:
    """Workers killed five times, the API twice, Valkey once, and each started again."""
    with scripted(directory) as (ground, upstream):
        script = upstream.script("kills", [*words(3), 0.3, *ending()])
        batch_id = start(
            ground.http, jsonl(line(f"line-{n}", "scripted/kills", prompt=f"{n + 1}") for n in range(LINES))
        )
        began, lost, killed = time.monotonic(), Lost(ground), Counter[str]()
        plan = ["runner", "api", "worker", "runner", "valkey", "worker-2", "api", "runner"]
        for place, what in enumerate(plan, 1):
            ground.until(batch_id, place * LINES // (len(plan) + 1))
            if what == "valkey":
                ground.kill_valkey()
            elif what == "api":
                ground.kill("api")
            else:
                lost.kill(ground.runner(batch_id) or "worker" if what == "runner" else what)
            killed["worker" if what in ("runner", "worker-2") else what] += 1
        found = judged(ground, batch_id, LINES)
        took_s = time.monotonic() - began
        asked = Counter(int(call["messages"][0]["content"]) for call in script.calls)
        wrong = [number for number in range(1, LINES + 1) if not 1 <= asked[number] <= 1 + lost.lines[number]]
        (ledger,) = ground.http.get("/v1/usage").json()["data"]
        wait_until(lambda: not ground.logs(), 30, "no log is left")
        return {
            **found,
            "lines": LINES,
            "killed": dict(killed),
            "calls": len(script.calls),
            "running_in_killed_workers": lost.lines.total(),
            "asked_again_without_that": len(wrong),
            "ledger_requests": ledger["requests"],
            "took_s": round(took_s, 1),
            "wrong": found["wrong"] + ["calls"] * bool(wrong) + ["ledger"] * (ledger["requests"] != LINES),
        }


# ---- wherever a worker ends


class Transcript:
    """What a viewer is told of a batch while everything is killed: counts must not go back. A context manager."""

    def __init__(self, ground: Ground, batch_id: str) -> None:
        self._ground, self._batch_id = ground, batch_id
        self._stopped = threading.Event()
        self.counts: list[tuple[int, int]] = []
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        with httpx.Client(base_url=self._ground.stack.url, timeout=60, trust_env=False) as http:
            while not self._stopped.wait(0.02):
                with suppress(httpx.TransportError, AssertionError):
                    counts = state(http, self._batch_id)["request_counts"]
                    self.counts.append((counts["completed"], counts["failed"]))

    @property
    def went_back(self) -> int:
        return sum(
            after[0] < before[0] or after[1] < before[1]
            for before, after in zip(self.counts, self.counts[1:], strict=False)
        )


_MODES = {"killed": (signal.SIGKILL, "0.5"), "stopped": (signal.SIGTERM, "0.5"), "drained": (signal.SIGTERM, "20")}


def ends(directory: Path) -> dict[str, Any]:
    """Batches of 20 and of 600 lines, whose worker is killed, stopped or drained at each stage; it is started again."""
    runs, stuck, wrong, worst_s, lives = 0, 0, [], 0.0, Counter[str]()
    for mode, (number, drain_s) in _MODES.items():
        place = directory / mode
        place.mkdir()
        with scripted(place, STREAMSPOOL_DRAIN_S=drain_s) as (ground, upstream):
            upstream.script("stages", [*words(3), 0.5, *ending()])
            ground.doom()
            for lines, stage in itertools.product((20, 600), STAGES):
                if (lines, stage) == (20, "handed out"):
                    continue  # all of them are handed out at once
                ground.plan(stage, number)
                batch_id = start(ground.http, jsonl(line(f"line-{n}", "scripted/stages") for n in range(lines)))
                began = time.monotonic()
                with Transcript(ground, batch_id) as told:
                    wait_until(ground.carried_out, 120, f"{mode} at: {stage}")
                    lives.update(f"{mode}: {status}" for status in wait_until(ground.revive, 60))
                    try:
                        found = judged(ground, batch_id, lines, timeout_s=120)
                    except AssertionError as problem:
                        stuck += 1
                        found = {"wrong": [str(problem)[:200]]}
                    wait_until(lambda b=batch_id: ground.redis.zscore(keys.batches_open, b) is None, 60)
                runs, worst_s = runs + 1, max(worst_s, time.monotonic() - began)
                wrong += [f"{mode} {lines} {stage}: {problem}" for problem in found["wrong"]]
                wrong += [f"{mode} {lines} {stage}: counts went back"] * bool(told.went_back)
            wait_until(lambda g=ground: not g.logs(), 30, "no log is left")
    return {"runs": runs, "stuck": stuck, "ends": dict(lives), "worst_s": round(worst_s, 1), "wrong": wrong}


# ---- away


def provider_away(directory: Path, away_s: float = 180.0) -> dict[str, Any]:
    """600 lines, whose provider is gone for three minutes in the middle: running streams are cut, connections refused."""
    with scripted(directory) as (ground, upstream):
        script = upstream.script("leaves", [*words(3), 1.0, *ending()])
        batch_id = start(ground.http, jsonl(line(f"line-{n}", "scripted/leaves") for n in range(600)))
        ground.until(batch_id, 200)
        upstream.leave()
        began, before = time.monotonic(), len(script.calls)
        quick = start(ground.http, jsonl(line(f"line-{n}", QUIET) for n in range(100)))
        others = judged(ground, quick, 100)
        others_s = time.monotonic() - began
        time.sleep(max(0.0, away_s - others_s))
        while_away = state(ground.http, batch_id)["request_counts"]
        upstream.come_back()
        back = time.monotonic()
        found = judged(ground, batch_id, 600)
        took_s = time.monotonic() - back
        logged = "".join(map(ground.stack.log, WORKERS))
        wait_until(lambda: not ground.logs(), 30, "no log is left")
        return {
            **found,
            "failed": state(ground.http, batch_id)["request_counts"]["failed"],
            "away_s": away_s,
            "done_when_it_came_back": while_away["completed"],
            "put_back": logged.count('"line put back"'),
            "calls": len(script.calls),
            "calls_before": before,
            "another_batch_done_after_s": round(others_s, 1),
            "done_after_it_came_back_s": round(took_s, 1),
            "wrong": found["wrong"] + others["wrong"],
        }


def storage_away(directory: Path) -> dict[str, Any]:
    """A bucket that is gone for 30 s in the middle of 600 lines; and once more, for a cancel. It is back after that."""
    with S3(directory) as s3, scripted(directory, STREAMSPOOL_FILES_URL=s3.url, **s3.environment) as (ground, upstream):
        upstream.script("stores", [*words(3), 1.0, *ending()])
        batch_id = start(ground.http, jsonl(line(f"line-{n}", "scripted/stores") for n in range(600)))
        ground.until(batch_id, 200)
        with s3.away():
            time.sleep(30)
        found = judged(ground, batch_id, 600)
        second = start(ground.http, jsonl(line(f"line-{n}", "scripted/stores") for n in range(600)))
        ground.until(second, 200)
        with s3.away():
            time.sleep(5)
            asked = time.monotonic()
            ground.http.post(f"/v1/batches/{second}/cancel")
            cancelled = ended(ground.http, second, 180)
            took_s = time.monotonic() - asked
        back = time.monotonic()
        wait_until(lambda: state(ground.http, second)["output_file_id"], 120, "the files have come")
        late_s = time.monotonic() - back
        batch = state(ground.http, second)
        output = results(ground.http, batch["output_file_id"])
        counts = batch["request_counts"]
        checks = {
            "status": cancelled["status"] == batch["status"] == "cancelled",
            "counts": counts["completed"] == len(output) >= 200 and counts["completed"] + counts["failed"] == 600,
            "nothing runs": wait_until(lambda: upstream.live == 0, 30),
        }
        return {
            **found,
            "cancel_while_away_s": round(took_s, 1),
            "its_files_after_it_was_back_s": round(late_s, 1),
            "its_output": len(output),
            "wrong": found["wrong"] + [name for name, right in checks.items() if not right],
        }


# ---- full


def cancelled_when_full(directory: Path) -> dict[str, Any]:
    """A cancel in the middle of 600 lines, on a server whose memory is full and stays so; five times on either kind."""
    took_s: dict[str, list[float]] = {}
    wrong: list[str] = []
    for kind in ("valkey", "redis"):
        place = directory / kind
        place.mkdir()
        with (
            Server(place / "server", kind=kind) as server,
            ScriptedUpstream() as upstream,
            Stack(server.url, upstream.base_url, place, **{**QUICK_LEASE, **SHIPPED}) as stack,
            httpx.Client(base_url=stack.url, timeout=60, trust_env=False) as http,
            server.client() as client,
        ):
            upstream.script("fills", [*words(3), 1.0, *ending()])
            for run in range(5):
                batch_id = start(http, jsonl(line(f"line-{n}", "scripted/fills") for n in range(600)))
                wait_until(lambda b=batch_id: state(http, b)["request_counts"]["completed"] >= 200, 60)
                client.config_set("maxmemory", 1)
                time.sleep(2)
                asked = time.monotonic()
                status = http.post(f"/v1/batches/{batch_id}/cancel").status_code
                try:
                    batch = ended(http, batch_id, 120)
                    took_s.setdefault(kind, []).append(round(time.monotonic() - asked, 1))
                    output = results(http, batch["output_file_id"])
                    errors = results(http, batch["error_file_id"])
                    right = len(output | errors) == len(output) + len(errors) == 600 and len(output) >= 200
                    right &= wait_until(lambda: upstream.live == 0, 30)
                    if status != 200 or not right:
                        wrong.append(f"{kind} {run}: {status}, {len(output)}, {len(errors)}")
                except AssertionError as problem:
                    wrong.append(f"{kind} {run}: {status}, {problem}")
                client.config_set("maxmemory", 0)
                time.sleep(1)
    return {"cancelled_after_s": took_s, "wrong": wrong}


# ---- quick


async def _straight(url: str, model: str, count: int, at_once: int) -> float:
    """Seconds that the same requests take without us: streamed, as workers ask, and read to their ends."""
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": True}
    numbers = iter(range(count))

    async def ask(client: httpx.AsyncClient) -> None:
        for _ in numbers:
            async with client.stream("POST", url, json=body) as response:
                assert response.status_code == 200
                async for _piece in response.aiter_raw():
                    pass

    async with httpx.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:
        began = time.monotonic()
        await asyncio.gather(*(ask(client) for _ in range(at_once)))
        return time.monotonic() - began


def _throughput(directory: Path, model: str) -> dict[str, Any]:
    with streaming(directory) as (ground, url):
        straight_s = asyncio.run(_straight(url, model, LINES, int(SHIPPED["STREAMSPOOL_BATCH_LINES"])))
        pids = {name: ground.stack.process(name).pid for name in ("api", "worker", "worker-2")}
        pids["valkey"] = ground.valkey.pid or 0
        used = {name: cpu_s([pid]) for name, pid in pids.items()}
        began = time.monotonic()
        batch_id = start(ground.http, jsonl(line(f"line-{n}", f"scripted/{model}") for n in range(LINES)))
        ended(ground.http, batch_id, 300)
        took_s = time.monotonic() - began
        used = {name: round((cpu_s([pid]) - used[name]) / LINES * 1000, 2) for name, pid in pids.items()}
        found = judged(ground, batch_id, LINES)
    return {
        **found,
        "lines": LINES,
        "concurrency": int(SHIPPED["STREAMSPOOL_BATCH_LINES"]),
        "cpu_ms_per_line": used,
        "straight_per_s": round(LINES / straight_s, 1),
        "batch_per_s": round(LINES / took_s, 1),
        "ratio": round(straight_s / took_s, 2),
    }


def throughput(directory: Path) -> dict[str, Any]:
    """5,000 lines, from the upload to the end, and the same straight to the provider, which takes 0.65 s an answer."""
    found = _throughput(directory, SLOW)
    return {**found, "wrong": found["wrong"] + ["ratio below 0.7"] * (found["ratio"] < 0.7)}


def throughput_no_latency(directory: Path) -> dict[str, Any]:
    """The same with a provider that answers at once: what a line costs us. There is no goal."""
    return _throughput(directory, AT_ONCE)


# ---- small


def memory(directory: Path) -> dict[str, Any]:
    """Peak memory after a batch of 1,000 lines, and after one of 50,000 in the same processes."""
    with scripted(directory) as (ground, _):
        peaks: dict[str, dict[str, float]] = {}
        wrong: list[str] = []
        for lines in (1000, 50_000):
            batch_id = start(ground.http, jsonl(line(f"line-{n}", QUIET) for n in range(lines)))
            wrong += judged(ground, batch_id, lines, timeout_s=1200)["wrong"]
            peaks[str(lines)] = {
                name: round(memory_mb(ground.stack, "VmHWM", name), 1) for name in ("api", "worker", "worker-2")
            }
        return {"peak_mb": peaks, "wrong": wrong}


# ---- not in the way


def _first_words(ground: Ground, model: str, count: int, pause_s: float) -> list[float]:
    """Milliseconds from the request to the first word, for so many streams one after the other."""
    found = []
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": True}
    for _ in range(count):
        asked = time.monotonic()
        with ground.http.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(text for text in lines if '"content":"' in text and '"content":""' not in text)
            found.append((time.monotonic() - asked) * 1000)
            for _rest in lines:
                pass
        time.sleep(pause_s)
    return found


def ttft(directory: Path) -> dict[str, Any]:
    """Time to the first word of somebody who waits, without a batch and beside one whose every place is taken."""
    with streaming(directory) as (ground, _):
        model, waiting = f"scripted/{AT_ONCE}", f"scripted/{SLOW}"
        _first_words(ground, model, 20, 0.02)
        alone, alone_slow = _first_words(ground, model, 150, 0.05), _first_words(ground, waiting, 20, 0)
        lines = jsonl(line(f"line-{n}", f"scripted/{SLOW}") for n in range(50_000))
        batch_id = start(ground.http, lines)
        ground.until(batch_id, 500)
        before, at = ground.completed(batch_id), time.monotonic()
        beside, beside_slow = _first_words(ground, model, 150, 0.05), _first_words(ground, waiting, 20, 0)
        per_s = (ground.completed(batch_id) - before) / (time.monotonic() - at)
        ground.http.post(f"/v1/batches/{batch_id}/cancel")
        ended(ground.http, batch_id, 120)
    p50, p50_beside = statistics.median(alone), statistics.median(beside)
    p50_slow, p50_slow_beside = statistics.median(alone_slow), statistics.median(beside_slow)
    return {
        "no_latency_ms": {"p50": round(p50, 1), "p50_beside": round(p50_beside, 1), "p95_beside": _p95(beside)},
        "with_200_ms": {
            "p50": round(p50_slow, 1),
            "p50_beside": round(p50_slow_beside, 1),
            "p95_beside": _p95(beside_slow),
        },
        "batch_per_s": round(per_s, 1),
        "ratio": round(p50_beside / p50, 2),
        "ratio_with_200_ms": round(p50_slow_beside / p50_slow, 2),
        "wrong": ["more than twice"] * (p50_beside > 2 * p50),
    }


def _p95(found: list[float]) -> float:
    return round(sorted(found)[int(len(found) * 0.95)], 1)


# ---- told


def webhook(directory: Path) -> dict[str, Any]:
    """A receiver that is down for 30 s when the batch ends."""
    hooked = {"STREAMSPOOL_WEBHOOK_SECRET": SECRET, "STREAMSPOOL_WEBHOOK_ALLOW": "127.0.0.1"}
    with scripted(directory, **hooked) as (ground, _):
        receiver = Receiver()
        receiver.start()
        receiver.stop()
        batch_id = start(ground.http, jsonl([line("line-0")]), webhook={"url": receiver.url})
        ended(ground.http, batch_id)
        time.sleep(30)
        before = state(ground.http, batch_id)["webhook"]
        with receiver:
            up = time.monotonic()
            wait_until(lambda: state(ground.http, batch_id)["webhook"]["status"] == "delivered", 60)
            took_s = time.monotonic() - up
            time.sleep(2)
            events = [hook.event() for hook in receiver.of(batch_id)]
        after = state(ground.http, batch_id)["webhook"]
    one = len(events) == 1 and events[0]["id"] == before["event_id"] == after["event_id"]
    return {
        "attempts_while_down": before["attempts"],
        "delivered": len(events),
        "attempts": after["attempts"],
        "after_it_was_up_s": round(took_s, 1),
        "wrong": [] if one and before["status"] == "pending" else [f"{before} {events}"],
    }


def cancelled(directory: Path) -> dict[str, Any]:
    """A cancel in the middle of 5,000 lines."""
    with scripted(directory) as (ground, upstream):
        script = upstream.script("cancels", [*words(3), 0.3, *ending()])
        batch_id = start(ground.http, jsonl(line(f"line-{n}", "scripted/cancels") for n in range(LINES)))
        ground.until(batch_id, LINES // 3)
        asked = time.monotonic()
        ground.http.post(f"/v1/batches/{batch_id}/cancel")
        batch = ended(ground.http, batch_id, 120)
        took_s = time.monotonic() - asked
        output, errors = results(ground.http, batch["output_file_id"]), results(ground.http, batch["error_file_id"])
        wait_until(lambda: script.live == 0, 30, "the provider is hung up on")
        codes = Counter((one["error"] or {}).get("code") for one in errors.values())
    counts = batch["request_counts"]
    checks = {
        "status": batch["status"] == "cancelled",
        "all": output.keys() | errors.keys() == {f"line-{n}" for n in range(LINES)}
        and not output.keys() & errors.keys(),
        "counts": counts == {"total": LINES, "completed": len(output), "failed": len(errors)},
        "codes": codes == {"batch_cancelled": len(errors)},
        "finished": LINES // 3 <= len(output) <= len(script.calls),
    }
    return {
        "output": len(output),
        "errors": dict(codes),
        "calls": len(script.calls),
        "ended_after_s": round(took_s, 1),
        "wrong": [name for name, right in checks.items() if not right],
    }


ROWS: dict[str, Row] = {
    "killed": killed,
    "ends": ends,
    "provider-away": provider_away,
    "storage-away": storage_away,
    "cancelled-when-full": cancelled_when_full,
    "throughput": throughput,
    "throughput-no-latency": throughput_no_latency,
    "memory": memory,
    "ttft": ttft,
    "webhook": webhook,
    "cancelled": cancelled,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all by default")
    failed = 0
    for row in parser.parse_args().rows or ROWS:
        with tempfile.TemporaryDirectory(prefix="batches-") as directory:
            found = ROWS[row](Path(directory))
        failed += bool(found["wrong"])
        print(json.dumps({"row": row, **found, "measured": ROWS[row].__doc__}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
