"""The console while things happen: answers grow, the API is killed, pages are hidden, and nothing is lost or moved."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from shared.cli.embedded import EmbeddedValkey
from tests.e2e.console import MARKS, Asking, Tab, tab
from tests.harness.processes import Stack, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words

pytestmark = MARKS
HIDE = """(hidden) => {
    Object.defineProperty(document, 'hidden', { value: hidden, configurable: true })
    document.dispatchEvent(new Event('visibilitychange'))
}"""
LONG = "fake/lorem?tokens=20000&rate=30"  # longer than any test may last


@pytest.fixture
def own(valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path) -> Iterator[Stack]:
    """A stack that may be killed."""
    url = valkey.url.replace("db=0", "db=11")
    with open_store(url) as store:
        store.flushdb()
    with Stack(url, upstream.base_url, tmp_path, STREAMSPOOL_KEEPALIVE_S="1") as running:
        yield running


def kill(stack: Stack) -> None:
    stack.process("api").send_signal(signal.SIGKILL)
    stack.process("api").wait()


def test_an_answer_that_is_watched_is_whole_after_the_api_was_killed(
    browser: Browser, own: Stack, upstream: ScriptedUpstream
) -> None:
    pause = Pause()
    upstream.script("console-killed", [*words(10), pause, *words(20)[11:], *ending()])
    asking = Asking(own.url)
    generation_id = asking.ask("scripted/console-killed", background=True)
    with tab(browser, own.url) as one:
        page = one.go(f"/r/{generation_id}")
        text = page.locator(".message.assistant .markdown")
        expect(text).to_contain_text("w9")
        kill(own)
        expect(page.get_by_role("status").filter(has_text="Reconnecting").first).to_be_visible()
        expect(text).to_contain_text("w9")  # what was there stays
        own.start("api")
        pause.go()
        expect(text).to_contain_text("w19", timeout=60_000)
        assert text.inner_text().split() == [f"w{number}" for number in range(20)]  # each once
        expect(page.locator("h1 .status")).to_have_attribute("data-status", "completed")
        expect(page.get_by_text("Reconnecting")).to_have_count(0)
        assert one.wrong == []


def test_live_keeps_what_it_has_while_the_api_is_away_and_goes_on(browser: Browser, own: Stack) -> None:
    generation_id = Asking(own.url).ask(LONG, background=True)
    with tab(browser, own.url) as one:
        page = one.go("/")
        row = page.locator("table[aria-label='Running now'] tbody tr")
        expect(row).to_have_count(1)
        expect(row.locator(".lastwords")).to_contain_text(re.compile(r"\w{3}"))
        kill(own)
        expect(page.locator(".away")).to_contain_text("Reconnecting")
        expect(row).to_have_count(1)
        own.start("api")
        expect(page.locator(".away")).to_have_count(0, timeout=60_000)
        before = row.locator(".lastwords").inner_text()
        expect(row.locator(".lastwords")).not_to_have_text(before)  # it grows again
        Asking(own.url).http.post(f"/v1/streams/{generation_id}/cancel")
        expect(page.get_by_text("Nothing runs just now")).to_be_visible()
        assert one.wrong == []


def test_rows_stay_where_they_are_under_the_pointer(browser: Browser, own: Stack) -> None:
    asking = Asking(own.url)
    first = asking.ask(LONG, background=True)
    with tab(browser, own.url) as one:
        page = one.go("/")
        rows = page.locator("table[aria-label='Running now'] tbody tr")
        expect(rows).to_have_count(1)
        rows.first.hover()
        second = asking.ask(LONG, background=True)
        expect(page.get_by_text("1 more, held back while you are here")).to_be_visible()
        expect(rows).to_have_count(1)
        page.locator("h1").hover()
        expect(rows).to_have_count(2)
        for one_id in (first, second):
            asking.http.post(f"/v1/streams/{one_id}/cancel")


def test_a_hidden_page_lets_go_of_its_streams_and_goes_on_when_it_is_shown(
    browser: Browser, own: Stack, upstream: ScriptedUpstream
) -> None:
    pause = Pause()
    upstream.script("console-hidden", [*words(10), pause, *words(60)[11:], *ending()])
    asking = Asking(own.url)
    generation_id = asking.ask("scripted/console-hidden", background=True)
    with tab(browser, own.url) as one:
        page = one.go(f"/r/{generation_id}")
        text = page.locator(".message.assistant .markdown")
        expect(text).to_contain_text("w9")
        page.evaluate(HIDE, True)
        expect(page.locator(".watchline [role=status]")).to_contain_text("Asleep")
        wait_until(lambda: asking.state(generation_id)["viewers"] == 0, what="nobody watches")
        pause.go()
        wait_until(lambda: asking.state(generation_id)["status"] == "completed", what="it has ended unseen")
        expect(text).not_to_contain_text("w59")
        page.evaluate(HIDE, False)
        expect(page.locator("h1 .status")).to_have_attribute("data-status", "completed")
        expect(text).to_contain_text("w59")
        assert text.inner_text().split() == [f"w{number}" for number in range(60)]
        one.check()


def test_a_request_is_cancelled_after_a_question(browser: Browser, own: Stack) -> None:
    asking = Asking(own.url)
    generation_id = asking.ask(LONG, background=True)
    with tab(browser, own.url) as one:
        page = one.go(f"/r/{generation_id}")
        expect(page.locator("h1 .status")).to_have_attribute("data-status", "in_progress")
        page.keyboard.press("x")
        page.get_by_role("button", name="No, leave it").click()
        assert asking.state(generation_id)["status"] == "in_progress"
        page.keyboard.press("x")
        page.get_by_role("button", name="Cancel it").click()
        expect(page.locator("h1 .status")).to_have_attribute("data-status", "cancelled")
        assert asking.state(generation_id)["status"] == "cancelled"
        page.get_by_role("button", name="Retry").click()
        expect(page).not_to_have_url(re.compile(generation_id))
        again = page.url.rpartition("/")[2]
        assert asking.state(again)["retried_from"] == generation_id
        asking.http.post(f"/v1/streams/{again}/cancel")
        one.check()


def test_more_tabs_than_a_browser_has_connections_share_one_feed(browser: Browser, own: Stack) -> None:
    """It has six to a server in HTTP/1.1, for all of them."""
    asking = Asking(own.url)
    with tab(browser, own.url) as first:
        tabs = [first, *(Tab(first.page.context, own.url) for _ in range(7))]

        def followed() -> list[Tab]:
            return [one for one in tabs if any("/v1/events" in url for url in one.asked)]

        for one in tabs:
            one.go("/")
            expect(one.page.get_by_role("status").filter(has_text="Live").first).to_be_visible()
        (leader,) = followed()
        for _ in range(2):
            generation_id = asking.ask(LONG, background=True)
            for one in tabs:
                expect(one.page.locator(f"a[href*='{generation_id}']")).to_be_visible()
                expect(one.page.locator(".lastwords").first).to_contain_text(re.compile(r"\w{3}"))
                assert one.wrong == []
            asking.http.post(f"/v1/streams/{generation_id}/cancel")
            for one in tabs:
                expect(one.page.get_by_text("Nothing runs just now")).to_be_visible()
            assert len(followed()) == 1
            if leader in tabs:
                tabs.remove(leader)
                leader.page.close()  # another one goes on


def test_more_answers_than_a_browser_has_connections_are_followed_in_turns(browser: Browser, own: Stack) -> None:
    asking = Asking(own.url)
    ids = [asking.ask("fake/lorem?tokens=60&rate=8", background=True) for _ in range(6)]
    with tab(browser, own.url) as first:
        tabs = [first, *(Tab(first.page.context, own.url) for _ in ids[1:])]
        for one, generation_id in zip(tabs, ids, strict=True):
            one.go(f"/r/{generation_id}")
        for one, generation_id in zip(tabs, ids, strict=True):
            expect(one.page.locator("h1 .status")).to_have_attribute("data-status", "completed")
            expect(one.page.locator(".growing")).to_have_count(0)
            assert (
                one.page.locator(".message.assistant .markdown").inner_text().split()
                == asking.text(generation_id).split()
            )
            one.check()
