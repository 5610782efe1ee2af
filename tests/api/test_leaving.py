"""A client that leaves in the middle, and what `on_disconnect: cancel` sees of it; one that does not leave at the end."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import Pause, Script, ScriptedUpstream, ending, words
from tests.support.clients import PROGRAMS
from tests.support.wire import Client


@contextmanager
def leaving(stack: Stack, model: str, how: str) -> Iterator[None]:
    """The AI SDK has been told to leave, and its process goes on."""
    node = shutil.which("node")
    if not node or not (PROGRAMS / "node_modules/ai").exists():
        pytest.skip("no node, or no AI SDK in tests/clients: run `make clients`")
    command = [node, str(PROGRAMS / "leave_ai.mjs"), f"{stack.url}/v1", model, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdin is not None
        try:
            assert program.stdout.readline() == "left\n"
            yield
            program.stdin.close()
            assert program.wait(100) == 0
        finally:
            program.kill()


def asked(upstream: ScriptedUpstream) -> tuple[str, Script, Pause, Pause]:
    """A model that waits after `w2`, and again after some more."""
    name, first, second = f"leaving-{uuid.uuid4().hex[:8]}", Pause(), Pause()
    *said, last = words(6)
    return name, upstream.script(name, [*said, first, last, second, *ending()]), first, second


def test_a5_a_break_alone_closes_nothing_and_the_answer_is_paid_to_its_end(
    stack: Stack, client: Client, upstream: ScriptedUpstream
) -> None:
    name, script, first, second = asked(upstream)
    with leaving(stack, f"scripted/{name}", "break"):
        (state,) = client.get(f"/v1/streams?model=scripted/{name}").json()["data"]
        before = state["position"]
        first.go()
        state = wait_until(lambda: (now := client.state(state["id"]))["position"] != before and now)
        assert (state["status"], state["viewers"]) == ("in_progress", 1), "it reads on"
        second.go()
        wait_until(lambda: client.state(state["id"])["status"] == "completed")
    assert script.hung_up == 0


def test_a5_an_abort_signal_ends_it(stack: Stack, client: Client, upstream: ScriptedUpstream) -> None:
    name, script, first, second = asked(upstream)
    with leaving(stack, f"scripted/{name}", "abort"):
        (state,) = client.get(f"/v1/streams?model=scripted/{name}").json()["data"]
        wait_until(lambda: client.state(state["id"])["status"] == "cancelled", 100)
        wait_until(lambda: script.hung_up == 1)
    first.go()
    second.go()


@pytest.mark.parametrize(("how", "found"), [("default", (3, False)), ("told", (1, True))])
def test_a9_fetch_event_source_takes_no_204_for_an_end_unless_it_is_told(
    stack: Stack, client: Client, how: str, found: tuple[int, bool]
) -> None:
    """As docs/STREAMING.md says what is to be done about it."""
    node = shutil.which("node")
    if not node or not (PROGRAMS / "node_modules/@microsoft/fetch-event-source").exists():
        pytest.skip("no node, or no fetch-event-source in tests/clients: run `make clients`")
    path = f"/v1/streams/{client.stream('fake/echo', 'hello').headers['x-stream-id']}"
    last = re.findall(r"^id: (\S+)$", client.get(path).text, re.MULTILINE)[-1]
    command = [node, str(PROGRAMS / "ended.mjs"), stack.url + path, last, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    told = json.loads(done.stdout)
    assert (told["asked"], told["ended"]) == found, done
    assert set(told["statuses"]) == {204}
