"""The console in a real Chromium, by Playwright: what it asks, what its policy stops, what it says is wrong.

Hidden here: how the browser is started and ended, that it speaks to no host but this one, and what of its errors is expected
where a server is killed on purpose.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, Route, expect, sync_playwright

from tests.e2e.browser import CHROMIUM
from tests.harness.processes import ROOT

AXE = ROOT / "tests/clients/node_modules/axe-core/axe.min.js"
MARKS = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here"),
    pytest.mark.skipif(not AXE.exists(), reason="`make clients` has not been run"),
    pytest.mark.timeout(300),
]
"""Of each module of the console's tests."""
# No sandbox: root has none in a container. No proxy: all of it is on the loopback.
_OPTIONS = (
    "--no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run --no-proxy-server"
)
WAIT_MS = 90_000
expect.set_options(timeout=WAIT_MS)
_FAILED_LOAD = "Failed to load resource"


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_OPTIONS.split())
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page of the console at a server, with all that went wrong in it."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("console", self._hear)
        self.page.add_init_script(
            "addEventListener('securitypolicyviolation', "
            "(e) => console.error('violation: ' + e.violatedDirective + ' ' + e.blockedURI))"
        )

    def _hear(self, message: Any) -> None:
        if message.type == "error" and not message.text.startswith(_FAILED_LOAD):
            self.wrong.append(message.text)

    def go(self, path: str = "/") -> Page:
        self.page.goto(f"{self.url}/console{path}")
        return self.page

    def foreign(self) -> list[str]:
        """What was asked of any other host."""
        own = urlsplit(self.url).netloc
        return [url for url in self.asked if urlsplit(url).scheme in ("http", "https") and urlsplit(url).netloc != own]

    def check(self) -> None:
        """Nothing was stopped by the policy, thrown, or asked of others."""
        assert self.wrong == [], self.wrong
        assert self.foreign() == [], self.foreign()

    def serious(self) -> list[str]:
        """What axe-core finds serious or critical. It is brought in past the policy, by the browser itself."""
        client = self.page.context.new_cdp_session(self.page)
        client.send("Runtime.evaluate", {"expression": AXE.read_text("utf-8")})
        asked = {"expression": "axe.run()", "awaitPromise": True, "returnByValue": False}
        found = client.send("Runtime.evaluate", asked)
        handle = {"functionDeclaration": "function() { return JSON.stringify(this.violations) }", "returnByValue": True}
        told = client.send("Runtime.callFunctionOn", {**handle, "objectId": found["result"]["objectId"]})
        client.detach()
        return [
            f"{one['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
            for one in json.loads(told["result"]["value"])
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]


@contextmanager
def tab(browser: Browser, url: str, **options: Any) -> Iterator[Tab]:
    """A profile of its own, with nothing remembered."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 860}} | options))
    try:
        yield Tab(context, url)
    finally:
        for page in context.pages:  # an answer that is being made would fail in whichever test is next
            page.unroute_all(behavior="ignoreErrors")
        context.unroute_all(behavior="ignoreErrors")
        context.close()


NEXT_FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
"""For `evaluate`: two frames and what they began are over, so whatever was to be drawn is drawn."""


class Held:
    """The answers to a route, which wait until the test lets go of one."""

    def __init__(
        self, page: Page, pattern: str | re.Pattern[str], *, only: Callable[[Route], bool] = lambda _: True
    ) -> None:
        """`only`: which of the requests; the others go on."""
        self._page, self._only = page, only
        self._waiting: list[Route] = []
        self._answer: dict[str, Any] = {}
        self._open = False
        page.route(pattern, self._take)

    def _take(self, route: Route) -> None:
        if self._open or not self._only(route):
            route.fallback()
        elif self._answer:
            route.fulfill(**self._answer)
        else:
            self._waiting.append(route)

    def open(self) -> None:
        """What is asked from now on goes on at once."""
        self._open = True

    def waits(self) -> bool:
        return bool(self._waiting)

    def wait(self, count: int = 1) -> None:
        """Until so many wait."""
        deadline = time.monotonic() + WAIT_MS / 1000
        while len(self._waiting) < count:
            assert time.monotonic() < deadline, f"{len(self._waiting)} of {count} were asked for"
            self._page.wait_for_timeout(20)

    def newest(self) -> Route:
        return self._waiting[-1]

    def answer(self, **answer: Any) -> None:
        """All of them, at once, with this."""
        self._answer = answer

    def let_go(self, *, newest: bool = False, aborts: bool = False, **answer: Any) -> None:
        """Of the one that has waited the longest, or of the newest: the server's own answer, or this one; until it is drawn.

        `aborts`: the page may not want it any more.
        """
        self.wait()
        route = self._waiting.pop(-1 if newest else 0)
        if aborts:
            with suppress(Error):
                route.fulfill(**answer) if answer else route.continue_()
        else:
            with self._page.expect_response(lambda response: response.request == route.request):
                route.fulfill(**answer) if answer else route.continue_()
        self._page.evaluate(NEXT_FRAMES)


class _Client(httpx.Client):
    """Closed when nobody has it any more."""

    def __del__(self) -> None:
        self.close()


class Asking:
    """A program that asks the server, whose requests the console shows."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        self.http = _Client(base_url=url, headers=headers, trust_env=False, timeout=60)

    def ask(self, model: str, text: str = "Hello", **more: Any) -> str:
        """The id of a request that has ended, or, with `background`, runs."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        response = self.http.post("/v1/chat/completions", json=body)
        found = re.search(r"chatcmpl-[0-9a-f]{32}", response.headers.get("x-stream-id", response.text))
        assert found, response.text
        return found[0]

    def state(self, generation_id: str) -> dict[str, Any]:
        response = self.http.get(f"/v1/streams/{generation_id}", headers={"accept": "application/json"})
        state: dict[str, Any] = response.json()
        return state

    def text(self, generation_id: str) -> str:
        """The whole answer, once it is there."""
        found = self.http.get(f"/v1/chat/completions/{generation_id}").json()
        return str(found["choices"][0]["message"]["content"])
