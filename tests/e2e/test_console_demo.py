"""`streamspool demo --browser`, with a browser at the address that it prints: five viewers there, and the API is killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.e2e.console import MARKS, chromium, tab
from tests.harness.processes import ROOT

pytestmark = MARKS
OURS = ("STREAMSPOOL_", "REDIS_URL", "HOST", "PORT", "DISPLAY", "WAYLAND_DISPLAY")
WAIT_S = 120


def test_five_viewers_in_a_browser_have_every_word_after_the_api_was_killed(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    with chromium() as browser:  # before the show: it waits for its audience, but not for ever
        watch(browser, tmp_path, kept)


def watch(browser: Browser, tmp_path: Path, environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "shared.cli.main", "demo", "--browser", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "STREAMSPOOL_DRAIN_S": "5"},
        cwd=tmp_path,
    )
    try:
        assert process.stdout is not None
        printed = ""
        while not (found := re.search(r"open in a browser: (http://\S+)/console(/viewers/\S+)", printed)):
            line = process.stdout.readline()
            assert line, f"ended: {printed}"
            printed += line
        with tab(browser, found[1]) as one:
            page = one.go(found[2])
            whole = page.locator(".five .card").filter(has_text=re.compile("Whole\\s*yes"))
            expect(whole).to_have_count(5, timeout=WAIT_S * 1000)
            reconnects = [int(text) for text in page.locator(".five dt:text('Reconnects') + dd").all_inner_texts()]
            assert sum(one > 0 for one in reconnects) >= 3
            assert one.foreign() == []
        for told in ("upstream calls: 1", "/console/r/chatcmpl-"):
            while told not in printed:
                line = process.stdout.readline()
                assert line, f"ended: {printed}"
                printed += line
        assert printed.count("yes") == 5
    finally:
        process.terminate()
        process.wait(WAIT_S)
        process.stdout.close()  # type: ignore[union-attr]
