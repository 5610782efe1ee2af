"""The console of a server with keys: signing in and out, and an answer that is shared with a browser without any."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from shared.cli.embedded import EmbeddedValkey
from tests.e2e.console import MARKS, Asking, Tab, tab
from tests.harness.processes import Stack
from tests.harness.store import open_store
from tests.harness.upstream import ScriptedUpstream
from tests.support.wire import ADMIN_KEY, KEY_A, KEY_B

pytestmark = MARKS
LONG = "fake/lorem?tokens=20000&rate=30"  # longer than any test may last


@pytest.fixture
def server(valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path) -> Iterator[Stack]:
    url = valkey.url.replace("db=0", "db=14")
    with open_store(url) as store:
        store.flushdb()
    keys = {"STREAMSPOOL_API_KEYS": f"a:{KEY_A},b:{KEY_B}", "STREAMSPOOL_ADMIN_KEYS": f"ops:{ADMIN_KEY}"}
    with Stack(url, upstream.base_url, tmp_path, **keys) as running:
        yield running


def asking(server: Stack, key: str = KEY_A) -> Asking:
    return Asking(server.url, {"authorization": f"Bearer {key}"})


def sign_in(one: Tab, key: str, path: str = "/") -> None:
    page = one.go(path)
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator(".side")).to_be_visible()


def test_a_key_signs_in_once_and_is_kept_nowhere(browser: Browser, server: Stack) -> None:
    mine = asking(server).ask("fake/echo", "of tenant a")
    other = asking(server, KEY_B).ask("fake/echo", "of tenant b")
    with tab(browser, server.url) as one:
        page = one.go("/requests")
        expect(page.get_by_role("heading", name="Sign in to Streamspool")).to_be_visible()
        assert one.serious() == []
        page.get_by_label("Key", exact=True).fill("no-key-at-all")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("no key of this server")
        page.get_by_label("Key", exact=True).fill(KEY_A)
        page.get_by_role("button", name="Sign in").click()
        table = page.locator("table[aria-label=Requests]")
        expect(table.locator(f"a[href*='{mine}']")).to_be_visible()
        expect(table.locator(f"a[href*='{other}']")).to_have_count(0)
        kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
        assert KEY_A not in kept
        page.goto(f"{server.url}/console/r/{other}")
        expect(page.get_by_text("This answer is not here any more")).to_be_visible()
        page.goto(f"{server.url}/console/r/{mine}")
        expect(page.locator(".message.assistant")).to_contain_text("of tenant a")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in to Streamspool")).to_be_visible()
        page.reload()
        expect(page.get_by_role("heading", name="Sign in to Streamspool")).to_be_visible()
        one.check()


def test_an_admin_sees_every_tenant_and_makes_keys(browser: Browser, server: Stack) -> None:
    asking(server).ask("fake/echo", "of tenant a")
    asking(server, KEY_B).ask("fake/echo", "of tenant b")
    with tab(browser, server.url) as one:
        sign_in(one, ADMIN_KEY, "/requests")
        page = one.page
        page.get_by_title("Look at every tenant, or at your own").click()
        page.goto(f"{server.url}/console/requests")
        rows = page.locator("table[aria-label=Requests] tbody tr")
        expect(rows).to_have_count(2)
        page.goto(f"{server.url}/console/operations?tab=keys")
        page.get_by_role("button", name="New key").click()
        page.get_by_role("textbox", name="Tenant").fill("made-here")
        page.get_by_role("button", name="Make it").click()
        secret = page.get_by_role("dialog").locator("pre")
        expect(secret).to_contain_text("sk-ss-")
        key = secret.inner_text().strip()
        assert asking(server, key).http.get("/v1/streams").status_code == 200
        page.keyboard.press("Escape")
        expect(page.locator("table[aria-label=Keys]")).to_contain_text("made-here")
        page.goto(f"{server.url}/console/operations?tab=audit")
        expect(page.locator("table[aria-label=Audit]")).to_contain_text("key.created")
        one.check()


def make_link(one: Tab, generation_id: str, mode: str) -> str:
    page = one.page
    page.goto(f"{one.url}/console/r/{generation_id}")
    expect(page.get_by_role("tab").first).to_be_visible()
    page.keyboard.press("s")
    page.get_by_label("They may").select_option(mode)
    page.get_by_role("button", name="Make a link").click()
    link = page.get_by_role("dialog").locator("pre")
    expect(link).to_contain_text("/s/#")
    return link.inner_text().strip()


def test_a_shared_answer_is_watched_without_a_key_through_a_crash_until_it_is_revoked(
    browser: Browser, server: Stack
) -> None:
    generation_id = asking(server).ask(LONG, "a secret question", background=True)
    with tab(browser, server.url) as owner, tab(browser, server.url, viewport={"width": 390, "height": 844}) as guest:
        sign_in(owner, KEY_A)
        link = make_link(owner, generation_id, "view")
        page = guest.page
        page.goto(link)
        text = page.locator(".message.assistant .markdown")
        expect(text).to_contain_text("ipsum")
        assert "#" not in page.url
        assert "a secret question" not in page.content()
        assert page.get_by_role("navigation").count() == 0
        assert page.get_by_role("button", name="Cancel").count() == 0
        assert guest.serious() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        server.process("api").send_signal(signal.SIGKILL)
        server.process("api").wait()
        expect(page.get_by_text("Reconnecting")).to_be_visible()
        before = text.inner_text()
        server.start("api")
        expect(page.get_by_text("Live", exact=False).first).to_be_visible(timeout=60_000)
        expect(text).not_to_have_text(before, timeout=60_000)
        assert text.inner_text().startswith(before.strip()[:200])
        status = page.evaluate(
            f"fetch('/v1/streams/{generation_id}/cancel', {{ method: 'POST' }}).then((r) => r.status)"
        )
        assert status == 401
        shares = asking(server).http.get(f"/v1/streams/{generation_id}/shares").json()["data"]
        asking(server).http.delete(f"/v1/streams/{generation_id}/shares/{shares[0]['id']}")
        expect(page.get_by_text("This link opens nothing, or not any more")).to_be_visible(timeout=60_000)
        assert guest.foreign() == []
    asking(server).http.post(f"/v1/streams/{generation_id}/cancel")


def test_a_share_with_control_cancels(browser: Browser, server: Stack) -> None:
    generation_id = asking(server).ask(LONG, background=True)
    with tab(browser, server.url) as owner, tab(browser, server.url) as guest:
        sign_in(owner, KEY_A)
        link = make_link(owner, generation_id, "control")
        page = guest.page
        page.goto(link)
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Cancel it").click()
        expect(page.locator("h1 .status")).to_have_attribute("data-status", "cancelled")
        assert re.match("cancelled", asking(server).state(generation_id)["status"])
        guest.check()
        owner.check()


def test_a_link_that_is_wrong_says_so(browser: Browser, server: Stack) -> None:
    with tab(browser, server.url) as guest:
        guest.page.goto(f"{server.url}/s/#sh_nothing")
        expect(guest.page.get_by_text("This link opens nothing, or not any more").first).to_be_visible()
