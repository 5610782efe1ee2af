"""What large requests and answers cost: `python -m tests.chaos.figures_big`. One JSON line for each row.

A request of 50 MiB as a chat and as a Responses request, four of them at once beside others who ask for a word, and a picture
of 3 MB in a delta.

Who asks for a word has a process and a provider of its own, and who sends the large ones has one, too: in one interpreter, the
client that measures would wait for the one that sends, and for the provider that parses 50 MiB.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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
    def __init__(self, stack: Stack, upstream: ScriptedUpstream, other: Connection) -> None:
        self.stack, self.upstream, self._other = stack, upstream, other
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

    def request(self, path: str, field: str, messages: list[dict[str, Any]]) -> Figures:
        """One of 50 MiB, answered at once; the peaks are over what the processes had."""
        with Client(self.stack.url) as client:
            client.http.timeout = 300
            client.post(ask("scripted/brief"))
            body = json.dumps({"model": "scripted/brief", field: messages}).encode()
            names = ("api", "worker")
            before = {name: memory_mb(self.stack, "VmRSS", name) for name in names}
            self.reset_peaks()
            valkey, used = self.valkey_peak_mb(), self.used()
            started = time.monotonic()
            response = client.http.post(path, content=body, headers={"content-type": "application/json"})
            took_s = time.monotonic() - started
            assert response.status_code == 200, response.text[:200]
            peaks = {f"{name}_peak_more_mb": memory_mb(self.stack, "VmHWM", name) - before[name] for name in names}
            generation_id = response.headers["x-stream-id"]
            with open_store(self.stack.redis_url) as store:
                log = store.memory_usage(f"streamspool:{{{generation_id}}}:log", samples=0)
            found = {
                "body_mb": len(body) / 1e6,
                "took_s": took_s,
                **peaks,
                "valkey_peak_more_mb": self.valkey_peak_mb() - valkey,
                "valkey_kept_bytes": self.used() - used,
                "log_bytes": log,
                "stored_bytes": sum(path.stat().st_size for path in files(self.stack)),
                "provider_got_it": picture(LARGE) in json.dumps(self._brief.calls[-1]["messages"]),
            }
            client.http.delete(f"/v1/streams/{generation_id}")
        wait_until(lambda: not files(self.stack), 60, "the reaper has removed it")
        return found

    def chat(self) -> Figures:
        return self.request("/v1/chat/completions", "messages", showing(picture(LARGE)))

    def response(self) -> Figures:
        parts = [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": picture(LARGE)}]
        return self.request("/v1/responses", "input", [{"role": "user", "content": parts}])

    def beside(self) -> Figures:
        """The first token of others while four requests of 50 MiB arrive; and while none does."""
        with child(_send_large, self.stack.url) as senders:
            assert senders.recv() == "ready"
            calm = self._first_tokens(senders, least=100)
            names = ("api", "worker")
            before = {name: memory_mb(self.stack, "VmRSS", name) for name in names}
            self.reset_peaks()
            valkey = self.valkey_peak_mb()
            senders.send("go")
            busy = self._first_tokens(senders, least=1)
            failed = senders.recv()
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

    def _first_tokens(self, senders: Connection, least: int) -> list[float]:
        """How long the first byte took, of one request after the other: so many, or until all large ones are answered."""
        found: list[float] = []
        while len(found) < least or (least == 1 and not senders.poll()):
            self._other.send(self.stack.url)
            found.append(self._other.recv())
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


@contextmanager
def child(work: Any, *given: Any) -> Iterator[Connection]:
    """A process that runs `work` with one end of a pipe; the other end. It is ended with the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *given), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(10)
        process.kill()


def _ask_for_a_word(pipe: Connection) -> None:
    """The other client, and its provider: told a server, it says how long a first byte took."""
    with ScriptedUpstream() as upstream:
        upstream.script("brief", [*words(3), *ending()])
        pipe.send(upstream.base_url)
        body = json.dumps(ask("near/brief", stream=True)).encode()
        connection = None
        while True:
            try:
                url = urlsplit(pipe.recv())
            except EOFError:
                return
            connection = connection or http.client.HTTPConnection(str(url.hostname), url.port, timeout=300)
            started = time.monotonic()
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read(1)
            took_s = time.monotonic() - started
            answer.read()
            pipe.send(took_s)


def _send_large(pipe: Connection, url: str, count: int = 4) -> None:
    """Sends requests of 50 MiB at the same time once it is told, and says which of them failed."""
    pictures = [picture(LARGE, n) for n in range(count)]
    bodies = [json.dumps({"model": "scripted/brief", "messages": showing(one)}).encode() for one in pictures]
    failed: list[str] = []

    def send(body: bytes) -> None:
        with Client(url) as client:
            client.http.timeout = 300
            response = client.send(body)
            if response.status_code != 200:
                failed.append(response.text[:200])

    pipe.send("ready")
    pipe.recv()
    senders = [threading.Thread(target=send, args=(body,)) for body in bodies]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    pipe.send(failed)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        EmbeddedValkey(Path(name) / "valkey", maxmemory="1gb") as valkey,
        ScriptedUpstream() as upstream,
        child(_ask_for_a_word) as other,
        Stack(valkey.url, upstream.base_url, Path(name), config=_near(other.recv())) as stack,
    ):
        bench = Bench(stack, upstream, other)
        for row in (bench.chat, bench.response, bench.beside, bench.drawn):
            print(json.dumps({"row": row.__name__, **row()}), flush=True)


def _near(base_url: str) -> str:
    return f'\n[providers.near]\nbase_url = "{base_url}"\nmodels = ["any"]\n'


if __name__ == "__main__":
    main()
