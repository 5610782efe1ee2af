"""Each file of examples/ is run as it stands, as a program of its own, against a running server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.docs.cut import CuttingProxy
from tests.docs.tables import ROOT
from tests.docs.test_docs import LIMIT_S, ask, environment, get, post
from tests.harness.processes import READY_S, Stack, wait_until
from tests.harness.upstream import ScriptedUpstream

EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.timeout(2 * LIMIT_S)
RUN = {"resume.py", "resume.mjs", "resume.sh", "viewers.py", "batch.py", "webhook_receiver.py", "own_provider.py"}
"""Those that have a test here."""


def output(url: str, *command: str) -> str:
    """What an example prints; it must succeed and complain about nothing."""
    done = subprocess.run(
        command,
        cwd=EXAMPLES,
        env={**environment(), "STREAMSPOOL_URL": url},
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Program:
    """An example that serves until it is ended: its lines, as they come, and the address it listens on."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self._process = process
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))

    def url(self) -> str:
        wait_until(lambda: self.lines, READY_S, what="the address")
        return self.lines[0].removeprefix("listening on ")

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def serving(name: str, **settings: str) -> Iterator[Program]:
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), "0"],
        env={**environment(), **settings},
        stdout=subprocess.PIPE,
        text=True,
    )
    program = Program(process)
    try:
        yield program
    finally:
        program.end()


def test_every_example_is_run_and_listed() -> None:
    there = {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}
    assert there == RUN
    assert set(re.findall(r"^\| \[([\w.]+)\]\(\1\)", (EXAMPLES / "README.md").read_text("utf-8"), re.M)) == RUN


def test_python_leaves_and_comes_back(stack: Stack) -> None:
    printed = output(stack.url, sys.executable, "resume.py")
    assert re.fullmatch(r"left after 10 chunks: lorem .+\ncame back: 40 words, as stored: True\n", printed)


def test_javascript_survives_a_lost_connection(stack: Stack) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    with CuttingProxy(stack.port) as proxy:
        assert output(proxy.url, node, "resume.mjs") == "60 words over 2 connections\n"
        assert proxy.cut == 1


def test_curl_leaves_and_comes_back(stack: Stack) -> None:
    printed = output(stack.url, "sh", "resume.sh")
    assert re.fullmatch(r"left chatcmpl-\w+ at 1-3\ncame back at 1-4, and read to data: \[DONE\]\n", printed)


def test_viewers_see_one_text(stack: Stack) -> None:
    assert output(stack.url, sys.executable, "viewers.py", "12") == "12 viewers, 1 text of 60 words, 1 attempt\n"


def test_a_batch_is_run(stack: Stack) -> None:
    expected = "".join(f"greeting-{n}: Hello number {n}\n" for n in range(1, 6))
    assert output(stack.url, sys.executable, "batch.py") == expected


def test_a_webhook_is_believed_when_it_is_signed_and_only_then(stack: Stack) -> None:
    secret = stack.environment["STREAMSPOOL_WEBHOOK_SECRET"]
    with serving("webhook_receiver.py", STREAMSPOOL_WEBHOOK_SECRET=secret) as receiver:
        url = receiver.url()
        told = post(
            stack,
            {
                "model": "fake/echo",
                "background": True,
                "webhook": {"url": url},
                "messages": [{"role": "user", "content": "Hello"}],
            },
        ).json()
        wait_until(lambda: len(receiver.lines) > 1, 60, what="a delivery")
        assert receiver.lines[1] == f"chat.completion.completed {told['id']}"
        forged = {"id": "evt_1", "type": "chat.completion.completed", "data": {"id": told["id"]}}
        signature = {"webhook-id": "evt_1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
        for headers in ({}, signature, {**signature, "webhook-timestamp": str(int(time.time()))}):
            assert httpx.post(url, json=forged, headers=headers, trust_env=False, timeout=60).status_code == 401
        wait_until(lambda: len(receiver.lines) == 5, 60, what="three refusals")
        assert all(line.startswith("refused: ") for line in receiver.lines[2:])


def test_an_own_provider_is_asked_by_its_name(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    with serving("own_provider.py") as provider:
        config = f'[providers.mine]\nbase_url = "{provider.url()}"\nmodels = ["reverse"]\n'
        with (
            EmbeddedValkey(tmp_path) as server,
            Stack(server.url, upstream.base_url, tmp_path, config=config) as running,
        ):
            body = {"model": "mine/reverse", "messages": [{"role": "user", "content": "one two three"}]}
            answer = post(running, body).raise_for_status().json()
            assert answer["choices"][0]["message"]["content"] == "three two one "
            assert answer["usage"]["total_tokens"] == 6
            assert "mine/reverse" in {model["id"] for model in get(running, "/v1/models").json()["data"]}
            refused = post(running, {**body, "model": "mine/forward"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
            assert ask(running)["choices"][0]["message"]["content"] == "Hello"
