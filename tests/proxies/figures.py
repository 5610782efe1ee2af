"""How much later an event comes through each proxy than without one: figures, for a machine that is quiet.

    python -m tests.proxies.figures

A script says a word when it is told to; what counts is the time until curl has it, the median of 50 words, over HTTP/1.1, less
the median without a proxy.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import trustme

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack
from tests.harness.upstream import Pause, ScriptedUpstream, chunk, ending
from tests.support.fronts import KINDS, Front, Relay
from tests.support.wire import KEY_A, ask

WORDS = 50


def measure(upstream: ScriptedUpstream, command: list[str]) -> float:
    """Milliseconds from the word to its arrival."""
    pauses, name = [Pause() for _ in range(WORDS)], f"timed-{uuid.uuid4().hex}"
    said = [part for number, pause in enumerate(pauses) for part in (chunk(f"v{number} "), pause)]
    upstream.script(name, [*said, *ending()])
    key = ["-H", f"Authorization: Bearer {KEY_A}", "-H", "Content-Type: application/json"]
    body = [*key, "-d", json.dumps(ask(f"scripted/{name}", stream=True))]
    curl = subprocess.Popen([*command, *body], stdout=subprocess.PIPE, bufsize=0)
    assert curl.stdout is not None
    taken, seen = [], b""
    for number, pause in enumerate(pauses[:-1]):
        seen += _until(b"v%d " % number, seen, curl.stdout)
        began = time.perf_counter()
        pause.go()
        seen += _until(b"v%d " % (number + 1), seen, curl.stdout)
        taken.append((time.perf_counter() - began) * 1000)
    pauses[-1].go()
    curl.communicate(timeout=30)
    return statistics.median(taken)


def _until(word: bytes, seen: bytes, stream: IO[bytes]) -> bytes:
    more = b""
    while word not in seen + more:
        piece = stream.read(65536)
        assert piece, f"it ended before {word!r}: {seen + more!r}"
        more += piece
    return more


def main() -> None:
    with ExitStack() as exits:
        place = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        place.chmod(0o755)
        valkey = exits.enter_context(EmbeddedValkey(place / "valkey"))
        upstream = exits.enter_context(ScriptedUpstream())
        api = exits.enter_context(Stack(valkey.url, upstream.base_url, place, STREAMSPOOL_API_KEYS=f"a:{KEY_A}"))
        relay, authority = exits.enter_context(Relay(api.port)), trustme.CA()
        direct = ["curl", "-sN", "--noproxy", "*", f"http://127.0.0.1:{relay.port}/v1/chat/completions"]
        alone = min(measure(upstream, direct) for _ in range(3))
        print(f"without: {alone:.1f} ms")
        for kind in KINDS:
            if kind.path is None:
                print(f"{kind.name}: not here")
                continue
            (place / kind.name).mkdir()
            front = Front(kind, relay, place / kind.name, authority)
            exits.callback(front.stop)
            front.start()
            front.wait()
            command = front.curl("--http1.1", f"{front.url}/v1/chat/completions")
            later = min(measure(upstream, command) for _ in range(3)) - alone
            print(f"{kind.title} {kind.installed()}: {later:.1f} ms later")
            front.stop()


if __name__ == "__main__":
    main()
