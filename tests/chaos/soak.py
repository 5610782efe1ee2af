"""Everything at once, for a while: `python -m tests.chaos.soak --minutes 30 [--seed N]`, or `make soak MINUTES=30`.

Two API processes, two workers, a Valkey and a provider that misbehaves; some dozens of generations in flight, each with
viewers of several kinds, and some of them turns of sessions; every few seconds something is killed, stopped, drained,
restarted or cut. Each viewer is judged, each generation is judged when its viewers have ended, and the sessions, the
ledger and the processes are judged at the end. Prints a line every 30 s and one JSON object; ends with 1 if anything was
wrong. The faults and the loads follow from the seed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import redis

from shared.cli.embedded import EmbeddedValkey
from shared.features.spend.ledger import OTHER
from tests.chaos.soak_faults import APIS, WORKERS, Faults, gauges
from tests.chaos.soak_load import Generation, plan_of, session_problems, text_problems
from tests.harness.processes import Stack
from tests.harness.shown import Shown
from tests.harness.store import open_store
from tests.harness.upstream import ScriptedUpstream
from tests.support.ledger import TOKENS, ledger_problems
from tests.support.names import jobs_left, keys
from tests.support.wire_async import JSON, Cut, Stream, call, follow

SETTINGS = {
    "STREAMSPOOL_LEASE_S": "3",
    "STREAMSPOOL_DRAIN_S": "3",
    "STREAMSPOOL_KEEPALIVE_S": "1",
    "STREAMSPOOL_HOLD_HEADERS_S": "1",
    "STREAMSPOOL_SEND_TIMEOUT_S": "5",
    "STREAMSPOOL_UPSTREAM_FIRST_S": "8",
    "STREAMSPOOL_UPSTREAM_IDLE_S": "8",
    "STREAMSPOOL_DISCONNECT_GRACE_S": "3",
    "STREAMSPOOL_NO_WORKER_S": "20",
    "STREAMSPOOL_GENERATION_S": "60",
    "STREAMSPOOL_RETENTION_S": "240",
    "STREAMSPOOL_ARCHIVE_AFTER_S": "1",
    "STREAMSPOOL_ARCHIVE_LEAST_BYTES": "0",
}
"""What has ended is an object within some seconds: whoever reads may find it in either home, or on its way."""
PATIENCE_S = 120.0
"""No generation and no viewer may take longer, whatever is broken meanwhile."""
QUIET_S = 60.0
READ_AGAIN = 0.4
"""So many of all are read once more, some time after their end."""
WATCHED = ("streamspool_viewers", "streamspool_logs_followed")
AGAIN = ("storage_unavailable", "draining")
"""Not how the answer ended: it is there, and cannot be shown right now."""
RETRIED = (OSError, Cut, TimeoutError)

LEAK = """import threading, time
lost = []
def lose():
    while True:
        lost.extend(bytearray(1000) for _ in range({blocks}))
        time.sleep(1)
threading.Thread(target=lose, daemon=True).start()
"""
"""Every Python of the stack runs this at its start, if asked to."""


class Soak:
    """One run: `run()` returns the verdict."""

    def __init__(
        self,
        stack: Stack,
        valkey: EmbeddedValkey,
        provider: ScriptedUpstream,
        metrics: dict[str, int],
        seed: int,
        every_s: float | None,
        minutes: float,
    ) -> None:
        """`metrics` are the ports of all four, `every_s` is the longest pause between two faults; None for none at all."""
        self.stack, self.valkey, self.provider, self.metrics = stack, valkey, provider, metrics
        self.ports = [metrics[name] for name in APIS]
        self.random = random.Random(seed)
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.wrong: list[dict[str, Any]] = []
        self.running: dict[str, Generation] = {}
        self.sessions: dict[str, list[Generation]] = {}
        self.states: list[dict[str, Any]] = []
        """What the ledger must add up to."""
        self.refused: Counter[str] = Counter()
        """How often a model was asked in vain: each may have been accepted all the same, and withdrawn a little later, or have
        run to its end where only the answer was cut off."""
        self.streams: set[Stream] = set()
        self.slowest_s = 0.0
        self._lasts_s = minutes * 60
        self.faults = Faults(self, every_s, self._lasts_s)
        self._tasks: set[asyncio.Task[None]] = set()
        self._again: set[asyncio.Task[None]] = set()

    async def run(self, in_flight: int) -> dict[str, Any]:
        try:
            return await self._run(in_flight)
        finally:
            self.faults.mend()  # a run that is ended from outside may be in the middle of one

    async def _run(self, in_flight: int) -> dict[str, Any]:
        started = time.monotonic()
        end = started + self._lasts_s
        helpers = [
            asyncio.create_task(loop) for loop in (self.faults.run(), self.faults.sample(), self._report(started))
        ]
        number = 0
        while time.monotonic() < end:
            if helpers[0].done() or helpers[1].done():
                break
            if len(self._tasks) < in_flight:
                number += 1
                task = asyncio.create_task(self._generation(number))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(self.random.uniform(0.02, 0.15))
        await self.faults.calm(helpers[0])
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=PATIENCE_S + 10)
            for generation in self.running.values() if late else ():
                self.blame("never ended", generation)
            for task in late:
                task.cancel()
        if self._again:
            await asyncio.wait(self._again)
        await self._all_is_still()
        for helper in helpers:
            helper.cancel()
        for result in await asyncio.gather(*helpers, return_exceptions=True):
            if isinstance(result, Exception):
                self.blame(f"the soak broke: {result!r}")
        return self._verdict(time.monotonic() - started)

    def blame(self, what: str, generation: Generation | None = None, **details: Any) -> None:
        self.wrong.append({"what": what, **(generation.describe() if generation else {}), **details})

    def port(self) -> int:
        return self.random.choice(self.ports)

    # ---- one generation, from its POST to its judgement

    async def _generation(self, number: int) -> None:
        made = Generation.draw(number, self.random)
        made.plan = self.provider.plan(made.tag, by=plan_of(made))
        self.running[made.tag] = made
        if made.session:
            self.sessions.setdefault(made.session, []).append(made)
        try:
            async with asyncio.timeout(PATIENCE_S):
                post = self._in_background if made.background else self._openai_viewer
                posts = [post(made) for _ in range(made.posts)]
                await asyncio.gather(*posts, *(self._late(made) for _ in range(made.late)), self._cancel(made))
                if made.id:
                    await self._judge(made)
                if made.state and self.random.random() < READ_AGAIN:
                    again = asyncio.create_task(self._read_again(made))
                    self._again.add(again)
                    again.add_done_callback(self._again.discard)
        except TimeoutError:
            self.blame("too slow", made, state=await self._state(made, patient=False))
        except Exception as error:
            self.blame(f"a viewer broke: {error!r}", made)
        finally:
            self.counts["generations"] += bool(made.id)
            self.counts["refused"] += not made.id
            self.slowest_s = max(self.slowest_s, time.monotonic() - made.started)
            made.accepted.set()
            del self.running[made.tag]
            self.provider.forget(made.tag)

    async def _openai_viewer(self, made: Generation) -> None:
        """Posts, with a key again and again until it has an end; without one only until it was perhaps accepted."""
        headers = {**JSON, "x-stream-ids": "1" if made.ids else "0"}
        if made.key:
            headers["idempotency-key"] = made.key
        for _ in range(60):
            reading = Shown(native=False)
            try:
                stream = await self._open("POST", "/v1/chat/completions", headers=headers, body=made.body())
            except RETRIED as error:
                # Refused at the door was certainly not accepted; anything later may have been.
                if made.key is None and not isinstance(error, ConnectionRefusedError):
                    self.refused[f"scripted/{made.tag}"] += 1
                    break
                await asyncio.sleep(self.random.uniform(0.1, 0.5))
                continue
            async with stream:
                self.streams.add(stream)
                try:
                    if self._accepted(made, stream):
                        await follow(reading, stream)
                    elif stream.status in (429, 503) and not stream.headers.get("x-stream-id"):
                        self.counts["post 503"] += 1
                        self.refused[f"scripted/{made.tag}"] += 1
                        if not made.key:
                            break
                        await asyncio.sleep(self.random.uniform(0.2, 0.6))
                        continue
                    else:
                        code = json.loads(await stream.body())["error"]["code"]
                        if code in AGAIN:
                            raise Cut
                        reading.error, reading.ended = {"code": code}, True
                    made.readings.append(reading)
                    break
                except RETRIED:
                    self.counts["openai cut"] += 1
                    made.cuts.append(reading)
                    if not made.key or made.random < 0.3:
                        break
                finally:
                    self.streams.discard(stream)
        if made.posts == 1 or len(made.readings) + len(made.cuts):
            made.accepted.set()

    async def _in_background(self, made: Generation) -> None:
        """Posts until it is accepted; then it runs, whatever dies and whoever watches. Repeats itself as `_openai_viewer`."""
        headers = {"idempotency-key": made.key} if made.key else {}
        for _ in range(60):
            try:
                async with asyncio.timeout(20):
                    asked = json.loads(made.body())
                    status, state = await call(self.port(), "POST", "/v1/chat/completions", asked, headers=headers)
            except RETRIED as error:
                if made.key is None and not isinstance(error, ConnectionRefusedError):
                    self.refused[f"scripted/{made.tag}"] += 1
                    break
            else:
                if status == 202:
                    if made.id not in (None, state["id"]):
                        self.blame("one key, two generations", made, other=state["id"])
                    made.id = state["id"]
                    self.counts["in background"] += 1
                    break
                if status not in (429, 503):
                    self.blame(f"background answered {status}", made, body=state)
                    break
                self.counts["post 503"] += 1
                self.refused[f"scripted/{made.tag}"] += 1
                if not made.key:
                    break
            await asyncio.sleep(self.random.uniform(0.1, 0.5))
        made.accepted.set()

    def _accepted(self, made: Generation, stream: Stream) -> bool:
        found = stream.headers.get("x-stream-id")
        if found and made.id and found != made.id:
            self.blame("one key, two generations", made, other=found)
        if found:
            made.id = found
            made.accepted.set()
        return stream.status == 200

    async def _open(self, method: str, path: str, **options: Any) -> Stream:
        async with asyncio.timeout(20):
            return await Stream.open(self.port(), method, path, **options)

    async def _late(self, made: Generation) -> None:
        """Comes some time later, and from then on resumes after each loss, on whichever API it finds."""
        await made.accepted.wait()
        await asyncio.sleep(self.random.uniform(0, 3))
        if made.id is None:
            return
        native = self.random.random() < 0.7
        path = f"/v1/streams/{made.id}" if native else f"/v1/chat/completions/{made.id}?stream=true"
        reading = Shown(native=native)
        while not reading.ended and not reading.wrong:
            headers = {"last-event-id": reading.last_id} if reading.last_id else {}
            try:
                async with await self._open("GET", path, headers=headers) as stream:
                    self.streams.add(stream)
                    try:
                        await self._resume(made, reading, stream)
                    finally:
                        self.streams.discard(stream)
            except RETRIED:
                reading.resumes += 1
                self.counts["resumes"] += 1
                await asyncio.sleep(self.random.uniform(0.05, 0.4))
        made.readings.append(reading)

    async def _read_again(self, made: Generation) -> None:
        """Some time later, when it is an object, or just about to be one: it must be what it was."""
        await asyncio.sleep(self.random.uniform(1, 15))
        reading, deadline = Shown(), time.monotonic() + PATIENCE_S
        while not (reading.ended or reading.wrong) and time.monotonic() < deadline:
            try:
                headers = {"last-event-id": reading.last_id} if reading.last_id else {}
                async with await self._open("GET", f"/v1/streams/{made.id}", headers=headers) as stream:
                    await self._resume(made, reading, stream)
            except RETRIED:
                await asyncio.sleep(self.random.uniform(0.05, 0.4))
        self.counts["read again"] += 1
        with contextlib.suppress(redis.RedisError):
            self.counts["read again as objects"] += await asyncio.to_thread(self._is_object, made)
        if reading.wrong or reading.text != made.text or not reading.ended:
            self.blame("not what it was", made, wrong=reading.wrong, text=reading.text[-60:], ended=reading.ended)

    def _is_object(self, made: Generation) -> bool:
        with open_store(self.valkey.url, socket_timeout=10) as client:
            entries = client.xrevrange(keys.log(str(made.id)), count=1)
        return bool(entries) and b"x" in entries[0][1]

    async def _resume(self, made: Generation, reading: Shown, stream: Stream) -> None:
        if stream.status == 200:
            await follow(reading, stream)
        elif stream.status in (429, 503):
            await asyncio.sleep(0.3)
        else:
            reading.wrong.append(f"status {stream.status} after {reading.last_id}: {(await stream.body())[:200]!r}")

    async def _cancel(self, made: Generation) -> None:
        if made.cancel_after is None:
            return
        await made.accepted.wait()
        await asyncio.sleep(made.cancel_after)
        ends: list[Any] = []
        while made.id and len(ends) < 2:
            with contextlib.suppress(*RETRIED):
                status, state = await call(self.port(), "POST", f"/v1/streams/{made.id}/cancel")
                if status == 200:
                    ends.append({name: state[name] for name in ("status", "ended_at", "error", "usage")})
                elif status not in (429, 503):
                    self.blame(f"cancel answered {status}", made, body=state)
                    return
            await asyncio.sleep(0.1)
        if ends and ends[0] != ends[1]:
            self.blame("cancelled twice, two ends", made, ends=ends)

    async def _state(self, made: Generation, *, patient: bool = True) -> Any:
        """The state, once it is terminal if patient."""
        while made.id:
            with contextlib.suppress(*RETRIED):
                headers = {"accept": "application/json"}
                status, state = await call(self.port(), "GET", f"/v1/streams/{made.id}", headers=headers)
                if not patient or (status == 200 and state["status"] not in ("queued", "in_progress")):
                    return state
                if status == 404:
                    return {"status": "gone"}
            await asyncio.sleep(0.2)
            if not patient:
                break
        return None

    async def _judge(self, made: Generation) -> None:
        state = await self._state(made)
        self.ends[(state.get("error") or {}).get("code") or state["status"]] += 1
        if state["status"] == "gone":
            self.blame("the log is gone", made)
            return
        answer = None
        while answer is None:
            with contextlib.suppress(*RETRIED):
                status, found = await call(self.port(), "GET", f"/v1/chat/completions/{made.id}")
                answer = found if status == 200 else None
            await asyncio.sleep(0 if answer else 0.2)
        made.state = {name: state.get(name) for name in ("model", "served_by", "status", "usage", "cost_usd")}
        made.text = "".join(choice["message"]["content"] or "" for choice in answer["choices"])
        self.states.append(made.state)
        self.counts["viewers"] += len(made.readings) + len(made.cuts)
        for problem in [
            *text_problems(made, state, answer),
            *made.call_problems(state, self.refused[f"scripted/{made.tag}"]),
        ]:
            self.blame(problem, made, state=state)

    # ---- the end

    async def _all_is_still(self) -> None:
        """Nothing is left: no open generation, no job, no connection to the provider, no key without an end."""
        deadline = time.monotonic() + QUIET_S
        left: dict[str, Any] = {"unknown": True}
        while left and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            try:
                left = await asyncio.to_thread(self._left)
            except redis.RedisError as error:
                left = {"redis": repr(error)}
        if left:
            self.blame("something is left", **left)
        for port in self.ports:
            await self._is_ready(port)
            await self._nothing_is_watched(port)
        self.wrong += self.faults.problems()
        await asyncio.to_thread(self._judge_objects)
        await self._judge_sessions()
        _, ledger = await call(self.port(), "GET", "/v1/usage")
        self._judge_ledger(ledger["data"])

    async def _is_ready(self, port: int) -> None:
        """The last fault may have been its start."""
        deadline, ready = time.monotonic() + QUIET_S, None
        while time.monotonic() < deadline:
            with contextlib.suppress(*RETRIED):
                status, ready = await call(port, "GET", "/readyz")
                if status == 200:
                    return
            await asyncio.sleep(0.2)
        self.blame("not ready", port=port, ready=ready)

    def _judge_ledger(self, rows: list[dict[str, Any]]) -> None:
        """Each generation has a model of its own, and the ledger has rows for so many models only: those that have one, and
        then the sum of all. What was refused may have been accepted all the same, and is in the sum then."""
        named = {row["model"]: row for row in rows if row["model"] != OTHER}
        for model, row in named.items():
            if row["requests"] > 1 + self.refused[model]:
                self.blame(f"{model} counts {row['requests']} times")
        certain = [one for one in self.states if one["model"] in named and not self.refused[one["model"]]]
        for problem in ledger_problems(certain, named.values()):
            self.blame(problem)
        doubtful = sum(self.refused.values())
        for name, wanted in (
            ("requests", len(self.states)),
            *((name, sum((one["usage"] or {}).get(name, 0) for one in self.states)) for name in TOKENS),
        ):
            found = sum(row[name] for row in rows)
            if found < wanted or (found > wanted and not doubtful):
                self.blame(f"the ledger has {found} {name} in all, the generations have {wanted}")

    async def _nothing_is_watched(self, port: int) -> None:
        """All viewers are gone, and the APIs know: else a log would be held for ever."""
        deadline = time.monotonic() + 30
        while watched := {name: value for name, value in (await gauges(port)).items() if name in WATCHED and value}:
            if time.monotonic() > deadline:
                self.blame("something is watched", None, **watched)
                return
            await asyncio.sleep(0.2)

    def _judge_objects(self) -> None:
        """Each has one log that leads to it; what processes left that were killed is on the list of what goes."""
        files = Path(self.stack.environment["STREAMSPOOL_DATA_DIR"]) / "files"
        with open_store(self.valkey.url, socket_timeout=10) as client:
            there = {str(path.relative_to(files)) for path in (files / "logs").glob("*/*")}
            lists = [client.zrange(name, 0, -1) for name in (keys.files_end, keys.archived(0), keys.files_end)]
        _, known, _ = named = [{name.decode() for name in members} for members in lists]
        self.counts["objects"] = len(known)
        if nobodys := [name for name in there.difference(*named) if (files / name).exists()]:
            self.blame("objects that nobody knows", names=nobodys[:5], count=len(nobodys))
        ids = [name.rpartition("/")[2].partition(".")[0] for name in known]
        if len(set(ids)) < len(ids):
            self.blame("two objects of one log", count=len(ids) - len(set(ids)))

    async def _judge_sessions(self) -> None:
        for session_id, made in self.sessions.items():
            status, found = await call(self.port(), "GET", f"/v1/sessions/{session_id}/messages")
            messages = found["data"] if status == 200 else []
            self.counts["turns"] += len(messages) // 2
            for problem in session_problems(made, messages):
                self.blame(problem, session=session_id, made=[one.describe() for one in made], messages=messages)

    def _left(self) -> dict[str, Any]:
        with open_store(self.valkey.url, socket_timeout=10) as client:
            found = {
                "open": client.zcard(keys.open(0)),
                "unsettled": client.scard(keys.unsettled(0)),
                "to_archive": client.zcard(keys.to_archive),
                "jobs": len(jobs_left(client)),
                "upstream": self.provider.live,
                "immortal": [
                    key.decode()
                    for key in client.scan_iter(count=1000)
                    if client.ttl(key) == -1 and not keys.is_permanent(key.decode())
                ],
            }
        return {name: value for name, value in found.items() if value}

    # ---- what is printed

    async def _report(self, started: float) -> None:
        while True:
            await asyncio.sleep(30)
            line = f"{time.monotonic() - started:6.0f} s  in flight {len(self.running):3}  {dict(self.counts)}"
            print(
                f"{line}  faults {sum(self.faults.counts.values())}  wrong {len(self.wrong)}",
                file=sys.stderr,
                flush=True,
            )

    def _verdict(self, seconds: float) -> dict[str, Any]:
        return {
            "ok": not self.wrong and bool(self.counts["generations"]),
            "seed": self.seed,
            "seconds": round(seconds),
            "counts": dict(self.counts),
            "ends": dict(self.ends),
            "faults": dict(self.faults.counts),
            "slowest_generation_s": round(self.slowest_s, 1),
            "processes": self.faults.figures(),
            "wrong": self.wrong[:20],
            "wrong_count": len(self.wrong),
        }


async def soak(directory: Path, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """One run, as `main` was asked for it."""
    this = asyncio.current_task()
    assert this
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)  # so that the processes end with us
    with ScriptedUpstream() as provider, EmbeddedValkey(directory / "valkey") as valkey:
        leak = LEAK.format(blocks=round(given.leak * 2**20 / 60 / 1000)) if given.leak else ""
        stack = Stack(valkey.url, provider.base_url, directory, fault=leak, **SETTINGS)
        metrics = {name: stack.port_of(name) for name in (*WORKERS, *APIS)}
        stack.environment["STREAMSPOOL_WORKER_METRICS_PORT"] = str(metrics["worker"])
        with stack:
            stack.start("worker-2", STREAMSPOOL_WORKER_METRICS_PORT=str(metrics["worker-2"]))
            stack.start("api-2")
            every_s = None if given.no_faults else given.every
            running = Soak(stack, valkey, provider, metrics, seed, every_s, given.minutes)
            return await running.run(given.in_flight)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--minutes", type=float, default=30)
    arguments.add_argument("--seed", type=int, default=None)
    arguments.add_argument("--in-flight", type=int, default=30)
    arguments.add_argument("--every", type=float, default=20, help="longest pause between two faults, in seconds")
    arguments.add_argument(
        "--no-faults", action="store_true", help="the same load, and nothing is killed, stopped or cut"
    )
    arguments.add_argument("--leak", type=float, default=0, help="lose so many MB a minute: is it seen?")
    arguments.add_argument("--keep", type=Path, help="an empty directory for the logs; they are thrown away otherwise")
    given = arguments.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    print(f"seed {seed}", file=sys.stderr, flush=True)
    with contextlib.ExitStack() as exits:
        directory = given.keep or Path(exits.enter_context(tempfile.TemporaryDirectory()))
        verdict = asyncio.run(soak(directory, seed, given))
    print(json.dumps(verdict, indent=None if verdict["ok"] else 1, default=str))
    sys.exit(not verdict["ok"])


if __name__ == "__main__":
    main()
