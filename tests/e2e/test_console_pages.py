"""What the pages of the console show: the numbers of their routes, what filters let through, files of lists, a replay."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from shared.cli.embedded import EmbeddedValkey
from tests.e2e.browser import CHROMIUM
from tests.e2e.console import AXE, Asking, chromium, tab
from tests.harness.processes import Stack, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import ScriptedUpstream

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here"),
    pytest.mark.skipif(not AXE.exists(), reason="`make clients` has not been run"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def full(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A server with some of everything."""
    url = valkey.url.replace("db=0", "db=13")
    with open_store(url) as store:
        store.flushdb()
    with Stack(url, upstream.base_url, tmp_path_factory.mktemp("full")) as running:
        fill(running.url)
        yield running


def fill(url: str) -> None:
    asking = Asking(url)
    for number in range(6):
        asking.ask("fake/echo", f"# Title\n\nText *{number}*\n\n```js\nlet x = {number};\n```", metadata={"team": "a"})
    asking.ask("fake/echo?error=429")
    asking.ask("fake/lorem?cut=5")
    asking.ask("fake/lorem?tokens=30&reasoning=10", session_id="ann-1")
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"}
    line["body"] = {"model": "fake/echo", "messages": [{"role": "user", "content": "Hi"}]}  # type: ignore[assignment]
    files = {"file": ("in.jsonl", json.dumps(line).encode())}
    stored = asking.http.post("/v1/files", data={"purpose": "batch"}, files=files).json()["id"]
    body = {"input_file_id": stored, "endpoint": "/v1/chat/completions", "completion_window": "1h"}
    batch = asking.http.post("/v1/batches", json=body).json()["id"]
    wait_until(lambda: asking.http.get(f"/v1/batches/{batch}").json()["status"] == "completed", 60)
    wait_until(lambda: asking.http.get("/v1/usage").json()["data"], 60)


def test_each_number_of_the_tiles_is_that_of_its_route(browser: Browser, full: Stack) -> None:
    asking = Asking(full.url)
    total = asking.http.get("/v1/usage").json()["total"]
    with tab(browser, full.url) as one:
        page = one.go("/usage")
        tile = page.locator(".tile").filter(has_text="Requests")
        expect(tile.locator(".value")).to_have_text(str(total["requests"]))
        expect(tile.locator(".note")).to_have_text(f"{total['failed_requests']} failed")
        answers = page.locator(".tile").filter(has_text="Answer tokens").locator(".value")
        expect(answers).to_have_text(f"{total['completion_tokens']:,}")


def test_filters_stand_in_the_address_and_back_takes_them_out(browser: Browser, full: Stack) -> None:
    with tab(browser, full.url) as one:
        page = one.go("/requests")
        page.locator(".facets").get_by_role("button", name=re.compile("^failed")).click()
        expect(page).to_have_url(re.compile("status=failed"))
        statuses = page.locator("table[aria-label=Requests] tbody .status")
        expect(statuses.first).to_have_attribute("data-status", "failed")
        listed = Asking(full.url).http.get("/v1/streams?status=failed&limit=100").json()["data"]
        expect(statuses).to_have_count(len(listed))
        page.get_by_role("button", name="Take out status").click()
        expect(statuses).not_to_have_count(len(listed))
        page.go_back()
        expect(statuses).to_have_count(len(listed))
        one.check()


def test_the_list_is_exported(browser: Browser, full: Stack) -> None:
    with tab(browser, full.url, accept_downloads=True) as one:
        page = one.go("/requests?metadata%5Bteam%5D=a")
        expect(page.locator("table[aria-label=Requests] tbody tr").first).to_be_visible()
        texts = {}
        for kind in ("CSV", "JSONL", "As batch input"):
            page.locator(".menu summary").click()
            with page.expect_download() as download:
                page.get_by_role("button", name=kind).click()
            texts[kind] = Path(download.value.path()).read_text("utf-8")
            page.locator(".menu summary").click()
        assert texts["CSV"].splitlines()[0].startswith("id,status,model")
        assert len(texts["CSV"].splitlines()) == 7
        assert [json.loads(line)["metadata"] for line in texts["JSONL"].splitlines()] == [{"team": "a"}] * 6
        lines = [json.loads(line) for line in texts["As batch input"].splitlines()]
        assert {line["url"] for line in lines} == {"/v1/chat/completions"}
        assert all(line["body"]["model"] == "fake/echo" for line in lines)


def test_the_scrubber_shows_the_answer_as_it_was_and_stands_in_the_address(browser: Browser, full: Stack) -> None:
    generation_id = Asking(full.url).ask("fake/echo", "one two three four")
    with tab(browser, full.url) as one:
        page = one.go(f"/r/{generation_id}?tab=events#at=1-3")
        shown = page.locator(".replayed")
        expect(shown).to_have_text("one two")
        page.locator("input[type=range]").focus()
        page.keyboard.press("ArrowRight")
        expect(shown).to_have_text("one two three")
        expect(page).to_have_url(re.compile("#at=1-4"))
        page.get_by_role("button", name="max").click()
        page.get_by_role("button", name="Play", exact=True).click()
        expect(shown).to_have_text("one two three four")
        one.check()
