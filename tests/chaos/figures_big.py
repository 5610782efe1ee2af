"""What large requests and answers cost: `python -m tests.chaos.figures_big`. One JSON line for each row.

A request of 50 MiB, four of them at once beside others who ask for a word, and a picture of 3 MB in a delta.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.cli.embedded import EmbeddedValkey
from tests.api.surfaces.test_large import files, picture, showing
from tests.harness.processes import Stack, memory_mb, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import Pause, ScriptedUpstream, chunk, ending, words
from tests.support.wire import Client, ask

Figures = dict[str, Any]
LARGE = 39_000_000
"""Bytes of a picture that make a request of just under 50 MiB."""


class Bench:
    def __init__(self, stack: Stack, upstream: ScriptedUpstream) -> None:
        self.stack, self.upstream = stack, upstream
        with open_store(stack.redis_url) as store:
            self._valkey_pid = int(store.info("server")["process_id"])
        self._brief = upstream.script("brief", [*words(3), *ending()])

    def valkey_peak_mb(self) -> float:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self._valkey_pid}/status").read_text())
        assert found
        return int(found[1]) / 1024

    def reset_peaks(self) -> None:
        for pid in (self.stack.process("api").pid, self.stack.process("worker").pid, self._valkey_pid):
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def used(self) -> int:
        with open_store(self.stack.redis_url) as store:
            return int(store.info("memory")["used_memory"])

    def request(self) -> Figures:
        """One of 50 MiB, answered at once; the peaks are over what the processes had."""
        with Client(self.stack.url) as client:
            client.http.timeout = 300
            client.post(ask("scripted/brief"))
            body = json.dumps({"model": "scripted/brief", "messages": showing(picture(LARGE))}).encode()
            names = ("api", "worker")
            before = {name: memory_mb(self.stack, "VmRSS", name) for name in names}
            self.reset_peaks()
            valkey, used = self.valkey_peak_mb(), self.used()
            started = time.monotonic()
            response = client.send(body)
            took_s = time.monotonic() - started
            assert response.status_code == 200, response.text[:200]
            peaks = {f"{name}_peak_more_mb": memory_mb(self.stack, "VmHWM", name) - before[name] for name in names}
            with open_store(self.stack.redis_url) as store:
                log = store.memory_usage(f"streamspool:{{{response.json()['id']}}}:log", samples=0)
            found = {
                "body_mb": len(body) / 1e6,
                "took_s": took_s,
                **peaks,
                "valkey_peak_more_mb": self.valkey_peak_mb() - valkey,
                "valkey_kept_bytes": self.used() - used,
                "log_bytes": log,
                "stored_bytes": sum(path.stat().st_size for path in files(self.stack)),
                "provider_got_it": self._brief.calls[-1]["messages"] == json.loads(body)["messages"],
            }
            client.http.delete(f"/v1/streams/{response.json()['id']}")
        wait_until(lambda: not files(self.stack), 60, "the reaper has removed it")
        return found

    def beside(self, count: int = 4) -> Figures:
        """The first token of others while four requests of 50 MiB arrive, again and again; and while none does."""
        pictures = [picture(LARGE, n) for n in range(count)]
        bodies = [json.dumps({"model": "scripted/brief", "messages": showing(one)}).encode() for one in pictures]
        calm = self._first_tokens(lambda: False, least=30)
        names = ("api", "worker")
        before = {name: memory_mb(self.stack, "VmRSS", name) for name in names}
        self.reset_peaks()
        valkey = self.valkey_peak_mb()
        failed: list[str] = []

        def send(body: bytes) -> None:
            with Client(self.stack.url) as client:
                client.http.timeout = 300
                response = client.send(body)
                if response.status_code != 200:
                    failed.append(response.text[:200])

        senders = [threading.Thread(target=send, args=(body,)) for body in bodies]
        for sender in senders:
            sender.start()
        busy = self._first_tokens(lambda: any(sender.is_alive() for sender in senders), least=1)
        for sender in senders:
            sender.join()
        return {
            "calm_median_s": statistics.median(calm),
            "busy_median_s": statistics.median(busy),
            "busy_worst_s": max(busy),
            "asked_meanwhile": len(busy),
            "times": statistics.median(busy) / statistics.median(calm),
            **{f"{name}_peak_more_mb": memory_mb(self.stack, "VmHWM", name) - before[name] for name in names},
            "valkey_peak_more_mb": self.valkey_peak_mb() - valkey,
            "failed": failed,
        }

    def _first_tokens(self, going: Callable[[], bool], least: int) -> list[float]:
        found: list[float] = []
        with Client(self.stack.url) as client:
            while going() or len(found) < least:
                started = time.monotonic()
                with client.http.stream("POST", "/v1/chat/completions", json=ask("scripted/brief", stream=True)) as got:
                    pieces = got.iter_raw()
                    next(pieces)
                    found.append(time.monotonic() - started)
                    for _ in pieces:
                        pass
        return found

    def drawn(self) -> Figures:
        """A picture of 3 MB in one delta: until a viewer has it live, and one that resumes; what Redis keeps."""
        pause, url = Pause(), picture(3_000_000)
        event = chunk({"images": [{"index": 0, "image_url": {"url": url}}]})
        self.upstream.script("draws", [*words(2), pause, event, *ending()])
        with Client(self.stack.url) as client:
            with client.http.stream("POST", "/v1/chat/completions", json=ask("scripted/draws", stream=True)) as got:
                generation_id, body = got.headers["x-stream-id"], b""
                pieces = got.iter_raw()
                while body.count(b"\n\n") < 3:
                    body += next(pieces)
                started = time.monotonic()
                pause.go()
                while url.encode() not in body:
                    body += next(pieces)
                live_s = time.monotonic() - started
                for piece in pieces:
                    body += piece
            started = time.monotonic()
            late = client.get(f"/v1/streams/{generation_id}?starting_after=3").content
            resumed_s = time.monotonic() - started
            with open_store(self.stack.redis_url) as store:
                log = store.memory_usage(f"streamspool:{{{generation_id}}}:log", samples=0)
        whole = url.encode() in body and url.encode() in late
        return {
            "event_mb": len(event) / 1e6,
            "live_s": live_s,
            "resumed_s": resumed_s,
            "log_bytes": log,
            "whole": whole,
        }


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        EmbeddedValkey(Path(name) / "valkey", maxmemory="1gb") as valkey,
        ScriptedUpstream() as upstream,
        Stack(valkey.url, upstream.base_url, Path(name)) as stack,
    ):
        bench = Bench(stack, upstream)
        for row in (bench.request, bench.beside, bench.drawn):
            print(json.dumps({"row": row.__name__, **row()}), flush=True)


if __name__ == "__main__":
    main()
