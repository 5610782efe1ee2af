"""The official OpenAI SDKs, unchanged: Python's newest, Python's 1.40, and JavaScript's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import Stack
from tests.support.upstream import DONE, Script, ScriptedUpstream, chunk, ending, words
from tests.support.wire import KEY_A

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
OLD_PYTHON = ROOT / ".venv-openai-1.40" / "bin" / "python"
CLIENTS = ROOT / "tests" / "clients"

VERSIONS = {"python": "3.", "python 1.40": "1.40.", "node": "6."}


def command(sdk: str, *arguments: str) -> list[str]:
    if sdk == "python":
        return [sys.executable, str(SUPPORT / "sdk_check.py"), *arguments]
    if sdk == "python 1.40":
        if not OLD_PYTHON.exists():
            pytest.skip("no openai 1.40: run `make clients`")
        return [str(OLD_PYTHON), str(SUPPORT / "sdk_check.py"), *arguments]
    node = shutil.which("node")
    if not node or not (CLIENTS / "node_modules" / "openai").exists():
        pytest.skip("no node, or no openai in tests/clients: run `make clients`")
    return [node, str(SUPPORT / "sdk_check.mjs"), *arguments, str(CLIENTS)]


@pytest.fixture
def limit(upstream: ScriptedUpstream) -> Script:
    """The models that the programs ask for; returned is the one that says 429."""
    said = words(5)
    upstream.script("sdk-slow", [0.22, *said[:2], 0.12, *said[2:4], 0.12, *said[4:], *ending()])
    call = [
        chunk({"tool_calls": [{"index": i, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}]})
        for i, (id, name) in enumerate((("c1", "f"), ("c2", "g")))
    ]
    arguments = [
        chunk({"tool_calls": [{"index": i, "function": {"arguments": piece}}]})
        for i, piece in ((0, "["), (1, "[2"), (0, "1]"), (1, "]"))
    ]
    opening = chunk({"role": "assistant", "content": None})
    upstream.script("sdk-tools", [opening, *call, *arguments, chunk({}, "tool_calls"), DONE])
    broken = b'data: {"error": {"message": "the machine is on fire", "code": "fire"}}\n\n'
    upstream.script("sdk-broken", [*words(2), broken])
    headers = {"content-type": "application/json", "retry-after": "1"}
    body = b'{"error": {"message": "slow down", "type": "rate_limit_error", "code": "rate_limit"}}'
    return upstream.script("sdk-limit", [body], status=429, headers=headers)


@pytest.mark.parametrize("sdk", VERSIONS)
def test_a_program_with_the_official_sdk(keyed: Stack, limit: Script, sdk: str, subtests: pytest.Subtests) -> None:
    """The server sends a keep-alive every 0.1 s, so they are everywhere in between."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        command(sdk, f"{keyed.url}/v1", KEY_A),
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, str | None] = json.loads(done.stdout)
    assert (report.pop("version") or "").startswith(VERSIONS[sdk])
    assert len(report) > 15
    for name, problem in report.items():
        with subtests.test(name):
            assert not problem, problem
    assert len(limit.calls) == 3, "the broker tries three times, and tells the SDK not to"
