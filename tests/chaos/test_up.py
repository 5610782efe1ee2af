"""`streamspool up` as people run it: real Valkey, API and worker, and SIGKILL for any of them."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.cli.client import Client, Event, View
from tests.support.up import WAIT_S, Up, environment, starting, until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

TOKENS = 120
REQUEST = {"model": f"fake/lorem?tokens={TOKENS}&rate=15", "messages": [{"role": "user", "content": "hi"}]}


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    with starting(tmp_path) as start:
        yield start


class Reader:
    """A viewer and the words it got."""

    def __init__(self, generation_id: str = "", position: str = "") -> None:
        self.view = View(generation_id, position)
        self.words: list[str] = []

    def show(self, event: Event) -> None:
        assert event.kind == "chunk"
        if event.text:
            self.words.append(event.text)


async def watched(url: str, part: str, kill: Callable[[], None]) -> None:
    """Starts an answer, attaches viewers, kills in mid-stream, and checks what every viewer and the log ended with."""
    client = Client(url)
    async with asyncio.TaskGroup() as tasks:
        first = Reader()
        tasks.create_task(client.submit(REQUEST, first.view, first.show))
        await soon(lambda: len(first.words) >= 10)
        others = [Reader(first.view.id) for _ in range(8)]
        for reader in others:
            tasks.create_task(client.watch(reader.view, reader.show))
        middle, seen = Reader(first.view.id, first.view.position), len(first.words)
        tasks.create_task(client.watch(middle.view, middle.show))
        await soon(lambda: all(reader.words for reader in [*others, middle]) and len(first.words) >= TOKENS // 4)
        assert len(first.words) < TOKENS * 3 // 4
        kill()
        after = Reader(first.view.id)
        tasks.create_task(client.watch(after.view, after.show))
    state = await client.state(first.view.id)
    answer = (await client.answer(first.view.id))["choices"][0]["message"]["content"]
    assert (state["status"], state["attempts"]) == ("completed", 1)
    assert len(answer.split()) == TOKENS
    for reader in (first, *others, after):
        assert "".join(reader.words) == answer
    assert first.words[:seen] + middle.words == first.words
    if part == "api":
        assert all(reader.view.reconnects >= 1 for reader in (first, *others, middle))


@pytest.mark.parametrize("part", ["api", "valkey"])
async def test_a_part_killed_in_mid_stream_costs_no_viewer_a_token(up: Callable[..., Up], part: str) -> None:
    one = up()
    await asyncio.to_thread(one.wait_ready)
    before = one.children()
    await watched(one.url, part, lambda: os.kill(before[part], signal.SIGKILL))
    after = one.children()
    assert after[part] != before[part]
    assert {name: pid for name, pid in after.items() if name != part} == {
        name: pid for name, pid in before.items() if name != part
    }
    one.process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(one.process.wait, WAIT_S) == 0
    assert one.left() == []


async def test_the_supervisor_killed_leaves_nothing_and_the_next_one_has_the_data(up: Callable[..., Up]) -> None:
    one = up("--workers", "2")
    await asyncio.to_thread(one.wait_ready)
    assert len(one.ever) >= 4
    reader = Reader()
    client = Client(one.url)
    await client.submit({**REQUEST, "model": "fake/lorem?tokens=20"}, reader.view, reader.show)
    one.process.kill()
    await asyncio.to_thread(one.process.wait, WAIT_S)
    await asyncio.to_thread(until, lambda: one.left() == [])

    two = up()
    await asyncio.to_thread(two.wait_ready)
    again = Reader(reader.view.id)
    client = Client(two.url)
    await client.watch(again.view, again.show)
    assert again.words == reader.words
    await client.submit({**REQUEST, "model": "fake/lorem?tokens=20"}, View(), lambda _: None)
    two.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(two.process.wait, WAIT_S) == 0
    assert two.left() == []


async def test_nobody_else_on_the_machine_can_read_what_was_asked(up: Callable[..., Up], tmp_path: Path) -> None:
    data, before = tmp_path / "data", os.umask(0o022)
    try:
        data.mkdir(mode=0o755)
        one = up()
    finally:
        os.umask(before)
    await asyncio.to_thread(one.wait_ready)
    client = Client(one.url)
    await client.submit({**REQUEST, "model": "fake/lorem?tokens=20"}, View(), lambda _: None)
    await client.upload(io.BytesIO(b'{"prompt": "secret"}\n'), "lines.jsonl")
    kept = [path for path in (data, *data.rglob("*")) if path.exists()]
    assert {path.parent.name for path in kept if path.is_file()} >= {"data", "appendonlydir", "files"}
    assert [f"{path} {path.lstat().st_mode:o}" for path in kept if path.lstat().st_mode & 0o077] == []
    one.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(one.process.wait, WAIT_S) == 0


def test_ctrl_c_during_the_start_is_a_clean_end(up: Callable[..., Up]) -> None:
    one = up()
    until(lambda: "valkey" in one.children())
    one.process.send_signal(signal.SIGINT)
    assert one.process.wait(WAIT_S) == 0
    until(lambda: one.left() == [])


def test_a_second_one_is_refused_and_the_first_does_not_mind(up: Callable[..., Up], tmp_path: Path) -> None:
    one = up()
    one.wait_ready()
    port = one.url.rpartition(":")[2]
    for words, message in (([], f"PID {one.process.pid}"), (["--port", port], f"port {port}")):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "shared.cli.main",
                "up",
                "--port",
                "0",
                "--data-dir",
                str(tmp_path / "data"),
                *words,
            ],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
            env=environment(tmp_path),
        )
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert one.process.poll() is None
    assert set(one.children()) == {"api", "worker", "valkey"}


def test_an_answer_left_with_ctrl_c_goes_on_and_is_found_again(up: Callable[..., Up], tmp_path: Path) -> None:
    one = up()
    one.wait_ready()
    command = [sys.executable, "-m", "shared.cli.main"]
    variables = {**environment(tmp_path), "STREAMSPOOL_URL": one.url}
    chat = subprocess.Popen(
        [*command, "chat", "hi", "-m", str(REQUEST["model"])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=variables,
    )
    try:
        assert chat.stdout is not None
        begun = os.read(chat.stdout.fileno(), 1000)
        chat.send_signal(signal.SIGINT)
        rest, said = chat.communicate(timeout=WAIT_S)
    finally:
        chat.kill()
        chat.wait(WAIT_S)
    assert chat.returncode == 130
    hint = re.search(r"streamspool (watch \S+ --from \S+)", said.decode())
    assert hint
    watch = subprocess.run(
        [*command, *hint[1].split()], capture_output=True, timeout=WAIT_S, check=False, env=variables
    )
    assert watch.returncode == 0, watch.stderr
    assert len((begun + rest + watch.stdout).split()) == TOKENS
    assert b"completed" in watch.stderr
    doctor = subprocess.run([*command, "doctor"], capture_output=True, timeout=WAIT_S, check=False, env=variables)
    assert doctor.returncode == 0, doctor.stdout
