"""The official OpenAI SDKs, unchanged: Python's newest, Python's 1.40, and JavaScript's."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.support.stack import Stack
from tests.support.upstream import DONE, ScriptedUpstream, chunk, ending, words
from tests.support.wire import KEY_A

pytestmark = pytest.mark.xdist_group("sdks")

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
OLD_PYTHON = ROOT / ".venv-openai-1.40" / "bin" / "python"
CLIENTS = ROOT / "tests" / "clients"

Report = Callable[[str], dict[str, str | None]]


def checks(script: str, pattern: str) -> list[str]:
    names = re.findall(pattern, (SUPPORT / script).read_text(), re.M)
    assert len(names) > 10
    return [f"check_{name}" for name in names]


CASES = [
    *(("python", name) for name in checks("sdk_check.py", r"^def check_(\w+)")),
    *(("python 1.40", name) for name in checks("sdk_check.py", r"^def check_(\w+)")),
    *(("node", name) for name in checks("sdk_check.mjs", r"^  async (\w+)\(")),
]


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


@pytest.fixture(scope="module")
def report(keyed: Stack, upstream: ScriptedUpstream) -> Report:
    """Runs all checks of an SDK, once. The server sends a keep-alive every 0.1 s."""
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
    limit = {"content-type": "application/json", "retry-after": "1"}
    body = b'{"error": {"message": "slow down", "type": "rate_limit_error", "code": "rate_limit"}}'
    upstream.script("sdk-limit", [body], status=429, headers=limit)

    @cache
    def run(sdk: str) -> dict[str, str | None]:
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        done = subprocess.run(
            command(sdk, f"{keyed.url}/v1", KEY_A),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, str | None] = json.loads(done.stdout)
        return found

    return run


@pytest.mark.parametrize(("sdk", "name"), CASES)
def test_the_sdk(report: Report, sdk: str, name: str) -> None:
    found = report(sdk)
    assert name in found
    assert not found[name], found[name]


@pytest.mark.parametrize("sdk", ["python", "python 1.40", "node"])
def test_the_versions_are_those_we_promise(report: Report, sdk: str) -> None:
    version = report(sdk)["version"] or ""
    assert version.startswith({"python": "3.", "python 1.40": "1.40.", "node": "6."}[sdk])
