"""`streamspool demo` as people run it: real Valkey, API and worker, a SIGKILL, and a verdict that is not always yes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.cli.client import Event, View
from shared.cli.demo import Viewer
from tests.support.up import WAIT_S, demo, environment, processes, until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_the_demo_convinces_and_leaves_nothing(tmp_path: Path) -> None:
    printed = demo(tmp_path)
    assert "SIGKILL" in printed
    assert "upstream calls: 1" in printed


@pytest.mark.parametrize(
    ("positions", "whole"),
    [
        (["1-1", "1-2", "1-3"], True),
        (["1-1", "1-3"], False),
        (["1-1", "1-2", "1-2", "1-3"], False),
        (["1-2", "1-3"], False),
        (["1-1", "1-2"], False),
    ],
)
def test_the_demo_would_notice_what_is_missing_or_twice(positions: list[str], whole: bool) -> None:
    viewer = Viewer("one", "at the start", View())
    for position in positions:
        viewer.show(Event("chunk", {"choices": [{"delta": {"content": f"{position} "}}]}, position))
    assert not viewer.is_whole("1-1 1-2 1-3 ")  # not before its end
    viewer.ended = True
    assert viewer.is_whole("1-1 1-2 1-3 ") is whole


def test_ctrl_c_ends_a_demo_that_stays_up(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "shared.cli.main", "demo", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
        cwd=tmp_path,
    )
    try:
        assert demo.stdout is not None
        until(lambda: "curl -N" in demo.stdout.readline())  # type: ignore[union-attr]
        demo.send_signal(signal.SIGINT)
        assert demo.wait(WAIT_S) == 0
        assert list(tmp_path.iterdir()) == []
        assert not [line for _, line in processes().values() if str(tmp_path) in line]
    finally:
        demo.kill()
        demo.wait(WAIT_S)
        assert demo.stdout is not None
        demo.stdout.close()
