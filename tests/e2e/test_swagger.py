"""Swagger UI in a real Chromium without the internet: it shows all routes, asks no other host, and nothing is refused to it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.e2e.browser import CHROMIUM
from tests.harness.processes import Stack

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="no chromium here"), pytest.mark.timeout(300)]


def test_it_shows_all_routes_and_asks_no_other_host(stack: Stack, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    log = tmp_path / "net.json"
    options = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --no-proxy-server"
    quiet = "--disable-background-networking --disable-component-update --disable-sync --disable-extensions"
    page = subprocess.run(
        [
            CHROMIUM,
            *options.split(),
            *quiet.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--log-net-log={log}",
            "--enable-logging=stderr",
            "--virtual-time-budget=60000",
            "--dump-dom",
            f"{stack.url}/docs/swagger",
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    shown = set(re.findall(r'data-path="([^"]+)"', page.stdout))
    paths = set(httpx.get(f"{stack.url}/openapi.json", trust_env=False).json()["paths"])
    assert {path.replace("\u200b", "") for path in shown} == paths
    console = [line for line in page.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in console if "Refused" in line or "Content Security Policy" in line or "Error" in line]
    # What the page asked for; Chromium asks for things of its own, too, which no page began.
    events = [event.get("params") or {} for event in json.loads(log.read_text())["events"]]
    asked = {one["url"] for one in events if "url" in one and str(one.get("initiator")).startswith(stack.url)}
    at = f"{stack.url}/docs/swagger/"
    files = {f"{at}{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css", "start.js")}
    assert {*files, f"{stack.url}/openapi.json"} == {url for url in asked if not url.startswith("data:")}
