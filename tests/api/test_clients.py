"""Clients people have, unchanged, against a live server. What each of them does is in tests/clients."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import ScriptedUpstream
from tests.support.clients import CLIENTS, EXERCISES, WHOLE, Client, set_up
from tests.support.wire import KEY_A, chunks, text
from tests.support.wire import Client as Http

ELSEWHERE = re.compile(r"(?i).*_proxy|(OPENAI|LANGCHAIN|LANGSMITH|LITELLM|LLM)_.*")
"""Variables that would send a client, or a copy of what it says, to another place."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("client", [pytest.param(client, id=client.name) for client in CLIENTS])
def test_a_program_with_the_unchanged_client(
    keyed: Stack, alice: Http, upstream: ScriptedUpstream, client: Client, subtests: pytest.Subtests
) -> None:
    """The server sends a keep-alive every 0.1 s, so they are everywhere in between."""
    command = client.command(f"{keyed.url}/v1", KEY_A)
    if isinstance(command, str):
        pytest.skip(command)
    models = set_up(upstream)
    environment = {name: value for name, value in os.environ.items() if not ELSEWHERE.fullmatch(name)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    version = report.pop("version") or ""
    assert version == client.version if client.version else version
    assert list(report) == [f"check_{name}" for name in client.checks]
    for name, problem in report.items():
        with subtests.test(name):
            assert not problem, problem
    assert len(models.limit.calls) == 3, "the broker tries three times; the client is told not to, and does not"

    (left,) = alice.get("/v1/streams", params={"model": "scripted/client-waits", "limit": 1}).json()["data"]
    wait_until(lambda: alice.state(left["id"])["viewers"] == 0)
    assert alice.state(left["id"])["status"] == "in_progress"
    assert (models.waits.live, models.waits.hung_up) == (1, 0), "hanging up is not cancelling"
    models.go()
    assert text(chunks(alice.whole(left["id"]))) == WHOLE


def test_every_client_does_what_all_can_do() -> None:
    optional = {"reasoning", "models", "stream_with_usage"}
    for client in CLIENTS:
        assert EXERCISES.keys() - optional <= set(client.checks), client.name
    assert all(any(name in client.checks for client in CLIENTS) for name in EXERCISES)
