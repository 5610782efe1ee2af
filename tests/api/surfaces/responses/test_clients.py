"""Clients people have, unchanged, over the Responses API. What each of them does is in tests/clients."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.harness.processes import Stack
from tests.harness.upstream import ScriptedUpstream
from tests.support.clients import RESPONSES_CLIENTS, Client, set_up
from tests.support.wire import KEY_A


@pytest.mark.timeout(300)
@pytest.mark.parametrize("client", [pytest.param(client, id=client.program) for client in RESPONSES_CLIENTS])
def test_a_program_with_the_unchanged_client(
    keyed: Stack, upstream: ScriptedUpstream, client: Client, subtests: pytest.Subtests
) -> None:
    """The server sends a keep-alive every 0.1 s, so they are everywhere in between."""
    command = client.command(f"{keyed.url}/v1", KEY_A)
    if isinstance(command, str):
        pytest.skip(command)
    set_up(upstream)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "LITELLM_"))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    assert report.pop("version") == client.version
    assert list(report) == [f"check_{name}" for name in client.checks]
    for name, problem in report.items():
        with subtests.test(name):
            assert not problem, problem
