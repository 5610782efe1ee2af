"""What a process prints when something breaks: enough to find it, nothing of what was said."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

BREAK = """
from shared.lib.telemetry import configure_logging, get_logger

def answer(prompt):
    raise RuntimeError("it broke")

configure_logging("info")
try:
    answer("canary-" + "prompt")
except RuntimeError as error:
    get_logger("test").error("unhandled", exc_info=error)
"""


@pytest.mark.parametrize("terminal", [True, False])
def test_a_traceback_shows_no_variables(terminal: bool) -> None:
    """On a terminal, too: the values of variables are prompts, answers and keys."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-c", BREAK],
        stderr=theirs if terminal else subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=environment,
        timeout=100,
        check=True,
    )
    os.close(theirs)
    printed = done.stderr or b""
    try:
        while terminal and (data := os.read(ours, 65536)):
            printed += data
    except OSError:  # that is how a pseudo-terminal ends
        pass
    os.close(ours)
    assert b"it broke" in printed
    assert b"answer" in printed
    assert b"canary-prompt" not in printed


SAY = """
import logging, os
from shared.lib.telemetry import begin_request, configure_logging, get_logger

get_logger("early")  # as modules do, before anything is configured
configure_logging("info")
begin_request("req_1")
get_logger("ours").debug("not asked for")
get_logger("ours").info("said", generation_id="g", odd=b"x", text="\\u00e9\\n")
logging.getLogger("theirs").info("said")
logging.getLogger("theirs").debug("not asked for")
os.close(2)
get_logger("ours").warning("nobody reads it")
print("went on")
"""


def test_our_lines_and_those_of_libraries_are_alike() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", SAY], capture_output=True, env=environment, timeout=100, check=False)
    ours, theirs = map(json.loads, done.stderr.splitlines())
    assert {name: ours.pop(name) for name in ("generation_id", "odd", "text")} == {
        "generation_id": "g",
        "odd": "b'x'",
        "text": "\u00e9\n",
    }
    assert ours.pop("timestamp") <= theirs.pop("timestamp")
    assert ours == {"event": "said", "request_id": "req_1", "level": "info", "logger": "ours"}
    assert theirs == {**ours, "logger": "theirs"}
    assert done.stdout == b"went on\n"
