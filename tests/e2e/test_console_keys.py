"""Every shortcut of the console, on the page where it is one. That all of them are here, the last test says."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.console import MARKS, Asking, Tab, tab
from tests.harness.processes import ROOT, Stack

pytestmark = MARKS
PAGES = {
    "l": "Live",
    "r": "Requests",
    "y": "Playground",
    "b": "Batches",
    "s": "Sessions",
    "u": "Usage",
    "o": "Operations",
}
PRESS = """
  keys => { for (const key of keys) document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true })) }
"""
"""All of them in one frame, as from a keyboard that repeats, or on a page that is busy."""
TESTED = {"/", "j", "k", "Enter", "Space", "Esc", "[", "]", "g", *PAGES, "c", "s", "x", "p", "t", "?"}


@pytest.fixture(scope="module")
def asked(stack: Stack) -> list[str]:
    """Three requests, the newest first."""
    asking = Asking(stack.url)
    return [asking.ask("fake/echo", f"number {number}") for number in range(3)][::-1]


@pytest.fixture
def one(browser: Browser, stack: Stack) -> Iterator[Tab]:
    with tab(browser, stack.url, permissions=["clipboard-read", "clipboard-write"]) as open_tab:
        yield open_tab
        open_tab.check()


def copied(page: Page) -> str:
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def rows(page: Page) -> Page:
    expect(page.locator("table[aria-label=Requests] tbody tr").first).to_be_visible()
    return page


@pytest.mark.parametrize("key", PAGES)
def test_g_goes_to_a_page(one: Tab, key: str) -> None:
    page = one.go("/help")
    expect(page.locator("h1")).to_have_text("Help")
    page.evaluate(PRESS, ["g", key])  # two presses from outside may be longer apart than the two belong together
    expect(page.locator("h1")).to_have_text(PAGES[key])
    page.go_back()
    expect(page.locator("h1")).to_have_text("Help")


def test_slash_searches_and_what_is_typed_is_no_shortcut(one: Tab, asked: list[str]) -> None:
    page = rows(one.go("/requests"))
    page.keyboard.press("/")
    page.keyboard.type("team:jkgl")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"metadata%5Bteam%5D=jkgl"))
    expect(page.get_by_text("Nothing is like that")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page).to_have_url(re.compile(r"/console/requests$"))


def test_j_and_k_move_enter_opens_and_escape_goes_back(one: Tab, asked: list[str]) -> None:
    page = rows(one.go("/requests"))
    chosen = page.locator("tr[aria-selected=true]")
    for key, at in (("j", 0), ("j", 1), ("j", 2), ("k", 1)):
        page.keyboard.press(key)
        expect(page).to_have_url(
            re.compile(f"at={page.locator('tbody tr').nth(at).locator('a').get_attribute('title')}")
        )
    wanted = page.locator("tbody tr").nth(1).locator("a").first.get_attribute("title") or ""
    expect(chosen.locator("a").first).to_have_attribute("title", wanted)  # drawn a frame after the address
    expect(chosen).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(f"/console/r/{wanted}"))
    expect(page.get_by_role("tab").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("h1")).to_have_text("Requests")


def test_space_peeks_brackets_turn_the_page_and_escape_closes(one: Tab, asked: list[str]) -> None:
    page = rows(one.go("/requests"))
    page.keyboard.press("j")
    page.keyboard.press("Space")
    peek = page.locator(".peek")
    expect(peek).to_be_visible()
    first = peek.locator(".mono").first.inner_text()
    page.keyboard.press("]")
    expect(peek.locator(".mono").first).not_to_have_text(first)
    page.keyboard.press("[")
    expect(peek.locator(".mono").first).to_have_text(re.compile(first.strip()))
    page.keyboard.press("Escape")
    expect(peek).to_have_count(0)


def test_brackets_turn_the_tabs_of_a_request(one: Tab, asked: list[str]) -> None:
    page = one.go(f"/r/{asked[0]}")
    expect(page.get_by_role("tab", selected=True)).to_have_text("Conversation")
    page.keyboard.press("]")
    expect(page.get_by_role("tab", selected=True)).to_have_text("Timeline")
    page.keyboard.press("[")
    page.keyboard.press("[")
    expect(page.get_by_role("tab", selected=True)).to_have_text(re.compile("Errors"))


def test_keys_of_one_frame_are_as_many_steps(one: Tab, asked: list[str]) -> None:
    page = one.go(f"/r/{asked[0]}")
    expect(page.get_by_role("tab", selected=True)).to_have_text("Conversation")
    page.evaluate(PRESS, ["]", "]", "[", "[", "["])
    expect(page.get_by_role("tab", selected=True)).to_have_text(re.compile("Errors"))
    page = one.go("/operations")
    expect(page.get_by_role("tab", selected=True)).to_have_text("Workers and queue")
    page.evaluate(PRESS, ["]", "]", "["])
    expect(page.get_by_role("tab", selected=True)).to_have_text("Providers")
    page = rows(one.go("/requests"))
    second = page.locator("tbody tr").nth(1).locator("a").get_attribute("title")
    page.evaluate(PRESS, ["j", "j", "j", "k", "Enter"])
    expect(page).to_have_url(re.compile(f"/console/r/{second}"))


def test_c_copies_the_curl_of_the_page(one: Tab, stack: Stack, asked: list[str]) -> None:
    page = one.go(f"/r/{asked[0]}")
    expect(page.get_by_role("tab").first).to_be_visible()
    page.keyboard.press("c")
    expect(page.get_by_text("curl copied")).to_be_visible()
    assert copied(page) == f"curl -sN '{stack.url}/v1/streams/{asked[0]}'"


def test_s_shares_and_escape_closes(one: Tab, asked: list[str]) -> None:
    page = one.go(f"/r/{asked[0]}")
    expect(page.get_by_role("tab").first).to_be_visible()
    page.keyboard.press("s")
    expect(page.get_by_role("dialog", name="Share this answer")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page).to_have_url(re.compile(asked[0]))


def test_x_asks_before_it_cancels(one: Tab, stack: Stack) -> None:
    asking = Asking(stack.url)
    generation_id = asking.ask("fake/lorem?tokens=20000&rate=30", background=True)
    page = one.go(f"/r/{generation_id}")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    page.keyboard.press("x")
    expect(page.get_by_role("dialog", name="Cancel this request?")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert asking.state(generation_id)["status"] != "cancelled"
    asking.http.post(f"/v1/streams/{generation_id}/cancel")


def test_p_pauses_what_moves(one: Tab) -> None:
    page = one.go("/")
    button = page.get_by_role("button", name=re.compile("^(Pause|Go on)$"))
    expect(button).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("p")
    expect(button).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("p")
    expect(button).to_have_attribute("aria-pressed", "false")


def test_t_changes_the_colours_and_they_are_kept(one: Tab) -> None:
    page = one.go("/help")
    expect(page.locator("h1")).to_have_text("Help")
    page.keyboard.press("t")
    page.keyboard.press("t")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).colorScheme || document.documentElement.dataset.theme")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_the_question_mark_helps(one: Tab) -> None:
    page = one.go("/usage")
    expect(page.locator("h1")).to_have_text("Usage")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_focus_comes_back_after_a_dialog(one: Tab, asked: list[str]) -> None:
    page = one.go(f"/r/{asked[0]}")
    share = page.get_by_role("button", name="Share")
    share.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(share).to_be_focused()


def test_every_shortcut_is_tested() -> None:
    code = (ROOT / "api/console/static/lib/keys.js").read_text("utf-8")
    told = {key for keys in re.findall(r'^  \["([^"]+)", "', code, re.M) for key in keys.split()}
    assert told == TESTED
